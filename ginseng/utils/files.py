"""What paths name, and writing beside the target and renaming: a failed run leaves what was there before."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ginseng.interruption import leave_if_asked
from ginseng.utils.messages import in_short
from ginseng.utils.workspace import PREFIX, put_in_place, workspace

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def local_path(path: str | Path) -> Path:
    """A path that a caller has named: ``~`` at its beginning is the home folder, as in a shell.

    Examples
    --------
    >>> local_path("~/cells.h5ad") == Path.home() / "cells.h5ad"
    True
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises where there is no such user or home)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a fresh path beside `path`; on success what was written there takes its place.

    Works for a file and for a directory. If the block raises, whatever it wrote is removed and `path` is as it was;
    errors of the disk name `path`. What a process that was killed had written goes with the next that is written in the
    same folder, see `workspace`.

    Parameters
    ----------
    path : str or Path
        The final path. Its parent directory is created if it does not exist.

    Yields
    ------
    Path
        A path of the same name in a folder beside `path`, at which nothing exists yet.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "table.csv"
    >>> with replacing(target) as fresh:
    ...     _ = fresh.write_text("gene,mean")
    >>> target.read_text()
    'gene,mean'
    """
    path = _place(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with workspace(path.parent) as folder:
            fresh = folder / path.name
            yield fresh
            leave_if_asked()
            if fresh.is_dir():
                put_in_place(fresh, path)
            elif path.is_dir():
                raise IsADirectoryError(f"{path} is a folder, and is not replaced by a file; name a file.")
            else:
                fresh.replace(path)
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(error, path) from error
        if error.errno == errno.EROFS or str(error.filename).startswith(str(path.with_name(PREFIX))):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


class Unreadable(ValueError):
    """What is sound and is not read: by a rule, or since nothing that is installed knows how."""


@contextmanager
def naming(path: str | Path, fault: str = "is damaged, or of another kind than its name says") -> Iterator[None]:
    """Raise what a damaged or foreign file makes its readers raise as a ValueError that names file and `fault`.

    Errors of the operating system, and those that name the file already, pass. Of what is `Unreadable` the file is
    named, and no fault found with it.

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
    except MemoryError as error:  # of a file that is too large, or says so
        raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)} ({in_short(error)})", str(path)) from error
    except Exception as error:  # what h5py, zarr, NumPy, SciPy and pandas raise for damaged files has no common type
        is_told = isinstance(error, ValueError | OSError) and str(path) in str(error)
        if is_told or (isinstance(error, OSError) and error.errno is not None):
            raise
        is_sound = isinstance(error, Unreadable)
        kind = "" if type(error) is ValueError or is_sound else f"{type(error).__name__}: "
        notes = getattr(error, "__notes__", [])  # where, of anndata
        told = ". ".join([f"{kind}{in_short(error)}".rstrip("."), *notes])
        told = f"{path} {'cannot be read' if is_sound else fault}: {in_short(told, 800)}".rstrip(".") + "."
        raise (Unreadable if is_sound else ValueError)(told) from error


def require_writable_path(path: str | Path) -> None:
    """Refuse a file that could not be written, before the work is done rather than after.

    Raises
    ------
    ValueError
        If `path` is a folder, or see `require_writable_place`.

    Examples
    --------
    >>> require_writable_path("model.h5")
    """
    if local_path(path).is_dir():
        raise ValueError(f"{path} is a folder; name a file.")
    require_writable_place(path)


def require_writable_place(path: str | Path) -> None:
    """Refuse a file or folder of which the folder cannot be written to, before the work is done rather than after.

    It is tried, since permissions do not tell: not to an administrator, and not of some network file systems.

    Raises
    ------
    ValueError
        If what should be its folder is a file or cannot be written to, or what is there cannot be replaced.
    OSError
        If the disk is full.

    Examples
    --------
    >>> require_writable_place("cells.zarr")
    """
    folder = _place(path).parent
    try:
        while not folder.exists():
            folder = folder.parent
        with workspace(folder):
            pass
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(error, path) from error
        raise ValueError(
            f"{path} cannot be written: {folder} is not a folder that you may write to ({error.strerror})."
        ) from error


def _place(path: str | Path) -> Path:
    """What a link points to, which is replaced, and not the link: a file, a folder, or what is not there yet."""
    place = Path(os.path.realpath(local_path(path)))  # unlike Path.resolve, no error for links in a circle
    with suppress(PermissionError):
        if place.exists() and not (place.is_file() or place.is_dir()):
            raise ValueError(f"{path} is neither a file nor a folder, and is not replaced; name a file.")
        if os.path.ismount(place):
            raise ValueError(f"{path} is mounted itself, and cannot be replaced; mount the folder in which it is.")
    return place


def _no_room(error: OSError, path: str | Path) -> OSError:
    way_out = "nothing was changed; make room there, or name another place"
    return OSError(error.errno, f"{os.strerror(error.errno or 0)}: {way_out}", str(path))


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
