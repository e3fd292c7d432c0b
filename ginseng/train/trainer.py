"""Training: a filtered-JIT step over any Equinox module that maps a cell to logits."""

import dataclasses
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree
from scipy import sparse
from tqdm.auto import tqdm

from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import load_model
from ginseng.model.attention import AttentionClassifier, model_from_params, require_memory
from ginseng.model.instance import GinsengClassifier
from ginseng.model.nn import nn_init_linear
from ginseng.model.state import GinsengClassifierState, classifier_from_state
from ginseng.train.augment import augment
from ginseng.train.logger import GinsengLogger
from ginseng.train.opt import adam_l2
from ginseng.utils.genes import gene_selector, match_genes
from ginseng.utils.messages import shorten

Augmentation = Callable[[PRNGKeyArray, Array], Array]

_logger = logging.getLogger(__name__)


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
    balance_train : bool
        Downsample every label to the rarest in each epoch.
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

    Raises
    ------
    ValueError
        If `batch_size` is below 1 or no leaf is trainable.

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
        balance_train: bool = False,
        seed: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
        self.model = model
        self.dataset = dataset
        self.batch_size = batch_size
        self.balance_train = balance_train
        self.logger = GinsengLogger()
        self.rng = np.random.default_rng(seed)
        self.key = jr.key(seed)
        self._optimizer = adam_l2() if optimizer is None else optimizer
        self._augment = augment
        self._trainable = trainable
        self._takes_key = "key" in inspect.signature(type(model).__call__).parameters
        params, _ = self._partition(model)
        if not jax.tree.leaves(params):
            raise ValueError("`trainable` selects no floating-point array of the model.")
        self.opt_state = self._optimizer.init(params)

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
        for epoch in range(done, done + epochs):
            train_loss = self._run_epoch(epoch, done + epochs, silent)
            self.logger.update(epoch, train_loss, *self._validate())
            self.logger.report(silent=silent)

    def _partition(self, model: eqx.Module) -> tuple[PyTree, PyTree]:
        """Split a module into its trainable floating-point arrays and the rest."""
        arrays, rest = eqx.partition(model, eqx.is_inexact_array)
        params, frozen = eqx.partition(arrays, self._trainable)
        return params, eqx.combine(frozen, rest)

    def _stream(self, split: str, *, training: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of counts and of the model's class indices."""
        return self.dataset.stream(
            self.batch_size,
            split,  # pyright: ignore[reportArgumentType]
            balance_labels=training and self.balance_train,
            shuffle=training,
            rng=self.rng,
        )

    def _padded(self, split: str, *, training: bool) -> Iterator[tuple[tuple[Array, Array, Array], int]]:
        """Batches of one shape, so that one step is compiled: the last is padded; a mask and a number tell."""
        for x, y in self._stream(split, training=training):
            n_cells = len(y)
            if n_padding := self.batch_size - n_cells:
                x, y = np.pad(x, ((0, n_padding), (0, 0))), np.pad(y, (0, n_padding))
            yield (jnp.asarray(x), jnp.asarray(y), jnp.arange(self.batch_size) < n_cells), n_cells

    @property
    def _train_split(self) -> str:
        return "all" if self.dataset.train_idx is None else "train"

    def _run_epoch(self, epoch: int, epochs: int, silent: bool) -> float:
        """Train on every training cell once; return the mean loss per cell."""
        # The step gives the memory of its state back to the next step: the state it starts from is a copy, so that
        # modules that were handed out before stay alive.
        params, frozen = self._partition(self.model)
        state = jax.tree.map(jnp.copy, (params, self.opt_state))
        losses, n_cells = [], []
        self.key, epoch_key = jr.split(self.key)
        with tqdm(desc=f"Epoch {epoch + 1}/{epochs}", unit="cells", unit_scale=True, disable=silent) as bar:
            for step, (batch, n) in enumerate(self._padded(self._train_split, training=True)):
                state, loss = self._train_step((frozen, jr.fold_in(epoch_key, step), *batch), state)
                losses.append(loss)
                n_cells.append(n)
                bar.update(n)
        if not losses:
            raise ValueError("There is no cell to train on.")
        params, self.opt_state = state
        self.model = eqx.combine(params, frozen)
        return float(np.average(np.asarray(jnp.stack(losses)), weights=n_cells))

    def _train_step(self, batch: tuple, state: tuple[PyTree, PyTree]) -> tuple[tuple[PyTree, PyTree], Array]:
        """Update parameters and optimiser state on one batch; return them with the loss before the update."""
        return _step(batch, state, self._optimizer, self._augment, self._takes_key)

    def _validate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the held-out cells, without dropout; NaN if there are none."""
        if self.dataset.test_idx is None or len(self.dataset.test_idx) == 0:
            return float("nan"), float("nan")
        model = eqx.nn.inference_mode(self.model)
        sums = [_evaluate(model, *batch, self._takes_key) for batch, _ in self._padded("test", training=False)]
        loss, n_correct = np.sum(np.asarray(jax.device_get(sums)), axis=0)
        return float(loss / len(self.dataset.test_idx)), float(n_correct / len(self.dataset.test_idx))


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
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sum of the losses and number of correct predictions over the cells of the mask."""
    logits = _logits(model, x, None, takes_key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.sum(losses * mask), jnp.sum((jnp.argmax(logits, axis=-1) == y) & mask)


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
        Apply the regularisation to the update, as ginseng 0.2.1 does; False adds it to the gradient, which is the
        textbook form. See `adam_l2`.
    normalize : bool
        Normalise counts in the network.
    target_sum : float
        Counts per cell after normalisation.
    holdout_fraction : float
        Share of the cells (or groups) held out, in [0, 1); used if the dataset has not been split before.
    balance_train : bool
        Downsample every label to the rarest in each epoch.
    group_level : bool
        Hold out whole groups instead of cells.
    group_mode : str
        How groups are held out; "fraction" is the only way.
    seed : int
        Seed of initial weights, split, order and dropout.

    Examples
    --------
    >>> GinsengClassifierTrainerSettings(batch_size=256).lr
    0.001
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
    balance_train: bool = True
    group_level: bool = False
    group_mode: str = "fraction"
    seed: int = 1
    decoupled: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        if self.group_mode != "fraction":
            raise ValueError(f"`group_mode` must be 'fraction', but got '{self.group_mode}'.")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise ValueError(f"`holdout_fraction` must lie in [0, 1), but got {self.holdout_fraction}.")

    def augmentation(self) -> Augmentation | None:
        """Build the augmentation of a batch, or None if all parts are off."""
        parts = (self.rate, self.lam_max, self.lower, self.upper)
        if parts == (None,) * 4:
            return None
        return lambda key, x: augment(key, x, *parts)


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

    Attributes
    ----------
    classifier : GinsengClassifier
        The classifier as trained so far.
    genes, label_names : list of str
        Names of its inputs and outputs.
    logger : GinsengLogger
        Metrics of each epoch.

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
    ):
        dataset = dataset if isinstance(dataset, GinsengDataset) else GinsengDataset(dataset)
        settings = GinsengClassifierTrainerSettings() if settings is None else dataclasses.replace(settings)
        state = load_model(start) if isinstance(start, str | Path) else start
        if dataset.train_idx is None:
            dataset.make_split(settings.holdout_fraction, settings.group_level, settings.seed)
        else:
            _logger.info("Using the split that %s has; make_split makes another.", dataset.path)

        self.settings = settings
        self.genes = list(map(str, dataset.gene_names if state is None else state.genes))
        self.label_names = list(map(str, dataset.label_names if state is None else state.output_labels))
        self.label_names += [label for label in dataset.label_names if label not in self.label_names]
        self._start_metadata = {} if state is None else {"start": state.metadata}
        self._codes = np.array([self.label_names.index(label) for label in dataset.label_names], dtype=np.int32)
        self._selector = _selector(dataset.gene_names, self.genes)
        require_memory(len(self.genes), n_copies=4)
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
            optimizer=adam_l2(
                settings.lr, settings.betas, settings.eps, settings.weight_decay, decoupled=settings.decoupled
            ),
            trainable=trainable,
            augment=settings.augmentation(),
            batch_size=settings.batch_size,
            balance_train=settings.balance_train,
            seed=settings.seed,
        )

    def fit(  # pyright: ignore[reportIncompatibleMethodOverride]: documented to return the stateful face of the module
        self, epochs: int = 10, silent: bool = False
    ) -> GinsengClassifier:
        """Fit the classifier; called again, it goes on.

        Parameters
        ----------
        epochs : int
            Number of passes over the training cells.
        silent : bool
            Print no progress.

        Returns
        -------
        GinsengClassifier
            The trained classifier.
        """
        self._fit(epochs, silent)
        self.classifier.module = cast(AttentionClassifier, self.model)
        return self.classifier

    def metadata(self) -> dict[str, Any]:
        """Settings and history of the training, for the model file."""
        described = {"settings": dataclasses.asdict(self.settings), "history": dataclasses.asdict(self.logger)}
        return {**described, **self._start_metadata}

    def _stream(self, split: str, *, training: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for x, y in super()._stream(split, training=training):
            if self.classifier.normalize and x.min() < 0:
                raise ValueError(
                    f"{self.dataset.path} holds negative values, which cannot be normalised as counts: make it from "
                    "raw counts, or train with normalize=False."
                )
            yield (x if self._selector is None else x @ self._selector), self._codes[y]


def _selector(dataset_genes: list[str], genes: list[str]) -> sparse.csr_matrix | None:
    """Matrix that takes counts over a dataset's genes to counts over the model's; None if they are the same."""
    if dataset_genes == genes:
        return None
    positions = match_genes(np.asarray(dataset_genes), np.asarray(genes))
    n_found = len(np.unique(positions[positions >= 0]))
    if n_found == 0:
        raise ValueError(
            f"No gene in common: the classifier knows {shorten(genes, 3)}; the dataset has {shorten(dataset_genes, 3)}."
        )
    if n_found < len(genes):
        warnings.warn(
            f"{len(genes) - n_found:,} of the {len(genes):,} genes of the classifier are not in the dataset and count "
            "as zero.",
            stacklevel=3,
        )
    return gene_selector(positions, len(genes))


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
