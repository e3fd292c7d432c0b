"""What zarr's own types leave open: which members of a group are arrays, where things lie, and what has gone."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore

from ginseng.utils.bounds import declared_bytes, declared_rows, require_plausible


def array_of(group: zarr.Group, name: str) -> "zarr.Array[Any]":
    """An array of a group.

    Raises
    ------
    KeyError
        If there is none of that name.
    ValueError
        If it is a group.

    Examples
    --------
    >>> group = zarr.group()
    >>> _ = group.create_array("labels", data=np.arange(3))
    >>> array_of(group, "labels").shape
    (3,)
    """
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise ValueError(f"`{name}` is a group, where an array is expected")
    return found


def values_of(group: zarr.Group, name: str) -> np.ndarray:
    """The values of an array of a group.

    Examples
    --------
    >>> group = zarr.group()
    >>> _ = group.create_array("labels", data=np.arange(3))
    >>> values_of(group, "labels")
    array([0, 1, 2])
    """
    return np.asarray(array_of(group, name)[...])


def folder_of(item: "zarr.Group | zarr.Array[Any]") -> Path | None:
    """Where a group or an array lies on this machine; None if it is elsewhere.

    Examples
    --------
    >>> folder_of(zarr.group()) is None
    True
    """
    return Path(item.store.root) / item.path if isinstance(item.store, LocalStore) else None


def n_missing_chunks(array: "zarr.Array[Any]") -> int:
    """How many chunks of an array on this machine have no file, by which zarr reads their fill value.

    Examples
    --------
    >>> import tempfile
    >>> array = zarr.create_array(tempfile.mkdtemp(), data=np.array([1, 2, 0, 0]), chunks=2, overwrite=True)
    >>> n_missing_chunks(array)
    1
    """
    return 0 if folder_of(array) is None else max(array.nchunks - array.nchunks_initialized, 0)


def require_bounded(root: zarr.Group, path: str | Path) -> None:
    """Refuse a store on this machine that asks for more memory than its size lets expect, or for code to be run.

    Raises
    ------
    ValueError
        If it does.

    Examples
    --------
    >>> require_bounded(zarr.group(), "cells.zarr")
    """
    if folder_of(root) is None:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ZarrUserWarning)  # of files that are none of zarr's
        require_plausible((_declared_by(name, item) for name, item in root.members(max_depth=None)), path)


def _declared_by(name: str, item: Any) -> int:
    if not isinstance(item, zarr.Array):
        return declared_rows(item.attrs.get("shape"))
    metadata: Any = item.metadata
    codecs = metadata.codecs if metadata.zarr_format == 3 else (metadata.filters, metadata.compressor)
    if "pickle" in str(codecs).lower():
        raise ValueError(f"its {name} is pickled, which may run code when it is read")
    dtype = item.dtype
    of_shard = math.prod(item.shards or ()) * dtype.itemsize  # which is made whole in memory where it is decoded
    return max(of_shard, declared_bytes(item.shape, dtype.itemsize, item.chunks, is_text=dtype.kind not in "biufc"))
