"""What zarr's own types leave open: which members of a group are arrays, where things lie, and what has gone."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore


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
