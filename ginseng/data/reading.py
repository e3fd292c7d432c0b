"""Counts of a dataset read from where they are stored, cells by cells, in several threads."""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from scipy import sparse
from zarr.storage import LocalStore

from ginseng.data.shards import ShardReader, smallest_type
from ginseng.data.store import Contents, require_dense, require_unchanged
from ginseng.utils.messages import in_short
from ginseng.utils.soundness import require_indices

_ROWS_READ_AT_ONCE = 4096
_READERS, _REMOTE_READERS = 2, 16  # threads; those that read from afar wait most of the time


class StoredCounts:
    """Counts of a dataset where they are stored, read by cells.

    Parameters
    ----------
    root : zarr.Group
        The dataset.
    contents : Contents
        What it holds.

    Attributes
    ----------
    dtype : numpy.dtype
        Type of the counts where they are stored.
    bytes_per_cell : numpy.ndarray
        Memory that each cell takes once it is read, at most.
    """

    def __init__(self, root: zarr.Group, contents: Contents):
        self._root = root
        self._n_readers = _READERS if isinstance(root.store, LocalStore) else _REMOTE_READERS
        self._dense = contents.indptr is None
        arrays = [contents.counts] if self._dense else contents.counts
        self._arrays: list[Any] = [ShardReader(array) if ShardReader.reads(array) else array for array in arrays]
        n_cells, self._n_genes = contents.shape
        self.dtype = dtype = np.dtype(self._arrays[0].dtype)
        # Stores of ginseng 0.2.1 hold mostly zeros, in float32: what is read of them is kept as CSR.
        self._compact = self._dense and not contents.is_ours
        if contents.indptr is None:
            self.bytes_per_cell = np.full(n_cells, self._n_genes * dtype.itemsize)
        else:
            self._indptr = contents.indptr
            self._index_type = np.int32 if self._indptr[-1] < 2**31 else np.int64  # of SciPy
            self.bytes_per_cell = np.diff(self._indptr) * (dtype.itemsize + np.dtype(self._index_type).itemsize) + 8

    def read_all(self) -> np.ndarray | sparse.csr_matrix:
        """Read the counts of all cells, in the type they are stored in: CSR, or dense where they are stored so."""
        n_cells = len(self.bytes_per_cell)
        starts = range(0, n_cells, _ROWS_READ_AT_ONCE)
        return self.read([np.arange(start, min(start + _ROWS_READ_AT_ONCE, n_cells)) for start in starts])

    def read(
        self, visits: Sequence[np.ndarray], stopped: threading.Event | None = None
    ) -> np.ndarray | sparse.csr_matrix:
        """Read the counts of some cells.

        Parameters
        ----------
        visits : sequence of numpy.ndarray
            Cells to read together, in increasing order, repeated or not.
        stopped : threading.Event, optional
            Once set, nothing more is read and the result is incomplete.

        Returns
        -------
        numpy.ndarray or scipy.sparse.csr_matrix
            A row for each cell of the visits, one after the other.

        Raises
        ------
        OSError
            If the dataset is damaged, or has been replaced since it was opened.
        """
        try:
            if self._compact:
                return self._read_compact(visits, stopped)
            if self._dense:
                return self._read_dense(visits, stopped)
            return self._read_csr(visits, stopped)
        except (RuntimeError, ValueError) as error:  # the former of the package zarrs
            raise OSError(f"{self._root.store} is damaged ({in_short(error)}). Create the dataset anew.") from error
        finally:
            require_unchanged(self._root)

    def _read_csr(self, visits: Sequence[np.ndarray], stopped: threading.Event | None) -> sparse.csr_matrix:
        cells = np.concatenate(visits)
        indptr = np.concatenate([[0], np.cumsum(self._indptr[cells + 1] - self._indptr[cells])])
        data = np.empty(indptr[-1], self._arrays[0].dtype)
        indices = np.empty(indptr[-1], self._index_type)

        def place(visit: np.ndarray, row: int) -> None:
            first, end = visit[0], visit[-1] + 1
            stored = slice(int(self._indptr[first]), int(self._indptr[end]))
            here = slice(indptr[row], indptr[row + len(visit)])
            if (np.diff(visit) == 1).all():
                for array, target in zip(self._arrays, (data[here], indices[here]), strict=True):
                    _read_into(array, stored, target)
                require_indices(indices[here], self._n_genes)
            else:
                values, columns = (np.asarray(array[stored]) for array in self._arrays)
                require_indices(columns, self._n_genes)  # before SciPy trusts them
                span = (values, columns, self._indptr[first : end + 1] - stored.start)
                chosen = sparse.csr_matrix(span, shape=(end - first, self._n_genes))[visit - first]
                data[here], indices[here] = chosen.data, chosen.indices
            if not data[here].all():
                raise ValueError("a part of the counts has gone")
            _require_finite(data[here])

        self._for_each(place, visits, stopped)
        if stopped is not None and stopped.is_set():
            return sparse.csr_matrix((0, self._n_genes), dtype=data.dtype)
        return sparse.csr_matrix((data, indices, indptr), shape=(len(cells), self._n_genes))

    def _read_dense(self, visits: Sequence[np.ndarray], stopped: threading.Event | None) -> np.ndarray:
        counts = np.empty((sum(map(len, visits)), self._n_genes), self._arrays[0].dtype)

        def place(visit: np.ndarray, row: int) -> None:
            here = slice(row, row + len(visit))
            counts[here] = self._arrays[0][visit[0] : visit[-1] + 1][visit - visit[0]]
            _require_finite(counts[here])

        self._for_each(place, visits, stopped)
        require_dense(self._arrays[0], is_ours=True)  # one that goes meanwhile is read as zeros
        return counts

    def _read_compact(self, visits: Sequence[np.ndarray], stopped: threading.Event | None) -> sparse.csr_matrix:
        parts: dict[int, sparse.csr_matrix] = {}

        def place(visit: np.ndarray, row: int) -> None:
            parts[row] = sparse.csr_matrix(self._arrays[0][visit[0] : visit[-1] + 1][visit - visit[0]])
            _require_finite(parts[row].data)

        self._for_each(place, visits, stopped)
        dtype = np.dtype(np.uint8)
        for part in parts.values():
            dtype = smallest_type(part.data, dtype)
        return sparse.csr_matrix(sparse.vstack([parts[row].astype(dtype) for row in sorted(parts)]))

    def _for_each(self, place: Any, visits: Sequence[np.ndarray], stopped: threading.Event | None) -> None:
        """Call ``place(visit, row)`` for each visit with its first row in the result, in several threads."""
        rows = itertools.accumulate(map(len, visits), initial=0)

        def unless_stopped(visit: np.ndarray, row: int) -> None:
            if stopped is None or not stopped.is_set():
                place(visit, row)

        with ThreadPoolExecutor(self._n_readers) as pool:
            for _ in pool.map(unless_stopped, visits, rows):
                pass


class HeldCounts:
    """Counts of a dataset that are held in memory in place of those stored, read in the same way.

    Parameters
    ----------
    counts : numpy.ndarray
        Of shape ``(cells, genes)``.

    Attributes
    ----------
    dtype, bytes_per_cell
        As of `StoredCounts`.
    """

    def __init__(self, counts: np.ndarray):
        self._counts, self.dtype = counts, counts.dtype
        self.bytes_per_cell = np.full(len(counts), counts.shape[1] * counts.dtype.itemsize)

    def read_all(self) -> np.ndarray:
        """Counts of all cells."""
        return self._counts

    def read(self, visits: Sequence[np.ndarray], stopped: threading.Event | None = None) -> np.ndarray:
        """Counts of some cells, a row for each of the visits; those that are held need not be stopped."""
        return self._counts[np.concatenate(visits)]


AnyCounts = StoredCounts | HeldCounts


def _require_finite(counts: np.ndarray) -> None:
    if counts.dtype.kind == "f" and not np.isfinite(counts).all():
        raise ValueError("it holds counts that are not finite")


def _read_into(array: Any, stored: slice, target: np.ndarray) -> None:
    if isinstance(array, ShardReader):
        array.read(stored.start, target)
    else:
        target[:] = array[stored]
