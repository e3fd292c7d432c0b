"""Consensus over clusters: cells hear what their neighbours are called, in columns of its own."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse

from ginseng.utils.labels import names_in, without_none
from ginseng.utils.messages import require_one, warn
from ginseng.utils.values import require_number

WAYS = ("soft", "majority")
_LEAST_CELLS, _NOVEL_ON_AVERAGE = 20, 0.75  # of a cluster
CELLTYPIST_COLUMNS = ("predicted_labels", "over_clustering", "majority_voting", "conf_score")
MADE = "auto"  # clusters that are made of the embedding


class Consensus(NamedTuple):
    """What clusters call their cells.

    Attributes
    ----------
    codes : numpy.ndarray
        Place of each cell's label among the labels; -1 without one.
    share : numpy.ndarray
        Share of the cells of the cluster that are called so on their own; NaN without a cluster.
    """

    codes: Int[np.ndarray, " cells"]
    share: Float[np.ndarray, " cells"]


def is_to_be_made(over: Any) -> bool:
    """Whether clusters are asked for that are made of the embedding.

    Examples
    --------
    >>> is_to_be_made("auto"), is_to_be_made("leiden")
    (True, False)
    """
    return isinstance(over, str) and over == MADE


def require_way(way: str) -> None:
    """Raise a ValueError unless a way to a consensus exists.

    Examples
    --------
    >>> require_way("hard")
    Traceback (most recent call last):
        ...
    ValueError: `consensus` must be 'soft' or 'majority', but got 'hard'.
    """
    if way not in WAYS:
        raise ValueError(f"`consensus` must be 'soft' or 'majority', but got {way!r}.")


def clusters_in(obs: pd.DataFrame, over: Any) -> pd.Categorical:
    """Clusters of cells, checked.

    Parameters
    ----------
    obs : pandas.DataFrame
        Of the cells.
    over : str or array-like
        Column of `obs`, or the cluster of each cell; a missing value is a cell without one, as is a text that says so.

    Returns
    -------
    pandas.Categorical
        One cluster for each cell.

    Raises
    ------
    ValueError
        If there is no such column, it holds measurements, or there is not one cluster for each cell.

    Examples
    --------
    >>> clusters_in(pd.DataFrame({"leiden": ["0", "1", None]}), "leiden").codes
    array([ 0,  1, -1], dtype=int8)
    """
    if isinstance(over, str):
        require_one("column", over, "adata.obs", obs.columns)
        name, values = f"column '{over}' of adata.obs", obs[over]
    else:
        name, values = "`over`", over
        if np.ndim(values) != 1 or len(values) != len(obs):
            raise ValueError(
                f"`over` must be a column of adata.obs, {MADE!r}, or one cluster for each of the {len(obs):,} cells, "
                f"but has the shape {np.shape(values)}."
            )
        if isinstance(values, pd.Series) and not values.index.equals(obs.index):
            raise ValueError(
                "`over` is a Series whose index is not adata.obs_names: pass over=series.reindex(adata.obs_names), or "
                "over=series.to_numpy() if it is in the order of the cells."
            )
    clusters, said = without_none(names_in(values, name))
    if said:
        warn(f"Some cells have no cluster in {name} ({said}) and keep their own label.")
    return clusters


def consensus(
    probabilities: Float[np.ndarray, "cells labels"],
    clusters: pd.Categorical,
    way: str = "soft",
    *,
    is_empty: Bool[np.ndarray, " cells"] | None = None,
    weight: float = 0.25,
) -> Consensus:
    """Call cells by what their cluster says.

    The soft consensus averages the probabilities of a cell with the mean of its cluster, so that cells that are sure
    keep their name, and those of rare types with them. The hard one calls all cells of a cluster by its most frequent
    label (the likelier of equals), as CellTypist does (Domínguez Conde et al., Science 2022).

    Parameters
    ----------
    probabilities : numpy.ndarray
        Of each cell for each label.
    clusters : pandas.Categorical
        As `clusters_in` returns them. Cells without one keep their own label.
    way : {"soft", "majority"}
        The soft or the hard consensus.
    is_empty : numpy.ndarray, optional
        Cells without counts, which have no voice and no label.
    weight : float
        Of the mean of the cluster, in the soft consensus.

    Returns
    -------
    Consensus
        Label of each cell and share of the votes for it.

    Examples
    --------
    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.48, 0.52], [0.3, 0.7]])
    >>> codes, share = consensus(probabilities, pd.Categorical(["a"] * 4))
    >>> codes.tolist(), share.tolist()
    ([0, 0, 0, 1], [0.5, 0.5, 0.5, 0.5])
    """
    require_way(way)
    has_voice = np.ones(len(probabilities), bool) if is_empty is None else ~is_empty
    own = probabilities.argmax(axis=1)
    places = np.asarray(clusters.codes, np.int64)
    is_in = has_voice & (places >= 0)
    of_cluster = _indicator(places, is_in, max(1, len(clusters.categories)))
    votes = of_cluster.T @ np.eye(probabilities.shape[1], dtype=np.float32)[own]
    n_votes = np.maximum(votes.sum(axis=1, keepdims=True), 1)
    means = of_cluster.T @ probabilities / n_votes
    if way == "majority":
        called = np.lexsort((means, votes), axis=1)[:, -1]
        codes = np.where(is_in, called[places], own)
    else:
        codes = ((1 - weight) * probabilities + weight * means[places]).argmax(axis=1)
        codes = np.where(is_in, codes, own)
    share = (votes / n_votes)[places, codes].astype(np.float32)
    return Consensus(np.where(has_voice, codes, -1), np.where(is_in, share, np.float32(np.nan)))


def novel_by_cluster(
    novelty: Float[np.ndarray, " cells"],
    clusters: pd.Categorical,
    novel_error: float = 0.05,
    *,
    is_empty: Bool[np.ndarray, " cells"] | None = None,
) -> pd.DataFrame:
    """Name the clusters that look unlike training as a whole.

    Parameters
    ----------
    novelty : numpy.ndarray
        Share of known cells that are nearer to training than each cell: 0.5 on average for cells like those. Cells of
        which it is not known (NaN) are not counted.
    clusters : pandas.Categorical
        As `clusters_in` returns them.
    novel_error : float
        Share of known cells that are called novel.
    is_empty : numpy.ndarray, optional
        Cells without counts, which are not counted.

    Returns
    -------
    pandas.DataFrame
        For each cluster: ``n_cells``, mean ``novelty``, ``novel_share`` (of cells with a novelty of ``1 - novel_error``
        or more), and ``is_novel``, which holds for clusters of at least 20 cells with a mean novelty above 0.75: a rule
        found by leaving types out among donors of one study. Of another study most clusters for which it holds are of
        known types (see ``benchmarks/recipes.md``).

    Raises
    ------
    ValueError
        If `novel_error` does not lie between 0 and 1.

    Examples
    --------
    >>> novelty = np.linspace(0, 0.99, 60)
    >>> novel_by_cluster(novelty, pd.Categorical(["a"] * 40 + ["b"] * 20))[["n_cells", "novel_share", "is_novel"]]
       n_cells  novel_share  is_novel
    a       40         0.00     False
    b       20         0.15      True
    """
    require_number("novel_error", novel_error, "(0, 1)")
    is_in = (clusters.codes >= 0) & ~np.isnan(novelty)
    is_in = is_in if is_empty is None else is_in & ~is_empty
    codes, of_cells, n_clusters = clusters.codes[is_in], novelty[is_in], len(clusters.categories)
    n_cells = np.bincount(codes, minlength=n_clusters)
    sums = (np.bincount(codes, values, n_clusters) for values in (of_cells, of_cells >= 1 - novel_error))
    mean, share = (total / np.maximum(n_cells, 1) for total in sums)
    is_novel = (n_cells >= _LEAST_CELLS) & (mean > _NOVEL_ON_AVERAGE)
    table = {"n_cells": n_cells, "novelty": mean, "novel_share": share, "is_novel": is_novel}
    return pd.DataFrame(table, index=clusters.categories.astype(str))


def require_compat(compat: str | None) -> None:
    """Raise a ValueError unless columns are known to be called so.

    Examples
    --------
    >>> require_compat("celltypist")
    """
    if compat not in (None, "celltypist"):
        raise ValueError(f"`compat` must be 'celltypist' or None, but got {compat!r}.")


def celltypist_columns(
    cell_type: pd.Categorical,
    confidence: Float[np.ndarray, " cells"],
    clusters: pd.Categorical | None = None,
    agreed: pd.Categorical | None = None,
) -> dict[str, Any]:
    """Columns of ``obs`` as CellTypist calls them, for pipelines that expect those.

    Parameters
    ----------
    cell_type : pandas.Categorical
        Of each cell on its own.
    confidence : numpy.ndarray
        Probability of that type.
    clusters, agreed : pandas.Categorical, optional
        Clusters, and the label of each cell by consensus.

    Returns
    -------
    dict
        ``predicted_labels`` and ``conf_score``; with clusters also ``over_clustering`` and ``majority_voting``.

    Examples
    --------
    >>> list(celltypist_columns(pd.Categorical(["B"]), np.array([0.9])))
    ['predicted_labels', 'conf_score']
    """
    of_clusters = {} if clusters is None else {"over_clustering": clusters, "majority_voting": agreed}
    return {"predicted_labels": cell_type, **of_clusters, "conf_score": confidence}


def _indicator(places: np.ndarray, is_in: np.ndarray, n_clusters: int) -> sparse.csr_matrix:
    """Cells x clusters: one where a cell with a voice is."""
    rows = np.flatnonzero(is_in)
    ones = np.ones(len(rows), np.float32)
    return sparse.csr_matrix((ones, (rows, places[rows])), shape=(len(places), n_clusters))
