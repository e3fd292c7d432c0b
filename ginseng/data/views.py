"""What is seen of a dataset: the same counts with other parts or labels, which changes nothing of it, and columns."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from ginseng.data import sampling
from ginseng.data.annotation import new_names
from ginseng.data.store import read_column
from ginseng.utils.labels import declared

Dataset = TypeVar("Dataset", bound=Any)


def column(dataset: Any, name: str) -> tuple[list[str], np.ndarray]:
    """A column that is kept beside the counts: its names, and their codes for every cell, -1 where it says nothing.

    Raises
    ------
    ValueError
        If there is no such column, or it is not what was written.

    Examples
    --------
    >>> names, codes = dataset.column("donor")  # doctest: +SKIP
    """
    return read_column(dataset.root, name)


def draw_split(dataset: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two parts of a split that `GinsengDataset.make_split` would store, by its arguments."""
    groups = None if dataset.groups is None else dataset.groups[dataset.cells]
    train, test = sampling.draw_split(dataset.labels[dataset.cells], groups, **options)
    train, test = (dataset.cells[part].astype(np.int32) for part in (train, test))  # the type that is stored
    return train, test


def divided(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> Dataset:
    """The same dataset with another training and another test part, which are not stored."""
    return changed(dataset, train_idx=train, test_idx=test)


def changed(dataset: Dataset, **attributes: Any) -> Dataset:
    """The same dataset with other attributes, which are not stored, nor is a split that is made for it."""
    view = copy.copy(dataset)
    view.__dict__.update({"_counts": dataset._counts, "_is_view": True, **attributes})
    return view


def renamed(dataset: Dataset, mapping: Any = None, *, unlabeled: str | Sequence[str] = ()) -> Dataset:
    """The same dataset with other names of its labels, in memory only.

    Cells of a label that is left out are in no part of it. A split of the dataset holds for the others; one that is
    made for the view is not stored.

    Parameters
    ----------
    dataset : GinsengDataset
        Of which this is a method.
    mapping : dict or Harmony
        The name to take for some of the labels, the same one to merge them, None to leave their cells out; the others
        stay.
    unlabeled : str or sequence of str
        Labels that say that there is none, case and blanks aside: their cells are left out.

    Returns
    -------
    GinsengDataset
        A view of the same counts.

    Raises
    ------
    ValueError
        If `mapping` names a label that the dataset does not have, or leaves none.

    Examples
    --------
    >>> dataset.renamed({"CD4 T": "T", "CD8 T": "T", "doublet": None}).label_names  # doctest: +SKIP
    ['B', 'T']
    """
    label_names, codes = new_names(dataset.label_names, {} if mapping is None else mapping, str(dataset.path))
    if left_out := declared(label_names, unlabeled, str(dataset.path), dataset.label_names):
        label_names, kept = new_names(label_names, dict.fromkeys(left_out), str(dataset.path))
        codes = np.append(kept, -1)[codes]
    labels = np.append(codes, -1).astype(np.int32)[dataset.labels]  # the last one of cells left out before
    view = changed(dataset, label_names=label_names, labels=labels, cells=np.flatnonzero(labels >= 0))
    if dataset.train_idx is not None:
        view.train_idx, view.test_idx = (part[labels[part] >= 0] for part in (dataset.train_idx, dataset.test_idx))
    return view
