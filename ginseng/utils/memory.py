"""Amounts of memory: what is free, and budgets as people write them."""

import re
from pathlib import Path

import psutil

_CONTROL_GROUPS, _OWN_CONTROL_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SMALLEST_BUFFER, _LARGEST_BUFFER = 2**26, 2**30  # bytes
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def free_memory(control_groups: Path = _CONTROL_GROUPS, own: Path = _OWN_CONTROL_GROUP) -> int:
    """Bytes that can be used still: of the machine, or of the container or job that this process is confined to.

    Parameters
    ----------
    control_groups : Path
        Where Linux shows control groups (version 2), which confine.
    own : Path
        The file that tells in which of them this process is.

    Examples
    --------
    >>> free_memory() > 0
    True
    """
    free = psutil.virtual_memory().available
    named = re.search(r"^0::/(.*)$", own.read_text(), flags=re.MULTILINE) if own.is_file() else None
    innermost = control_groups / (named[1] if named else "")
    for group in (innermost, *(parent for parent in innermost.parents if parent.is_relative_to(control_groups))):
        limit = group / "memory.max"
        if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
            used = int((group / "memory.current").read_text())
            cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), flags=re.MULTILINE)
            free = min(free, max(int(allowed) - used + (int(cached[1]) if cached else 0), 0))
    return free


def default_budget(n_bytes: int, free: int) -> int:
    """Bytes that counts of `n_bytes` may take where so many are free: all of theirs, or a buffer if that is over half.

    Examples
    --------
    >>> default_budget(300, free=10**9), default_budget(10**12, free=10**9)
    (300, 500000000)
    """
    return n_bytes if n_bytes <= free // 2 else max(SMALLEST_BUFFER, min(_LARGEST_BUFFER, free // 2))


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
    except (OverflowError, ValueError):
        n_bytes = 0
    if n_bytes < 1:
        raise ValueError(f"An amount of memory must be like 256_000_000, '256 MB' or '1.5 GiB', but got {amount!r}.")
    return n_bytes
