"""How well predicted cell types, and the confidence in them, agree with true ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ginseng.utils.labels import beside, in_terms_of, names_alike, names_in, says_unknown, without_none
from ginseng.utils.messages import shorten, warn
from ginseng.utils.values import require_integer

NO_TYPE = "no type"  # of cells that get none


@dataclass(frozen=True)
class Scores:
    """Agreement of predicted with true cell types: what `score` gives, and ``holdout_scores`` of a trainer.

    Attributes
    ----------
    table : pandas.DataFrame
        For each type: number of ``cells``, ``precision``, ``recall`` and ``f1``; 0 where a ratio has no denominator.
    confusion : pandas.DataFrame
        Number of cells of each true type (rows) that were given each type (columns).
    accuracy : float
        Fraction of cells whose type is right.
    macro_f1 : float
        Mean of ``f1`` over the types, each counting the same.
    calibration : pandas.DataFrame, optional
        Of a trained classifier: ``ece`` and ``nll`` of cells that it was not trained on, before and after calibration,
        see `ginseng.model.calibration.Calibration.table`.
    further : dict of Scores
        Of a module with several outputs (see `ginseng.Trainer`), those of each further one by the name of its column.
    """

    table: pd.DataFrame
    confusion: pd.DataFrame
    accuracy: float
    macro_f1: float
    calibration: pd.DataFrame | None = None
    further: Mapping[str, "Scores"] = dataclasses.field(default_factory=dict)

    def report(self, cells: str = "cells") -> str:
        """The table, and a last line with accuracy, macro-F1 and the number of `cells`."""
        table = self.table.to_string(float_format="{:.3f}".format)
        n_cells = int(self.table["cells"].sum())
        return f"{table}\naccuracy {self.accuracy:.3f}  macro-F1 {self.macro_f1:.3f}  on {n_cells} {cells}"


def score(truth: Sequence[str] | Any, predicted: Sequence[str] | Any) -> Scores:
    """Compare predicted with true cell types.

    Parameters
    ----------
    truth, predicted : sequence of str
        The types of the same cells, in the same order. Cells without a true type are left out, and so are those whose
        true type says that there is none ("nan", "NA", "None", blanks), unless it is one that is predicted. Those
        without a predicted one have "no type". Floats are the integers that they were.

    Returns
    -------
    Scores
        Over the types that occur on either side.

    Raises
    ------
    ValueError
        If the lengths differ or no cell has a true type.

    Examples
    --------
    >>> scores = score(["B", "B", "T", "T"], ["B", "T", "T", "T"])
    >>> scores.accuracy, round(scores.macro_f1, 3)
    (0.75, 0.733)
    """
    true, called = in_the_same_terms(truth, predicted)
    known = true.notna()
    true, called = true[known], called[known]
    if len(true) == 0:
        raise ValueError("No cell has a true type to compare with.")
    types = sorted(set(true) | set(called))
    if alike := names_alike(types):
        warn(f"Types that differ by blanks or case alone count as different: {shorten(map(str, alike), 3)}.")
    return scores_of(pd.crosstab(true, called).reindex(index=types, columns=types, fill_value=0))


def in_the_same_terms(truth: Any, predicted: Any) -> tuple[Any, Any]:
    """True and predicted types as text: missing where there is no true type, "no type" where none is predicted.

    Examples
    --------
    >>> [list(types) for types in in_the_same_terms([1.0, None, 2.0], ["1", "2", None])]
    [['1', nan, '2'], ['1', '2', 'no type']]
    """
    if len(truth) != len(predicted):
        raise ValueError(f"`truth` has {len(truth)} cells, but `predicted` has {len(predicted)}.")
    given = names_in(predicted, "`predicted`", unused=True)
    true, _ = without_none(names_in(truth, "`truth`"), given.categories)
    for name in set(filter(says_unknown, true.categories)) - set(given.categories):
        warn(f"Cells of the true type {name!r} count as wrong; leave them out to compare the others alone.")
    as_given = in_terms_of(true.categories, given.categories)
    no_type = beside(NO_TYPE, {*true.categories, *given.categories})
    true_types = pd.Series(true, dtype=object).map(lambda name: as_given.get(name, name), na_action="ignore")
    return true_types, pd.Series(given, dtype=object).fillna(no_type)


def scores_of(confusion: pd.DataFrame) -> Scores:
    """Compare predicted with true cell types that have been counted.

    Parameters
    ----------
    confusion : pandas.DataFrame
        Number of cells of each true type (rows) that were given each type (columns, the same types).

    Returns
    -------
    Scores
        Over the types that occur on either side.

    Examples
    --------
    >>> scores_of(pd.DataFrame([[1, 1, 0], [0, 2, 0], [0, 0, 0]], list("BTX"), list("BTX"))).confusion.columns.tolist()
    ['B', 'T']
    """
    occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    types = confusion.index[occurs.to_numpy()]
    confusion = confusion.loc[types, types]
    confusion.index.name, confusion.columns.name = "true type", "predicted type"
    right = np.diag(confusion)
    n_true, n_predicted = confusion.sum(axis=1).to_numpy(), confusion.sum(axis=0).to_numpy()
    table = pd.DataFrame(
        {
            "cells": n_true,
            "precision": right / np.maximum(n_predicted, 1),
            "recall": right / np.maximum(n_true, 1),
            "f1": 2 * right / (n_true + n_predicted),
        },
        index=pd.Index(types, name="cell type"),
    )
    return Scores(table, confusion, float(right.sum() / n_true.sum()), float(table["f1"].mean()))


def reliability(confidence: Sequence[float] | Any, is_right: Sequence[bool] | Any, n_bins: int = 15) -> pd.DataFrame:
    """Compare confidence with accuracy, in bins of equally many cells.

    Cells of equal confidence share a bin, so that the order of the cells does not matter; bins may then differ in size.

    Parameters
    ----------
    confidence : sequence of float
        Probability, in [0, 1], that each cell's type is right.
    is_right : sequence of bool
        Whether it is.
    n_bins : int
        Number of bins, at most.

    Returns
    -------
    pandas.DataFrame
        A row for each bin that has cells, by rising confidence: ``cells``, mean ``confidence`` and ``accuracy``.

    Raises
    ------
    ValueError
        If the lengths differ, there is no cell, or a value is out of range.

    Examples
    --------
    >>> reliability([0.6, 0.6, 0.9, 0.9], [True, False, True, True], n_bins=2)
       cells  confidence  accuracy
    0      2         0.6       0.5
    1      2         0.9       1.0
    """
    require_integer("n_bins", n_bins, 1)
    confidence, is_right = np.asarray(confidence, np.float64), np.asarray(is_right, np.float64)
    if confidence.shape != is_right.shape or confidence.ndim != 1:
        raise ValueError(
            f"`confidence` and `is_right` must be of the same cells, but have shapes {confidence.shape} and "
            f"{is_right.shape}."
        )
    if not len(confidence):
        raise ValueError("There is no cell whose confidence could be compared.")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("`confidence` must lie in [0, 1].")
    if not np.isin(is_right, (0, 1)).all():
        raise ValueError("`is_right` must be true or false.")
    n_below = np.searchsorted(np.sort(confidence), confidence)
    cells = pd.DataFrame({"confidence": confidence, "accuracy": is_right})
    of_bins = cells.groupby(n_below * n_bins // len(confidence))
    table: Any = of_bins.mean().reset_index(drop=True)
    table.insert(0, "cells", of_bins.size().to_numpy())
    return table


def ece(confidence: Sequence[float] | Any, is_right: Sequence[bool] | Any, n_bins: int = 15) -> float:
    """Expected calibration error: the mean over cells of how far the confidence of their bin is from its accuracy.

    Takes and raises what `reliability` does.

    References
    ----------
    Naeini, Cooper & Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015; bins of
    equally many cells as in Nguyen & O'Connor, EMNLP 2015.

    Examples
    --------
    >>> round(ece([0.6, 0.6, 0.9, 0.9], [True, False, True, True], n_bins=2), 3)
    0.1
    """
    table = reliability(confidence, is_right, n_bins)
    return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["cells"]))
