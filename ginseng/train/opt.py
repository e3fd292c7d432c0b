"""Adam with L2 regularisation: one update rule, as an Optax transform and as the documented functions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ginseng.model.attention import PARTS, part_of
from ginseng.utils.messages import unknown_name
from ginseng.utils.values import require_flags, require_number


class AdamState(NamedTuple):
    """State of Adam.

    Attributes
    ----------
    step : int
        Number of steps taken.
    m : PyTree of Array
        Exponential moving average of the gradients.
    v : PyTree of Array
        Exponential moving average of the squared gradients.
    """

    step: int | Int[Array, ""]
    m: Any
    v: Any


def adam_l2(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    decoupled: bool = False,
) -> optax.GradientTransformation:
    """Adam with L2 regularisation.

    With ``g`` the gradient, ``p`` the parameters, and ``m_hat``, ``v_hat`` the bias-corrected moving averages of ``g``
    and ``g * g``, the update is ``-lr * m_hat / (sqrt(v_hat) + eps)``. The textbook form adds ``weight_decay * p`` to
    the gradient; the decoupled form leaves the gradient alone and adds ``-lr * weight_decay * p`` to the update.

    Parameters
    ----------
    learning_rate : float or optax schedule
        Step size; a schedule is called with the number of steps taken before, as Optax's own are.
    betas : tuple of float
        Decay rates of the two moving averages, in [0, 1).
    eps : float
        Added to the denominator.
    weight_decay : float
        L2 regularisation factor.
    decoupled : bool
        Step as ginseng 0.2.1 does.

    Returns
    -------
    optax.GradientTransformation
        Its state is an `AdamState`. `update` needs ``params`` unless `weight_decay` is 0.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    References
    ----------
    Kingma & Ba, Adam: a method for stochastic optimization, ICLR 2015, algorithm 1; for the two forms, algorithm 2 of
    Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019.

    Examples
    --------
    >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam_l2(optax.cosine_decay_schedule(1e-3, 100)))
    >>> params = jnp.ones(3)
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(jnp.array([1.0, 0.0, -1.0]), state, params)
    >>> optax.apply_updates(params, updates)
    Array([0.999, 1.   , 1.001], dtype=float32)
    """
    require_betas(betas)
    require_flags(decoupled=decoupled)
    if not callable(learning_rate) and isinstance(learning_rate, float | int) and learning_rate < 0:
        raise ValueError(f"`learning_rate` must not be negative, but got {learning_rate}.")
    beta1, beta2 = betas

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        grads = updates
        if params is None and weight_decay != 0.0:
            raise ValueError("`adam_l2` with weight decay needs the parameters: call `update(grads, state, params)`.")
        if params is not None and not decoupled:
            grads = jax.tree.map(lambda g, p: g + weight_decay * p, grads, params)
        step = state.step + 1
        m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.m, grads)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.v, grads)
        correction1 = 1 - beta1 ** jnp.asarray(step, jnp.float32)
        correction2 = 1 - beta2 ** jnp.asarray(step, jnp.float32)
        direction = jax.tree.map(lambda m, v: (m / correction1) / (jnp.sqrt(v / correction2) + eps), m, v)
        if params is not None and decoupled:
            direction = jax.tree.map(lambda d, p: d + weight_decay * p, direction, params)
        rate = jnp.asarray(learning_rate(state.step) if callable(learning_rate) else learning_rate)
        return jax.tree.map(lambda d: -rate * d, direction), AdamState(step, m, v)

    return optax.GradientTransformation(init, update)


def scale_by_part(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Scale updates by the part of a network that they are of: learning rates by part, where it comes last.

    Parameters
    ----------
    factors : dict of str
        Factors, in [0, inf), by the name of a part of `AttentionClassifier`, wherever the tree holds one: in a module
        that is composed with it, in an `Ensemble`, or in the documented parameter tree. All else is left as it is.

    Returns
    -------
    optax.GradientTransformation
        Without state.

    Raises
    ------
    ValueError
        If there is no such part, or a factor is out of range.

    Examples
    --------
    >>> optimizer = optax.chain(optax.sgd(1.0), scale_by_part({"features1": 0.1}))
    >>> params = {"features1": {"b": jnp.ones(2)}, "head": {"b": jnp.ones(2)}}
    >>> updates, _ = optimizer.update(params, optimizer.init(params))
    >>> updates["features1"]["b"], updates["head"]["b"]
    (Array([-0.1, -0.1], dtype=float32), Array([-1., -1.], dtype=float32))
    """
    require_rates(factors)

    def scaled(updates, params=None):
        return jax.tree.map_with_path(lambda path, update: factors.get(part_of(path) or "", 1.0) * update, updates)

    return optax.stateless(scaled)


def require_rates(factors: Any) -> None:
    """Raise a ValueError unless these are factors of the learning rate by the names of parts of a network."""
    if not isinstance(factors, Mapping):
        raise ValueError(f"`rates` must be a dict of factors by part, such as {{'head': 0.1}}, but got {factors!r}.")
    for name, factor in factors.items():
        if name not in PARTS:
            raise unknown_name("part", name, "the network", PARTS)
        require_number(f"rates[{name!r}]", factor, "[0, inf)")


def require_betas(betas: Any) -> None:
    """Raise a ValueError unless these are the decay rates of the two moments of Adam."""
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"`betas` must be two decay rates, such as (0.9, 0.999), but got {betas!r}.")
    for beta in betas:
        require_number("betas", beta, "[0, 1)")


def opt_init_adam(params: Any) -> AdamState:
    """Initialise the state of Adam.

    Parameters
    ----------
    params : PyTree of Array
        Parameters to optimise.

    Returns
    -------
    AdamState
        Step 0, with zero moments.

    Examples
    --------
    >>> int(opt_init_adam({"W": jnp.ones((2, 3))}).step)
    0
    """
    return cast(AdamState, adam_l2().init(params))


def opt_adam_update(
    grads: Any,
    params: Any,
    state: AdamState,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Any, AdamState]:
    """Take one step of Adam, with the (decoupled) weight decay of ginseng 0.2.1.

    Parameters
    ----------
    grads : PyTree of Array
        Gradients of the loss.
    params : PyTree of Array
        Current parameters.
    state : AdamState
        Current state.
    lr : float
        Learning rate.
    betas : tuple of float
        Decay rates of the first and second moment.
    eps : float
        Numerical stability constant.
    weight_decay : float
        L2 regularisation factor.

    Returns
    -------
    tuple
        Updated parameters, new state.

    Examples
    --------
    >>> params = {"W": jnp.ones(2)}
    >>> params, state = opt_adam_update({"W": jnp.array([1.0, -1.0])}, params, opt_init_adam(params))
    >>> params["W"], int(state.step)
    (Array([0.999, 1.001], dtype=float32), 1)
    """
    optimizer = adam_l2(lr, betas, eps, weight_decay, decoupled=True)
    updates, new_state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), cast(AdamState, new_state)
