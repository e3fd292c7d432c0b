"""Choosing among the labels of a model: what can be in the data, and probabilities over that."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from ginseng.model.hierarchy import Hierarchy
from ginseng.utils.messages import unknown_name


def chosen_labels(
    labels: Sequence[str],
    only: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    hierarchy: Hierarchy | None = None,
) -> Bool[np.ndarray, " labels"]:
    """Which labels can be given.

    Parameters
    ----------
    labels : sequence of str
        Of the model.
    only : str or sequence of str, optional
        Labels that can be there.
    exclude : str or sequence of str, optional
        Labels that cannot.
    hierarchy : Hierarchy, optional
        Whose parents stand for the labels below them.

    Returns
    -------
    numpy.ndarray
        True for labels that can be given; without `only` and `exclude` all can.

    Raises
    ------
    ValueError
        If both are given, a name is unknown, or no label is left.

    Examples
    --------
    >>> chosen_labels(["B", "NK", "T"], exclude="NK")
    array([ True, False,  True])
    """
    if only is not None and exclude is not None:
        raise ValueError("`only` and `exclude` say the same in two ways: pass one of them.")
    names = only if only is not None else exclude
    if names is None:
        return np.ones(len(labels), bool)
    if not isinstance(names, str | Iterable):
        raise ValueError(f"`only` and `exclude` take names of types, but got {names!r}.")
    below = {label: np.asarray(labels, object) == label for label in labels}
    if hierarchy is not None:
        below |= dict(zip(hierarchy.nodes, hierarchy.below, strict=True))
    is_named = np.zeros(len(labels), bool)
    for name in [names] if isinstance(names, str) else names:
        if name not in below:
            raise unknown_name("label", name, "the model" if hierarchy is None else "model and hierarchy", below)
        is_named |= below[name]
    is_chosen = is_named if only is not None else ~is_named
    if not is_chosen.any():
        fault = "`only` names no label" if only is not None else "`exclude` names every label of the model"
        raise ValueError(f"{fault}: at least one must be left.")
    return is_chosen


def probabilities_over(
    logits: Float[np.ndarray, "cells labels"], is_chosen: Bool[np.ndarray, " labels"]
) -> Float[np.ndarray, "cells labels"]:
    """Probabilities given that a cell is of one of the chosen labels; those of the others are 0.

    Parameters
    ----------
    logits : numpy.ndarray
        Of each cell for each label.
    is_chosen : numpy.ndarray
        As `chosen_labels` returns it.

    Returns
    -------
    numpy.ndarray
        Which sum to 1 for each cell.

    Examples
    --------
    >>> probabilities_over(np.zeros((1, 3), "float32"), np.array([True, False, True])).tolist()
    [[0.5, 0.0, 0.5]]
    """
    return special.softmax(np.where(is_chosen, logits, -np.inf).astype(logits.dtype, copy=False), axis=1)
