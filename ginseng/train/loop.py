"""A training loop over any Equinox module that maps a cell to logits."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from ginseng.data.dataset import GinsengDataset
from ginseng.data.sampling import balance_of
from ginseng.metrics import Scores, scores_of
from ginseng.train.logger import GinsengLogger
from ginseng.train.opt import adam_l2
from ginseng.utils.memory import bytes_of

Augmentation = Callable[[PRNGKeyArray, Array], Array]


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
        If `batch_size` or `patience` is below 1, no leaf is trainable, or inputs and outputs of the model do not fit
        the dataset.

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
    ):
        for name, number in (("batch_size", batch_size), ("patience", patience)):
            if number is not None and number < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {number}.")
        if patience is not None and not _n_cells(dataset.test_idx):
            raise ValueError("`patience` needs held-out cells: make a split of the dataset with a fraction above 0.")
        self.model = model
        self.dataset = dataset
        self.batch_size = batch_size
        self.balance_train = balance_train
        self._balance_alpha = balance_alpha
        self._memory = memory if memory is None else bytes_of(memory)
        self.logger = GinsengLogger()
        self.holdout_scores: Scores | None = None
        self._patience = patience
        self.rng = np.random.default_rng(seed)
        self.key = jr.key(seed)
        self._optimizer = adam_l2() if optimizer is None else optimizer
        self._augment = augment
        self._trainable = trainable
        self._takes_key = "key" in inspect.signature(type(model).__call__).parameters
        self._check_shapes()
        params, _ = self._partition(model)
        if not jax.tree.leaves(params):
            raise ValueError("`trainable` selects no floating-point array of the model.")
        self.opt_state = self._fresh_opt_state()

    @property
    def _shape(self) -> tuple[int, int]:
        """Numbers of inputs and outputs that the model must have."""
        return self.dataset.n_genes, len(self.dataset.label_names)

    def _check_shapes(self) -> None:
        """Refuse a model that does not fit the dataset: a label beyond its outputs would have a loss of NaN."""
        n_genes, n_labels = self._shape
        cell = jax.ShapeDtypeStruct((1, n_genes), jnp.float32)
        try:
            logits = eqx.filter_eval_shape(_logits, eqx.nn.inference_mode(self.model), cell, None, self._takes_key)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The model does not take a cell of the dataset, with {n_genes} genes: {error}") from error
        if logits.shape != (1, n_labels):
            raise ValueError(
                f"The model must map a cell to logits of shape {(n_labels,)}, one for each label of the dataset, but "
                f"its output has shape {logits.shape[1:]}."
            )

    def fit(self, epochs: int = 10, silent: bool = False) -> eqx.Module:
        """Fit the model; called again, it goes on.

        Parameters
        ----------
        epochs : int
            Number of passes over the training cells.
        silent : bool
            Print no progress.

        Returns
        -------
        eqx.Module
            The trained module.
        """
        self._fit(epochs, silent)
        return self.model

    def _fit(self, epochs: int, silent: bool) -> None:
        if epochs < 0:
            raise ValueError(f"`epochs` must not be negative, but got {epochs}.")
        done = len(self.logger.epoch)
        lowest, best_epoch, best = math.inf, done, None
        for epoch in range(done, done + epochs):
            train_loss = self._run_epoch(epoch, done + epochs, silent)
            self.logger.update(epoch, train_loss, *self._validate())
            self.logger.report(silent=silent)
            if self._patience is None:
                continue
            if self.logger.holdout_loss[-1] < lowest:
                lowest, best_epoch = self.logger.holdout_loss[-1], epoch
                best = self.model, self.holdout_scores
            elif epoch - best_epoch >= self._patience:
                break
        if best is not None and best[0] is not self.model:
            self._go_back(*best)
            if not silent:
                print(f"the holdout loss was lowest in epoch {best_epoch + 1}: back to its weights", flush=True)

    def _go_back(self, model: eqx.Module, scores: Scores | None) -> None:
        """Take the weights of an earlier epoch, and their scores; the optimiser begins anew."""
        self.model, self.holdout_scores = model, scores
        self.opt_state = self._fresh_opt_state()

    def _partition(self, model: eqx.Module) -> tuple[PyTree, PyTree]:
        """Split a module into its trainable floating-point arrays and the rest."""
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        params, frozen = eqx.partition(arrays, self._trainable)
        return params, eqx.combine(frozen, rest)

    def _fresh_opt_state(self) -> PyTree:
        """State of the optimiser before its first step; copied, since some optimisers keep the weights in it."""
        params, _ = self._partition(self.model)
        return jax.tree.map(jnp.copy, self._optimizer.init(params))

    def _stream(self, split: str, *, training: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of counts and of the model's class indices."""
        return self.dataset.stream(
            self.batch_size,
            split,  # pyright: ignore[reportArgumentType]
            balance_of(self.balance_train) if training else "none",
            shuffle=training,
            rng=self.rng,
            memory=self._memory,
            alpha=self._balance_alpha,
        )

    def _padded(self, split: str, *, training: bool) -> Iterator[tuple[tuple[Array, Array, Array], int]]:
        """Batches of one shape, so that one step is compiled: the last is padded; a mask and a number tell."""
        for x, y in self._stream(split, training=training):
            n_cells = len(y)
            if n_padding := self.batch_size - n_cells:
                x, y = np.pad(x, ((0, n_padding), (0, 0))), np.pad(y, (0, n_padding))
            yield (jnp.asarray(x), jnp.asarray(y), jnp.asarray(np.arange(self.batch_size) < n_cells)), n_cells

    @property
    def _train_split(self) -> str:
        return "all" if self.dataset.train_idx is None else "train"

    @property
    def _n_train(self) -> int:
        return self.dataset.n_cells if self.dataset.train_idx is None else len(self.dataset.train_idx)

    def _run_epoch(self, epoch: int, epochs: int, silent: bool) -> float:
        """Train on every training cell once; return the mean loss per cell."""
        params, frozen = self._partition(self.model)
        # Each step consumes the state it is given. The weights are copied first, for modules handed out before.
        state = jax.tree.map(jnp.copy, params), self.opt_state
        losses, n_cells = [], []
        self.key, epoch_key = jr.split(self.key)
        bar = tqdm(
            desc=f"Epoch {epoch + 1}/{epochs}",
            total=None if balance_of(self.balance_train) == "downsample" else self._n_train,
            unit="cells",
            unit_scale=True,
            leave=False,
            disable=silent,
        )
        try:
            for step, (batch, n) in enumerate(self._padded(self._train_split, training=True)):
                state, loss = self._train_step((frozen, jr.fold_in(epoch_key, step), *batch), state)
                losses.append(loss)
                n_cells.append(n)
                bar.update(n)
        finally:
            bar.close()
            self._keep(state, frozen)
        if not losses:
            raise ValueError("There is no cell to train on.")
        loss = float(np.average(np.asarray(jnp.stack(losses)), weights=n_cells))
        if not np.isfinite(loss):
            raise ValueError(
                f"The training loss is {loss} in epoch {epoch + 1}: the learning rate may be too large, or the counts "
                "may hold values that the model cannot take."
            )
        return loss

    def _keep(self, state: tuple[PyTree, PyTree], frozen: PyTree) -> None:
        """Take over the state of an epoch, whole or interrupted."""
        params, opt_state = state
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array))):
            # Interrupted inside a step, which had consumed the state: back to the weights of the epoch's beginning.
            opt_state = self._fresh_opt_state()
        else:
            self.model = eqx.combine(params, frozen)
        self.opt_state = opt_state

    def _train_step(self, batch: tuple, state: tuple[PyTree, PyTree]) -> tuple[tuple[PyTree, PyTree], Array]:
        """Update parameters and optimiser state on one batch; return them with the loss before the update."""
        return _step(batch, state, self._optimizer, self._augment, self._takes_key)

    @property
    def _output_names(self) -> list[str]:
        return self.dataset.label_names

    def _validate(self) -> tuple[float, float, float]:
        """Mean loss, accuracy and macro-F1 over the held-out cells, without dropout; NaN if there are none."""
        if not (n_cells := _n_cells(self.dataset.test_idx)):
            return math.nan, math.nan, math.nan
        model = eqx.nn.inference_mode(self.model)
        sums = [_evaluate(model, *batch, self._takes_key) for batch, _ in self._padded("test", training=False)]
        losses, confusions = zip(*jax.device_get(sums), strict=True)
        names = pd.Index(self._output_names)
        self.holdout_scores = scores_of(pd.DataFrame(np.sum(confusions, axis=0), names, names))
        return float(np.sum(losses) / n_cells), self.holdout_scores.accuracy, self.holdout_scores.macro_f1


def _n_cells(cells: np.ndarray | None) -> int:
    return 0 if cells is None else len(cells)


def _logits(
    model: Any, x: Num[Array, "batch genes"], key: PRNGKeyArray | None, takes_key: bool
) -> Float[Array, "batch classes"]:
    if not takes_key:
        return jax.vmap(model)(x)
    keys = None if key is None else jr.split(key, x.shape[0])
    return jax.vmap(lambda cell, cell_key: model(cell, key=cell_key))(x, keys)


@eqx.filter_jit(donate="all-except-first")
def _step(
    batch: tuple[PyTree, PRNGKeyArray, Num[Array, "batch genes"], Int[Array, " batch"], Bool[Array, " batch"]],
    state: tuple[PyTree, PyTree],
    optimizer: optax.GradientTransformation,
    augmentation: Augmentation | None,
    takes_key: bool,
) -> tuple[tuple[PyTree, PyTree], Float[Array, ""]]:
    frozen, key, x, y, mask = batch
    params, opt_state = state
    augment_key, dropout_key = jr.split(key)
    x = x if augmentation is None else augmentation(augment_key, x)

    def mean_loss(params):
        logits = _logits(eqx.combine(params, frozen), x, dropout_key, takes_key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.sum(losses * mask) / jnp.sum(mask)

    loss, grads = eqx.filter_value_and_grad(mean_loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (eqx.apply_updates(params, updates), opt_state), loss


@eqx.filter_jit
def _evaluate(
    model: PyTree, x: Num[Array, "batch genes"], y: Int[Array, " batch"], mask: Bool[Array, " batch"], takes_key: bool
) -> tuple[Float[Array, ""], Int[Array, "classes classes"]]:
    """Sum of the losses, and number of cells of each class by predicted class, over the cells of the mask."""
    logits = _logits(model, x, None, takes_key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    confusion = jnp.zeros((logits.shape[1],) * 2, dtype=jnp.int32)
    return jnp.sum(losses * mask), confusion.at[y, jnp.argmax(logits, axis=-1)].add(mask.astype(jnp.int32))
