"""What is taken from the annotation of an AnnData: genes, labels, groups, and types that cells were given."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ginseng.metrics import NO_TYPE
from ginseng.utils.genes import match_genes
from ginseng.utils.labels import (
    beside,
    declared,
    names_in,
    text_of,
    warn_of,
    warn_of_floats,
    without,
    without_none,
)
from ginseng.utils.messages import UnknownName, require_one, shorten, unknown_name, warn
from ginseng.utils.values import is_integer, texts

Genes = str | int | np.integer | list[str] | np.ndarray | None


def require_column(obs: Any, kind: str, key: str | None, var: Any = None) -> None:
    """Raise a ValueError if the column of labels or groups does not exist, or there are several of its name."""
    if key is not None:
        if key not in obs.columns and var is not None and key in var.columns:
            error = unknown_name(f"{kind} column", key, "adata.obs", obs.columns)
            raise UnknownName(f"{error} adata.var has it: are cells and genes swapped? If so, pass adata.T.")
        require_one(f"{kind} column", key, "adata.obs", obs.columns)


def n_chosen(genes: Genes) -> int | None:
    """How many genes are to be chosen by their counts; None where they are chosen in another way, or all are kept.

    Raises
    ------
    ValueError
        If the number is below 1, or what is given is no choice of genes.

    Examples
    --------
    >>> n_chosen(2000), n_chosen(["CD3D", "CD4"])
    (2000, None)
    """
    if genes is None or isinstance(genes, str) or np.ndim(genes) > 0:
        return None
    if not is_integer(genes):
        raise ValueError(f"`genes` must be a column of adata.var, names, a mask, a number or None, but got {genes!r}.")
    if genes < 1:
        raise ValueError(f"The number of `genes` must be at least 1, but got {genes}; None keeps all.")
    return int(genes)


def chosen_names(var: pd.DataFrame, genes: Genes) -> list[str]:
    """Names of the chosen genes, each once, in the chosen order; all, where a number is to be chosen by their counts.

    Parameters
    ----------
    var : pandas.DataFrame
        Annotation of the genes, by their names, of which some may be equal, or "".
    genes : str, int, list of str, numpy.ndarray or None
        A boolean column of `var`, a boolean mask, names, a number, or None for all. Of equal names one is enough.

    Raises
    ------
    ValueError
        If there is no such column or name, or no gene is chosen.

    Examples
    --------
    >>> chosen_names(pd.DataFrame(index=["CD4", "CD3D", "CD4", ""]), None)
    ['CD4', 'CD3D']
    """
    names = np.array([str(name) for name in var.index], dtype=object)
    if genes is None or isinstance(genes, int | np.integer):
        chosen = names
    elif isinstance(genes, str):
        require_one("gene column", genes, "adata.var", var.columns)
        mask = var[genes].to_numpy()
        if mask.dtype != bool:
            raise ValueError(f"adata.var['{genes}'] must be a boolean column, but holds {mask.dtype}.")
        chosen = names[mask]
    elif np.asarray(genes).dtype == bool:
        if len(genes) != len(var):
            raise ValueError(f"`genes` is a mask of {len(genes):,} genes, but the data have {len(var):,}.")
        chosen = names[np.asarray(genes)]
    else:
        wanted = pd.Index(texts(genes, "gene"))
        if not wanted.is_unique:
            raise ValueError(f"`genes` must be unique; repeated: {shorten(wanted[wanted.duplicated()].unique(), 5)}.")
        is_there = np.isin(np.arange(len(wanted)), match_genes(names, wanted.to_numpy()))
        if not is_there.all():
            raise UnknownName(
                f"{(~is_there).sum():,} of {len(wanted):,} genes are not in the data: {shorten(wanted[~is_there], 5)}. "
                f"The data have: {shorten(names, 5)}."
            )
        chosen = wanted.to_numpy()
    unique = [str(name) for name in pd.unique(chosen) if name]
    if not unique:
        raise ValueError("No gene is chosen.")
    return unique


def labels_of(
    obs: Any, key: str, missing: str = "drop", mapping: Any = None, unlabeled: str | Sequence[str] = ()
) -> tuple[np.ndarray, pd.Categorical]:
    """Find which cells have a label, and the labels of those, by the rule of `ginseng.utils.labels`.

    Parameters
    ----------
    obs : pandas.DataFrame
        Annotation of the cells.
    key : str
        Column with the labels.
    missing : {"drop", "error"}
        Leave cells without a label out, with a warning that counts them, or refuse them.
    mapping : mapping, optional
        Other names of the labels, see `new_names`; cells whose label is mapped to None are left out without a word. A
        label that it names is kept even where it says that there is none.
    unlabeled : str or sequence of str
        Further labels that say that there is none.

    Returns
    -------
    labelled : numpy.ndarray
        Boolean, for every cell.
    labels : pandas.Categorical
        Labels of the labelled cells; the categories are sorted.

    Raises
    ------
    ValueError
        If the column does not exist or holds no labels, no cell has a label, cells without one are refused, or
        `mapping` does not fit.

    Examples
    --------
    >>> labelled, labels = labels_of(pd.DataFrame({"type": ["T", "B", "T"]}), "type")
    >>> labels.codes
    array([1, 0, 1], dtype=int8)
    """
    require_column(obs, "label", key)
    if missing not in ("drop", "error"):
        raise ValueError(f"`missing_labels` must be 'drop' or 'error', but got '{missing}'.")
    place = f"adata.obs['{key}']"
    found = names_in(obs[key], place)
    labels, said = without_none(found, () if mapping is None else mapping_of(mapping))
    way_out = "; to keep such a label, rename it by `mapping`" if said else ""
    is_left_out = np.zeros(len(obs), bool)
    if mapping is not None and len(labels.categories):
        names, codes = new_names(list(labels.categories), mapping, place)
        is_left_out = (labels.codes >= 0) & (np.append(codes, -1)[labels.codes] < 0)
        labels = pd.Categorical.from_codes(np.append(codes, -1)[labels.codes], pd.Index(names, dtype=object))
    labels, also_said = without(labels, declared(labels.categories, unlabeled, place, found.categories))
    labelled = labels.codes >= 0
    if n_missing := int((~labelled & ~is_left_out).sum()):
        said = ", ".join(filter(None, (said, also_said)))
        told = f"{n_missing:,} of {len(obs):,} cells have no label in {place}{said and f' ({said})'}"
        if missing == "error":
            raise ValueError(f"{told}{way_out}.")
        warn(f"{told} and are left out{way_out}.")
    labels = pd.Categorical(np.asarray(labels[labelled], dtype=object))
    if len(labels) == 0:
        raise ValueError(f"No cell has a label in {place}.")
    texts(labels.categories, f"{place}: label")
    warn_of_floats(obs[key], place)
    warn_of(labels, place)
    return labelled, labels


def require_two_labels(names: Sequence[str], place: str) -> None:
    """Raise a ValueError if there are too few labels to tell apart.

    Examples
    --------
    >>> require_two_labels(["B", "T"], "adata.obs['cell_type']")
    """
    if len(names) < 2:
        raise ValueError(f"A classifier needs at least two labels, but {place} has {list(names)}.")


def new_names(names: Sequence[str], mapping: Any, place: str) -> tuple[list[str], np.ndarray]:
    """Rename, merge and leave out labels.

    Parameters
    ----------
    names : sequence of str
        The labels there are.
    mapping : mapping
        The name to take for some of them, None to leave their cells out; the others keep theirs. Or what has such a
        ``mapping``, as `ginseng.harmonize` returns.
    place : str
        Where they are, for messages.

    Returns
    -------
    new : list of str
        The labels that are kept, sorted.
    codes : numpy.ndarray
        Position in `new` of each of `names`, -1 where it is left out.

    Raises
    ------
    ValueError
        If `mapping` is none, names what is not there, or leaves nothing.

    Examples
    --------
    >>> new_names(["B", "CD4 T", "CD8 T", "doublet"], {"CD4 T": "T", "CD8 T": "T", "doublet": None}, "the dataset")
    (['B', 'T'], array([ 0,  1,  1, -1]))
    """
    is_proposal = not isinstance(mapping, Mapping)  # of a whole study, of which these may be a part
    mapping = mapping_of(mapping)
    for name in mapping:
        if name not in names and not is_proposal:
            raise unknown_name("label", name, place, names)
    taken = [mapping.get(name, name) for name in names]
    if not any(taken):
        raise ValueError(f"`mapping` leaves no label of {place}: it maps all of {shorten(names)} to None.")
    new = sorted({name for name in taken if name is not None})
    return new, np.array([-1 if name is None else new.index(name) for name in taken])


def mapping_of(given: Any, argument: str = "mapping") -> dict[str, str | None]:
    """A mapping of names, given as such or as what has one, such as what `ginseng.harmonize` returns.

    Examples
    --------
    >>> mapping_of({"CD4 T": "T", "doublet": None})
    {'CD4 T': 'T', 'doublet': None}
    """
    found = getattr(given, "mapping", given)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"`{argument}` must be a dictionary of names, such as {{'CD4 T': 'T', 'doublet': None}}, or what "
            f"ginseng.harmonize returns, but got {given!r}."
        )
    for name, new in found.items():
        if new is not None and not (isinstance(new, str) and new):
            raise ValueError(f"`{argument}` must map '{name}' to a name, or to None to leave it out, but got {new!r}.")
    return {text_of(name): new for name, new in found.items()}


def groups_of(obs: Any, key: str, labelled: np.ndarray) -> pd.Categorical:
    """Groups of the labelled cells, each of which must have one; the categories are sorted."""
    require_column(obs, "group", key)
    place = f"adata.obs['{key}']"
    column = obs[key][labelled]
    groups, said = without_none(names_in(column, place))
    if n_missing := int((groups.codes < 0).sum()):
        said = said and f" ({said})"
        raise ValueError(f"{n_missing:,} cells have no group in {place}{said}; fill them in or leave them out.")
    groups = pd.Categorical(np.asarray(groups, dtype=object))
    texts(groups.categories, f"{place}: group")
    warn_of_floats(column, place)
    warn_of(groups, place, "group")
    return groups


def require_list(further: Sequence[str]) -> None:
    """Raise a ValueError if further columns are no list but one name.

    Examples
    --------
    >>> require_list(["tissue", "donor"])
    """
    if isinstance(further, str):
        raise ValueError(f"`further` must be a list of columns, such as ['{further}'], but got '{further}'.")


def further_of(obs: Any, key: str, labelled: np.ndarray) -> pd.Categorical:
    """What a further column says of the labelled cells, which may be nothing of some; the categories are sorted."""
    place = f"adata.obs['{key}']"
    found, said = without_none(names_in(obs[key][labelled], place))
    found = pd.Categorical(np.asarray(found, dtype=object))
    if not len(found.categories):
        raise ValueError(f"{place}, of `further`, says nothing of any cell that has a label.")
    if said:
        warn(f"{place}, of `further`, says nothing of some cells ({said}).")
    warn_of_floats(obs[key], place)
    return found


def given_types(obs: Any, key: str = "ginseng") -> pd.Series:
    """The type that `ginseng.classify` gave each cell, "no type" where it gave none ("(no type)" if one is called so).

    Raises
    ------
    ValueError
        If the cells are not annotated.

    Examples
    --------
    >>> given_types(pd.DataFrame({"ginseng_cell_type": ["B", None]})).tolist()
    ['B', 'no type']
    """
    name = f"{key}_cell_type"
    require_one("annotation", name, "the annotated cells", obs.columns)
    types = names_in(obs[name], f"column '{name}' of the annotated cells")
    found = pd.Series(np.asarray(types, dtype=object), obs.index, name=name)
    return found.fillna(beside(NO_TYPE, found.dropna()))
