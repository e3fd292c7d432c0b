"""What fine-tuning gives: the tuned classifier, and what it gained and forgot."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ginseng.metrics import score
from ginseng.model.adapting import Moved
from ginseng.model.calibration import LEAST_CELLS
from ginseng.model.state import GinsengClassifierState
from ginseng.train.trainer import GinsengClassifierTrainer

_CHANGED = 0.005  # of F1, to be told


@dataclass(frozen=True)
class FineTuned:
    """What `finetune` returns.

    Attributes
    ----------
    state : GinsengClassifierState
        The tuned classifier, to be saved with `ginseng.save_model`, or used with `ginseng.classify`.
    table : pandas.DataFrame
        Of the held-out cells, a row for each part of the data ("new", "old") and type: how many ``cells``, the F1
        ``before`` and ``after``, and the ``change``. Empty where no cell is held out.
    moved : Moved or None
        What became of the genes, where they changed.
    added : list of str
        Labels that were new to the classifier.
    trainer : GinsengClassifierTrainer
        What trained it. Where the data lack genes of the classifier, their means are in the biases of its networks.
    """

    state: GinsengClassifierState
    table: pd.DataFrame
    moved: Moved | None
    added: list[str]
    trainer: GinsengClassifierTrainer

    def report(self) -> str:
        """What was gained and what was forgotten, as text."""
        told = [] if self.moved is None else [self.moved.report()]
        if self.added:
            told.append(f"New labels: {', '.join(self.added)}.")
        if self.table.empty:
            told.append("No cell is held out, so that nothing tells what was gained and what forgotten.")
        for part in self.table.index.unique("part"):
            of_part: Any = self.table.loc[part]
            n_cells, (before, after) = int(of_part["cells"].sum()), of_part[["before", "after"]].mean()
            told.append(
                f"{n_cells:,} held-out cells of the {part} data: macro-F1 {before:.3f} before, {after:.3f} after"
            )
            change = of_part["change"]
            for kind, types in (
                ("gained", change[change > _CHANGED].sort_values(ascending=False, kind="stable")),
                ("forgotten", change[change < -_CHANGED].sort_values(kind="stable")),
            ):
                if len(types):
                    cells = of_part["cells"]
                    each = (f"{name} {by:+.3f} ({cells[name]:,})" for name, by in types.items())
                    told.append(f"  {kind}, by type (cells): " + ", ".join(each))
        if self.state.calibration is None and self.trainer.settings.calibrate != "none":
            n_cells = int(self.table["cells"].sum())
            told.append(
                f"Not calibrated: {n_cells:,} cells of types that it knows are held out, and {LEAST_CELLS} are needed. "
                "New cells get no status and no novelty."
            )
        return "\n".join(told)


def held_out_answers(trainer: GinsengClassifierTrainer, n_known: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What the held-out cells are called, by the first outputs, and their labels, as places among the outputs."""
    logits, labels = trainer.answers("test")
    return logits[:, :n_known].argmax(axis=1), labels


def changes(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], names: list[str], n_new: int
) -> pd.DataFrame:
    """F1 of each type of the new data, and of the old, before and after."""
    tables, types = {}, np.asarray(names, object)
    for part, here in (("new", slice(None, n_new)), ("old", slice(n_new, None))):
        labels = before[1][here]
        if not len(labels):
            continue
        first, last = (score(types[labels], types[predicted[here]]).table for predicted, _ in (before, after))
        present = first.index[first["cells"] > 0]
        columns = {
            "cells": first["cells"],
            "before": first["f1"],
            "after": last["f1"],
            "change": last["f1"] - first["f1"],
        }
        tables[part] = pd.DataFrame(columns).loc[present].astype({"cells": int})
    if not tables:
        return pd.DataFrame({name: [] for name in ("cells", "before", "after", "change")})
    return pd.concat(tables, names=["part", "type"])
