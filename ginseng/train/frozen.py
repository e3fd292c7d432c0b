"""Parts of a network that are not trained: which they are, and their answers, computed once for all epochs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from ginseng.data.dataset import GinsengDataset
from ginseng.data.reading import HeldCounts
from ginseng.model.attention import PARTS, AttentionClassifier, keys_of_stages, part_of
from ginseng.train.feed import Feed
from ginseng.train.recipe import Recipe, Sampling
from ginseng.train.step import answers
from ginseng.utils.devices import Devices
from ginseng.utils.memory import SMALLEST_BUFFER, bytes_of, free_memory
from ginseng.utils.messages import unknown_name
from ginseng.utils.names import GeneNames

_TRUNK = "trunk"
_ENCODER, _GATE = PARTS[:2], PARTS[2:4]


def trainable_leaves(network: eqx.Module, freeze: Any = ()) -> PyTree[bool]:
    """Which leaves of a network are to be trained, as a filter spec, where others are frozen.

    Parameters
    ----------
    network : AttentionClassifier or Ensemble
        The network.
    freeze : str, sequence of str, or PyTree of bool or callable
        Names of parts ("features1", "features2", "attn1", "attn2", "head"; "trunk" is all but the head), or a filter
        spec over the network, as for `equinox.partition`: True where a leaf is frozen.

    Raises
    ------
    ValueError
        If there is no such part, the spec does not fit the network, or nothing is left to train.

    Examples
    --------
    >>> network = AttentionClassifier(n_genes=20, n_classes=3, hidden_dim=8, key=jax.random.key(0))
    >>> trainable = trainable_leaves(network, "trunk")
    >>> trainable.features1.weight, trainable.head.weight
    (False, True)
    """
    spec = _spec_of(network, freeze)
    try:
        trainable = _selected(network, spec, inverse=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`freeze` must be names of parts ({', '.join(PARTS)}, {_TRUNK}) or a filter spec over the network, True "
            f"where a leaf is frozen: {error}"
        ) from error
    if not any(jax.tree.leaves(trainable)):
        raise ValueError("`freeze` leaves nothing to train: every part of the network is frozen. Leave one out.")
    return trainable


def frozen_parts(network: eqx.Module, trainable: PyTree[bool | Callable]) -> tuple[str, ...]:
    """Names of the parts of a network that have no leaf to train.

    Examples
    --------
    >>> network = AttentionClassifier(n_genes=20, n_classes=3, hidden_dim=8, key=jax.random.key(0))
    >>> frozen_parts(network, trainable_leaves(network, ["attn1", "features1"]))
    ('features1', 'attn1')
    """
    found = jax.tree.leaves_with_path(_selected(network, trainable))
    trained = {part_of(path) for path, is_trained in found if is_trained}
    return tuple(part for part in PARTS if part not in trained)


def without_dropout_of(network: Any, parts: Sequence[str]) -> Any:
    """The same network without the dropout that feeds some of its parts, so that a frozen one always says the same.

    Examples
    --------
    >>> network = AttentionClassifier(n_genes=20, n_classes=3, hidden_dim=8, key=jax.random.key(0))
    >>> without = without_dropout_of(network, ["features1"])
    >>> without.input_dropout.inference, without.gate_dropout.inference
    (True, False)
    """
    return jax.tree.map_with_path(
        lambda path, leaf: True if part_of(path) in parts and path[-1].name == "inference" else leaf, network
    )


class Trunk(eqx.Module):
    """The beginning of a network, in inference: what does not change while only the rest is trained.

    Attributes
    ----------
    network : AttentionClassifier
        Without what comes after.
    gates : bool
        Whether the attention belongs to it: its answer is ``attention * h``, the input of the head, or ``h``.
    """

    network: AttentionClassifier
    gates: bool = eqx.field(static=True)

    def __call__(self, x: Num[Array, " genes"]) -> Float[Array, " genes"]:
        """Return what the remainder takes, of one cell."""
        h = self.network.encoded(x)
        return self.network.attention(h) * h if self.gates else h


class Remainder(eqx.Module):
    """What comes after a trunk: a module of one cell, as which it takes what the trunk gives.

    Attributes
    ----------
    network : AttentionClassifier
        Without the trunk.
    gates : bool
        Whether the attention belongs to the trunk.
    """

    network: AttentionClassifier
    gates: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, " genes"], *, key: PRNGKeyArray | None = None) -> Float[Array, " classes"]:
        """Return the logits of one cell, with the dropout that the whole network would have for the key."""
        if self.gates:
            return self.network.head(x)
        _, gate_key = keys_of_stages(key)
        return self.network.head(self.network.attention(x, key=gate_key) * x)


def split_at_trunk(
    network: eqx.Module, trainable: PyTree[bool | Callable] = eqx.is_inexact_array
) -> tuple[Trunk, Remainder] | None:
    """Split a network after the longest beginning of which no leaf is trained, if there is one.

    Frozen parts of the remainder have no dropout either.

    Examples
    --------
    >>> network = AttentionClassifier(n_genes=20, n_classes=3, hidden_dim=8, key=jax.random.key(0))
    >>> trunk, remainder = split_at_trunk(network, trainable_leaves(network, "trunk"))
    >>> cell = jax.numpy.ones(20)
    >>> bool(jax.numpy.allclose(remainder(trunk(cell)), eqx.nn.inference_mode(network)(cell)))
    True
    """
    frozen = frozen_parts(network, trainable)
    if not isinstance(network, AttentionClassifier) or not set(_ENCODER) <= set(frozen):
        return None
    gates = set(_GATE) <= set(frozen)
    parts, rest = _parts_of(gates)
    steady: AttentionClassifier = without_dropout_of(network, frozen)
    return Trunk(_with_arrays_of(steady, parts), gates), Remainder(_with_arrays_of(steady, rest), gates)


@dataclass(frozen=True)
class Cached:
    """What is trained in place of a network whose trunk is frozen.

    Attributes
    ----------
    network : AttentionClassifier
        The network as it was.
    module : Remainder
        What is trained, with a `Trainer`.
    trainable : PyTree of bool
        Which leaves of it are.
    dataset, old : GinsengDataset
        The training and the test cells with the answers of the trunk for counts, which are held in memory.
    teacher : Remainder, optional
        What answers for the teacher.
    is_lacking : numpy.ndarray
        Which genes of the network the data lack.
    """

    network: AttentionClassifier
    module: Remainder
    trainable: Remainder
    dataset: GinsengDataset
    old: GinsengDataset | None
    teacher: Remainder | None
    is_lacking: np.ndarray

    def whole(self, trained: Remainder) -> AttentionClassifier:
        """The network with what was trained of it."""
        return eqx.combine(eqx.filter(trained.network, eqx.is_array), self.network)

    def remainder_of(self, network: AttentionClassifier) -> Remainder:
        """What is trained, of another network with the same trunk."""
        parts, rest = _parts_of(self.module.gates)
        kept, given = (
            jax.tree.leaves(eqx.filter(_with_arrays_of(one, parts), eqx.is_array)) for one in (self.network, network)
        )
        if not all(map(np.array_equal, kept, given)):
            raise ValueError("The trunk of the network is frozen: make another trainer to start from other weights.")
        arrays = eqx.filter(_with_arrays_of(network, rest), eqx.is_array)
        return Remainder(eqx.combine(arrays, self.module.network), self.module.gates)


def cached(
    network: eqx.Module,
    dataset: GinsengDataset,
    recipe: Recipe,
    sampling: Sampling,
    *,
    trainable: PyTree[bool | Callable] = eqx.is_inexact_array,
    genes: Sequence[str] | GeneNames | None = None,
    devices: int | Sequence[Any] | None = None,
    old: GinsengDataset | None = None,
    teacher: eqx.Module | None = None,
) -> Cached | None:
    """Compute once what a frozen trunk says of each cell, so that only what comes after it is left to each epoch.

    Parameters
    ----------
    network, dataset, recipe, sampling, trainable, genes, devices, old
        As for `Trainer`.
    teacher : AttentionClassifier, optional
        As for `Trainer`; it must have the trunk of the network.

    Returns
    -------
    Cached or None
        None where every step has to go through the whole network: it is an ensemble, its first two parts are trained,
        the recipe augments counts, or the answers do not fit in the memory of `sampling` (by default half of what is
        free). Train it `without_dropout_of` its frozen parts then.

    Examples
    --------
    >>> found = cached(network, dataset, recipe, sampling, trainable=trainable)  # doctest: +SKIP
    >>> trainer = Trainer(found.module, found.dataset, recipe, sampling, trainable=found.trainable)  # doctest: +SKIP
    >>> tuned = found.whole(trainer.fit(epochs=20))  # doctest: +SKIP
    """
    parts = split_at_trunk(network, trainable) if recipe.augment is None else None
    if parts is None or not isinstance(network, AttentionClassifier):
        return None
    trunk, remainder = parts
    if old is not None and genes is None:
        genes = GeneNames(dataset.gene_names, dataset.second_names)
    over = Devices(devices)
    data = [one for one in (dataset, old) if one is not None]
    budget = over.least(free_memory() // 2 if sampling.memory is None else bytes_of(sampling.memory)) // len(data)
    found = [with_answers(trunk, one, sampling, budget, over, genes) for one in data]
    answered = [one for one, _ in found if one is not None]
    if len(answered) < len(data):
        return None
    spec = Remainder(_selected(network, trainable), remainder.gates)
    rest = _parts_of(remainder.gates)[1]
    told = (
        Remainder(_with_arrays_of(teacher, rest), remainder.gates) if isinstance(teacher, AttentionClassifier) else None
    )
    is_lacking = np.logical_and.reduce([lacks for _, lacks in found])
    return Cached(network, remainder, spec, answered[0], answered[1] if old is not None else None, told, is_lacking)


def with_answers(
    trunk: Trunk,
    dataset: GinsengDataset,
    sampling: Sampling,
    budget: int,
    over: Devices,
    genes: Sequence[str] | GeneNames | None = None,
) -> tuple[GinsengDataset | None, np.ndarray]:
    """The training and the test cells of a dataset, with the answers of a trunk for counts, if these fit in memory.

    Parameters
    ----------
    trunk : Trunk
        What answers.
    dataset, sampling, genes
        As for `Trainer`.
    budget : int
        Bytes that they may take.
    over : Devices
        Where they are computed.

    Returns
    -------
    GinsengDataset or None
        Its cells are those of the training part, then those of the test part, each in the order of the dataset. It
        cannot be split anew on disk.
    is_lacking : numpy.ndarray
        Which genes of the network the dataset lacks.
    """
    split = {"train": dataset.train_idx, "test": dataset.test_idx}
    parts = {part: cells for part, cells in split.items() if cells is not None} or {"all": dataset.cells}
    cells = np.concatenate(list(parts.values()))
    n_features = trunk.network.n_genes
    n_bytes = len(cells) * n_features * np.dtype(np.float32).itemsize
    own = dataset.changed()  # its counts, if they are read here, go with it
    feed = Feed(own, over, sampling, genes=genes)
    if n_bytes > budget:
        return None, feed.is_lacking
    memory = min(feed.budget(), max(budget - n_bytes, SMALLEST_BUFFER))
    replicated = over.replicate(trunk)
    found, n_found = np.empty((len(cells), n_features), np.float32), 0
    for part in parts:
        for slab, _ in feed.in_order(part, memory, nonnegative=trunk.network.normalize):
            features, _, mask = map(np.asarray, answers(replicated, slab, over.replicated))
            here = features[mask]
            found[n_found : n_found + len(here)] = here
            n_found += len(here)
    ends = np.cumsum([len(of_part) for of_part in parts.values()])
    places = dict(zip(parts, np.split(np.arange(len(cells)), ends[:-1]), strict=True))
    names = dataset.gene_names if genes is None else genes.first if isinstance(genes, GeneNames) else genes
    answered = dataset.changed(
        n_cells=len(cells),
        cells=np.arange(len(cells)),
        n_genes=n_features,
        gene_names=list(map(str, names)),
        second_names=None,
        labels=dataset.labels[cells],
        groups=None if dataset.groups is None else dataset.groups[cells],
        train_idx=places.get("train"),
        test_idx=places.get("test"),
        _stored=HeldCounts(found),
        _counts=found,
    )
    return answered, feed.is_lacking


def _parts_of(gates: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the parts of the trunk, and of the remainder."""
    n_parts = len(_ENCODER) + len(_GATE) * gates
    return PARTS[:n_parts], PARTS[n_parts:]


def _spec_of(network: eqx.Module, freeze: Any) -> PyTree[bool | Callable]:
    """Filter spec of what is frozen; names become one."""
    names = (freeze,) if isinstance(freeze, str) else freeze
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        return freeze
    for name in names:
        if name not in (*PARTS, _TRUNK):
            raise unknown_name("part", name, "the network", (*PARTS, _TRUNK))
    frozen = {part for name in names for part in (PARTS[:-1] if name == _TRUNK else (name,))}
    return jax.tree.map_with_path(lambda path, _: part_of(path) in frozen, network)


def _selected(network: eqx.Module, spec: PyTree[bool | Callable], *, inverse: bool = False) -> PyTree[bool]:
    """Which leaves of a network a filter spec, or its inverse, selects of those that can be trained."""
    kept = eqx.filter(eqx.filter(network, eqx.is_inexact_array), spec, inverse=inverse)
    return jax.tree.map(eqx.is_inexact_array, kept, is_leaf=lambda leaf: leaf is None)


def _with_arrays_of(network: AttentionClassifier, parts: Sequence[str]) -> AttentionClassifier:
    """A network that lacks the weights of all other parts."""
    return eqx.filter(
        network, jax.tree.map_with_path(lambda path, leaf: part_of(path) in parts or not eqx.is_array(leaf), network)
    )
