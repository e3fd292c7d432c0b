"""The zarr layout of a dataset: write, open, read. Nothing else knows it, but for the split, which is in `splits`.

A dataset is an AnnData zarr store (v3) with counts in ``X`` (CSR) and ``obs`` and ``var`` beside it; the attributes of
its root name labels, groups and genes. The arrays ``labels``, ``groups``, ``split/train`` and ``split/test`` of the
documented layout are not part of AnnData's, which refuses what it does not know: they are left out of the consolidated
metadata of the root, by which `anndata.read_zarr` lists a store. Dense stores of ginseng 0.2.1 open too.

zarr reads a file that has gone as if it held the fill value. So that this is noticed, small arrays come with a digest,
indices of genes are filled with one that no gene has, dense counts have all their files, and counts in CSR are never 0.
"""

import itertools
import json
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata.io
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from zarr.errors import ZarrUserWarning

from ginseng.data.shards import GrowingArray
from ginseng.data.typed import array_of, folder_of, n_missing_chunks, values_of
from ginseng.utils.bounds import require_own_files
from ginseng.utils.digest import digest, require_digest
from ginseng.utils.files import is_url, local_path, naming
from ginseng.utils.messages import unknown_name, warn
from ginseng.utils.names import kind_of_names, require_second_names
from ginseng.utils.soundness import require_ends
from ginseng.utils.values import texts
from ginseng.utils.workspace import moved_away

_ATTRIBUTES = ("label_names", "gene_names", "n_cells", "n_genes")
_CHUNK_VALUES = 2**16  # read at once; with smaller ones zarr's own work outweighs decompressing, see benchmarks


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
        Annotation of the cells, in categorical columns.
    gene_names : list of str
        Names of the genes.
    attributes : dict
        Attributes of the root.
    arrays : dict
        ``labels`` and, if there are any, ``groups``.
    chunk_size : int
        Cells per file of the counts.
    """
    fault = "The annotation of the dataset", "cannot be written"
    with naming(*fault):
        categories = (column.cat.categories for _, column in obs.items())
        _require_whole(itertools.chain(gene_names, obs.index, *categories))
    root = zarr.create_group(path, zarr_format=3)
    arrays = {name: values.astype(np.int32) for name, values in arrays.items()}
    indptr = _write_counts(root, blocks, len(obs), len(gene_names), chunk_size)
    header: dict[str, Any] = {"encoding-type": "anndata", "encoding-version": "0.1.0", "id": uuid.uuid4().hex}
    header["columns"] = {name: _digest_of_column(column) for name, column in obs.items()}
    kept = _digest_of(attributes, arrays["labels"], arrays.get("groups"), indptr)
    whole = zarr.config.set({"array.write_empty_chunks": True})  # so that a chunk that has no file has gone
    with naming(*fault), warnings.catch_warnings(), whole:
        warnings.filterwarnings("ignore", "zarr v3 autosharding")  # anndata's announcement of a new default
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        root.attrs.update({**header, **attributes, "digest": kept})
        anndata.io.write_elem(root, "obs", obs)
        anndata.io.write_elem(root, "var", _var_of(gene_names, attributes.get("second_names")))
        zarr.consolidate_metadata(root.store)
    for name, values in arrays.items():
        root.create_array(name, data=values)


def _require_whole(names: Iterable[str]) -> None:
    """Raise a ValueError if arrays of text would cut a name, as they do NUL characters at its end."""
    for name in names:
        if "\0" in str(name):
            raise ValueError(f"{name!r} holds a NUL character")


def _var_of(gene_names: list[str], second: list[str] | None) -> pd.DataFrame:
    columns = {} if second is None else {kind_of_names(second): second}
    return pd.DataFrame(columns, index=pd.Index(gene_names, dtype=object))


@dataclass(frozen=True)
class Contents:
    """What a dataset holds, checked against itself.

    Attributes
    ----------
    label_names, gene_names : list of str
        Names of the integer labels and of the genes.
    second_names : list of str or None
        Other names of the genes, "" where there is none.
    group_names : list of str or None
        Names of the integer groups.
    labels : numpy.ndarray
        Label of every cell.
    groups : numpy.ndarray or None
        Group of every cell.
    counts : zarr.Array or tuple of zarr.Array
        Dense, of shape (cells, genes), or the values and the gene indices of CSR.
    indptr : numpy.ndarray or None
        Row ends of CSR.
    is_ours : bool
        Whether this package wrote it, rather than ginseng 0.2.1.
    """

    label_names: list[str]
    gene_names: list[str]
    second_names: list[str] | None
    group_names: list[str] | None
    labels: np.ndarray
    groups: np.ndarray | None
    counts: Any
    indptr: np.ndarray | None
    is_ours: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return len(self.labels), len(self.gene_names)


def read_contents(root: zarr.Group) -> Contents:
    """Read names and small arrays, and open the counts.

    Raises
    ------
    ValueError
        If attributes, arrays and shapes contradict each other, or an array is not what was written.
    """
    with naming(str(root.store), "is a damaged dataset"):
        attributes: dict[str, Any] = dict(root.attrs)
        n_cells, n_genes = attributes["n_cells"], attributes["n_genes"]
        if type(n_cells) is not int or type(n_genes) is not int:
            raise ValueError(f"`n_cells` and `n_genes` are {n_cells!r} and {n_genes!r}")
        label_names, gene_names = _names(attributes, "label_names"), _names(attributes, "gene_names")
        group_names = None if attributes.get("group_names") is None else _names(attributes, "group_names")
        if len(gene_names) != n_genes:
            raise ValueError(f"`n_genes` is {n_genes}, but it names {len(gene_names):,}")
        second = attributes.get("second_names")
        second_names = None if second is None else require_second_names(second, n_genes).tolist()
        labels = _codes(root, "labels", n_cells, label_names)
        groups = None if group_names is None else _codes(root, "groups", n_cells, group_names)
        counts, indptr = _open_counts(root, (n_cells, n_genes))
        found = _digest_of(attributes, labels, groups, indptr)
        require_digest(attributes.get("digest"), found, "names, labels, groups or row ends")
        is_ours = attributes.get("encoding-type") == "anndata"
        if indptr is None:
            require_dense(counts, is_ours)
    return Contents(label_names, gene_names, second_names, group_names, labels, groups, counts, indptr, is_ours)


def read_column(root: zarr.Group, name: str) -> tuple[list[str], np.ndarray]:
    """Read a column of ``obs``: its names, and the code of each cell, -1 where it says nothing.

    Raises
    ------
    ValueError
        If there is no such column, or it is not what was written.
    """
    require_unchanged(root)
    with naming(str(root.store), "is a damaged dataset"):
        obs: Any = root.get("obs")
        columns = [] if obs is None else list(obs.attrs["column-order"])
    if obs is None or name not in columns:
        raise unknown_name("column", name, f"the dataset {root.store}", columns)
    with naming(str(root.store), "is a damaged dataset"):
        column: Any = pd.Series(pd.Categorical(anndata.io.read_elem(obs[name])))
        codes, attributes = _codes_of(column), dict(root.attrs)
        if len(codes) != attributes["n_cells"]:
            raise ValueError(f"`{name}` holds {len(codes):,} values, for {attributes['n_cells']} cells")
        kept: Any = attributes.get("columns", {})
        require_digest(kept.get(name), _digest_of_column(column), f"the values of '{name}'")
    return column.cat.categories.astype(str).tolist(), codes


def _digest_of_column(column: Any) -> str:
    names = json.dumps(column.cat.categories.astype(str).tolist())
    return digest(_codes_of(column), np.frombuffer(names.encode(), np.uint8))


def _codes_of(column: Any) -> np.ndarray:
    return column.cat.codes.to_numpy(np.int32)


def _names(attributes: dict[str, Any], key: str) -> list[str]:
    names = attributes[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{key}` is no list of names")
    texts(names, key.partition("_")[0])
    if key != "gene_names" and len(set(names)) != len(names):
        raise ValueError(f"`{key}` names something twice")
    return names


def _codes(root: zarr.Group, name: str, n_cells: int, names: list[str]) -> np.ndarray:
    """Integer labels or groups of the cells."""
    array = array_of(root, name)
    if array.shape != (n_cells,) or array.dtype.kind not in "iu":
        raise ValueError(f"`{name}` holds {array.dtype} of shape {array.shape}, for {n_cells} cells")
    codes = values_of(root, name)
    if codes.min() < 0 or codes.max() >= len(names):
        raise ValueError(f"`{name}` are {codes.min()} to {codes.max()}, but {len(names):,} are named")
    return codes


def _open_counts(root: zarr.Group, shape: tuple[int, int]) -> tuple[Any, np.ndarray | None]:
    """Counts as they are stored, and the row ends if that is as CSR."""
    with _fast_codecs(root):
        x: Any = root["X"]
        is_dense = isinstance(x, zarr.Array)
        arrays = [x] if is_dense else [array_of(x, name) for name in ("data", "indices")]
    stored_shape = x.shape if is_dense else tuple(x.attrs["shape"])
    if stored_shape != shape or arrays[0].dtype.kind not in "iuf":
        raise ValueError(f"X holds {arrays[0].dtype} of shape {stored_shape}, where {shape} are expected")
    if is_dense:
        return x, None
    values, indices = arrays
    if values.dtype == np.float16:
        raise ValueError("X holds float16, of which SciPy has no sparse matrices")
    if values.ndim != 1 or values.shape != indices.shape or indices.dtype.kind not in "iu":
        raise ValueError(f"X has values of shape {values.shape}, but {indices.dtype} indices of {indices.shape}")
    if (n_ends := array_of(x, "indptr").shape) != (shape[0] + 1,):
        raise ValueError(f"X has {n_ends} row ends, for {shape[0]:,} cells")
    indptr = values_of(x, "indptr")
    require_ends(indptr, shape[0], values.shape[0])
    return (values, indices), indptr.astype(np.int64)


def _digest_of(
    attributes: dict[str, Any], labels: np.ndarray, groups: np.ndarray | None, indptr: np.ndarray | None
) -> str:
    kept = [attributes.get(name) for name in ("label_names", "group_names", "gene_names")]
    kept += [attributes[name] for name in ("second_names",) if name in attributes]  # which older ones do not have
    names = json.dumps(kept)
    arrays = [array for array in (labels, groups, indptr) if array is not None]
    return digest(np.frombuffer(names.encode(), np.uint8), *arrays)


def require_dense(counts: Any, is_ours: bool) -> None:
    """Raise a ValueError if a file of dense counts has gone; of ginseng 0.2.1's, which leaves out zeros, only warn."""
    if n_missing := n_missing_chunks(counts):
        found = f"{n_missing:,} of the {counts.nchunks:,} chunks of X have no file"
        if is_ours:
            raise ValueError(found)
        warn(f"{found}: they are read as zeros, which is right only if they have been zeros before.")


@contextmanager
def _fast_codecs(root: zarr.Group) -> Iterator[None]:
    """Arrays opened here are decompressed by the package zarrs if it is installed, which reads local files only."""
    faster = folder_of(root) is not None and find_spec("zarrs") is not None
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"} if faster else {}):
        yield


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
    path = path if is_url(path) else local_path(path)
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(f"There is no dataset {path}; GinsengDataset.create makes one.{_left_over(path)}")
    if isinstance(path, Path) and path.is_file():
        raise ValueError(f"{path} is a file, not a ginseng dataset; GinsengDataset.create makes one from counts.")
    if isinstance(path, Path):
        with naming(path):
            require_own_files(path)
    read_only = str(path).startswith(("http://", "https://"))
    try:
        root = _group_at(path.absolute() if isinstance(path, Path) else path, mode="r" if read_only else "r+")
    except ImportError as error:
        raise ImportError(f"To read {path}: pip install 'ginseng-eqx[remote]' ({error}).") from error
    if root is None or not all(name in root.attrs for name in _ATTRIBUTES):
        raise ValueError(f"{path} is not a ginseng dataset; GinsengDataset.create makes one from counts.")
    return root


def _group_at(place: Any, **options: Any) -> zarr.Group | None:
    """The group there is with its attributes, or None if there is none that zarr can read."""
    try:
        group = zarr.open_group(place, use_consolidated=False, **options)
        dict(group.attrs)
    except ImportError:
        raise
    except Exception as error:  # what zarr raises for metadata of another kind has no common type
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        return None
    return group


def is_store(path: str | Path) -> bool:
    """Whether there is a dataset at `path`."""
    try:
        open_store(path)
    except (OSError, ValueError):
        return False
    return True


def _left_over(path: Path) -> str:
    """Tell of the old dataset where its replacement was killed between two renames."""
    old = moved_away(path)
    return "" if old is None else f" The replacement of an older one was interrupted: rename {old} to have that back."


def require_unchanged(root: zarr.Group) -> None:
    """Raise an OSError if the dataset has been removed or replaced since it was opened.

    What is read would be of two datasets, and a split would not be of the cells that are there.
    """
    now = _group_at(root.store, path=root.path, mode="r")
    if now is None:
        raise OSError(f"{root.store} has been removed since it was opened.")
    if dict(now.attrs) != dict(root.attrs):
        raise OSError(f"{root.store} has been replaced since it was opened; open it anew.")


def _write_counts(
    root: zarr.Group, blocks: Iterable[sparse.csr_matrix], n_cells: int, n_genes: int, chunk_size: int
) -> np.ndarray | None:
    """Write X in AnnData's encoding, block by block: CSR, or dense if more than half of the first cells is not zero.

    Returns the row ends of CSR.
    """
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
        return None
    group = root.create_group("X")
    chunk = (_CHUNK_VALUES,)
    shard = (max(1, -(-int(chunk_size * per_cell) // _CHUNK_VALUES)) * _CHUNK_VALUES,)
    row_ends = [np.zeros(1, dtype=np.int64)]
    n_stored = 0
    of_genes = np.min_scalar_type(n_genes)
    with (
        GrowingArray(group, "data", chunk, shard) as data,
        GrowingArray(group, "indices", chunk, shard, of_genes, np.iinfo(of_genes).max) as indices,
    ):
        for block in blocks:
            data.append(block.data)
            indices.append(block.indices)
            row_ends.append(block.indptr[1:].astype(np.int64) + n_stored)
            n_stored += block.nnz
    indptr = np.concatenate(row_ends)
    group.create_array("indptr", data=indptr)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})
    return indptr
