"""What training is composed of: how a step learns, and which cells it sees."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from ginseng.data.sampling import balance_of
from ginseng.train.opt import adam_l2
from ginseng.train.schedule import Schedule, require_schedule
from ginseng.utils.memory import bytes_of
from ginseng.utils.messages import warn
from ginseng.utils.precision import require_precision
from ginseng.utils.values import require_integer, require_number

Augmentation = Callable[[PRNGKeyArray, Array], Array]
ClassWeights = str | Mapping[str, float]

_MOST_OF_A_RATE, _LEAST_OF_A_DIRECTION = 0.1, 0.5  # of a learning rate, and of a first step that has none
_ADAM = adam_l2()  # one object, so that trainers share their compiled steps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a step learns.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        By default `adam_l2` with its defaults.
    schedule : {"constant", "cosine"} or optax.Schedule
        What the updates of `optimizer` are multiplied by, over the steps of one call of `fit`; see
        `ginseng.train.schedule.learning_rates`.
    warmup : float
        Share of the steps, in [0, 1), over which a named schedule rises.
    precision : {"float32", "bfloat16"}
        "bfloat16" rounds the factors of matrix products and sums in float32; weights and all else stay float32.
        Faster where the hardware has such products.
    label_smoothing : float
        Share of each cell's label, in [0, 1), that is spread over all labels.
    class_weights : "balanced" or dict, optional
        Factors of the losses of cells by their label; 1 for labels that are not named. "balanced" makes every label
        count the same, with a mean of 1 over the cells of an epoch.
    ema : float, optional
        Decay, in [0, 1), of a moving average of the weights, such as 0.99: what the trainer's `model` holds after each
        epoch, is validated, and the next call of `fit` begins from.
    augment : callable, optional
        ``augment(key, x)`` on the counts of a batch, ``(cells, genes)``, inside the compiled step.
    distill : float
        Weight of the answers of a `teacher` (see `Trainer`) as soft targets beside the labels: of the Kullback-Leibler
        divergence from them, at a temperature of 2, times its square (Li & Hoiem, Learning without forgetting, ECCV
        2016).

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> Recipe(optimizer=optax.sgd(0.1), schedule="cosine", warmup=0.05).precision
    'float32'
    """

    optimizer: optax.GradientTransformation = _ADAM
    schedule: Schedule = "constant"
    warmup: float = 0.0
    precision: str = "float32"
    label_smoothing: float = 0.0
    class_weights: ClassWeights | None = None
    ema: float | None = None
    augment: Augmentation | None = None
    distill: float = 1.0

    def __post_init__(self):
        require_schedule(self.schedule, self.warmup)
        require_precision(self.precision)
        if not all(callable(getattr(self.optimizer, part, None)) for part in ("init", "update")):
            raise ValueError(
                f"`optimizer` must be an optax.GradientTransformation, such as optax.adam(1e-3), but got "
                f"{self.optimizer!r}."
            )
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"`augment` must be a function of a key and counts, or None, but got {self.augment!r}.")
        for name, share in (("label_smoothing", self.label_smoothing), ("ema", self.ema)):
            if share is not None:
                require_number(name, share, "[0, 1)")
        require_number("distill", self.distill, "[0, inf)")
        _require_weights(self.class_weights)

    def compiled(self) -> "Recipe":
        """What of it is compiled into the steps, which get learning rates and class weights as arrays."""
        return dataclasses.replace(
            self,
            schedule="constant",
            warmup=0.0,
            class_weights=None,
            label_smoothing=float(self.label_smoothing),
            ema=None if self.ema is None else float(self.ema),
            distill=float(self.distill),
        )


def warn_of_rates(recipe: Recipe, factors: np.ndarray) -> None:
    """Warn if the factors of a schedule look like learning rates beside those of the optimiser."""
    highest = factors.max(initial=0.0)
    still_rises = factors.size and factors[0] < factors[-1] == highest
    if not callable(recipe.schedule) or not 0 < highest <= _MOST_OF_A_RATE or still_rises:
        return
    weight = jnp.ones(())
    try:
        update, _ = recipe.optimizer.update(weight, recipe.optimizer.init(weight), weight)
    except Exception:  # one that asks for more, of which nothing is known
        return
    step = abs(float(jnp.asarray(update)))
    if step < _LEAST_OF_A_DIRECTION:
        warn(
            f"The values of `schedule` look like learning rates (at most {highest:g}), but a Recipe multiplies the "
            f"updates of `optimizer` by them, which has a rate of its own: weights change {1 / highest:,.0f} times "
            "less than it says. Let the schedule give factors up to 1, or the optimizer have a rate of 1."
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which cells the steps see, and how many.

    Parameters
    ----------
    batch_size : int
        Cells per step, over all devices.
    balance : bool or {"none", "downsample", "resample"}
        How to balance the labels in each epoch, see `GinsengDataset.stream`; True stands for "downsample".
    alpha : float
        How much "resample" balances, from 0 (not at all) to 1 (equally many cells of each label).
    memory : int or str, optional
        Bytes that counts may take, such as ``"2 GB"``; see `GinsengDataset.stream`, which reads larger ones anew in
        each epoch.
    seed : int
        Seed of all that is random: order, dropout, augmentation.
    replay : float
        Share of the cells of each step, in [0, 1), that are of `old` data (see `Trainer`), drawn as those of the
        dataset are; an epoch has all cells of the dataset, and so many old ones beside them.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> Sampling(batch_size=256, balance="resample", alpha=0.5).seed
    1
    """

    batch_size: int | np.integer = 128
    balance: bool | str = "none"
    alpha: float = 1.0
    memory: int | str | None = None
    seed: int | np.integer = 1
    replay: float = 0.5

    def __post_init__(self):
        require_integer("batch_size", self.batch_size, 1)
        balance_of(self.balance)
        require_number("alpha", self.alpha, "[0, 1]")
        if self.memory is not None:
            bytes_of(self.memory)
        require_integer("seed", self.seed, 0, below=2**32)
        require_number("replay", self.replay, "[0, 1)")


def _require_weights(class_weights: ClassWeights | None) -> None:
    if class_weights is None or (isinstance(class_weights, str) and class_weights == "balanced"):
        return
    if not isinstance(class_weights, Mapping):
        raise ValueError(f"`class_weights` must be 'balanced' or a dict, but got {class_weights!r}.")
    for name, weight in class_weights.items():
        require_number(f"class_weights[{name!r}]", weight, "[0, inf)")
