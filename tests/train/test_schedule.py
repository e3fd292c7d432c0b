import dataclasses

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginseng import GinsengClassifierTrainer, Recipe, Trainer, adam_l2
from ginseng.train.recipe import warn_of_rates
from ginseng.train.schedule import learning_rates, require_schedule
from tests.train.models import QUICK


@given(st.integers(1, 400), st.floats(0.0, 0.99), st.floats(1e-6, 1.0))
def test_rates_rise_to_their_peak_and_fall(n_steps, warmup, peak):
    for schedule in ("cosine", "constant"):
        rates = learning_rates(schedule, peak, warmup, n_steps)
        highest = int(rates.argmax())
        assert rates.shape == (n_steps,)
        assert (np.diff(rates[: highest + 1]) >= 0).all()
        assert (np.diff(rates[highest:]) <= 0).all()
        assert rates.min() > 0
        assert rates.max() <= peak * (1 + 1e-6)


def test_without_warmup_a_constant_rate_is_the_peak():
    np.testing.assert_array_equal(learning_rates("constant", 0.25, 0.0, 3), [0.25] * 3)


def test_cosine_is_that_of_optax():
    expected = [float(optax.cosine_decay_schedule(0.1, 50)(step)) for step in range(50)]
    np.testing.assert_allclose(learning_rates("cosine", 0.1, 0.0, 50), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "schedule",
    [lambda step: 0.1 if step < 5 else 0.01, optax.exponential_decay(0.1, 5, 0.5), optax.constant_schedule(1)],
)
def test_schedules_of_optax_give_the_rate_itself(schedule):
    rates = learning_rates(schedule, 7.0, 0.5, 12)
    np.testing.assert_allclose(rates, [float(schedule(step)) for step in range(12)], rtol=1e-6)


@pytest.mark.parametrize("schedule", [lambda _: np.nan, lambda _: -1.0, lambda _: np.ones(3)])
def test_schedules_that_give_no_rate_are_refused(schedule):
    with pytest.raises(ValueError, match="must give a finite rate of at least 0"):
        learning_rates(schedule, 1.0, 0.0, 5)


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="`schedule` must be one of constant, cosine or an optax.*'step'"):
        require_schedule("step", 0.0)
    with pytest.raises(ValueError, match=r"`warmup` must lie in \[0, 1\), but got 1.0"):
        require_schedule("cosine", 1.0)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "is_told"),
    [
        (optax.adam(1e-3), optax.constant_schedule(1e-3), True),
        (adam_l2(), optax.cosine_decay_schedule(3e-4, 100), True),
        (optax.adam(1.0), optax.constant_schedule(1e-3), False),  # the rate is the schedule's
        (optax.adam(1e-3), optax.cosine_decay_schedule(1.0, 100), False),
        (optax.adam(1e-3), optax.linear_schedule(0.0, 1.0, 10_000), False),  # it rises still
        (optax.adam(1e-3), "cosine", False),
    ],
)
def test_rates_in_place_of_factors_are_told(optimizer, schedule, is_told, recwarn):
    recipe = Recipe(optimizer=optimizer, schedule=schedule)
    warn_of_rates(recipe, learning_rates(schedule, 1.0, 0.0, 50))
    told = [str(each.message) for each in recwarn if "`schedule` look like learning rates" in str(each.message)]
    assert len(told) == is_told


def test_training_tells_of_rates_and_the_settings_take_them(dataset, recwarn):
    rates = optax.constant_schedule(1e-3)
    GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, schedule=rates)).fit(1, silent=True)
    assert not [each for each in recwarn if "look like learning rates" in str(each.message)]
    trainer = Trainer(eqx.nn.Linear(30, 3, key=jax.random.key(0)), dataset, Recipe(schedule=rates))
    with pytest.warns(UserWarning, match=r"look like learning rates \(at most 0.001\).* change 1,000 times less"):
        trainer.fit(1, silent=True)
