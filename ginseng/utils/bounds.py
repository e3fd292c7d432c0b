"""What a file may make its readers do: read nothing but itself, and unpack no more than its size lets expect.

A packed text may unpack to 64 MiB, or 100 times its bytes; JSON has 128 MiB at most, a table 1,000 columns. Memory is
otherwise bounded by the machine alone.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pandas as pd

from ginseng.utils.files import Unreadable

_TEXT_LEAST, _TEXT_RATIO = 2**26, 100
_JSON = 2**27
_MOST_COLUMNS = 1000
_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
_NO_CODECS = ("attributes", "dimension_names", "fill_value")
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def require_own_files(folder: str | Path) -> None:
    """Raise a ValueError if something in a zarr store is elsewhere by a symbolic link, is no file, or is pickled.

    The store itself may be named by a link, and links may lead to what else is in it. Its metadata have a bound.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "zarr.json").symlink_to("/etc/hostname")
    >>> require_own_files(folder)
    Traceback (most recent call last):
        ...
    ginseng.utils.files.Unreadable: its zarr.json is a symbolic link out of the folder: copy there what it leads to
    """
    for entry in _entries(Path(folder)):
        if entry.is_symlink():
            _require_inside(Path(entry.path), Path(folder))
        elif not entry.is_file():
            require_regular(entry.path)
        if entry.name in _METADATA and entry.is_file():  # a link, too: what it leads to has another name
            if (size := _size(entry)) > _JSON:
                raise Unreadable(f"its {entry.name} has {size:,} bytes, where {_JSON:,} are read at most")
            if entry.name != ".zattrs":
                _require_no_pickle(Path(entry.path))


def _require_inside(path: Path, folder: Path) -> None:
    target, holder = path.resolve(), path.parent.resolve()
    if target in (holder, *holder.parents):
        raise Unreadable(f"its {path.name} is a symbolic link to a folder around it")
    if not is_inside(path, folder):
        raise Unreadable(f"its {path.name} is a symbolic link out of the folder: copy there what it leads to")


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether what a path leads to, by whatever link, is in a folder.

    Examples
    --------
    >>> is_inside("10x/matrix.mtx", "10x")
    True
    """
    return Path(folder).resolve() in Path(path).resolve().parents


def _require_no_pickle(metadata: Path) -> None:
    """Refuse metadata of zarr that tell of arrays which are unpickled as they are read."""
    try:
        told = json.loads(metadata.read_bytes())  # as zarr does: texts may have escapes
    except (FileNotFoundError, ValueError, RecursionError):  # by which zarr reads no array
        return
    if _is_pickled(told):
        raise Unreadable(f"its {metadata.parent.name} is pickled, which may run code when it is read")


def _is_pickled(told: Any) -> bool:
    """Whether metadata name the codec: as "id", as "name", or by itself in a list."""
    if isinstance(told, str):
        return "pickle" in told.lower()
    if isinstance(told, dict):
        told = [part for name, part in told.items() if name not in _NO_CODECS and not name.endswith(".zattrs")]
    return isinstance(told, list) and any(map(_is_pickled, told))


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
            raise Unreadable(f"it unpacks to more than the {self._most:,} bytes that its size lets expect")
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
