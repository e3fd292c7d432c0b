"""Messages that name what is wrong, what there is, and the nearest name, and point at the caller's line."""

import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

_NOT_CALLERS = ("ginseng", "jaxtyping")  # the latter wraps functions where types are checked at run time


class Caller(NamedTuple):
    """A line of code outside this package.

    Attributes
    ----------
    file : str
        Its file.
    line : int
        Its number.
    names : dict
        Globals of its module.
    """

    file: str
    line: int
    names: dict[str, Any]


def caller() -> Caller:
    """The line outside this package that called into it.

    Examples
    --------
    >>> caller().names["__name__"].partition(".")[0] == "ginseng"
    False
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_CALLERS:
        frame = frame.f_back
    return Caller(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


def warn(text: str, at: Caller | None = None) -> None:
    """Warn from the line that called into this package, or from another, as a thread has to.

    Examples
    --------
    >>> warn("3 genes are unknown.")  # doctest: +SKIP
    """
    at = caller() if at is None else at
    registry = at.names.setdefault("__warningregistry__", {})
    warnings.warn_explicit(text, UserWarning, at.file, at.line, at.names.get("__name__"), registry)


class UnknownName(KeyError, ValueError):
    """A name that is not where it was looked for: a KeyError, as in ginseng 0.2.1, and a ValueError."""

    def __str__(self) -> str:
        return str(self.args[0])


def unknown_name(kind: str, name: str, place: str, options: Iterable[str]) -> UnknownName:
    """Build the error for a name that is not where it was looked for.

    Parameters
    ----------
    kind : str
        What the name stands for, e.g. ``"label column"``.
    name : str
        The name that was asked for.
    place : str
        Where it was looked for, e.g. ``"adata.obs"``.
    options : iterable of str
        The names that exist there.

    Returns
    -------
    UnknownName
        To be raised by the caller.

    Examples
    --------
    >>> print(unknown_name("label column", "celltype", "adata.obs", ["cell_type", "donor"]))
    label column 'celltype' is not in adata.obs; did you mean 'cell_type'? It has: cell_type, donor.
    """
    options, name = [str(option) for option in options], in_short(name)
    close = {option.lower(): option for option in options}
    matches = get_close_matches(name.lower(), close, n=1)
    nearest = f"; did you mean '{in_short(close[matches[0]])}'?" if matches else "."
    return UnknownName(f"{kind} '{name}' is not in {place}{nearest} It has: {shorten(options) or 'nothing'}.")


def require_one(kind: str, name: str, place: str, options: Iterable[str]) -> None:
    """Raise a ValueError unless a name is where it is looked for, and only once: pandas takes a name twice.

    Parameters
    ----------
    kind, name, place, options
        See `unknown_name`.

    Examples
    --------
    >>> require_one("label column", "cell_type", "adata.obs", ["cell_type", "cell_type"])
    Traceback (most recent call last):
        ...
    ValueError: label column 'cell_type' is in adata.obs 2 times: rename or drop the others.
    """
    options = list(options)
    if name not in options:
        raise unknown_name(kind, name, place, options)
    if (n_found := options.count(name)) > 1:
        raise ValueError(f"{kind} '{name}' is in {place} {n_found} times: rename or drop the others.")


def shorten(names: Iterable[object], n_shown: int = 12) -> str:
    """Join names for a message, leaving the tail of a long list out.

    Examples
    --------
    >>> shorten(["a", "b", "c"], n_shown=2)
    'a, b, ... (1 more)'
    """
    names = list(names)
    shown = ", ".join(map(in_short, names[:n_shown]))
    n_more = len(names) - n_shown
    return f"{shown}, ... ({n_more:,} more)" if n_more > 0 else shown


def in_short(text: object, n_shown: int = 400) -> str:
    """What another package or a file says, cut where it goes on: what a file holds may stand in it.

    Examples
    --------
    >>> in_short("no such codec", n_shown=7)
    'no such...'
    """
    told = str(text)
    return printable(told if len(told) <= n_shown else f"{told[:n_shown]}...")


def printable(text: str, kept: str = "") -> str:
    r"""Escape what does not print, but for characters that are kept: a name may hold what a terminal would obey.

    Examples
    --------
    >>> print(printable("AAAC-1\r"), printable("γδ T"))
    AAAC-1\r γδ T
    """
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)
