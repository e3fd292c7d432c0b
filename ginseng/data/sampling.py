"""Pure functions from labels, groups and a random generator to splits and epoch orders."""

import itertools
from collections.abc import Iterator
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Float, Integer

from ginseng.utils.values import require_flags, require_number

Balance = Literal["none", "downsample", "resample"]


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
    labels: Integer[np.ndarray, " cells"], fraction: float, rng: np.random.Generator, *, keep_rare: bool = False
) -> tuple[Integer[np.ndarray, " train"], Integer[np.ndarray, " test"]]:
    """Split the cells of each label on their own.

    Rare labels are in both parts if they have two cells; with `keep_rare`, those with fewer than ``1 / fraction`` cells
    are for training only.

    Examples
    --------
    >>> train, test = split_within_labels(np.array([0, 0, 0, 1, 1]), 0.34, np.random.default_rng(0))
    >>> len(train), len(test)
    (3, 2)
    """
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        if keep_rare and len(cells) * fraction < 1:
            continue
        _, test = split_cells(len(cells), fraction, rng)
        is_test[cells[test]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def draw_split(
    labels: Integer[np.ndarray, " cells"],
    groups: Integer[np.ndarray, " cells"] | None,
    fraction: float = 0.1,
    seed: int = 123,
    *,
    stratify_group: bool = False,
    stratify_label: bool = False,
    keep_rare: bool = False,
) -> tuple[Integer[np.ndarray, " train"], Integer[np.ndarray, " test"]]:
    """Draw the training and the test cells that `GinsengDataset.make_split` keeps.

    Examples
    --------
    >>> options = {"stratify_group": False, "stratify_label": True, "keep_rare": False}
    >>> draw_split(np.array([0, 0, 1, 1]), None, 0.5, 0, **options)[1].size
    2
    """
    require_number("fraction", fraction, "[0, 1)")
    require_flags(stratify_group=stratify_group, stratify_label=stratify_label, keep_rare=keep_rare)
    if stratify_group and stratify_label:
        raise ValueError("Whole groups cannot be split within labels: choose `stratify_group` or `stratify_label`.")
    rng = np.random.default_rng(seed)
    if stratify_label:
        return split_within_labels(labels, fraction, rng, keep_rare=keep_rare)
    if not stratify_group:
        return split_cells(len(labels), fraction, rng)
    if groups is None:
        raise ValueError("A split by groups needs groups: pass `group_key` to GinsengDataset.create.")
    if fraction > 0 and len(np.unique(groups)) < 2:
        raise ValueError("A split by groups needs two of them; there is only one.")
    return split_groups(groups, fraction, rng)


def is_split_of(
    fraction: float,
    test: Integer[np.ndarray, " test"],
    labels: Integer[np.ndarray, " cells"],
    groups: Integer[np.ndarray, " cells"] | None,
) -> bool:
    """Whether so many test cells, or whole groups of them, are what `draw_split` draws of a fraction in some way.

    Examples
    --------
    >>> labels = np.repeat([0, 1], 50)
    >>> is_split_of(0.2, np.arange(20), labels, None), is_split_of(0.25, np.arange(20), labels, None)
    (True, False)
    """
    ways = ({}, {"stratify_label": True}, {"stratify_label": True, "keep_rare": True})
    by_cells = {len(draw_split(labels, None, fraction, **way)[1]) for way in ways}
    if groups is None or len(test) in by_cells:
        return len(test) in by_cells
    held_out = np.unique(groups[test])
    n_of_these = np.isin(groups, held_out).sum()
    return bool(n_of_these == len(test)) and len(held_out) == _n_test(len(np.unique(groups)), fraction)


def mixes_groups(
    groups: Integer[np.ndarray, " cells"] | None,
    train: Integer[np.ndarray, " train"],
    test: Integer[np.ndarray, " test"],
) -> bool:
    """Whether a split has cells of a group on both sides, as far as is known.

    Examples
    --------
    >>> mixes_groups(np.array([0, 0, 1]), np.array([0, 1]), np.array([2]))
    False
    """
    return groups is None or bool(np.isin(groups[train], groups[test]).any())


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


def balance_of(balance: bool | str) -> Balance:
    """Name of a way to balance labels; True and False stand for the documented ones.

    Raises
    ------
    ValueError
        If there is no such way.

    Examples
    --------
    >>> balance_of(True), balance_of("resample")
    ('downsample', 'resample')
    """
    name = {True: "downsample", False: "none"}[bool(balance)] if isinstance(balance, bool | np.bool_) else balance
    if not isinstance(name, str) or name not in get_args(Balance):
        raise ValueError(
            f"Labels are balanced by one of {', '.join(get_args(Balance))} (or True or False), but got {balance!r}."
        )
    return cast(Balance, name)


def cells_of_epoch(
    labels: Integer[np.ndarray, " cells"],
    cells: Integer[np.ndarray, " n"],
    balance: Balance,
    alpha: float,
    rng: np.random.Generator,
) -> Integer[np.ndarray, " drawn"]:
    """Cells of one epoch over `cells`, in increasing order, repeated where they are resampled.

    Examples
    --------
    >>> len(cells_of_epoch(np.array([0, 0, 0, 1]), np.arange(4), "downsample", 1.0, np.random.default_rng(0)))
    2
    """
    if balance == "downsample":
        return downsample(labels, cells, rng)
    return resample(labels, cells, alpha, rng) if balance == "resample" else cells


def n_streamed(labels: Integer[np.ndarray, " n"], balance: Balance) -> int:
    """Number of cells of an epoch over cells with these labels.

    Examples
    --------
    >>> n_streamed(np.array([0, 0, 0, 1]), "none"), n_streamed(np.array([0, 0, 0, 1]), "downsample")
    (4, 2)
    """
    if balance != "downsample" or len(labels) == 0:
        return len(labels)
    counts = np.unique(labels, return_counts=True)[1]
    return int(counts.min() * len(counts))


def balanced_weights(
    labels: Integer[np.ndarray, " n"], balance: Balance, alpha: float
) -> tuple[Integer[np.ndarray, " present"], Float[np.ndarray, " present"]]:
    """Labels, and weights of their cells that make every label count the same, with a mean of 1 over an epoch.

    Examples
    --------
    >>> balanced_weights(np.array([0, 0, 0, 0, 1]), "none", 1.0)
    (array([0, 1]), array([0.625, 2.5  ]))
    >>> balanced_weights(np.array([0, 0, 0, 0, 1]), "resample", 0.5)
    (array([0, 1]), array([0.75, 1.5 ]))
    """
    present, counts = np.unique(labels, return_counts=True)
    drawn = counts ** {"none": 1.0, "downsample": 0.0, "resample": 1.0 - alpha}[balance]
    return present, drawn.sum() / (len(present) * drawn)


def resample(
    labels: Integer[np.ndarray, " cells"], cells: Integer[np.ndarray, " n"], alpha: float, rng: np.random.Generator
) -> Integer[np.ndarray, " n"]:
    """Draw as many cells as there are, each with a weight of ``1 / n**alpha`` for the n cells of its label.

    The share of every label is exact, and the cells of a label are drawn equally often, but for one more or less.

    Examples
    --------
    >>> drawn = resample(np.array([0, 0, 0, 0, 0, 1]), np.arange(6), 1.0, np.random.default_rng(0))
    >>> drawn[3:]
    array([5, 5, 5])
    """
    require_number("alpha", alpha, "[0, 1]")
    of_cells = labels[cells]
    present, counts = np.unique(of_cells, return_counts=True)
    weights = counts.astype(float) ** (1.0 - alpha)
    shares = weights / weights.sum() * len(cells)
    n_drawn = np.floor(shares).astype(int)
    n_drawn[np.argsort(n_drawn - shares, kind="stable")[: len(cells) - n_drawn.sum()]] += 1
    times = np.zeros(len(cells), dtype=int)
    for label, n, n_cells in zip(present, n_drawn, counts, strict=True):
        positions = np.flatnonzero(of_cells == label)
        times[positions] = n // n_cells
        times[rng.choice(positions, n % n_cells, replace=False)] += 1
    return np.repeat(cells, times)


def visits(
    cells: Integer[np.ndarray, " n"], block_size: int, rng: np.random.Generator | None
) -> list[Integer[np.ndarray, " _"]]:
    """Group cells into visits to blocks of consecutive cells, in random order if there is a generator.

    A block from which more cells are wanted than it has, since they are repeated, is visited several times: so the
    repeats of a rare cell are spread over the epoch.

    Parameters
    ----------
    cells : numpy.ndarray
        Cells in increasing order, repeated or not.
    block_size : int
        Cells per block.
    rng : numpy.random.Generator, optional
        Source of the order.

    Returns
    -------
    list of numpy.ndarray
        Cells of each visit, in increasing order; together they are `cells`.

    Examples
    --------
    >>> visits(np.array([0, 2, 3, 3, 3, 4]), 2, None)
    [array([0]), array([2, 3]), array([3, 3]), array([4])]
    """
    n_blocks = 0 if len(cells) == 0 else int(cells[-1]) // block_size + 1
    bounds = np.searchsorted(cells, np.arange(n_blocks + 1) * block_size)
    visited = []
    for start, end in itertools.pairwise(bounds):
        n_visits = -(-(end - start) // block_size)
        if rng is None:
            visited += [cells[first : min(first + block_size, end)] for first in range(start, end, block_size)]
        else:
            visited += [cells[start + nth : end : n_visits] for nth in range(n_visits)]
    return visited if rng is None else [visited[i] for i in rng.permutation(len(visited))]


def windows(
    visited: list[Integer[np.ndarray, " _"]],
    bytes_per_cell: Integer[np.ndarray, " cells"],
    capacity: int,
    batch_size: int,
) -> Iterator[list[Integer[np.ndarray, " _"]]]:
    """Group visits into windows of at most `capacity` bytes and a whole number of batches, except for the last.

    A window has at least one batch, whatever its size. A visit that does not fit is finished in the next window.

    Examples
    --------
    >>> for window in windows([np.array([0, 1]), np.array([4, 5]), np.array([2, 3])], np.full(6, 10), 40, 3):
    ...     print(window)
    [array([0, 1]), array([4])]
    [array([5]), array([2, 3])]
    """
    window, n_cells, n_bytes = [], 0, 0
    for visit in visited:
        size = int(bytes_per_cell[visit].sum())
        if n_bytes + size > capacity and n_cells >= batch_size:
            rest = _cut_off(window, n_cells % batch_size)
            yield window
            window, n_cells = rest, sum(map(len, rest))
            n_bytes = sum(int(bytes_per_cell[cells].sum()) for cells in rest)
        window.append(visit)
        n_cells += len(visit)
        n_bytes += size
    if window:
        yield window


def _cut_off(window: list[np.ndarray], n_cells: int) -> list[np.ndarray]:
    """Take the last `n_cells` cells off a window, and return them."""
    rest = []
    while n_cells > 0:
        last = window.pop()
        n_kept = max(len(last) - n_cells, 0)
        if n_kept:
            window.append(last[:n_kept])
        rest.insert(0, last[n_kept:])
        n_cells -= len(rest[0])
    return rest


def _n_test(n: int, fraction: float) -> int:
    return min(max(round(n * fraction), 1), n - 1) if fraction > 0 else 0
