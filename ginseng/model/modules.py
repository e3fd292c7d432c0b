"""Any Equinox module that maps the counts of one cell to logits, over batches of cells."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Num, PRNGKeyArray


def logits_of(
    module: Any, x: Num[Array, "batch genes"], key: PRNGKeyArray | None = None
) -> Float[Array, "batch classes"]:
    """Logits of a batch by a module of one cell; a `key` for dropout.

    Examples
    --------
    >>> logits_of(eqx.nn.Linear(4, 3, key=jr.key(0)), jnp.ones((5, 4))).shape
    (5, 3)
    """
    if "key" not in inspect.signature(type(module).__call__).parameters:
        return jax.vmap(module)(x)
    keys = None if key is None else jr.split(key, x.shape[0])
    return jax.vmap(lambda cell, cell_key: module(cell, key=cell_key))(x, keys)


def require_shapes(module: Any, n_genes: int, n_labels: int) -> None:
    """Raise a ValueError unless a module fits genes and labels: a label beyond its outputs would have a loss of NaN.

    Examples
    --------
    >>> require_shapes(eqx.nn.Linear(4, 3, key=jr.key(0)), 4, 3)
    """
    cells = jax.ShapeDtypeStruct((1, n_genes), jnp.float32)
    expected = f"The model must map a cell, of shape {(n_genes,)}, to logits of shape {(n_labels,)}, one for each label"
    try:
        logits = eqx.filter_eval_shape(logits_of, eqx.nn.inference_mode(module), cells)
    except Exception as error:  # a module may raise anything
        kind = type(error).__name__
        raise ValueError(f"{expected}, but it does not take a cell with {n_genes} genes: {kind}: {error}") from error
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise ValueError(f"{expected}, but its output is a {type(logits).__name__}.")
    if logits.shape != (1, n_labels):
        raise ValueError(f"{expected}, but its output has shape {logits.shape[1:]}.")
