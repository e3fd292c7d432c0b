"""Annotating new cells: gene alignment, batched inference, results in AnnData."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import sparse
from tqdm.auto import tqdm

from ginseng.data.models import load_model
from ginseng.data.readers import read_adata
from ginseng.model.attention import AttentionClassifier
from ginseng.model.state import GinsengClassifierState, classifier_from_state
from ginseng.utils.counts import Counts, copy_of, quiet_about_views, require_writable
from ginseng.utils.genes import gene_selector, match_genes
from ginseng.utils.messages import shorten, unknown_name

_CELLS_READ_AT_ONCE = 4096


def _gene_names(var: Any, gene_key: str | None) -> np.ndarray:
    if gene_key is None:
        return var.index.to_numpy().astype(str)
    if gene_key not in var:
        raise unknown_name("gene column", gene_key, "adata.var", var.columns)
    return var[gene_key].to_numpy().astype(str)


def _match(var: Any, gene_names: np.ndarray, gene_key: str | None) -> np.ndarray:
    """Position of each gene of `var` among `gene_names`, or -1; an error if there is no match at all."""
    names = _gene_names(var, gene_key)
    positions = match_genes(names, gene_names)
    if (positions >= 0).any():
        return positions
    columns = [None, *(column for column in var.columns if var[column].dtype.kind not in "biufc")]
    n_found = {column: (match_genes(_gene_names(var, column), gene_names) >= 0).sum() for column in columns}
    best = max(n_found, key=lambda column: n_found[column])
    way_out = (
        f"gene_key={best!r} would match {n_found[best]:,} of them"
        if n_found[best]
        else "other species, or symbols on one side and identifiers on the other?"
    )
    raise ValueError(
        f"No gene in common: the model knows {shorten(gene_names, 3)}; the data have {shorten(names, 3)}; {way_out}."
    )


def _get_gene_indices(adata: AnnData, gene_names: np.ndarray, gene_key: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Map the genes of a model to indices within an AnnData object.

    Parameters
    ----------
    adata : AnnData
        The single-cell data.
    gene_names : numpy.ndarray
        Gene names expected by the model, in its order.
    gene_key : str or None
        Column of ``adata.var`` with gene names; None for ``adata.var_names``.

    Returns
    -------
    available_idx : numpy.ndarray
        Indices of the genes of `adata` that the model knows, in the order of the model. A gene that `adata` has more
        than once is there more than once.
    out_positions : numpy.ndarray
        For each of them, its position in the model's input.

    Raises
    ------
    ValueError
        If the column does not exist or there is no gene in common.

    Examples
    --------
    >>> adata = AnnData(np.zeros((1, 3)), var=pd.DataFrame(index=["A", "B", "C"]))
    >>> _get_gene_indices(adata, np.array(["C", "X", "A"]), None)
    (array([2, 0]), array([0, 2]))
    """
    positions = _match(adata.var, gene_names, gene_key)
    available_idx = np.flatnonzero(positions >= 0)
    available_idx = available_idx[np.argsort(positions[available_idx], kind="stable")]
    return available_idx, positions[available_idx]


def annotate_iter(
    adata: AnnData,
    gene_names: np.ndarray,
    gene_key: str | None = None,
    layer: str | None = None,
    batch_size: int = 512,
) -> Iterator[tuple[Float[Array, "batch genes"], int, int]]:
    """Iterate over batches of cells with the genes of a model, in its order.

    Genes that the data lack are zero; a gene that they have more than once is summed.

    Parameters
    ----------
    adata : AnnData
        The single-cell data, in any storage: dense, CSR, CSC, backed, a view, Dask.
    gene_names : numpy.ndarray
        Gene names of the model, in its order.
    gene_key : str or None
        Column of ``adata.var`` to match genes by; None for ``adata.var_names``.
    layer : str or None
        Key in ``adata.layers``, or ``"raw"``; None for ``adata.X``.
    batch_size : int
        Number of cells per batch.

    Yields
    ------
    batch_tensor : jax.Array
        Counts of shape ``(batch_size, n_model_genes)``, float32; the last batch may be shorter.
    start, end : int
        Range of the cells in `adata`.

    Raises
    ------
    ValueError
        If a name does not exist, `batch_size` is below 1, there is no gene in common, or a value is not finite.

    Examples
    --------
    >>> adata = AnnData(np.eye(3, dtype="float32"), var=pd.DataFrame(index=["A", "B", "C"]))
    >>> [(batch.shape, start, end) for batch, start, end in annotate_iter(adata, np.array(["C", "X"]), batch_size=2)]
    [((2, 2), 0, 2), ((1, 2), 2, 3)]
    """
    for batch, start, end in _aligned_batches(Counts(adata, layer), gene_names, gene_key, batch_size):
        yield jnp.asarray(batch), start, end


def _aligned_batches(
    counts: Counts, gene_names: np.ndarray, gene_key: str | None, batch_size: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
    positions = _match(counts.var, gene_names, gene_key)
    n_missing = len(gene_names) - len(np.unique(positions[positions >= 0]))
    if n_missing:
        warnings.warn(
            f"{n_missing:,} of the {len(gene_names):,} genes of the model are not in the data and count as zero.",
            stacklevel=3,
        )
    n_repeated = (np.bincount(positions[positions >= 0]) > 1).sum()
    if n_repeated:
        warnings.warn(f"{n_repeated:,} genes occur more than once in the data; their counts are summed.", stacklevel=3)
    selector = gene_selector(positions, len(gene_names))
    size = max(batch_size, _CELLS_READ_AT_ONCE // batch_size * batch_size)
    for block_start, block_stop, block in counts.blocks(size):
        aligned = sparse.csr_matrix(block.astype(np.float32) @ selector)
        for start in range(block_start, block_stop, batch_size):
            end = min(start + batch_size, block_stop)
            yield aligned[start - block_start : end - block_start].toarray(), start, end


@eqx.filter_jit
def _probabilities(model: AttentionClassifier, x: Float[Array, "batch genes"], key: PRNGKeyArray | None):
    return jax.nn.softmax(model.attend(x, key=key)[0], axis=-1)


def classify(
    model_state: GinsengClassifierState | str | Path,
    adata: AnnData | str | Path,
    gene_key: str | None = None,
    layer: str | None = None,
    backed: bool = True,
    normalize: bool | None = None,
    target_sum: float | None = None,
    randomness: bool = False,
    batch_size: int = 256,
    copy: bool = False,
    store_probs: bool = False,
    return_table: bool = False,
    seed: int = 123,
    silent: bool = False,
) -> AnnData | pd.DataFrame | None:
    """Annotate cells with a trained classifier.

    Parameters
    ----------
    model_state : GinsengClassifierState, str or Path
        A loaded state, or the path of a saved one.
    adata : AnnData, str or Path
        Raw counts, or the path or URL of such (.h5ad, 10x .h5, 10x directory, .zarr).
    gene_key : str or None
        Column of ``var`` with gene names; None for the index.
    layer : str or None
        Key in ``adata.layers`` with the counts, or ``"raw"``; None for ``adata.X``.
    backed : bool
        Where `adata` is the path of an .h5ad file, leave the counts on disk and read them in blocks.
    normalize : bool or None
        Override the normalisation setting of the model.
    target_sum : float or None
        Override the target sum of the model.
    randomness : bool
        Leave dropout on.
    batch_size : int
        Number of cells per forward pass.
    copy : bool
        Return an annotated copy in memory and leave `adata` as it is.
    store_probs : bool
        Store the probability of every cell type in ``obsm["ginseng_probs"]``.
    return_table : bool
        Return a table and leave `adata` as it is.
    seed : int
        Seed of the dropout masks where `randomness` is True.
    silent : bool
        No progress bar and no warnings.

    Returns
    -------
    AnnData, pandas.DataFrame or None
        With `return_table`, a table indexed by ``obs_names`` with the columns ``ginseng_cell_type``,
        ``ginseng_confidence`` (the probability of that type) and one column of probabilities per cell type. Else the
        annotated AnnData if `copy` is True or `adata` was a path, and None if `adata` was annotated in place. AnnData
        gets ``obs["ginseng_cell_type"]`` and ``obs["ginseng_confidence"]``.

    Raises
    ------
    ValueError
        If a file, layer, column or value is not usable; the message says what to do. `adata` is then as it was.

    Examples
    --------
    >>> import ginseng
    >>> table = ginseng.classify("model.h5", "new_cells.h5ad", return_table=True)  # doctest: +SKIP
    """
    with warnings.catch_warnings():
        if silent:
            warnings.simplefilter("ignore")
        from_path = not isinstance(adata, AnnData)
        state = model_state if isinstance(model_state, GinsengClassifierState) else load_model(model_state)
        data = read_adata(adata, backed=backed) if not isinstance(adata, AnnData) else adata
        if not (copy or return_table):
            require_writable(data)
        model = _configured(state, normalize, target_sum, randomness)
        probabilities = _annotate(model, np.asarray(state.genes), data, gene_key, layer, batch_size, seed, silent)

    labels = state.output_labels
    best = probabilities.argmax(axis=1)
    cell_type = pd.Categorical.from_codes(best, categories=labels)
    confidence = probabilities[np.arange(len(best)), best]
    if return_table:
        columns = {"ginseng_cell_type": cell_type, "ginseng_confidence": confidence}
        table = pd.DataFrame(columns, index=data.obs_names)
        if from_path and data.isbacked:
            data.file.close()
        return pd.concat([table, pd.DataFrame(probabilities, columns=labels, index=data.obs_names)], axis=1)
    data = copy_of(data) if copy else data
    with quiet_about_views():
        data.obs["ginseng_cell_type"] = cell_type
        data.obs["ginseng_confidence"] = confidence
        if store_probs:
            data.obsm["ginseng_probs"] = probabilities
    return data if copy or from_path else None


def _configured(
    state: GinsengClassifierState, normalize: bool | None, target_sum: float | None, randomness: bool
) -> AttentionClassifier:
    """Build the network of a state, with the caller's overrides."""
    overrides = {
        name: value for name, value in (("normalize", normalize), ("target_sum", target_sum)) if value is not None
    }
    model = classifier_from_state(dataclasses.replace(state, **overrides)).module
    return eqx.nn.inference_mode(model, not randomness)


def _annotate(
    model: AttentionClassifier,
    genes: np.ndarray,
    adata: AnnData,
    gene_key: str | None,
    layer: str | None,
    batch_size: int,
    seed: int,
    silent: bool,
) -> np.ndarray:
    """Probability of each cell type, (cells, classes)."""
    counts = Counts(adata, layer, nonnegative=model.normalize)
    if model.normalize:
        counts.warn_unless_integers()
    probabilities = [jnp.empty((0, model.n_classes))]  # left on the device, so that reading goes on meanwhile
    key = jr.key(seed)
    with tqdm(total=counts.n_cells, desc="Annotating", unit="cells", unit_scale=True, disable=silent) as bar:
        for batch, start, end in _aligned_batches(counts, genes, gene_key, batch_size):
            x = np.zeros((batch_size, len(genes)), dtype=np.float32)  # one shape for all, so that one is compiled
            x[: end - start] = batch
            probabilities.append(_probabilities(model, jnp.asarray(x), jr.fold_in(key, start)))
            bar.update(end - start)
    return np.concatenate(probabilities)[: counts.n_cells]
