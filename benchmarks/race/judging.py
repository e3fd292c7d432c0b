"""How right answers are: the same measures for every contestant."""

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import stats

from ginseng.metrics import ece, score


def truth_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Types of the test cells, and which of them were trained on."""
    train, test = (ad.read_h5ad(folder / f"{part}.h5ad", backed="r") for part in ("train", "test"))
    types = test.obs["cell_type"].astype(str).to_numpy()
    return types, np.isin(types, train.obs["cell_type"].astype(str).unique())


def labels(folder: Path, withheld: str = "") -> dict[str, Any]:
    """What `scripts/cells.write` has written: right, calibrated, and the withheld type told apart."""
    types, is_known = truth_of(folder)
    found = pd.read_csv(folder / "predicted.csv", dtype={"type": str})
    if withheld:
        seen, novel = (found["novelty"].to_numpy()[of] for of in (is_known, types == withheld))
        auroc = stats.mannwhitneyu(novel, seen).statistic / (len(novel) * len(seen))
        return {"AUROC": round(float(auroc), 4)}
    types, found = types[is_known], found[is_known]
    scores = score(types, found["type"].to_numpy())
    figures = {"accuracy": scores.accuracy, "macro-F1": scores.macro_f1}
    if found["confidence"].notna().all():
        figures["ECE"] = ece(found["confidence"].clip(0, 1).to_numpy(), found["type"].to_numpy() == types)
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def written(folder: Path) -> dict[str, Any]:
    """Accuracy of the labels that a command has written: the first column of labels.csv."""
    types, is_known = truth_of(folder)
    found = pd.read_csv(folder / "labels.csv", index_col=0, dtype=str).iloc[:, 0].to_numpy()
    return {"accuracy": round(float((found == types)[is_known].mean()), 4), "cells": len(types)}


def tables(one: Path, other: Path) -> dict[str, Any]:
    """Labels and probabilities of the same cells, as two packages wrote them."""
    a, b = (pd.read_csv(path, index_col=0) for path in (one, other))
    same = (a["ginseng_cell_type"].astype(str) == b["ginseng_cell_type"].astype(str)).mean()
    names = [name for name in a.columns[1:] if name in b]
    apart = np.abs(a[names].to_numpy() - b[names].to_numpy()).max()
    return {"cells": len(a), "equal labels": float(same), "largest difference of a probability": float(apart)}


def losses(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far apart losses are that two packages wrote, step by step; nothing where one is missing."""
    if not theirs.exists():
        return {}
    a, b = (np.asarray(json.loads(path.read_text())) for path in (ours, theirs))
    return {"largest relative difference": float((np.abs(a - b) / np.abs(b)).max())}
