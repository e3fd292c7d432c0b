"""The compiled core of training: several steps of an optimiser per call, and the scores of held-out cells."""

import re
import zlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree, UInt32

from ginseng.model.ensemble import member_logits_of, n_members_of
from ginseng.model.modules import logits_of
from ginseng.train.recipe import Recipe
from ginseng.utils.digest import digest
from ginseng.utils.precision import in_precision

_TEMPERATURE = 2.0  # of distillation, as in Li & Hoiem 2016


class State(NamedTuple):
    """What the steps change.

    Attributes
    ----------
    step : Array
        Number of steps taken.
    params : PyTree
        The trainable arrays of the model.
    opt_state : PyTree
        State of the optimiser.
    average : PyTree, optional
        Moving average of `params`.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    average: PyTree | None

    @property
    def shown(self) -> PyTree:
        """The weights that are handed out and validated."""
        return self.params if self.average is None else self.average


class Slab(NamedTuple):
    """Batches for several steps, on the devices.

    Numbers that all processes share are NumPy's, which JAX takes for the same everywhere.

    Attributes
    ----------
    x : Array
        Counts of shape ``(steps, batch, genes)``, in the type that they are stored in.
    y : Array
        Classes of shape ``(steps, batch)``; of a model with several outputs, ``(steps, batch, outputs)``, -1 where it
        is not known.
    mask : Array
        False for padding, of shape ``(steps, batch)``.
    rates : Array
        Learning rate of each step.
    n_steps : Array
        How many of the steps have cells.
    """

    x: Num[Array, "steps batch genes"]
    y: Int[Array, "steps batch ..."]
    mask: Bool[Array, "steps batch"]
    rates: Float[np.ndarray, " steps"]
    n_steps: Int[np.generic, ""]


class Fixed(NamedTuple):
    """What the steps read.

    Attributes
    ----------
    frozen : PyTree
        The rest of the model.
    class_weights : Array, optional
        Factor of the loss of the cells of each class.
    seed : Array
        Of the PRNG keys of the steps.
    teacher : PyTree, optional
        A model without dropout, whose answers are soft targets for the first classes.
    """

    frozen: PyTree
    class_weights: Float[np.ndarray, " classes"] | None
    seed: UInt32[np.generic, ""]
    teacher: PyTree | None = None


def key_of(seed: Any, purpose: Literal["steps"]) -> PRNGKeyArray:
    """Give the PRNG key of a seed for a purpose, which no other purpose shares, nor the initial weights of the seed."""
    return jr.fold_in(jr.key(seed), zlib.crc32(purpose.encode()))


@eqx.filter_jit(donate="all-except-first")
def train_steps(
    given: tuple[Fixed, Slab], state: State, recipe: Recipe, replicated: NamedSharding
) -> tuple[State, Float[Array, " steps"]]:
    """Take the steps of a slab; return the state, and, for each step, the sum of the losses of its cells before it."""
    fixed, slab = given

    def cross_entropy(logits, classes):
        targets = optax.smooth_labels(jax.nn.one_hot(classes, logits.shape[-1]), recipe.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets[None]).sum(axis=0)

    def step(nth: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
        state, sums = carry
        augment_key, dropout_key = jr.split(jr.fold_in(key_of(fixed.seed, "steps"), state.step))
        x, y, mask = slab.x[nth].astype(jnp.float32), slab.y[nth], slab.mask[nth].astype(jnp.float32)
        x = x if recipe.augment is None else recipe.augment(augment_key, x)

        def mean_loss(params):  # summed over members, of which each learns from its own
            outputs = member_logits_of(eqx.combine(params, fixed.frozen), x, dropout_key)
            (logits, labels), *further = outputs_with_classes(outputs, y)
            losses = cross_entropy(logits, labels)
            if fixed.class_weights is not None:
                losses = losses * fixed.class_weights[labels]
            for of_output, classes in further:
                losses = losses + jnp.where(classes >= 0, cross_entropy(of_output, classes), 0.0)
            if fixed.teacher is not None:
                losses = losses + recipe.distill * divergence_from(fixed.teacher, x, logits)
            return jnp.sum(losses * mask) / jnp.sum(mask)

        loss, gradient = in_precision(jax.value_and_grad(mean_loss), recipe.precision)(state.params)
        optimizer = optax.with_extra_args_support(recipe.optimizer)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, value=loss, grad=gradient)
        params = optax.apply_updates(state.params, jax.tree.map(lambda update: slab.rates[nth] * update, updates))
        average = state.average
        if recipe.ema is not None:  # the first steps count for little, since the weights are far from where they end
            decay = jnp.minimum(recipe.ema, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(
                lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), average, params
            )
        state = eqx.filter_shard(State(state.step + 1, params, opt_state, average), replicated)
        return state, sums.at[nth].set(loss * jnp.sum(mask))

    state, sums = lax.fori_loop(0, slab.n_steps, step, (state, jnp.zeros(slab.rates.shape)))
    return state, sums / n_members_of(fixed.frozen)


def outputs_with_classes(outputs: Any, y: Int[Array, "batch ..."]) -> list[tuple[Array, Int[Array, " batch"]]]:
    """Logits of each output of a model with the classes that it is for.

    Examples
    --------
    >>> outputs, y = (jnp.ones((2, 3)), jnp.ones((2, 5))), jnp.array([[2, 4], [0, -1]])
    >>> [(logits.shape, classes.tolist()) for logits, classes in outputs_with_classes(outputs, y)]
    [((2, 3), [2, 0]), ((2, 5), [4, -1])]
    """
    if not isinstance(outputs, tuple):
        return [(outputs, y)]
    return [(output, y[..., nth]) for nth, output in enumerate(outputs)]


def divergence_from(
    teacher: PyTree, x: Float[Array, "batch genes"], logits: Float[Array, "members batch classes"]
) -> Float[Array, " batch"]:
    """Divergence of logits from the answers of a teacher over the classes that it has, summed over members.

    Examples
    --------
    >>> teacher = eqx.nn.Linear(4, 2, key=jr.key(0))
    >>> logits = jnp.concatenate([jax.vmap(teacher)(jnp.eye(4)), jnp.ones((4, 1))], axis=1)  # and another class
    >>> jnp.abs(divergence_from(teacher, jnp.eye(4), logits[None])).max().round(6).item()
    0.0
    """
    told = member_logits_of(teacher, x)
    softened = jax.nn.log_softmax(logits[..., : told.shape[-1]] / _TEMPERATURE)
    divergence = optax.losses.kl_divergence(softened, jax.nn.softmax(told / _TEMPERATURE))
    return _TEMPERATURE**2 * divergence.sum(axis=0)


def traced(given: tuple[Fixed, Slab], state: State, recipe: Recipe, replicated: NamedSharding) -> str:
    """Give a short name to what a step computes: the model, its loss, the optimiser with its numbers, augmentation."""
    jaxpr, _, _ = eqx.filter_make_jaxpr(train_steps)(given, state, recipe, replicated)
    text = re.sub("0x[0-9a-f]+", "", str(jaxpr))  # addresses of functions differ between processes
    class_weights = jax.tree.leaves(given[0].class_weights)
    return digest(np.frombuffer(text.encode(), np.uint8), *class_weights, *_constants(jaxpr))


def _constants(jaxpr: Any) -> Iterator[Any]:
    """Arrays that the traced functions hold, which their text does not show."""
    yield from jaxpr.consts
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "consts")):
            if hasattr(value, "consts"):
                yield from _constants(value)


@eqx.filter_jit
def evaluate(
    model: PyTree, slab: Slab, n_classes: tuple[int, ...]
) -> tuple[Float[Array, ""], list[Int[Array, "classes classes"]]]:
    """Sum of the losses, and number of cells of each class by predicted class, of each output, without dropout."""

    def add(nth: Array, sums: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        total, confusions = sums
        x, y, mask = slab.x[nth].astype(jnp.float32), slab.y[nth], slab.mask[nth]
        outputs, found = outputs_with_classes(logits_of(model, x, None), y), []
        for (logits, classes), confusion in zip(outputs, confusions, strict=True):
            is_known = mask if len(confusions) == 1 else mask & (classes >= 0)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
            predicted = jnp.argmax(logits, axis=-1)
            total = total + jnp.sum(losses * is_known.astype(losses.dtype))
            found.append(confusion.at[classes, predicted].add(is_known.astype(jnp.int32)))
        return total, found

    nothing = [jnp.zeros((n, n), jnp.int32) for n in n_classes]
    return lax.fori_loop(0, slab.n_steps, add, (jnp.zeros(()), nothing))


@eqx.filter_jit
def answers(
    model: PyTree, slab: Slab, replicated: NamedSharding
) -> tuple[Float[Array, "steps batch classes"], Int[Array, "steps batch"], Bool[Array, "steps batch"]]:
    """Logits of the cells of a slab, without dropout, their classes, and which are cells, for each process.

    Of a model with several outputs, those of the first.
    """

    def first_of(x: Array) -> Array:
        outputs = logits_of(model, x.astype(jnp.float32), None)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def add(nth: Array, found: Array) -> Array:
        return found.at[nth].set(first_of(slab.x[nth]))

    n_classes = eqx.filter_eval_shape(first_of, slab.x[0]).shape[-1]
    logits = lax.fori_loop(0, slab.n_steps, add, jnp.zeros((*slab.mask.shape, n_classes)))
    labels = slab.y if slab.y.ndim == slab.mask.ndim else slab.y[..., 0]
    return eqx.filter_shard((logits, labels, slab.mask), replicated)
