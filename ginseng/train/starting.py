"""What training starts from: classifiers that are drawn, or those of a state with an output for each label."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from scipy import sparse

from ginseng.data.dataset import GinsengDataset
from ginseng.data.sampling import mixes_groups
from ginseng.model.attention import AttentionClassifier
from ginseng.model.ensemble import Ensemble, joined
from ginseng.model.instance import GinsengClassifier
from ginseng.model.relabelling import with_labels, with_silent_labels
from ginseng.model.state import GinsengClassifierState
from ginseng.train.feed import gene_map_of, require_nonnegative
from ginseng.train.settings import GinsengClassifierTrainerSettings
from ginseng.utils.messages import shorten, warn
from ginseng.utils.names import GeneNames

_BETWEEN_MEMBERS = 1_000_003  # seeds: neighbouring ones, as of runs that are compared, share no member
N_MEAN = 1024  # cells that are enough for the mean of each gene


def settings_for(
    state: GinsengClassifierState | None, settings: GinsengClassifierTrainerSettings
) -> GinsengClassifierTrainerSettings:
    """Settings, checked anew, with those of the network of a state."""
    names = ("hidden_dim", "normalize", "target_sum", "dropout_rate")
    if state is None:
        return dataclasses.replace(settings)
    kept = {name: getattr(state, name) for name in names}
    return dataclasses.replace(settings, center=False, members=1 + len(state.members), **kept)


def split_of(dataset: GinsengDataset, settings: GinsengClassifierTrainerSettings) -> tuple[np.ndarray, np.ndarray]:
    """Training and test cells of a dataset: as it is split, or drawn as the settings say."""
    if dataset.train_idx is None or dataset.test_idx is None:
        return dataset.draw_split(**settings.split())
    if settings.group_level and mixes_groups(dataset.groups, dataset.train_idx, dataset.test_idx):
        warn(
            f"{dataset.path} has been split before, with cells of a group on both sides; for whole groups call "
            "dataset.make_split(fraction, stratify_group=True)."
        )
    return dataset.train_idx, dataset.test_idx


def without_test(dataset: GinsengDataset) -> GinsengDataset:
    """The training cells of a dataset alone."""
    train = dataset.cells if dataset.train_idx is None else dataset.train_idx
    return dataset.divided(train, train[:0])


def labels_without_cells(labels: Sequence[str], *data: GinsengDataset | None) -> list[str]:
    """Which labels no training cell has."""
    present = set()
    for dataset in data:
        if dataset is not None:
            cells = dataset.cells if dataset.train_idx is None else dataset.train_idx
            present |= {dataset.label_names[code] for code in np.unique(dataset.labels[cells])}
    return [label for label in labels if label not in present]


def drawn(n_genes: int, n_classes: int, settings: GinsengClassifierTrainerSettings) -> list[GinsengClassifier]:
    """Draw as many classifiers as are to be trained."""
    seeds = [(settings.seed + _BETWEEN_MEMBERS * nth) % 2**32 for nth in range(settings.members)]
    sizes = n_genes, n_classes, settings.hidden_dim
    options = settings.dropout_rate, settings.normalize, settings.target_sum
    return [GinsengClassifier(*sizes, *options, seed) for seed in seeds]


def sample_of(dataset: GinsengDataset, cells: np.ndarray, settings: GinsengClassifierTrainerSettings) -> np.ndarray:
    """Counts of enough of the cells for the mean of each gene."""
    sample = dataset.sample(N_MEAN, cells)
    if not sample.any():
        raise ValueError(f"No training cell of {dataset.path} has a count of any gene: there is nothing to train on.")
    if settings.normalize:
        require_nonnegative(sample, dataset)
    return sample


def with_labels_of(state: GinsengClassifierState, dataset: GinsengDataset) -> GinsengClassifierState:
    """A classifier with an output for each label of a dataset, new ones begun from what its training cells look like.

    One that no training cell has says nothing, of which a warning tells.
    """
    cells = dataset.cells if dataset.train_idx is None else np.sort(dataset.train_idx)
    gene_map = gene_map_of(dataset, GeneNames(state.genes, state.second_names), silent=True)
    counts, unknown = {}, []
    for code, name in enumerate(dataset.label_names):
        if name in state.output_labels:
            continue
        of_type = cells[dataset.labels[cells] == code]
        if not len(of_type):
            unknown.append(name)
            continue
        sample = dataset.sample(N_MEAN, of_type)
        counts[name] = sample if gene_map is None else gene_map.of(sparse.csr_matrix(sample)).toarray()
    if unknown:
        warn(
            f"The model does not know {shorten(unknown)}, and no training cell of {dataset.path} has such a label: no "
            "cell will be given it. Train on some, or leave it out."
        )
    state = with_labels(state, list(counts), counts) if counts else state
    return with_silent_labels(state, unknown) if unknown else state


def network_and_spec(
    networks: Sequence[AttentionClassifier], trainable: Any, state: GinsengClassifierState | None
) -> tuple[Any, Any]:
    """The networks as one, and which leaves of it to train, by a filter spec over it, or over the network of a state.

    That one may have fewer classes.
    """
    spec, model = trainable.stacked if isinstance(trainable, Ensemble) else trainable, joined(networks)
    if not isinstance(spec, AttentionClassifier):
        return model, spec
    if state is not None and spec.n_classes != networks[0].n_classes:
        per_leaf = jax.tree.broadcast(spec, state.networks[0])
        spec = jax.tree.unflatten(jax.tree.structure(networks[0]), jax.tree.leaves(per_leaf))
    return model, eqx.tree_at(lambda ensemble: ensemble.stacked, model, spec) if isinstance(model, Ensemble) else spec
