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

_PAGE = 2**16  # bytes


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
def changed_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Give an HDF5 file to change: in memory, as far as it is changed, and written by Python in the end.

    Parameters
    ----------
    path : str or Path
        A file that nobody else has; if it cannot be written, it is neither as it was nor as it should be.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5"
    >>> with new_hdf5(path) as file:
    ...     file["n_cells"] = 3
    >>> with changed_hdf5(path) as file:
    ...     file["n_genes"] = 2
    >>> sorted(h5py.File(path))
    ['n_cells', 'n_genes']
    """
    with Path(path).open("r+b", buffering=0) as stored:
        changes = _Changes(stored)
        with h5py.File(changes, "r+") as file:
            yield file
        changes.write_out()
        os.fsync(stored.fileno())


class _Changes(io.RawIOBase):
    """A file, and in memory those of its pages that are to be others."""

    def __init__(self, stored: io.FileIO):
        self._stored, self._at = stored, 0
        self._pages: dict[int, bytearray] = {}
        self._size = os.fstat(stored.fileno()).st_size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")[: max(self._size - self._at, 0)]
        for number, inside, here in self._parts(len(target)):
            target[here] = (self._pages.get(number) or self._stored_page(number))[inside]
        self._at += len(target)
        return len(target)

    def write(self, data: Any, /) -> int:
        source = memoryview(data).cast("B")
        for number, inside, here in self._parts(len(source)):
            if number not in self._pages:
                self._pages[number] = self._stored_page(number)
            self._pages[number][inside] = source[here]
        self._at += len(source)
        self._size = max(self._size, self._at)
        return len(source)

    def truncate(self, size: int | None = None, /) -> int:
        self._size = self._at if size is None else size
        return self._size

    def write_out(self) -> None:
        """Write the changed pages to the file."""
        for number, page in sorted(self._pages.items()):
            self._stored.seek(number * _PAGE)
            left = memoryview(page)[: max(self._size - number * _PAGE, 0)]
            while left:
                left = left[self._stored.write(left) :]
        self._stored.truncate(self._size)

    def _parts(self, n_bytes: int) -> Iterator[tuple[int, slice, slice]]:
        """The pages of so many bytes, what is meant of each, and where that is among the bytes."""
        done = 0
        while done < n_bytes:
            number, first = divmod(self._at + done, _PAGE)
            n_here = min(n_bytes - done, _PAGE - first)
            yield number, slice(first, first + n_here), slice(done, done + n_here)
            done += n_here

    def _stored_page(self, number: int) -> bytearray:
        self._stored.seek(number * _PAGE)
        return bytearray((self._stored.read(_PAGE) or b"").ljust(_PAGE, b"\0"))


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
