"""What a dataset feeds to a model: batches for several steps at a time, of one shape, on the devices."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import sparse

from ginseng.data.dataset import GinsengDataset
from ginseng.data.sampling import Balance, balance_of, balanced_weights, n_streamed
from ginseng.data.slabs import DenseSlab, Rows, SlabShape, dense_slabs
from ginseng.train.recipe import ClassWeights, Sampling
from ginseng.train.step import Slab
from ginseng.utils.ahead import read_ahead
from ginseng.utils.devices import Devices
from ginseng.utils.digest import digest
from ginseng.utils.genes import GeneMap, least_genes
from ginseng.utils.memory import bytes_of
from ginseng.utils.messages import shorten, unknown_name
from ginseng.utils.names import GeneNames


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
        Inputs and outputs of the model; by default those of the dataset. Genes may have other names, see `GeneNames`.

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
        genes: Sequence[str] | GeneNames | None = None,
        labels: Sequence[str] | None = None,
    ):
        self._dataset, self._devices, self._sampling = dataset, devices, sampling
        self._balance: Balance = balance_of(sampling.balance)
        self._batch_size = int(sampling.batch_size)
        devices.require_equal_shares(self._batch_size)
        of_model = genes if genes is None or isinstance(genes, GeneNames) else GeneNames(genes)
        self.n_genes = dataset.n_genes if of_model is None else len(of_model.first)
        self.labels = list(dataset.label_names if labels is None else labels)
        if unknown := sorted(set(dataset.label_names) - set(self.labels)):
            raise ValueError(f"The dataset has labels that the model has no output for: {shorten(unknown)}.")
        self._codes = np.array([self.labels.index(label) for label in dataset.label_names], dtype=np.int32)
        self._gene_map = None if of_model is None else _gene_map(dataset, of_model)
        dtype = dataset.dtype if self._gene_map is None else np.float32
        per_process, width = self._batch_size // devices.share[1], devices.padded(self._batch_size)
        self._shape = SlabShape.of(per_process, width, self.n_genes, dtype)
        self.n_cells_per_slab = self._shape.n_steps * self._batch_size

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

    @property
    def is_lacking(self) -> np.ndarray:
        """Which genes of the model the dataset lacks: they are 0."""
        return np.zeros(self.n_genes, bool) if self._gene_map is None else self._gene_map.is_lacking

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
        weights = np.array([class_weights.get(name, 1.0) for name in self.labels], np.float32)
        if not weights.any():
            raise ValueError("`class_weights` must not be 0 for every label: there would be nothing to learn.")
        return weights

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
        of_cells = self._shape.n_steps, self._shape.width
        x = jax.ShapeDtypeStruct((*of_cells, self.n_genes), self._shape.dtype)
        y, mask = jax.ShapeDtypeStruct(of_cells, np.int32), jax.ShapeDtypeStruct(of_cells, bool)
        rates = np.zeros(self._shape.n_steps, np.float32)
        return Slab(x, y, mask, rates, np.int32(0))  # pyright: ignore[reportArgumentType]

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
        if len(rates) != self.n_steps:
            raise ValueError(
                f"`rates` must hold a learning rate for each of the {self.n_steps:,} steps of an epoch, but has "
                f"{len(rates):,}."
            )
        split = "all" if self._dataset.train_idx is None else "train"
        groups = self._dataset.rows(
            self._batch_size,
            split,
            self._balance,
            rng=rng,
            memory=memory,
            alpha=self._sampling.alpha,
            share=self._devices.share,
        )
        return read_ahead(self._slabs(groups, self.n_train, rates, n_skipped, nonnegative))

    def in_order(self, part: str, memory: int, *, nonnegative: bool = False) -> Generator[tuple[Slab, int]]:
        """Give the cells of a part as slabs, each once."""
        groups = self._dataset.rows(self._batch_size, part, shuffle=False, memory=memory, share=self._devices.share)
        n_cells = self.n_test if part == "test" else len(self._train_codes)
        rates = np.zeros(-(-n_cells // self._batch_size))
        return read_ahead(self._slabs(groups, n_cells, rates, 0, nonnegative))

    def _slabs(
        self,
        groups: Iterator[tuple[Rows, np.ndarray]],
        n_cells: int,
        rates: np.ndarray,
        n_skipped: int,
        nonnegative: bool,
    ) -> Iterator[tuple[Slab, int]]:
        n_steps, batch_size, width = self._shape[:3]
        of_model = ((self._of_model(counts, nonnegative), cells) for counts, cells in groups)
        filled = dense_slabs(of_model, self._shape)
        nothing = DenseSlab(np.zeros((n_steps, width, self.n_genes), self._shape.dtype), np.empty(0, np.int64))
        for nth, first in enumerate(range(0, n_cells, self.n_cells_per_slab)):
            x, cells = next(filled, nothing)  # the last cells may all be those of other processes
            if nth < n_skipped:
                continue
            y, mask = np.zeros((n_steps, width), np.int32), np.zeros((n_steps, width), bool)
            places = np.divmod(np.arange(len(cells)), batch_size)
            y[places], mask[places] = self._codes[self._dataset.labels[cells]], True
            here = rates[nth * n_steps : (nth + 1) * n_steps].astype(np.float32)
            padded = np.pad(here, (0, n_steps - len(here)))
            placed = [self._devices.place_batches(array) for array in (x, y, mask)]
            slab = Slab(placed[0], placed[1], placed[2], padded, np.int32(len(here)))
            yield slab, min(self.n_cells_per_slab, n_cells - first)

    def _of_model(self, counts: Rows, nonnegative: bool) -> Rows:
        if nonnegative:
            require_nonnegative(counts, self._dataset)
        return counts if self._gene_map is None else self._gene_map.of(sparse.csr_matrix(counts))


def require_nonnegative(counts: Rows, dataset: GinsengDataset) -> None:
    """Raise a ValueError if counts of a dataset cannot be normalised."""
    values = counts if isinstance(counts, np.ndarray) else counts.data
    if values.dtype.kind != "u" and values.size and values.min() < 0:
        raise ValueError(
            f"{dataset.path} holds negative values, which cannot be normalised as counts: make it from raw counts, or "
            "train with normalize=False."
        )


def _gene_map(dataset: GinsengDataset, model: GeneNames) -> GeneMap | None:
    """Which genes of the model those of a dataset are; None if they are the same."""
    if dataset.gene_names == list(model.first):
        return None
    names = {"dataset.gene_names": dataset.gene_names, "dataset.second_names": dataset.second_names}
    gene_map = model.match({place: np.asarray(found) for place, found in names.items() if found is not None})
    way_out = "make the dataset from data that have the model's genes"
    gene_map.require(least_genes(len(model.first)), dataset.gene_names, model.first, lambda: way_out)
    gene_map.warn_of_differences()
    return gene_map
