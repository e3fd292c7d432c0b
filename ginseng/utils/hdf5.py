"""HDF5 files that appear whole or not at all, and a digest that tells whether one is as it was written."""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ginseng.utils.bounds import require_regular
from ginseng.utils.digest import digest
from ginseng.utils.files import Unreadable, naming, replacing
from ginseng.utils.kinds import kind_of_file
from ginseng.utils.messages import in_short

with suppress(ImportError):  # of which the import tells HDF5 how to unpack what blosc, zstd and others have packed
    import hdf5plugin  # noqa: F401 # pyright: ignore[reportMissingImports]

_h5: Any = h5py  # of whose low level there are no types
_TEXT = 1  # in HDF5's description of a type: 0 of a list, 1 of a text
_DEEPEST = 100  # groups within groups
_MOST_DIMENSIONS = 32  # that HDF5 has
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
    """Open an HDF5 file for reading, unless it leads to other files.

    Raises
    ------
    ValueError
        If it is none, is damaged, or does that.

    Examples
    --------
    >>> with opened_hdf5("cells.h5") as file:  # doctest: +SKIP
    ...     print(list(file))
    """
    require_regular(path)
    with naming(path):
        file = _opened(path)
    with file, naming_filters(path):
        with naming(path):
            _Walk(file.id)
        yield file


def _opened(path: str | Path) -> h5py.File:
    try:
        return h5py.File(path)
    except OSError as error:
        if is_locked(error):
            raise ValueError(
                f"{path} is locked: another process has it open for writing, or its file system has no locks; close it "
                "there, or set HDF5_USE_FILE_LOCKING=FALSE to open it anyway."
            ) from error
        if error.errno is not None:
            raise
        if h5py.is_hdf5(path):
            raise ValueError(f"{path} is an HDF5 file that is truncated or damaged ({in_short(error)}).") from error
        kind = kind_of_file(path)
        raise ValueError(f"{path} is {kind.name}: {kind.way_out}.") from error


def is_locked(error: OSError) -> bool:
    """Whether HDF5 did not open a file since it is locked, or its file system has no locks.

    Examples
    --------
    >>> is_locked(OSError("unable to lock file, errno = 37"))
    True
    """
    return "unable to lock file" in str(error)


@contextmanager
def naming_filters(path: str | Path) -> Iterator[None]:
    """Raise what HDF5 cannot unpack as a ValueError that names the filters of the file which are not installed.

    Examples
    --------
    >>> with naming_filters("cells.h5ad"):
    ...     pass
    """
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if not (any(word in str(error) for word in ("plugin", "filter")) and h5py.is_hdf5(path)):
            raise
        with h5py.File(path) as file:
            lacking = _lacking_filters(file)
        if not lacking:
            raise
        raise ValueError(
            f"{path} is packed with {' and '.join(lacking)}, which HDF5 reads with a plugin: pip install hdf5plugin."
        ) from error


def _lacking_filters(file: h5py.File) -> list[str]:
    found: dict[int, str] = {}

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            creation = item.id.get_create_plist()
            for number, _flags, _values, name in map(creation.get_filter, range(creation.get_nfilters())):
                if not _h5.h5z.filter_avail(number):
                    told = in_short(name.decode(errors="replace").partition(";")[0]) or "the filter"
                    found[number] = f"{told} (filter {number} of HDF5)"

    file.visititems(note)
    return list(found.values())


def ends_the_interpreter(item: Any) -> bool:
    """Whether a group holds, or a dataset is, texts of any length in 32 dimensions: HDF5 divides by zero there.

    Examples
    --------
    >>> ends_the_interpreter(h5py.File("cells.h5", "w", driver="core", backing_store=False))
    False
    """

    def is_so(_: str, item: Any) -> bool | None:
        if not isinstance(item, h5py.Dataset) or item.id.rank < _MOST_DIMENSIONS:
            return None
        kind = item.id.get_type()
        return True if kind.get_class() == _h5.h5t.STRING and kind.is_variable_str() else None

    return bool(item.visititems(is_so) if isinstance(item, h5py.Group) else is_so("", item))


class _Walk:
    """Refuses external links, external storage and virtual datasets.

    And groups without an end: where a reader's recursion ends in h5py, its lock is lost and other threads wait for it
    for ever. What cannot be opened is left to its reader, who cannot open it either.
    """

    def __init__(self, root: Any):
        self._has_soft = False
        for self._follows_soft in (False, True):  # once it is known that they do not lead to other files
            if self._follows_soft <= self._has_soft:
                self._seen: set[int] = set()
                self._look_at(root, b"/", ())

    def _look_at(self, item: Any, place: bytes, above: tuple[int, ...]) -> None:
        address = _h5.h5o.get_info(item).addr
        if address in above or len(above) > _DEEPEST:
            raise Unreadable("its groups hold one another without an end")
        if address in self._seen:
            return
        self._seen.add(address)
        _require_readable_attributes(item)
        if isinstance(item, _h5.h5d.DatasetID):
            creation = item.get_create_plist()
            if creation.get_layout() == _h5.h5d.VIRTUAL or creation.get_external_count():
                raise Unreadable(f"its {_told(place)} is stored elsewhere: copy the file together with that (h5repack)")
        for name in item if isinstance(item, _h5.h5g.GroupID) else ():
            link = item.links.get_info(name).type
            if link == _h5.h5l.TYPE_EXTERNAL:
                raise Unreadable(f"its {_told(name)} is a link to another file: copy what it leads to in its place")
            if link != _h5.h5l.TYPE_HARD:
                self._has_soft = True
                if not self._follows_soft:
                    continue
            try:
                inner = _h5.h5o.open(item, name)
            except Exception:  # damaged, or a link to nothing
                continue
            self._look_at(inner, name, (*above, address))


def _require_readable_attributes(item: Any) -> None:
    """Refuse lists of a kind that there is not: one flipped bit, on which HDF5 (2.0) ends the interpreter."""
    for number in range(_h5.h5a.get_num_attrs(item)):
        try:
            attribute = _h5.h5a.open(item, index=number)
            kind = attribute.get_type()
        except Exception:  # of a type that h5py does not know: its reader is told
            continue
        if kind.get_class() == _h5.h5t.VLEN and kind.encode()[3] & 15 > _TEXT:
            raise ValueError(f"its {_told(attribute.name)} is of an unknown type")


def _told(name: bytes) -> str:
    return in_short(name.decode(errors="replace"))


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
