"""A training loop over any Equinox module that maps a cell to logits."""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pandas as pd
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from ginseng.data.dataset import GinsengDataset
from ginseng.metrics import Scores, scores_of
from ginseng.model.attention import AttentionClassifier
from ginseng.model.ensemble import Ensemble
from ginseng.model.modules import require_shapes
from ginseng.train.checkpoint import TRACED, Checkpoint
from ginseng.train.failures import diverged, not_finite
from ginseng.train.feed import Feed
from ginseng.train.logger import GinsengLogger, LogFile
from ginseng.train.recipe import Recipe, Sampling, warn_of_rates
from ginseng.train.run import called, copied, ended_epoch, is_consumed, new_run, with_weights
from ginseng.train.schedule import learning_rates
from ginseng.train.step import Fixed, Slab, State, answers, evaluate, traced, train_steps
from ginseng.utils.devices import Devices
from ginseng.utils.digest import digest
from ginseng.utils.names import GeneNames
from ginseng.utils.values import require_flags, require_integer, require_kind


class Trainer:
    """Fit any Equinox module that maps the counts of one cell to logits.

    Parameters
    ----------
    model : eqx.Module
        Called as ``model(x)`` with ``x`` the counts of one cell, or as ``model(x, key=key)`` where its ``__call__``
        takes a ``key``, as Equinox layers do. It is never modified.
    dataset : GinsengDataset
        Training data. Its split is used; without one, all cells are for training.
    recipe : Recipe, optional
        How a step learns; by default `Recipe()`.
    sampling : Sampling, optional
        Which cells the steps see, and how many; by default `Sampling()`.
    trainable : PyTree of bool or callable, optional
        Filter spec, as for `equinox.partition`: which leaves to train. The others get no gradient and no optimiser
        state. By default all floating-point arrays.
    patience : int, optional
        Stop once the holdout loss has not fallen for so many epochs, and go back to the weights that had the lowest.
    devices : int or sequence of jax.Device, optional
        Devices that share each batch: so many, or these; by default all that JAX sees, of all processes if
        `jax.distributed` has been initialised.
    genes, labels : sequence of str, optional
        Names of the model's inputs and outputs where they are not those of the dataset: genes are matched by name, and
        those that the dataset lacks count as zero. `ginseng.utils.names.GeneNames` holds genes with other names.
    old : GinsengDataset, optional
        Data of which each step sees a share, too, so that what was learnt from them is not forgotten: see
        `Sampling.replay`. Its held-out cells are judged together with those of the dataset.
    teacher : eqx.Module, optional
        A module of the same inputs, whose answers are soft targets for the first outputs of the model, as many as it
        has: see `Recipe.distill`.
    further : sequence of str
        Columns of the dataset, such as that of its groups or those kept by `further` of `GinsengDataset.create`, for
        each of which the model has a further output: it then maps a cell to a tuple of logits, those of the labels
        first, and its loss is the sum of theirs. A cell of which a column says nothing has no loss there. What is said
        of labels (balance, class weights, a teacher, logged metrics) is of the first output.

    Attributes
    ----------
    run : Run
        The run where it stands; the attributes below are parts of it.
    model : eqx.Module
        The module as trained so far; may be assigned: optimiser, logger and scores then begin anew.
    opt_state : PyTree
        State of the optimiser, over the trainable leaves.
    logger : GinsengLogger
        Metrics of each epoch.
    holdout_scores : Scores or None
        Scores of each cell type and confusion on the held-out cells after the last epoch, if any are held out; those of
        further outputs are its ``further["column"]``.

    Raises
    ------
    ValueError
        If a number or name is out of range, no leaf is trainable, or inputs and outputs of the model do not fit the
        dataset.

    Examples
    --------
    >>> import tempfile, anndata, pandas as pd
    >>> counts = np.random.default_rng(0).poisson(1.0, (40, 12)).astype("float32")
    >>> adata = anndata.AnnData(counts, obs=pd.DataFrame({"cell_type": list("AB") * 20}, map(str, range(40))))
    >>> dataset = GinsengDataset.create(tempfile.mkdtemp() + "/cells.zarr", adata, "cell_type", silent=True)
    >>> mlp = eqx.nn.MLP(in_size=12, out_size=2, width_size=8, depth=1, key=jax.random.key(0))
    >>> trainer = Trainer(mlp, dataset, Recipe(schedule="cosine"), Sampling(batch_size=16))
    >>> type(trainer.fit(epochs=2, silent=True)).__name__
    'MLP'
    """

    def __init__(
        self,
        model: eqx.Module,
        dataset: GinsengDataset,
        recipe: Recipe | None = None,
        sampling: Sampling | None = None,
        *,
        trainable: PyTree[bool | Callable] = eqx.is_inexact_array,
        patience: int | None = None,
        devices: int | Sequence[Any] | None = None,
        genes: Sequence[str] | GeneNames | None = None,
        labels: Sequence[str] | None = None,
        old: GinsengDataset | None = None,
        teacher: eqx.Module | None = None,
        further: Sequence[str] = (),
    ):
        if patience is not None:
            require_integer("patience", patience, 1)
        self.dataset = dataset
        self.recipe = Recipe() if recipe is None else recipe
        self.sampling = Sampling() if sampling is None else sampling
        require_kind("recipe", self.recipe, Recipe)
        require_kind("sampling", self.sampling, Sampling)
        self._compiled, self._patience, self._trainable = self.recipe.compiled(), patience, trainable
        self._devices = Devices(devices)
        self._feed = Feed(dataset, self._devices, self.sampling, genes=genes, labels=labels, old=old, further=further)
        self._teacher = None if teacher is None else eqx.nn.inference_mode(teacher)
        self._feed.loss_weights(self.recipe.class_weights)
        params, self._frozen = self._parted(model)
        self.run = new_run(params, self.recipe.optimizer, self.sampling.seed)

    @property
    def model(self) -> eqx.Module:
        """The module as trained so far."""
        return eqx.combine(self.run.state.shown, self._frozen)

    @model.setter
    def model(self, model: eqx.Module) -> None:
        params, self._frozen = self._parted(model)
        run = with_weights(self.run, params, self.recipe.optimizer)
        self.run = dataclasses.replace(run, logger=GinsengLogger(), scores=None)

    @property
    def is_lacking(self) -> np.ndarray:
        """Which inputs of the model the dataset lacks, so that they are 0 in training."""
        return self._feed.is_lacking

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return self._feed.n_steps

    @property
    def opt_state(self) -> PyTree:
        """State of the optimiser, over the trainable leaves."""
        return self.run.state.opt_state

    @property
    def logger(self) -> GinsengLogger:
        """Metrics of each epoch."""
        return self.run.logger

    @property
    def holdout_scores(self) -> Scores | None:
        """Scores of the held-out cells after the last epoch."""
        return self.run.scores

    def fit(
        self,
        epochs: int = 10,
        silent: bool = False,
        *,
        checkpoint: str | Path | None = None,
        log: str | Path | None = None,
        about: dict[str, Any] | None = None,
    ) -> eqx.Module:
        """Fit the model; called again, it goes on.

        Parameters
        ----------
        epochs : int
            Number of passes over the training cells.
        silent : bool
            Print no progress.
        checkpoint : str or Path, optional
            Directory in which the run is saved after each epoch, and each minute within. After a kill, the same call
            by a trainer of the same making goes on from there, and ends with the weights of a run that was not killed,
            bit by bit; on another number of processors they may round otherwise.
        log : str or Path, optional
            File to which the metrics of each epoch are appended as it ends: ``.csv`` or ``.jsonl``.
        about : dict, optional
            What else tells this run from others: a checkpoint with other values is refused by their names.

        Returns
        -------
        eqx.Module
            The trained module.

        Raises
        ------
        ValueError
            If `epochs` is negative or no integer, there is no cell to train on, `patience` was asked for and none is
            held out, `checkpoint` holds another run, `log` has another suffix, or a loss is not finite; the model is
            then as it was before the epoch.
        """
        require_integer("epochs", epochs, 0)
        require_flags(silent=silent)
        if not self._feed.n_train:
            raise ValueError("There is no cell to train on.")
        require_held_out(self._patience, self._feed.n_test)
        is_first = self._devices.share[0] == 0  # of the processes: the one that tells and writes
        silent = silent or not is_first
        log_file = LogFile(log) if log is not None and is_first else None
        steps_per_epoch = self._feed.n_steps
        rates = learning_rates(self.recipe.schedule, 1.0, self.recipe.warmup, epochs * steps_per_epoch)
        warn_of_rates(self.recipe, rates)
        self.run = called(self.run, epochs, self._feed.budget(), averages=self.recipe.ema is not None)
        kept = None if checkpoint is None else Checkpoint(checkpoint, {**self._description(rates), **(about or {})})
        if kept is not None and kept.exists:
            self.run = kept.load(self.run)
            if log_file is not None:
                log_file.goes_on = True
            if not silent:
                epoch, last = self.run.epoch, self.run.last
                where = "has ended" if epoch >= last else f"goes on in epoch {epoch + 1} of {last}"
                print(f"{checkpoint}: the run {where}", flush=True)
        while (before := self.run).epoch < before.last:
            started = time.perf_counter()
            first = (before.epoch - before.first) * steps_per_epoch
            train_loss = self._run_epoch(rates[first : first + steps_per_epoch], kept, silent)
            holdout_loss, scores = self._validate()
            if scores is not None and not math.isfinite(holdout_loss):
                self.run = with_weights(before, before.state.shown, self.recipe.optimizer)
                raise not_finite("holdout", holdout_loss, f"epoch {before.epoch + 1}")
            self.run = ended_epoch(self.run, train_loss, holdout_loss, scores, self._patience)
            self.run.logger.report(silent=silent)
            if log_file is not None:
                log_file.append(self.run.logger, time.perf_counter() - started)
            if kept is not None and is_first:
                kept.save(self.run)
        self._take_the_best(silent)
        return self.model

    def _run_epoch(self, rates: np.ndarray, kept: Checkpoint | None = None, silent: bool = True) -> float:
        """Train on every training cell once, or on those that are left of an epoch; return the mean loss per cell."""
        before, fixed, rng = self.run, self._fixed(), np.random.default_rng()
        rng.bit_generator.state = before.rng
        state, totals = self._moving(before.state), list(before.totals)
        nonnegative, n_done, n_cells = _normalizes(self.model), len(totals), self._feed.n_train
        memory = before.memory or self._feed.budget()
        slabs = self._feed.train(rng, rates, memory, n_skipped=n_done, nonnegative=nonnegative)
        bar = tqdm(
            desc=f"Epoch {before.epoch + 1}/{before.last}",
            total=n_cells,
            initial=n_done * self._feed.n_cells_per_slab,
            unit="cells",
            unit_scale=True,
            leave=False,
            disable=silent,
        )
        try:
            for slab, n in slabs:
                state, sums = self._train_step((fixed, slab), state)
                losses = np.asarray(sums, np.float64)
                totals.append(float(losses.sum()))
                if not math.isfinite(totals[-1]):
                    first = (len(totals) - 1) * len(losses)
                    raise diverged(slab, losses, before.epoch, first, len(rates))
                bar.set_postfix(loss=f"{totals[-1] / n:.4f}", refresh=False)
                bar.update(n)
                if kept is not None and kept.is_due and self._devices.share[0] == 0:
                    kept.save(dataclasses.replace(before, state=self._devices.local(state), totals=tuple(totals)))
        finally:  # whole, interrupted, or failed
            bar.close()
            slabs.close()
            if is_consumed(state) or not math.isfinite(sum(totals)):
                self.run = with_weights(before, before.state.shown, self.recipe.optimizer)
            else:
                after = {"state": self._devices.local(state), "rng": dict(rng.bit_generator.state)}
                self.run = dataclasses.replace(before, **after, totals=())
        return math.fsum(totals) / n_cells

    def _train_step(self, given: tuple[Fixed, Slab], state: State) -> tuple[State, Array]:
        """Update parameters and optimiser state on the batches of a slab; return them with the sum of the losses."""
        return train_steps(given, state, self._compiled, self._devices.replicated)

    def _validate(self) -> tuple[float, Scores | None]:
        """Mean loss and scores of the held-out cells, without dropout; NaN and None if there are none."""
        if not (n_cells := self._feed.n_test):
            return math.nan, None
        names = [pd.Index(of_output) for of_output in (self._feed.labels, *self._feed.further.values())]
        sizes = tuple(map(len, names))
        model = self._devices.replicate(eqx.nn.inference_mode(self.model))
        slabs = self._in_order("test", model)
        losses, confusions = zip(*jax.device_get([evaluate(model, slab, sizes) for slab, _ in slabs]), strict=True)
        summed = [np.sum(of_output, axis=0) for of_output in zip(*confusions, strict=True)]
        first, *further = (scores_of(pd.DataFrame(*each)) for each in zip(summed, names, names, strict=True))
        further = dict(zip(self._feed.further, further, strict=True))
        return float(np.sum(losses) / n_cells), dataclasses.replace(first, further=further)

    def answers(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits, without dropout, and labels of the cells of a part ("train" or "test"), in order of the dataset.

        Of a model with several outputs, those of the first.
        Under `jax.distributed` they are those of all processes.
        """
        model = self._devices.replicate(eqx.nn.inference_mode(self.model))
        logits, labels = [np.empty((0, len(self._feed.labels)), np.float32)], [np.empty(0, np.int32)]
        for slab, _ in self._in_order(part, model):
            found, y, mask = map(np.asarray, answers(model, slab, self._devices.replicated))
            logits.append(found[mask])
            labels.append(y[mask])
        return np.concatenate(logits), np.concatenate(labels)

    def _in_order(self, part: str, model: PyTree) -> Generator[tuple[Slab, int]]:
        return self._feed.in_order(part, self.run.memory or self._feed.budget(), nonnegative=_normalizes(model))

    def _take_the_best(self, silent: bool) -> None:
        """Go back to the best epoch of a call that has ended, if it was not the last; the optimiser begins anew."""
        run, best = self.run, self.run.best
        if best is not None and best.epoch < run.logger.epoch[-1]:
            run = dataclasses.replace(with_weights(run, best.params, self.recipe.optimizer), scores=best.scores)
            if not silent:
                print(f"the holdout loss was lowest in epoch {best.epoch + 1}: back to its weights", flush=True)
        self.run = dataclasses.replace(run, best=None)

    def _parted(self, model: eqx.Module) -> tuple[PyTree, PyTree]:
        """Split a module that fits the dataset into its trainable floating-point arrays and the rest."""
        require_shapes(model, self._feed.n_genes, self._feed.n_outputs)
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        params, frozen = eqx.partition(arrays, self._trainable)
        if not jax.tree.leaves(params):
            raise ValueError("`trainable` selects no floating-point array of the model.")
        return params, eqx.combine(frozen, rest)

    def _moving(self, state: State) -> State:
        """Put a state on all devices, for steps that consume it; its weights are copied, as the way back."""
        step, params, average = copied((state.step, state.params, state.average))
        return self._devices.replicate(State(step, params, state.opt_state, average))

    def _fixed(self) -> Fixed:
        """What the steps read and do not change."""
        weights = self._feed.loss_weights(self.recipe.class_weights)
        frozen, teacher = self._devices.replicate((self._frozen, self._teacher))
        return Fixed(frozen, weights, np.uint32(self.sampling.seed), teacher)

    def _description(self, rates: np.ndarray) -> dict[str, Any]:
        """What tells one run from another: the cells, the steps as they are traced, and what is random."""
        run, given = self.run, (self._fixed(), self._feed.slab_like())
        state = self._devices.replicate(run.state)
        return {
            "epochs": [run.first, run.last],
            "patience": self._patience,
            "seed": self.sampling.seed,
            "precision": self.recipe.precision,
            "devices": self._devices.n_devices,
            "learning rates": digest(rates),
            **self._feed.description(),
            "initial weights": digest(*jax.tree.leaves(eqx.filter((self.model, self._teacher), eqx.is_array))),
            TRACED: traced(given, state, self._compiled, self._devices.replicated),
        }


def require_held_out(patience: int | None, n_test: int) -> None:
    """Raise a ValueError if the holdout loss is to be watched and no cell is held out."""
    if patience is not None and not n_test:
        raise ValueError("`patience` needs held-out cells, and there are none: split off a larger fraction.")


def _normalizes(model: PyTree) -> bool:
    """Whether a model takes the logarithm of counts, which must then not be negative."""
    network = model.stacked if isinstance(model, Ensemble) else model
    return isinstance(network, AttentionClassifier) and network.normalize
