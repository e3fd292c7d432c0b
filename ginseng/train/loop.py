"""A training loop over any Equinox module that maps a cell to logits."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from ginseng.data.dataset import GinsengDataset
from ginseng.metrics import Scores, scores_of
from ginseng.train.checkpoint import Checkpoint, Progress, Saved
from ginseng.train.devices import Devices
from ginseng.train.feed import ClassWeights, Feed
from ginseng.train.logger import GinsengLogger, LogFile
from ginseng.train.opt import adam_l2
from ginseng.train.schedule import Schedule, learning_rates, require_schedule
from ginseng.train.step import (
    Augmentation,
    Fixed,
    Recipe,
    Slab,
    State,
    evaluate,
    require_shapes,
    takes_key_of,
    traced,
    train_steps,
)
from ginseng.utils.digest import digest

_OPTIMIZER = adam_l2()  # one object, so that trainers share their compiled steps


class Trainer:
    """Fit any Equinox module that maps the counts of one cell to logits.

    Parameters
    ----------
    model : eqx.Module
        Called as ``model(x)`` with ``x`` the counts of one cell, or as ``model(x, key=key)`` where its ``__call__``
        takes a ``key``, as Equinox layers do. It is never modified.
    dataset : GinsengDataset
        Training data. Its split is used; without one, all cells are for training.
    optimizer : optax.GradientTransformation, optional
        By default `adam_l2` with its defaults.
    trainable : PyTree of bool or callable, optional
        Filter spec, as for `equinox.partition`: which leaves to train. The others get no gradient and no optimiser
        state. By default all floating-point arrays.
    augment : callable, optional
        ``augment(key, x)`` on the counts of a batch, ``(cells, genes)``, inside the compiled step.
    batch_size : int
        Cells per step.
    balance_train : bool or {"none", "downsample", "resample"}
        How to balance the labels in each epoch, see `GinsengDataset.stream`.
    balance_alpha : float
        How much "resample" balances, from 0 to 1.
    memory : int or str, optional
        Bytes that counts may take, such as ``"2 GB"``, see `GinsengDataset.stream`.
    patience : int, optional
        Stop once the holdout loss has not fallen for so many epochs, and go back to the weights that had the lowest.
    seed : int
        Seed of everything random.
    schedule : {"constant", "cosine"} or optax.Schedule
        What the updates of `optimizer` are multiplied by, over the steps of one call of `fit`; see `learning_rates`.
    warmup : float
        Share of the steps over which a named schedule rises.
    precision : {"float32", "bfloat16"}
        "bfloat16" rounds the factors of matrix products and sums in float32; weights and all else stay float32.
        Faster where the hardware has such products.
    label_smoothing : float
        Share of each cell's label, in [0, 1), that is spread over all labels.
    class_weights : "balanced" or dict, optional
        Factors of the losses of cells by their label; 1 for labels that are not named. "balanced" makes every label
        count the same, with a mean of 1 over the cells of an epoch.
    ema : float, optional
        Decay, in [0, 1), of a moving average of the weights, such as 0.99: what `model` holds after each epoch, is
        validated, and the next call of `fit` begins from.
    devices : int or sequence of jax.Device, optional
        Devices that share each batch: so many, or these; by default all that JAX sees, of all processes if
        `jax.distributed` has been initialised.
    genes, labels : sequence of str, optional
        Names of the model's inputs and outputs where they are not those of the dataset: genes are matched by name, and
        those that the dataset lacks count as zero.

    Attributes
    ----------
    model : eqx.Module
        The module as trained so far.
    opt_state : PyTree
        State of the optimiser, over the trainable leaves.
    logger : GinsengLogger
        Metrics of each epoch.
    holdout_scores : Scores or None
        Scores of each cell type and confusion on the held-out cells after the last epoch, if any are held out.

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
    >>> mlp = eqx.nn.MLP(in_size=12, out_size=2, width_size=8, depth=1, key=jr.key(0))
    >>> trained = Trainer(mlp, dataset, batch_size=16).fit(epochs=2, silent=True)
    >>> type(trained).__name__
    'MLP'
    """

    def __init__(
        self,
        model: eqx.Module,
        dataset: GinsengDataset,
        *,
        optimizer: optax.GradientTransformation | None = None,
        trainable: PyTree[bool | Callable] = eqx.is_inexact_array,
        augment: Augmentation | None = None,
        batch_size: int = 128,
        balance_train: bool | str = False,
        balance_alpha: float = 1.0,
        memory: int | str | None = None,
        patience: int | None = None,
        seed: int = 1,
        schedule: Schedule = "constant",
        warmup: float = 0.0,
        precision: str = "float32",
        label_smoothing: float = 0.0,
        class_weights: ClassWeights | None = None,
        ema: float | None = None,
        devices: int | Sequence[Any] | None = None,
        genes: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
    ):
        for name, number in (("batch_size", batch_size), ("patience", patience)):
            if number is not None and number < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {number}.")
        require_schedule(schedule, warmup)
        self.model = model
        self.dataset = dataset
        self._devices = Devices(devices)
        self._feed = Feed(
            dataset,
            self._devices,
            batch_size=batch_size,
            balance=balance_train,
            alpha=balance_alpha,
            memory=memory,
            genes=genes,
            labels=labels,
        )
        if patience is not None and not self._feed.n_test:
            raise ValueError("`patience` needs held-out cells, and there are none: split off a larger fraction.")
        self.logger = GinsengLogger()
        self.holdout_scores: Scores | None = None
        self._best: tuple[eqx.Module, Scores | None] = model, None
        self._patience = patience
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.key = jr.key(seed)
        self._schedule: Schedule = schedule
        self._warmup = warmup
        takes_key = takes_key_of(model)
        optimizer = _OPTIMIZER if optimizer is None else optimizer
        ema = None if ema is None else float(ema)
        self._recipe = Recipe(optimizer, augment, takes_key, precision, float(label_smoothing), ema)
        self._class_weights = self._feed.loss_weights(class_weights)
        self._trainable = trainable
        require_shapes(model, self._feed.n_genes, len(self._feed.labels))
        params, _ = self._partition(model)
        if not jax.tree.leaves(params):
            raise ValueError("`trainable` selects no floating-point array of the model.")
        self.opt_state = self._fresh_opt_state()
        self._n_steps = 0

    def fit(
        self,
        epochs: int = 10,
        silent: bool = False,
        *,
        checkpoint: str | Path | None = None,
        log: str | Path | None = None,
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
            bit by bit.
        log : str or Path, optional
            File to which the metrics of each epoch are appended as it ends: ``.csv`` or ``.jsonl``.

        Returns
        -------
        eqx.Module
            The trained module.

        Raises
        ------
        ValueError
            If `epochs` is negative, `checkpoint` holds another run, `log` has another suffix, or the loss is not
            finite; the model is then as it was before the epoch.
        """
        self._fit(epochs, silent, checkpoint, log)
        return self.model

    def _fit(self, epochs: int, silent: bool, checkpoint: str | Path | None, log: str | Path | None) -> None:
        if epochs < 0:
            raise ValueError(f"`epochs` must not be negative, but got {epochs}.")
        silent = silent or self._devices.share[0] > 0
        log_file = None if log is None or self._devices.share[0] > 0 else LogFile(log)
        done, steps_per_epoch = len(self.logger.epoch), self._feed.n_steps
        rates = learning_rates(self._schedule, 1.0, self._warmup, epochs * steps_per_epoch)
        run = Progress(done, done + epochs, done, self._feed.settle_memory(), dict(self.rng.bit_generator.state))
        self._begin()
        saved = None if checkpoint is None else Checkpoint(checkpoint, self._description(run, rates))
        if saved is not None and saved.exists:
            run = self._resume(saved)
            if log_file is not None:
                log_file.goes_on = True
            if not silent:
                where = "has ended" if run.epoch >= run.last else f"goes on in epoch {run.epoch + 1} of {run.last}"
                print(f"{checkpoint}: the run {where}", flush=True)
        while run.epoch < run.last:
            started = time.perf_counter()
            first = (run.epoch - run.first) * steps_per_epoch
            train_loss = self._run_epoch(run, rates[first : first + steps_per_epoch], saved, silent)
            self.logger.update(run.epoch, train_loss, *self._validate())
            self.logger.report(silent=silent)
            if log_file is not None:
                log_file.append(self.logger, time.perf_counter() - started)
            run.epoch = run.last if self._is_enough(run) else run.epoch + 1
            run.totals, run.rng = [], dict(self.rng.bit_generator.state)
            if saved is not None:
                self._save(saved, run)
        if run.first <= run.best_epoch < self.logger.epoch[-1]:
            self._go_back()
            if not silent:
                print(f"the holdout loss was lowest in epoch {run.best_epoch + 1}: back to its weights", flush=True)

    def _is_enough(self, run: Progress) -> bool:
        """Whether the holdout loss has not fallen for too long; the best weights are kept."""
        if self._patience is None:
            return False
        if self.logger.holdout_loss[-1] < run.lowest:
            run.lowest, run.best_epoch = self.logger.holdout_loss[-1], run.epoch
            self._best = self.model, self.holdout_scores
        return run.epoch - max(run.best_epoch, run.first - 1) >= self._patience

    def _start_again(self) -> None:
        """Go on from the weights that were handed out last; the optimiser begins anew."""
        self.opt_state = self._fresh_opt_state()
        self._begin()

    def _go_back(self) -> None:
        """Take the best weights, and their scores; the optimiser begins anew."""
        self.model, self.holdout_scores = self._best
        self.opt_state = self._fresh_opt_state()

    def _partition(self, model: eqx.Module) -> tuple[PyTree, PyTree]:
        """Split a module into its trainable floating-point arrays and the rest."""
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        params, frozen = eqx.partition(arrays, self._trainable)
        return params, eqx.combine(frozen, rest)

    def _fresh_opt_state(self) -> PyTree:
        """State of the optimiser before its first step; copied, since some optimisers keep the weights in it."""
        params, _ = self._partition(self.model)
        return jax.tree.map(jnp.copy, self._recipe.optimizer.init(params))

    def _begin(self) -> None:
        """Put the state of the next step on all devices; copied, since each call consumes the one it is given."""
        params, _ = self._partition(self.model)
        average = None if self._recipe.ema is None else params
        state = State(jnp.asarray(self._n_steps, jnp.int32), params, self.opt_state, average)
        self._state: State = self._devices.replicate(jax.tree.map(jnp.copy, state))
        self.opt_state = self._state.opt_state

    def _fixed(self) -> Fixed:
        """What the steps read and do not change."""
        _, frozen = self._partition(self.model)
        return Fixed(self._devices.replicate(frozen), self._class_weights, np.asarray(jr.key_data(self.key)))

    def _run_epoch(self, run: Progress, rates: np.ndarray, saved: Checkpoint | None, silent: bool) -> float:
        """Train on every training cell once; return the mean loss per cell."""
        if not (n_cells := self._feed.n_train):
            raise ValueError("There is no cell to train on.")
        fixed = self._fixed()
        slabs = self._feed.train(self.rng, rates, n_skipped=len(run.totals))
        bar = tqdm(
            desc=f"Epoch {run.epoch + 1}/{run.last}",
            total=n_cells,
            initial=len(run.totals) * self._feed.n_cells_per_slab,
            unit="cells",
            unit_scale=True,
            leave=False,
            disable=silent,
        )
        try:
            for slab, n in slabs:
                self._state, total = self._train_step((fixed, slab), self._state)
                run.totals.append(float(total))
                if not math.isfinite(run.totals[-1]):
                    self._start_again()
                    raise ValueError(
                        f"The training loss is {run.totals[-1]} in epoch {run.epoch + 1}: the learning rate may be too "
                        "large, or the counts may hold values that the model cannot take."
                    )
                bar.set_postfix(loss=f"{run.totals[-1] / n:.4f}", refresh=False)
                bar.update(n)
                if saved is not None and saved.is_due:
                    self._save(saved, run)
        finally:
            bar.close()
            slabs.close()
            self._keep()
        return math.fsum(run.totals) / n_cells

    def _train_step(self, given: tuple[Fixed, Slab], state: State) -> tuple[State, Array]:
        """Update parameters and optimiser state on the batches of a slab; return them with the sum of the losses."""
        return train_steps(given, state, self._recipe, self._devices.replicated)

    def _keep(self) -> None:
        """Hand out the weights of the state, whole or interrupted."""
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self._state)):
            self._start_again()  # interrupted inside a call, which had consumed the state
        state = self._devices.local(self._state)
        shown = state.params if state.average is None else state.average
        _, frozen = self._partition(self.model)
        self.model = eqx.combine(jax.tree.map(jnp.copy, shown), frozen)  # the state's own are consumed by the next call
        self.opt_state = state.opt_state
        self._n_steps = int(state.step)

    def _validate(self) -> tuple[float, float, float]:
        """Mean loss, accuracy and macro-F1 over the held-out cells, without dropout; NaN if there are none."""
        if not (n_cells := self._feed.n_test):
            return math.nan, math.nan, math.nan
        model, names = eqx.nn.inference_mode(self.model), pd.Index(self._feed.labels)
        model = self._devices.replicate(model)
        sums = [evaluate(model, slab, len(names), self._recipe.takes_key) for slab, _ in self._feed.test()]
        losses, confusions = zip(*jax.device_get(sums), strict=True)
        self.holdout_scores = scores_of(pd.DataFrame(np.sum(confusions, axis=0), names, names))
        return float(np.sum(losses) / n_cells), self.holdout_scores.accuracy, self.holdout_scores.macro_f1

    def _description(self, run: Progress, rates: np.ndarray) -> dict[str, Any]:
        """What tells one run from another: the cells, the steps as they are traced, and what is random."""
        given = self._fixed(), self._feed.slab_like()
        return {
            "epochs": [run.first, run.last],
            "patience": self._patience,
            "seed": self.seed,
            "precision": self._recipe.precision,
            "learning rates": digest(rates),
            **self._feed.description(),
            "initial weights": digest(*jax.tree.leaves(eqx.filter(self.model, eqx.is_array))),
            "model, optimizer and loss": traced(given, self._state, self._recipe, self._devices.replicated),
        }

    def _save(self, saved: Checkpoint, run: Progress) -> None:
        if self._devices.share[0] > 0:
            return
        best, best_scores = self._best
        weights = self._partition(best)[0] if run.best_epoch >= run.first else None
        state = self._devices.local(self._state)
        saved.save(Saved(run, self.logger, state, self.holdout_scores, weights, best_scores))

    def _resume(self, saved: Checkpoint) -> Progress:
        """Take over everything from where a run was saved."""
        params, frozen = self._partition(self.model)
        found = saved.load(self._devices.local(self._state), params)
        self.logger, self.holdout_scores = found.logger, found.scores
        self.rng.bit_generator.state, self._feed.memory = found.progress.rng, found.progress.memory
        self._state = self._devices.replicate(found.state)
        self._keep()
        if found.best is not None:
            self._best = eqx.combine(found.best, frozen), found.best_scores
        return found.progress
