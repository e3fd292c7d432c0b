"""Short names for the contents of arrays."""

import hashlib
from typing import Any

import numpy as np


def digest(*arrays: Any) -> str:
    """Give a short name to the contents of arrays, and of lists of names.

    Examples
    --------
    >>> digest(np.arange(3)) == digest(np.arange(3)), digest(np.arange(3)) == digest(np.arange(4))
    (True, False)
    >>> digest(["B", "NK"]) == digest(np.array(["B", "NK"]))
    True
    """
    contents = hashlib.blake2b(digest_size=8)
    for array in arrays:
        if isinstance(array, list):  # the bytes of an array of fixed width, one name after the other
            width = max(map(len, array), default=0)
            for name in array:
                contents.update(name.ljust(width, "\0").encode("utf-32-le", "surrogatepass"))
        else:
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
