import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from ginseng import (
    GinsengClassifier,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    Recipe,
    Trainer,
    classify,
    explain,
    finetune,
    state_from_classifier_trainer,
)
from ginseng.model.nn import nn_linear
from ginseng.train.opt import opt_adam_update, opt_init_adam
from ginseng.utils.precision import bfloat16_products
from tests.conftest import simulate
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


def test_all_of_it_works_where_nothing_is_promoted(tmp_path):
    adata, more = simulate(200), simulate(200, n_types=4)[:, 5:].copy()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        dataset = GinsengDataset.create(tmp_path / "a.zarr", adata, "cell_type", silent=True)
        how = {
            "members": 2,
            "ema": 0.9,
            "label_smoothing": 0.1,
            "class_weights": "balanced",
            "distill": 0.1,
            "clip": 1.0,
        }
        how |= {"rate": 0.1, "lam_max": 0.1, "lower": 0, "upper": 2, "hidden_dim": 4, "batch_size": 32}
        trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(**how))
        trainer.fit(1, silent=True)
        state = state_from_classifier_trainer(trainer)
        assert state.calibration is not None
        new = GinsengDataset.create(tmp_path / "b.zarr", more, "cell_type", silent=True)
        tuned = finetune(state, new, epochs=1, silent=True).state
        assert "ginseng_status" in classify(tuned, more, return_table=True, silent=True)
        assert len(explain(tuned, more, silent=True))
        x, y = adata.X.toarray().astype(np.uint8), jnp.zeros(200, jnp.int32)
        classifier = GinsengClassifier(30, 3, 4)
        assert classifier.predict(x, training=True).dtype == jnp.float32
        gradient = jax.grad(classifier.loss)(classifier.params, jr.key(0), x.astype(np.float32), y)
        opt_adam_update(gradient, classifier.params, opt_init_adam(classifier.params), weight_decay=0.1)
        assert nn_linear({"W": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((4, 3))).tolist() == [[4.0, 4.0]] * 4
        model = eqx.nn.Linear(30, 3, key=jr.key(0))
        Trainer(model, dataset, Recipe(schedule=lambda step: 1 / (1 + step)), teacher=model).fit(1, silent=True)
