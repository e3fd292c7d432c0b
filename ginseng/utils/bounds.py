"""What a file may make its readers do: take memory as its size lets expect, and read nothing but itself.

What is declared in a file of HDF5 or a zarr store - the shapes of all arrays, added up - may be 1 GiB, or 1,032 times
the bytes that are there, which is what deflate compresses to at best. Each text counts as 64 bytes, which it takes in
memory, and each chunk as 4 KiB. A packed text may unpack to 64 MiB, or 100 times its bytes; JSON has 128 MiB at most,
a file or store 50,000 members, a table 1,000 columns.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

_LEAST, _RATIO = 2**30, 1032
_TEXT_LEAST, _TEXT_RATIO = 2**26, 100
_OF_TEXT, _OF_CHUNK = 64, 2**12
_JSON = 2**27
_MOST_COLUMNS, _MOST_MEMBERS = 1000, 50_000
_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def declared_bytes(shape: Sequence[int], item: int, chunk: Sequence[int] | None = None, *, is_text: bool) -> int:
    """Memory that an array asks for, at least.

    Parameters
    ----------
    shape : sequence of int
        Its shape.
    item : int
        Bytes of a value.
    chunk : sequence of int, optional
        Shape of the parts in which it is stored: a whole one is read at least, and each is looked for.
    is_text : bool
        Whether it becomes objects.

    Examples
    --------
    >>> declared_bytes((1000, 1000), 4, is_text=False), declared_bytes((10,), 4, (10**6,), is_text=False)
    (4000000, 4000000)
    """
    item = max(item, _OF_TEXT) if is_text else item
    size = math.prod(shape) * item
    if chunk is None or not size:
        return size
    n_chunks = math.prod(-(-length // max(part, 1)) for length, part in zip(shape, chunk, strict=True))
    return max(size, math.prod(chunk) * item, n_chunks * _OF_CHUNK)


def declared_rows(shape: Any) -> int:
    """Memory that the row ends of a sparse matrix ask for, of which a file tells this shape; 0 if it is none.

    Examples
    --------
    >>> declared_rows([1000, 20]), declared_rows(None), declared_rows("wide")
    (8000, 0, 0)
    """
    lengths = np.asarray(shape)
    return 8 * int(lengths.max()) if lengths.size and lengths.dtype.kind in "iu" else 0


def require_plausible(declared: Iterable[int], path: str | Path) -> None:
    """Raise a ValueError if a file or folder asks for memory that its size does not let expect, or has no end.

    Parameters
    ----------
    declared : iterable of int
        Memory that each of its members asks for, see `declared_bytes`.
    path : str or Path
        The file or folder.

    Examples
    --------
    >>> require_plausible([2**20, 2**29], "cells.h5ad")
    """
    total, most = 0, _LEAST
    for n_members, size in enumerate(declared, start=1):
        total += size
        if total > most and total > (most := max(_LEAST, _RATIO * stored_bytes(path))):
            raise ValueError(f"it declares arrays of {total:,} bytes, where its size lets expect {most:,} at most")
        if n_members > _MOST_MEMBERS:
            raise ValueError(f"it has more than {_MOST_MEMBERS:,} members")


def stored_bytes(path: str | Path) -> int:
    """Bytes of a file, or of all files in a folder.

    Examples
    --------
    >>> import tempfile
    >>> stored_bytes(tempfile.mkdtemp())
    0
    """
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(_size(entry) for entry in _entries(path) if entry.is_file())


def require_own_files(folder: str | Path) -> None:
    """Raise a ValueError if something in a folder is elsewhere by a symbolic link, or is neither file nor folder.

    The folder itself may be named by a link, and links may lead to what else is in it. Metadata of zarr have a bound.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "zarr.json").symlink_to("/etc/hostname")
    >>> require_own_files(folder)
    Traceback (most recent call last):
        ...
    ValueError: its zarr.json is a symbolic link out of the folder: copy what it leads to in its place
    """
    for entry in _entries(Path(folder)):
        if entry.is_symlink():
            require_inside(entry.path, folder)
        elif not entry.is_file():
            require_regular(entry.path)
        elif entry.name in _METADATA and (size := _size(entry)) > _JSON:
            raise ValueError(f"its {entry.name} has {size:,} bytes, where {_JSON:,} are read at most")


def require_inside(path: str | Path, folder: str | Path) -> None:
    """Raise a ValueError if a path in a folder is a symbolic link out of it, or to a folder around it.

    Examples
    --------
    >>> require_inside("10x/matrix.mtx", "10x")
    """
    target, around = Path(path).resolve(), Path(folder).resolve()
    name, holder = Path(path).name, Path(path).parent.resolve()
    if target in (holder, *holder.parents):
        raise ValueError(f"its {name} is a symbolic link to a folder around it")
    if around not in target.parents:
        raise ValueError(f"its {name} is a symbolic link out of the folder: copy what it leads to in its place")


def require_regular(path: str | Path) -> None:
    """Raise a ValueError of what would be waited for, or never end: a pipe, a socket or a device.

    Examples
    --------
    >>> require_regular("/dev/zero")
    Traceback (most recent call last):
        ...
    ValueError: /dev/zero is neither a file nor a folder
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is neither a file nor a folder")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder and in those in it, links not followed; another process may replace parts meanwhile."""
    waiting = [str(folder)]
    while waiting:
        with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


class _Unpacked(io.RawIOBase):
    """A stream, of no more than so many bytes."""

    def __init__(self, stream: Any, most: int):
        self._stream, self._most, self._n_read = stream, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._stream.read(len(buffer))
        self._n_read += len(part)
        if self._n_read > self._most:
            raise ValueError(f"it unpacks to more than the {self._most:,} bytes that its size lets expect")
        buffer[: len(part)] = part
        return len(part)


@contextmanager
def opened_text(path: str | Path) -> Iterator[io.BufferedIOBase]:
    """Open a text to be read as bytes, plain or packed (.gz, .bz2, .xz) by its name.

    A packed one that unpacks to more than its size lets expect raises a ValueError as it is read.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "genes.tsv.gz"
    >>> _ = path.write_bytes(gzip.compress(b"CD3D"))
    >>> with opened_text(path) as file:
    ...     file.read()
    b'CD3D'
    """
    path = Path(path)
    require_regular(path)
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        with path.open("rb") as file:
            yield file
    else:
        most = max(_TEXT_LEAST, _TEXT_RATIO * path.stat().st_size)
        with opener(path, "rb") as stream, io.BufferedReader(_Unpacked(stream, most), 2**16) as file:
            yield file


def read_table(path: str | Path, separator: str, quoting: int = csv.QUOTE_MINIMAL, **options: Any) -> pd.DataFrame:
    r"""Read a table of texts without a header, plain or packed.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "genes.tsv"
    >>> _ = path.write_text("E1\tCD3D\n")
    >>> read_table(path, "\t")
        0     1
    0  E1  CD3D
    """
    with opened_text(path) as file:
        lines = csv.reader(io.TextIOWrapper(cast(Any, file), "utf-8"), delimiter=separator, quoting=cast(Any, quoting))
        n_columns = len(next(filter(None, lines), ()))
    if n_columns > _MOST_COLUMNS:
        raise ValueError(f"it has {n_columns:,} columns")
    how: dict[str, Any] = {"sep": separator, "header": None, "dtype": str, "keep_default_na": False, **options}
    with opened_text(path) as file:
        return pd.read_csv(cast(Any, file), quoting=cast(Any, quoting), **how)


def read_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises
    ------
    ValueError
        If it is none, too large, or nested too deeply.

    Examples
    --------
    >>> read_json('{"epochs": 3}')
    {'epochs': 3}
    """
    if not isinstance(text, str | bytes):
        raise ValueError(f"it holds a {type(text).__name__}, where a JSON text is expected")
    if len(text) > _JSON:
        raise ValueError(f"a JSON text of it has {len(text):,} bytes, where {_JSON:,} are read at most")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("a JSON text of it is nested too deeply") from error
