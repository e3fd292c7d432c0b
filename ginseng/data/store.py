"""The zarr layout of a dataset: write, open, read. Nothing else knows it.

A dataset is an AnnData zarr store (v3) with counts in ``X`` (CSR) and ``obs`` and ``var`` beside it; the attributes of
its root name labels, groups and genes. The arrays ``labels``, ``groups``, ``split/train`` and ``split/test`` of the
documented layout are not part of AnnData's, which refuses what it does not know: they are left out of the consolidated
metadata of the root, by which `anndata.read_zarr` lists a store. Dense stores of ginseng 0.2.1 open too.
"""

import itertools
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata.io
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from zarr.codecs import BloscCodec
from zarr.errors import ContainsArrayError, GroupNotFoundError, ZarrUserWarning

_ATTRIBUTES = ("label_names", "gene_names", "n_cells", "n_genes")
_ROWS_READ_AT_ONCE = 4096
_SMALLEST_CHUNK = 2**16  # values; the first cells may have no counts at all
_CHUNKS_PER_SHARD = 16  # a shard is a file
_COMPRESSOR = BloscCodec(cname="lz4", shuffle="bitshuffle")


def write_store(
    path: Path,
    blocks: Iterable[sparse.csr_matrix],
    obs: pd.DataFrame,
    gene_names: list[str],
    attributes: dict[str, Any],
    arrays: dict[str, np.ndarray],
    chunk_size: int,
) -> None:
    """Write a dataset at `path`, where nothing must exist.

    Parameters
    ----------
    path : Path
        Directory to create.
    blocks : iterable of scipy.sparse.csr_matrix
        Counts of consecutive cells.
    obs : pandas.DataFrame
        Annotation of the cells.
    gene_names : list of str
        Names of the genes.
    attributes : dict
        Attributes of the root.
    arrays : dict
        ``labels`` and, if there are any, ``groups``.
    chunk_size : int
        Cells per chunk of the counts.
    """
    root = zarr.create_group(path, zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0", **attributes})
    _write_counts(root, blocks, len(obs), len(gene_names), chunk_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zarr v3 autosharding")  # anndata's announcement of a new default
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        anndata.io.write_elem(root, "obs", obs)
        anndata.io.write_elem(root, "var", pd.DataFrame(index=pd.Index(gene_names, dtype=object)))
        zarr.consolidate_metadata(root.store)
    for name, values in arrays.items():
        root.create_array(name, data=values.astype(np.int32))


def open_store(path: Path) -> zarr.Group:
    """Open the root of a dataset.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If what is there is not a dataset.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no dataset {path}; GinsengDataset.create makes one.")
    if not is_store(path):
        raise ValueError(f"{path} is not a ginseng dataset; GinsengDataset.create makes one from counts.")
    return zarr.open_group(path, mode="r+", use_consolidated=False)


def is_store(path: Path) -> bool:
    """Whether there is a dataset at `path`."""
    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
    except (OSError, ValueError, ContainsArrayError, GroupNotFoundError):
        return False
    return all(name in root.attrs for name in _ATTRIBUTES)


def read_counts(root: zarr.Group) -> np.ndarray | sparse.csr_matrix:
    """Read all counts into memory, in the smallest type that holds them: CSR, or dense where they are stored so."""
    x: Any = root["X"]
    if isinstance(x, zarr.Array):
        return np.asarray(x[:]) if root.attrs.get("encoding-type") == "anndata" else _compact(x)
    arrays = (np.asarray(x["data"][:]), np.asarray(x["indices"][:]).astype(np.int32), np.asarray(x["indptr"][:]))
    return sparse.csr_matrix(arrays, shape=x.attrs["shape"])


def _compact(x: Any) -> sparse.csr_matrix:
    """Read the dense array of a store of ginseng 0.2.1, which is mostly zeros in float32, as CSR."""
    dtype, blocks = np.dtype(np.uint8), []
    for start in range(0, x.shape[0], _ROWS_READ_AT_ONCE):
        block = sparse.csr_matrix(np.asarray(x[start : start + _ROWS_READ_AT_ONCE]))
        dtype = smallest_type(block.data, dtype)
        blocks.append(block)
    return sparse.csr_matrix(sparse.vstack([block.astype(dtype) for block in blocks]))


def read_array(root: zarr.Group, name: str) -> np.ndarray | None:
    """Read one of the small arrays, or None if the dataset does not have it."""
    if name not in root:
        return None
    array: Any = root[name]
    return np.asarray(array[:])


def write_split(root: zarr.Group, train: np.ndarray, test: np.ndarray) -> None:
    """Store the cells of the two parts of a split, in place of an earlier one.

    The earlier one is removed first, and half a split counts as none (see `read_split`): an interruption cannot leave
    parts of two splits.
    """
    if "split" in root:
        del root["split"]
    split = root.create_group("split")
    for name, cells in (("train", train), ("test", test)):
        split.create_array(name, data=cells.astype(np.int32))


def read_split(root: zarr.Group) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Read the cells of the two parts of the split, or None twice if there is no whole one."""
    train, test = read_array(root, "split/train"), read_array(root, "split/test")
    return (None, None) if train is None or test is None else (train, test)


def smallest_type(values: np.ndarray, at_least: np.dtype) -> np.dtype:
    """Smallest integer type that holds `values` and everything that `at_least` holds; float32 if there is none.

    Examples
    --------
    >>> smallest_type(np.array([3.0, 300.0]), np.dtype("uint8"))
    dtype('uint16')
    >>> smallest_type(np.array([-1, 200]), np.dtype("uint8"))
    dtype('int16')
    >>> smallest_type(np.array([0.5]), np.dtype("uint8"))
    dtype('float32')
    """
    if at_least.kind == "f" or not len(values):
        return at_least
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        return np.dtype(np.float32)
    low, high = np.min_scalar_type(int(values.min())), np.min_scalar_type(int(values.max()))
    needed = np.result_type(low, high, at_least)
    return needed if needed.kind in "ui" and needed.itemsize <= 4 else np.dtype(np.float32)


def _write_counts(
    root: zarr.Group, blocks: Iterable[sparse.csr_matrix], n_cells: int, n_genes: int, chunk_size: int
) -> None:
    """Write X in AnnData's encoding, block by block: CSR, or dense if more than half of the first block is not zero."""
    blocks = iter(blocks)
    first = next(blocks)
    per_cell = first.nnz / max(1, len(first.indptr) - 1)
    blocks = itertools.chain([first], blocks)
    if per_cell > n_genes / 2:
        x = _Appender(root, "X", (chunk_size, n_genes))
        for block in blocks:
            x.append(block.toarray())
        x.close().attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return
    group = root.create_group("X")
    chunk = (max(_SMALLEST_CHUNK, int(chunk_size * per_cell)),)
    data, indices = _Appender(group, "data", chunk), _Appender(group, "indices", chunk)
    row_ends = [np.zeros(1, dtype=np.int64)]
    n_stored = 0
    for block in blocks:
        data.append(block.data)
        indices.append(block.indices)
        row_ends.append(block.indptr[1:].astype(np.int64) + n_stored)
        n_stored += block.nnz
    data.close()
    indices.close()
    group.create_array("indptr", data=np.concatenate(row_ends))
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})


class _Appender:
    """A zarr array that grows by whole shards, in the smallest type that holds what came so far."""

    def __init__(self, group: zarr.Group, name: str, chunk: tuple[int, ...]):
        self._group, self._name, self._chunk = group, name, chunk
        self._shard = (chunk[0] * _CHUNKS_PER_SHARD, *chunk[1:])
        self._array = self._create(np.dtype(np.uint8))
        self._waiting: list[np.ndarray] = []

    def append(self, values: np.ndarray) -> None:
        """Add `values` at the end."""
        dtype = smallest_type(values.reshape(-1), self._array.dtype)
        if dtype != self._array.dtype:
            self._retype(dtype)
        self._waiting.append(values)
        if sum(map(len, self._waiting)) >= self._shard[0]:
            joined = np.concatenate(self._waiting)
            n_whole = len(joined) // self._shard[0] * self._shard[0]
            self._array.append(joined[:n_whole].astype(dtype))
            self._waiting = [joined[n_whole:]]

    def close(self) -> zarr.Array:
        """Write what is left, and return the array."""
        if self._waiting:
            self._array.append(np.concatenate(self._waiting).astype(self._array.dtype))
        return self._array

    def _create(self, dtype: np.dtype) -> zarr.Array:
        return self._group.create_array(
            self._name,
            shape=(0, *self._chunk[1:]),
            dtype=dtype,
            chunks=self._chunk,
            shards=self._shard,
            compressors=_COMPRESSOR,
        )

    def _retype(self, dtype: np.dtype) -> None:
        """Write what there is once more in a wider type: at most a few times, mostly before there is anything."""
        store: Any = self._group.store
        path = Path(store.root) / self._group.path / self._name
        narrow = path.rename(path.with_name(f"{self._name}.narrow"))
        old: Any = zarr.open_array(narrow, mode="r")
        self._array = self._create(dtype)
        for start in range(0, old.shape[0], self._shard[0]):
            self._array.append(old[start : start + self._shard[0]].astype(dtype))
        shutil.rmtree(narrow)
