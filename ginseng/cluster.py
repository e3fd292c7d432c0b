"""Small clusters of cells, for a consensus (needs the `cluster` extra: scanpy and igraph)."""

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float

try:
    import igraph  # noqa: F401  # scanpy imports it only when it clusters
    import scanpy as sc
    from sklearn.neighbors import KNeighborsTransformer
except ModuleNotFoundError as error:
    raise ImportError(f"Clusters need {error.name}: pip install 'ginseng-eqx[cluster]'.") from error

from ginseng.utils.values import require_integer, require_number

_RESOLUTION_BELOW = {5_000: 5.0, 20_000: 10.0, 40_000: 15.0, 100_000: 20.0, 200_000: 25.0}  # as CellTypist's
_MOST_NEIGHBOURS = 15
_FEWEST = 4  # cells that have neighbours worth the name


def leiden(
    embedding: Float[np.ndarray, "cells dimensions"], resolution: float | None = None, seed: int = 0
) -> pd.Categorical:
    """Cluster cells by Leiden on the graph of their nearest neighbours, which are found exactly.

    Of many more than 100,000 cells that takes long: cluster these by other means.

    Parameters
    ----------
    embedding : numpy.ndarray
        Place of each cell, such as ``adata.obsm["X_ginseng"]``.
    resolution : float, optional
        The larger, the smaller the clusters. By default 5 for fewer than 5,000 cells, up to 30 for 200,000 or more, as
        CellTypist chooses it: clusters for a consensus are to hold one type each.
    seed : int
        Of the neighbours and the clusters.

    Returns
    -------
    pandas.Categorical
        Name of each cell's cluster: "0" is the largest.

    Raises
    ------
    ValueError
        If the embedding is no finite table, or another value is out of its range.

    Examples
    --------
    >>> points = np.repeat([[0.0, 0.0], [9.0, 9.0]], 20, axis=0) + np.random.default_rng(0).normal(size=(40, 2))
    >>> clusters = leiden(points, resolution=0.1)
    >>> len(set(clusters[:20])), len(set(clusters[20:])), len(clusters.categories)
    (1, 1, 2)
    """
    if not np.isfinite(embedding).all():
        raise ValueError("The embedding to be clustered must be finite.")
    if resolution is not None:
        require_number("resolution", resolution, "(0, inf)")
    require_integer("seed", seed, 0, below=2**31)
    n_cells = len(embedding)
    if n_cells < _FEWEST:
        return pd.Categorical(["0"] * n_cells)
    if resolution is None:
        resolution = next((value for below, value in _RESOLUTION_BELOW.items() if n_cells < below), 30.0)
    cells = AnnData(np.asarray(embedding, np.float32))
    n_neighbors = min(_MOST_NEIGHBOURS, n_cells - 1)
    exact = KNeighborsTransformer(n_neighbors=n_neighbors, n_jobs=-1)  # others take half a minute to be compiled
    sc.pp.neighbors(cells, n_neighbors, use_rep="X", transformer=exact, random_state=seed)  # pyright: ignore
    sc.tl.leiden(cells, resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False)
    return pd.Categorical(cells.obs["leiden"])
