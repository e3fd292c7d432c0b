"""Rows of counts in the order of an epoch: from memory, or read ahead through a shuffle buffer beyond it."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ginseng.data import sampling
from ginseng.data.reading import AnyCounts
from ginseng.data.slabs import Rows
from ginseng.utils.ahead import read_ahead
from ginseng.utils.values import require_integer

# In a store sorted by label a block is of one label: the fewer blocks are mixed, the more the labels of batches stray
# from those of all cells. See benchmarks/shuffle.py.
_BLOCKS_PER_WINDOW = 400
_DENSE_BYTES = 2**21  # small enough for the caches
_SAMPLED_TOGETHER = 32  # in stores of ginseng 0.2.1 each read of some cells reads a chunk of 4,096

Groups = Iterator[tuple[Rows, np.ndarray]]


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


def require_shares(batch_size: int, share: tuple[int, int]) -> None:
    """Raise a ValueError unless batches have a cell, and the i-th of n equal parts.

    Examples
    --------
    >>> require_shares(128, (0, 2))
    """
    index, n_shares = share
    require_integer("batch_size", batch_size, 1)
    if not 0 <= index < n_shares or batch_size % n_shares:
        raise ValueError(f"Batches of {batch_size} cells have no share {index} of {n_shares} equal ones.")


def from_memory(counts: Rows, cells: np.ndarray, batch_size: int) -> Groups:
    """Rows of `cells` in their order, as ``(counts, cells)``, a whole number of batches at a time but for the last.

    Several batches at once, since SciPy takes as long to begin as to do it.
    """
    shape: Any = counts.shape
    bytes_per_batch = batch_size * shape[1] * counts.dtype.itemsize
    n_at_once = batch_size * max(1, _DENSE_BYTES // max(1, bytes_per_batch))
    for start in range(0, len(cells), n_at_once):
        rows = cells[start : start + n_at_once]
        yield counts[rows], rows


def dense_batches(groups: Groups, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Dense batches of groups that hold a whole number of them, as ``(counts, cells)``."""
    for counts, cells in groups:
        dense = counts if isinstance(counts, np.ndarray) else counts.toarray()
        for first in range(0, len(cells), batch_size):
            here = slice(first, first + batch_size)
            yield dense[here], cells[here]


def from_store(
    stored: AnyCounts, cells: np.ndarray, memory: int, order: Order, n_blocks: int = _BLOCKS_PER_WINDOW
) -> Groups:
    """Rows of `cells`, of which at most `memory` bytes are held.

    Blocks of consecutive cells are read in random order into a window, whose cells are shuffled and given out while the
    next window is read.

    Parameters
    ----------
    stored : StoredCounts or HeldCounts
        Where to read.
    cells : numpy.ndarray
        In increasing order, repeated or not.
    memory : int
        Bytes for two windows.
    order : Order
        How the cells are given out.
    n_blocks : int
        Blocks of a window.

    Yields
    ------
    counts : numpy.ndarray or scipy.sparse.csr_matrix
        Rows of a whole number of batches but for the last, in the type that they are stored in.
    cells : numpy.ndarray
        Which cells those are.
    """
    visited = sampling.visits(cells, block_size_for(stored, memory, n_blocks), order.rng)
    planned = sampling.windows(visited, stored.bytes_per_cell, memory // 2, order.batch_size)
    stopped = threading.Event()
    windows = read_ahead((stored.read(visits, stopped), np.concatenate(visits)) for visits in planned)
    try:
        for counts, window in windows:
            rows = order.of(len(window))
            yield from ((group, window[here]) for group, here in from_memory(counts, rows, order.n_per_batch))
            del counts  # before the next window but one is read
    finally:
        stopped.set()
        windows.close()


def block_size_for(stored: AnyCounts, memory: int, n_blocks: int = _BLOCKS_PER_WINDOW) -> int:
    """Consecutive cells that are read together, with `memory` bytes for two windows of `n_blocks` blocks."""
    return max(1, int(memory // 2 / stored.bytes_per_cell.mean() / n_blocks))


def sample(stored: AnyCounts, cells: np.ndarray, n_cells: int) -> np.ndarray:
    """Counts, dense, of about so many of some cells, in blocks that are spread evenly over them."""
    blocks = sampling.visits(cells, _SAMPLED_TOGETHER, None)
    counts = stored.read(blocks[:: max(1, len(cells) // n_cells)])
    return counts if isinstance(counts, np.ndarray) else counts.toarray()
