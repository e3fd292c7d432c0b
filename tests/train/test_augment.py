import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginseng import GinsengClassifierTrainerSettings
from ginseng.train.augment import augment, augment_background, augment_dropgene, augment_mask

X = jnp.asarray(np.random.default_rng(0).poisson(3.0, (40, 50)) + 1, jnp.int32)


@pytest.mark.parametrize(
    "augmentation",
    [augment_mask, augment_background, augment_dropgene, augment],
)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.float32])
def test_jit_keeps_shape_type_and_result(augmentation, dtype):
    x = X.astype(dtype)
    plain, compiled = augmentation(jr.key(0), x), jax.jit(augmentation)(jr.key(0), x)
    assert compiled.shape == x.shape
    assert compiled.dtype == dtype
    np.testing.assert_array_equal(plain, compiled)
    assert not np.array_equal(jax.jit(augmentation)(jr.key(1), x), compiled) or augmentation is augment_dropgene


def test_mask_loses_the_given_share_and_changes_nothing_else():
    masked = np.asarray(augment_mask(jr.key(0), X, 0.3))
    assert abs((masked == 0).mean() - 0.3) < 0.04
    kept = masked > 0
    np.testing.assert_array_equal(masked[kept], np.asarray(X)[kept])


def test_background_adds_noise_of_a_rate_per_cell():
    noise = np.asarray(augment_background(jr.key(0), jnp.zeros((300, 400)), 2.0))
    assert noise.min() == 0
    rates = noise.mean(axis=1)
    assert 0 <= rates.min() < 0.1
    assert 1.9 < rates.max() < 2.2
    assert abs(rates.mean() - 1.0) < 0.1
    assert abs(np.corrcoef(rates[:-1], rates[1:])[0, 1]) < 0.2


@settings(max_examples=30, deadline=None)
@given(lower=st.integers(0, 5), more=st.integers(1, 5), seed=st.integers(0, 1000))
def test_as_many_genes_are_lost_as_asked(lower, more, seed):
    lost = (np.asarray(augment_dropgene(jr.key(seed), X, lower, lower + more)) == 0).all(axis=0).sum()
    assert lower <= lost < lower + more


def test_lower_zero_is_not_off():
    lost = [(np.asarray(augment_dropgene(jr.key(i), X, 0, 2)) == 0).all(axis=0).sum() for i in range(20)]
    assert set(lost) == {0, 1}


def test_parts_can_be_switched_off():
    np.testing.assert_array_equal(augment(jr.key(0), X, None, None, None, None), X)
    assert (augment(jr.key(0), X, None, 0.5, None, None) >= X).all()
    assert (augment(jr.key(0), X, 0.5, None, None, None) <= X).all()
    assert (np.asarray(augment(jr.key(0), X, None, None, 3, 4)) == 0).all(axis=0).sum() == 3


def test_zero_and_zero_drop_nothing():
    np.testing.assert_array_equal(augment_dropgene(jr.key(0), X, 0, 0), X)
    np.testing.assert_array_equal(jax.jit(lambda key, x: augment(key, x, None, None, 0, 0))(jr.key(0), X), X)


def test_the_ends_of_the_ranges():
    assert not np.asarray(augment_mask(jr.key(0), X, 1.0)).any()
    np.testing.assert_array_equal(augment_mask(jr.key(0), X, 0.0), X)
    np.testing.assert_array_equal(augment_background(jr.key(0), X, 0.0), X)
    assert not np.asarray(augment_dropgene(jr.key(0), X, 50, 51)).any()


def test_more_genes_than_there_are_is_refused():
    for lower, upper in ((2, 2), (5, 52)):
        with pytest.raises(ValueError, match=f"0 <= `lower` < `upper` <= 51, but got {lower} and {upper}"):
            augment_dropgene(jr.key(0), X, lower, upper)
        with pytest.raises(ValueError, match=f"0 <= `lower` < `upper` <= 51, but got {lower} and {upper}"):
            augment(jr.key(0), X, lower=lower, upper=upper)


BAD = [
    ({"rate": 2.0}, r"`rate` must lie in \[0, 1\], but got 2.0"),
    ({"rate": -0.1}, r"`rate` must lie in \[0, 1\], but got -0.1"),
    ({"rate": float("nan")}, r"`rate` must lie in \[0, 1\], but got nan"),
    ({"lam_max": -1.0}, r"`lam_max` must lie in \[0, inf\), but got -1.0"),
    ({"lam_max": float("inf")}, r"`lam_max` must lie in \[0, inf\), but got inf"),
    ({"lower": 3, "upper": None}, "need `lower` and `upper`, or None for both to drop none, but got 3 and None"),
    ({"lower": None, "upper": 3}, "need `lower` and `upper`, or None for both to drop none, but got None and 3"),
    ({"lower": -1, "upper": 3}, "0 <= `lower` < `upper`.*but got -1 and 3"),
    ({"lower": 3, "upper": 3}, "0 <= `lower` < `upper`.*but got 3 and 3; 0 and 0 drop none"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_what_cannot_be_done_is_refused_wherever_it_is_said(bad, message):
    with pytest.raises(ValueError, match=message):
        GinsengClassifierTrainerSettings(**bad)
    with pytest.raises(ValueError, match=message):
        augment(jr.key(0), X, **bad)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda key, x: augment(key, x, **bad))(jr.key(0), X)
    part = {"rate": augment_mask, "lam_max": augment_background, "lower": augment_dropgene}[next(iter(bad))]
    if None not in bad.values():
        with pytest.raises(ValueError, match=message):
            part(jr.key(0), X, **bad)
