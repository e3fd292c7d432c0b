"""Sparse matrices that contradict themselves, on which sparse routines would end the interpreter."""

from typing import Any

import numpy as np
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import sparse_dataset
from scipy import sparse

_AT_ONCE = 2**24  # indices read at once


def require_sound(matrix: Any) -> None:
    """Raise a ValueError if a sparse matrix contradicts itself, on which sparse routines would end the interpreter.

    Of one on disk the row (or column) ends are checked here, and indices as they are read.

    Examples
    --------
    >>> matrix = sparse.csr_matrix(np.eye(2))
    >>> matrix.indices[0] = 7
    >>> require_sound(matrix)
    Traceback (most recent call last):
        ...
    ValueError: it has an index of 7, where there are 0 to 1
    """
    if isinstance(matrix, CSRDataset | CSCDataset):
        stored: Any = matrix.group  # pyright: ignore[reportAttributeAccessIssue]
        (n_values,), (n_indices,) = stored["data"].shape, stored["indices"].shape
        if n_values != n_indices:
            raise ValueError(f"it has {n_values:,} values, but {n_indices:,} indices")
        require_indices(stored["indices"][:1], matrix.shape[not isinstance(matrix, CSCDataset)])
        require_ends(stored["indptr"][:], matrix.shape[isinstance(matrix, CSCDataset)], n_values)
    elif sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
        by_columns = matrix.format == "csc"
        require_ends(matrix.indptr, matrix.shape[by_columns], len(matrix.indices))
        require_indices(matrix.indices[: matrix.indptr[-1]], matrix.shape[not by_columns])


def require_sound_where_stored(matrix: Any) -> None:
    """The same of a sparse matrix in an open file or store, with its indices, before other code reads all of it.

    Examples
    --------
    >>> require_sound_where_stored(np.eye(2))
    """
    if hasattr(matrix, "keys") and "indptr" in matrix:
        dataset = sparse_dataset(matrix)
        require_sound(dataset)
        indices: Any = matrix["indices"]
        n_columns = dataset.shape[not isinstance(dataset, CSCDataset)]
        for start in range(0, indices.shape[0], _AT_ONCE):
            require_indices(indices[start : start + _AT_ONCE], n_columns)


def require_ends(indptr: np.ndarray, n_rows: int, n_values: int) -> None:
    """Raise a ValueError unless the row ends of a sparse matrix rise from 0 to at most the number of its values.

    SciPy allows for values beyond the last row end, as room to grow.
    """
    if indptr.ndim != 1 or indptr.dtype.kind not in "iu" or len(indptr) != n_rows + 1:
        raise ValueError(f"it has {indptr.shape} row ends, for {n_rows:,} rows")
    if indptr[0] != 0 or indptr[-1] > n_values or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"its row ends do not rise from 0 to at most the number of values, {n_values:,}")


def require_indices(indices: np.ndarray, n_columns: int) -> None:
    """Raise a ValueError unless the indices of a sparse matrix exist."""
    if indices.dtype.kind not in "iu":
        raise ValueError(f"its indices are {indices.dtype}, where whole numbers are expected")
    unsigned = indices.view(f"u{indices.itemsize}")  # in which negative ones are large: one pass
    if len(indices) and unsigned.max() >= n_columns:
        wrong = indices.max() if indices.max() >= n_columns else indices.min()
        raise ValueError(f"it has an index of {wrong:,}, where there are 0 to {n_columns - 1:,}")
