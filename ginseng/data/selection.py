"""Marking the genes that tell the labelled cells of an AnnData apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ginseng.data.annotation import groups_of, labels_of, require_two_labels
from ginseng.utils.counts import Counts, copy_of, whole_changes, with_columns
from ginseng.utils.hvg import TARGET_SUM, require_markable
from ginseng.utils.markers import VARIABLE_SHARE, Markers, markers
from ginseng.utils.messages import warn
from ginseng.utils.values import require_flags


def select_markers(
    adata: AnnData,
    label_key: str,
    n_top_genes: int = 1000,
    group_key: str | None = None,
    variable_share: float = VARIABLE_SHARE,
    layer: str | None = None,
    target_sum: float | None = TARGET_SUM,
    chunk_size: int = 5000,
    silent: bool = False,
    copy: bool = False,
    *,
    mapping: Any = None,
    unlabeled: str | Sequence[str] = (),
) -> AnnData | None:
    """Mark the genes that tell cell types apart.

    The effect of a gene on a type is how far the type's mean log-expression lies above that of all cells, in units of
    the standard deviation within types, ``sqrt(variance + 0.01)``. The types take turns, in the order of their names,
    each with the gene of the largest effect on it that is not yet taken; then come genes that vary for other reasons.

    The matrix is read once, in blocks, so that a backed AnnData of any size will do; beside a block it takes 8 bytes
    for each type and gene (and group). To judge a classifier on held-out cells, choose genes on the others.

    Parameters
    ----------
    adata : AnnData
        Cells x genes, with gene names in ``var``.
    label_key : str
        Column of ``adata.obs`` with the cell types. Cells without one are left out, with a warning.
    n_top_genes : int
        How many genes to choose; fewer where no more tell types apart, or vary.
    group_key : str, optional
        Column of ``adata.obs`` with the donor or batch of each cell: the effect on a type is then the median of those
        within the groups that have at least ten cells of the type and ten others.
    variable_share : float
        Share of the genes, below 1, that are chosen as `select_hvgs` does among those that are no markers yet, so that
        types without a label stay visible.
    layer : str, optional
        Key in ``adata.layers``; None for ``adata.X``.
    target_sum : float, optional
        Scale every cell to this total over all genes and take ``log(1 + x)``; None where the values are already
        normalised.
    chunk_size : int
        Number of cells read at once.
    silent : bool
        Show no progress bar.
    copy : bool
        Return a copy of `adata` and leave `adata` as it is.
    mapping, unlabeled
        Other names of the labels, and further ones that say that there is none, as for `GinsengDataset.create`.

    Returns
    -------
    AnnData or None
        The copy where `copy` is True. ``var["ginseng_genes"]`` is True for the chosen genes. For each type, the table
        ``uns["ginseng_markers"]`` has the chosen genes with an effect above 0 on it, the largest first, in the columns
        ``type``, ``gene``, ``rank`` (from 1) and ``effect``.

    Raises
    ------
    ValueError
        If a column or layer does not exist, there are fewer than two labels, a labelled cell has no group, a parameter
        is out of range, no gene differs between types, or a count is NaN, infinite or negative.

    Examples
    --------
    >>> obs = pd.DataFrame({"type": ["B", "T", "B", "T"]}, index=["a", "b", "c", "d"])
    >>> var = pd.DataFrame(index=["ACTB", "MS4A1", "CD3D"])
    >>> adata = AnnData(np.array([[9.0, 5, 0], [9, 0, 4], [8, 4, 0], [8, 1, 5]]), obs, var)
    >>> select_markers(adata, "type", n_top_genes=2, silent=True)
    >>> adata.uns["ginseng_markers"][["type", "gene", "rank"]]
      type   gene  rank
    0    B  MS4A1     1
    1    T   CD3D     1
    """
    require_flags(silent=silent, copy=copy)
    require_markable(adata, n_top_genes, layer, copy)
    labelled, labels = labels_of(adata.obs, label_key, mapping=mapping, unlabeled=unlabeled)
    require_two_labels(list(labels.categories), f"adata.obs['{label_key}']")
    groups = None if group_key is None else groups_of(adata.obs, group_key, labelled)
    counts = Counts(adata, layer, nonnegative=target_sum is not None)
    if counts.left_out:
        warn(counts.left_out)
    found = markers(
        ((stop - start, block[labelled[start:stop]]) for start, stop, block in counts.blocks(chunk_size)),
        (counts.n_cells, counts.n_genes),
        n_top_genes,
        labels.codes,
        None if groups is None else groups.codes,
        variable_share=variable_share,
        target_sum=target_sum,
        silent=silent,
    )
    marked = copy_of(adata) if copy else adata
    is_chosen = np.isin(np.arange(adata.n_vars), counts.columns[found.genes])
    with whole_changes(marked):
        marked.var = with_columns(marked.var, {"ginseng_genes": is_chosen})
        marked.uns["ginseng_markers"] = _table(found, labels.categories, counts.var.index)
    return marked if copy else None


def _table(found: Markers, types: pd.Index, genes: pd.Index) -> pd.DataFrame:
    """The chosen genes of each type, those of the largest effect first."""
    effects = found.effects[:, found.genes]
    type_, gene = np.nonzero(effects > 0)
    table = pd.DataFrame(
        {"type": types[type_], "gene": genes[found.genes[gene]], "effect": effects[type_, gene].astype(np.float32)}
    ).sort_values(["type", "effect"], ascending=[True, False], kind="stable", ignore_index=True)
    table.insert(2, "rank", table.groupby("type").cumcount() + 1)
    return table
