"""Settings of training the gene-attention classifier, and what is built from them."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import optax

from ginseng.train.augment import augment, require_parts
from ginseng.train.opt import adam_l2, require_betas, require_rates, scale_by_part
from ginseng.train.recipe import Augmentation, ClassWeights, Recipe, Sampling
from ginseng.train.schedule import Schedule
from ginseng.utils.values import require_flags, require_integer, require_number

_INTERVALS = {
    "dropout_rate": "[0, 1)",
    "holdout_fraction": "[0, 1)",
    "balance_alpha": "[0, 1]",
    "lr": "[0, inf)",
    "eps": "[0, inf)",
    "weight_decay": "[0, inf)",
    "target_sum": "(0, inf)",
    "clip": "(0, inf]",
}
CALIBRATE = ("auto", "groups", "holdout", "none")
_MAY_BE_NONE = ("target_sum", "clip")


@dataclass
class GinsengClassifierTrainerSettings:
    """Settings of `GinsengClassifierTrainer`.

    Parameters
    ----------
    rate, lam_max, lower, upper : optional
        Augmentation of the training counts, see `ginseng.train.augment.augment`; None switches a part off.
    hidden_dim : int
        Hidden dimension of the attention.
    dropout_rate : float
        Dropout rate, in [0, 1).
    lr : float
        Learning rate.
    betas : tuple of float
        Decay rates of the two moments of Adam.
    eps : float
        Numerical stability constant of Adam.
    weight_decay : float
        L2 regularisation factor.
    decoupled : bool
        Apply the regularisation to the update, as ginseng 0.2.1 does, rather than add it to the gradient, which is the
        textbook form. See `adam_l2`.
    normalize : bool
        Normalise counts in the network.
    target_sum : float
        Counts per cell after normalisation.
    holdout_fraction : float
        Share of the cells (or groups) held out, in [0, 1); used if the dataset has not been split before.
    group_level : bool
        Hold out whole groups instead of cells.
    group_mode : str
        How groups are held out; "fraction" is the only way.
    patience : int, optional
        Stop once the holdout loss has not fallen for so many epochs, and go back to the weights that had the lowest;
        by default all epochs are trained.
    schedule : {"cosine", "constant"} or optax.Schedule
        How the learning rate goes over a call of `fit`: from `lr` down to 0 along half a cosine, or constant. A
        schedule of Optax gives the rate itself, in place of `lr`.
    warmup, precision, label_smoothing, class_weights, ema : optional
        How a step learns, see `Recipe`.
    batch_size, balance_train, balance_alpha : optional
        Which cells the steps see, see `Sampling`: its `batch_size`, `balance` and `alpha`.
    seed : int
        Seed of initial weights, split, order and dropout.
    clip : float, optional
        Largest norm of a step's gradient, over all weights of a network; a larger one is scaled down to it.
    rates : dict of str, optional
        Factors of the learning rate by part of the network, such as ``{"features1": 0.1}``, see `scale_by_part`; 1 for
        parts that are not named.
    center : bool
        Where training starts from scratch: begin with biases of the first layer that take the mean training cell,
        normalised (of about 1,000 cells), to 0 rather than with biases of 0.
    members : int
        Networks to train, which differ in their initial weights and dropout: their probabilities are averaged, which
        is more accurate and takes so many times the arithmetic. See `ginseng.Ensemble`.
    stratify_label : bool
        Hold out the same share of each type, and none of types of fewer than ``1 / holdout_fraction`` cells, which
        training needs more. Groups are held out whole.
    replay : float
        Share of the cells of each step, in [0, 1), that are old, where a trainer has `old` data, see `Sampling`.
    distill : float
        Weight of the answers of the classifier that a trainer starts from as soft targets, see `Recipe`; 0 for none.
    calibrate : {"auto", "groups", "holdout", "none"}
        Which cells tell, at the end of `fit`, what the answers are worth (see `ginseng.model.calibration`): those of
        whole groups, left out in turn of up to five further trainings, or those held out at random, which cost nothing
        but are more like the training cells than new ones will be. "auto" takes groups where the training cells have
        several. Genes that were chosen by labels, and a classifier to start from, may have seen all groups. Where `fit`
        is called again and again, "none" spares the further trainings but for the last call.

    Raises
    ------
    ValueError
        If a setting is out of range, or one of `lower` and `upper` is given without the other.

    Examples
    --------
    >>> GinsengClassifierTrainerSettings(batch_size=256).schedule
    'cosine'
    >>> GinsengClassifierTrainerSettings.reference().schedule
    'constant'
    """

    rate: float | None = None
    lam_max: float | None = None
    lower: int | None = None
    upper: int | None = None
    hidden_dim: int = 64
    dropout_rate: float = 0.2
    batch_size: int = 128
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-9
    weight_decay: float = 0.01
    normalize: bool = True
    target_sum: float = 1e4
    holdout_fraction: float = 0.1
    balance_train: bool | str = "resample"
    group_level: bool = False
    group_mode: str = "fraction"
    seed: int = 1
    decoupled: bool = dataclasses.field(default=False, kw_only=True)
    balance_alpha: float = dataclasses.field(default=0.5, kw_only=True)
    patience: int | None = dataclasses.field(default=None, kw_only=True)
    schedule: Schedule = dataclasses.field(default="cosine", kw_only=True)
    warmup: float = dataclasses.field(default=0.05, kw_only=True)
    clip: float | None = dataclasses.field(default=None, kw_only=True)
    rates: dict[str, float] | None = dataclasses.field(default=None, kw_only=True)
    label_smoothing: float = dataclasses.field(default=0.0, kw_only=True)
    class_weights: ClassWeights | None = dataclasses.field(default=None, kw_only=True)
    ema: float | None = dataclasses.field(default=None, kw_only=True)
    precision: str = dataclasses.field(default="float32", kw_only=True)
    center: bool = dataclasses.field(default=True, kw_only=True)
    stratify_label: bool = dataclasses.field(default=True, kw_only=True)
    members: int = dataclasses.field(default=1, kw_only=True)
    replay: float = dataclasses.field(default=0.5, kw_only=True)
    distill: float = dataclasses.field(default=0.0, kw_only=True)
    calibrate: str = dataclasses.field(default="auto", kw_only=True)

    def __post_init__(self):
        if self.group_mode != "fraction":
            raise ValueError(f"`group_mode` must be 'fraction', but got '{self.group_mode}'.")
        require_parts(self.rate, self.lam_max, self.lower, self.upper)
        require_integer("hidden_dim", self.hidden_dim, 1)
        require_integer("members", self.members, 1)
        if self.patience is not None:
            require_integer("patience", self.patience, 1)
        names = "normalize", "group_level", "decoupled", "center", "stratify_label"
        require_flags(**{name: getattr(self, name) for name in names})
        for name, interval in _INTERVALS.items():
            if (value := getattr(self, name)) is not None or name not in _MAY_BE_NONE:
                require_number(name, value, interval)
        require_betas(self.betas)
        if self.rates is not None:
            require_rates(self.rates)
        if self.calibrate not in CALIBRATE:
            raise ValueError(f"`calibrate` must be one of {', '.join(CALIBRATE)}, but got {self.calibrate!r}.")
        self.recipe()
        self.sampling()

    @classmethod
    def reference(cls, **changes: Any) -> "GinsengClassifierTrainerSettings":
        """Settings of ginseng 0.2.1, with `changes`.

        Examples
        --------
        >>> GinsengClassifierTrainerSettings.reference(seed=2).balance_train
        'downsample'
        """
        recipe = {
            "dropout_rate": 0.2,
            "lr": 1e-3,
            "weight_decay": 0.01,
            "decoupled": True,
            "balance_train": "downsample",
            "schedule": "constant",
            "warmup": 0.0,
            "center": False,
            "stratify_label": False,
            "calibrate": "none",
        }
        return cls(**{**recipe, **changes})

    def split(self) -> dict[str, Any]:
        """How a dataset is split, as `GinsengDataset.create` and `make_split` take it."""
        by_label = self.stratify_label and not self.group_level
        ways = {"stratify_group": self.group_level, "stratify_label": by_label, "keep_rare": by_label}
        return {"fraction": self.holdout_fraction, "seed": int(self.seed), **ways}

    def recipe(self, optimizer: optax.GradientTransformation | None = None) -> Recipe:
        """How a step learns; with an optimiser in place of that of the settings, its updates are taken as they are."""
        return Recipe(
            optimizer=self._optimizer() if optimizer is None else optimizer,
            schedule=self.schedule if optimizer is None else "constant",
            warmup=self.warmup if optimizer is None else 0.0,
            precision=self.precision,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            ema=self.ema,
            augment=self._augmentation(),
            distill=self.distill,
        )

    def sampling(self, memory: int | str | None = None) -> Sampling:
        """Which cells the steps see, of which so many bytes are held."""
        return Sampling(
            batch_size=self.batch_size,
            balance=self.balance_train,
            alpha=self.balance_alpha,
            memory=memory,
            seed=self.seed,
            replay=self.replay,
        )

    def _augmentation(self) -> Augmentation | None:
        given = ((float, self.rate), (float, self.lam_max), (int, self.lower), (int, self.upper))
        parts = [None if value is None else number(value) for number, value in given]
        return None if parts == [None] * 4 else _augmentation(*parts)

    def _optimizer(self) -> optax.GradientTransformation:
        """Step by `lr`, or 1 where the schedule gives the rate."""
        rate = 1.0 if callable(self.schedule) else float(self.lr)
        beta1, beta2 = map(float, self.betas)
        clip = None if self.clip is None else float(self.clip)
        adam = rate, (beta1, beta2), float(self.eps), float(self.weight_decay), bool(self.decoupled)
        factors = tuple((name, float(factor)) for name, factor in sorted((self.rates or {}).items()))
        return _optimizer(*adam, clip, self.members > 1, factors)


# One object for equal numbers: what is compiled is shared by trainers of the same objects.
@functools.cache
def _augmentation(*parts: Any) -> Augmentation:
    return lambda key, x: augment(key, x, *parts)


@functools.cache
def _optimizer(
    rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    clip: float | None,
    has_members: bool,
    factors: tuple[tuple[str, float], ...],
) -> optax.GradientTransformation:
    adam = adam_l2(rate, betas, eps, weight_decay, decoupled=decoupled)
    parts = [adam]
    if clip is not None:
        clipping = optax.clip_by_global_norm(clip)
        parts.insert(0, _for_each_member(clipping) if has_members else clipping)
    if factors:
        parts.append(scale_by_part(dict(factors)))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def _for_each_member(stateless: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transformation to the gradient of each member of an ensemble, the first axis of its arrays, by itself."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.vmap(lambda of_member: stateless.update(of_member, state)[0])(updates), state

    return optax.GradientTransformation(stateless.init, update)
