"""Consensus over clusters: cells hear what their neighbours are called, in columns of its own."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse, stats

from ginseng.utils.messages import unknown_name
from ginseng.utils.values import require_number

WAYS = ("soft", "majority")
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
        Column of `obs`, or the cluster of each cell; a missing value is a cell without one.

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
        if over not in obs:
            raise unknown_name("column", over, "adata.obs", obs.columns)
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
    values = pd.Series(np.asarray(values) if not isinstance(values, pd.Series) else values).reset_index(drop=True)
    if pd.api.types.is_float_dtype(values.dtype):
        known = values.dropna()
        if (known != known.round()).any():
            raise ValueError(
                f"{name} holds measurements, such as {known[known != known.round()].iloc[0]}, no clusters."
            )
        values = values.astype("Int64")
    return pd.Categorical(values)


def consensus(
    probabilities: Float[np.ndarray, "cells labels"],
    clusters: pd.Categorical,
    way: str = "soft",
    *,
    is_empty: Bool[np.ndarray, " cells"] | None = None,
    weight: float = 0.5,
) -> Consensus:
    """Call cells by what their cluster says.

    The soft consensus averages the probabilities of a cell with the mean of its cluster, so that a rare type within a
    cluster keeps its name where it is sure of it. The hard one calls all cells of a cluster by its most frequent label
    (the likelier of equals), as CellTypist does (Domínguez Conde et al., Science 2022).

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
    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.3, 0.7]])
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
    is_novel: Bool[np.ndarray, " cells"],
    clusters: pd.Categorical,
    alpha: float = 0.05,
    *,
    is_empty: Bool[np.ndarray, " cells"] | None = None,
) -> pd.DataFrame:
    """Name the clusters that look unlike training as a whole.

    Parameters
    ----------
    is_novel : numpy.ndarray
        Cells that look unlike training.
    clusters : pandas.Categorical
        As `clusters_in` returns them.
    alpha : float
        Share of cells of known types that look so by chance; also the false discovery rate.
    is_empty : numpy.ndarray, optional
        Cells without counts, which are not counted.

    Returns
    -------
    pandas.DataFrame
        For each cluster: ``n_cells``, ``novel_share``, ``p_value`` (binomial, of so many novel cells by chance) and
        ``is_novel``, which holds where that is significant among all clusters (Benjamini and Hochberg, J R Stat Soc B
        1995).

    Raises
    ------
    ValueError
        If `alpha` does not lie between 0 and 1.

    Examples
    --------
    >>> is_novel = np.arange(40) >= 30
    >>> novel_by_cluster(is_novel, pd.Categorical(["a"] * 30 + ["b"] * 10))[["n_cells", "novel_share", "is_novel"]]
       n_cells  novel_share  is_novel
    a       30          0.0     False
    b       10          1.0      True
    """
    require_number("alpha", alpha, "(0, 1)")
    is_in = (clusters.codes >= 0) if is_empty is None else (clusters.codes >= 0) & ~is_empty
    n_clusters = len(clusters.categories)
    n_cells = np.bincount(clusters.codes[is_in], minlength=n_clusters)
    n_novel = np.bincount(clusters.codes[is_in & is_novel], minlength=n_clusters)
    p_value = stats.binom.sf(n_novel - 1, n_cells, alpha)
    return pd.DataFrame(
        {
            "n_cells": n_cells,
            "novel_share": n_novel / np.maximum(n_cells, 1),
            "p_value": p_value,
            "is_novel": stats.false_discovery_control(p_value) <= alpha if n_clusters else np.zeros(0, bool),
        },
        index=clusters.categories.astype(str),
    )


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
