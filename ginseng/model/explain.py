"""Why cells get their type: what each gene contributes to it."""

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Array, Float, Int
from scipy import sparse
from tqdm.auto import tqdm

from ginseng.data.models import annotator_of
from ginseng.data.preflight import preflight
from ginseng.data.readers import opened_counts
from ginseng.data.slabs import DenseSlab, SlabShape, dense_slabs
from ginseng.model.annotator import Annotator
from ginseng.model.attention import AttentionClassifier
from ginseng.model.ensemble import joined, member_logits_of, members_of
from ginseng.model.forward import Forward
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.ahead import read_ahead
from ginseng.utils.counts import Counts, require_writable, whole_changes
from ginseng.utils.devices import Devices
from ginseng.utils.genes import GeneMap
from ginseng.utils.labels import names_in, without_none
from ginseng.utils.messages import require_one, warn
from ginseng.utils.values import require_flags, require_integer

_N_STEPS = 8  # of the path: the sum of a cell is off by 2.3 % of a score at worst with 4, by 0.6 % with 16


def explain(
    model: GinsengClassifierState | Annotator | str | Path,
    adata: AnnData | str | Path,
    groupby: str | None = None,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    n_genes: int | None = 20,
    key_added: str = "ginseng",
    batch_size: int = 256,
    devices: int | Sequence[Any] | None = None,
    silent: bool = False,
) -> pd.DataFrame:
    """Tell what each gene contributes to the type of some cells.

    The score of a type is its logit minus the mean logit of the others. Integrated gradients share out, among the
    genes, by how much a cell's score exceeds that of the mean training cell (of a model that does not know it, as of
    ginseng 0.2.1: of the mean of these cells). Contributions of all genes add up to that difference; a gene may
    contribute by being absent. Those of several members are averaged.

    The gates of an `AttentionClassifier` are no such answer: its layers mix genes before the gate, so that a gate is
    about no gene in particular.

    Parameters
    ----------
    model : GinsengClassifierState, Annotator, str or Path
        What `ginseng.classify` takes.
    adata : AnnData, str or Path
        Counts to explain. An AnnData gets the table, too.
    groupby : str, optional
        Column of ``obs``: for each of its groups, contributions to the type that most of its cells are given. By
        default cells are grouped by the type that they are given.
    layer : str or None
        Key in ``adata.layers`` with the counts, or ``"raw"``; None for ``adata.X``.
    gene_key : str or None
        Column of ``var`` with gene names, and no other; None for the index.
    n_genes : int, optional
        Give the genes that are among so many first of any group; None for all.
    key_added : str
        The table is kept in ``adata.uns[f"{key_added}_contributions"]``.
    batch_size : int
        Cells per pass.
    devices : int or sequence of jax.Device, optional
        See `ginseng.classify`.
    silent : bool
        No progress bar.

    Returns
    -------
    pandas.DataFrame
        For each ``group``, and the ``type`` that it stands for, genes by their ``contribution`` (mean over the cells),
        the largest first; their ``mean_expression``, normalised as the model does, and the ``share`` of cells that
        express them. Cells that are in no group, or have no count of the model's genes, are left out.

    Raises
    ------
    ValueError
        If a column, layer or value is not usable, too few genes are known, or no cell is left.

    References
    ----------
    Sundararajan, Taly & Yan, Axiomatic attribution for deep networks, ICML 2017.

    Examples
    --------
    >>> table = ginseng.explain("model.h5", "cells.h5ad")  # doctest: +SKIP
    >>> table.groupby("group").head(5)  # doctest: +SKIP
    """
    require_flags(silent=silent)
    if n_genes is not None:
        require_integer("n_genes", n_genes, 1)
    require_integer("batch_size", batch_size, 1)
    annotator, among = annotator_of(model), Devices(devices, alone=True)
    with nullcontext(adata) if isinstance(adata, AnnData) else opened_counts(adata) as data:
        if isinstance(adata, AnnData):
            require_writable(adata)
        file = None if isinstance(adata, AnnData) else adata
        counts, genes, found = preflight(annotator, data, gene_key, layer, file=file)
        found.require()
        found.warn()
        of_data = annotator.lacking(genes.is_lacking)
        answer = Forward(of_data.module, batch_size, "float32", among, None)(counts, genes, len(annotator.labels), True)
        types = np.where(answer.is_empty, -1, answer.logits.argmax(axis=1))
        groups = _groups(data, groupby, types, annotator.labels)
        targets = _most_frequent(groups, types)
        cells = _Cells(counts, genes, among, batch_size, silent)
        means = cells.explain(of_data, annotator, groups.codes, targets)

    table = _table(means, groups.categories, np.asarray(annotator.labels, object)[targets], annotator.genes, n_genes)
    if isinstance(adata, AnnData):
        with whole_changes(adata):
            adata.uns[f"{key_added}_contributions"] = table
    return table


def _groups(adata: AnnData, groupby: str | None, types: np.ndarray, labels: Sequence[str]) -> pd.Categorical:
    """The group of each cell, of those groups that have any cell with a type."""
    if groupby is None:
        named = pd.Categorical.from_codes(types, categories=labels)
    else:
        require_one("column", groupby, "adata.obs", adata.obs.columns)
        place = f"column '{groupby}' of adata.obs"
        named, said = without_none(names_in(adata.obs[groupby], place), labels)
        if said:
            warn(f"Some cells are in no group of {place} ({said}) and are left out.")
        named = pd.Categorical.from_codes(np.where(types >= 0, named.codes, -1), named.categories)
    named = named.remove_unused_categories()
    if not len(named.categories):
        raise ValueError("There is no cell to explain: none has a group, and counts of the model's genes.")
    return named


def _most_frequent(groups: pd.Categorical, types: np.ndarray) -> np.ndarray:
    """The type that most cells of each group are given."""
    return np.array([np.bincount(types[groups.codes == code]).argmax() for code in range(len(groups.categories))])


class _Means(eqx.Module):
    """Means over the cells of each group, of each gene."""

    contribution: Any
    expression: Any
    share: Any


class _Cells:
    """Cells over the inputs of a model, batch by batch."""

    def __init__(self, counts: Counts, genes: GeneMap, devices: Devices, batch_size: int, silent: bool):
        self._counts, self._genes, self._devices, self._silent = counts, genes, devices, silent
        self._shape = SlabShape(1, batch_size, devices.padded(batch_size), genes.n_inputs, np.dtype(np.float32))

    def explain(self, of_data: Annotator, trained: Annotator, groups: np.ndarray, targets: np.ndarray) -> _Means:
        """Attribute the cells of each group to the type that is its target."""
        networks = members_of(eqx.nn.inference_mode(of_data.module))
        normalize, module = _no_normalisation, of_data.module
        if isinstance(networks[0], AttentionClassifier):
            normalize = networks[0].normalized
            module = joined([network.normalizing(normalize=False) for network in networks])
        module = self._devices.replicate(eqx.nn.inference_mode(module))
        if trained.background is None:
            baseline = self._mean(normalize, groups)
        else:
            baseline = np.where(self._genes.is_lacking, 0, trained.background.expression).astype(np.float32)
        n_groups, n_types = len(targets), len(trained.labels)
        contrasts = (n_types * np.eye(n_types, dtype=np.float32)[targets] - 1) / max(n_types - 1, 1)
        sums = _Means(*np.zeros((3, n_groups, self._genes.n_inputs)))
        with tqdm(total=self._counts.n_cells, unit="cells", desc="Explaining", disable=self._silent) as bar:
            for x, group, n_cells in self._batches(groups):
                found = _sums(module, normalize, baseline, contrasts, x, group)
                sums = jax.tree.map(lambda whole, part: whole + np.asarray(part, np.float64), sums, found)
                bar.update(n_cells)
        n_cells = np.bincount(groups[groups >= 0], minlength=n_groups)[:, None]
        return jax.tree.map(lambda whole: whole / n_cells, sums)

    def _mean(self, normalize: Any, groups: np.ndarray) -> np.ndarray:
        total = sum(np.asarray(_sum(normalize, x, group), np.float64) for x, group, _ in self._batches(groups))
        return np.asarray(total / (groups >= 0).sum(), np.float32)

    def _batches(self, groups: np.ndarray) -> Iterator[tuple[Array, np.ndarray, int]]:
        """Counts on the devices, and the group of each, -1 where there is no cell."""

        def blocks() -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
            for start, stop, block in self._counts.blocks(self._shape.n_cells):
                yield self._genes.of(block), np.arange(start, stop)

        slab: DenseSlab
        slabs = read_ahead(dense_slabs(blocks(), self._shape))
        with closing(slabs):
            for slab in slabs:
                of_rows = np.full(self._shape.width, -1, np.int32)
                of_rows[: len(slab.cells)] = groups[slab.cells]
                yield self._devices.place_batches(slab.x)[0], of_rows, len(slab.cells)


def _no_normalisation(x: Array) -> Array:
    return x


@eqx.filter_jit
def _sum(normalize: Any, x: Float[Array, "cells genes"], group: Int[np.ndarray | Array, " cells"]) -> Array:
    return jnp.where(group[:, None] >= 0, jax.vmap(normalize)(x), 0).sum(axis=0)


@eqx.filter_jit
def _sums(
    module: Any,
    normalize: Any,
    baseline: Float[np.ndarray | Array, " genes"],
    contrasts: Float[np.ndarray | Array, "groups classes"],
    x: Float[Array, "cells genes"],
    group: Int[np.ndarray | Array, " cells"],
) -> _Means:
    """Sums over the cells of each group: of integrated gradients by the midpoint rule, expression, being expressed."""
    inputs, baseline = jax.vmap(normalize)(x), jnp.asarray(baseline)[None]
    away = inputs - baseline
    of_cells = contrasts[group]

    def score(inputs: Array) -> Array:
        return (member_logits_of(module, inputs).mean(axis=0) * of_cells).sum()

    def add_step(nth: Array, total: Array) -> Array:
        return total + jax.grad(score)(baseline + (nth.astype(away.dtype) + 0.5) / _N_STEPS * away)

    contribution = away * jax.lax.fori_loop(0, _N_STEPS, add_step, jnp.zeros_like(inputs)) / _N_STEPS
    is_of = jax.nn.one_hot(group, len(contrasts), axis=0)
    return _Means(is_of @ contribution, is_of @ inputs, is_of @ (x > 0).astype(inputs.dtype))


def _table(means: _Means, groups: Any, types: np.ndarray, genes: Sequence[str], n_genes: int | None) -> pd.DataFrame:
    order = np.argsort(-means.contribution, axis=1, kind="stable")
    is_chosen = np.zeros(len(genes), bool)
    is_chosen[order[:, :n_genes].ravel()] = True
    parts = []
    for nth, (group, kind) in enumerate(zip(groups, types, strict=True)):
        chosen = order[nth][is_chosen[order[nth]]]
        columns = {
            "group": group,
            "type": kind,
            "gene": np.asarray(genes, dtype=object)[chosen],
            "contribution": means.contribution[nth, chosen],
            "mean_expression": means.expression[nth, chosen],
            "share": means.share[nth, chosen],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
