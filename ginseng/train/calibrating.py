"""Answers for cells that a classifier was not trained on: of whole groups left out in turn, or those held out."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer
from tqdm.auto import tqdm

from ginseng.data.dataset import GinsengDataset
from ginseng.model.calibration import LEAST_CELLS, Calibration, calibration_of, distances_in_parts, geometry_of
from ginseng.utils.messages import warn

_MOST_FOLDS = 5
_MOST_KEPT = 20_000  # cells, of which the answers are kept


@runtime_checkable
class Answering(Protocol):
    """A trainer, for what is asked of it here."""

    dataset: GinsengDataset

    def answers(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of the cells of a part."""
        ...

    def fit(self, epochs: int, silent: bool, *, checkpoint: str | Path | None = None) -> Any:
        """Train."""
        ...


def source_of(dataset: GinsengDataset, train: np.ndarray, asked: str) -> str:
    """Which cells tell what answers are worth: "auto" takes whole groups where the training cells have several.

    Raises
    ------
    ValueError
        If groups are asked for and there are fewer than two.
    """
    n_groups = 0 if dataset.groups is None else len(np.unique(dataset.groups[train]))
    if asked == "groups" and n_groups < 2:
        raise ValueError(
            "`calibrate` by groups needs two of them to train on: make the dataset with `group_key`, the column of "
            "donors or batches."
        )
    if asked == "auto":
        return "groups" if n_groups > 1 else "holdout"
    return asked


def left_out_in_turn(groups: Integer[np.ndarray, " cells"]) -> Iterator[np.ndarray]:
    """Which cells are left out in each turn: those of whole groups, a few together where there are many.

    Examples
    --------
    >>> [np.flatnonzero(is_out).tolist() for is_out in left_out_in_turn(np.array([7, 7, 2, 7, 2, 5]))]
    [[0, 1, 3], [2, 4], [5]]
    """
    names, sizes = np.unique(groups, return_counts=True)
    folds: list[list[Any]] = [[] for _ in range(min(_MOST_FOLDS, len(names)))]
    n_cells = np.zeros(len(folds), int)
    for nth in np.argsort(-sizes, kind="stable"):
        smallest = int(n_cells.argmin())
        folds[smallest].append(names[nth])
        n_cells[smallest] += sizes[nth]
    return (np.isin(groups, fold) for fold in folds)


def calibrated(
    trainer: Answering,
    source: str,
    make: Callable[[GinsengDataset], Answering],
    epochs: int,
    silent: bool,
    checkpoint: str | Path | None,
) -> Calibration | None:
    """Learn what the answers of a trainer's classifier are worth.

    Beside groups that are left out, the held-out cells of old data that are replayed count as one more.

    Parameters
    ----------
    trainer : Answering
        After `fit`.
    source : {"groups", "holdout", "none"}
        Which cells to learn from, see `source_of`.
    make : callable
        Makes a trainer of the same settings for other training cells.
    epochs : int
        That it has been trained for.
    silent : bool
        Show no progress.
    checkpoint : str or Path, optional
        Folder in which the further runs are saved as they go on.

    Returns
    -------
    Calibration or None
        None where there are too few cells to learn from.
    """
    dataset = trainer.dataset
    if source == "none" or (source == "holdout" and not dataset.has_test):
        return None
    geometry, (*held_out, is_known) = _judged(trainer)
    n_new = len(dataset.test_idx) if dataset.test_idx is not None else 0
    is_old = np.flatnonzero(is_known) >= n_new
    if source == "groups" and dataset.groups is not None and dataset.train_idx is not None:
        train, parts, left_out = np.sort(dataset.train_idx), [], []
        folds = list(left_out_in_turn(dataset.groups[train]))
        for nth, is_out in enumerate(tqdm(folds, "Calibrating", unit="fold", leave=False, disable=silent)):
            with warnings.catch_warnings(action="ignore"):  # told of the whole dataset
                one = make(dataset.divided(train[~is_out], train[is_out]))
                one.fit(epochs, True, checkpoint=checkpoint and Path(checkpoint) / f"left_out_{nth + 1}")
            *answers, is_known = _judged(one)[1]
            parts.append(answers)
            left_out.append(train[is_out][is_known])
        of_groups = [np.concatenate(part) for part in zip(*parts, strict=True)]
        if len(of_groups[0]) >= LEAST_CELLS:
            groups = [*(dataset.groups[cells] for cells in left_out), np.full(is_old.sum(), dataset.groups.max() + 1)]
            of_old = [part[is_old] for part in held_out]
            held_out = [np.concatenate(parts) for parts in (*zip(of_groups, of_old, strict=True), groups)]
        else:
            warn("No type is in several groups, so that leaving them out tells nothing: calibrated by held-out cells.")
            source = "holdout"
    n_cells = len(held_out[0])
    if n_cells > _MOST_KEPT:
        kept = np.sort(np.random.default_rng(0).choice(n_cells, _MOST_KEPT, replace=False))
        held_out = [part[kept] for part in held_out]
    return calibration_of(source, geometry, *held_out)


def _judged(trainer: Answering) -> tuple[Any, tuple[np.ndarray, ...]]:
    """Geometry of the training cells; logits, labels and distances of others whose types are trained on, and which."""
    train_logits, train_labels = trainer.answers("train")
    geometry = geometry_of(train_logits, train_labels)
    logits, labels = trainer.answers("test") if trainer.dataset.has_test else (train_logits[:0], train_labels[:0])
    is_known = np.isin(labels, train_labels)
    logits, labels = logits[is_known], labels[is_known]
    return geometry, (logits, labels, distances_in_parts(geometry, logits), is_known)
