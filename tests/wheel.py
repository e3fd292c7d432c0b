"""Run the wheel in clean environments, with the oldest and the newest dependencies it declares: `make wheel-check`.

Where a Python has no wheel of the oldest release that is declared, the oldest that has one stands in.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

REPOSITORY = Path(__file__).parents[1]
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
# `ginseng demo` needs no network; the cells that it annotates have counts and labels for the other commands.
COMMANDS = """
demo --out demo
create demo/annotated.h5ad --label bulk_labels -o cells.zarr
fit cells.zarr --epochs 2 -o model.h5
annotate model.h5 demo/annotated.h5ad -o annotated.h5ad
annotate model.h5 demo/annotated.h5ad -o annotated.csv
inspect model.h5
"""
VERSION = "import platform, sys; print(platform.python_version(), sys.executable)"
INSTALLED = "import importlib.metadata as m, sys; print(*(f'{name} {m.version(name)}' for name in sys.argv[1:]))"


def run(*command, cwd=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def uv(*arguments):
    return run(sys.executable, "-m", "uv", "--quiet", *arguments)


def build(folder):
    uv("build", "--out-dir", folder, REPOSITORY)  # the wheel from the sdist
    (wheel,) = folder.glob("*.whl")
    return wheel


def requirements_of(wheel):
    """What the wheel and its demo need, once it holds what it should."""
    with ZipFile(wheel) as opened:
        names = opened.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        declared = message_from_string(opened.read(metadata).decode()).get_all("Requires-Dist", [])
    if "ginseng/py.typed" not in names:
        sys.exit(f"{wheel.name} lacks ginseng/py.typed")
    if strangers := [name for name in names if not name.startswith(("ginseng/", "ginseng_eqx-"))]:
        sys.exit(f"{wheel.name} has files beside the package: {', '.join(strangers)}")
    return [need.split(";")[0] for need in declared if ";" not in need or need.endswith("; extra == 'demo'")]


def check(wheel, requirements, python, dependencies, folder):
    environment = folder / "environment"
    interpreter = environment / "bin" / "python"
    uv("venv", "--clear", "--python", python, environment)
    choice = ["--resolution", RESOLUTIONS[dependencies], "--only-binary", ":all:"]
    uv("pip", "install", "--python", interpreter, *choice, wheel, *requirements)
    cells = folder / "cells"
    cells.mkdir()
    for command in COMMANDS.strip().splitlines():
        run(environment / "bin" / "ginseng", *command.split(), cwd=cells)
    names = [re.split(r"[\[>]", requirement)[0] for requirement in requirements]
    return run(interpreter, "-c", INSTALLED, *names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="+")
    parser.add_argument("--wheel", type=Path, help="default: build it")
    parser.add_argument("--dependencies", choices=RESOLUTIONS, action="append", help="default: both")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheel = (chosen.wheel or build(Path(scratch, "dist"))).resolve()
        requirements = requirements_of(wheel)
        for python in chosen.pythons:
            version, executable = run(python, "-c", VERSION).split(maxsplit=1)
            for dependencies in chosen.dependencies or RESOLUTIONS:
                began = time.perf_counter()
                folder = Path(scratch, f"{version}-{dependencies}")
                found = check(wheel, requirements, executable, dependencies, folder)
                seconds = time.perf_counter() - began
                print(f"{version} {dependencies}: works, {seconds:.0f} s, with {found}", flush=True)
