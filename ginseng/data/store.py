"""The zarr layout of a dataset: write, open, read. Nothing else knows it.

A dataset is an AnnData zarr store (v3) with counts in ``X`` (CSR) and ``obs`` and ``var`` beside it; the attributes of
its root name labels, groups and genes. The arrays ``labels``, ``groups``, ``split/train`` and ``split/test`` of the
documented layout are not part of AnnData's, which refuses what it does not know: they are left out of the consolidated
metadata of the root, by which `anndata.read_zarr` lists a store. Dense stores of ginseng 0.2.1 open too.
"""

import itertools
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anndata.io
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from zarr.errors import ContainsArrayError, GroupNotFoundError, ZarrUserWarning
from zarr.storage import LocalStore

from ginseng.data.shards import GrowingArray
from ginseng.utils.files import is_url

_ATTRIBUTES = ("label_names", "gene_names", "n_cells", "n_genes")
_CHUNK_VALUES = 2**16  # read at once; with smaller ones zarr's own work outweighs decompressing, see benchmarks
_ATTEMPTS = 200  # at a split that other processes are replacing
_MOMENT = 0.02  # seconds between two of them


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
        Cells per file of the counts.
    """
    root = zarr.create_group(path, zarr_format=3)
    header = {"encoding-type": "anndata", "encoding-version": "0.1.0", "id": uuid.uuid4().hex}
    root.attrs.update({**header, **attributes})
    _write_counts(root, blocks, len(obs), len(gene_names), chunk_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zarr v3 autosharding")  # anndata's announcement of a new default
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        anndata.io.write_elem(root, "obs", obs)
        anndata.io.write_elem(root, "var", pd.DataFrame(index=pd.Index(gene_names, dtype=object)))
        zarr.consolidate_metadata(root.store)
    for name, values in arrays.items():
        root.create_array(name, data=values.astype(np.int32))


def open_store(path: str | Path) -> zarr.Group:
    """Open the root of a dataset: a directory, or a URL that zarr opens by fsspec.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If what is there is not a dataset.
    ImportError
        If `path` is a URL for which a package is lacking.
    """
    if not is_url(path) and not Path(path).exists():
        raise FileNotFoundError(f"There is no dataset {path}; GinsengDataset.create makes one.{_left_over(Path(path))}")
    read_only = str(path).startswith(("http://", "https://"))
    try:
        place = path if is_url(path) else Path(path).absolute()
        root = zarr.open_group(place, mode="r" if read_only else "r+", use_consolidated=False)
    except ImportError as error:
        raise ImportError(f"To read {path}: pip install 'ginseng-eqx[remote]' ({error}).") from error
    except (FileNotFoundError, NotADirectoryError, ValueError, ContainsArrayError, GroupNotFoundError):
        root = None
    if root is None or not all(name in root.attrs for name in _ATTRIBUTES):
        raise ValueError(f"{path} is not a ginseng dataset; GinsengDataset.create makes one from counts.")
    return root


def is_store(path: str | Path) -> bool:
    """Whether there is a dataset at `path`."""
    try:
        open_store(path)
    except (OSError, ValueError):
        return False
    return True


def _left_over(path: Path) -> str:
    """Tell of the old dataset where its replacement was killed between two renames."""
    old = sorted(path.absolute().parent.glob(f".{path.stem}.*.old"))
    return f" The replacement of an older one was interrupted: rename {old[-1]} to have that back." if old else ""


def require_unchanged(root: zarr.Group) -> None:
    """Raise an OSError if the dataset has been replaced since it was opened.

    What is read would be of two datasets, and a split would not be of the cells that are there.
    """
    try:
        now = zarr.open_group(root.store, path=root.path, mode="r", use_consolidated=False)
        unchanged = dict(now.attrs) == dict(root.attrs)
    except (FileNotFoundError, GroupNotFoundError):
        unchanged = False
    if not unchanged:
        raise OSError(f"{root.store} has been replaced since it was opened; open it anew.")


def read_array(root: zarr.Group, name: str) -> np.ndarray | None:
    """Read one of the small arrays, or None if the dataset does not have it."""
    if name not in root:
        return None
    array: Any = root[name]
    return np.asarray(array[:])


def is_writable(root: zarr.Group) -> bool:
    """Whether a split can be stored with the dataset."""
    store: Any = root.store
    return os.access(store.root, os.W_OK) if isinstance(store, LocalStore) else not root.read_only


def write_split(root: zarr.Group, train: np.ndarray, test: np.ndarray) -> None:
    """Store the cells of the two parts of a split, in place of an earlier one.

    On this machine the split is written beside the earlier one and renamed: other processes find either the one or the
    other whole (see `read_split`), and of several that write at once one wins.
    """
    require_unchanged(root)
    store: Any = root.store
    name = f".split.{uuid.uuid4().hex}" if isinstance(store, LocalStore) else "split"
    fresh = Path(store.root) / root.path / name if isinstance(store, LocalStore) else None
    try:
        group = root.create_group(name, overwrite=True, attributes={"id": uuid.uuid4().hex})
        for part, cells in (("train", train), ("test", test)):
            group.create_array(part, data=cells.astype(np.int32))
        if fresh is not None:
            _replace_folder(fresh, "split")
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def _replace_folder(fresh: Path, name: str) -> None:
    """Rename a folder over another beside it, whatever other processes do to that meanwhile."""
    target = fresh.with_name(name)
    for attempt in range(_ATTEMPTS):
        old = fresh.with_name(f"{fresh.name}.old{attempt}")
        with suppress(FileNotFoundError):
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:  # another process was faster: its folder is there
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return
        finally:
            shutil.rmtree(old, ignore_errors=True)


def read_split(root: zarr.Group) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Read the cells of the two parts of the split, or None twice if there is no whole one.

    If the split is being replaced by another process meanwhile, it is read again.
    """
    n_undisturbed = 0
    for _ in range(_ATTEMPTS):
        before, problem, train, test = _split_id(root), None, None, None
        try:
            train, test = read_array(root, "split/train"), read_array(root, "split/test")
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            problem = error  # perhaps an array of one split was read with the chunk of another
        if _split_id(root) == before:
            if train is not None and test is not None:
                return train, test
            n_undisturbed += 1
            if n_undisturbed == 2:  # not just between two renames
                if problem is not None:
                    raise ValueError(
                        f"The split of {root.store} is damaged: delete its folder, split, and make another ({problem})."
                    ) from problem
                return None, None
        time.sleep(_MOMENT)
    raise RuntimeError(f"The split of {root.store} is being replaced by other processes again and again.")


def _split_id(root: zarr.Group) -> Any:
    try:
        return root["split"].attrs.get("id")
    except (KeyError, OSError):
        return None


def _write_counts(
    root: zarr.Group, blocks: Iterable[sparse.csr_matrix], n_cells: int, n_genes: int, chunk_size: int
) -> None:
    """Write X in AnnData's encoding, block by block: CSR, or dense if more than half of the first cells is not zero."""
    blocks, seen = iter(blocks), []
    for block in blocks:
        seen.append(block)
        if block.nnz:
            break
    per_cell = seen[-1].nnz / max(1, len(seen[-1].indptr) - 1)
    blocks = itertools.chain(seen, blocks)
    if per_cell > n_genes / 2:
        chunk = min(chunk_size, -(-_CHUNK_VALUES // n_genes))
        with GrowingArray(root, "X", (chunk, n_genes), (-(-chunk_size // chunk) * chunk, n_genes)) as x:
            for block in blocks:
                x.append(block.toarray())
        x.array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return
    group = root.create_group("X")
    chunk = (_CHUNK_VALUES,)
    shard = (max(1, -(-int(chunk_size * per_cell) // _CHUNK_VALUES)) * _CHUNK_VALUES,)
    row_ends = [np.zeros(1, dtype=np.int64)]
    n_stored = 0
    with GrowingArray(group, "data", chunk, shard) as data, GrowingArray(group, "indices", chunk, shard) as indices:
        for block in blocks:
            data.append(block.data)
            indices.append(block.indices)
            row_ends.append(block.indptr[1:].astype(np.int64) + n_stored)
            n_stored += block.nnz
    group.create_array("indptr", data=np.concatenate(row_ends))
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})
