"""Whatever is opened is read by the public interface, as far as it goes; what is read is compared by its digests."""

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import pandas as pd

from ginseng import Annotator, GinsengDataset, classify, load_annotator, load_model, read_adata
from ginseng.data.outputs import read_told, write_annotated
from ginseng.data.parts import merge_shards
from ginseng.describe import describe_counts, describe_dataset, describe_model
from ginseng.train.logger import GinsengLogger, LogFile
from ginseng.utils.digest import digest
from ginseng.utils.pairs import read_mapping
from tests.fuzz import corpus


class Inconsistent(Exception):
    """What was read contradicts itself."""


class Places(NamedTuple):
    """Folders: for what is made of what is read, and the whole corpus."""

    scratch: Path
    corpus: Path


class Reader(NamedTuple):
    """How a kind of the corpus is read.

    Attributes
    ----------
    read : callable
        Gives what was read, by names.
    has_digests : bool
        Whether the format tells all that may have changed, so that a differing result is wrong. AnnData and 10x files
        and tables have no checksums: flipped bits of a count read as another count. Of these only what contradicts
        itself is wrong.
    """

    read: Callable[[Path, Places], Iterator[tuple[str, Any]]]
    has_digests: bool


def fingerprint(found: Iterator[tuple[str, Any]]) -> dict[str, str]:
    """Short names of what was read."""
    return {name: digest(_bytes_of(value)) for name, value in found}


def _bytes_of(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        text = f"{value.dtype} {value.shape}".encode()
        return np.frombuffer(text + np.ascontiguousarray(value).tobytes(), np.uint8)
    return np.frombuffer(
        repr(value.tolist() if isinstance(value, np.ndarray) else value).encode("utf-8", "replace"), np.uint8
    )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Inconsistent(what)


@functools.cache
def _new_cells() -> Any:
    return corpus.cells()


@functools.cache
def _model_of_the_corpus() -> Annotator:
    return Annotator.of(corpus.state())


def _table(table: pd.DataFrame, n_cells: int) -> Iterator[tuple[str, Any]]:
    _require(len(table) == n_cells, f"a table of {len(table)} rows for {n_cells} cells")
    for name in table:
        values = table[name].to_numpy()
        if values.dtype.kind == "f" and name != "ginseng_novelty":  # which cells without counts do not have
            _require(bool(np.isfinite(values).all()), f"{name} is not finite")
        yield str(name), values


def _prefixed(prefix: str, found: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    return ((f"{prefix} {name}", value) for name, value in found)


def _model(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    state = load_model(path)
    trees = state.params, state.members, state.background
    for number, leaf in enumerate(jax.tree.leaves(trees)):
        yield f"leaf {number}", np.asarray(leaf)
    for name in ("genes", "label_keys", "label_values", "second_names"):
        yield name, getattr(state, name)
    for name in ("n_genes", "n_classes", "hidden_dim", "normalize", "target_sum", "dropout_rate", "metadata"):
        yield name, getattr(state, name)
    yield "description", describe_model(state)
    table = classify(state, _new_cells(), return_table=True, min_overlap=0)
    yield from _table(table, corpus.N_CELLS)


def _annotator(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    annotator = load_annotator(path, corpus.module())
    yield "names", (annotator.genes, annotator.labels)
    for number, leaf in enumerate(jax.tree.leaves(eqx.filter(annotator.module, eqx.is_array))):
        yield f"leaf {number}", np.asarray(leaf)
    yield from _table(classify(annotator, _new_cells(), return_table=True), corpus.N_CELLS)


def _dataset(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    dataset = GinsengDataset(path)
    yield from _of_dataset(dataset)
    for part in ("train", "test"):
        yield from _batches(dataset, part, None)
    yield from _batches(GinsengDataset(path), "all", "1 KB")
    if dataset.root.attrs.get("encoding-type") == "anndata":  # not of ginseng 0.2.1
        for name in ("cell_type", "donor"):
            yield f"column {name}", dataset.column(name)


def _of_dataset(dataset: GinsengDataset) -> Iterator[tuple[str, Any]]:
    n_cells, n_genes = dataset.n_cells, dataset.n_genes
    _require(len(dataset.gene_names) == n_genes and len(dataset.labels) == n_cells, "sizes")
    for name in ("label_names", "gene_names", "group_names", "second_names"):
        yield name, getattr(dataset, name)
    for name in ("labels", "groups", "train_idx", "test_idx"):
        yield name, getattr(dataset, name)
    yield "description", describe_dataset(dataset)


def _batches(dataset: GinsengDataset, part: str, memory: str | None) -> Iterator[tuple[str, Any]]:
    for number, (x, y) in enumerate(dataset.stream(16, part, shuffle=False, memory=memory)):
        _require(x.shape == (len(y), dataset.n_genes), f"a batch of {x.shape}")
        _require(bool((y >= 0).all() and (y < len(dataset.label_names)).all()), "labels beyond their names")
        _require(bool(np.isfinite(x).all()), "counts that are not finite")
        yield f"counts of {part} {number}", x
        yield f"labels of {part} {number}", y


def _counts(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    adata = read_adata(path, backed=False)
    _require(len(adata.obs_names) == adata.n_obs and len(adata.var_names) == adata.n_vars, "names")
    yield "shape", adata.shape
    yield "genes", adata.var_names.tolist()
    yield "description", describe_counts(adata)
    given = _model_of_the_corpus()
    yield from _table(classify(given, path, return_table=True), adata.n_obs)
    annotated = classify(given, path)
    yield "annotated", annotated.obs["ginseng_cell_type"].tolist()
    if "counts" in adata.layers:
        yield from _prefixed("layer", _table(classify(given, path, layer="counts", return_table=True), adata.n_obs))
    if adata.raw is not None:
        yield from _prefixed("raw", _table(classify(given, path, layer="raw", return_table=True), adata.n_obs))
    if not path.name.startswith("x"):  # 10x has no labels
        new = GinsengDataset.create(at.scratch / "new.zarr", path, "cell_type", group_key="donor", silent=True)
        yield from _prefixed("new", _of_dataset(new))
        yield from _prefixed("new", _batches(new, "all", None))


def _checkpoint(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    trainer = corpus.trainer(_training_data(at.corpus))
    trainer.fit(1, silent=True, checkpoint=path)
    yield "log", trainer.logger.to_frame().to_csv()
    for number, leaf in enumerate(jax.tree.leaves(eqx.filter((trainer.model, trainer.opt_state), eqx.is_array))):
        yield f"leaf {number}", np.asarray(leaf)
    scores = trainer.holdout_scores
    yield "scores", None if scores is None else scores.confusion.to_csv()


@functools.cache
def _training_data(folder: Path) -> GinsengDataset:
    return GinsengDataset(folder / "checkpoint" / "cells.zarr")


def _log(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    logger = GinsengLogger()
    logger.update(3, 0.1, 0.2, 0.3)
    LogFile(path).append(logger, 1.0)
    yield "log", path.read_bytes()


def _shard(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    other = at.scratch / f"other{path.suffix}"
    rest = corpus.annotated(path.suffix, slice(12, corpus.N_CELLS))
    write_annotated(rest, other, mark=corpus.mark(2))
    output = at.scratch / f"merged{path.suffix}"
    merge_shards([other, path], output)
    told = read_told(output)
    _require(len(told) >= corpus.N_CELLS - 12, "cells of the other shard have gone")
    yield "merged", told.to_csv()


def _mapping(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    yield "mapping", read_mapping(path, "mapping", ("label", "new name"))
    table = classify(_model_of_the_corpus(), _new_cells(), return_table=True, hierarchy=path)
    yield from _table(table, corpus.N_CELLS)


def _gene_map(path: Path, at: Places) -> Iterator[tuple[str, Any]]:
    table = classify(_model_of_the_corpus(), _new_cells(), return_table=True, gene_map=path)
    yield from _table(table, corpus.N_CELLS)


READERS = {
    "model": Reader(_model, True),
    "model-0.2.1": Reader(_model, False),
    "dataset-csr": Reader(_dataset, True),
    "dataset-dense": Reader(_dataset, True),
    "dataset-0.2.1": Reader(_dataset, False),
    **{kind: Reader(_counts, False) for kind in corpus.WRITERS if kind.startswith(("h5ad", "zarr", "10x"))},
    "annotator": Reader(_annotator, True),
    "checkpoint": Reader(_checkpoint, True),
    "log": Reader(_log, False),
    **{kind: Reader(_shard, False) for kind in corpus.WRITERS if kind.startswith("shard")},
    "mapping": Reader(_mapping, False),
    "gene-map": Reader(_gene_map, False),
}


def read(kind: str, path: Path, at: Places) -> tuple[dict[str, str], list[str]]:
    """Read all there is; give its digests, and the warnings that were drawn."""
    with warnings.catch_warnings(record=True) as drawn:
        warnings.simplefilter("always")
        found = fingerprint(READERS[kind].read(path, at))
    return found, [str(entry.message) for entry in drawn if entry.category is UserWarning]
