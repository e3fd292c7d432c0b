"""Files of AnnData .zarr stores that have gone.

zarr reads a file that has gone as zeros or empty names, and leaves out files that would hold nothing else. Which of the
two it is follows, mostly, from what else is stored.
"""

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ginseng.data.elements import member_names
from ginseng.data.typed import n_missing_chunks, values_of
from ginseng.utils.messages import warn


def require_files(root: zarr.Group, path: str | Path) -> None:
    """Refuse a store on this machine of which files have gone, and warn where that may be so.

    Looks at what is used: X, layers, raw, and the annotation of cells and genes.

    Raises
    ------
    ValueError
        If names have gone, or parts of a sparse matrix that could not be zero.

    Examples
    --------
    >>> require_files(zarr.group(), "cells.zarr")
    """
    layers = _opened(root, "layers")
    layers = [f"layers/{name}" for name in member_names(layers)] if isinstance(layers, zarr.Group) else []
    for name in ("X", "raw/X", *layers):
        item = _opened(root, name)
        if isinstance(item, zarr.Group):
            _warn_of(_of_sparse(name, item), path)
        elif item is not None:
            _warn_of(_lacks(name, item), path)
    for name in ("obs", "var", "raw/var"):
        table = _opened(root, name)
        if isinstance(table, zarr.Group):
            _require_columns(table, path)
        elif table is not None:  # of records
            _refuse(_lacks(name, table))


def _opened(group: Any, name: str) -> Any:
    """A member, or None if there is none or it cannot be opened, as whoever needs it is told."""
    try:
        return group.get(name)
    except Exception:
        return None


def _lacks(name: str, array: Any) -> str | None:
    """What an array lacks, in words; None if nothing."""
    n_missing = n_missing_chunks(array) if array.ndim else 0
    return f"{n_missing:,} of the {array.nchunks:,} chunks of {name} have no file" if n_missing else None


def _of_sparse(name: str, matrix: zarr.Group) -> str | None:
    """Refuse parts that could not be zero; tell of those that could."""
    data, indices, indptr = (_opened(matrix, part) for part in ("data", "indices", "indptr"))
    if not all(isinstance(part, zarr.Array) for part in (data, indices, indptr)):
        return None
    if (lacks := _lacks(f"{name}/indptr", indptr)) and data.shape[0] and not values_of(matrix, "indptr")[-1]:
        _refuse(lacks)
    if (lacks := _lacks(f"{name}/indices", indices)) and _repeats_the_first(matrix):
        _refuse(lacks)
    lacks = _lacks(f"{name}/data", data)
    if name == "X":
        _refuse(lacks)
    return lacks


def _repeats_the_first(matrix: zarr.Group) -> bool:
    """Whether a row (or column) would have the first index twice, if all that is read as 0 were that."""
    indptr = values_of(matrix, "indptr")
    of_entries = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    with_first = of_entries[values_of(matrix, "indices")[: len(of_entries)] == 0]
    return len(np.unique(with_first)) < len(with_first)


def _require_columns(table: zarr.Group, path: str | Path) -> None:
    name_of_index = table.attrs.get("_index")
    for name in member_names(table):
        item, where = _opened(table, name), f"{table.path}/{name}"
        codes, categories = _opened(item, "codes"), _opened(item, "categories")
        if isinstance(codes, zarr.Array) and isinstance(categories, zarr.Array):
            if categories.shape[0] > 1:  # of which one may be empty or zero, but not all
                _refuse(_lacks(f"{where}/categories", categories))
                _warn_of(_lacks(f"{where}/codes", codes), path)
            continue
        values = _opened(item, "values") if isinstance(item, zarr.Group) else item  # of those that may be missing
        if isinstance(values, zarr.Array) and (lacks := _lacks(where, values)):
            if name == name_of_index:
                _refuse(lacks)
            if n_missing_chunks(values) < values.nchunks:  # all may be zero, or empty, which is no label or group
                _warn_of(lacks, path)


def _refuse(lacks: str | None) -> None:
    if lacks is not None:
        raise ValueError(lacks)


def _warn_of(lacks: str | None, path: str | Path) -> None:
    if lacks is not None:
        warn(f"{path}: {lacks}, and are read as zeros or nothing, which is right only if they have been that before.")
