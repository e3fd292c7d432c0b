"""Layer primitives: the documented ``nn_*`` functions over parameters in the documented tree."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Num, PRNGKeyArray

from ginseng.utils.values import require_flags


def nn_xavier_uniform(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "in_dim out_dim"]:
    """Draw a weight matrix from the Xavier (Glorot) uniform distribution.

    Parameters
    ----------
    key : Array
        PRNG key.
    shape : tuple of int
        ``(in_dim, out_dim)``.

    Returns
    -------
    Array
        Weights of shape ``(in_dim, out_dim)``, uniform in ±sqrt(6 / (in_dim + out_dim)).

    References
    ----------
    Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.

    Examples
    --------
    >>> nn_xavier_uniform(jr.key(0), (3, 2)).shape
    (3, 2)
    """
    limit = jnp.sqrt(6.0 / (shape[0] + shape[1]))
    flat = (shape[0] * shape[1],)  # compiles faster than two dimensions
    return jr.uniform(key, flat, minval=-limit, maxval=limit).reshape(shape)


def nn_init_linear(key: PRNGKeyArray, in_dim: int, out_dim: int) -> dict[str, Array]:
    """Initialise the parameters of a linear layer.

    Parameters
    ----------
    key : Array
        PRNG key.
    in_dim, out_dim : int
        Numbers of inputs and outputs.

    Returns
    -------
    dict
        ``W`` of shape ``(in_dim, out_dim)``, Xavier uniform, and ``b`` of shape ``(out_dim,)``, zero.

    Examples
    --------
    >>> {name: leaf.shape for name, leaf in nn_init_linear(jr.key(0), 3, 2).items()}
    {'W': (3, 2), 'b': (2,)}
    """
    weight_key, _ = jr.split(key)  # split as the reference does, so that equal seeds give equal weights
    return {"W": nn_xavier_uniform(weight_key, (in_dim, out_dim)), "b": jnp.zeros(out_dim)}


def nn_linear(params: dict[str, Array], x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
    """Apply a linear transformation.

    Parameters
    ----------
    params : dict
        ``W`` of shape ``(in_dim, out_dim)`` and ``b`` of shape ``(out_dim,)``.
    x : Array
        Input of shape ``(..., in_dim)``.

    Returns
    -------
    Array
        ``x @ W + b``, of shape ``(..., out_dim)``.

    Examples
    --------
    >>> nn_linear({"W": jnp.eye(2), "b": jnp.ones(2)}, jnp.array([[1.0, 2.0]]))
    Array([[2., 3.]], dtype=float32)
    """
    product = x @ params["W"]
    return product + jnp.broadcast_to(params["b"], product.shape)


def nn_dropout(key: PRNGKeyArray | None, x: Num[Array, "..."], rate: float, training: bool = True) -> Num[Array, "..."]:
    """Zero each element with probability `rate` and scale the others by ``1 / (1 - rate)``.

    Parameters
    ----------
    key : Array
        PRNG key of the mask.
    x : Array
        Input of any shape.
    rate : float
        Dropout probability, in [0, 1).
    training : bool
        If False, return `x` as it is.

    Returns
    -------
    Array
        Of the shape of `x`.

    References
    ----------
    Srivastava et al., Dropout, JMLR 15, 1929 (2014), with inverted scaling.

    Examples
    --------
    >>> nn_dropout(jr.key(0), jnp.ones(4), 0.5, training=False)
    Array([1., 1., 1., 1.], dtype=float32)
    """
    require_flags(training=training)
    return eqx.nn.Dropout(rate, inference=not training)(x, key=key)


def normalize_cell(x: Num[Array, " genes"], target_sum: float) -> Float[Array, " genes"]:
    """Scale one cell to `target_sum` counts and take ``log(1 + x)``."""
    x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))
    return jnp.log1p(target_sum * x / jnp.maximum(jnp.sum(x), 1e-8))
