"""Learning rates of the steps of a training run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ginseng.utils.values import require_number

Schedule = str | optax.Schedule

_NAMES = ("constant", "cosine")


def require_schedule(schedule: Schedule, warmup: float) -> None:
    """Raise a ValueError unless there is such a schedule."""
    if not callable(schedule) and schedule not in _NAMES:
        raise ValueError(f"`schedule` must be one of {', '.join(_NAMES)} or an optax schedule, but got {schedule!r}.")
    require_number("warmup", warmup, "[0, 1)")


def learning_rates(schedule: Schedule, peak: float, warmup: float, n_steps: int) -> np.ndarray:
    """Learning rate of each step.

    Parameters
    ----------
    schedule : {"constant", "cosine"} or callable
        "constant" holds `peak`; "cosine" lets it fall to 0 over the steps, along half a cosine. A callable gives the
        rate itself for a number of steps taken, as Optax's schedules do.
    peak : float
        Highest rate of the named schedules.
    warmup : float
        Share of the steps over which the named schedules rise in equal parts to `peak`.
    n_steps : int
        Number of steps.

    Returns
    -------
    numpy.ndarray
        float32, of shape ``(n_steps,)``.

    Raises
    ------
    ValueError
        If a callable gives something else than a rate.

    References
    ----------
    Loshchilov & Hutter, SGDR: stochastic gradient descent with warm restarts, ICLR 2017, equation 5.

    Examples
    --------
    >>> learning_rates("cosine", 1.0, 0.4, 5).round(2)
    array([0.5 , 1.  , 1.  , 0.75, 0.25], dtype=float32)
    """
    steps = np.arange(n_steps)
    if callable(schedule):
        try:
            with jax.numpy_dtype_promotion("standard"):  # a rate of a number of steps: a float of an integer
                rates = jax.vmap(schedule)(jnp.arange(n_steps))
        except jax.errors.ConcretizationTypeError:  # a function that JAX cannot trace
            rates = [schedule(step) for step in range(n_steps)]
        rates = np.asarray(rates, np.float32)
        if rates.shape not in ((), (n_steps,)) or not (np.isfinite(rates) & (rates >= 0)).all():
            raise ValueError("A schedule must give a finite rate of at least 0 for every number of steps taken.")
        return np.broadcast_to(rates, n_steps)
    n_rising = round(warmup * n_steps)
    done = np.maximum(steps - n_rising, 0) / max(1, n_steps - n_rising)
    falling = 0.5 * (1 + np.cos(np.pi * done)) if schedule == "cosine" else np.ones(n_steps)
    return (peak * np.minimum((steps + 1) / max(1, n_rising), 1) * falling).astype(np.float32)
