"""A trained classifier moved to other genes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num
from scipy import sparse

from ginseng.model.attention import AttentionClassifier, Params, params_of
from ginseng.model.background import LEAST_KEPT, Background, background_of, lacking
from ginseng.model.ensemble import members_of
from ginseng.model.modules import logits_of
from ginseng.model.state import GinsengClassifierState, sealed, with_params
from ginseng.utils.genes import OTHER_GENES, GeneMap, least_genes
from ginseng.utils.names import GeneNames
from ginseng.utils.values import texts

_RIDGE = 1e-2  # of the mean variance of units, on what they tell of those without a place
_LAYERS = ("features1", "features2", "attn1", "attn2", "head")


_NOT_HERE = " (not in the data)"


@dataclass(frozen=True)
class Moved:
    """What became of a classifier that was moved to other genes.

    Attributes
    ----------
    n_kept, n_new, n_dropped : int
        Genes of both, of the new ones only, and of the old ones only.
    carried : float
        Share of the squared weights, over all layers and networks, that went along; the rest is folded into those and
        the biases.
    agreement : float
        Share of the cells of the sample that get the same type from the classifier before, for which the genes that
        they lack take their mean, and after.
    """

    n_kept: int
    n_new: int
    n_dropped: int
    carried: float
    agreement: float

    def report(self) -> str:
        """Tell it in three lines.

        Examples
        --------
        >>> print(Moved(1200, 800, 300, 0.9, 0.985).report())
        1,200 genes of the model are kept, 300 are dropped, 800 are new.
        90.0 % of the squared weights are carried along; the rest is folded into those and the biases.
        98.5 % of the sampled cells get the same type as before.
        """
        return (
            f"{self.n_kept:,} genes of the model are kept, {self.n_dropped:,} are dropped, {self.n_new:,} are new.\n"
            f"{100 * self.carried:.1f} % of the squared weights are carried along; the rest is folded into those and "
            f"the biases.\n{100 * self.agreement:.1f} % of the sampled cells get the same type as before."
        )


def moved(
    state: GinsengClassifierState, genes: GeneNames, sample: Num[np.ndarray, "cells genes"], *, seed: int
) -> tuple[GinsengClassifierState, Moved]:
    """Give a classifier other genes, so that it answers as before as far as it knows them.

    With ``h = F2 relu(F1 x + b1) + b2``, ``a = sigmoid(A2 tanh(A1 h + c1) + c2)`` and the logits ``H (a h) + d``:

    - Weights go with the genes, by name. Where the genes are the same in another order, so is the function.
    - A gene that is dropped leaves its mean over the training cells in the biases, as where data lack it (`lacking`):
      ``b1 += F1[:, dropped] mean``.
    - A new gene begins without effect, ``F1[:, new] = 0``, but its weights have a gradient.
    - Hidden units are tied to genes by their place only: units in the places of dropped genes move to those of new
      ones. Where there are more places than units, units are drawn, and what reads them begins at 0. Where there are
      fewer, those with the least effect on the sample (spread times the norm of the weights that read it) go: what
      reads them, ``F2``, ``A1`` and ``H``, reads in their stead what the units that stay, and a constant, tell of them
      on the sample (ridge regression). Training cells, which the sample stands for, are not at hand.
    - Counts per cell after normalisation change by the ratio of the shares that the common genes have of the counts
      of old and new genes (at least a half, as in `lacking`), so that these keep their values; not where both sets have
      the sum of all other genes. The mean change of that sum, to which genes go and from which they come, goes into
      the biases.

    The calibration is dropped: it is of other answers.

    Parameters
    ----------
    state : GinsengClassifierState
        The classifier.
    genes : GeneNames
        Names, and second names, of the new genes.
    sample : numpy.ndarray
        Counts of some cells of the new data, with the new genes.
    seed : int
        Seed of what is drawn.

    Returns
    -------
    GinsengClassifierState
        The classifier with the new genes.
    Moved
        What became of it.

    Raises
    ------
    ValueError
        If there are too few genes in common, or the sample has no cell or other genes.

    References
    ----------
    Chen, Goodfellow & Shlens, Net2Net: accelerating learning via knowledge transfer, ICLR 2016, for growth that keeps
    the function; He, Zhang & Sun, Channel pruning for accelerating very deep neural networks, ICCV 2017, for weights
    that make up for units which go.

    Examples
    --------
    >>> network = AttentionClassifier(3, 2, 4, key=jr.key(0))
    >>> state = GinsengClassifierState(
    ...     params_of(network), ["CD3D", "CD4", "LYZ"], ["T", "mono"], [0, 1], n_genes=3, n_classes=2, hidden_dim=4,
    ...     normalize=True, target_sum=1e4, dropout_rate=0.2,
    ... )
    >>> counts = np.array([[1.0, 0.0, 2.0, 5.0], [4.0, 0.0, 1.0, 1.0]])
    >>> other, report = moved(state, GeneNames(["LYZ", "XIST", "CD4", "CD3D"]), counts, seed=0)
    >>> report.n_kept, report.n_new, report.agreement
    (3, 1, 1.0)
    """
    first = texts(genes.first, "gene")
    if np.ndim(sample) != 2 or np.shape(sample)[1] != len(first) or not len(sample):
        raise ValueError(f"`sample` must have cells with the {len(first):,} new genes, but has shape {sample.shape}.")
    second = None if genes.second is None else np.asarray(genes.second, object)
    names = {"genes.first": first} | ({} if second is None else {"genes.second": second})
    found = GeneNames(state.genes, state.second_names).match(names)
    found.require(least_genes(min(len(first), state.n_genes)), first, state.genes, lambda: "are they of one species?")
    move = _Move.of(state, found, first, np.asarray(sample, np.float32))
    keys = jr.split(jr.key(seed), 1 + len(state.members))
    each = [_moved_network(network, move, key) for network, key in zip(state.networks, keys, strict=True)]
    params, *members = [params for params, _ in each]
    background = state.background
    if background is not None:
        of_sample = background_of(state.networks[0].normalizing(target_sum=move.target_sum), move.sample)
        is_carried = (move.source >= 0) & (first != OTHER_GENES)
        scales = 1.0, state.networks[0].target_sum / move.target_sum  # shares are of another total
        means = zip(background, of_sample, scales, strict=True)
        background = Background(*(np.where(is_carried, old[move.source] * by, new) for old, new, by in means))
    after = with_params(
        state,
        params,
        members,
        genes=first,
        second_names=second,
        n_genes=len(first),
        target_sum=move.target_sum,
        background=background,
    )
    before = state.module
    if state.background is not None and found.is_lacking.any():
        before = lacking(before, state.background, found.is_lacking, _is_rest(state))
    aligned = found.of(sparse.csr_matrix(move.sample)).toarray()
    answers = [_answers(*pair) for pair in ((before, aligned), (after.module, move.sample))]
    n_kept = int((move.source >= 0).sum())
    agreement, carried = float((answers[0] == answers[1]).mean()), float(np.mean([share for _, share in each]))
    return after, Moved(n_kept, len(first) - n_kept, state.n_genes - n_kept, carried, agreement)


def with_means_of(state: GinsengClassifierState, is_lacking: Bool[np.ndarray, " genes"]) -> GinsengClassifierState:
    """The same classifier for cells of which some genes are not known: their mean is in its biases, see `lacking`.

    These have names that no data have. `without_means_of` is the way back.

    Examples
    --------
    >>> network = AttentionClassifier(2, 2, 4, key=jr.key(0))
    >>> state = GinsengClassifierState(
    ...     params_of(network), ["CD3D", "LYZ"], ["T", "mono"], [0, 1], n_genes=2, n_classes=2, hidden_dim=4,
    ...     normalize=True, target_sum=1e4, dropout_rate=0.2, background=Background(np.ones(2), np.array([0.1, 0.9])),
    ... )
    >>> filled = with_means_of(state, np.array([True, False]))
    >>> filled.target_sum, filled.genes.tolist()
    (9000.0, ['CD3D (not in the data)', 'LYZ'])
    """
    if state.background is None:
        raise ValueError("The model does not know the means of its genes.")
    networks = members_of(lacking(state.module, state.background, is_lacking, _is_rest(state)))
    second_names = None if state.second_names is None else np.where(is_lacking, "", state.second_names)
    names = [f"{name}{_NOT_HERE}" if lacks else name for name, lacks in zip(state.genes, is_lacking, strict=True)]
    background = state.background.without(is_lacking)
    return _with_networks(state, networks, second_names=second_names, genes=names, background=background)


def without_means_of(
    tuned: GinsengClassifierState, before: GinsengClassifierState, is_lacking: Bool[np.ndarray, " genes"]
) -> GinsengClassifierState:
    """What has become of a classifier while some of its genes were not known, for cells that may have them.

    It answers as `tuned` for cells that lack those genes, whose mean then takes their place anew.

    Parameters
    ----------
    tuned : GinsengClassifierState
        What `with_means_of` gave, trained on.
    before : GinsengClassifierState
        What that was given.
    is_lacking : numpy.ndarray
        Which genes.

    Examples
    --------
    >>> network = AttentionClassifier(2, 2, 4, key=jr.key(0))
    >>> state = GinsengClassifierState(
    ...     params_of(network), ["CD3D", "LYZ"], ["T", "mono"], [0, 1], n_genes=2, n_classes=2, hidden_dim=4,
    ...     normalize=True, target_sum=1e4, dropout_rate=0.2, background=Background(np.ones(2), np.array([0.1, 0.9])),
    ... )
    >>> is_lacking = np.array([True, False])
    >>> again = without_means_of(with_means_of(state, is_lacking), state, is_lacking)
    >>> bool(np.allclose(again.params["features1"]["b"], state.params["features1"]["b"], atol=1e-6))
    True
    """
    means = 0.0 if before.background is None else before.background.expression
    filled = jnp.where(is_lacking, means, 0.0)
    layers = [network.features1 for network in tuned.networks]
    biases = [jnp.asarray(layer.bias) - layer.weight @ filled for layer in layers]
    networks = [
        eqx.tree_at(lambda n: n.features1.bias, network, bias).normalizing(target_sum=before.target_sum)
        for network, bias in zip(tuned.networks, biases, strict=True)
    ]
    of_before = {"genes": before.genes, "second_names": before.second_names, "background": before.background}
    return sealed(_with_networks(tuned, networks, calibration=tuned.calibration, **of_before))


def _is_rest(state: GinsengClassifierState) -> np.ndarray:
    return np.asarray(state.genes).astype(str) == OTHER_GENES


def _with_networks(
    state: GinsengClassifierState, networks: list[AttentionClassifier], **changes: Any
) -> GinsengClassifierState:
    params, *members = map(params_of, networks)
    return with_params(state, params, members, target_sum=networks[0].target_sum, **changes)


class _Move(NamedTuple):
    """Where each input of a network comes from (-1: it is new), and what else its genes' change brings about."""

    source: Int[np.ndarray, " new"]
    is_dropped: np.ndarray
    mean: Float[np.ndarray, " old"]  # added to the inputs of the old network
    sample: Float[np.ndarray, "cells new"]
    target_sum: float

    @classmethod
    def of(cls, state: GinsengClassifierState, found: GeneMap, genes: np.ndarray, sample: np.ndarray) -> "_Move":
        source = np.where(np.isin(np.arange(len(genes)), _firsts(found.positions)), found.positions, -1)
        rest = np.flatnonzero(genes == OTHER_GENES)
        has_rest = found.rest is not None and len(rest) == 1
        source[rest] = found.rest if has_rest else -1
        is_dropped = ~np.isin(np.arange(state.n_genes), source)
        zeros = np.zeros(state.n_genes, np.float32)
        expression, share = (zeros, zeros) if state.background is None else state.background
        network = state.networks[0]
        totals = np.maximum(sample.sum(axis=1), 1e-8)
        is_new = source < 0
        mean, target_sum = np.where(is_dropped, expression, 0).astype(np.float32), network.target_sum
        if has_rest:
            joining = sample[:, is_new].sum(axis=1) - share[is_dropped].sum() * totals
            now = sample[:, rest[0]]
            before, now = (
                np.log1p(target_sum * sums / totals) if network.normalize else sums
                for sums in (np.maximum(now + joining, 0), now)
            )
            mean[found.rest] = (before - now).mean()
        else:
            share_of_old = 1 - float(share[is_dropped].sum())
            share_of_new = 1 - float((sample[:, is_new].sum(axis=1) / totals).mean())
            target_sum *= max(share_of_old / max(share_of_new, 1e-3), LEAST_KEPT)
        return cls(source, is_dropped, mean, sample, target_sum)


def _firsts(positions: np.ndarray) -> np.ndarray:
    """Where each position, but -1, is first."""
    found, firsts = np.unique(positions, return_index=True)
    return firsts[found >= 0]


def _moved_network(network: AttentionClassifier, move: _Move, key: Array) -> tuple[Params, float]:
    """Weights of a network for the new genes, and the share of the squared ones that went along."""
    network = eqx.nn.inference_mode(network.normalizing(target_sum=move.target_sum))
    n_new, is_kept = len(move.source), move.source >= 0
    fresh = AttentionClassifier(n_new, network.n_classes, network.hidden_dim, key=key)
    of_cells = np.asarray(jax.vmap(network.normalized)(jnp.asarray(move.sample)))
    inputs = np.tile(move.mean, (len(of_cells), 1))
    inputs[:, move.source[is_kept]] += of_cells[:, is_kept]
    relu, h, gated = map(np.asarray, _activations(network, jnp.asarray(inputs)))
    layers = {name: (getattr(network, name), getattr(fresh, name)) for name in _LAYERS}
    weights = {name: np.asarray(old.weight) for name, (old, _) in layers.items()}
    biases = {name: np.asarray(old.bias) for name, (old, _) in layers.items()}
    drawn = {name: np.asarray(new.weight) for name, (_, new) in layers.items()}

    narrow = _places(move.source, relu.std(axis=0) * np.linalg.norm(weights["features2"], axis=0))
    wide = _places(move.source, gated.std(axis=0) * np.linalg.norm(weights["head"], axis=0))
    hidden, outputs = np.arange(network.hidden_dim), np.arange(network.n_classes)
    reading = dict(weights)
    for layer, units, answers in (("features2", narrow, relu), ("attn1", wide, h), ("head", wide, gated)):
        reading[layer], of_constants = _folded(weights[layer], units, answers)
        biases[layer] = biases[layer] + of_constants
    biases["features1"] = biases["features1"] + weights["features1"] @ move.mean

    params, carried = {}, 0.0
    for layer, rows, columns in (
        ("features1", narrow, move.source),
        ("features2", wide, narrow),
        ("attn1", hidden, wide),
        ("attn2", wide, hidden),
        ("head", outputs, wide),
    ):
        is_old = rows[:, None] >= 0
        old, with_folded = (np.where(columns >= 0, of[layer][rows][:, columns], 0) for of in (weights, reading))
        carried += float(np.square(old * is_old).sum())
        weight, bias = np.where(is_old, with_folded, drawn[layer]), np.where(rows >= 0, biases[layer][rows], 0)
        if layer == "features1":
            bias = np.where(rows >= 0, bias, -weight @ of_cells.mean(axis=0))  # as `centered` begins
        params[layer] = {"W": jnp.asarray(weight.T, jnp.float32), "b": jnp.asarray(bias, jnp.float32)}
    return params, carried / sum(float(np.square(weight).sum()) for weight in weights.values())


def _places(source: np.ndarray, effect: Float[np.ndarray, " old"]) -> Int[np.ndarray, " new"]:
    """Which old unit each place takes: that of its gene, or, by their effect, those that have lost theirs."""
    homeless = _absent(source, len(effect))
    homeless = homeless[np.argsort(-effect[homeless], kind="stable")]
    free, units = np.flatnonzero(source < 0), source.copy()
    units[free[: len(homeless)]] = homeless[: len(free)]
    return units


def _folded(
    weight: Float[np.ndarray, "out old"], units: Int[np.ndarray, " new"], answers: Float[np.ndarray, "cells old"]
) -> tuple[Float[np.ndarray, "out old"], Float[np.ndarray, " out"]]:
    """Weights, and what goes into the biases, of a layer that reads the units which have a place for the others too."""
    lost, kept = _absent(units, answers.shape[1]), units[units >= 0]
    if not len(lost):
        return weight, np.zeros(len(weight), np.float32)
    means = answers.mean(axis=0)
    off = (answers - means).astype(np.float64)
    covariance = off[:, kept].T @ off[:, kept]
    ridge = _RIDGE * np.trace(covariance) / len(kept) + 1e-8
    slopes = np.linalg.solve(covariance + ridge * np.eye(len(kept)), off[:, kept].T @ off[:, lost])
    folded = weight.copy()
    folded[:, kept] += weight[:, lost] @ slopes.T
    return folded, weight[:, lost] @ (means[lost] - means[kept] @ slopes)


def _absent(source: np.ndarray, n_old: int) -> np.ndarray:
    return np.setdiff1d(np.arange(n_old), source)


@eqx.filter_jit
def _activations(network: AttentionClassifier, inputs: Float[Array, "cells genes"]) -> tuple[Array, Array, Array]:
    """What the units of the layers are for normalised cells: after the first, the second, and the gate."""

    def of_cell(x: Float[Array, " genes"]) -> tuple[Array, Array, Array]:
        relu = jax.nn.relu(network.features1(x))
        h = network.features2(relu)
        return relu, h, h * jax.nn.sigmoid(network.attn2(jnp.tanh(network.attn1(h))))

    return jax.vmap(of_cell)(inputs)


def _answers(module: Any, counts: Float[np.ndarray, "cells genes"]) -> Int[np.ndarray, " cells"]:
    return np.asarray(
        eqx.filter_jit(logits_of)(eqx.nn.inference_mode(module), jnp.asarray(counts), None).argmax(axis=1)
    )
