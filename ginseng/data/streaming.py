"""Batches of counts: from counts in memory, or read ahead through a shuffle buffer where they do not fit."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy import sparse

from ginseng.data import sampling
from ginseng.data.reading import StoredCounts

# In a store sorted by label a block is of one label: the fewer blocks are mixed, the more the labels of batches stray
# from those of all cells. See benchmarks/shuffle.py.
_BLOCKS_PER_WINDOW = 400
_DENSE_BYTES = 2**21  # small enough for the caches

Counts = np.ndarray | sparse.csr_matrix
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


def from_memory(counts: Counts, cells: np.ndarray, batch_size: int) -> Batches:
    """Batches of `cells` in their order, as ``(float32 counts, cells)``.

    Several are made dense at once, in the type that they are stored in: SciPy takes as long to begin as to do it.
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
            yield dense[here].astype(np.float32), rows[here]


def from_store(
    stored: StoredCounts, cells: np.ndarray, batch_size: int, memory: int, rng: np.random.Generator | None
) -> Batches:
    """Batches of `cells`, of which at most `memory` bytes are held.

    Blocks of consecutive cells are read in random order into a window, whose cells are shuffled and given out while the
    next window is read.

    Parameters
    ----------
    stored : StoredCounts
        Where to read.
    cells : numpy.ndarray
        In increasing order, repeated or not.
    batch_size : int
        Cells per batch.
    memory : int
        Bytes for two windows.
    rng : numpy.random.Generator, optional
        Source of the order; without one it is that of `cells`.

    Yields
    ------
    counts : numpy.ndarray
        float32, of shape ``(batch_size, n_genes)``.
    cells : numpy.ndarray
        The cells of the batch.
    """
    visited = sampling.visits(cells, block_size_for(stored, memory), rng)
    planned = sampling.windows(visited, stored.bytes_per_cell, memory // 2, batch_size)
    for counts, window in _read_ahead(stored, planned):
        rows = np.arange(len(window)) if rng is None else rng.permutation(len(window))
        yield from ((batch, window[here]) for batch, here in from_memory(counts, rows, batch_size))
        del counts  # before the next window but one is read


def block_size_for(stored: StoredCounts, memory: int) -> int:
    """Consecutive cells that are read together, with `memory` bytes for two windows."""
    return max(1, int(memory // 2 / stored.bytes_per_cell.mean() / _BLOCKS_PER_WINDOW))


def _read_ahead(stored: StoredCounts, planned: Iterator[list[np.ndarray]]) -> Iterator[tuple[Counts, np.ndarray]]:
    """Read each window in a thread while the one before it is used; closing the iterator stops the thread."""
    stopped = threading.Event()

    def read() -> tuple[Counts, np.ndarray] | None:
        visited = next(planned, None)
        return None if visited is None else (stored.read(visited, stopped), np.concatenate(visited))

    with ThreadPoolExecutor(1, thread_name_prefix="ginseng") as reader:
        try:
            following = reader.submit(read)
            while (window := following.result()) is not None:
                following = reader.submit(read)
                yield window
                del window
        finally:
            stopped.set()
