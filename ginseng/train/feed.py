"""What a dataset feeds to a model: batches for several steps at a time, of one shape, on the devices."""

import itertools
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import sparse

from ginseng.data.dataset import GinsengDataset
from ginseng.data.sampling import Balance, balance_of, balanced_weights, n_streamed
from ginseng.train.devices import Devices
from ginseng.train.recipe import ClassWeights, Sampling
from ginseng.train.step import Slab
from ginseng.utils.ahead import read_ahead
from ginseng.utils.digest import digest
from ginseng.utils.genes import gene_selector, match_genes
from ginseng.utils.memory import bytes_of
from ginseng.utils.messages import shorten, unknown_name

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
    sampling : Sampling
        Which cells, and how many in a step.
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

    Raises
    ------
    ValueError
        If there is no gene in common, or a label of the dataset is not among `labels`.
    """

    def __init__(
        self,
        dataset: GinsengDataset,
        devices: Devices,
        sampling: Sampling,
        *,
        genes: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
    ):
        self._dataset, self._devices, self._sampling = dataset, devices, sampling
        self._balance: Balance = balance_of(sampling.balance)
        self._batch_size = int(sampling.batch_size)
        devices.require_equal_shares(self._batch_size)
        self.n_genes = dataset.n_genes if genes is None else len(genes)
        self.labels = list(dataset.label_names if labels is None else labels)
        if unknown := sorted(set(dataset.label_names) - set(self.labels)):
            raise ValueError(f"The dataset has labels that the model has no output for: {shorten(unknown)}.")
        self._codes = np.array([self.labels.index(label) for label in dataset.label_names], dtype=np.int32)
        self._selector = None if genes is None else _selector(dataset.gene_names, list(genes))
        self._dtype = dataset.dtype if self._selector is None else np.dtype(np.float32)
        width = devices.padded(self._batch_size)
        bytes_per_step = width * self.n_genes * self._dtype.itemsize
        self._shape = (max(1, min(_STEPS_PER_CALL, _BYTES_PER_CALL // bytes_per_step)), width, self.n_genes)
        self.n_cells_per_slab = self._shape[0] * self._batch_size

    @property
    def _train_codes(self) -> np.ndarray:
        """Codes that the dataset has for the labels of the training cells."""
        cells = self._dataset.train_idx
        return self._dataset.labels if cells is None else self._dataset.labels[cells]

    @property
    def n_train(self) -> int:
        """Cells of a training epoch."""
        return n_streamed(self._train_codes, self._balance)

    @property
    def n_test(self) -> int:
        """Cells held out."""
        return 0 if self._dataset.test_idx is None else len(self._dataset.test_idx)

    @property
    def n_steps(self) -> int:
        """Steps of a training epoch."""
        return -(-self.n_train // self._batch_size)

    def budget(self) -> int:
        """Bytes that counts may take; the same in all processes, since the order of the cells depends on it."""
        memory = self._sampling.memory
        return self._devices.least(self._dataset.budget(None if memory is None else bytes_of(memory)))

    def loss_weights(self, class_weights: ClassWeights | None) -> np.ndarray | None:
        """Factor of the loss of the cells of each label of the model; "balanced" has a mean of 1 over an epoch."""
        if class_weights is None:
            return None
        if not isinstance(class_weights, Mapping):
            codes, weights = balanced_weights(self._train_codes, self._balance, self._sampling.alpha)
            class_weights = dict(zip([self._dataset.label_names[code] for code in codes], weights, strict=True))
        for name in class_weights:
            if name not in self.labels:
                raise unknown_name("label", name, "the model's outputs", self.labels)
        return np.array([class_weights.get(name, 1.0) for name in self.labels], np.float32)

    def description(self) -> dict[str, Any]:
        """What tells one feed from another: how cells are drawn, and short names for the cells and the genes."""
        dataset = self._dataset
        split = () if dataset.train_idx is None else (dataset.train_idx, dataset.test_idx)
        return {
            "batch_size": self._batch_size,
            "balance_train": [self._balance, self._sampling.alpha],
            "cells": digest(dataset.labels, dataset.bytes_per_cell, dataset.sample(256), *split),
            "genes": digest(np.asarray(dataset.gene_names)),
        }

    def slab_like(self) -> Slab:
        """Give the shapes and types of a slab."""
        x, y, mask = (jax.ShapeDtypeStruct(self._shape[:n], t) for n, t in ((3, self._dtype), (2, np.int32), (2, bool)))
        return Slab(x, y, mask, np.zeros(self._shape[0], np.float32), np.int32(0))  # pyright: ignore[reportArgumentType]

    def train(
        self, rng: np.random.Generator, rates: np.ndarray, memory: int, *, n_skipped: int = 0, nonnegative: bool = False
    ) -> Generator[tuple[Slab, int]]:
        """Give a training epoch as slabs, each with its number of cells; a thread prepares the next one.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the order.
        rates : numpy.ndarray
            Learning rate of each step.
        memory : int
            Bytes that counts may take.
        n_skipped : int
            Slabs to leave out at the beginning.
        nonnegative : bool
            Refuse negative values.
        """
        split = "all" if self._dataset.train_idx is None else "train"
        batches = self._dataset.stream(
            self._batch_size,
            split,
            self._balance,
            rng=rng,
            memory=memory,
            alpha=self._sampling.alpha,
            dtype=None,
            share=self._devices.share,
        )
        return read_ahead(self._slabs(batches, self.n_train, rates, n_skipped, nonnegative))

    def test(self, memory: int, *, nonnegative: bool = False) -> Generator[tuple[Slab, int]]:
        """Give the held-out cells as slabs."""
        batches = self._dataset.stream(
            self._batch_size, "test", shuffle=False, memory=memory, dtype=None, share=self._devices.share
        )
        rates = np.zeros(-(-self.n_test // self._batch_size))
        return read_ahead(self._slabs(batches, self.n_test, rates, 0, nonnegative))

    def _slabs(
        self,
        batches: Iterator[tuple[np.ndarray, np.ndarray]],
        n_cells: int,
        rates: np.ndarray,
        n_skipped: int,
        nonnegative: bool,
    ) -> Iterator[tuple[Slab, int]]:
        n_steps = self._shape[0]
        for nth, first in enumerate(range(0, n_cells, self.n_cells_per_slab)):
            x, y, mask = (np.zeros(self._shape[:n], t) for n, t in ((3, self._dtype), (2, np.int32), (2, bool)))
            for step, (counts, codes) in enumerate(itertools.islice(batches, n_steps)):
                filled = step, slice(len(codes))
                if nonnegative:
                    require_nonnegative(counts, self._dataset)
                x[filled], y[filled], mask[filled] = self._of_model(counts), self._codes[codes], True
            if nth >= n_skipped:
                here = rates[nth * n_steps : (nth + 1) * n_steps].astype(np.float32)
                padded = np.pad(here, (0, n_steps - len(here)))
                placed = [self._devices.place_batches(array) for array in (x, y, mask)]
                slab = Slab(placed[0], placed[1], placed[2], padded, np.int32(len(here)))
                yield slab, min(self.n_cells_per_slab, n_cells - first)

    def _of_model(self, counts: np.ndarray) -> np.ndarray:
        return counts if self._selector is None else counts.astype(np.float32) @ self._selector


def require_nonnegative(counts: np.ndarray, dataset: GinsengDataset) -> None:
    """Raise a ValueError if counts of a dataset cannot be normalised."""
    if counts.dtype.kind != "u" and counts.min() < 0:
        raise ValueError(
            f"{dataset.path} holds negative values, which cannot be normalised as counts: make it from raw counts, or "
            "train with normalize=False."
        )


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
            stacklevel=6,
        )
    return gene_selector(positions, len(genes))
