"""Files from the network: kept in the cache, checked, and no larger than the disk has room for."""

import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import h5py
import pooch
import requests
from tqdm.auto import tqdm

from ginseng.utils.files import replacing, require_writable_place
from ginseng.utils.hdf5 import is_locked
from ginseng.utils.kinds import first_bytes, kind_of_file

_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})")
_WAY_OUT = "set the environment variable XDG_CACHE_HOME to a folder that you may write to"
_HERE = ("localhost", "127.0.0.1", "::1")
_LEFT_FREE = 2**30  # bytes of the disk
_AT_ONCE = 2**13
_SECONDS = 30  # without a byte
_SLOWEST, _WATCHED = 1000, 60  # bytes per second, on average over so many seconds


def downloaded(url: str) -> Path:
    """Fetch an HDF5 file into the cache, unless it is there; a broken transfer raises and leaves nothing behind.

    What does not open is not kept, such as the page of a portal in place of the file. A server that sends less than
    1 kB per second over a minute is given up.

    Parameters
    ----------
    url : str
        An https address; one of http only of this machine, or with a digest. A fragment ``#sha256=...``, of 64
        hexadecimal digits, tells what the file must be: another is refused, and not kept.

    Returns
    -------
    Path
        The file in the cache folder of this user.

    Raises
    ------
    ValueError
        If the file cannot be fetched, is no HDF5 file or not what its digest says, or cannot be kept.

    Examples
    --------
    >>> downloaded("http://example.com/cells.h5ad")
    Traceback (most recent call last):
        ...
    ValueError: http://example.com/cells.h5ad is not fetched over http, which anyone between can change: use https, or \
add the digest that the file must have, as #sha256=...
    """
    address, _, fragment = url.partition("#")
    digest = _DIGEST.fullmatch(fragment)
    if fragment and not digest:
        raise ValueError(f"{url} must end with #sha256= and 64 hexadecimal digits, or with neither.")
    if not _is_safe(address) and not digest:
        raise ValueError(
            f"{address} is not fetched over http, which anyone between can change: use https, or add the digest that "
            "the file must have, as #sha256=..."
        )
    pooch.get_logger().setLevel("WARNING")
    path = cache_folder() / pooch.utils.unique_file_name(address)
    known = digest[1].lower() if digest else None
    try:
        if not _opens(path) or (known is not None and pooch.file_hash(str(path)) != known):
            _require_writable(path)
            with replacing(path) as fresh:
                fetch: Any = _Fetch(is_checked=known is not None)
                pooch.retrieve(address, known_hash=known, fname=fresh.name, path=fresh.parent, downloader=fetch)
                if not _opens(fresh):
                    kind = kind_of_file(fresh)
                    raise ValueError(f"it is {kind.name}, beginning with {first_bytes(fresh)}: {kind.way_out}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{url} could not be downloaded ({error}); nothing was kept.") from error
    return path


def cache_folder() -> Path:
    """Where files of this user are kept between runs: ``ginseng`` in ``XDG_CACHE_HOME``, or where the system says.

    Raises
    ------
    ValueError
        If there is no such place.

    Examples
    --------
    >>> cache_folder().name
    'ginseng'
    """
    try:
        folder = Path(pooch.os_cache("ginseng"))
    except RuntimeError:  # of platformdirs; earlier ones answer with a folder named ~
        folder = Path()
    if not folder.is_absolute():
        raise ValueError(f"There is no home folder to keep files in: {_WAY_OUT}.")
    return folder


def _opens(path: Path) -> bool:
    try:
        h5py.File(path).close()
    except OSError as error:
        return is_locked(error)
    return True


def _require_writable(path: Path) -> None:
    try:
        require_writable_place(path)
    except (OSError, ValueError) as error:
        raise type(error)(f"{str(error).rstrip('.')}: {_WAY_OUT}") from error


def _is_safe(url: str) -> bool:
    """Whether nobody between can change what comes from a URL."""
    parts = urlsplit(url)
    return parts.scheme != "http" or parts.hostname in _HERE


@dataclass(frozen=True)
class _Fetch:
    """Writes what is at a URL to a file, as pooch asks, and gives up a server that is too slow."""

    is_checked: bool

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        transfer = _Transfer(url, Path(output_file), self.is_checked)
        transfer.start()
        try:
            while transfer.is_alive():
                before = transfer.n_read
                transfer.join(_WATCHED)
                if transfer.is_alive() and (n_read := transfer.n_read - before) < _SLOWEST * _WATCHED:
                    raise OSError(f"the server sent {n_read:,} bytes in {_WATCHED:g} seconds, and was given up")
        finally:
            transfer.is_given_up = True
        if transfer.error is not None:
            raise transfer.error


class _Transfer(threading.Thread):
    """Writes what is at a URL to a file, with a bar: a thread, since a server may send a byte now and then for ever."""

    def __init__(self, url: str, path: Path, is_checked: bool):
        super().__init__(daemon=True)
        self._url, self._path, self._is_checked = url, path, is_checked
        self.n_read, self.is_given_up = 0, False
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._write()
        except Exception as error:  # raised by the thread that waits
            self.error = error

    def _require_safe(self, answer: requests.Response, **_: Any) -> None:
        """Refuse to be led on over http: whoever is between could change where it leads to, or what comes."""
        if answer.is_redirect and not self._is_checked:
            target = urljoin(answer.url, answer.headers["location"])
            if not _is_safe(target):
                raise OSError(f"it leads to {target}, over http")

    def _write(self) -> None:
        hooks = {"response": self._require_safe}
        with requests.get(self._url, stream=True, timeout=_SECONDS, hooks=hooks) as answer:
            answer.raise_for_status()
            declared = answer.headers.get("content-length")
            size = int(declared) if declared and "content-encoding" not in answer.headers else None
            room = max(shutil.disk_usage(self._path.parent).free - _LEFT_FREE, 0)
            if size is not None and size > room:
                raise OSError(f"it has {size:,} bytes, and the disk of the cache has room for {room:,}")
            with (
                self._path.open("wb") as file,
                tqdm(total=size, unit="B", unit_scale=True, desc=Path(self._url).name) as bar,
            ):
                for part in answer.iter_content(_AT_ONCE):
                    if self.is_given_up:
                        return
                    self.n_read += len(part)
                    if self.n_read > (room if size is None else size):
                        raise OSError(f"more than {room if size is None else size:,} bytes came")
                    file.write(part)
                    bar.update(len(part))
        if size is not None and self.n_read < size:
            raise OSError(f"{self.n_read:,} of {size:,} bytes came")
