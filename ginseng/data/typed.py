"""What zarr's own types leave open: which members of a group are arrays, and where things lie on this machine."""

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
