"""Short names for the contents of arrays."""

import hashlib
from typing import Any

import numpy as np


def digest(*arrays: Any) -> str:
    """Give a short name to the contents of arrays.

    Examples
    --------
    >>> digest(np.arange(3)) == digest(np.arange(3)), digest(np.arange(3)) == digest(np.arange(4))
    (True, False)
    """
    contents = hashlib.blake2b(digest_size=8)
    for array in arrays:
        contents.update(np.ascontiguousarray(array).tobytes())
    return contents.hexdigest()


def require_digest(expected: str | None, found: str, what: str) -> None:
    """Raise a ValueError if contents are no longer what they were when their digest was written, if it was.

    Examples
    --------
    >>> require_digest("00d5", "ff32", "the weights")
    Traceback (most recent call last):
        ...
    ValueError: the weights have changed since they were written: the digest kept with them is another
    """
    if expected is not None and expected != found:
        raise ValueError(f"{what} have changed since they were written: the digest kept with them is another")
