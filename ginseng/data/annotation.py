"""What is taken from the annotation of an AnnData: genes, labels, groups, and types that cells were given."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ginseng.metrics import NO_TYPE
from ginseng.utils.messages import UnknownName, require_one, shorten, unknown_name, warn
from ginseng.utils.values import is_integer, texts

Genes = str | int | np.integer | list[str] | np.ndarray | None


def require_column(obs: Any, kind: str, key: str | None) -> None:
    """Raise a ValueError if the column of labels or groups does not exist, or there are several of its name."""
    if key is not None:
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


def gene_columns(var: pd.DataFrame, genes: Genes) -> np.ndarray:
    """Indices of the chosen genes, in the chosen order; all, where a number is to be chosen by their counts."""
    if genes is None or isinstance(genes, int | np.integer):
        columns = np.arange(len(var))
    elif isinstance(genes, str):
        require_one("gene column", genes, "adata.var", var.columns)
        mask = var[genes].to_numpy()
        if mask.dtype != bool:
            raise ValueError(f"adata.var['{genes}'] must be a boolean column, but holds {mask.dtype}.")
        columns = np.flatnonzero(mask)
    elif np.asarray(genes).dtype == bool:
        if len(genes) != len(var):
            raise ValueError(f"`genes` is a mask of {len(genes):,} genes, but the data have {len(var):,}.")
        columns = np.flatnonzero(genes)
    else:
        names = pd.Index(texts(genes, "gene"))
        if not names.is_unique:
            raise ValueError(f"`genes` must be unique; repeated: {shorten(names[names.duplicated()].unique(), 5)}.")
        lacking = names.difference(var.index, sort=False)
        if len(lacking):
            raise UnknownName(
                f"{len(lacking):,} of {len(names):,} genes are not in the data: {shorten(lacking, 5)}. "
                f"The data have: {shorten(var.index, 5)}."
            )
        columns = np.flatnonzero(var.index.isin(names))
        columns = columns[np.argsort(names.get_indexer(var.index[columns]), kind="stable")]
    if len(columns) == 0:
        raise ValueError("No gene is chosen.")
    chosen = var.index[columns]
    if not chosen.is_unique:
        raise ValueError(
            f"Genes must be unique; repeated: {shorten(chosen[chosen.duplicated()].unique(), 5)}. "
            "Call adata.var_names_make_unique() first."
        )
    return columns


def positions_of(columns: np.ndarray, n_genes: int) -> np.ndarray:
    """For each gene of the data its position among the chosen ones, or -1."""
    positions = np.full(n_genes, -1)
    positions[columns] = np.arange(len(columns))
    return positions


def labels_of(obs: Any, key: str, missing: str = "drop", mapping: Any = None) -> tuple[np.ndarray, pd.Categorical]:
    """Find which cells have a label that is not empty, and the labels of those.

    Parameters
    ----------
    obs : pandas.DataFrame
        Annotation of the cells.
    key : str
        Column with the labels.
    missing : {"drop", "error"}
        Leave cells without a label out, with a warning that counts them, or refuse them.
    mapping : mapping, optional
        Other names of the labels, see `new_names`; cells whose label is mapped to None count as not labelled.

    Returns
    -------
    labelled : numpy.ndarray
        Boolean, for every cell.
    labels : pandas.Categorical
        Labels of the labelled cells; the categories are sorted.

    Raises
    ------
    ValueError
        If the column does not exist, no cell has a label, cells without one are refused, or `mapping` does not fit.

    Examples
    --------
    >>> labelled, labels = labels_of(pd.DataFrame({"type": ["T", "B", "T"]}), "type")
    >>> labels.codes
    array([1, 0, 1], dtype=int8)
    """
    require_column(obs, "label", key)
    if missing not in ("drop", "error"):
        raise ValueError(f"`missing_labels` must be 'drop' or 'error', but got '{missing}'.")
    labelled = _is_named(obs[key])
    n_missing = int((~labelled).sum())
    if n_missing and missing == "error":
        raise ValueError(f"{n_missing:,} of {len(obs):,} cells have no label in adata.obs['{key}'].")
    if n_missing:
        warn(f"{n_missing:,} of {len(obs):,} cells have no label in adata.obs['{key}'] and are left out.")
    labels = _sorted_categorical(obs[key], labelled, "label")
    if len(labels) == 0:
        raise ValueError(f"No cell has a label in adata.obs['{key}'].")
    if mapping is not None:
        names, codes = new_names(list(labels.categories), mapping, f"adata.obs['{key}']")
        codes = codes[labels.codes]
        labelled[labelled] = codes >= 0
        labels = pd.Categorical.from_codes(codes[codes >= 0], pd.Index(names))
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
    return {str(name): new for name, new in found.items()}


def groups_of(obs: Any, key: str, labelled: np.ndarray) -> pd.Categorical:
    """Groups of the labelled cells, each of which must have one; the categories are sorted."""
    require_column(obs, "group", key)
    n_missing = int((~_is_named(obs[key])[labelled]).sum())
    if n_missing:
        raise ValueError(f"{n_missing:,} cells have no group in adata.obs['{key}']; fill them in or leave them out.")
    return _sorted_categorical(obs[key], labelled, "group")


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
    found = pd.Categorical(obs[key].astype(str).where(_is_named(obs[key]))[labelled].to_numpy(dtype=object))
    if not len(found.categories):
        raise ValueError(f"adata.obs['{key}'], of `further`, says nothing of any cell that has a label.")
    return found


def _is_named(column: Any) -> np.ndarray:
    """Which cells have a label or a group that is not missing or empty."""
    return column.notna().to_numpy() & (column.astype(str) != "").to_numpy(dtype=bool)


def _sorted_categorical(column: Any, cells: np.ndarray, kind: str) -> pd.Categorical:
    found = pd.Categorical(column[cells].astype(str).to_numpy(dtype=object))
    texts(found.categories, kind)
    return found


def given_types(obs: Any, key: str = "ginseng") -> pd.Series:
    """The type that `ginseng.classify` gave each cell, "no type" where it gave none.

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
    return obs[name].astype(object).where(obs[name].notna(), NO_TYPE).astype(str)
