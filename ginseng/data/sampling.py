"""Pure functions from labels, groups and a random generator to splits and epoch orders."""

import numpy as np
from jaxtyping import Integer


def split_cells(
    n_cells: int, fraction: float, rng: np.random.Generator
) -> tuple[Integer[np.ndarray, " train"], Integer[np.ndarray, " test"]]:
    """Split cells at random into training and test indices, each in increasing order.

    A fraction above 0 leaves at least one cell on either side.

    Examples
    --------
    >>> train, test = split_cells(10, 0.3, np.random.default_rng(0))
    >>> len(train), len(test)
    (7, 3)
    """
    is_test = np.zeros(n_cells, dtype=bool)
    is_test[rng.choice(n_cells, _n_test(n_cells, fraction), replace=False)] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def split_groups(
    groups: Integer[np.ndarray, " cells"], fraction: float, rng: np.random.Generator
) -> tuple[Integer[np.ndarray, " train"], Integer[np.ndarray, " test"]]:
    """Split cells into training and test indices so that all cells of a group are on the same side.

    Examples
    --------
    >>> train, test = split_groups(np.array([0, 0, 1, 1, 2]), 0.34, np.random.default_rng(0))
    >>> len(train) + len(test)
    5
    """
    names = np.unique(groups)
    chosen = rng.choice(names, _n_test(len(names), fraction), replace=False)
    is_test = np.isin(groups, chosen)
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def split_within_labels(
    labels: Integer[np.ndarray, " cells"], fraction: float, rng: np.random.Generator
) -> tuple[Integer[np.ndarray, " train"], Integer[np.ndarray, " test"]]:
    """Split the cells of each label on their own, so that rare labels are in both parts if they have two cells.

    Examples
    --------
    >>> train, test = split_within_labels(np.array([0, 0, 0, 1, 1]), 0.34, np.random.default_rng(0))
    >>> len(train), len(test)
    (3, 2)
    """
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        _, test = split_cells(len(cells), fraction, rng)
        is_test[cells[test]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def downsample(
    labels: Integer[np.ndarray, " cells"], cells: Integer[np.ndarray, " n"], rng: np.random.Generator
) -> Integer[np.ndarray, " kept"]:
    """Keep of every label among `cells` as many as the rarest has, chosen at random, in the order of `cells`.

    Examples
    --------
    >>> kept = downsample(np.array([0, 0, 0, 1]), np.arange(4), np.random.default_rng(0))
    >>> len(kept), kept[-1]
    (2, np.int64(3))
    """
    of_cells = labels[cells]
    present, counts = np.unique(of_cells, return_counts=True)
    if len(present) == 0:
        return cells
    kept = [rng.choice(np.flatnonzero(of_cells == label), counts.min(), replace=False) for label in present]
    return cells[np.sort(np.concatenate(kept))]


def _n_test(n: int, fraction: float) -> int:
    return min(max(round(n * fraction), 1), n - 1) if fraction > 0 else 0
