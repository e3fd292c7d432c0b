"""Training the gene-attention classifier, from scratch or from a saved one."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
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
from ginseng.data.models import load_model
from ginseng.model.attention import AttentionClassifier, centered, model_from_params, require_memory
from ginseng.model.instance import GinsengClassifier
from ginseng.model.nn import nn_init_linear
from ginseng.model.state import GinsengClassifierState, classifier_from_state
from ginseng.train.checkpoint import Progress
from ginseng.train.feed import require_nonnegative
from ginseng.train.loop import Trainer
from ginseng.train.settings import GinsengClassifierTrainerSettings

_OF_THE_OPTIMIZER = ("lr", "betas", "eps", "weight_decay", "decoupled", "clip", "schedule", "warmup")
_N_MEAN = 1024  # cells that are enough for the mean of each gene


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
        and `warmup` are then without effect, and not among the settings that are saved with the model.
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
            settings = dataclasses.replace(settings, center=False, **{name: getattr(state, name) for name in kept})
        self.settings = settings
        self._without_effect = () if optimizer is None else _OF_THE_OPTIMIZER
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
        if settings.center and dataset.train_idx is not None and dataset.train_idx.size:
            sample = dataset.sample(_N_MEAN, "train")
            if settings.normalize:
                require_nonnegative(sample, dataset)
            self.classifier.module = centered(self.classifier.module, sample)
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
        if callable(self.settings.schedule):
            settings["schedule"] = "custom"
        return {name: value for name, value in settings.items() if name not in self._without_effect}

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
