"""Texts of an HDF5 file, and the heaps in which they are, by which HDF5 (2.0) is led astray where they are damaged.

An entry of no size in a heap, as in a block that a file system has filled with zeros, is followed by itself, for ever.
Who refers to a text tells its length, for which HDF5 takes memory, up to 4 GiB, before it looks the text up. See
"Global Heap" (III.E), "Attribute Message" (IV.A.2.m) and the messages in it in the HDF5 file format specification.
"""

import re
import struct
from pathlib import Path

import numpy as np

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])  # to a text

_SIGNATURE = re.compile(rb"GCOL\x01\0{3}")  # found far sooner than by bytes.find, which looks for the last byte
_ENTRY = struct.Struct("<H6xQ")  # number, bytes
_IN_ATTRIBUTE = re.compile(
    rb"\x19\x01[\0\x01]\0\x10\0{3}\x10\0{3}\x01\0{5}\x08\0(?:\0{4})?"  # the type: text of any length
    rb"(?:\x01\0{7}|\x02\0{3}"  # and how many there are: one,
    rb"|(?:\x01\x01[\0\x01]\0{5}|\x02\x01[\0\x01]\x01)(?P<n>.{8})(?:(?P=n)|\xff{8})?)",  # or a list
    re.DOTALL,
)
_LOOKED_AT = 2**23  # bytes at each end of a file: the texts of its attributes are among the first that are written


def require_sound_heaps(path: str | Path) -> None:
    """Raise a ValueError if a heap has an entry that does not lead to the next, or a text of an attribute has no end.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5"
    >>> _ = path.write_bytes(b"GCOL" + struct.pack("<IQ", 1, 4096) + bytes(4080))
    >>> require_sound_heaps(path)
    Traceback (most recent call last):
        ...
    ValueError: its texts at byte 0 have an entry of no size
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        for start in (0, max(size - _LOOKED_AT, _LOOKED_AT)):
            file.seek(start)
            content = file.read(_LOOKED_AT)
            _require_sound(content, start)
            for found in _IN_ATTRIBUTE.finditer(content):
                n_texts = 1 if found["n"] is None else int.from_bytes(found["n"], "little")
                n_there = (len(content) - found.end()) // REFERENCE.itemsize
                require_lengths(np.frombuffer(content, REFERENCE, min(n_texts, n_there), found.end()), size)


def require_lengths(references: np.ndarray, n_bytes: int) -> None:
    """Raise a ValueError if a text is longer than the file in which it is.

    Parameters
    ----------
    references : array of REFERENCE
        Where texts are.
    n_bytes : int
        Bytes of the file.

    Examples
    --------
    >>> require_lengths(np.array([(2**32 - 1, 2048, 1)], REFERENCE), 4096)
    Traceback (most recent call last):
        ...
    ValueError: it declares a text of 4,294,967,295 bytes, where it has 4,096 in all
    """
    longest = int(references["length"].max(initial=0))
    if longest > n_bytes:
        raise ValueError(f"it declares a text of {longest:,} bytes, where it has {n_bytes:,} in all")


def _require_sound(content: bytes, offset: int) -> None:
    unpack = _ENTRY.unpack_from
    for found in _SIGNATURE.finditer(content):
        start = found.start()
        (size,) = struct.unpack_from("<Q", content.ljust(start + 16, b"\0"), start + 8)
        at, end = start + 16, min(start + size, len(content))
        while at <= end - _ENTRY.size:
            number, n_bytes = unpack(content, at)
            step = 16 + (n_bytes + 7 & -8) if number else n_bytes
            if not 0 < step < 2**64:  # in which HDF5 computes
                raise ValueError(f"its texts at byte {offset + start:,} have an entry of no size")
            at += step
