"""An environment for each writer, and its files."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.zoo.scripts.cells import GENES, cells

SCRIPTS = Path(__file__).parent / "scripts"
OLD = ("numpy<1.20", "pandas<1.1", "scipy<1.6", "h5py<3", "zarr<2.5", "numcodecs<0.10", "numba<0.52", "networkx<2.6")
OLD += ("umap-learn<0.5", "matplotlib==3.3.4", "setuptools<60", "tables<3.7", "numexpr<2.8")


@dataclass(frozen=True)
class Writer:
    """An anndata, and what is of its time."""

    anndata: str
    python: str
    further: tuple[str, ...]
    formats: tuple[str, ...] = ("h5ad", "zarr2")
    singly: bool = False

    @property
    def requirements(self) -> tuple[str, ...]:
        return (self.anndata, *self.further)


NOW = ("h5ad", "zarr2", "zarr3")
WRITERS = {
    # 0.6 writes layers of zeros into zarr
    "0.6.22": Writer("anndata==0.6.22.post1", "3.8", ("scanpy==1.4.4.post1", *OLD), ("h5ad",)),
    "0.7.0": Writer("anndata==0.7", "3.8", ("scanpy==1.4.6", *OLD)),
    "0.7.8": Writer(
        "anndata==0.7.8",
        "3.8",
        ("scanpy==1.8.2", "numpy<1.24", "pandas<1.4", "scipy<1.8", "h5py<3.7", "zarr<2.12", "matplotlib<3.5")
        + ("numba<0.57", "networkx<3"),
        singly=True,
    ),
    "0.8.0": Writer(
        "anndata==0.8.0",
        "3.8",
        ("scanpy==1.9.1", "numpy<1.24", "pandas<1.5", "scipy<1.9", "h5py<3.8", "zarr<2.14", "matplotlib<3.6")
        + ("mudata==0.2.1", "networkx<3"),
    ),
    "0.9.2": Writer(
        "anndata==0.9.2",
        "3.10",
        ("scanpy==1.9.8", "numpy<1.26", "pandas<2.1", "scipy<1.11", "zarr<2.16", "awkward", "mudata==0.2.3"),
    ),
    "0.10.9": Writer(
        "anndata==0.10.9",
        "3.10",
        ("scanpy==1.10.3", "numpy<2.1", "pandas<2.3", "scipy<1.14", "zarr<3", "awkward", "mudata==0.3.1"),
        singly=True,
    ),
    "0.11.4": Writer("anndata==0.11.4", "3.12", ("scanpy==1.11.0", "numpy<2.3", "pandas<2.3", "zarr<3", "awkward")),
    "0.12.2": Writer("anndata==0.12.2", "3.12", ("scanpy==1.11.4", "pandas<2.4", "zarr==3.1.2", "awkward"), NOW),
    "0.12": Writer("anndata==0.12.*", "3.12", ("scanpy<1.12", "zarr>=3", "mudata", "awkward"), NOW, singly=True),
    "newest": Writer("anndata", "3.13", ("scanpy", "zarr>=3", "mudata", "awkward"), NOW),
}


def write_zoo(zoo: Path, names: list[str], pythons: dict[str, str]) -> None:
    """Write the files of some writers, or all, each into a folder of its own; "R" and "emulated" are writers, too."""
    for name in names or [*WRITERS, "emulated", "R"]:
        if name in WRITERS:
            writer = WRITERS[name]
            interpreter = environment(zoo / "environments" / name, writer, pythons)
            singly = ("--singly",) if writer.singly else ()
            done = run(interpreter, SCRIPTS / "write_anndata.py", zoo / f"anndata-{name}", *writer.formats, *singly)
            (zoo / f"anndata-{name}" / "cannot.txt").write_text(done)
        elif name == "emulated":
            run(sys.executable, SCRIPTS / "emulate.py", zoo / name)
        elif shutil.which("Rscript"):
            by_r(zoo / "R")
        else:
            print("R is not here: its files are left out", file=sys.stderr)


def by_r(folder: Path) -> None:
    """By rhdf5 and hdf5r, which Debian calls r-bioc-rhdf5 and r-cran-hdf5r."""
    counts, types, donors, names = cells()
    with tempfile.TemporaryDirectory() as temporary:
        inputs = [Path(temporary) / "counts.csv", Path(temporary) / "obs.csv"]
        pd.DataFrame(counts, names, list(GENES)).to_csv(inputs[0])
        pd.DataFrame({"cell_type": types, "donor": donors}, names).to_csv(inputs[1])
        for script in ("rhdf5.R", "hdf5r.R"):
            run("Rscript", SCRIPTS / script, *inputs, folder)


def environment(home: Path, writer: Writer, pythons: dict[str, str]) -> Path:
    """The interpreter of a writer's environment, which uv makes if it is not there."""
    interpreter, stamp = home / "bin" / "python", home / "made.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(writer.requirements):
        uv = [sys.executable, "-m", "uv", "--quiet"]
        run(*uv, "venv", "--clear", "--python", pythons.get(writer.python, writer.python), home)
        run(*uv, "pip", "install", "--python", interpreter, *writer.requirements)
        stamp.write_text("\n".join(writer.requirements))
    return interpreter


def run(*command: object) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], env=kept | {"PYTHONWARNINGS": "ignore"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout
