"""What a file that is no HDF5 is, told by its first bytes, and what to do with it."""

import bz2
import lzma
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ginseng.utils.messages import in_short

_LOOKED_AT = 4096  # bytes
_SHOWN = 60  # bytes
_COUNTS = "counts are read from .h5ad, 10x .h5, a 10x folder or AnnData .zarr"
_OF_R = f"write it as .h5ad in R, e.g. anndataR::write_h5ad(x, 'counts.h5ad'); {_COUNTS}"
_OF_TABLE = "read it with pandas and write AnnData(table).write_h5ad('counts.h5ad'), with cells as rows"
_UNPACKERS: tuple[tuple[bytes, str, Any], ...] = (
    (b"\x1f\x8b", "gunzip", lambda: zlib.decompressobj(31)),
    (b"BZh", "bunzip2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", "unxz", lzma.LZMADecompressor),
)


class Kind(NamedTuple):
    """A kind of file.

    Attributes
    ----------
    name : str
        What it is called.
    way_out : str
        What to do with it.
    """

    name: str
    way_out: str


_PAGE = Kind("a web page", "the address gave a page (a log-in, an error) and no file; download the file again")
_ANSWER = Kind("XML or JSON, such as a server's error", "look at what it says, and download the file again")
_R = Kind("an R file", _OF_R)
_PICKLE = Kind("a Python pickle, which may run code and is not opened", "write what it holds with write_h5ad")
_BY_BYTES: tuple[tuple[bytes, Kind], ...] = (  # of texts in lower case
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file that is truncated or damaged", "copy or download it again")),
    (b"version https://git-lfs", Kind("a Git LFS pointer in place of the file", "run `git lfs pull` where it is")),
    (b"/annex/objects/", Kind("a git-annex pointer in place of the file", "run `git annex get` where it is")),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml", _ANSWER),
    (b"{", _ANSWER),
    (b"%%matrixmarket", Kind("a Matrix Market file", "pass the folder that holds it with its barcodes and features")),
    (b"RDX", _R),
    (b"RDA", _R),
    (b"RDB", _R),
    (b"X\n\x00", _R),
    (b"PK\x03\x04", Kind("a zip archive", "unzip it, and pass the .h5ad, .h5 or .zarr that is in it")),
    (b"(\xb5/\xfd", Kind("packed by zstd", "unpack it (unzstd)")),
    (b"PAR1", Kind("a Parquet table", _OF_TABLE)),
    (b"ARROW1", Kind("an Arrow table", _OF_TABLE)),
    (b"\x93NUMPY", Kind("a NumPy array, which has no names of cells and genes", _OF_TABLE)),
    (b"SQLite format 3", Kind("an SQLite database", _COUNTS)),
    (b"%PDF", Kind("a PDF", _COUNTS)),
    (b"CDF", Kind("a NetCDF file", _COUNTS)),
    (b"MATLAB 5.0", Kind("a MATLAB file", _COUNTS)),
)


def kind_of_file(path: str | Path) -> Kind:
    """What a file is, where HDF5 cannot open it.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    >>> _ = path.write_text("version https://git-lfs.github.com/spec/v1")
    >>> kind_of_file(path)
    Kind(name='a Git LFS pointer in place of the file', way_out='run `git lfs pull` where it is')
    """
    with Path(path).open("rb") as file:
        begin = file.read(_LOOKED_AT)
    if not begin:
        return Kind("empty", "copy or download it again")
    for magic, command, unpacker in _UNPACKERS:
        if begin.startswith(magic):
            return _packed(_unpacked(begin, unpacker()), command, Path(path).name)
    return _kind_of(begin) or Kind(f"not an HDF5 file, or it is truncated: it begins with {first_bytes(path)}", _COUNTS)


def first_bytes(path: str | Path) -> str:
    """How a file begins, as Python shows bytes.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    >>> _ = path.write_bytes(b"sorry")
    >>> first_bytes(path)
    "b'sorry'"
    """
    with Path(path).open("rb") as file:
        return in_short(file.read(_SHOWN))


def _kind_of(begin: bytes) -> Kind | None:
    lowered = begin.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, kind in _BY_BYTES:
        if begin.startswith(magic) or lowered.startswith(magic):
            return kind
    if begin[257:262] == b"ustar":
        return Kind("a tar archive", "unpack it (tar -xf), and pass the .h5ad, .h5 or 10x folder that is in it")
    if begin[:1] == b"\x80" and begin[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    if _is_text(begin):
        lines = begin.splitlines()
        is_table = any(separator in lines[0] for separator in (b",", b"\t", b";")) if lines else False
        return Kind("a table of text", f"{_OF_TABLE}; {_COUNTS}") if is_table else None
    return None


def _is_text(begin: bytes) -> bool:
    with suppress(UnicodeDecodeError):
        return b"\0" not in begin and bool(begin[:-4].decode() or begin.decode())
    return False


def _unpacked(begin: bytes, unpacker: Any) -> bytes:
    """How what is packed begins; nothing if it is damaged."""
    with suppress(zlib.error, OSError, EOFError, lzma.LZMAError):
        return unpacker.decompress(begin, _LOOKED_AT)
    return b""


def _packed(begin: bytes, command: str, name: str) -> Kind:
    inner = _kind_of(begin)
    if inner is None or begin.startswith(b"\x89HDF"):
        what = "a packed HDF5 file" if inner else "a packed file"
        return Kind(what, f"unpack it ({command} {name})")
    return inner if inner is _R else Kind(f"{inner.name}, packed", inner.way_out)
