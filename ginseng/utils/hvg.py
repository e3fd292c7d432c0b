"""Highly variable genes, from moments streamed over blocks of cells."""

from collections.abc import Iterable, Iterator

import numpy as np
from anndata import AnnData
from scipy import sparse
from tqdm.auto import tqdm

from ginseng.utils.counts import Counts, copy_of, require_writable, whole_changes, with_columns
from ginseng.utils.messages import warn
from ginseng.utils.values import require_flags, require_integer

TARGET_SUM = 1e4  # counts of a cell before the logarithm
_MIN_MEAN, _MAX_MEAN = 0.025, 0.995
_N_BINS = 20


def log_normalize(block: sparse.csr_matrix, target_sum: float) -> sparse.csr_matrix:
    """Scale each cell to `target_sum` counts and take ``log(1 + x)``.

    Examples
    --------
    >>> log_normalize(sparse.csr_matrix([[1.0, 3.0]]), 4.0).toarray().round(3)
    array([[0.693, 1.386]])
    """
    totals = np.maximum(block @ np.ones(block.get_shape()[1]), 1e-8)
    scaled = block.data * np.repeat(target_sum / totals, np.diff(block.indptr))
    return sparse.csr_matrix((np.log1p(scaled), block.indices, block.indptr), shape=block.shape)


def log_normalized(
    blocks: Iterable[tuple[int, sparse.csr_matrix]], n_read: int, target_sum: float | None, silent: bool = False
) -> Iterator[sparse.csr_matrix]:
    """Yield each block in double precision, log-normalised unless `target_sum` is None, with a progress bar.

    Parameters
    ----------
    blocks : iterable of (int, scipy.sparse.csr_matrix)
        Counts, with the number of cells that were read for them.
    n_read : int
        Number of cells that are read in all.
    target_sum : float or None
        See `log_normalize`.
    silent : bool
        Show no progress bar.

    Examples
    --------
    >>> [x.toarray().round(3).tolist() for x in log_normalized([(1, sparse.csr_matrix([[1.0, 3.0]]))], 1, 4.0, True)]
    [[[0.693, 1.386]]]
    """
    with tqdm(total=n_read, desc="Genes", unit="cells", unit_scale=True, disable=silent) as bar:
        for n_read_here, block in blocks:
            yield sparse.csr_matrix(block, dtype=np.float64) if target_sum is None else log_normalize(block, target_sum)
            bar.update(n_read_here)


def require_markable(adata: AnnData, n_top_genes: int, layer: str | None, copy: bool) -> None:
    """Raise a ValueError unless so many genes can be marked in ``adata.var``, by the counts of the layer.

    Examples
    --------
    >>> require_markable(AnnData(np.eye(2)), 1, None, copy=False)
    """
    require_integer("n_top_genes", n_top_genes, 1)
    if not copy:
        require_writable(adata)
    if adata.n_vars == 0:
        raise ValueError("There is no gene to choose: `adata` has none.")
    if layer == "raw" and "raw" not in adata.layers:
        raise ValueError("Genes are marked in adata.var, but adata.raw has genes of its own; use adata.raw.to_adata().")


def select_hvgs(
    adata: AnnData,
    n_top_genes: int = 5000,
    layer: str | None = None,
    target_sum: float | None = TARGET_SUM,
    min_mean: float = _MIN_MEAN,
    max_mean: float = _MAX_MEAN,
    n_bins: int = _N_BINS,
    chunk_size: int = 5000,
    silent: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Mark the genes that vary most between cells, given how much they are expressed.

    The dispersion (variance over mean) of every gene is divided by the median dispersion of the genes of similar mean;
    the genes with the largest ratios are chosen. Genes whose mean lies outside the two quantiles are never chosen.
    The matrix is read once, in blocks, so that a backed AnnData of any size will do.

    Parameters
    ----------
    adata : AnnData
        Cells x genes, with gene names in ``var``.
    n_top_genes : int
        How many genes to choose.
    layer : str, optional
        Key in ``adata.layers``; None for ``adata.X``.
    target_sum : float, optional
        Scale every cell to this total and take ``log(1 + x)``; None where the values are already normalised.
    min_mean, max_mean : float
        Quantiles of the mean expression between which genes are considered.
    n_bins : int
        Number of equal-width bins of mean expression.
    chunk_size : int
        Number of cells read at once.
    silent : bool
        Show no progress bar.
    copy : bool
        Return a copy of `adata` and leave `adata` as it is.

    Returns
    -------
    AnnData or None
        The copy where `copy` is True. ``var["ginseng_genes"]`` is True for the chosen genes.

    Raises
    ------
    ValueError
        If a parameter is out of range, there are fewer than two cells, or a count is NaN, infinite or negative.

    References
    ----------
    Normalised dispersion after Satija et al., Nature Biotechnology 33, 495 (2015), with the median in place of the
    mean and standard deviation of each bin, as in ginseng 0.2.1.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(1.0, (50, 20)).astype("float32")
    >>> adata = AnnData(counts)
    >>> select_hvgs(adata, n_top_genes=5, silent=True)
    >>> int(adata.var["ginseng_genes"].sum())
    5
    """
    require_flags(silent=silent, copy=copy)
    require_markable(adata, n_top_genes, layer, copy)
    if not 0.0 <= min_mean < max_mean <= 1.0:
        raise ValueError(f"`min_mean` < `max_mean` must be quantiles in [0, 1], but got {min_mean} and {max_mean}.")
    require_integer("n_bins", n_bins, 1)
    if adata.n_obs < 2:
        raise ValueError(f"A variance needs at least two cells, but `adata` has {adata.n_obs}.")

    counts = Counts(adata, layer, nonnegative=target_sum is not None)
    if counts.left_out:
        warn(counts.left_out)
    genes = most_variable(
        ((stop - start, block) for start, stop, block in counts.blocks(chunk_size)),
        (counts.n_cells, counts.n_genes),
        n_top_genes,
        target_sum=target_sum,
        quantiles=(min_mean, max_mean),
        n_bins=n_bins,
        silent=silent,
    )
    chosen = np.isin(np.arange(adata.n_vars), counts.columns[genes])
    marked = copy_of(adata) if copy else adata
    with whole_changes(marked):
        marked.var = with_columns(marked.var, {"ginseng_genes": chosen})
    return marked if copy else None


def most_variable(
    blocks: Iterable[tuple[int, sparse.csr_matrix]],
    shape: tuple[int, int],
    n_top_genes: int,
    *,
    target_sum: float | None = TARGET_SUM,
    quantiles: tuple[float, float] = (_MIN_MEAN, _MAX_MEAN),
    n_bins: int = _N_BINS,
    silent: bool = False,
) -> np.ndarray:
    """Indices of the genes that vary most, as `select_hvgs` chooses them, over cells that come in blocks.

    Parameters
    ----------
    blocks : iterable of (int, scipy.sparse.csr_matrix)
        Counts of the cells to choose by, with the number of cells that were read for them.
    shape : tuple of int
        Number of cells that are read in all, and of genes.
    n_top_genes, target_sum, quantiles, n_bins, silent
        See `select_hvgs`; `quantiles` are `min_mean` and `max_mean`.

    Examples
    --------
    >>> counts = sparse.csr_matrix([[9.0, 5.0, 1.0], [1.0, 5.0, 1.0], [9.0, 4.0, 1.0]])
    >>> blocks = [(2, counts[:2]), (1, counts[2:])]
    >>> most_variable(blocks, counts.shape, 1, quantiles=(0.0, 1.0), n_bins=1, silent=True)
    array([0])
    """
    mean, variance = _moments(blocks, shape, target_sum, silent)
    return most_dispersed(mean, variance, n_top_genes, quantiles, n_bins)


def _moments(
    blocks: Iterable[tuple[int, sparse.csr_matrix]], shape: tuple[int, int], target_sum: float | None, silent: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of every gene over the cells of all blocks."""
    n_read, n_genes = shape
    n, total, total_of_squares = 0, np.zeros(n_genes), np.zeros(n_genes)
    for x in log_normalized(blocks, n_read, target_sum, silent):
        n += len(x.indptr) - 1
        total += np.bincount(x.indices, weights=x.data, minlength=n_genes)
        total_of_squares += np.bincount(x.indices, weights=x.data**2, minlength=n_genes)
    mean = total / n
    return mean, np.maximum(total_of_squares - n * mean**2, 0.0) / (n - 1)


def most_dispersed(
    mean: np.ndarray,
    variance: np.ndarray,
    n_top_genes: int,
    quantiles: tuple[float, float] = (_MIN_MEAN, _MAX_MEAN),
    n_bins: int = _N_BINS,
) -> np.ndarray:
    """Indices of the genes with the largest dispersion relative to their bin of mean expression.

    A bin half of whose genes are never expressed has a median of 0: nothing in it counts as variable.

    Parameters
    ----------
    mean, variance : numpy.ndarray
        Of the log-normalised expression of each gene.
    n_top_genes, quantiles, n_bins
        See `most_variable`.

    Examples
    --------
    >>> most_dispersed(np.ones(3), np.array([1.0, 3.0, 2.0]), 2, n_bins=1)
    array([1, 2])
    """
    low, high = np.quantile(mean, quantiles)
    kept = np.flatnonzero((mean >= low) & (mean <= high))
    mean, variance = mean[kept], variance[kept]
    dispersion = np.divide(variance, mean, out=np.zeros_like(mean), where=mean > 0)
    edges = np.linspace(mean.min(), mean.max(), n_bins + 1)
    bins = np.clip(np.digitize(mean, edges) - 1, 0, n_bins - 1)
    relative = np.zeros_like(mean)
    for b in np.unique(bins):
        in_bin = bins == b
        median = np.median(dispersion[in_bin])
        if median > 0:
            relative[in_bin] = dispersion[in_bin] / median
    order = np.argsort(-relative, kind="stable")
    return kept[order[mean[order] > 0][:n_top_genes]]
