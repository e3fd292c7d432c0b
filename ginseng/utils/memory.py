"""Amounts of memory: what is free, and budgets as people write them."""

import re
from pathlib import Path

import psutil

_CGROUP, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def free_memory() -> int:
    """Bytes that can be used still: of the machine, or of the container or job that this process is confined to.

    Examples
    --------
    >>> free_memory() > 0
    True
    """
    free = psutil.virtual_memory().available
    for group in _control_groups():
        limit = group / "memory.max"
        if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
            used = int((group / "memory.current").read_text())
            cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), flags=re.MULTILINE)
            free = min(free, max(int(allowed) - used + (int(cached[1]) if cached else 0), 0))
    return free


def _control_groups() -> list[Path]:
    """Folders of the control groups (version 2) that this process is in, from the innermost to the root."""
    own = re.search(r"^0::/(.*)$", _OWN_CGROUP.read_text(), flags=re.MULTILINE) if _OWN_CGROUP.is_file() else None
    innermost = _CGROUP / (own[1] if own else "")
    return [innermost, *(parent for parent in innermost.parents if parent.is_relative_to(_CGROUP))]


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
