"""Files from the network: kept in the cache, checked, and no larger than the disk has room for."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from tqdm.auto import tqdm

from ginseng.utils.files import replacing, require_writable_place

_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})")
_WAY_OUT = "set the environment variable XDG_CACHE_HOME to a folder that you may write to"
_HERE = ("localhost", "127.0.0.1", "::1")
_LEFT_FREE = 2**30  # bytes of the disk
_AT_ONCE = 2**20
_SECONDS = 30  # without a byte


def downloaded(url: str) -> Path:
    """Fetch a file into the cache, unless it is there; a broken transfer raises and leaves nothing behind.

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
        If the file cannot be fetched, is not what its digest says, or cannot be kept.

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
        if not path.exists() or (known is not None and pooch.file_hash(str(path)) != known):
            _require_writable(path)
            with replacing(path) as fresh:
                fetch: Any = _Fetch(is_checked=known is not None)
                pooch.retrieve(address, known_hash=known, fname=fresh.name, path=fresh.parent, downloader=fetch)
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
    """Writes what is at a URL to a file, as pooch asks, with a bar that shows its size."""

    is_checked: bool

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        with requests.get(url, stream=True, timeout=_SECONDS) as answer:
            answer.raise_for_status()
            if not self.is_checked and not _is_safe(answer.url):
                raise OSError(f"it leads to {answer.url}, over http")
            declared = answer.headers.get("content-length")
            size = int(declared) if declared and "content-encoding" not in answer.headers else None
            room = max(shutil.disk_usage(Path(output_file).parent).free - _LEFT_FREE, 0)
            if size is not None and size > room:
                raise OSError(f"it has {size:,} bytes, and the disk of the cache has room for {room:,}")
            n_read = 0
            with (
                Path(output_file).open("wb") as file,
                tqdm(total=size, unit="B", unit_scale=True, desc=Path(url).name) as bar,
            ):
                for part in answer.iter_content(_AT_ONCE):
                    n_read += len(part)
                    if n_read > (room if size is None else size):
                        raise OSError(f"more than {room if size is None else size:,} bytes came")
                    file.write(part)
                    bar.update(len(part))
        if size is not None and n_read < size:
            raise OSError(f"{n_read:,} of {size:,} bytes came")
