"""Hidden folders for what is being written; those of processes that have died are told from others, and removed."""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".ginseng-unfinished-"
_LOCK, _NEW, _OLD, _REPLACED = "lock", "new", "old", "replaced"  # what a workspace may hold
_ATTEMPTS, _MOMENT = 200, 0.02  # at what other threads and processes disturb, and seconds between two of them
_AT_WORKING_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def _kernel() -> str:
    """Name the running kernel: the one whose processes see each other's locks on any file system."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        text = str(uuid.getnode())
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


_OF_THIS_KERNEL = f"{PREFIX}{_kernel()}-"


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Give an empty folder within `parent` that goes with the block, or else with the next workspace there.

    A process that is killed leaves its workspace behind. A workspace holds a file that its process keeps locked, and
    the kernel gives up the locks of a process however it ends: a file that is not locked is of a dead one. Process
    numbers would not do, since they are given again, and differ between containers. Not every file system passes locks
    on to other machines, so workspaces that another machine made (or this one, before it was started anew) are left,
    like those of other users and of file systems without locks.

    Parameters
    ----------
    parent : Path
        An existing folder.

    Yields
    ------
    Path
        An empty folder of the same file system.

    Examples
    --------
    >>> import tempfile
    >>> parent = Path(tempfile.mkdtemp())
    >>> with workspace(parent) as folder:
    ...     _ = (folder / "table.csv").write_text("gene,mean")
    >>> list(parent.iterdir())
    []
    """
    remove_leftovers(parent)
    space, lock = _begin(parent)
    try:
        (space / _NEW).mkdir()
        yield space / _NEW
    finally:
        _clear(space)
        lock.close()


def temporary_folder() -> AbstractContextManager[Path]:
    """Give a workspace in the folder for temporary files (``TMPDIR``).

    Examples
    --------
    >>> with temporary_folder() as folder:
    ...     _ = (folder / "table.csv").write_text("gene,mean")
    """
    return workspace(Path(tempfile.gettempdir()))


def remove_leftovers(parent: Path) -> None:
    """Remove the workspaces of dead processes in a folder, see `workspace`; what one had moved away is put back.

    Examples
    --------
    >>> remove_leftovers(Path())
    """
    if fcntl is None:
        return
    ours = re.compile(f"{re.escape(_OF_THIS_KERNEL)}[0-9a-f]{{16}}")
    with suppress(OSError):
        for entry in list(os.scandir(parent)):
            if ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove_if_dead(Path(entry.path))


def put_in_place(fresh: Path, path: Path) -> None:
    """Put a folder made in a workspace where another may be, whatever other processes do there meanwhile.

    Linux swaps the two in one step on most file systems. Elsewhere `path` is away for a moment; if the process dies in
    it, `remove_leftovers` puts it back.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.zarr"
    >>> with workspace(path.parent) as folder:
    ...     (folder / "cells.zarr").mkdir()
    ...     put_in_place(folder / "cells.zarr", path)
    >>> path.is_dir()
    True
    """
    space = fresh.parent.parent
    old = space / _OLD
    for attempt in range(_ATTEMPTS):
        try:
            fresh.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt + 1 == _ATTEMPTS:
                raise
        else:
            break
        if _exchange(fresh, path):
            fresh.parent.rename(space / _REPLACED)
            return
        shutil.rmtree(old, ignore_errors=True)  # another process has put its own in the place of that
        old.mkdir()
        with suppress(FileNotFoundError):
            path.rename(old / path.name)
    if old.exists():
        old.rename(space / _REPLACED)


def moved_away(path: Path) -> Path | None:
    """Where what was at `path` is, if a process died, or was stopped, while putting another in its place.

    Examples
    --------
    >>> moved_away(Path("cells.zarr"))
    """
    places = (space / _OLD / path.name for space in path.absolute().parent.glob(f"{PREFIX}*"))
    return next((place for place in places if place.exists()), None)


def _begin(parent: Path) -> tuple[Path, IO[str]]:
    """Make a workspace, and again if another process took it for a dead one's before it was locked."""
    while True:
        space = parent / f"{_OF_THIS_KERNEL}{uuid.uuid4().hex[:16]}"
        space.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            lock = (space / _LOCK).open("w")
            with suppress(OSError):  # of file systems without locks
                if not _locked(lock):
                    lock.close()
                    continue
            if (space / _LOCK).exists():
                return space, lock
            lock.close()


def _locked(file: IO[str]) -> bool:
    """Lock a file, unless another has; an OSError where there are no locks."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "no locks on this system")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_dead(space: Path) -> None:
    if space.stat().st_uid != os.getuid():
        return
    try:
        lock = (space / _LOCK).open("r+")
    except FileNotFoundError:
        space.rmdir()  # its process died before there was anything in it; else this fails
        return
    with lock:
        if _locked(lock):
            _clear(space)


def _clear(space: Path) -> None:
    """Remove a workspace, in which threads that were interrupted may still be writing; its lock last of all."""
    for kept in (space / _OLD).glob("*"):
        if not (space.parent / kept.name).exists():
            kept.rename(space.parent / kept.name)
    for _ in range(_ATTEMPTS):
        is_quiet = not any((space / _NEW).glob("*"))
        for name in (_NEW, _OLD, _REPLACED):
            shutil.rmtree(space / name, ignore_errors=True)
        if is_quiet:
            with suppress(OSError):
                (space / _LOCK).unlink(missing_ok=True)
                space.rmdir()
                return
        time.sleep(_MOMENT)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; whether the system can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_WORKING_FOLDER, os.fsencode(first), _AT_WORKING_FOLDER, os.fsencode(second), _EXCHANGE) == 0
