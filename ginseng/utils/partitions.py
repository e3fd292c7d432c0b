"""Rows of a Dask array, each of whose partitions is computed once, on the workers of a cluster if there is one."""

import sys
from typing import Any

import numpy as np
from scipy import sparse


class Partitions:
    """A Dask array that is sliced, mostly in the order of its rows.

    Dask computes a whole partition for any of its rows; here that is done once, and kept for the slices that follow. A
    slice further on, as of a sample, is computed by itself. With a client of `dask.distributed`, its workers compute
    partitions ahead, one for each of their threads.

    Parameters
    ----------
    array : dask.array.Array
        Of two dimensions, with partitions of any kind: dense or sparse.

    Examples
    --------
    >>> import dask.array
    >>> partitions = Partitions(dask.array.arange(12, chunks=6).reshape(6, 2))
    >>> partitions[2:4].tolist()
    [[4, 5], [6, 7]]
    """

    def __init__(self, array: Any):
        self.shape, self.dtype = array.shape, array.dtype
        self._array, self._ends = array, np.cumsum(array.chunks[0])
        self._asked_for: dict[int, Any] = {}
        self._computed: dict[int, Any] = {}
        self._next = 0

    def __getitem__(self, rows: slice) -> Any:
        start, stop, _ = rows.indices(self.shape[0])
        first, last = np.searchsorted(self._ends, [start, max(start, stop - 1)], side="right").tolist()
        if first > self._next:
            return self._array[rows].compute()
        self._next = last + 1
        parts = self._parts(range(first, min(last + 1, len(self._ends))))
        begin = int(self._ends[first - 1]) if first else 0
        whole = parts[0] if len(parts) == 1 else _joined(parts)
        return whole[start - begin : stop - begin]

    def _parts(self, wanted: range) -> list[Any]:
        near = range(wanted.start, min(wanted.stop + _n_threads_of_cluster(), len(self._ends)))
        self._computed = {number: part for number, part in self._computed.items() if number in wanted}
        self._asked_for = {number: part for number, part in self._asked_for.items() if number in near}
        for number in near[len(wanted) :]:
            if number not in self._asked_for:
                self._asked_for[number] = self._array.blocks[number].persist()  # on a cluster this does not wait
        for number in wanted:
            if number not in self._computed:
                part = self._asked_for.pop(number, self._array.blocks[number]).compute()
                self._computed[number] = part.tocsr() if sparse.issparse(part) else part
        return [self._computed[number] for number in wanted]


def _joined(parts: list[Any]) -> Any:
    return sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.concatenate(parts)


def _n_threads_of_cluster() -> int:
    """Threads of the workers of the cluster whose client is at work in this process; 0 without one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return 0
    try:
        return sum(distributed.default_client().nthreads().values())
    except ValueError:  # there is none
        return 0
