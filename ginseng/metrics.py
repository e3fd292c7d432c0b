"""How well predicted cell types agree with true ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


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
    """

    table: pd.DataFrame
    confusion: pd.DataFrame
    accuracy: float
    macro_f1: float

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
        The types of the same cells, in the same order. Cells without a true type are left out, those without a
        predicted one have "no type".

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
    truth, predicted = pd.Series(np.asarray(truth, dtype=object)), pd.Series(np.asarray(predicted, dtype=object))
    if len(truth) != len(predicted):
        raise ValueError(f"`truth` has {len(truth)} cells, but `predicted` has {len(predicted)}.")
    known = truth.notna()
    truth, predicted = truth[known].astype(str), predicted[known].fillna("no type").astype(str)
    if len(truth) == 0:
        raise ValueError("No cell has a true type to compare with.")
    types = sorted(set(truth) | set(predicted))
    return scores_of(pd.crosstab(truth, predicted).reindex(index=types, columns=types, fill_value=0))


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
