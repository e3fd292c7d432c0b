"""The documented ``nn_annotate*`` functions: the network over a parameter tree."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from ginseng.model.attention import AttentionClassifier, Params, model_from_params, params_of
from ginseng.model.nn import normalize_cell
from ginseng.utils.values import require_flags

Cells = Num[Array | np.ndarray, "batch genes"]
Types = Int[Array | np.ndarray, " batch"]


def nn_normalize(x: Num[Array | np.ndarray, "*batch genes"], target_sum: float = 1e4) -> Float[Array, "*batch genes"]:
    """Normalise the counts of each cell and take their logarithm.

    Parameters
    ----------
    x : Array
        Counts of shape ``(cells, genes)`` or ``(genes,)``.
    target_sum : float
        Total count of a cell after scaling.

    Returns
    -------
    Array
        ``log(1 + target_sum * x / sum(x))``, of the shape of `x`; a cell without counts stays zero.

    Examples
    --------
    >>> nn_normalize(jnp.array([[1.0, 3.0], [0.0, 0.0]]), target_sum=4.0).round(3)
    Array([[0.693, 1.386], [0.   , 0.   ]], dtype=float32)
    """
    return jnp.vectorize(lambda cell: normalize_cell(cell, target_sum), signature="(g)->(g)")(jnp.asarray(x))


def nn_annotate_init(key: PRNGKeyArray, n_genes: int, n_classes: int, hidden_dim: int = 256) -> Params:
    """Initialise the parameters of the network.

    Parameters
    ----------
    key : Array
        PRNG key.
    n_genes, n_classes, hidden_dim : int
        Numbers of genes, of classes, and of hidden units of the attention.

    Returns
    -------
    dict
        Layers ``features1``, ``features2``, ``attn1``, ``attn2`` and ``head``, each with ``W`` (in x out) and ``b``.

    Examples
    --------
    >>> params = nn_annotate_init(jr.key(0), n_genes=20, n_classes=3, hidden_dim=8)
    >>> params["head"]["W"].shape
    (20, 3)
    """
    return params_of(AttentionClassifier(n_genes, n_classes, hidden_dim, key=key))


def nn_annotate(
    params: Params,
    key: PRNGKeyArray | None,
    x: Cells,
    dropout_rate: float = 0.5,
    normalize: bool = True,
    target_sum: float | None = 1e4,
    return_attn: bool = False,
    training: bool = True,
) -> Float[Array, "batch classes"] | tuple[Float[Array, "batch classes"], Float[Array, "batch genes"]]:
    """Score a batch of cells with given parameters.

    Parameters
    ----------
    params : dict
        Parameters from `nn_annotate_init`.
    key : Array
        PRNG key of the dropout masks; may be None where `training` is False.
    x : Array
        Counts of shape ``(batch_size, n_genes)``.
    dropout_rate : float
        Dropout probability, in [0, 1).
    normalize : bool
        Normalise and log-transform the counts.
    target_sum : float, optional
        Total count of a cell after normalisation; None stands for 1e4.
    return_attn : bool
        Also return the attention weights.
    training : bool
        Apply dropout.

    Returns
    -------
    Array or tuple of Array
        Logits of shape ``(batch_size, n_classes)``; with `return_attn`, also attention of shape
        ``(batch_size, n_genes)``.

    Examples
    --------
    >>> params = nn_annotate_init(jr.key(0), n_genes=20, n_classes=3, hidden_dim=8)
    >>> nn_annotate(params, None, jnp.ones((5, 20)), training=False).shape
    (5, 3)
    """
    require_flags(return_attn=return_attn, training=training)
    model = _configured(params, dropout_rate, normalize, target_sum)
    logits, attention = attend_batch(model, jnp.asarray(x), key if training else None)
    return (logits, attention) if return_attn else logits


def nn_annotate_loss(
    params: Params,
    key: PRNGKeyArray,
    x: Cells,
    y: Types,
    dropout_rate: float = 0.5,
    normalize: bool = True,
    target_sum: float | None = 1e4,
) -> Float[Array, ""]:
    """Mean cross-entropy of a batch, with dropout.

    Parameters
    ----------
    params, key, x, dropout_rate, normalize, target_sum
        As for `nn_annotate`.
    y : Array
        Class indices of shape ``(batch_size,)``.

    Returns
    -------
    Array
        Scalar.

    Examples
    --------
    >>> params = nn_annotate_init(jr.key(0), n_genes=20, n_classes=3, hidden_dim=8)
    >>> nn_annotate_loss(params, jr.key(1), jnp.ones((2, 20)), jnp.array([0, 2])).shape
    ()
    """
    model = _configured(params, dropout_rate, normalize, target_sum)
    logits, _ = attend_batch(model, jnp.asarray(x), key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def nn_annotate_evaluate(
    params: Params,
    key: PRNGKeyArray | None,
    x: Cells,
    y: Types,
    dropout_rate: float = 0.5,
    normalize: bool = True,
    target_sum: float | None = 1e4,
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Mean cross-entropy, number of cells and number of correct predictions of a batch, without dropout.

    Parameters
    ----------
    params, x, y, normalize, target_sum
        As for `nn_annotate_loss`.
    key, dropout_rate
        Part of the documented signature; nothing is dropped when evaluating, so that the result does not depend on
        them.

    Returns
    -------
    tuple of Array
        Loss, number of cells, number of correct predictions.

    Examples
    --------
    >>> params = nn_annotate_init(jr.key(0), n_genes=20, n_classes=3, hidden_dim=8)
    >>> loss, total, correct = nn_annotate_evaluate(params, None, jnp.ones((2, 20)), jnp.array([0, 2]))
    >>> int(total), int(correct) <= 2
    (2, True)
    """
    logits, _ = attend_batch(_configured(params, dropout_rate, normalize, target_sum), jnp.asarray(x), None)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, jnp.asarray(y.shape[0]), jnp.sum(jnp.argmax(logits, axis=-1) == y)


class _Mask(eqx.Module):
    """A dropout whose mask has been drawn."""

    kept: Array
    rate: float

    def __call__(self, x: Array, *, key: None = None) -> Array:
        return jnp.where(self.kept, x / (1 - self.rate), 0)


def attend_batch(
    model: AttentionClassifier, x: Num[Array, "batch genes"], key: PRNGKeyArray | None
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch genes"]]:
    """Logits and attention of a batch, whose dropout masks are all drawn from one key; without one nothing is dropped.

    Examples
    --------
    >>> logits, attention = attend_batch(AttentionClassifier(20, 3, 8, key=jr.key(0)), jnp.ones((5, 20)), jr.key(1))
    >>> logits.shape, attention.shape
    ((5, 3), (5, 20))
    """
    if key is None:
        return jax.vmap(eqx.nn.inference_mode(model).attend)(x)
    rate = model.input_dropout.p
    _, *keys = jr.split(key, 3)
    masks = [jr.bernoulli(mask_key, 1 - rate, x.shape) for mask_key in keys]

    def attend(cell: Array, *kept: Array) -> tuple[Array, Array]:
        dropouts = [_Mask(mask, rate) for mask in kept]
        return eqx.tree_at(lambda m: (m.input_dropout, m.gate_dropout), model, dropouts).attend(cell)

    return jax.vmap(attend)(x, *masks)


def _configured(params: Params, dropout_rate: float, normalize: bool, target_sum: float | None) -> AttentionClassifier:
    return model_from_params(params, dropout_rate=dropout_rate, normalize=normalize, target_sum=target_sum)
