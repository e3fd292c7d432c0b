import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginseng.train.schedule import learning_rates, require_schedule


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
