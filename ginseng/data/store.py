"""The zarr layout of a dataset: write, open, read. Nothing else knows it.

A dataset is an AnnData zarr store (v3) with counts in ``X`` (CSR) and ``obs`` and ``var`` beside it; the attributes of
its root name labels, groups and genes. The arrays ``labels``, ``groups``, ``split/train`` and ``split/test`` of the
documented layout are not part of AnnData's, which refuses what it does not know: they are left out of the consolidated
metadata of the root, by which `anndata.read_zarr` lists a store. Dense stores of ginseng 0.2.1 open too.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata.io
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from zarr.errors import ContainsArrayError, GroupNotFoundError, ZarrUserWarning

_ATTRIBUTES = ("label_names", "gene_names", "n_cells", "n_genes")
_ROWS_READ_AT_ONCE = 4096
_SMALLEST_CHUNK = 2**16  # values; the first cells may have no counts at all, and each chunk is a file


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
    _write_counts(root.create_group("X"), blocks, len(gene_names), chunk_size)
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


def read_counts(root: zarr.Group) -> sparse.csr_matrix:
    """Read all counts into memory as CSR."""
    x: Any = root["X"]
    if isinstance(x, zarr.Array):
        starts = range(0, x.shape[0], _ROWS_READ_AT_ONCE)
        blocks = [sparse.csr_matrix(np.asarray(x[start : start + _ROWS_READ_AT_ONCE])) for start in starts]
        return sparse.csr_matrix(sparse.vstack(blocks))
    arrays = tuple(np.asarray(x[name][:]) for name in ("data", "indices", "indptr"))
    return sparse.csr_matrix(arrays, shape=x.attrs["shape"])


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


def _write_counts(group: zarr.Group, blocks: Iterable[sparse.csr_matrix], n_genes: int, chunk_size: int) -> None:
    """Write CSR in AnnData's encoding, block by block."""
    row_ends = [np.zeros(1, dtype=np.int64)]
    n_stored = 0
    data = indices = None
    for block in blocks:
        if data is None or indices is None:
            per_cell = block.nnz // max(1, len(block.indptr) - 1)
            per_chunk = max(_SMALLEST_CHUNK, chunk_size * per_cell)
            data = group.create_array("data", shape=(0,), dtype=np.float32, chunks=(per_chunk,))
            indices = group.create_array("indices", shape=(0,), dtype=np.int32, chunks=(per_chunk,))
        data.append(block.data.astype(np.float32))
        indices.append(block.indices.astype(np.int32))
        row_ends.append(block.indptr[1:].astype(np.int64) + n_stored)
        n_stored += block.nnz
    indptr = np.concatenate(row_ends)
    group.create_array("indptr", data=indptr)
    group.attrs.update(
        {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [len(indptr) - 1, n_genes]}
    )
