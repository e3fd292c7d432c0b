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
