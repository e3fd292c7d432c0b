"""Matrix products in bfloat16 inside a function of float32 arrays."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Jaxpr, Literal
from jax.extend.core.primitives import dot_general_p
from jaxtyping import Array

_PRECISIONS = ("float32", "bfloat16")


def require_precision(precision: str) -> None:
    """Raise a ValueError unless there is such a precision of matrix products.

    Examples
    --------
    >>> require_precision("bfloat16")
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"`precision` must be one of {', '.join(_PRECISIONS)}, but got {precision!r}.")


def in_precision(function: Callable, precision: str) -> Callable:
    """Give a function whose matrix products have a precision: "float32", as they are, or "bfloat16".

    Examples
    --------
    >>> x = jnp.array([[1.001, 1.0]])
    >>> in_precision(lambda x: x @ x.T, "bfloat16")(x)
    Array([[2.]], dtype=float32)
    """
    return bfloat16_products(function) if precision == "bfloat16" else function


def bfloat16_products(function: Callable) -> Callable:
    """Round the factors of a function's float32 matrix products to bfloat16, and sum in float32.

    All else stays as it is: the arrays that go in and come out, sums, exponentials. On a function that takes gradients,
    the products of the backward pass are rounded too. Convolutions are not, nor products inside `jax.lax.scan` and its
    kin, `jax.lax.cond` or `jax.checkpoint`.

    `jax.default_matmul_precision("BF16_BF16_F32")` would do the same in a line, but gains nothing on CPUs, where this
    halves the time of a step (2,000 genes, batches of 128 and 512); "bfloat16" is ignored there.

    Parameters
    ----------
    function : callable
        Of PyTrees of arrays, returning a PyTree of arrays.

    Returns
    -------
    callable
        With the same arguments and results.

    References
    ----------
    Kalamkar et al., A study of bfloat16 for deep learning training, arXiv:1905.12322 (2019).

    Examples
    --------
    >>> x = jnp.array([[1.001, 1.0]])
    >>> bfloat16_products(lambda x: x @ x.T)(x)
    Array([[2.]], dtype=float32)
    """

    @functools.wraps(function)
    def rounded(*args):
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(traced.jaxpr, traced.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rounded


def _evaluate(jaxpr: Jaxpr, constants: Sequence[Any], *args: Any) -> list[Any]:
    """Evaluate a traced function, with other matrix products."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *args], strict=True))
    for equation in jaxpr.eqns:
        inputs = [variable.val if isinstance(variable, Literal) else values[variable] for variable in equation.invars]
        if equation.primitive is dot_general_p and all(factor.dtype == jnp.float32 for factor in inputs):
            outputs = [_product(inputs[0], inputs[1], equation.params["dimension_numbers"])]
        elif equation.primitive.name in ("jit", "pjit"):
            called = equation.params["jaxpr"]
            outputs = _evaluate(called.jaxpr, called.consts, *inputs)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # older JAX gives functions apart
            outputs = equation.primitive.bind(*functions, *inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [variable.val if isinstance(variable, Literal) else values[variable] for variable in jaxpr.outvars]


def _product(x: Array, y: Array, dimensions: Any) -> Array:
    """Contract two arrays. On CPUs, XLA's bfloat16 product is fast only if rows of the first factor are contiguous."""
    (summed, y_summed), (shared, _) = dimensions
    if shared:  # which XLA's product on CPUs does not have for bfloat16: rounded, and multiplied in float32
        x, y = (factor.astype(jnp.bfloat16).astype(jnp.float32) for factor in (x, y))
        return lax.dot_general(x, y, dimensions)
    kept = [axis for axis in range(x.ndim) if axis not in summed]
    rows = x.astype(jnp.bfloat16).transpose(*kept, *summed)
    row_major: Any = Layout(tuple(range(x.ndim)))
    rows = with_layout_constraint(rows, row_major)
    return lax.dot_general(
        rows,
        y.astype(jnp.bfloat16),
        ((tuple(range(len(kept), x.ndim)), y_summed), ((), ())),
        preferred_element_type=jnp.float32,
    )
