"""Marker genes of types, from moments streamed over blocks of cells."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from ginseng.utils.hvg import TARGET_SUM, log_normalized, most_dispersed
from ginseng.utils.values import require_number

VARIABLE_SHARE = 0.2  # of the genes: types that are in no label stay visible
_LEAST_VARIANCE = 0.01  # of log-expression: keeps genes that hardly any cell expresses from large effects
_DECIMALS = 9  # of an effect: sums in another order do not make another choice, and equal means have no effect
_LEAST_CELLS = 10  # of a type, and of the others, in a group whose effect counts


class Moments(NamedTuple):
    """What effects are computed from, for each group, type and gene.

    Attributes
    ----------
    n_cells : numpy.ndarray
        Number of cells, groups x types.
    sums : numpy.ndarray
        Sums of log-normalised expression, groups x types x genes.
    squares : numpy.ndarray
        Sums of its squares over all cells, one for each gene.

    Examples
    --------
    >>> Moments(np.array([[2]]), np.array([[[3.0]]]), np.array([5.0])).n_cells
    array([[2]])
    """

    n_cells: np.ndarray
    sums: np.ndarray
    squares: np.ndarray


class Markers(NamedTuple):
    """Genes that tell types apart.

    Attributes
    ----------
    genes : numpy.ndarray
        Indices of the chosen genes: markers in the order in which the types took them, then variable genes.
    effects : numpy.ndarray
        Effect of every gene on every type, types x genes.

    Examples
    --------
    >>> Markers(np.array([1]), np.array([[0.0, 2.0], [0.0, -2.0]])).genes
    array([1])
    """

    genes: np.ndarray
    effects: np.ndarray


def markers(
    blocks: Iterable[tuple[int, sparse.csr_matrix]],
    shape: tuple[int, int],
    n_top_genes: int,
    types: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    variable_share: float = VARIABLE_SHARE,
    target_sum: float | None = TARGET_SUM,
    silent: bool = False,
) -> Markers:
    """Choose genes as `ginseng.select_markers` does, over cells that come in blocks.

    Parameters
    ----------
    blocks : iterable of (int, scipy.sparse.csr_matrix)
        Counts of the labelled cells, with the number of cells that were read for them.
    shape : tuple of int
        Number of cells that are read in all, and of genes.
    n_top_genes, variable_share, target_sum, silent
        See `ginseng.select_markers`.
    types, groups : numpy.ndarray
        Codes from 0 of the cells in the order of the blocks; there may be no groups.

    Raises
    ------
    ValueError
        If no gene differs between types.

    Examples
    --------
    >>> counts = sparse.csr_matrix([[9.0, 5.0, 1.0], [1.0, 5.0, 8.0], [9.0, 4.0, 1.0]])
    >>> blocks = [(2, counts[:2]), (1, counts[2:])]
    >>> markers(blocks, counts.shape, 2, np.array([0, 1, 0]), silent=True).genes
    array([0, 2])
    """
    require_number("variable_share", variable_share, "[0, 1)")
    moments = moments_of(blocks, shape, types, groups, target_sum=target_sum, silent=silent)
    effects = effects_of(moments)
    genes = take_turns(effects, n_top_genes - int(n_top_genes * variable_share))
    if len(genes) == 0:
        raise ValueError("No gene differs between the types.")
    n, mean = moments.n_cells.sum(), moments.sums.sum((0, 1)) / moments.n_cells.sum()
    variable = most_dispersed(mean, moments.squares / n - mean**2, shape[1])
    others = variable[~np.isin(variable, genes)]
    return Markers(np.concatenate([genes, others[: n_top_genes - len(genes)]]), effects)


def moments_of(
    blocks: Iterable[tuple[int, sparse.csr_matrix]],
    shape: tuple[int, int],
    types: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    target_sum: float | None = TARGET_SUM,
    silent: bool = False,
) -> Moments:
    """Add up the cells of each group and type: 8 bytes for each group, type and gene, however many cells there are.

    Parameters
    ----------
    blocks, shape, types, groups, target_sum, silent
        See `markers`.

    Examples
    --------
    >>> counts = sparse.csr_matrix([[9.0, 5.0], [1.0, 5.0], [9.0, 4.0]])
    >>> blocks = [(2, counts[:2]), (1, counts[2:])]
    >>> moments_of(blocks, counts.shape, np.array([0, 1, 0]), target_sum=None, silent=True).sums
    array([[[18.,  9.],
            [ 1.,  5.]]])
    """
    n_read, n_genes = shape
    groups = np.zeros(len(types), dtype=np.int64) if groups is None else groups
    n_groups, n_types = int(groups.max()) + 1, int(types.max()) + 1
    kinds = groups.astype(np.int64) * n_types + types
    sums, squares, start = np.zeros(n_groups * n_types * n_genes), np.zeros(n_genes), 0
    for x in log_normalized(blocks, n_read, target_sum, silent):
        n_here = len(x.indptr) - 1
        here = kinds[start : start + n_here]
        members = sparse.csr_matrix((np.ones(n_here), (here, np.arange(n_here))), shape=(n_groups * n_types, n_here))
        of_kinds = sparse.coo_matrix(members @ x)
        sums[of_kinds.row.astype(np.int64) * n_genes + of_kinds.col] += of_kinds.data
        squares += np.bincount(x.indices, weights=x.data**2, minlength=n_genes)
        start += n_here
    n_cells = np.bincount(kinds, minlength=n_groups * n_types).reshape(n_groups, n_types)
    return Moments(n_cells, sums.reshape(n_groups, n_types, n_genes), squares)


def effects_of(moments: Moments) -> np.ndarray:
    """How far the mean of each type lies above that of all cells, in standard deviations within types.

    Of several groups it is the median of the effects within those that have at least ten cells of the type and ten
    others; where no group has, the effect over all cells.

    Parameters
    ----------
    moments : Moments
        See `moments_of`.

    Returns
    -------
    numpy.ndarray
        Types x genes.

    Examples
    --------
    >>> moments = Moments(np.array([[2, 2]]), np.array([[[4.0, 1.0], [0.0, 1.0]]]), np.array([8.0, 1.0]))
    >>> effects_of(moments).tolist()
    [[10.0, 0.0], [-10.0, 0.0]]
    """
    n_cells, sums = moments.n_cells.sum(0), moments.sums.sum(0)
    n_types, n = len(n_cells), n_cells.sum()
    of_types = sums / n_cells[:, None]
    within = np.maximum(moments.squares - (sums * of_types).sum(0), 0.0) / max(n - n_types, 1)
    deviation = np.sqrt(within + _LEAST_VARIANCE)
    found = (of_types - sums.sum(0) / n) / deviation
    of_groups = moments.n_cells.sum(1)
    for type_ in range(n_types) if len(of_groups) > 1 else ():
        here = moments.n_cells[:, type_]
        counted = np.flatnonzero((here >= _LEAST_CELLS) & (of_groups - here >= _LEAST_CELLS))
        if len(counted):
            of_type = moments.sums[counted, type_] / here[counted, None]
            of_group = moments.sums[counted].sum(1) / of_groups[counted, None]
            found[type_] = np.median(of_type - of_group, axis=0) / deviation
    return found.round(_DECIMALS)


def take_turns(scores: np.ndarray, n_top_genes: int) -> np.ndarray:
    """Indices of the genes that are chosen as rows take turns, each with its best gene that is not yet taken.

    A row without a score above 0 that is left passes, so that there may be fewer genes than asked for.

    Examples
    --------
    >>> take_turns(np.array([[5.0, 4.0, 3.0, 0.0], [9.0, 1.0, 0.0, 0.0]]), 3)
    array([0, 1, 2])
    """
    preferred = [
        iter(order[row[order] > 0]) for order, row in zip(np.argsort(-scores, kind="stable"), scores, strict=True)
    ]
    taken: dict[int, None] = {}
    n_before = -1
    while n_before < len(taken) < n_top_genes:
        n_before = len(taken)
        for genes in preferred:
            gene = next((gene for gene in genes if gene not in taken), None)
            if gene is not None and len(taken) < n_top_genes:
                taken[gene] = None
    return np.array(list(taken), dtype=np.int64)
