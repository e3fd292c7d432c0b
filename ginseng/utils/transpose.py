"""Rows of a matrix that is stored by columns on disk, in bounded memory."""

import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ginseng.utils.soundness import require_indices
from ginseng.utils.workspace import temporary_folder

_MEMORY = 2**28  # bytes
_BYTES_PER_VALUE = 24  # row, column and value as read, and again as CSR


def by_rows(matrix: Any, memory: int = _MEMORY) -> "sparse.csr_matrix | TransposedRows":
    """Give what yields rows when sliced, of a CSCDataset: CSR in `memory` bytes, else by way of temporary files.

    Examples
    --------
    See `TransposedRows`.
    """
    n_parts = -(-int(matrix.group["indptr"][-1]) * _BYTES_PER_VALUE // memory)
    if n_parts > 1:
        return TransposedRows(matrix, n_parts, memory)
    columns = matrix.to_memory()
    require_indices(columns.indices, matrix.shape[0])
    return sparse.csr_matrix(columns)


class TransposedRows:
    """Rows of a matrix in CSC format, sorted into temporary files first, each of which fits in memory.

    The files, together of the size of the uncompressed matrix, are in the folder for temporary files (``TMPDIR``), and
    go with the object.

    Parameters
    ----------
    matrix : anndata.abc.CSCDataset
        On disk.
    n_parts : int
        Number of parts: the rows of one are held at a time.
    memory : int
        Bytes for what is read and sorted at a time.

    Examples
    --------
    >>> import h5py, anndata
    >>> file = h5py.File("columns.h5", "w", driver="core", backing_store=False)
    >>> anndata.io.write_elem(file, "X", sparse.csc_matrix(np.eye(5, 2)))
    >>> TransposedRows(anndata.io.sparse_dataset(file["X"]), n_parts=2)[1:4].toarray()
    array([[0., 1.],
           [0., 0.],
           [0., 0.]])
    """

    def __init__(self, matrix: Any, n_parts: int, memory: int = _MEMORY):
        self.shape = matrix.shape
        self._rows_per_part = -(-matrix.shape[0] // n_parts)
        with ExitStack() as stack:
            self._folder = stack.enter_context(temporary_folder())
            weakref.finalize(self, stack.pop_all().close)
        self._held: tuple[int, sparse.csr_matrix] | None = None
        indptr = np.asarray(matrix.group["indptr"][:])
        values, indices = matrix.group["data"], matrix.group["indices"]
        self._dtype = np.dtype([("row", np.int32), ("column", np.int32), ("value", values.dtype)])
        for part in range(n_parts):
            self._file(part).touch()
        n_at_once = memory // (2 * self._dtype.itemsize + 16)
        for start in range(0, int(indptr[-1]), n_at_once):
            rows = np.asarray(indices[start : start + n_at_once])
            require_indices(rows, matrix.shape[0])
            entries = np.empty(len(rows), self._dtype)
            entries["row"] = rows
            entries["column"] = np.searchsorted(indptr, np.arange(start, start + len(rows)), side="right") - 1
            entries["value"] = values[start : start + n_at_once]
            parts = rows // self._rows_per_part
            entries = entries[np.argsort(parts, kind="stable")]
            bounds = np.concatenate([[0], np.cumsum(np.bincount(parts, minlength=n_parts))])
            for part in range(n_parts):
                with self._file(part).open("ab") as file:
                    file.write(entries[bounds[part] : bounds[part + 1]].data)

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        start, stop, _ = rows.indices(self.shape[0])
        blocks = []
        while start < stop:
            part, first = divmod(start, self._rows_per_part)
            n_rows = min(stop - start, self._rows_per_part - first)
            blocks.append(self._part(part)[first : first + n_rows])
            start += n_rows
        return sparse.csr_matrix(sparse.vstack(blocks))

    def _file(self, part: int) -> Path:
        return self._folder / str(part)

    def _part(self, part: int) -> sparse.csr_matrix:
        if self._held is None or self._held[0] != part:
            self._held = None
            entries = np.fromfile(self._file(part), self._dtype)
            first = part * self._rows_per_part
            places = (entries["row"] - first, entries["column"])
            shape = (min(self._rows_per_part, self.shape[0] - first), self.shape[1])
            values = entries["value"].astype(np.float64)  # in which entries for one place are added up
            self._held = part, sparse.csr_matrix((values, places), shape=shape)
        return self._held[1]
