"""Training the gene-attention classifier, from scratch or from a saved one."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PyTree

from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import load_model
from ginseng.data.sampling import balance_of, require_share
from ginseng.model.attention import AttentionClassifier, model_from_params, require_memory
from ginseng.model.instance import GinsengClassifier
from ginseng.model.nn import nn_init_linear
from ginseng.model.state import GinsengClassifierState, classifier_from_state
from ginseng.train.augment import augment
from ginseng.train.checkpoint import Progress
from ginseng.train.feed import ClassWeights
from ginseng.train.loop import Trainer
from ginseng.train.opt import adam_l2
from ginseng.train.schedule import Schedule, require_schedule
from ginseng.train.step import Augmentation


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
    batch_size : int
        Cells per step.
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
    balance_train : bool or {"none", "downsample", "resample"}
        How to balance the labels in each epoch, see `GinsengDataset.stream`; True stands for "downsample".
    group_level : bool
        Hold out whole groups instead of cells.
    group_mode : str
        How groups are held out; "fraction" is the only way.
    seed : int
        Seed of initial weights, split, order and dropout.
    balance_alpha : float
        How much "resample" balances, from 0 (not at all) to 1 (equally many cells of each label).
    patience : int, optional
        Stop once the holdout loss has not fallen for so many epochs, and go back to the weights that had the lowest;
        by default all epochs are trained.
    schedule : {"cosine", "constant"} or optax.Schedule
        How the learning rate goes over a call of `fit`: from `lr` down to 0 along half a cosine, or constant. A
        schedule of Optax gives the rate itself, in place of `lr`.
    warmup : float
        Share of the steps, in [0, 1), over which the named schedules rise to `lr`.
    clip : float, optional
        Largest norm of a step's gradient, over all weights; a larger one is scaled down to it.
    label_smoothing : float
        Share of each cell's label, in [0, 1), that is spread over all labels.
    class_weights : "balanced" or dict, optional
        Factors of the losses of cells by their label, see `Trainer`.
    ema : float, optional
        Decay of a moving average of the weights, see `Trainer`.
    precision : {"float32", "bfloat16"}
        Of the factors of matrix products, see `Trainer`.
    stratify_label : bool
        Hold out the same share of each type, and none of types of fewer than ``1 / holdout_fraction`` cells, which
        training needs more. Groups are held out whole.

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
    label_smoothing: float = dataclasses.field(default=0.0, kw_only=True)
    class_weights: ClassWeights | None = dataclasses.field(default=None, kw_only=True)
    ema: float | None = dataclasses.field(default=None, kw_only=True)
    precision: str = dataclasses.field(default="float32", kw_only=True)
    stratify_label: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        if self.group_mode != "fraction":
            raise ValueError(f"`group_mode` must be 'fraction', but got '{self.group_mode}'.")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise ValueError(f"`holdout_fraction` must lie in [0, 1), but got {self.holdout_fraction}.")
        balance_of(self.balance_train)
        require_share(self.balance_alpha)
        require_schedule(self.schedule, self.warmup)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"`clip` must be positive, but got {self.clip}.")

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
            "stratify_label": False,
        }
        return cls(**{**recipe, **changes})

    def augmentation(self) -> Augmentation | None:
        """Build the augmentation of a batch, or None if all parts are off."""
        parts = (self.rate, self.lam_max, self.lower, self.upper)
        return None if parts == (None,) * 4 else _augmentation(*parts)

    def optimizer(self) -> optax.GradientTransformation:
        """Build the optimiser; its rate is the whole of `lr`, or 1 where the schedule gives it."""
        rate = 1.0 if callable(self.schedule) else self.lr
        return _optimizer(rate, tuple(self.betas), self.eps, self.weight_decay, self.decoupled, self.clip)


# The same objects for the same numbers: trainers of equal settings share their compiled steps.
@functools.cache
def _augmentation(*parts: float | int | None) -> Augmentation:
    return lambda key, x: augment(key, x, *parts)


@functools.cache
def _optimizer(
    rate: float, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool, clip: float | None
) -> optax.GradientTransformation:
    adam = adam_l2(rate, betas, eps, weight_decay, decoupled=decoupled)
    return adam if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam)


class GinsengClassifierTrainer(Trainer):
    """Train a gene-attention classifier, from scratch or from a saved one.

    Parameters
    ----------
    dataset : GinsengDataset, str or Path
        Training data. Where it has no split yet, the settings make one.
    settings : GinsengClassifierTrainerSettings, optional
        How to train; by default as the settings' defaults say.
    start : GinsengClassifierState, str or Path, optional
        A trained classifier (or its file) to go on from. Its genes, network, normalisation and dropout are kept: the
        dataset's genes are matched to them, and labels that it does not know are added to its head.
    trainable : PyTree of bool or callable, optional
        Filter spec over the network: which leaves to train; see `Trainer`. A spec made from the network of `start`
        also holds where labels are added to the head.
    memory : int or str, optional
        Bytes that counts may take, such as ``"2 GB"``; see `GinsengDataset.stream`, which reads larger ones anew in
        each epoch.
    optimizer : optax.GradientTransformation, optional
        In place of that of the settings: their `lr`, `betas`, `eps`, `weight_decay`, `decoupled`, `clip`, `schedule`
        and `warmup` are then without effect.
    devices : int or sequence of jax.Device, optional
        Devices that share each batch, see `Trainer`; by default all.

    Attributes
    ----------
    classifier : GinsengClassifier
        The classifier as trained so far.
    genes, label_names : list of str
        Names of its inputs and outputs.
    logger : GinsengLogger
        Metrics of each epoch.
    holdout_scores : Scores or None
        Scores of each cell type and confusion on the held-out cells after the last epoch, if any are held out.

    Raises
    ------
    ValueError
        If settings, dataset and `start` do not fit together.
    MemoryError
        If the dataset has so many genes that training would not fit in memory.

    Examples
    --------
    >>> import ginseng
    >>> trainer = GinsengClassifierTrainer("cells.zarr")  # doctest: +SKIP
    >>> classifier = trainer.fit(epochs=10)  # doctest: +SKIP
    >>> ginseng.save_model(ginseng.state_from_classifier_trainer(trainer), "model.h5")  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: GinsengDataset | str | Path,
        settings: GinsengClassifierTrainerSettings | None = None,
        *,
        start: GinsengClassifierState | str | Path | None = None,
        trainable: PyTree[bool | Callable] = eqx.is_inexact_array,
        memory: int | str | None = None,
        optimizer: optax.GradientTransformation | None = None,
        devices: int | Sequence[Any] | None = None,
    ):
        dataset = dataset if isinstance(dataset, GinsengDataset) else GinsengDataset(dataset)
        settings = GinsengClassifierTrainerSettings() if settings is None else dataclasses.replace(settings)
        state = load_model(start) if isinstance(start, str | Path) else start
        if dataset.train_idx is None:
            by_label = settings.stratify_label and not settings.group_level
            dataset.make_split(
                settings.holdout_fraction,
                settings.group_level,
                settings.seed,
                stratify_label=by_label,
                keep_rare=by_label,
            )
        elif settings.group_level and _mixes_groups(dataset):
            warnings.warn(
                f"{dataset.path} has been split before, with cells of a group on both sides; for whole groups call "
                "dataset.make_split(fraction, stratify_group=True).",
                stacklevel=2,
            )

        if state is not None:
            kept = ("hidden_dim", "normalize", "target_sum", "dropout_rate")
            settings = dataclasses.replace(settings, **{name: getattr(state, name) for name in kept})
        self.settings = settings
        self.genes = list(map(str, dataset.gene_names if state is None else state.genes))
        self.label_names = list(map(str, dataset.label_names if state is None else state.output_labels))
        self.label_names += [label for label in dataset.label_names if label not in self.label_names]
        self._start_metadata = (
            {} if state is None else {"start": {k: v for k, v in state.metadata.items() if k != "start"}}
        )
        require_memory(len(self.genes), n_copies=5)
        self.classifier = (
            GinsengClassifier(
                len(self.genes),
                len(self.label_names),
                settings.hidden_dim,
                settings.dropout_rate,
                settings.normalize,
                settings.target_sum,
                settings.seed,
            )
            if state is None
            else _with_classes(classifier_from_state(state), len(self.label_names), settings.seed)
        )
        if state is not None and isinstance(trainable, AttentionClassifier):
            trainable = _spec_for(self.classifier.module, trainable, state)
        super().__init__(
            self.classifier.module,
            dataset,
            optimizer=settings.optimizer() if optimizer is None else optimizer,
            trainable=trainable,
            augment=settings.augmentation(),
            batch_size=settings.batch_size,
            balance_train=settings.balance_train,
            balance_alpha=settings.balance_alpha,
            memory=memory,
            patience=settings.patience,
            seed=settings.seed,
            schedule=settings.schedule if optimizer is None else "constant",
            warmup=settings.warmup if optimizer is None else 0.0,
            precision=settings.precision,
            label_smoothing=settings.label_smoothing,
            class_weights=settings.class_weights,
            ema=settings.ema,
            devices=devices,
            genes=self.genes,
            labels=self.label_names,
        )

    def fit(  # pyright: ignore[reportIncompatibleMethodOverride]: documented to return the stateful face of the module
        self,
        epochs: int = 10,
        silent: bool = False,
        *,
        checkpoint: str | Path | None = None,
        log: str | Path | None = None,
    ) -> GinsengClassifier:
        """Fit the classifier; called again, it goes on.

        Parameters
        ----------
        epochs, silent, checkpoint, log
            As for `Trainer.fit`.

        Returns
        -------
        GinsengClassifier
            The trained classifier.
        """
        self.model = self.classifier.module
        self._feed.nonnegative = self.classifier.normalize
        self._fit(epochs, silent, checkpoint, log)
        return self.classifier

    def _keep(self) -> None:
        super()._keep()
        self.classifier.module = cast(AttentionClassifier, self.model)

    def _go_back(self) -> None:
        super()._go_back()
        self.classifier.module = cast(AttentionClassifier, self.model)

    def _description(self, run: Progress, rates: np.ndarray) -> dict[str, Any]:
        return {**super()._description(run, rates), **self._settings_in_words}

    @property
    def _settings_in_words(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)
        return {**settings, "schedule": "custom"} if callable(self.settings.schedule) else settings

    def metadata(self) -> dict[str, Any]:
        """Settings and history of the training, for the model file."""
        described = {"settings": self._settings_in_words, "history": dataclasses.asdict(self.logger)}
        return {**described, **self._start_metadata}


def _mixes_groups(dataset: GinsengDataset) -> bool:
    if dataset.groups is None:
        return True
    return bool(np.isin(dataset.groups[dataset.train_idx], dataset.groups[dataset.test_idx]).any())


def _spec_for(
    module: AttentionClassifier, spec: AttentionClassifier, state: GinsengClassifierState
) -> AttentionClassifier:
    """Carry a filter spec over the network of a state to that network with more classes."""
    if spec.n_classes == module.n_classes:
        return spec
    per_leaf = jax.tree.broadcast(spec, classifier_from_state(state).module)
    return jax.tree.unflatten(jax.tree.structure(module), jax.tree.leaves(per_leaf))


def _with_classes(classifier: GinsengClassifier, n_classes: int, seed: int) -> GinsengClassifier:
    """Add outputs with fresh weights to the head, up to `n_classes`."""
    if n_classes == classifier.n_classes:
        return classifier
    params = classifier.params
    fresh = nn_init_linear(jr.key(seed), classifier.n_genes, n_classes)
    grown = {
        name: jnp.concatenate([params["head"][name], fresh[name][..., classifier.n_classes :]], axis=-1)
        for name in ("W", "b")
    }
    module = model_from_params({**params, "head": grown}, **classifier.options)
    return GinsengClassifier.from_module(module, seed)
