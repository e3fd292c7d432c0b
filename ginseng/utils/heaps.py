"""Heaps of an HDF5 file, in which its texts are, on which HDF5 (2.0) would go on for ever where they are damaged.

An entry of no size, as in a block that a file system has filled with zeros, is followed by itself. See "Global Heap" in
the HDF5 file format specification (III.E).
"""

import struct
from pathlib import Path

_SIGNATURE = b"GCOL\x01\0\0\0"
_ENTRY = struct.Struct("<HHIQ")  # number, references, reserved, bytes
_LOOKED_AT = 2**23  # bytes at each end of a file: the texts of its attributes are among the first that are written


def require_sound_heaps(path: str | Path) -> None:
    """Raise a ValueError if a heap has an entry that does not lead to the next.

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
        _require_sound(file.read(_LOOKED_AT), 0)
        n_further = file.seek(0, 2) - _LOOKED_AT
        if n_further > 0:
            start = file.seek(-min(n_further, _LOOKED_AT), 2)
            _require_sound(file.read(), start)


def _require_sound(content: bytes, offset: int) -> None:
    start = content.find(_SIGNATURE)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", content.ljust(start + 16, b"\0"), start + 8)
        at, end = start + 16, min(start + size, len(content))
        while at + _ENTRY.size <= end:
            number, _, _, n_bytes = _ENTRY.unpack_from(content, at)
            step = n_bytes if number == 0 else _ENTRY.size + -(-n_bytes // 8) * 8
            step %= 2**64  # as HDF5 computes it
            if step == 0:
                raise ValueError(f"its texts at byte {offset + start:,} have an entry of no size")
            at += step
        start = content.find(_SIGNATURE, start + 1)
