"""Everything that a trained classifier consists of, checked."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np

from ginseng.model.attention import PARTS, AttentionClassifier, Params, model_from_params, params_of
from ginseng.model.background import Background, require_background
from ginseng.model.calibration import Calibration
from ginseng.model.ensemble import Ensemble, joined, members_of
from ginseng.model.instance import GinsengClassifier
from ginseng.utils.digest import digest
from ginseng.utils.messages import warn
from ginseng.utils.names import require_second_names
from ginseng.utils.values import require_flags, texts

WEIGHTS = "weights"  # in the metadata: the digest of those that they are of, which no file needs


@dataclass
class GinsengClassifierState:
    """A trained model with all that is needed to save, load and use it.

    Attributes
    ----------
    params : dict
        Weights and biases in the documented tree.
    genes : numpy.ndarray
        Gene names in the order of the model's input; unique.
    label_keys : numpy.ndarray
        Names of the cell types.
    label_values : numpy.ndarray
        For each name in `label_keys`, the index of the model's output that stands for it.
    n_genes, n_classes, hidden_dim : int
        Sizes of the network.
    normalize : bool
        Whether counts are normalised by the network.
    target_sum : float, optional
        Counts per cell after normalisation; None stands for 1e4.
    dropout_rate : float
        Dropout rate during training.
    training : bool
        False once training is over.
    members : list of dict
        Weights of further networks, in the same tree: probabilities are the mean over all.
    background : Background, optional
        Means over training cells, which stand in for genes that new data lack.
    calibration : Calibration, optional
        What the answers of the networks are worth.
    second_names : numpy.ndarray, optional
        Other names of the genes, unique, "" where there is none: see `ginseng.utils.names.second_names`.
    metadata : dict
        What else the file tells: ``settings`` and ``history`` of the training, and, after loading, ``versions`` and
        ``created``. Nothing depends on it. Of ``weights``, a short name, all of it and the calibration are: where
        others are put in their place, these are dropped with a warning when the state is used or saved.

    Raises
    ------
    ValueError
        If the parts do not fit together.
    """

    params: Params
    genes: np.ndarray | list[str]
    label_keys: np.ndarray | list[str]
    label_values: np.ndarray | list[int]
    n_genes: int
    n_classes: int
    hidden_dim: int
    normalize: bool
    target_sum: float | None
    dropout_rate: float
    training: bool = False
    members: list[Params] = field(default_factory=list, repr=False)
    background: Background | None = field(default=None, repr=False)
    calibration: Calibration | None = field(default=None, repr=False)
    second_names: np.ndarray | list[str] | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self.genes = texts(self.genes, "gene")
        self.label_keys = texts(self.label_keys, "label")
        self.label_values = np.asarray(self.label_values)
        require_flags(training=self.training)
        model = eqx.filter_eval_shape(self._module_of, self.params)  # shapes are enough: the weights are not copied
        for member in self.members:
            if jax.tree.map(np.shape, member) != jax.tree.map(np.shape, self.params):
                raise ValueError("`members` must have weights of the same shapes as `params`.")
        if self.background is not None:
            require_background(self.background, self.n_genes)
        if self.calibration is not None:
            self.calibration.require_classes(self.n_classes)
        if self.second_names is not None:
            self.second_names = require_second_names(self.second_names, self.n_genes)
        self.target_sum = model.target_sum
        sizes = {"n_genes": self.n_genes, "n_classes": self.n_classes, "hidden_dim": self.hidden_dim}
        for name, size in sizes.items():
            if getattr(model, name) != size:
                raise ValueError(
                    f"`{name}` is {size}, but the weights are those of a model with {getattr(model, name)}."
                )
        for name, n_named, n_expected in (
            ("genes", len(self.genes), self.n_genes),
            ("label_keys", len(self.label_keys), self.n_classes),
        ):
            if n_named != n_expected:
                raise ValueError(f"`{name}` has {n_named} names, but the model has {n_expected}.")
            if len(set(getattr(self, name))) != n_named:
                raise ValueError(f"`{name}` must not name anything twice.")
        if not np.array_equal(np.sort(self.label_values), np.arange(self.n_classes)):
            raise ValueError(
                f"`label_values` must be 0 to {self.n_classes - 1} in any order, but got {self.label_values}."
            )

    @property
    def output_labels(self) -> np.ndarray:
        """Cell-type names in the order of the model's outputs."""
        return np.asarray(self.label_keys)[np.argsort(self.label_values)]

    @property
    def networks(self) -> list[AttentionClassifier]:
        """Its networks, one by one."""
        return [self._module_of(params) for params in (self.params, *self.members)]

    @property
    def module(self) -> AttentionClassifier | Ensemble:
        """The network, or all of them as one, as an Equinox module."""
        return joined(self.networks)

    def _module_of(self, params: Params) -> AttentionClassifier:
        return model_from_params(
            params, dropout_rate=self.dropout_rate, normalize=self.normalize, target_sum=self.target_sum
        )


def sealed(state: GinsengClassifierState) -> GinsengClassifierState:
    """The same, with a note of the weights that its calibration, history and card are of: see `of_its_weights`."""
    weights, calibration, metadata = _digest_of_weights(state), state.calibration, state.metadata
    return replace(
        state,
        calibration=None if calibration is None else replace(calibration, weights=weights),
        metadata={**metadata, WEIGHTS: weights} if metadata else {},
    )


def of_its_weights(state: GinsengClassifierState) -> GinsengClassifierState:
    """A state without what is known of other weights than it has, with a warning."""
    noted, calibration = state.metadata.get(WEIGHTS), state.calibration
    if noted is None and calibration is None:
        return state
    weights = _digest_of_weights(state)
    is_of_others = noted not in (None, weights)
    has_another = calibration is not None and not calibration.is_of(weights)
    if not (is_of_others or has_another):
        return state
    warn("The weights have been replaced: what was known of the earlier ones (calibration, history, card) is dropped.")
    return replace(
        state, calibration=None if has_another else calibration, metadata={} if is_of_others else state.metadata
    )


def _digest_of_weights(state: GinsengClassifierState) -> str:
    """What `weights_digest` gives for its module, without JAX: a process that only loads models can be forked."""
    trees = [
        [np.asarray(leaf).T for part in PARTS for leaf in (params[part]["W"], params[part]["b"])]
        for params in (state.params, *state.members)
    ]
    leaves = trees[0] if len(trees) == 1 else [np.stack(each) for each in zip(*trees, strict=True)]
    return digest(*(leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False) for leaf in leaves))


def with_params(
    state: GinsengClassifierState, params: Params, members: list[Params], **changes: Any
) -> GinsengClassifierState:
    """The same with weights made from its own, and without calibration: history and card tell what they come from."""
    metadata = {name: value for name, value in state.metadata.items() if name != WEIGHTS}
    how = {"params": params, "members": members, "calibration": None, "metadata": metadata, **changes}
    return replace(state, **how)


def classifier_from_state(state: GinsengClassifierState) -> GinsengClassifier:
    """Create a classifier from a loaded state: from the first of its networks, if it has several.

    Parameters
    ----------
    state : GinsengClassifierState
        Loaded model state.

    Returns
    -------
    GinsengClassifier
        Ready for inference, or for more training.

    Examples
    --------
    >>> model = GinsengClassifier(n_genes=2, n_classes=2, hidden_dim=4)
    >>> state = GinsengClassifierState(
    ...     model.params, ["CD3D", "MS4A1"], ["T", "B"], [0, 1], n_genes=2, n_classes=2, hidden_dim=4,
    ...     normalize=True, target_sum=1e4, dropout_rate=0.2,
    ... )
    >>> classifier_from_state(state).n_classes
    2
    """
    return GinsengClassifier.from_module(state.networks[0])


@runtime_checkable
class ClassifierTrainer(Protocol):
    """What of a `GinsengClassifierTrainer` makes up a state."""

    genes: list[str]
    second_names: list[str] | None
    label_names: list[str]
    classifier: GinsengClassifier

    background: Background | None

    @property
    def calibration(self) -> Calibration | None:
        """What its answers are worth."""
        ...

    @property
    def model(self) -> Any:
        """The network, or all of them, as trained so far."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Settings and history of the training."""
        ...


def state_from_classifier_trainer(trainer: ClassifierTrainer) -> GinsengClassifierState:
    """Create a state from a trainer after ``fit``.

    Parameters
    ----------
    trainer : GinsengClassifierTrainer
        Trainer with a trained model.

    Returns
    -------
    GinsengClassifierState
        To be saved with `ginseng.save_model`, or used with `ginseng.classify`.
    """
    model = trainer.classifier
    state = GinsengClassifierState(
        params=model.params,
        genes=trainer.genes,
        label_keys=trainer.label_names,
        label_values=np.arange(len(trainer.label_names)),
        n_genes=model.n_genes,
        n_classes=model.n_classes,
        hidden_dim=model.hidden_dim,
        normalize=model.normalize,
        target_sum=model.target_sum,
        dropout_rate=model.dropout_rate,
        training=False,
        members=[params_of(network) for network in members_of(trainer.model)[1:]],
        background=trainer.background,
        calibration=trainer.calibration,
        second_names=trainer.second_names,
        metadata=trainer.metadata(),
    )
    return sealed(state)
