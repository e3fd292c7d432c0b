"""Counts made dense once, straight into the array that goes to the devices: several batches of one shape at a time."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Num
from numpy.typing import DTypeLike
from scipy import sparse

_STEPS_PER_SLAB = 16  # few enough that a progress bar moves
_BYTES_PER_SLAB = 2**23

Rows = np.ndarray | sparse.csr_matrix


class SlabShape(NamedTuple):
    """How many cells a slab holds, and as what.

    Attributes
    ----------
    n_steps : int
        Batches.
    batch_size : int
        Cells of a batch.
    width : int
        Rows of a batch, at least as many, so that each device has equally many.
    n_genes : int
        Inputs of the model.
    dtype : numpy.dtype
        Type of the counts.
    """

    n_steps: int
    batch_size: int
    width: int
    n_genes: int
    dtype: np.dtype

    @classmethod
    def of(cls, batch_size: int, width: int, n_genes: int, dtype: DTypeLike) -> "SlabShape":
        """As many batches as go through one compiled call without a progress bar standing still.

        Examples
        --------
        >>> SlabShape.of(256, 256, 2000, np.float32).n_steps
        4
        """
        dtype = np.dtype(dtype)
        n_steps = _BYTES_PER_SLAB // (width * n_genes * dtype.itemsize)
        return cls(max(1, min(_STEPS_PER_SLAB, n_steps)), batch_size, width, n_genes, dtype)

    @property
    def n_cells(self) -> int:
        """Cells of a whole slab."""
        return self.n_steps * self.batch_size


class DenseSlab(NamedTuple):
    """Counts of some batches.

    Attributes
    ----------
    x : numpy.ndarray
        Of shape ``(steps, width, genes)``; zeros where there is no cell.
    cells : numpy.ndarray
        Which cells those are, or what is known of each, in their order.
    """

    x: Num[np.ndarray, "steps width genes"]
    cells: Int[np.ndarray, "cells ..."]


def dense_slabs(groups: Iterable[tuple[Rows, np.ndarray]], shape: SlabShape) -> Iterator[DenseSlab]:
    """Fill slabs with cells, in their order.

    Parameters
    ----------
    groups : iterable of (counts, cells)
        Counts over the inputs of the model, dense or CSR, and which cells they are; any number of them.
    shape : SlabShape
        Of each slab; the last may hold fewer cells.

    Yields
    ------
    DenseSlab
        A new array each, since the devices may read the one before while it is filled.

    Examples
    --------
    >>> groups = [(sparse.csr_matrix(np.full((3, 2), n)), 3 * n + np.arange(3)) for n in range(2)]
    >>> [slab.cells.tolist() for slab in dense_slabs(groups, SlabShape(2, 2, 2, 2, np.dtype(np.int64)))]
    [[0, 1, 2, 3], [4, 5]]
    """
    x, held = _empty(shape), []
    n_filled = 0
    for counts, cells in groups:
        first = 0
        while first < len(cells):
            step, row = divmod(n_filled, shape.batch_size)
            n_here = min(shape.batch_size - row, len(cells) - first)
            _make_dense(counts[first : first + n_here], x[step, row : row + n_here])
            held.append(cells[first : first + n_here])
            first, n_filled = first + n_here, n_filled + n_here
            if n_filled == shape.n_cells:
                yield DenseSlab(x, np.concatenate(held))
                x, held, n_filled = _empty(shape), [], 0
    if n_filled:
        step, row = divmod(n_filled, shape.batch_size)
        x[step, row:], x[step + 1 :] = 0, 0
        yield DenseSlab(x, np.concatenate(held))


def _empty(shape: SlabShape) -> np.ndarray:
    x = np.empty((shape.n_steps, shape.width, shape.n_genes), shape.dtype)
    x[:, shape.batch_size :] = 0
    return x


def _make_dense(rows: Rows, target: np.ndarray) -> None:
    if isinstance(rows, np.ndarray):
        target[...] = rows
    else:
        rows.astype(target.dtype, copy=False).toarray(out=target)
