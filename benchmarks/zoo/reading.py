"""Every command on every file of a zoo, in this process."""

import contextlib
import fnmatch
import io
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from typer.testing import CliRunner

import ginseng
from benchmarks.zoo.scripts.cells import GENES, cells, ensembl
from ginseng.cli import app

PARAMETERS = {"--layer": "layer", "--gene-key": "gene_key"}
QUICK = ("--genes", "0", "--epochs", "6", "--hidden-dim", "8", "--batch-size", "64", "--lr", "0.01", "-q")


class Refused(Exception):
    """A command ended otherwise than it must."""


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Refused(f"{type(result.exception).__name__}: {result.exception}") from result.exception
    if result.exit_code:
        raise Refused(f"exit {result.exit_code}: {' '.join(result.output.split())}")
    return result.output


def adata_of(n: int, seed: int) -> ad.AnnData:
    counts, types, donors, names = cells(n, seed)
    obs = pd.DataFrame({"cell_type": pd.Categorical(types), "donor": donors}, index=names)
    return ad.AnnData(sparse.csr_matrix(counts.astype("f4")), obs=obs, var=pd.DataFrame(index=list(GENES)))


class Truth:
    """What every file of the zoo must give."""

    def __init__(self, folder: Path) -> None:
        counts, _, _, names = cells()
        self.counts = pd.DataFrame(counts, index=names, columns=list(GENES))
        self.model = folder / "model.h5"
        adata_of(600, 1).write_h5ad(folder / "training.h5ad")
        adata_of(60, 0).write_h5ad(folder / "plain.h5ad")
        run("fit", folder / "training.h5ad", "--label", "cell_type", "-o", self.model, *QUICK)
        run("annotate", self.model, folder / "plain.h5ad", "-o", folder / "plain.csv", "-q")
        self.labels = labels_in(folder / "plain.csv")

    def require_labels(self, found: pd.Series) -> None:
        """Of cells that were annotated by all genes the same labels; raises `Refused`."""
        if len(found) not in (30, 60):
            raise Refused(f"{len(found)} cells annotated")
        wrong = sum(self.labels.get(name, label) != label for name, label in found.items())
        if wrong and len(found) == 60:
            raise Refused(f"{wrong} other labels")

    def require_counts(self, dataset: Path) -> None:
        """The counts that were put in; raises `Refused`."""
        made = ad.read_zarr(dataset)
        x = pd.DataFrame(sparse.csr_matrix(made.X).toarray(), index=made.obs_names, columns=made.var_names)
        x = x.rename(columns=dict(zip(ensembl(), GENES, strict=True)))
        genes = [gene for gene in GENES if gene in x.columns]
        known = x.index[x.index.isin(self.counts.index)]
        if len(genes) < 20 or not len(x):
            raise Refused(f"{len(genes)} genes of {x.shape[0]} cells in the dataset")
        if not np.allclose(x.loc[known, genes], self.counts.loc[known, genes], atol=1e-2):
            raise Refused("other counts in the dataset")


def labels_in(table: Path) -> pd.Series:
    found = pd.read_csv(table, index_col=0, comment="#")["ginseng_cell_type"]
    return found.set_axis(found.index.astype(str))


def require_kept(path: Path, output: Path) -> None:
    """What the input annotates, where anndata itself reads it, is in the output, too; raises `Refused`."""
    try:
        before = as_anndata(path)
    except Exception:
        return
    after = as_anndata(output)
    for name in ("obs", "var", "obsm", "varm", "obsp", "uns", "layers"):
        members = getattr(before, name)
        lost = {key for key in set(members) - set(getattr(after, name)) if writable(members[key], output.suffix)}
        if lost:
            raise Refused(f"lost of {name}: {sorted(lost)}")
    if (before.raw is None) != (after.raw is None):
        raise Refused("lost raw")


def writable(value: object, suffix: str) -> bool:
    """Whether anndata writes it there, as it does not all that it reads."""
    try:
        if suffix == ".zarr":
            with tempfile.TemporaryDirectory() as store:
                ad.AnnData(uns={"value": value}).write_zarr(store)
        else:
            ad.io.write_elem(h5py.File(io.BytesIO(), "w"), "value", value)
    except Exception:
        return False
    return True


def as_anndata(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)


def checks(path: Path, options: list[str], truth: Truth, out: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What must work on a file, by name, one after the other."""
    named = dict(zip(options[::2], options[1::2], strict=False)) if "--fix" not in options else {}
    without_genes = [part for name, value in named.items() if name != "--gene-key" for part in (name, value)]
    to_train = ["--fix"] if "--fix" in options else without_genes
    arguments = {PARAMETERS[name]: value for name, value in named.items()} or ({"fix": True} if options else {})
    annotate = ["annotate", truth.model, path, *options, "-q", "-o"]
    yield "read_adata", lambda: ginseng.read_adata(path).file.close()
    yield "inspect", lambda: run("inspect", path)
    yield "doctor", lambda: run("doctor", path, *to_train)
    yield "doctor MODEL", lambda: run("doctor", truth.model, path, *options)
    create = ["create", path, "--label", "cell_type", "--genes", "0", "-q", "-o", out / "dataset.zarr"]
    yield "create", lambda: run(*create, *to_train)
    yield "create's counts", lambda: truth.require_counts(out / "dataset.zarr")
    yield "annotate .csv", lambda: run(*annotate, out / "o.csv")
    yield "labels", lambda: truth.require_labels(labels_in(out / "o.csv"))
    for kind in ("h5ad", "zarr"):
        output = out / f"o.{kind}"
        yield f"annotate .{kind}", lambda output=output: run(*annotate, output)
        yield f"read_adata of .{kind}", lambda output=output: ginseng.read_adata(output).file.close()
        if path.suffix != ".h5mu":
            yield f"kept in .{kind}", lambda output=output: require_kept(path, output)
        yield f"report of .{kind}", lambda output=output, kind=kind: run("report", output, "-o", out / f"{kind}.html")
    classify = {"return_table": True, "silent": True, **arguments}
    yield "classify", lambda: truth.require_labels(ginseng.classify(truth.model, path, **classify).ginseng_cell_type)


def refused_by(path: Path, options: list[str], truth: Truth) -> tuple[str | None, dict[str, str]]:
    """Why anndata itself does not read a file, if so, and each check that failed, with the reason."""
    told, failed = None, {}
    with tempfile.TemporaryDirectory() as name, quiet():
        try:
            if path.suffix != ".h5mu":
                as_anndata(path)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        for check, what in checks(path, options, truth, Path(name)):
            if _NEEDS.get(check) in failed or left_out(path.name, check):
                continue
            try:
                what()
            except Exception as error:
                shown = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
                failed[check] = shown.replace(str(path), path.name).replace(name, "")[:600]
    return told, failed


def left_out(name: str, check: str) -> bool:
    """Whether a check would tell nothing new: .zarr is written of what holds every kind of a thing, or much."""
    if "=" in name:
        return check not in _OF_ONE_KIND
    return ".zarr" in check and not name.startswith(_WRITTEN_AS_ZARR)


_WRITTEN_AS_ZARR = ("uns.", "obs.", "obs_aligned.", "var_aligned.", "layers.", "scanpy.", "rhdf5_sparse", "compound")
_NEEDS = {"create's counts": "create", "labels": "annotate .csv"}
_NEEDS |= {f"{what} .{kind}": f"annotate .{kind}" for kind in ("h5ad", "zarr") for what in ("read_adata of", "kept in")}
_NEEDS |= {f"report of .{kind}": f"annotate .{kind}" for kind in ("h5ad", "zarr")}
_OF_ONE_KIND = {"read_adata", "inspect", "doctor", "annotate .h5ad", "read_adata of .h5ad", "kept in .h5ad"}
_OF_ONE_KIND |= {"report of .h5ad"}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def read_zoo(zoo: Path, patterns: list[str], quick: bool) -> int:
    """Print a line for each file, and a count for each writer; gives how many files are refused that anndata reads."""
    counts: dict[str, Counter] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        truth = Truth(Path(folder))
        for listed in sorted(zoo.glob("*/files.jsonl")):
            writer = listed.parent.name
            for told in map(json.loads, listed.read_text().splitlines()):
                path = listed.parent / told["file"]
                if patterns and not any(fnmatch.fnmatch(f"{writer}/{path.name}", pattern) for pattern in patterns):
                    continue
                if quick and "=" in path.name:
                    continue
                start = time.perf_counter()
                copy = Path(folder) / path.name
                (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
                unread, failed = refused_by(copy, told["options"], truth)
                (shutil.rmtree if copy.is_dir() else os.remove)(copy)
                counts[writer].update(files=1, sound=not failed, unread=unread is not None)
                line = {"writer": writer, "file": path.name, "refused": failed, "anndata": unread or "reads it"}
                print(json.dumps(line | {"seconds": round(time.perf_counter() - start, 1)}), flush=True)
    for writer, found in counts.items():
        line = {"writer": writer, "files": found["files"], "sound": found["sound"], "anndata refuses": found["unread"]}
        print(json.dumps(line), flush=True)
    return sum(found["files"] - found["sound"] - found["unread"] for found in counts.values())
