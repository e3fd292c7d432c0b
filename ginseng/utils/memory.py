"""Amounts of memory: what is free, and budgets as people write them."""

import re
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def free_memory() -> int:
    """Bytes that can be used still: of the machine, or of the container or job that this process is confined to.

    Examples
    --------
    >>> free_memory() > 0
    True
    """
    free = psutil.virtual_memory().available
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (allowed := limit.read_text().strip()).isdigit():
        free = min(free, max(int(allowed) - int(used.read_text()), 0))
    return free


def bytes_of(amount: int | str) -> int:
    """Bytes of an amount of memory: a number of bytes, or a text such as ``"256 MB"`` or ``"1.5GiB"``.

    Raises
    ------
    ValueError
        If the text is no amount, or the amount is not positive.

    Examples
    --------
    >>> bytes_of("1.5 GB"), bytes_of("2MiB"), bytes_of(512)
    (1500000000, 2097152, 512)
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]I?)?B?\s*", str(amount).upper())
    try:
        n_bytes = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    except ValueError:
        n_bytes = 0
    if n_bytes < 1:
        raise ValueError(f"An amount of memory must be like 256_000_000, '256 MB' or '1.5 GiB', but got {amount!r}.")
    return n_bytes
