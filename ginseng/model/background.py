"""What training cells express on average, which stands in for genes that new data lack."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from ginseng.model.attention import AttentionClassifier
from ginseng.model.ensemble import joined, members_of

LEAST_KEPT = 0.5  # of the target sum


class Background(NamedTuple):
    """Means over training cells, for each gene of a network.

    Attributes
    ----------
    expression : numpy.ndarray
        Mean input, normalised as the network does.
    share : numpy.ndarray
        Mean share of the counts of a cell.
    """

    expression: Float[np.ndarray, " genes"]
    share: Float[np.ndarray, " genes"]

    def without(self, is_unknown: Bool[np.ndarray, " genes"]) -> "Background":
        """The same with means of 0, as of genes that were 0 while a network was trained."""
        return Background(*(np.where(is_unknown, 0, means) for means in self))


def require_background(background: Background, n_genes: int) -> None:
    """Raise a ValueError unless there is a finite mean for each gene.

    Examples
    --------
    >>> require_background(Background(np.zeros(2), np.zeros(2)), 2)
    """
    for means in background:
        if np.shape(means) != (n_genes,) or not np.isfinite(means).all():
            raise ValueError(f"`background` must have a finite mean for each of the {n_genes} genes.")


def background_of(network: AttentionClassifier, counts: Num[np.ndarray | Array, "cells genes"]) -> Background:
    """Means over some cells.

    Examples
    --------
    >>> import jax.random as jr
    >>> network = AttentionClassifier(2, 2, 4, normalize=False, key=jr.key(0))
    >>> background_of(network, np.array([[3.0, 1.0], [1.0, 1.0]])).share.tolist()
    [0.625, 0.375]
    """
    return Background(*map(np.asarray, _means(network, jnp.asarray(counts, jnp.float32))))


@eqx.filter_jit
def _means(
    network: AttentionClassifier, counts: Float[Array, "cells genes"]
) -> tuple[Float[Array, " genes"], Float[Array, " genes"]]:
    totals = jnp.maximum(counts.sum(axis=1, keepdims=True), 1e-8)
    return jax.vmap(network.normalized)(counts).mean(axis=0), (counts / totals).mean(axis=0)


def lacking(
    module: Any,
    background: Background,
    is_lacking: Bool[np.ndarray, " genes"],
    is_rest: Bool[np.ndarray, " genes"] | bool = False,
) -> Any:
    """The network, or the ensemble, for cells of which some genes are not known.

    Their inputs are 0. Their mean goes into the biases of the first layer, and the target sum is reduced by their share
    of the counts, so that the others are not scaled up in their place; by at most half, since a few genes are a poor
    measure of a cell's counts (see ``benchmarks/recipes.md``). Where the sum of all other genes, `is_rest`, is not
    known, the target sum is reduced by at least the share of that, which is often more than half.

    Examples
    --------
    >>> import jax.random as jr
    >>> network = AttentionClassifier(2, 2, 4, key=jr.key(0))
    >>> background = Background(np.array([0.5, 2.0]), np.array([0.1, 0.9]))
    >>> [round(lacking(network, background, np.arange(2) == gene).target_sum) for gene in range(2)]
    [9000, 5000]
    """
    filled = jnp.where(is_lacking, background.expression, 0.0)
    least = min(1.0 - float(background.share[is_lacking & is_rest].sum()), LEAST_KEPT)
    kept = max(1.0 - float(background.share[is_lacking].sum()), least)

    def of_known(network: AttentionClassifier) -> AttentionClassifier:
        of_filled = network.features1.weight @ filled
        shifted = eqx.tree_at(lambda n: n.features1.bias, network, replace_fn=lambda bias: bias + of_filled)
        return shifted.normalizing(target_sum=network.target_sum * kept)

    return joined([of_known(network) for network in members_of(module)])
