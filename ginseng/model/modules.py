"""Any Equinox module that maps the counts of one cell to logits, over batches of cells."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Num, PRNGKeyArray

from ginseng.utils.digest import digest


def logits_of(module: Any, x: Num[Array, "batch genes"], key: PRNGKeyArray | None = None) -> Any:
    """Logits of a batch, of shape (batch, classes), by a module of one cell, or a tuple of these; a `key` for dropout.

    Examples
    --------
    >>> logits_of(eqx.nn.Linear(4, 3, key=jr.key(0)), jnp.ones((5, 4))).shape
    (5, 3)
    """
    if "key" not in inspect.signature(type(module).__call__).parameters:
        return jax.vmap(module)(x)
    keys = None if key is None else jr.split(key, x.shape[0])
    return jax.vmap(lambda cell, cell_key: module(cell, key=cell_key))(x, keys)


def weights_digest(module: Any) -> str:
    """Short name of the weights of a module.

    Examples
    --------
    >>> one, other = (eqx.nn.Linear(2, 2, key=jr.key(seed)) for seed in (0, 1))
    >>> weights_digest(one) == weights_digest(one), weights_digest(one) == weights_digest(other)
    (True, False)
    """
    return digest(*jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array)))


def require_shapes(module: Any, n_genes: int, n_labels: int | tuple[int, ...]) -> None:
    """Raise a ValueError unless a module fits genes and labels: a label beyond its outputs would have a loss of NaN.

    Of several numbers of labels, it has to have an output for each.

    Examples
    --------
    >>> require_shapes(eqx.nn.Linear(4, 3, key=jr.key(0)), 4, 3)
    """
    cells = jax.ShapeDtypeStruct((1, n_genes), jnp.float32)
    is_one = isinstance(n_labels, int)
    sizes = (n_labels,) if is_one else n_labels
    told = f"logits of shape {(n_labels,)}" if is_one else f"a tuple of logits of shapes {[(n,) for n in sizes]}"
    expected = f"The model must map a cell, of shape {(n_genes,)}, to {told}, one for each label"
    try:
        outputs = eqx.filter_eval_shape(logits_of, eqx.nn.inference_mode(module), cells)
    except Exception as error:  # a module may raise anything
        kind = type(error).__name__
        raise ValueError(f"{expected}, but it does not take a cell with {n_genes} genes: {kind}: {error}") from error
    if not is_one and not isinstance(outputs, tuple):
        raise ValueError(f"{expected}, but its output is not a tuple.")
    parts = (outputs,) if is_one else outputs
    if len(parts) != len(sizes):
        raise ValueError(f"{expected}, but it has {len(parts)} outputs.")
    for logits, size in zip(parts, sizes, strict=True):
        if not isinstance(logits, jax.ShapeDtypeStruct):
            raise ValueError(f"{expected}, but its output is a {type(logits).__name__}.")
        if logits.shape != (1, size):
            raise ValueError(f"{expected}, but its output has shape {logits.shape[1:]}.")
