"""The documented stateful face of `AttentionClassifier`, beside the functional one."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import sparse

from ginseng.model.attention import AttentionClassifier, Params, model_from_params, params_of
from ginseng.model.functional import (
    Cells,
    Types,
    attend_batch,
    nn_annotate,
    nn_annotate_evaluate,
    nn_annotate_init,
    nn_annotate_loss,
    nn_normalize,
)
from ginseng.utils.devices import require_not_forked
from ginseng.utils.values import require_flags, require_integer

__all__ = [
    "GinsengClassifier",
    "nn_annotate",
    "nn_annotate_evaluate",
    "nn_annotate_init",
    "nn_annotate_loss",
    "nn_normalize",
]

_attend_batch = eqx.filter_jit(attend_batch)


class GinsengClassifier:
    """An `AttentionClassifier` that carries its own state: parameters and random key.

    Parameters
    ----------
    n_genes : int
        Number of genes in the input.
    n_classes : int
        Number of cell types.
    hidden_dim : int
        Hidden dimension of the attention.
    dropout_rate : float
        Dropout rate during training.
    normalize : bool
        Whether to normalise the input.
    target_sum : float, optional
        Counts per cell after normalisation; None stands for 1e4.
    seed : int
        Seed of the initial weights and of all keys drawn later.

    Attributes
    ----------
    n_genes, n_classes, hidden_dim : int
        Sizes of the network.
    dropout_rate, normalize, target_sum
        As given; may be assigned.
    seed : int
        As given.
    params : dict
        The weights in the documented tree (see `nn_annotate_init`); may be assigned.
    module : AttentionClassifier
        The network itself, for use as an Equinox module.

    Examples
    --------
    >>> model = GinsengClassifier(n_genes=20, n_classes=3, hidden_dim=8)
    >>> cells = jnp.ones((5, 20))
    >>> model.predict(cells).shape
    (5, 3)
    >>> loss, accuracy = model.evaluate(cells, jnp.zeros(5, int))
    """

    def __init__(
        self,
        n_genes: int,
        n_classes: int,
        hidden_dim: int = 256,
        dropout_rate: float = 0.5,
        normalize: bool = True,
        target_sum: float | None = 1e4,
        seed: int = 42,
    ):
        require_integer("seed", seed, 0, below=2**32)
        require_not_forked()
        self.seed = seed
        self.key, init_key = jr.split(jr.key(seed))
        self.module = AttentionClassifier(
            n_genes,
            n_classes,
            hidden_dim,
            dropout_rate=dropout_rate,
            normalize=normalize,
            target_sum=target_sum,
            key=init_key,
        )

    @classmethod
    def from_module(cls, module: AttentionClassifier, seed: int = 42) -> "GinsengClassifier":
        """Wrap an existing network."""
        classifier = cls.__new__(cls)
        classifier.seed = seed
        classifier.key = jr.key(seed)
        classifier.module = module
        return classifier

    @property
    def params(self) -> Params:
        """The parameters in the documented tree."""
        return params_of(self.module)

    @params.setter
    def params(self, params: Params) -> None:
        module = model_from_params(params, **self.options)
        if (module.n_genes, module.n_classes, module.hidden_dim) != (self.n_genes, self.n_classes, self.hidden_dim):
            raise ValueError(
                f"`params` belong to a model of {module.n_genes} genes, {module.n_classes} classes and "
                f"{module.hidden_dim} hidden units, but this one has {self.n_genes}, {self.n_classes} and "
                f"{self.hidden_dim}."
            )
        self.module = module

    @property
    def n_genes(self) -> int:
        """Number of genes in the input."""
        return self.module.n_genes

    @property
    def n_classes(self) -> int:
        """Number of cell types."""
        return self.module.n_classes

    @property
    def hidden_dim(self) -> int:
        """Hidden dimension of the attention."""
        return self.module.hidden_dim

    @property
    def dropout_rate(self) -> float:
        """Dropout rate during training."""
        return float(self.module.input_dropout.p)

    @dropout_rate.setter
    def dropout_rate(self, value: float) -> None:
        self.module = model_from_params(self.params, **{**self.options, "dropout_rate": value})

    @property
    def normalize(self) -> bool:
        """Whether the input is normalised."""
        return self.module.normalize

    @normalize.setter
    def normalize(self, value: bool) -> None:
        self.module = model_from_params(self.params, **{**self.options, "normalize": value})

    @property
    def target_sum(self) -> float:
        """Counts per cell after normalisation."""
        return self.module.target_sum

    @target_sum.setter
    def target_sum(self, value: float | None) -> None:
        self.module = model_from_params(self.params, **{**self.options, "target_sum": value})

    @property
    def options(self) -> dict[str, Any]:
        """What `nn_annotate` needs besides parameters: dropout rate and normalisation."""
        return {"dropout_rate": self.dropout_rate, "normalize": self.normalize, "target_sum": self.target_sum}

    def _check(self, x: Any) -> None:
        if sparse.issparse(x):
            raise ValueError("`x` is sparse; pass a dense batch, x.toarray().")
        if x.shape[-1] != self.n_genes:
            raise ValueError(f"`x` has {x.shape[-1]:,} genes, but the model has {self.n_genes:,}.")

    def _get_key(self) -> PRNGKeyArray:
        """Draw a new key and update the internal state."""
        self.key, key = jr.split(self.key)
        return key

    def predict(
        self,
        x: Cells,
        params: Params | None = None,
        key: PRNGKeyArray | None = None,
        training: bool = False,
        return_attn: bool = False,
    ) -> Float[Array, "batch classes"] | tuple[Float[Array, "batch classes"], Float[Array, "batch genes"]]:
        """Score a batch of cells.

        Parameters
        ----------
        x : Array
            Counts of shape ``(batch_size, n_genes)``.
        params : dict, optional
            Parameters to use in place of the model's own.
        key : Array, optional
            PRNG key of the dropout masks; by default a new one from `_get_key`.
        training : bool
            Apply dropout.
        return_attn : bool
            Also return the attention weights.

        Returns
        -------
        Array or tuple of Array
            Logits of shape ``(batch_size, n_classes)``; with `return_attn`, also attention of shape
            ``(batch_size, n_genes)``.
        """
        require_flags(training=training, return_attn=return_attn)
        self._check(x)
        module = self.module if params is None else model_from_params(params, **self.options)
        key = self._get_key() if key is None else key
        logits, attention = _attend_batch(module, jnp.asarray(x), key if training else None)
        return (logits, attention) if return_attn else logits

    def loss(self, params: Params, key: PRNGKeyArray, x: Cells, y: Types) -> Float[Array, ""]:
        """Mean cross-entropy of a batch with dropout, differentiable with respect to `params`.

        Parameters
        ----------
        params : dict
            Parameters to differentiate against.
        key : Array
            PRNG key of the dropout masks.
        x : Array
            Counts of shape ``(batch_size, n_genes)``.
        y : Array
            Class indices of shape ``(batch_size,)``.

        Returns
        -------
        Array
            Scalar.
        """
        return nn_annotate_loss(params, key, x, y, **self.options)

    def evaluate(self, x: Cells, y: Types) -> tuple[float, float]:
        """Loss and accuracy of a batch, without dropout.

        Parameters
        ----------
        x : Array
            Counts of shape ``(batch_size, n_genes)``.
        y : Array
            Class indices of shape ``(batch_size,)``.

        Returns
        -------
        tuple of float
            Mean cross-entropy, fraction of correct predictions.
        """
        self._check(x)
        y = jnp.asarray(y)
        logits, _ = _attend_batch(self.module, jnp.asarray(x), None)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return float(loss), float((jnp.argmax(logits, axis=-1) == y).mean())
