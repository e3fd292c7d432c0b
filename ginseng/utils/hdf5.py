"""HDF5 files that appear whole or not at all, and a digest that tells whether one is as it was written."""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ginseng.utils.digest import digest
from ginseng.utils.files import replacing


@contextmanager
def new_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Give an HDF5 file to fill; on success it takes the place of `path`, in one step.

    The file is made in memory and written out by Python: on a full disk HDF5 itself ends the interpreter.

    Parameters
    ----------
    path : str or Path
        The final path.

    Raises
    ------
    OSError
        If the file cannot be written; what was at `path` is as it was.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "cells.h5"
    >>> with new_hdf5(target) as file:
    ...     file["n_cells"] = 3
    >>> int(h5py.File(target)["n_cells"][()])
    3
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        yield file
    with replacing(path) as fresh, fresh.open("wb") as output:
        output.write(image.getbuffer())
        output.flush()
        os.fsync(output.fileno())


@contextmanager
def opened_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises
    ------
    ValueError
        If it is none.

    Examples
    --------
    >>> with opened_hdf5("cells.h5") as file:  # doctest: +SKIP
    ...     print(list(file))
    """
    try:
        file = h5py.File(path)
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{path} is not an HDF5 file, or it is truncated ({error}).") from error
    with file:
        yield file


def contents_digest(file: h5py.File, names: Iterable[str], attributes: Iterable[str] = ()) -> str:
    """Give a short name to the contents of members and attributes of a file.

    Examples
    --------
    >>> file = h5py.File("cells.h5", "w", driver="core", backing_store=False)
    >>> file["n_cells"] = 3
    >>> before = contents_digest(file, ["n_cells"])
    >>> file["n_cells"][...] = 4
    >>> before == contents_digest(file, ["n_cells"])
    False
    """
    of_attributes = [np.asarray(file.attrs[name]) for name in attributes]
    return digest(*of_attributes, *(array for name in names for array in _arrays(name, file[name])))


def _arrays(name: str, item: Any) -> Iterator[np.ndarray]:
    """Name, shape, type and values of a dataset, or of all within a group."""
    if isinstance(item, h5py.Group):
        for inner in sorted(item):
            yield from _arrays(f"{name}/{inner}", item[inner])
    else:
        values = np.asarray(item[()])
        yield np.frombuffer(f"{name} {values.shape} {values.dtype.str}".encode(), np.uint8)
        yield values
