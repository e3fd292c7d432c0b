"""Small valid files of every kind that ginseng opens, the same bytes each time they are made."""

import gzip
import random
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest import mock

import anndata as ad
import equinox as eqx
import h5py
import jax.random as jr
import numpy as np
import pandas as pd
from scipy import io, sparse

from ginseng import (
    Annotator,
    GinsengClassifier,
    GinsengClassifierState,
    GinsengDataset,
    Sampling,
    Trainer,
    save_annotator,
    save_model,
)
from ginseng.data.outputs import write_annotated
from ginseng.model.background import Background
from ginseng.model.calibration import Calibration, distances_in_parts, fitted_temperature, geometry_of
from ginseng.train.logger import GinsengLogger, LogFile

GOLDEN = Path(__file__).parents[1] / "golden"
GENES = [f"GENE{i}" for i in range(12)]
LABELS = ["B cell", "NK cell", "T cell"]
N_CELLS, HIDDEN_DIM = 24, 4
OTHERS = ("model-0.2.1", "dataset-0.2.1", "10x-new", "10x-folder", "mapping")  # whose files take the place of others


def make(folder: Path, kinds: Iterable[str]) -> None:
    """Write the corpus, or some kinds of it and `OTHERS`: a folder per kind, which holds the one that is opened."""
    now = mock.Mock(now=lambda zone: datetime(2026, 1, 1, tzinfo=UTC))
    for kind in sorted({*kinds, *OTHERS}):
        ids = random.Random(kind)
        name, write = WRITERS[kind]
        (folder / kind).mkdir(parents=True)
        with (
            mock.patch("uuid.uuid4", lambda ids=ids: uuid.UUID(int=ids.getrandbits(128))),
            mock.patch("ginseng.data.models.datetime", now),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            write(folder / kind / name)


def cells(form: str = "csr") -> ad.AnnData:
    """Labelled counts with all that AnnData has a place for and ginseng reads."""
    rng = np.random.default_rng(0)
    types = np.arange(N_CELLS) % 3
    counts = rng.poisson(rng.gamma(0.4, 2.0, (3, len(GENES)))[types]).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(LABELS)[types]),
            "donor": rng.choice(["d1", "d2"], N_CELLS),
            "n_counts": counts.sum(axis=1),
            "age": pd.array([None if i == 3 else i for i in range(N_CELLS)], dtype="Int64"),
            "is_doublet": pd.array([None if i == 5 else i % 2 == 0 for i in range(N_CELLS)], dtype="boolean"),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame({"symbol": [f"SYM{i}" for i in range(len(GENES))]}, index=GENES)
    x = counts if form == "dense" else sparse.csr_matrix(counts).asformat(form)
    adata = ad.AnnData(x, obs, var, layers={"counts": x.copy()}, uns={"study": "a"}, obsm={"X_pca": counts[:, :2]})
    adata.raw = adata.copy()
    return adata


def state() -> GinsengClassifierState:
    """A model with all that its file has a place for."""
    rng = np.random.default_rng(1)
    n, k = len(GENES), len(LABELS)
    networks = [GinsengClassifier(n, k, hidden_dim=HIDDEN_DIM, seed=seed).params for seed in (1, 2)]
    labels = np.repeat(np.arange(k), 20)
    logits = (rng.normal(size=(len(labels), k)) + 3 * np.eye(k)[labels]).astype(np.float32)
    geometry, groups = geometry_of(logits, labels), np.arange(len(labels)) % 3
    held_out = logits, labels, distances_in_parts(geometry, logits), groups, fitted_temperature(logits, labels, groups)
    return GinsengClassifierState(
        networks[0],
        GENES,
        LABELS,
        [2, 0, 1],
        n_genes=n,
        n_classes=k,
        hidden_dim=HIDDEN_DIM,
        normalize=True,
        target_sum=1e4,
        dropout_rate=0.2,
        members=networks[1:],
        background=Background(*rng.random((2, n)).astype(np.float32)),
        calibration=Calibration("groups", geometry, *held_out),
        second_names=[f"SYM{i}" for i in range(n)],
        metadata={"settings": {"lr": 0.001}, "history": asdict(_history(1)), "card": {"author": "a"}},
    )


def module(seed: int = 0) -> eqx.Module:
    """A network that is no AttentionClassifier."""
    keys = jr.split(jr.key(seed))
    layers = [eqx.nn.Linear(len(GENES), HIDDEN_DIM, key=keys[0]), eqx.nn.Linear(HIDDEN_DIM, len(LABELS), key=keys[1])]
    return eqx.nn.Sequential(layers)


def trainer(dataset: GinsengDataset) -> Trainer:
    """The trainer of the run that the corpus has a checkpoint of."""
    return Trainer(module(), dataset, sampling=Sampling(batch_size=8, seed=0))


def _dataset(form: str, path: Path) -> None:
    adata = cells(form)
    if form == "dense":
        adata.X = adata.X + 1
    GinsengDataset.create(path, adata, "cell_type", group_key="donor", chunk_size=8, silent=True).make_split(0.25)


def _anndata_zarr(form: str, version: int, path: Path) -> None:
    with ad.settings.override(zarr_write_format=version):
        cells(form).write_zarr(path)


def _h5ad(form: str, path: Path) -> None:
    cells(form).write_h5ad(path)


def _old_10x(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        group["genes"] = np.array([f"ENSG{i}" for i in range(len(GENES))], "S")
        group["gene_names"] = np.array(GENES, "S")
        _fill_10x(group)


def _new_10x(path: Path) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i}" for i in range(len(GENES))], "S")
        features["name"] = np.array(GENES, "S")
        features["feature_type"] = np.array(["Gene Expression"] * len(GENES), "S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), "S")
        _fill_10x(group)


def _fill_10x(group: h5py.Group) -> None:
    counts = cells().X
    group["barcodes"] = np.array([f"cell{i}" for i in range(N_CELLS)], "S")
    group["shape"] = np.array(counts.shape[::-1], np.int32)
    for name, values in (
        ("data", counts.data.astype(np.int32)),
        ("indices", counts.indices),
        ("indptr", counts.indptr),
    ):
        group.create_dataset(name, data=values, compression="gzip")


def _folder_10x(path: Path) -> None:
    path.mkdir()
    io.mmwrite(path / "matrix.mtx", cells().X.T.astype(np.int32))
    texts = {
        "matrix.mtx.gz": (path / "matrix.mtx").read_text(),
        "barcodes.tsv.gz": "".join(f"cell{i}\n" for i in range(N_CELLS)),
        "features.tsv": "".join(f"ENSG{i}\t{gene}\tGene Expression\n" for i, gene in enumerate(GENES)),
    }
    (path / "matrix.mtx").unlink()
    for name, text in texts.items():
        (path / name).write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode())


def _checkpoint(path: Path) -> None:
    data = path.parent / "cells.zarr"
    _dataset("csr", data)
    trainer(GinsengDataset(data)).fit(1, silent=True, checkpoint=path)


def _log(path: Path) -> None:
    for n_epochs in (1, 2, 3):
        LogFile(path).append(_history(n_epochs), 1.0)


def _history(n_epochs: int) -> GinsengLogger:
    logger = GinsengLogger()
    for epoch in range(n_epochs):
        logger.update(epoch, 1 / (epoch + 1), 0.5, 0.75, 0.5)
    return logger


def _shard(path: Path) -> None:
    write_annotated(annotated(path.suffix, slice(0, 12)), path, mark=mark(1))


def annotated(suffix: str, rows: slice) -> ad.AnnData | pd.DataFrame:
    """Cells as an annotation writes them."""
    adata = cells()[rows].copy()
    adata.obs["ginseng_cell_type"] = adata.obs.pop("cell_type")
    return adata if suffix in (".h5ad", ".zarr") else adata.obs[["ginseng_cell_type", "n_counts"]]


def mark(number: int) -> dict:
    """What a shard tells of itself."""
    return {"number": number, "of": 2, "model": "a", "input": "b", "form": [], "options": {"key_added": "ginseng"}}


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model": ("m.h5", lambda path: save_model(state(), path)),
    "model-0.2.1": ("m.h5", partial(shutil.copyfile, GOLDEN / "model.h5")),
    "dataset-csr": ("d.zarr", partial(_dataset, "csr")),
    "dataset-dense": ("d.zarr", partial(_dataset, "dense")),
    "dataset-0.2.1": ("d.zarr", partial(shutil.copytree, GOLDEN / "dataset.zarr")),
    "h5ad-csr": ("c.h5ad", partial(_h5ad, "csr")),
    "h5ad-csc": ("c.h5ad", partial(_h5ad, "csc")),
    "h5ad-dense": ("c.h5ad", partial(_h5ad, "dense")),
    "zarr2-csr": ("c.zarr", partial(_anndata_zarr, "csr", 2)),
    "zarr2-dense": ("c.zarr", partial(_anndata_zarr, "dense", 2)),
    "zarr3-csc": ("c.zarr", partial(_anndata_zarr, "csc", 3)),
    "zarr3-dense": ("c.zarr", partial(_anndata_zarr, "dense", 3)),
    "10x-old": ("x.h5", _old_10x),
    "10x-new": ("x.h5", _new_10x),
    "10x-folder": ("x", _folder_10x),
    "annotator": ("a.eqx", lambda path: save_annotator(Annotator(module(1), GENES, LABELS), path)),
    "checkpoint": ("run", _checkpoint),
    "log": ("log.csv", _log),
    "shard-csv": ("s.csv", _shard),
    "shard-parquet": ("s.parquet", _shard),
    "shard-h5ad": ("s.h5ad", _shard),
    "mapping": (
        "names.csv",
        lambda path: path.write_text("B cell,lymphocyte\nNK cell,lymphocyte\nT cell,lymphocyte\n"),
    ),
    "gene-map": (
        "genes.tsv",
        lambda path: path.write_text("".join(f"SYM{i}\tGENE{i}\n" for i in range(12)) + "GENE0\tGENE1\n"),
    ),
}
