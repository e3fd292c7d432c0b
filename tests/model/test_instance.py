import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ginseng import GinsengClassifier
from ginseng.model.instance import (
    nn_annotate,
    nn_annotate_evaluate,
    nn_annotate_init,
    nn_annotate_loss,
    nn_normalize,
)

N_GENES, N_CLASSES, HIDDEN_DIM, SEED = 24, 3, 5, 7  # as in golden/record.py
OPTIONS = {"dropout_rate": 0.3, "normalize": True, "target_sum": 1e4}
# Sums of a few dozen float32 products, taken in another order by another version of XLA: a few units in the last place
# of numbers up to about 10.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}

AS_FOR_USERS = {"xla_backend_optimization_level": 3}  # which rounds as the reference does, unlike COMPILED_FAST


@pytest.fixture(scope="module")
def x(golden):
    return jnp.asarray(golden["x"])


@pytest.fixture(scope="module")
def y(golden):
    return jnp.asarray(golden["y"])


@pytest.fixture(scope="module")
def params(golden_tree):
    return golden_tree("init")


def assert_trees_close(actual, expected, **tolerance):
    assert set(actual) == set(expected)
    for layer, leaves in expected.items():
        assert set(actual[layer]) == {"W", "b"}
        for leaf, value in leaves.items():
            np.testing.assert_allclose(actual[layer][leaf], value, err_msg=f"{layer}/{leaf}", **tolerance)


def test_equal_seeds_give_the_weights_of_the_reference(params):
    def weights():
        _, key = jr.split(jr.key(SEED))
        drawn = nn_annotate_init(key, N_GENES, N_CLASSES, HIDDEN_DIM)
        return GinsengClassifier(N_GENES, N_CLASSES, HIDDEN_DIM, seed=SEED).params, drawn

    for found in jax.jit(weights, compiler_options=AS_FOR_USERS)():
        assert_trees_close(found, params, rtol=1e-6, atol=0)


def test_normalisation_is_the_reference_s(golden, x):
    np.testing.assert_allclose(nn_normalize(x, 500.0), golden["normalized"], rtol=1e-5, atol=1e-6)


def test_logits_and_attention_are_the_reference_s(golden, params, x):
    logits, attention = nn_annotate(params, None, x, **OPTIONS, return_attn=True, training=False)
    np.testing.assert_allclose(logits, golden["logits"], **CLOSE)
    np.testing.assert_allclose(attention, golden["attention"], **CLOSE)
    raw = nn_annotate(params, None, x, normalize=False, training=False)
    np.testing.assert_allclose(raw, golden["logits_raw"], rtol=1e-4, atol=1e-4)  # unnormalised inputs reach hundreds


def test_dropout_masks_of_a_key_are_the_reference_s(golden, params, x):
    logits, attention = nn_annotate(params, jr.key(3), x, **OPTIONS, return_attn=True)
    np.testing.assert_allclose(logits, golden["logits_dropout"], **CLOSE)
    np.testing.assert_allclose(attention, golden["attention_dropout"], **CLOSE)


def test_loss_and_gradients_are_the_reference_s(golden, golden_tree, params, x, y):
    loss, grads = jax.value_and_grad(nn_annotate_loss)(params, jr.key(3), x, y, **OPTIONS)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    assert_trees_close(grads, golden_tree("grads"), rtol=1e-4, atol=1e-5)


def test_evaluation_counts_as_the_reference_does_and_drops_nothing(golden, params, x, y):
    loss, total, correct = nn_annotate_evaluate(params, jr.key(0), x, y, dropout_rate=0.9)
    assert (int(total), int(correct)) == (golden["total"], golden["correct"])
    np.testing.assert_allclose(loss, nn_annotate_loss(params, jr.key(1), x, y, dropout_rate=0.0), rtol=1e-5)


def test_target_sum_none_stands_for_ten_thousand(params, x):
    default = nn_annotate(params, None, x, training=False)
    np.testing.assert_array_equal(default, nn_annotate(params, None, x, target_sum=None, training=False))
    assert GinsengClassifier(4, 2, target_sum=None).target_sum == 1e4


class TestGinsengClassifier:
    def test_documented_defaults(self):
        model = GinsengClassifier(4, 2)
        sizes = (model.n_genes, model.n_classes, model.hidden_dim, model.dropout_rate, model.normalize)
        assert sizes == (4, 2, 256, 0.5, True)

    def test_predict_is_deterministic_unless_training(self, x):
        model = GinsengClassifier(N_GENES, N_CLASSES, HIDDEN_DIM)
        np.testing.assert_array_equal(model.predict(x), model.predict(x))
        assert not np.allclose(model.predict(x, training=True), model.predict(x, training=True))
        key = jr.key(5)
        np.testing.assert_array_equal(
            model.predict(x, key=key, training=True), model.predict(x, key=key, training=True)
        )
        logits, attention = model.predict(x, return_attn=True)
        assert logits.shape == (60, N_CLASSES)
        assert attention.shape == (60, N_GENES)

    def test_keys_are_new_each_time(self):
        model = GinsengClassifier(4, 2)
        drawn = [jr.key_data(model._get_key()).tolist() for _ in range(3)]
        assert len({tuple(key) for key in drawn}) == 3

    def test_params_can_be_read_changed_and_assigned(self, x, params):
        model = GinsengClassifier(N_GENES, N_CLASSES, HIDDEN_DIM, seed=0)
        before = model.predict(x)
        other = model.predict(x, params=params)
        assert not np.allclose(before, other)
        np.testing.assert_array_equal(model.predict(x), before)
        model.params = params
        np.testing.assert_array_equal(model.predict(x), other)
        assert_trees_close(model.params, params, rtol=0, atol=0)

    def test_params_of_another_size_are_refused_and_nothing_is_lost(self, params):
        model = GinsengClassifier(N_GENES, N_CLASSES, HIDDEN_DIM + 1)
        before = model.params
        with pytest.raises(ValueError, match="24 genes, 3 classes and 5 hidden units"):
            model.params = params
        assert_trees_close(model.params, before, rtol=0, atol=0)

    def test_settings_can_be_assigned(self, x):
        model = GinsengClassifier(N_GENES, N_CLASSES, HIDDEN_DIM, seed=3)
        assert model.seed == 3
        params, default = model.params, model.predict(x)
        model.target_sum = 10.0
        assert not np.allclose(model.predict(x), default)
        model.target_sum, model.dropout_rate = None, 0.0
        np.testing.assert_allclose(model.predict(x, training=True), default, rtol=1e-5)
        model.normalize = False
        assert not np.allclose(model.predict(x), default)
        assert_trees_close(model.params, params, rtol=0, atol=0)
        with pytest.raises(ValueError, match="dropout_rate"):
            model.dropout_rate = 1.0

    def test_input_that_does_not_fit_is_refused(self, x):
        model = GinsengClassifier(N_GENES + 1, N_CLASSES, HIDDEN_DIM)
        with pytest.raises(ValueError, match="`x` has 24 genes, but the model has 25"):
            model.predict(x)
        with pytest.raises(ValueError, match="24 genes"):
            model.evaluate(x, jnp.zeros(60, int))

    def test_loss_and_evaluate(self, x, y):
        model = GinsengClassifier(N_GENES, N_CLASSES, HIDDEN_DIM)
        grads = jax.grad(model.loss)(model.params, model._get_key(), x, y)
        assert np.abs(grads["head"]["W"]).max() > 0
        loss, accuracy = model.evaluate(x, y)
        assert isinstance(loss, float)
        assert accuracy == np.mean(np.argmax(model.predict(x), axis=1) == np.asarray(y))
