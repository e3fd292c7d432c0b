import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ginseng.model.nn import nn_dropout, nn_init_linear, nn_linear, nn_xavier_uniform


def test_xavier_weights_are_the_reference_s(golden):
    np.testing.assert_allclose(nn_xavier_uniform(jr.key(3), (4, 6)), golden["xavier"], rtol=1e-6)


def test_dropout_is_the_reference_s(golden):
    x = jnp.asarray(golden["x"])
    np.testing.assert_allclose(nn_dropout(jr.key(3), x, 0.4), golden["dropout"], rtol=1e-6)


def test_dropout_is_off_at_inference_and_needs_a_key_in_training():
    x = jnp.ones((3, 4))
    np.testing.assert_array_equal(nn_dropout(None, x, 0.9, training=False), x)
    with pytest.raises(RuntimeError, match="key"):
        nn_dropout(None, x, 0.9)


def test_dropout_keeps_the_mean():
    dropped = nn_dropout(jr.key(0), jnp.ones(20_000), 0.25)
    assert set(np.unique(dropped).round(4)) == {0.0, np.float32(1.3333)}
    assert abs(float(dropped.mean()) - 1.0) < 0.02


def test_linear():
    params = nn_init_linear(jr.key(0), 4, 3)
    limit = np.sqrt(6 / 7)
    assert params["W"].shape == (4, 3)
    assert np.abs(params["W"]).max() <= limit
    np.testing.assert_array_equal(params["b"], np.zeros(3))
    x = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(nn_linear(params, x), np.asarray(x) @ np.asarray(params["W"]), rtol=1e-5)
