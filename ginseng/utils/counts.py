"""One way to read any count matrix in blocks of rows: dense, CSR, CSC, backed, zarr or Dask; X, a layer or raw."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning
from anndata.abc import CSCDataset
from scipy import sparse

from ginseng.interruption import leave_if_asked
from ginseng.utils.files import naming
from ginseng.utils.forms import Form
from ginseng.utils.genes import kinds_of_others, left_out
from ginseng.utils.hdf5 import naming_filters
from ginseng.utils.messages import caller, shorten, unknown_name, warn
from ginseng.utils.partitions import Partitions
from ginseng.utils.soundness import require_indices, require_sound, require_sound_where_stored
from ginseng.utils.transpose import by_rows

_N_SAMPLED, _SAMPLED_TOGETHER = 250, 25  # cells: the form shows in few, of each of the data sets that were joined
_SEARCHED = 4096  # cells at once, for some that have counts
_LARGEST = float(np.finfo(np.float32).max)


def layer_names(adata: AnnData) -> list[str]:
    """Names of the layers (from anndata 0.13 on, X is among ``adata.layers``, as None).

    Examples
    --------
    >>> layer_names(AnnData(np.eye(2), layers={"counts": np.eye(2)}))
    ['counts']
    """
    return [name for name in adata.layers if name is not None]


def copy_of(adata: AnnData) -> AnnData:
    """An independent copy in memory.

    Examples
    --------
    >>> copy_of(AnnData(np.eye(2))).isbacked
    False
    """
    if not adata.isbacked:
        return adata.copy()
    copied = adata.to_memory()
    adata.file.open()  # which anndata closes
    return copied


def require_writable(adata: AnnData) -> None:
    """Raise a ValueError if nothing can be added to `adata`, which is so for views of backed data.

    Examples
    --------
    >>> require_writable(AnnData(np.eye(2)))
    """
    if adata.isbacked and adata.is_view:
        raise ValueError("Nothing can be added to a view of a backed AnnData; pass copy=True, or view.to_memory().")


@contextmanager
def whole_changes(adata: AnnData) -> Iterator[None]:
    """Change entries of obsm and uns, and replace obs and var; if the block raises, all of them are as they were.

    A view becomes a copy first, without anndata's warning: that is what the caller asked for.

    Examples
    --------
    >>> view = AnnData(np.eye(2))[:1]
    >>> with whole_changes(view):
    ...     view.obs = with_columns(view.obs, {"type": ["B"]})
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        if adata.is_view:
            adata.obs = adata.obs.copy()
        obs, var = adata.obs, adata.var
        mappings: list[Any] = [adata.obsm, adata.uns]
        entries = [dict(mapping) for mapping in mappings]
        try:
            yield
        except BaseException:
            adata.obs, adata.var = obs, var
            for mapping, before in zip(mappings, entries, strict=True):
                for name in set(mapping) - set(before):
                    del mapping[name]
                mapping.update({name: value for name, value in before.items() if mapping.get(name) is not value})
            raise


def with_columns(table: Any, columns: Mapping[str, Any]) -> pd.DataFrame:
    """A copy of a table with columns in place of all of their names, or after the others.

    Examples
    --------
    >>> table = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"])
    >>> with_columns(table, {"a": [4], "c": [5]}).to_dict("list")
    {'a': [4], 'b': [2], 'c': [5]}
    """
    is_another = table.columns.duplicated() & table.columns.isin(list(columns))
    return table.loc[:, ~is_another].assign(**columns)


def x_of(adata: AnnData) -> Any:
    """X, or None of a backed file that has none.

    Examples
    --------
    >>> x_of(AnnData(np.eye(2))).shape
    (2, 2)
    """
    try:
        return adata.X
    except KeyError:
        return None


class NoMatrix(ValueError):
    """There is no X."""


class Counts:
    """The count matrix of an AnnData, read in blocks of rows as CSR whatever its storage.

    Parameters
    ----------
    adata : AnnData
        In memory, backed, lazily loaded, or a view of any of these (a view of a backed one is read whole).
    layer : str or None
        Key in ``adata.layers``, or ``"raw"`` for ``adata.raw`` where no layer has that name; None for ``adata.X``.
    nonnegative : bool
        Refuse negative values, which cannot be counts to normalise.
    raw : bool
        Warn, once, of values that are no whole numbers, as raw counts are.
    form : Form, optional
        What is undone in each block that is read: see `Form.undone`.
    file : str, Path or None
        Where they are from, to be named in errors; by default the file of a backed AnnData.

    Attributes
    ----------
    n_cells, n_genes : int
        Shape of what is read.
    n_columns : int
        Number of features in the matrix.
    columns : numpy.ndarray
        Those that are genes, which alone are read: see `ginseng.utils.genes.kinds_of_others`.
    left_out : str
        A warning of the others; "" if there are none.
    name : str
        What errors call it.
    nonnegative, raw, form
        As given; may be assigned.
    var : pandas.DataFrame
        Annotation of the genes of this matrix (``adata.raw`` has its own).
    cell_names : pandas.Index
        Names of the cells.

    Raises
    ------
    ValueError
        If the layer does not exist, or the matrix is empty or damaged; when read, if a value is NaN, infinite, or (with
        `nonnegative`) negative.

    Examples
    --------
    >>> counts = Counts(AnnData(np.eye(5, 3, dtype="float32")))
    >>> [(start, stop, block.nnz) for start, stop, block in counts.blocks(2)]
    [(0, 2, 2), (2, 4, 1), (4, 5, 0)]
    """

    def __init__(
        self,
        adata: AnnData,
        layer: str | None = None,
        *,
        nonnegative: bool = False,
        raw: bool = False,
        form: Form | None = None,
        file: str | Path | None = None,
    ):
        self.n_cells, self._layer = adata.n_obs, layer
        self.var: Any = adata.var
        self.cell_names = adata.obs_names
        self.nonnegative, self.raw, self.form, self._caller = nonnegative, raw, form, caller()
        self._file = adata.filename if file is None and adata.isbacked else file
        self._matrix: Any
        if layer is None:
            self.name = "adata.X"
            if adata.isbacked and adata.is_view:
                if not adata.file.is_open:  # as anndata leaves it that has made a copy in memory
                    adata.file.open()
                with self._naming():
                    require_sound_where_stored(adata.file["X"])
            self._matrix = x_of(adata)
        elif layer in adata.layers:
            self.name = f"adata.layers['{layer}']"
            self._matrix = adata.layers[layer]
        elif layer == "raw" and adata.raw is not None:
            self.name = "adata.raw"
            self.var = adata.raw.var
            self._matrix = adata.raw.X
        else:
            raws = ["raw"] if adata.raw is not None else []
            raise unknown_name("layer", layer, "adata.layers", [*layer_names(adata), *raws])
        if self._matrix is None:
            layers = shorten(layer_names(adata)) or "none"
            raise NoMatrix(f"adata.X is empty; name the layer that holds the counts. Layers: {layers}.")
        self._require_numbers()
        others = kinds_of_others(self.var)
        self.columns, self.left_out = np.flatnonzero(others == ""), left_out(others)
        if len(others) and not len(self.columns):
            raise ValueError(
                f"{self._place} has no gene: this is the modality of {shorten(dict.fromkeys(others), 3)}. Pass the one "
                "of gene expression."
            )
        self.n_columns, self.n_genes = len(self.var), len(self.columns)
        if self.left_out:
            self.var = self.var.iloc[self.columns]
        if hasattr(self._matrix, "dask"):
            self._matrix = Partitions(self._matrix)
        with self._naming():
            require_sound(self._matrix)
            if isinstance(self._matrix, CSCDataset):
                self._matrix = by_rows(self._matrix)
        if sparse.issparse(self._matrix):
            self._matrix = self._matrix.tocsr()

    @property
    def _place(self) -> str:
        return self.name if self._file is None else f"{self.name} of {self._file}"

    @contextmanager
    def _naming(self) -> Iterator[None]:
        with naming_filters(self._file or ""), naming(self._place, "is damaged"):
            yield

    def _require_numbers(self) -> None:
        shape, dtype = self._matrix.shape, self._matrix.dtype
        expected = (self.n_cells, len(self.var))
        if shape != expected:
            raise ValueError(f"{self._place} is damaged: its shape is {shape}, not {expected}.")
        if dtype.kind not in "biuf":
            raise ValueError(
                f"{self._place} holds {dtype}, where numbers are expected; try {self.name}.astype('float32')."
            )
        if np.ma.is_masked(self._matrix):
            raise ValueError(f"{self._place} is masked in places; say what is there: {self.name}.filled(0).")

    def of(self, adata: AnnData) -> "Counts":
        """The same matrix of other cells, read in the same way."""
        return Counts(adata, self._layer, nonnegative=self.nonnegative, raw=self.raw, form=self.form, file=self._file)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells from `start` up to `stop`."""
        with self._naming():
            block: Any = self._matrix[start:stop]
            block = sparse.csr_matrix(block.astype(_usual(block.dtype), copy=False))
            require_indices(block.indices, self.n_columns)
        if self.left_out:
            block = sparse.csr_matrix(block[:, self.columns])
        is_whole = block.data.dtype.kind in "iub"
        if not block.has_canonical_format:
            block = block.astype(np.float64)  # sums do not wrap; a copy, since all rows are the caller's own matrix
            block.sum_duplicates()
        if not is_whole:
            self._refuse(~(abs(block.data) <= _LARGEST), block, start, "counts must be finite, and fit in float32")
        if self.nonnegative and block.data.dtype.kind not in "ub":
            self._refuse(
                block.data < 0,
                block,
                start,
                "counts to normalise must not be negative; scaled or centred data cannot be used: pass the layer that "
                "holds the raw counts, or normalize=False",
            )
        if self.form is not None:
            self._refuse(block.data >= self.form.bound, block, start, f"that is no value of {self.form.name}")
            return self.form.undone(block)
        if self.raw and not is_whole and len(fractions := block.data[block.data != np.rint(block.data)]):
            self.raw = False
            warn(
                f"{self.name} holds fractions such as {fractions[0]:.4g}, where raw counts are expected. Is there a "
                "layer of raw counts?",
                self._caller,
            )
        return block

    def sample(self) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Read some cells, in blocks that are spread evenly, or the first that have counts; and which they are."""
        if self.n_cells <= _N_SAMPLED:
            return self.rows(0, self.n_cells), np.arange(self.n_cells)
        starts = np.linspace(0, self.n_cells - _SAMPLED_TOGETHER, _N_SAMPLED // _SAMPLED_TOGETHER).astype(int).tolist()
        found = sparse.csr_matrix(sparse.vstack([self.rows(start, start + _SAMPLED_TOGETHER) for start in starts]))
        cells = np.add.outer(starts, np.arange(_SAMPLED_TOGETHER)).ravel()
        if not found.data.any():
            for start, stop, block in self.blocks(_SEARCHED):
                if block.data.any():
                    return block, np.arange(start, stop)
        return found, cells

    def blocks(self, size: int) -> Iterator[tuple[int, int, sparse.csr_matrix]]:
        """Yield ``(start, stop, block)`` for blocks of `size` cells in order."""
        if size < 1:
            raise ValueError(f"Cells must be read at least one at a time, but got {size}.")
        for start in range(0, self.n_cells, size):
            leave_if_asked()
            stop = min(start + size, self.n_cells)
            yield start, stop, self.rows(start, stop)

    def _refuse(self, bad: np.ndarray, block: sparse.csr_matrix, start: int, rule: str) -> None:
        if not bad.any():
            return
        entry = int(np.argmax(bad))
        cell = start + int(np.searchsorted(block.indptr, entry, side="right")) - 1
        gene = block.indices[entry]
        raise ValueError(
            f"{self.name} holds {block.data[entry]} for gene '{self.var.index[gene]}' in cell "
            f"'{self.cell_names[cell]}': {rule}."
        )


def _usual(dtype: np.dtype) -> np.dtype:
    """The type of numbers, or one that holds them and that SciPy and JAX have, too."""
    if dtype.itemsize > np.dtype(np.float64).itemsize:
        return np.dtype(np.float64)
    is_half = dtype == np.float16
    return np.dtype(np.float32) if is_half else dtype.newbyteorder("=")
