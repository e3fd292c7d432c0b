"""Gated attention over genes: the classifier as an Equinox module, and its leaves as the documented parameter tree."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import psutil
from jaxtyping import Array, Float, Num, PRNGKeyArray

from ginseng.model.nn import nn_xavier_uniform, normalize_cell
from ginseng.utils.values import require_flags, require_integer, require_number

Params = dict[str, dict[str, Any]]

PARTS = ("features1", "features2", "attn1", "attn2", "head")
_PART_OF_DROPOUT = {"input_dropout": "features1", "gate_dropout": "attn1"}
_DEFAULT_TARGET_SUM = 1e4


class AttentionClassifier(eqx.Module):
    """Score the counts of one cell against each cell type.

    With ``x`` the log-normalised counts of a cell over the model's genes: ``h = features2(relu(features1(x)))`` is a
    feature per gene, ``a = sigmoid(attn2(tanh(attn1(h))))`` the attention paid to it, and ``head(a * h)`` the logits.
    During training, dropout acts on ``x`` and on the input of ``attn1``.

    The module takes one cell, as Equinox layers do; use `jax.vmap` for a batch, `eqx.nn.inference_mode` to switch
    dropout off, and `eqx.tree_at` to replace a layer.

    Parameters
    ----------
    n_genes, n_classes : int
        Numbers of inputs and outputs.
    hidden_dim : int
        Width of the bottleneck of the attention.
    dropout_rate : float
        Probability, in [0, 1), of dropping an element.
    normalize : bool
        Scale each cell to `target_sum` counts and take ``log(1 + x)`` first; False for input that is already
        normalised.
    target_sum : float, optional
        Counts per cell after scaling; None stands for 1e4.
    key : Array
        PRNG key of the initial weights (Xavier uniform; biases are zero).

    Raises
    ------
    ValueError
        If a size is smaller than 1, or a rate or sum is out of range.
    MemoryError
        If the two genes x genes layers do not fit in the memory of this machine.

    References
    ----------
    The gate follows Ilse, Tomczak & Welling, Attention-based deep multiple instance learning, ICML 2018; network and
    initialisation are those of ginseng 0.2.1.

    Examples
    --------
    >>> model = AttentionClassifier(n_genes=20, n_classes=3, hidden_dim=8, key=jr.key(0))
    >>> cells = jnp.ones((5, 20))
    >>> jax.vmap(eqx.nn.inference_mode(model))(cells).shape
    (5, 3)
    >>> jax.vmap(model)(cells, key=jr.split(jr.key(1), 5)).shape  # training: dropout needs a key for each cell
    (5, 3)
    """

    features1: eqx.nn.Linear
    features2: eqx.nn.Linear
    attn1: eqx.nn.Linear
    attn2: eqx.nn.Linear
    head: eqx.nn.Linear
    input_dropout: eqx.nn.Dropout
    gate_dropout: eqx.nn.Dropout
    n_genes: int = eqx.field(static=True)
    n_classes: int = eqx.field(static=True)
    hidden_dim: int = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)
    target_sum: float = eqx.field(static=True)

    def __init__(
        self,
        n_genes: int,
        n_classes: int,
        hidden_dim: int = 256,
        *,
        dropout_rate: float = 0.5,
        normalize: bool = True,
        target_sum: float | None = _DEFAULT_TARGET_SUM,
        key: PRNGKeyArray,
    ):
        for name, size in (("n_genes", n_genes), ("n_classes", n_classes), ("hidden_dim", hidden_dim)):
            require_integer(name, size, 1)
        require_number("dropout_rate", dropout_rate, "[0, 1)")
        if target_sum is not None:
            require_number("target_sum", target_sum, "(0, inf)")
        require_flags(normalize=normalize)
        require_memory(n_genes)
        layers = _drawn_layers(key, int(n_genes), int(n_classes), int(hidden_dim))
        self.features1, self.features2, self.attn1, self.attn2, self.head = layers
        self.input_dropout = eqx.nn.Dropout(dropout_rate)
        self.gate_dropout = eqx.nn.Dropout(dropout_rate)
        self.n_genes = n_genes
        self.n_classes = n_classes
        self.hidden_dim = hidden_dim
        self.normalize = bool(normalize)
        self.target_sum = _DEFAULT_TARGET_SUM if target_sum is None else float(target_sum)

    def __call__(self, x: Num[Array, " genes"], *, key: PRNGKeyArray | None = None) -> Float[Array, " classes"]:
        """Return the logits of one cell; `key` is needed where dropout is on."""
        return self.attend(x, key=key)[0]

    def features(self, x: Num[Array, " genes"], *, key: PRNGKeyArray | None = None) -> Float[Array, " genes"]:
        """Return the gated gene vector of one cell, the input of the head: an embedding for other heads."""
        input_key, gate_key = keys_of_stages(key)
        h = self.encoded(x, key=input_key)
        return self.attention(h, key=gate_key) * h

    def attend(
        self, x: Num[Array, " genes"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " classes"], Float[Array, " genes"]]:
        """Return the logits of one cell, and the attention, in (0, 1), paid to each gene."""
        input_key, gate_key = keys_of_stages(key)
        h = self.encoded(x, key=input_key)
        attention = self.attention(h, key=gate_key)
        return self.head(attention * h), attention

    def encoded(self, x: Num[Array, " genes"], *, key: PRNGKeyArray | None = None) -> Float[Array, " genes"]:
        """Return the feature of each gene, ``h``: the first stage."""
        x = self.input_dropout(self.normalized(x).astype(jnp.result_type(float)), key=key)
        return self.features2(jax.nn.relu(self.features1(x)))

    def attention(self, h: Float[Array, " genes"], *, key: PRNGKeyArray | None = None) -> Float[Array, " genes"]:
        """Return the attention, in (0, 1), paid to each feature: the second stage, after which comes the head."""
        gate = jnp.tanh(self.attn1(self.gate_dropout(h, key=key)))
        return jax.nn.sigmoid(self.attn2(gate))

    def normalized(self, x: Num[Array, " genes"]) -> Num[Array, " genes"]:
        """Normalise the counts of one cell, if the network does."""
        return normalize_cell(x, self.target_sum) if self.normalize else x

    def normalizing(self, normalize: bool | None = None, target_sum: float | None = None) -> "AttentionClassifier":
        """The same network with another normalisation; what is None stays."""
        return model_from_params(
            params_of(self),
            dropout_rate=self.input_dropout.p,
            normalize=self.normalize if normalize is None else normalize,
            target_sum=self.target_sum if target_sum is None else target_sum,
        )


def keys_of_stages(key: PRNGKeyArray | None) -> tuple[PRNGKeyArray | None, PRNGKeyArray | None]:
    """Split the key of a cell into those of `AttentionClassifier.encoded` and `attention`.

    Examples
    --------
    >>> keys_of_stages(None)
    (None, None)
    """
    if key is None:
        return None, None
    input_key, gate_key = jr.split(key)
    return input_key, gate_key


def part_of(path: Sequence[Any]) -> str | None:
    """Name of the part of a network that a leaf is in, by its path in any tree; dropout is in the part that it feeds.

    Examples
    --------
    >>> model = AttentionClassifier(n_genes=4, n_classes=3, hidden_dim=2, key=jr.key(0))
    >>> [part_of(path) for path, _ in jax.tree.leaves_with_path({"model": model})][-5::2]
    ['head', 'features1', 'attn1']
    """
    names = [str(getattr(step, "name", getattr(step, "key", None))) for step in path]
    parts = (_PART_OF_DROPOUT.get(name, name) for name in names)
    return next((part for part in parts if part in PARTS), None)


@eqx.filter_jit
def _drawn_layers(key: PRNGKeyArray, n_genes: int, n_classes: int, hidden_dim: int) -> list[eqx.nn.Linear]:
    """Draw the layers as `nn_init_linear` does, in one compiled call.

    Layers of as many weights share a loop, since what is slow to compile is the generator: its numbers depend on how
    many there are, not on their shape.
    """
    keys = jax.vmap(lambda key: jr.split(key)[0])(jr.split(key, len(PARTS)))
    features, gates, heads = (
        jax.lax.map(lambda key, shape=shape: nn_xavier_uniform(key, shape), keys[first:last])
        for first, last, shape in (
            (0, 2, (n_genes, n_genes)),
            (2, 4, (n_genes, hidden_dim)),
            (4, 5, (n_genes, n_classes)),
        )
    )
    weights = [*features, gates[0], gates[1].reshape(hidden_dim, n_genes), heads[0]]
    return [_linear(weight.T, jnp.zeros(weight.shape[1])) for weight in weights]


def _linear(weight: Float[Array, "out_dim in_dim"], bias: Float[Array, " out_dim"]) -> eqx.nn.Linear:
    n_out, n_in = weight.shape
    shell = eqx.filter_eval_shape(lambda: eqx.nn.Linear(n_in, n_out, key=jr.key(0)))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), shell, (weight, bias))


def centered(model: AttentionClassifier, mean: Float[Array | np.ndarray, " genes"]) -> AttentionClassifier:
    """Shift the biases of the first layer so that it takes a mean input to 0.

    Examples
    --------
    >>> model = AttentionClassifier(n_genes=4, n_classes=3, hidden_dim=2, key=jr.key(0))
    >>> mean = jnp.array([1.0, 2.0, 0.0, 3.0])
    >>> bool(jnp.allclose(centered(model, mean).features1(mean), 0.0, atol=1e-6))
    True
    """
    of_mean = model.features1(jnp.asarray(mean))
    return eqx.tree_at(lambda m: m.features1.bias, model, replace_fn=lambda bias: bias - of_mean)


def require_memory(n_genes: int, n_copies: int = 1) -> None:
    """Raise a MemoryError if `n_copies` of the two genes x genes layers exceed the memory of this machine."""
    needed = n_copies * 2 * n_genes**2 * 4
    present = psutil.virtual_memory().total
    if needed > present:
        why = "" if n_copies == 1 else " for weights before and during an epoch, gradients and two moments"
        raise MemoryError(
            f"A model of {n_genes:,} genes has two genes x genes layers, which take {needed:,} bytes"
            f"{why}; this machine has {present:,}. Select genes first, e.g. ginseng.utils.select_hvgs(adata, 2000)."
        )


def params_of(model: AttentionClassifier) -> Params:
    """Return the leaves of a module as the documented tree: a ``W`` (in x out) and a ``b`` (out) for each layer.

    Examples
    --------
    >>> model = AttentionClassifier(n_genes=20, n_classes=3, hidden_dim=8, key=jr.key(0))
    >>> {name: layer["W"].shape for name, layer in params_of(model).items()}
    {'features1': (20, 20), 'features2': (20, 20), 'attn1': (20, 8), 'attn2': (8, 20), 'head': (20, 3)}
    """
    layers = {name: getattr(model, name) for name in PARTS}
    return {name: {"W": layer.weight.T, "b": layer.bias} for name, layer in layers.items()}


def model_from_params(
    params: Params,
    *,
    dropout_rate: float = 0.5,
    normalize: bool = True,
    target_sum: float | None = _DEFAULT_TARGET_SUM,
) -> AttentionClassifier:
    """Build the module whose leaves are those of a documented parameter tree.

    Raises
    ------
    ValueError
        If a layer is missing or its shape does not fit the others.
    """
    if missing := [name for name in PARTS if not {"W", "b"} <= set(params.get(name, ()))]:
        raise ValueError(f"`params` lacks W or b of the layers {missing}; it has the layers {list(params)}.")
    n_genes, n_classes = params["head"]["W"].shape
    hidden_dim = params["attn1"]["W"].shape[-1]
    shell = eqx.filter_eval_shape(
        lambda: AttentionClassifier(
            n_genes,
            n_classes,
            hidden_dim,
            dropout_rate=dropout_rate,
            normalize=normalize,
            target_sum=target_sum,
            key=jr.key(0),
        )
    )
    leaves = []
    for name in PARTS:
        layer = getattr(shell, name)
        weight, bias = jnp.asarray(params[name]["W"]).T, jnp.asarray(params[name]["b"])
        if weight.shape != layer.weight.shape or bias.shape != layer.bias.shape:
            raise ValueError(
                f"Layer '{name}' of a model of {n_genes} genes, {hidden_dim} hidden units and {n_classes} classes has "
                f"W {layer.weight.shape[::-1]} and b {layer.bias.shape}, but got {weight.shape[::-1]} and {bias.shape}."
            )
        leaves += [weight, bias]
    return eqx.tree_at(_weights_and_biases, shell, leaves)


def _weights_and_biases(model: AttentionClassifier) -> list[Any]:
    return [leaf for name in PARTS for leaf in (getattr(model, name).weight, getattr(model, name).bias)]
