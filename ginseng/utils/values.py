"""Numbers and names that a caller or a file gave, each kind held to one rule."""

from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

_LONGEST = 1000  # characters of a name
_SHOWN = 40


class WrongValue(ValueError):
    """An argument that cannot be meant, whatever the data are."""


def is_integer(value: Any) -> TypeGuard[int | np.integer]:
    """Whether a value is an integer, Python's or NumPy's; True and False are none.

    Examples
    --------
    >>> is_integer(np.int64(3)), is_integer(3.0), is_integer(True)
    (True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def require_integer(name: str, value: Any, least: int, below: int | None = None) -> None:
    """Raise a ValueError, which names what the caller typed, unless a value is an integer of at least `least`.

    Examples
    --------
    >>> require_integer("batch_size", 2.5, 1)
    Traceback (most recent call last):
        ...
    ginseng.utils.values.WrongValue: `batch_size` must be an integer of at least 1, but got 2.5.
    """
    if not is_integer(value) or value < least or (below is not None and value >= below):
        rule = f"of at least {least}" if below is None else f"in [{least}, {below})"
        raise WrongValue(f"`{name}` must be an integer {rule}, but got {value!r}.")


def require_number(name: str, value: Any, interval: str) -> None:
    """Raise a ValueError, which names what the caller typed, unless a value lies in an interval, such as ``"[0, 1)"``.

    Examples
    --------
    >>> require_number("target_sum", 0.0, "(0, inf)")
    Traceback (most recent call last):
        ...
    ginseng.utils.values.WrongValue: `target_sum` must lie in (0, inf), but got 0.0.
    """
    low, high = map(float, interval[1:-1].split(", "))
    try:
        float(value)
        is_above = low <= value if interval[0] == "[" else low < value
        is_below = value <= high if interval[-1] == "]" else value < high
        is_inside = not isinstance(value, bool | np.bool_) and bool(is_above and is_below)
    except (TypeError, ValueError, OverflowError):  # it is no number, or none of the machine
        is_inside = False
    if not is_inside:
        raise WrongValue(f"`{name}` must lie in {interval}, but got {value!r}.")


def require_flag(name: str, value: Any) -> None:
    """Raise a ValueError, which names what the caller typed, unless a value is True or False.

    Examples
    --------
    >>> require_flag("normalize", "no")
    Traceback (most recent call last):
        ...
    ginseng.utils.values.WrongValue: `normalize` must be True or False, but got 'no'.
    """
    if not isinstance(value, bool | np.bool_):
        raise WrongValue(f"`{name}` must be True or False, but got {value!r}.")


def require_flags(**flags: Any) -> None:
    """Raise a ValueError, which names the first that is neither True nor False: "no" would be true.

    Examples
    --------
    >>> require_flags(randomness="no", silent=True)
    Traceback (most recent call last):
        ...
    ginseng.utils.values.WrongValue: `randomness` must be True or False, but got 'no'.
    """
    for name, value in flags.items():
        require_flag(name, value)


def require_kind(name: str, value: Any, kind: type) -> None:
    """Raise a ValueError, which names what the caller typed, unless a value is of a kind.

    Examples
    --------
    >>> require_kind("devices", 3, str)
    Traceback (most recent call last):
        ...
    ginseng.utils.values.WrongValue: `devices` must be a str, but got 3.
    """
    if not isinstance(value, kind):
        raise WrongValue(f"`{name}` must be a {kind.__name__}, but got {value!r}.")


def texts(names: Iterable[Any], kind: str) -> np.ndarray:
    """Names as an array of Python's texts: of an array of fixed width each takes as much memory as the longest.

    Raises
    ------
    ValueError
        If one has more than 1,000 characters.

    Examples
    --------
    >>> texts(["CD3D", b"CD4"], "gene")
    array(['CD3D', 'CD4'], dtype=object)
    """
    found = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    longest = max(found, key=len, default="")
    if len(longest) > _LONGEST:
        raise ValueError(
            f"{kind} '{longest[:_SHOWN]}...' has {len(longest):,} characters, where a name has {_LONGEST:,} at most: "
            "rename it, or leave it out."
        )
    return np.array(found, dtype=object)
