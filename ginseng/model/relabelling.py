"""A trained classifier with other outputs: renamed, merged, dropped, and begun from some cells of further types."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from scipy import special
from scipy.optimize import minimize

from ginseng.model.attention import AttentionClassifier
from ginseng.model.state import GinsengClassifierState, with_params
from ginseng.utils.messages import shorten, unknown_name

_RIDGE = 1.0  # on what the weights of a merged output differ by from the sum
_SHARE_BELOW = 0.1  # of the cells of a new type, which go on to be called something else
_SILENT = -100.0  # a logit
_LENGTH = 0.5  # of what tells a new type from others, in lengths of the rows of these


def relabelled(state: GinsengClassifierState, mapping: Mapping[str, str | None]) -> GinsengClassifierState:
    """Rename, merge and drop outputs of a classifier.

    The logit of a merged output, of which the probability should be the sum of those of its parts, is linear in the
    logits, each less their mean over all outputs: their sum over the parts to begin with. Where the classifier is
    calibrated, the weights and a constant are then fitted to the sum of the probabilities of the held-out cells, by
    logistic regression: on Kang and Baron pairs of types end up at 0.01 from the sum in the mean (0.01 and 0.04 without
    cells; 0.04 and 0.07 for the mean of the logits and the logarithm of their number, see ``benchmarks/recipes.md``).

    Parameters
    ----------
    state : GinsengClassifierState
        The classifier.
    mapping : mapping of str to str or None
        New names of outputs. Outputs of one name, an existing one included, are merged; those of None are dropped;
        those that are not named stay.

    Returns
    -------
    GinsengClassifierState
        Its calibration is kept where outputs are renamed only.

    Raises
    ------
    ValueError
        If there is no such output, or none is left.

    Examples
    --------
    >>> import jax.random as jr
    >>> from ginseng.model.attention import params_of
    >>> network = AttentionClassifier(2, 3, 4, key=jr.key(0))
    >>> state = GinsengClassifierState(
    ...     params_of(network), ["CD3D", "LYZ"], ["CD4 T", "CD8 T", "mono"], [0, 1, 2], n_genes=2, n_classes=3,
    ...     hidden_dim=4, normalize=True, target_sum=1e4, dropout_rate=0.2,
    ... )
    >>> relabelled(state, {"CD4 T": "T", "CD8 T": "T"}).output_labels
    array(['T', 'mono'], dtype=object)
    """
    known = [str(label) for label in state.output_labels]
    for name in mapping:
        if name not in known:
            raise unknown_name("label", name, "the model's outputs", known)
    named = {label: mapping.get(label, label) for label in known}
    names = list(dict.fromkeys(name for name in named.values() if name is not None))
    if not names:
        raise ValueError("Every output of the model is dropped; at least one must be left.")
    if len(names) == len(known):
        return replace(state, label_keys=[named[str(label)] for label in state.label_keys])
    parts = [[known.index(label) for label in known if named[label] == name] for name in names]
    calibration = None if state.calibration is None else state.calibration.logits.astype(np.float64)
    kept = [nth for part in parts for nth in part]
    columns = [_merged(part, kept, len(known), calibration) for part in parts]
    weights, constants = np.stack([weight for weight, _ in columns], axis=1), np.array([at for _, at in columns])
    return _with_head(
        state,
        names,
        [
            {
                "W": _columns(params["head"]["W"], parts, weights),
                "b": _columns(params["head"]["b"], parts, weights) + constants.astype(np.float32),
            }
            for params in (state.params, *state.members)
        ],
    )


def _columns(
    leaf: Float[Array | np.ndarray, "*genes classes"], parts: list[list[int]], weights: np.ndarray
) -> np.ndarray:
    """Those of the new outputs; of an output that stays, as it is."""
    old = np.asarray(leaf)
    made = [
        old[..., part[0]] if len(part) == 1 else old @ of_new for part, of_new in zip(parts, weights.T, strict=True)
    ]
    return np.stack(made, axis=-1).astype(np.float32)


def _merged(
    parts: list[int], kept: list[int], n_classes: int, logits: Float[np.ndarray, "cells classes"] | None
) -> tuple[np.ndarray, float]:
    """Weights of the old logits, which sum to 1, and a constant, that make up a new one."""
    is_part = np.isin(np.arange(n_classes), parts)
    weights = is_part - (len(parts) - 1) / n_classes
    others = [nth for nth in kept if nth not in parts]
    if len(parts) == 1 or logits is None or not others:
        return weights, 0.0
    centered = logits - logits.mean(axis=1, keepdims=True)
    of_others = special.logsumexp(centered[:, others], axis=1)
    target = special.expit(special.logsumexp(centered[:, parts], axis=1) - of_others)
    begun = centered @ weights - of_others

    def loss(change: np.ndarray) -> tuple[float, np.ndarray]:
        log_odds = begun + centered @ change[:-1] + change[-1]
        off = special.expit(log_odds) - target
        penalty = _RIDGE * np.append(change[:-1], 0)
        value = (np.logaddexp(0, log_odds) - target * log_odds).sum() + penalty @ change / 2
        return value, np.append(centered.T @ off, off.sum()) + penalty

    change = minimize(loss, np.zeros(n_classes + 1), jac=True, method="L-BFGS-B").x
    return weights + change[:-1] - change[:-1].mean(), float(change[-1])


def with_labels(
    state: GinsengClassifierState, labels: Sequence[str], counts_of: Mapping[str, Num[np.ndarray, "cells genes"]]
) -> GinsengClassifierState:
    """Add outputs for types of which there are some cells, so that these are told before any training.

    Weights that are there stay, bit for bit. With ``f`` the features of a cell (`AttentionClassifier.features`), ``W``
    the rows of the head, of mean length ``l``, and ``p`` the mean probabilities of the cells of the new type, what they
    are taken for, the new row is::

        p W + l / 2 * d / |d|,    d = mean(f) - g

    and its bias such that a tenth of the cells are below their highest old logit. ``g`` stands for the mean features of
    the types that the cells are taken for. These are not at hand: for each type it is the nearest to the features of
    the mean training cell (0 where the classifier has no background) that has the mean logits of the type, which the
    calibration knows; where there is none, the mean logits of the new cells stand in, so that ``d`` is what the head
    has not seen of them. Several types are added one after the other, those before being old ones, without calibration.

    Parameters
    ----------
    state : GinsengClassifierState
        The classifier.
    labels : sequence of str
        Names of the new types.
    counts_of : mapping of str to numpy.ndarray
        Counts, over the genes of the classifier, of cells of each of them.

    Returns
    -------
    GinsengClassifierState
        Without calibration, which is of other outputs.

    Raises
    ------
    ValueError
        If there is an output of that name, or a type without cells.

    References
    ----------
    Qi, Brown & Lowe, Low-shot learning with imprinted weights, CVPR 2018: a row begun from the mean features, which
    are the row there. See ``benchmarks/recipes.md`` for what was tried.

    Examples
    --------
    >>> import jax.random as jr
    >>> from ginseng.model.attention import params_of
    >>> network = AttentionClassifier(2, 2, 4, key=jr.key(0))
    >>> state = GinsengClassifierState(
    ...     params_of(network), ["CD3D", "LYZ"], ["T", "mono"], [0, 1], n_genes=2, n_classes=2, hidden_dim=4,
    ...     normalize=True, target_sum=1e4, dropout_rate=0.2,
    ... )
    >>> with_labels(state, ["B"], {"B": np.array([[1.0, 1.0], [1.0, 2.0]])}).output_labels
    array(['T', 'mono', 'B'], dtype=object)
    """
    if known := [label for label in labels if label in state.output_labels]:
        raise ValueError(f"The model has outputs for {shorten(known)} already; only new labels can be added.")
    for label in labels:
        counts = counts_of.get(label)
        if counts is None or not len(counts):
            raise ValueError(f"There is no cell of '{label}', whose output begins from the features of its cells.")
        if np.ndim(counts) != 2 or np.shape(counts)[1] != state.n_genes:
            raise ValueError(
                f"Counts of '{label}' must be over the {state.n_genes:,} genes of the model, but have shape "
                f"{np.shape(counts)}."
            )
    for label in labels:
        heads = []
        for network in state.networks:
            row, at = _new_row(network, state, _features(network, counts_of[label]))
            head = network.head
            weight, bias = np.vstack([head.weight, row]), np.append(np.asarray(head.bias), at)
            heads.append({"W": weight.T.astype(np.float32), "b": bias.astype(np.float32)})
        state = _with_head(state, [*state.output_labels, label], heads)
    return state


def _new_row(
    network: AttentionClassifier, state: GinsengClassifierState, features: Float[np.ndarray, "cells genes"]
) -> tuple[Float[np.ndarray, " genes"], float]:
    """Weights and bias of an output for some cells, see `with_labels`."""
    weight, bias = np.asarray(network.head.weight), np.asarray(network.head.bias)
    of_mean = np.zeros(state.n_genes, np.float32)
    if state.background is not None:
        of_mean = _features(network.normalizing(normalize=False), state.background.expression[None])[0]
    logits = features @ weight.T + bias
    taken_for = special.softmax(logits, axis=1).mean(axis=0)
    means = np.tile(logits.mean(axis=0), (len(bias), 1))
    if state.calibration is not None:
        means = np.where(np.isnan(state.calibration.geometry.means), means, state.calibration.geometry.means)
    apart = taken_for @ means - (weight @ of_mean + bias)
    inverse = np.linalg.pinv(weight - weight.mean(axis=0), rcond=1e-5)
    direction = features.mean(axis=0) - of_mean - inverse @ (apart - apart.mean())
    length = np.linalg.norm(weight, axis=1).mean() / max(float(np.linalg.norm(direction)), 1e-8)
    row = taken_for @ weight + _LENGTH * length * direction
    return row, float(np.quantile(logits.max(axis=1) - features @ row, 1 - _SHARE_BELOW))


def with_silent_labels(state: GinsengClassifierState, labels: Sequence[str]) -> GinsengClassifierState:
    """Add outputs that no cell is given, for types of which nothing is known.

    Examples
    --------
    >>> import jax.random as jr
    >>> from ginseng.model.attention import params_of
    >>> network = AttentionClassifier(2, 2, 4, key=jr.key(0))
    >>> state = GinsengClassifierState(
    ...     params_of(network), ["CD3D", "LYZ"], ["T", "mono"], [0, 1], n_genes=2, n_classes=2, hidden_dim=4,
    ...     normalize=True, target_sum=1e4, dropout_rate=0.2,
    ... )
    >>> np.asarray(with_silent_labels(state, ["B"]).params["head"]["b"]).tolist()
    [0.0, 0.0, -100.0]
    """
    n_more = len(labels)
    heads = [
        {
            "W": jnp.pad(jnp.asarray(params["head"]["W"]), ((0, 0), (0, n_more))),
            "b": jnp.pad(jnp.asarray(params["head"]["b"]), (0, n_more), constant_values=_SILENT),
        }
        for params in (state.params, *state.members)
    ]
    return _with_head(state, [*state.output_labels, *labels], heads)


@eqx.filter_jit
def _gated(network: AttentionClassifier, counts: Float[Array, "cells genes"]) -> Float[Array, "cells genes"]:
    return jax.vmap(network.features)(counts)


def _features(network: AttentionClassifier, counts: Num[np.ndarray, "cells genes"]) -> Float[np.ndarray, "cells genes"]:
    return np.asarray(_gated(eqx.nn.inference_mode(network), jnp.asarray(counts, jnp.float32)))


def _with_head(
    state: GinsengClassifierState, labels: Sequence[str], heads: Sequence[Mapping[str, Array | np.ndarray]]
) -> GinsengClassifierState:
    """The same below the head, with other outputs in each of its networks."""
    params, *members = [
        {**each, "head": {name: jnp.asarray(leaf) for name, leaf in head.items()}}
        for each, head in zip((state.params, *state.members), heads, strict=True)
    ]
    return with_params(
        state,
        params,
        members,
        label_keys=list(labels),
        label_values=np.arange(len(labels)),
        n_classes=len(labels),
    )
