"""Training the gene-attention classifier, from scratch or from a saved one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ginseng.data.annotation import require_two_labels
from ginseng.data.dataset import GinsengDataset
from ginseng.data.models import load_model
from ginseng.data.preflight import require_counts
from ginseng.metrics import Scores
from ginseng.model.attention import AttentionClassifier, centered, require_memory
from ginseng.model.background import background_of
from ginseng.model.calibration import Calibration
from ginseng.model.ensemble import joined, members_of
from ginseng.model.instance import GinsengClassifier
from ginseng.model.modules import weights_digest
from ginseng.model.state import WEIGHTS, GinsengClassifierState, of_its_weights
from ginseng.train.calibrating import calibrated, source_of
from ginseng.train.card import card_of, require_card
from ginseng.train.frozen import cached, frozen_parts, without_dropout_of
from ginseng.train.logger import GinsengLogger
from ginseng.train.loop import Trainer, require_held_out
from ginseng.train.settings import GinsengClassifierTrainerSettings
from ginseng.train.starting import (
    N_MEAN,
    drawn,
    labels_without_cells,
    network_and_spec,
    sample_of,
    settings_for,
    split_of,
    with_labels_of,
    without_test,
)
from ginseng.train.step import Fixed, Slab, State
from ginseng.utils.devices import require_not_forked
from ginseng.utils.messages import shorten, warn
from ginseng.utils.names import GeneNames

_OF_THE_OPTIMIZER = ("lr", "betas", "eps", "weight_decay", "decoupled", "clip", "schedule", "warmup", "rates")


class GinsengClassifierTrainer:
    """Train a gene-attention classifier, from scratch or from a saved one.

    Parameters
    ----------
    dataset : GinsengDataset, str or Path
        Training data. Where it has no split yet, the settings make one.
    settings : GinsengClassifierTrainerSettings, optional
        How to train; by default as the settings' defaults say.
    start : GinsengClassifierState, str or Path, optional
        A trained classifier (or its file) to go on from. Its genes, networks, normalisation and dropout are kept: the
        dataset's genes are matched to them, and labels that it does not know are added to its head. `ginseng.finetune`
        does more.
    old : GinsengDataset, optional
        Data of which each step sees a share, too (`settings.replay`), so that what `start` knows is not forgotten.
    trainable : PyTree of bool or callable, optional
        Filter spec over the network: which leaves to train; see `Trainer`. A spec made from the network of `start`
        also holds where labels are added to the head. Parts without any have no dropout, and where the network begins
        with such, their answers are computed once, if they fit in `memory`: see `ginseng.train.frozen`.
    memory : int or str, optional
        Bytes that counts may take, such as ``"2 GB"``; see `GinsengDataset.stream`, which reads larger ones anew in
        each epoch.
    optimizer : optax.GradientTransformation, optional
        In place of that of the settings: their `lr`, `betas`, `eps`, `weight_decay`, `decoupled`, `clip`, `schedule`,
        `warmup` and `rates` are then without effect, and not among the settings that are saved with the model.
    devices : int or sequence of jax.Device, optional
        Devices that share each batch, see `Trainer`; by default all.
    card : dict of str, optional
        What is to be told of the model, by names such as "data" and "licence": kept in its file and shown by
        ``ginseng inspect``, with what training knows.

    Attributes
    ----------
    classifier : GinsengClassifier
        The classifier as trained so far; of several `members`, the first.
    genes, label_names : list of str
        Names of its inputs and outputs.
    second_names : list of str or None
        Other names of its inputs, those of `start`, if given, or of the dataset.
    background : Background or None
        Means over about 1,000 training cells, which stand in for genes that new data lack; those of `start`, if given,
        but 0 where the dataset lacks a gene.
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
        old: GinsengDataset | None = None,
        trainable: PyTree[bool | Callable] = eqx.is_inexact_array,
        memory: int | str | None = None,
        optimizer: optax.GradientTransformation | None = None,
        devices: int | Sequence[Any] | None = None,
        card: Mapping[str, str] | None = None,
    ):
        require_not_forked()
        state = load_model(start) if isinstance(start, str | Path) else start
        state = None if state is None else of_its_weights(state)
        self._sibling = functools.partial(
            GinsengClassifierTrainer,
            start=state,
            old=None if old is None else without_test(old),
            trainable=trainable,
            memory=memory,
            optimizer=optimizer,
            devices=devices,
        )
        self._told = require_card(card)
        self.dataset = dataset if isinstance(dataset, GinsengDataset) else GinsengDataset(dataset)
        if state is None:
            require_two_labels(self.dataset.label_names, str(self.dataset.path))
        self.settings = settings_for(state, GinsengClassifierTrainerSettings() if settings is None else settings)
        self.genes = list(map(str, self.dataset.gene_names if state is None else state.genes))
        second_names = self.dataset.second_names if state is None else state.second_names
        self.second_names = None if second_names is None else list(map(str, second_names))
        known = [] if state is None else list(map(str, state.output_labels))
        self.label_names = [*known, *(label for label in self.dataset.label_names if label not in known)]
        self._without_effect = () if optimizer is None else _OF_THE_OPTIMIZER
        self._begins_trained = state is not None
        self._start_metadata = (
            {} if state is None else {"start": {k: v for k, v in state.metadata.items() if k not in ("start", WEIGHTS)}}
        )
        train, test = split_of(self.dataset, self.settings)
        view = self.dataset if self.dataset.train_idx is not None else self.dataset.divided(train, test)
        require_held_out(self.settings.patience, len(test))
        self._judged_by = source_of(self.dataset, train, self.settings.calibrate)
        self._calibration: tuple[Any, Calibration | None] = None, None
        known_by = None if state is None or state.calibration is None else state.calibration.geometry
        self._geometry = known_by if known_by is not None and len(known_by.means) == len(self.label_names) else None
        lacks = labels_without_cells(self.label_names, view, old)
        if state is not None and lacks and self._geometry is None and self._judged_by != "none":
            warn(
                f"No training cell is of {shorten(lacks)}: the novelty of cells that are given it is not known. "
                "`old` data with such cells would tell it."
            )
        require_memory(len(self.genes), n_copies=5 * self.settings.members)
        if self.settings.normalize and self.dataset.dtype.kind == "f":
            require_counts(self.dataset.sample(N_MEAN), str(self.dataset.path))
        classifiers = self._begun(state, view)
        model, trainable = network_and_spec([classifier.module for classifier in classifiers], trainable, state)
        recipe, sampling = self.settings.recipe(optimizer), self.settings.sampling(memory)
        names = GeneNames(self.genes, self.second_names)
        teacher = None if state is None or not self.settings.distill else state.module
        how: dict[str, Any] = {"genes": names, "devices": devices, "old": old, "teacher": teacher}
        self._cached = found = cached(model, view, recipe, sampling, trainable=trainable, **how)
        if found is None:
            model, data = without_dropout_of(model, frozen_parts(model, trainable)), self.dataset
        else:
            model, data, trainable = found.module, found.dataset, found.trainable
            how |= {"old": found.old, "teacher": found.teacher}
        how |= {"trainable": trainable, "labels": self.label_names, "patience": self.settings.patience}
        self._trainer = Trainer(model, data, recipe, sampling, **how)
        if self.background is not None:
            is_lacking = self._trainer.is_lacking if found is None else found.is_lacking
            self.background = self.background.without(is_lacking)
        self.classifier: GinsengClassifier = _TrainedClassifier(self, classifiers[0])
        if self.dataset.train_idx is None:  # the last step: nothing is written by a trainer that is refused
            self.dataset.keep_split(train, test)

    def _begun(self, state: GinsengClassifierState | None, data: GinsengDataset) -> list[GinsengClassifier]:
        """The classifiers that training starts from; sets the background."""
        if state is not None:
            self.background = state.background
            return list(map(GinsengClassifier.from_module, with_labels_of(state, data).networks))
        classifiers = drawn(len(self.genes), len(self.label_names), self.settings)
        self.background = None
        if data.train_idx is not None and data.train_idx.size:
            sample = sample_of(self.dataset, data.train_idx, self.settings)
            self.background = background_of(classifiers[0].module, sample)
            for classifier in classifiers if self.settings.center else []:
                classifier.module = centered(classifier.module, self.background.expression)
        return classifiers

    @property
    def model(self) -> eqx.Module:
        """The network as trained so far; may be assigned: optimiser, logger and scores then begin anew."""
        model: Any = self._trainer.model
        return model if self._cached is None else self._cached.whole(model)

    @model.setter
    def model(self, model: Any) -> None:
        self._trainer.model = model if self._cached is None else self._cached.remainder_of(model)

    @property
    def calibration(self) -> Calibration | None:
        """What the answers of the classifier are worth, of the weights that it was learnt for."""
        weights, found = self._calibration
        return found if weights is self._trainer.run.state.shown else None

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return self._trainer.n_steps

    @property
    def opt_state(self) -> PyTree:
        """State of the optimiser, over the trainable leaves."""
        return self._trainer.opt_state

    @property
    def logger(self) -> GinsengLogger:
        """Metrics of each epoch."""
        return self._trainer.logger

    @property
    def holdout_scores(self) -> Scores | None:
        """Scores of the held-out cells after the last epoch, and how confidence is calibrated."""
        scores, calibration = self._trainer.holdout_scores, self.calibration
        return (
            scores
            if scores is None or calibration is None
            else dataclasses.replace(scores, calibration=calibration.table())
        )

    def fit(
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
        about = {name: value for name, value in self._settings_in_words.items() if name != "calibrate"}
        self._trainer.fit(epochs, silent, checkpoint=checkpoint, log=log, about=about)
        n_epochs = self._n_epochs_kept
        if n_epochs or self._begins_trained:
            settings = dataclasses.replace(self.settings, patience=None, calibrate="none")
            make = functools.partial(self._sibling, settings=settings)
            found = calibrated(self, self._judged_by, make, n_epochs, silent, checkpoint)
            if found is not None:
                geometry = found.geometry if self._geometry is None else found.geometry.filled(self._geometry)
                found = dataclasses.replace(found, geometry=geometry, weights=weights_digest(self.model))
            self._calibration = self._trainer.run.state.shown, found
        return self.classifier

    @property
    def _n_epochs_kept(self) -> int:
        """How many epochs the weights have been trained for."""
        losses = self.logger.holdout_loss
        return len(losses) if self.settings.patience is None or not losses else int(np.argmin(losses)) + 1

    def answers(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of the cells of a part, see `Trainer`."""
        return self._trainer.answers(part)

    def _train_step(self, given: tuple[Fixed, Slab], state: State) -> tuple[State, Array]:
        """Update parameters, see `Trainer`."""
        return self._trainer._train_step(given, state)

    def _run_epoch(self, rates: np.ndarray) -> float:
        """Run a single training epoch, see `Trainer`."""
        return self._trainer._run_epoch(rates)

    def _validate(self) -> tuple[float, Scores | None]:
        """Run validation on the holdout split, see `Trainer`."""
        return self._trainer._validate()

    @property
    def _settings_in_words(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)
        if callable(self.settings.schedule):
            settings["schedule"] = "custom"
        return {name: value for name, value in settings.items() if name not in self._without_effect}

    def metadata(self) -> dict[str, Any]:
        """Settings and history of the training, for the model file."""
        history = dataclasses.asdict(self.logger)
        if self.calibration is not None:
            history["calibration"] = self.calibration.summary()
        described = {"settings": self._settings_in_words, "history": history}
        described["card"] = card_of(self.dataset, self.label_names, self.holdout_scores, self.calibration, self._told)
        return {**described, **self._start_metadata}


class _TrainedClassifier(GinsengClassifier):
    """The (first) classifier of a trainer, in whose run its weights are; copies of it have weights of their own."""

    def __init__(self, trainer: GinsengClassifierTrainer, drawn: GinsengClassifier):
        self._trainer, self.seed, self.key = trainer, drawn.seed, drawn.key

    @property
    def module(self) -> AttentionClassifier:  # pyright: ignore[reportIncompatibleVariableOverride]
        return members_of(self._trainer.model)[0]

    @module.setter
    def module(self, module: AttentionClassifier) -> None:
        self._trainer.model = joined([module, *members_of(self._trainer.model)[1:]])

    def __reduce__(self):
        return GinsengClassifier.from_module, (self.module, self.seed), {"key": self.key}
