"""What a dataset feeds to a model: batches for several steps at a time, of one shape, on the devices."""

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import sparse

from ginseng.data.dataset import GinsengDataset
from ginseng.data.sampling import Balance, balance_of, balanced_weights, n_streamed
from ginseng.train.devices import Devices
from ginseng.train.step import Slab
from ginseng.utils.ahead import read_ahead
from ginseng.utils.digest import digest
from ginseng.utils.genes import LEAST_OVERLAP, GeneMap
from ginseng.utils.memory import bytes_of
from ginseng.utils.messages import shorten, unknown_name

ClassWeights = str | Mapping[str, float]

_STEPS_PER_CALL = 16  # few enough that a progress bar moves
_BYTES_PER_CALL = 2**24


class Feed:
    """Cells of a dataset, with the genes and the labels of a model.

    Parameters
    ----------
    dataset : GinsengDataset
        Where the cells are.
    devices : Devices
        Where they go.
    batch_size : int
        Cells per step, over all processes.
    balance : bool or str
        How to balance the labels of an epoch, see `GinsengDataset.stream`.
    alpha : float
        How much "resample" balances.
    memory : int or str, optional
        Bytes that counts may take.
    genes, labels : sequence of str, optional
        Inputs and outputs of the model; by default those of the dataset.

    Attributes
    ----------
    n_genes : int
        Inputs of the model.
    labels : list of str
        Its outputs.
    n_cells_per_slab : int
        Cells of the steps of one call.
    memory : int or None
        Bytes that counts may take.
    nonnegative : bool
        Whether negative values are refused.

    Raises
    ------
    ValueError
        If there is no gene in common, or a label of the dataset is not among `labels`.
    """

    def __init__(
        self,
        dataset: GinsengDataset,
        devices: Devices,
        *,
        batch_size: int,
        balance: bool | str,
        alpha: float,
        memory: int | str | None,
        genes: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
    ):
        devices.require_equal_shares(batch_size)
        self._dataset, self._devices = dataset, devices
        self._batch_size, self._alpha = batch_size, alpha
        self._balance: Balance = balance_of(balance)
        self.memory = memory if memory is None else bytes_of(memory)
        self.n_genes = dataset.n_genes if genes is None else len(genes)
        self.labels = list(dataset.label_names if labels is None else labels)
        if unknown := sorted(set(dataset.label_names) - set(self.labels)):
            raise ValueError(f"The dataset has labels that the model has no output for: {shorten(unknown)}.")
        self._codes = np.array([self.labels.index(label) for label in dataset.label_names], dtype=np.int32)
        self._gene_map = None if genes is None else _gene_map(dataset.gene_names, list(genes))
        self._dtype = dataset.dtype if self._gene_map is None else np.dtype(np.float32)
        self.nonnegative = False
        width = devices.padded(batch_size)
        bytes_per_step = width * self.n_genes * self._dtype.itemsize
        self._shape = (max(1, min(_STEPS_PER_CALL, _BYTES_PER_CALL // bytes_per_step)), width, self.n_genes)
        self.n_cells_per_slab = self._shape[0] * batch_size

    @property
    def train_labels(self) -> np.ndarray:
        """Labels of the training cells, as the dataset numbers them."""
        cells = self._dataset.train_idx
        return self._dataset.labels if cells is None else self._dataset.labels[cells]

    @property
    def n_train(self) -> int:
        """Cells of a training epoch."""
        return n_streamed(self.train_labels, self._balance)

    @property
    def n_test(self) -> int:
        """Cells held out."""
        return 0 if self._dataset.test_idx is None else len(self._dataset.test_idx)

    @property
    def n_steps(self) -> int:
        """Steps of a training epoch."""
        return -(-self.n_train // self._batch_size)

    def settle_memory(self) -> int:
        """Hold on to one budget, the same in all processes, since the order of the cells depends on it."""
        self.memory = self._devices.least(self._dataset.budget(self.memory))
        return self.memory

    def loss_weights(self, class_weights: ClassWeights | None) -> np.ndarray | None:
        """Factor of the loss of the cells of each label of the model; "balanced" has a mean of 1 over an epoch."""
        if class_weights is None:
            return None
        if not isinstance(class_weights, Mapping):
            if not isinstance(class_weights, str) or class_weights != "balanced":
                raise ValueError(f"`class_weights` must be 'balanced' or a dict, but got {class_weights!r}.")
            labels, weights = balanced_weights(self.train_labels, self._balance, self._alpha)
            class_weights = dict(zip([self._dataset.label_names[label] for label in labels], weights, strict=True))
        for name, weight in class_weights.items():
            if name not in self.labels:
                raise unknown_name("label", name, "the model's outputs", self.labels)
            if not 0 <= weight < np.inf:
                raise ValueError(f"`class_weights` must be finite and not negative, but got {weight} for '{name}'.")
        return np.array([class_weights.get(name, 1.0) for name in self.labels], np.float32)

    def description(self) -> dict[str, Any]:
        """What tells one feed from another: how cells are drawn, and short names for the cells and the genes."""
        dataset = self._dataset
        split = () if dataset.train_idx is None else (dataset.train_idx, dataset.test_idx)
        return {
            "batch_size": self._batch_size,
            "balance_train": [self._balance, self._alpha],
            "cells": digest(dataset.labels, dataset.bytes_per_cell, dataset.sample(256), *split),
            "genes": digest(np.asarray(dataset.gene_names)),
        }

    def slab_like(self) -> Slab:
        """Give the shapes and types of a slab."""
        x, y, mask = (jax.ShapeDtypeStruct(self._shape[:n], t) for n, t in ((3, self._dtype), (2, np.int32), (2, bool)))
        return Slab(x, y, mask, np.zeros(self._shape[0], np.float32), np.int32(0))  # pyright: ignore[reportArgumentType]

    def train(self, rng: np.random.Generator, rates: np.ndarray, n_skipped: int = 0) -> Generator[tuple[Slab, int]]:
        """Give a training epoch as slabs, each with its number of cells; a thread prepares the next one.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the order.
        rates : numpy.ndarray
            Learning rate of each step.
        n_skipped : int
            Slabs to leave out at the beginning.
        """
        split = "all" if self._dataset.train_idx is None else "train"
        batches = self._dataset.stream(
            self._batch_size,
            split,
            self._balance,
            rng=rng,
            memory=self.memory,
            alpha=self._alpha,
            dtype=None,
            share=self._devices.share,
        )
        return read_ahead(self._slabs(batches, self.n_train, rates, n_skipped))

    def test(self) -> Generator[tuple[Slab, int]]:
        """Give the held-out cells as slabs."""
        batches = self._dataset.stream(
            self._batch_size, "test", shuffle=False, memory=self.memory, dtype=None, share=self._devices.share
        )
        return read_ahead(self._slabs(batches, self.n_test, np.zeros(-(-self.n_test // self._batch_size)), 0))

    def _slabs(
        self, batches: Iterator[tuple[np.ndarray, np.ndarray]], n_cells: int, rates: np.ndarray, n_skipped: int
    ) -> Iterator[tuple[Slab, int]]:
        n_steps = self._shape[0]
        for nth, first in enumerate(range(0, n_cells, self.n_cells_per_slab)):
            x, y, mask = (np.zeros(self._shape[:n], t) for n, t in ((3, self._dtype), (2, np.int32), (2, bool)))
            for step, (counts, labels) in enumerate(itertools.islice(batches, n_steps)):
                filled = step, slice(len(labels))
                x[filled], y[filled], mask[filled] = self._of_model(counts), self._codes[labels], True
            if nth >= n_skipped:
                here = rates[nth * n_steps : (nth + 1) * n_steps].astype(np.float32)
                padded = np.pad(here, (0, n_steps - len(here)))
                placed = [self._devices.place_batches(array) for array in (x, y, mask)]
                slab = Slab(placed[0], placed[1], placed[2], padded, np.int32(len(here)))
                yield slab, min(self.n_cells_per_slab, n_cells - first)

    def _of_model(self, counts: np.ndarray) -> np.ndarray:
        if self.nonnegative:
            require_nonnegative(counts, self._dataset)
        return counts if self._gene_map is None else self._gene_map.of(sparse.csr_matrix(counts)).toarray()


def require_nonnegative(counts: np.ndarray, dataset: GinsengDataset) -> None:
    """Raise a ValueError if counts of a dataset cannot be normalised."""
    if counts.dtype.kind != "u" and counts.min() < 0:
        raise ValueError(
            f"{dataset.path} holds negative values, which cannot be normalised as counts: make it from raw counts, or "
            "train with normalize=False."
        )


def _gene_map(dataset_genes: list[str], genes: list[str]) -> GeneMap | None:
    """Which genes of the model those of a dataset are; None if they are the same."""
    if dataset_genes == genes:
        return None
    gene_map = GeneMap.matching(np.asarray(dataset_genes), np.asarray(genes))
    gene_map.require(LEAST_OVERLAP, dataset_genes, genes, "make the dataset from data that have the model's genes")
    gene_map.warn_of_differences()
    return gene_map
