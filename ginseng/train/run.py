"""A training run as a value, and what begins a call of `fit`, ends an epoch and goes back."""

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from ginseng.metrics import Scores
from ginseng.train.logger import GinsengLogger
from ginseng.train.step import State


class Best(NamedTuple):
    """The weights of the epoch of a call of `fit` that had the lowest holdout loss.

    Attributes
    ----------
    epoch, loss, params, scores
        That epoch, its holdout loss, the weights, and the scores of the held-out cells.
    """

    epoch: int
    loss: float
    params: PyTree
    scores: Scores | None


@dataclass(frozen=True)
class Run:
    """A training run where it stands; training maps it to the next.

    Attributes
    ----------
    state : State
        What the next step starts from, the weights among it.
    rng : dict
        State of the random generator at the beginning of the epoch that is next or under way.
    logger : GinsengLogger
        Metrics of the epochs so far.
    scores : Scores, optional
        Of the held-out cells after the last epoch.
    first, last : int
        Epochs of the call of `fit`: from `first` up to but not including `last`.
    epoch : int
        The epoch that is next or under way.
    memory : int
        Bytes that counts may take, on which the order of the cells depends.
    totals : tuple of float
        Sums of the losses of the slabs of that epoch that are done.
    best : Best, optional
        The best epoch of the call, where one is looked for.
    """

    state: State
    rng: dict[str, Any]
    logger: GinsengLogger = field(default_factory=GinsengLogger)
    scores: Scores | None = None
    first: int = 0
    last: int = 0
    epoch: int = 0
    memory: int = 0
    totals: tuple[float, ...] = ()
    best: Best | None = None


def new_run(params: PyTree, optimizer: optax.GradientTransformation, seed: int | np.integer) -> Run:
    """Begin to train weights."""
    state = State(jnp.asarray(np.int32(0)), params, _fresh(optimizer, params), None)
    return Run(state, dict(np.random.default_rng(seed).bit_generator.state))


def called(run: Run, epochs: int, memory: int, *, averages: bool) -> Run:
    """Begin a call of `fit`, from the weights that were handed out; steps will not consume what its caller holds."""
    shown, first = run.state.shown, len(run.logger.epoch)
    opt_state = copied(run.state.opt_state)
    state = State(run.state.step, shown, opt_state, shown if averages else None)
    return dataclasses.replace(
        run, state=state, first=first, last=first + epochs, epoch=first, memory=memory, totals=(), best=None
    )


def ended_epoch(run: Run, train_loss: float, holdout_loss: float, scores: Scores | None, patience: int | None) -> Run:
    """Take down the metrics of an epoch; it is the last if the holdout loss has not fallen for `patience` epochs."""
    logger = copy.deepcopy(run.logger)
    of_types = (math.nan, math.nan) if scores is None else (scores.accuracy, scores.macro_f1)
    logger.update(run.epoch, train_loss, holdout_loss, *of_types)
    best = run.best
    if patience is not None and (best is None or holdout_loss < best.loss):
        best = Best(run.epoch, holdout_loss, run.state.shown, scores)
    is_enough = patience is not None and best is not None and run.epoch - best.epoch >= patience
    epoch = run.last if is_enough else run.epoch + 1
    return dataclasses.replace(run, logger=logger, scores=scores, epoch=epoch, totals=(), best=best)


def with_weights(run: Run, params: PyTree, optimizer: optax.GradientTransformation) -> Run:
    """Go on from other weights; the optimiser begins anew."""
    average = None if run.state.average is None else params
    state = State(run.state.step, params, _fresh(optimizer, params), average)
    return dataclasses.replace(run, state=state, totals=())


@eqx.filter_jit
def copied(tree: PyTree) -> PyTree:
    """Copy arrays, for a compiled call that consumes them."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, tree)


def is_consumed(state: State) -> bool:
    """Whether a compiled call that was interrupted has consumed the state."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))


@eqx.filter_jit
def _fresh(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """State of an optimiser before its first step; copied, since some optimisers keep the weights in it."""
    return jax.tree.map(jnp.copy, optimizer.init(params))
