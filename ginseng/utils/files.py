"""What paths name, and writing beside the target and renaming: a failed run leaves what was there before."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ATTEMPTS, _MOMENT = 100, 0.05  # at removing a folder, and seconds between two of them


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a fresh path beside `path`; on success what was written there takes its place.

    Works for a file and for a directory. If the block raises, whatever it wrote is removed and `path` is as it was;
    errors of a disk that is full or read-only name `path`.

    Parameters
    ----------
    path : str or Path
        The final path. Its parent directory is created if it does not exist.

    Yields
    ------
    Path
        A path in the same directory, with the same suffix, at which nothing exists yet.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "table.csv"
    >>> with replacing(target) as fresh:
    ...     _ = fresh.write_text("gene,mean")
    >>> target.read_text()
    'gene,mean'
    """
    path = Path(path).resolve()  # what a link points to is replaced, not the link
    unique = uuid.uuid4().hex[:8]
    fresh = path.with_name(f".{path.stem}.{unique}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        if path.is_dir() and not fresh.is_dir():
            raise IsADirectoryError(f"{path} is a folder, and is not replaced by a file; name a file.")
        if path.is_dir():  # a directory cannot be replaced in one step: the old one is gone only once the new one is in
            old = path.with_name(f".{path.stem}.{unique}.old")
            path.rename(old)
            try:
                fresh.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            fresh.replace(path)
    except OSError as error:
        if error.errno in _OF_DISKS or str(error.filename).startswith(str(fresh)):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _remove(fresh)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there, in which threads that were interrupted may still be writing."""
    for _ in range(_ATTEMPTS):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(_MOMENT)


@contextmanager
def naming(path: str | Path, fault: str = "is damaged, or of another kind than its name says") -> Iterator[None]:
    """Raise what a damaged or foreign file makes its readers raise as a ValueError that names file and `fault`.

    Errors of the operating system, and those that name the file already, pass.

    Examples
    --------
    >>> with naming("cells.h5"):
    ...     raise KeyError("X")
    Traceback (most recent call last):
        ...
    ValueError: cells.h5 is damaged, or of another kind than its name says: KeyError: 'X'.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # what h5py, zarr, NumPy, SciPy and pandas raise for damaged files has no common type
        is_told = isinstance(error, ValueError | OSError) and str(path) in str(error)
        if is_told or (isinstance(error, OSError) and error.errno is not None):
            raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{path} {fault}: {kind}{error}".rstrip(".") + ".") from error


def require_writable_path(path: str | Path) -> None:
    """Refuse an output that could not be written, before the work is done rather than after.

    Raises
    ------
    ValueError
        If `path` is a folder, or its own cannot be written to.

    Examples
    --------
    >>> require_writable_path("model.h5")
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file.")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: {folder} is not a folder that you may write to.")


def is_url(path: str | Path) -> bool:
    """Whether something is named by a URL.

    Examples
    --------
    >>> is_url("s3://bucket/cells.zarr"), is_url("cells.zarr")
    (True, False)
    """
    return "://" in str(path)


def is_zarr_url(path: str | Path) -> bool:
    """Whether a URL names a zarr store.

    Examples
    --------
    >>> is_zarr_url("s3://bucket/cells.zarr/"), is_zarr_url("https://host/cells.h5ad"), is_zarr_url("cells.zarr")
    (True, False, False)
    """
    return is_url(path) and str(path).rstrip("/").endswith(".zarr")
