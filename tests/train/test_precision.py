import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from ginseng.utils.precision import bfloat16_products
from tests.train.models import attention, ensemble, new_head, plain, replaced_layer, sequential


def rounded(array):
    return array.astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize(
    "dimensions",
    [
        (((1,), (0,)), ((), ())),
        (((0,), (0,)), ((), ())),
        (((1,), (1,)), ((), ())),
        (((0,), (1,)), ((), ())),
        (((0, 1), (1, 0)), ((), ())),
        (((0,), (1,)), ((1,), (0,))),
        (((1,), (0,)), ((0,), (1,))),
    ],
)
def test_products_are_those_of_rounded_factors(dimensions):
    x, y = (jr.normal(key, (6, 6)) for key in jr.split(jr.key(0)))

    def product(x, y):
        return lax.dot_general(x, y, dimensions)

    found = jax.jit(bfloat16_products(product))(x, y)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, product(rounded(x), rounded(y)), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(found, product(x, y))


def test_all_else_stays_in_float32():
    x = jr.normal(jr.key(0), (50,))
    function = lambda x: {"sum": jnp.sum(jnp.exp(x)), "same": x}  # noqa: E731
    found = bfloat16_products(function)(x)
    np.testing.assert_array_equal(found["same"], x)
    np.testing.assert_array_equal(found["sum"], function(x)["sum"])


def test_other_types_are_left_alone():
    x = jnp.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(bfloat16_products(lambda x: x @ x.T)(x), x @ x.T)


@pytest.mark.parametrize("make", [attention, sequential, ensemble, replaced_layer, new_head, plain])
def test_gradients_of_any_module_are_close_to_those_in_float32(make):
    model = eqx.nn.inference_mode(make())
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    x = jr.poisson(jr.key(1), 2.0, (5, 30)).astype(jnp.float32)

    def loss(params):
        return jnp.sum(jax.nn.log_softmax(jax.vmap(eqx.combine(params, rest))(x))[:, 0])

    exact = jax.value_and_grad(loss)(params)
    found = jax.jit(bfloat16_products(jax.value_and_grad(loss)))(params)
    assert jax.tree.structure(found) == jax.tree.structure(exact)
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        similarity = jnp.sum(leaf * like) / (jnp.linalg.norm(leaf) * jnp.linalg.norm(like))
        assert similarity > 0.99 or not like.any()
