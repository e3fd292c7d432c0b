"""Batches of counts: from counts in memory, or read ahead through a shuffle buffer where they do not fit."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ginseng.data import sampling
from ginseng.data.reading import StoredCounts
from ginseng.utils.ahead import read_ahead

# In a store sorted by label a block is of one label: the fewer blocks are mixed, the more the labels of batches stray
# from those of all cells. See benchmarks/shuffle.py.
_BLOCKS_PER_WINDOW = 400
_DENSE_BYTES = 2**21  # small enough for the caches

Counts = np.ndarray | sparse.csr_matrix
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Order:
    """In which order cells are given out, and which of them here.

    Attributes
    ----------
    batch_size : int
        Cells per batch.
    rng : numpy.random.Generator, optional
        Source of the order; without one it is that of the cells.
    drop_last : bool
        Leave out the last batch if it is smaller than the others.
    share : tuple of int
        Which of how many equal parts of every batch to give out.
    """

    batch_size: int
    rng: np.random.Generator | None
    drop_last: bool = False
    share: tuple[int, int] = (0, 1)

    @property
    def n_per_batch(self) -> int:
        """Cells of a batch that are given out."""
        return self.batch_size // self.share[1]

    def of(self, n_cells: int) -> np.ndarray:
        """Positions among `n_cells` cells that are given out, in their order."""
        rows = np.arange(n_cells) if self.rng is None else self.rng.permutation(n_cells)
        if self.drop_last:
            rows = rows[: n_cells // self.batch_size * self.batch_size]
        index, n_shares = self.share
        if n_shares == 1:
            return rows
        return rows[np.arange(len(rows)) % self.batch_size // self.n_per_batch == index]


def from_memory(counts: Counts, cells: np.ndarray, batch_size: int) -> Batches:
    """Batches of `cells` in their order, as ``(counts, cells)``, the counts dense in the type that they are stored in.

    Several are made dense at once: SciPy takes as long to begin as to do it.
    """
    shape: Any = counts.shape
    bytes_per_batch = batch_size * shape[1] * counts.dtype.itemsize
    n_at_once = batch_size * max(1, _DENSE_BYTES // max(1, bytes_per_batch))
    for start in range(0, len(cells), n_at_once):
        rows = cells[start : start + n_at_once]
        chosen = counts[rows]
        dense = chosen if isinstance(chosen, np.ndarray) else chosen.toarray()
        for first in range(0, len(rows), batch_size):
            here = slice(first, first + batch_size)
            yield dense[here], rows[here]


def from_store(stored: StoredCounts, cells: np.ndarray, memory: int, order: Order) -> Batches:
    """Batches of `cells`, of which at most `memory` bytes are held.

    Blocks of consecutive cells are read in random order into a window, whose cells are shuffled and given out while the
    next window is read.

    Parameters
    ----------
    stored : StoredCounts
        Where to read.
    cells : numpy.ndarray
        In increasing order, repeated or not.
    memory : int
        Bytes for two windows.
    order : Order
        How the cells are given out.

    Yields
    ------
    counts : numpy.ndarray
        Of shape ``(order.n_per_batch, n_genes)``, in the type that they are stored in.
    cells : numpy.ndarray
        The cells of the batch.
    """
    visited = sampling.visits(cells, block_size_for(stored, memory), order.rng)
    planned = sampling.windows(visited, stored.bytes_per_cell, memory // 2, order.batch_size)
    stopped = threading.Event()
    windows = read_ahead((stored.read(visits, stopped), np.concatenate(visits)) for visits in planned)
    try:
        for counts, window in windows:
            rows = order.of(len(window))
            yield from ((batch, window[here]) for batch, here in from_memory(counts, rows, order.n_per_batch))
            del counts  # before the next window but one is read
    finally:
        stopped.set()
        windows.close()


def block_size_for(stored: StoredCounts, memory: int) -> int:
    """Consecutive cells that are read together, with `memory` bytes for two windows."""
    return max(1, int(memory // 2 / stored.bytes_per_cell.mean() / _BLOCKS_PER_WINDOW))
