"""What tells an input from others, and from what it was: its files, and what is in them."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ginseng.data.readers import is_zarr
from ginseng.utils.bounds import require_own_files, require_regular
from ginseng.utils.files import is_url, local_path, naming

FILES_OF_10X = ("matrix.mtx", "barcodes.tsv", "features.tsv", "genes.tsv")
_AT_ONCE = 2**24  # bytes hashed by a thread
_THREADS = 8

Identity = tuple[tuple[str | int, ...], ...]


class InputChanged(ValueError):
    """An input that is no longer what it was when it was opened."""


def files_of(path: str | Path) -> list[Path]:
    """The files that an input consists of: itself, those of a zarr store, or the three of a 10x folder; none of a URL.

    Examples
    --------
    >>> files_of("https://host/cells.h5ad")
    []
    """
    if is_url(path):
        return []
    path = local_path(path)
    if not path.is_dir():
        return [path]
    if is_zarr(path):
        return sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sorted(entry for entry in path.iterdir() if entry.name.startswith(FILES_OF_10X))


def identity_of(path: str | Path) -> Identity:
    """What tells, without reading it, that an input is the one that was opened: its files with their sizes and times.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    >>> _ = path.write_bytes(b"one")
    >>> before = identity_of(path)
    >>> _ = path.with_name("new").write_bytes(b"two")
    >>> _ = path.with_name("new").replace(path)
    >>> before == identity_of(path)
    False
    """
    try:
        found = [(file, file.stat()) for file in files_of(path)]
    except FileNotFoundError:  # as it is while another is put in its place
        return ()
    # A file stays open while it is read, and so keeps its inode, which those of a store need not on every file system.
    inode = (found[0][1].st_dev, found[0][1].st_ino) if len(found) == 1 else ()
    return tuple((str(file), of.st_size, of.st_mtime_ns, *inode) for file, of in found)


def contents_of(path: str | Path) -> str:
    """A digest of the bytes of an input, wherever it lies: 0.7 GB a second and processor, or as fast as the disk.

    Raises
    ------
    ValueError
        If a file of it is none but a pipe or a device, or a zarr store has links out of it.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    >>> _ = path.write_bytes(b"counts")
    >>> contents_of(path)
    '...'
    """
    files, around = files_of(path), local_path(path)
    with naming(path):
        if files and is_zarr(path):
            require_own_files(around)
        for file in files:
            require_regular(file)
    parts = [(file, start) for file in files for start in range(0, file.stat().st_size or 1, _AT_ONCE)]
    contents = hashlib.blake2b(digest_size=16)
    for file in files:
        contents.update(f"{file.relative_to(around)} {file.stat().st_size} ".encode(errors="surrogateescape"))
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for part in pool.map(_hashed, parts):
            contents.update(part)
    return contents.hexdigest()


def _hashed(part: tuple[Path, int]) -> bytes:
    file, start = part
    with file.open("rb") as opened:
        opened.seek(start)
        return hashlib.blake2b(opened.read(_AT_ONCE)).digest()


def require_as_opened(path: str | Path, before: Identity, what: str) -> None:
    """Raise an InputChanged if an input is another than it was, by its `identity_of`.

    Examples
    --------
    >>> require_as_opened("https://host/cells.h5ad", (), "out.h5ad is not written")
    """
    if identity_of(path) != before:
        raise InputChanged(f"{path} has been replaced or changed since it was opened: {what}; annotate it again.")
