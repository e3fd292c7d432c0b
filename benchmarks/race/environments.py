"""A virtual environment for each contestant, made by uv in an ignored folder, once."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import CHECKOUT, Contestant, Failed
from benchmarks.race.questions import OURS, REFERENCE

UV = (sys.executable, "-m", "uv", "--quiet")
VERSIONS = """
import importlib.metadata as metadata, json, platform, sys
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
TOLD = ("ginseng-eqx", "ginseng", "jax", "celltypist", "scikit-learn", "annbatch", "zarrs", "scvi-tools", "torch")
TOLD += ("singler", "anndata", "numpy", "scipy", "zarr")


@dataclass(frozen=True)
class Environment:
    """What a contestant needs."""

    requirements: tuple[str, ...]
    least_python: tuple[int, int] = (3, 11)
    on_request: bool = False


ENVIRONMENTS = {
    OURS: Environment((f"{CHECKOUT}[demo,zarrs]",)),
    # It does not declare the last four, and does not import without them.
    REFERENCE: Environment(("ginseng==0.2.1", "zarr", "h5py", "pandas", "requests"), (3, 12)),
    # 1.7.1 passes `multi_class`, which scikit-learn 1.8 no longer takes.
    "CellTypist": Environment(("celltypist==1.7.1", "scanpy", "scikit-learn<1.8")),
    "logistic regression": Environment(("scikit-learn", "anndata")),
    "annbatch": Environment(("annbatch[zarrs]==0.3.*",), (3, 12)),
    "scANVI": Environment(("scvi-tools",), on_request=True),
    "SingleR": Environment(("singler", "anndata"), on_request=True),
}


def usual() -> list[str]:
    """Names of the contestants of every race."""
    return [name for name, environment in ENVIRONMENTS.items() if not environment.on_request]


def contestant(name: str, folder: Path, python: str) -> Contestant:
    """The interpreter of a contestant, in an environment that is made if it is not there; raises `Failed`."""
    environment, home = ENVIRONMENTS[name], folder / name.replace(" ", "-")
    interpreter, stamp = home / "bin" / "python", home / "made.json"
    wanted = json.dumps([python, *environment.requirements, declared() if name == OURS else ""])
    if not stamp.exists() or stamp.read_text() != wanted:
        make(environment, home, interpreter, python)
        stamp.write_text(wanted)
    return Contestant(name, str(interpreter), CHECKOUT if name == OURS else None)


def declared() -> str:
    """What tells that dependencies of this checkout have changed."""
    return hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes()).hexdigest()


def make(environment: Environment, home: Path, interpreter: Path, python: str) -> None:
    """Make it with `python`, or else with the interpreter that runs this, where that is new enough."""
    try:
        uv("venv", "--clear", "--python", python, home)
    except Failed:
        if sys.version_info[:2] < environment.least_python:
            raise
        uv("venv", "--clear", "--python", sys.executable, home)
    uv("pip", "install", "--compile-bytecode", "--python", interpreter, *environment.requirements)


def uv(*arguments: object) -> None:
    done = subprocess.run([*UV, *map(str, arguments)], capture_output=True, text=True, cwd=CHECKOUT)
    if done.returncode:
        raise Failed(done.stderr)


def versions(contestant: Contestant) -> dict[str, str]:
    """Versions of its Python and of the packages that matter; of ours also the revision of this checkout."""
    found = contestant.ask(VERSIONS, *TOLD)
    if contestant.checkout:
        revision = subprocess.run(
            ["git", "-C", str(contestant.checkout), "describe", "--always", "--dirty"], capture_output=True, text=True
        )
        found["ginseng-eqx"] = f"{found['ginseng-eqx']} ({revision.stdout.strip() or 'no revision'})"
    return found
