"""What columns of labels and groups say: one rule for the names in them, wherever they are read."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from ginseng.utils.files import naming
from ginseng.utils.messages import shorten, unknown_name, warn

_NONE = frozenset(("", "nan", "na", "n/a", "#n/a", "none", "null", "<na>", "nat"))
_UNKNOWN = frozenset(
    (
        *("unknown", "unknown cell type", "unknown type", "unassigned", "not assigned", "unlabeled", "unlabelled"),
        *("not labeled", "not labelled", "unannotated", "not annotated", "undetermined", "not determined", "undefined"),
        *("not available", "not applicable", "not provided", "unspecified", "not specified", "unclassified"),
        *("unidentified", "missing", "?"),
    )
)
_WHOLE, _BROKEN = re.compile(r"(-?\d+)\.0+"), re.compile(r"-?\d+\.\d*[1-9]\d*")
_FEW = 20  # labels, which a handful of cells may have
_MANY, _TOO_MANY = 1 / 5, 1 / 2  # labels per cell
_N_SHOWN = 3  # in an example


def text_of(value: Any) -> str:
    """A value of a column as text; a whole float is the integer that it was.

    Examples
    --------
    >>> text_of(1.0), text_of(1), text_of(b"B"), text_of(" B"), text_of(True)
    ('1', '1', 'B', ' B', 'True')
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(int(value)) if _is_float(value) and float(value).is_integer() else str(value)


def _is_float(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, int | np.integer | np.bool_)


def names_in(column: Any, place: str, *, unused: bool = False) -> pd.Categorical:
    """The names in a column of labels, groups or clusters, missing where it is.

    Parameters
    ----------
    column : array-like
        Text, integers, whole floats, booleans, or categories of these.
    place : str
        Where they are, for messages.
    unused : bool
        Keep categories that no value has.

    Returns
    -------
    pandas.Categorical
        Of text, in the order of the categories, or sorted as the values are.

    Raises
    ------
    ValueError
        If the column holds floats that are not whole, or values that cannot be compared.

    Examples
    --------
    >>> names_in([1.0, None, 0.0], "adata.obs['leiden']")
    ['1', NaN, '0']
    Categories (2, object): ['0', '1']
    """
    with naming(place, "cannot be told apart"):  # lists, for one
        found = pd.Categorical(column)
    found = found if unused else found.remove_unused_categories()
    for value in found.categories:
        if _is_float(value) and not float(value).is_integer():
            raise ValueError(
                f"{place} holds measurements, such as {value:.4g}, where names are expected: pass another column, or "
                "make these text if they are names."
            )
    places, names = pd.factorize(np.array([*map(text_of, found.categories), None], dtype=object))
    return pd.Categorical.from_codes(places[found.codes], categories=pd.Index(names, dtype=object))


def says_none(name: str) -> bool:
    """Whether a name says that there is none, case and blanks aside: what became text of a missing value.

    Examples
    --------
    >>> says_none("nan"), says_none("N/A "), says_none(" "), says_none("Unknown"), says_none("NK")
    (True, True, True, False, False)
    """
    return name.strip().casefold() in _NONE


def says_unknown(name: str) -> bool:
    """Whether a name says that it is not known which it is, case and blanks aside.

    Examples
    --------
    >>> says_unknown("Unknown"), says_unknown("not_available"), says_unknown("nan"), says_unknown("unknown B")
    (True, True, False, False)
    """
    return name.strip() == "-" or re.sub(r"[\s_-]+", " ", name).strip().casefold() in _UNKNOWN


def without_none(names: pd.Categorical, known: Iterable[str] = ()) -> tuple[pd.Categorical, str]:
    """The names without those that say that there is none, and what is to be told of these ("" of none).

    Parameters
    ----------
    names : pandas.Categorical
        See `names_in`.
    known : iterable of str
        Names that stand for what they are called.

    Examples
    --------
    >>> without_none(pd.Categorical(["B", "nan", "NA"]), known=["NA"])
    (['B', NaN, 'NA']
    Categories (2, object): ['B', 'NA'], "1 says 'nan'")
    """
    known = set(known)
    return without(names, [name for name in names.categories if says_none(name) and name not in known])


def without(names: pd.Categorical, taken: Sequence[str]) -> tuple[pd.Categorical, str]:
    """The names without some of them, and how many cells have which of these.

    Examples
    --------
    >>> without(pd.Categorical(["B", "nan", "B"]), ["B"])[1]
    "2 say 'B'"
    """
    if not taken:
        return names, ""
    counts = _counts(names)
    said = [f"{counts[name]:,} {'says' if counts[name] == 1 else 'say'} {name!r}" for name in taken]
    return names.remove_categories(taken), shorten(said)


def declared(
    names: Iterable[str], unlabeled: str | Sequence[str], place: str | None = None, known: Iterable[str] = ()
) -> list[str]:
    """Which of the names are declared to say that there is no label, case and blanks aside.

    Where they have a `place`, what is declared and is not there is warned of, unless it is `known` otherwise.

    Examples
    --------
    >>> declared(["B", "unknown ", "Unknown"], "Unknown")
    ['unknown ', 'Unknown']
    """
    names = list(names)
    plain = {_plain(text): text for text in map(text_of, [unlabeled] if isinstance(unlabeled, str) else unlabeled)}
    if place is not None:
        there = {_plain(name) for name in (*names, *known)}
        for text in (text for name, text in plain.items() if name not in there and not says_none(text)):
            warn(f"Of `unlabeled`, {unknown_name('label', text, place, names)}")
    return [name for name in names if _plain(name) in plain]


def warn_of(names: pd.Categorical, place: str, kind: str = "label") -> None:
    """Warn of names that are taken at their word, and may not be meant so.

    Those that say that it is not known, that differ by blanks or case alone, that were integers before they became text
    by way of floats, or of which there are more than fit so many cells.

    Parameters
    ----------
    names : pandas.Categorical
        Of the cells that have one.
    place : str
        Where they are.
    kind : {"label", "group"}
        What they are.

    Raises
    ------
    ValueError
        If there are more labels than half the cells.

    Examples
    --------
    >>> warn_of(pd.Categorical(["B", "b"]), "adata.obs['type']")  # doctest: +SKIP
    """
    is_label, counts = kind == "label", _counts(names)
    n_cells, n_names = len(names), len(names.categories)
    if n_names > max(_FEW, _TOO_MANY * n_cells) and is_label:
        raise ValueError(
            f"{place} has {n_names:,} labels in {n_cells:,} cells: it looks like a name for each cell, not like cell "
            "types. Name another column, or merge the labels with `mapping`."
        )
    if n_names > max(_FEW, _MANY * n_cells):
        asked = "with the cell types? If it is, `mapping` can merge labels" if is_label else "of the donor or batch?"
        warn(f"{place} has {n_names:,} {kind}s in {n_cells:,} cells, few of each: is it the column {asked}")
    for name in filter(says_unknown, names.categories):
        way_out = (
            f"which is taken for a cell type: pass unlabeled=[{name!r}] to count them as not labelled, or "
            f"mapping={{{name!r}: None}}"
            if is_label
            else "and count as one group: leave them out if they are of several"
        )
        warn(f"{counts[name]:,} of {n_cells:,} cells are called {name!r} in {place}, {way_out}.")
    if alike := names_alike(names.categories):

        def worth(name: str) -> tuple[bool, int]:
            return name == " ".join(name.split()), counts[name]  # without superfluous blanks

        mapping = {name: max(names, key=worth) for names in alike for name in names}
        mapping = dict([(name, other) for name, other in mapping.items() if name != other][:_N_SHOWN])
        way_out = f"if they are the same, pass mapping={mapping!r}" if is_label else "rename them if they are the same"
        warn(f"Names that differ by blanks or case alone count as different {kind}s: {_shown(alike)}; {way_out}.")
    if n_names and all(map(_WHOLE.fullmatch, names.categories)):
        mapping = {name: name.partition(".")[0] for name in names.categories[:_N_SHOWN]}
        way_out = f": mapping={mapping!r} renames them" if is_label else ""
        shown = shorten(names.categories, _N_SHOWN)
        warn(f"The {kind}s of {place} look like integers that became floats ({shown}){way_out}.")


def warn_of_floats(column: Any, place: str) -> None:
    """Warn that floats count as the integers that they were.

    Examples
    --------
    >>> warn_of_floats(["B", "T"], "adata.obs['type']")
    """
    for value in list(filter(_is_float, pd.Categorical(column).remove_unused_categories().categories))[:1]:
        warn(f"{place} holds floats, which count as the integers that they were: {value} is '{text_of(value)}'.")


def names_alike(names: Iterable[str]) -> list[list[str]]:
    """Names that differ by blanks or case alone.

    Examples
    --------
    >>> names_alike(["B", "T cell", "b ", "T  Cell", "NK"])
    [['B', 'b '], ['T cell', 'T  Cell']]
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_plain(name), []).append(name)
    return [alike for alike in found.values() if len(alike) > 1]


def in_terms_of(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Which names are those of a model, written as the float or as the integer that they once were.

    Where any of them is a float that is not whole, such as ``"1.1"`` of a cluster within another, all are names.

    Examples
    --------
    >>> in_terms_of(["0.0", "1.0", "B"], ["0", "1"]), in_terms_of(["1.0", "1.1"], ["1", "2"])
    ({'0.0': '0', '1.0': '1'}, {})
    """
    names, known = list(names), list(known)
    if any(map(_BROKEN.fullmatch, (*names, *known))):
        return {}
    of_whole = {_whole(name): name for name in known}
    new = set(names) - set(known)
    return {name: of_whole[_whole(name)] for name in names if name in new and _whole(name) in of_whole}


def beside(name: str, taken: Iterable[str]) -> str:
    """A name for what has none, in brackets where that is taken.

    Examples
    --------
    >>> beside("no type", ["B"]), beside("no type", ["no type"])
    ('no type', '(no type)')
    """
    taken = set(taken)
    while name in taken:
        name = f"({name})"
    return name


def _plain(name: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", name).casefold())


def _whole(name: str) -> str:
    """A name without the ``.0`` of a whole float."""
    return _WHOLE.sub(r"\1", name) if _WHOLE.fullmatch(name) else name


def _counts(names: pd.Categorical) -> dict[str, int]:
    n_cells = np.bincount(names.codes[names.codes >= 0], minlength=len(names.categories))
    return dict(zip(names.categories, n_cells.tolist(), strict=True))


def _shown(alike: list[list[str]]) -> str:
    return shorten([" and ".join(map(repr, names)) for names in alike], _N_SHOWN)
