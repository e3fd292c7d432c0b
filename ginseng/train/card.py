"""What is to be known of a trained classifier before it is relied on: its model card."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ginseng.data.dataset import GinsengDataset
from ginseng.metrics import Scores
from ginseng.model.calibration import Calibration


def require_card(card: Any) -> dict[str, str]:
    """What a user tells of a model, by its names, such as "data" and "licence", or a ValueError.

    Examples
    --------
    >>> require_card({"data": "Kang et al. 2018, control", "licence": "CC BY 4.0"})["licence"]
    'CC BY 4.0'
    """
    if card is None:
        return {}
    if not isinstance(card, Mapping) or not all(isinstance(text, str) for entry in card.items() for text in entry):
        raise ValueError(f"`card` must be a dictionary of texts, such as {{'data': '...'}}, but got {card!r}.")
    if taken := {"types", "calibration"} & set(card):
        raise ValueError(f"`card` must not have {', '.join(sorted(taken))}, which training itself tells.")
    return dict(card)


def card_of(
    dataset: GinsengDataset,
    labels: Sequence[str],
    scores: Scores | None,
    calibration: Calibration | None,
    told: Mapping[str, str],
) -> dict[str, Any]:
    """What training knows of each of a network's labels, how its answers are calibrated, and what was told.

    Of a type: its training cells, their groups, F1 on held-out cells, and by how many cells answers are judged.

    Examples
    --------
    >>> card_of(GinsengDataset("cells.zarr"), ["B", "T"], None, None, {})["types"]["B"]  # doctest: +SKIP
    {'cells': 1200, 'groups': 8}
    """
    cells = dataset.cells if dataset.train_idx is None else dataset.train_idx
    types = {}
    names = np.asarray(dataset.label_names, object)[dataset.labels[cells]]
    for nth, name in enumerate(labels):
        of_type = cells[names == name]
        types[name] = {"cells": len(of_type)}
        if dataset.groups is not None:
            types[name]["groups"] = len(np.unique(dataset.groups[of_type]))
        if scores is not None and name in scores.table.index and scores.table.at[name, "cells"] > 0:
            types[name]["holdout_f1"] = round(float(scores.table.at[name, "f1"]), 4)
        if calibration is not None:
            types[name]["judged_by"] = int((calibration.labels == nth).sum())
    summary = {} if calibration is None else {"calibration": calibration.summary()}
    return {"types": types, **summary, **told}
