"""What a dataset feeds to a model: batches for several steps at a time, of one shape, on the devices."""

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy import sparse

from ginseng.data.annotation import require_list
from ginseng.data.dataset import GinsengDataset
from ginseng.data.sampling import Balance, balance_of, balanced_weights, n_streamed
from ginseng.data.slabs import DenseSlab, Rows, SlabShape, dense_slabs
from ginseng.train.recipe import ClassWeights, Sampling
from ginseng.train.step import Slab
from ginseng.utils.ahead import read_ahead
from ginseng.utils.devices import Devices
from ginseng.utils.digest import digest
from ginseng.utils.genes import GeneMap
from ginseng.utils.memory import bytes_of
from ginseng.utils.messages import shorten, unknown_name
from ginseng.utils.names import GeneNames


@dataclass(frozen=True)
class _Source:
    """A dataset, with the genes and the labels of a model."""

    dataset: GinsengDataset
    gene_map: GeneMap | None
    codes: np.ndarray
    further: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls,
        dataset: GinsengDataset,
        genes: GeneNames | None,
        labels: list[str],
        further: Mapping[str, np.ndarray],
    ) -> "_Source":
        if unknown := sorted(set(dataset.label_names) - set(labels)):
            raise ValueError(
                f"{dataset.path} has labels that the model has no output for: {shorten(unknown)}; it has "
                f"{shorten(labels, 5)}."
            )
        codes = np.array([labels.index(label) for label in dataset.label_names], dtype=np.int32)
        return cls(dataset, None if genes is None else gene_map_of(dataset, genes), codes, further)

    @property
    def dtype(self) -> np.dtype:
        return self.dataset.dtype if self.gene_map is None else np.dtype(np.float32)

    @property
    def train_codes(self) -> np.ndarray:
        """Codes that the dataset has for the labels of the training cells."""
        cells = self.dataset.train_idx
        return self.dataset.labels[self.dataset.cells if cells is None else cells]

    @property
    def train_part(self) -> str:
        return "all" if self.dataset.train_idx is None else "train"

    @property
    def n_test(self) -> int:
        return 0 if self.dataset.test_idx is None else len(self.dataset.test_idx)

    def of_model(self, groups: Iterator[tuple[Rows, np.ndarray]], nonnegative: bool) -> Iterator[tuple[Rows, Any]]:
        """Counts of the genes of the model, with the codes of its labels, of counts and cells of the dataset."""
        for counts, cells in groups:
            if nonnegative:
                require_nonnegative(counts, self.dataset)
            mapped = counts if self.gene_map is None else self.gene_map.of(sparse.csr_matrix(counts))
            yield mapped, self.classes_of(cells)

    def classes_of(self, cells: np.ndarray) -> np.ndarray:
        """Class of cells; where there are further outputs, a column for each output."""
        of_labels = self.codes[self.dataset.labels[cells]]
        if not self.further:
            return of_labels
        return np.stack([of_labels, *(codes[cells] for codes in self.further.values())], axis=-1)

    def description(self) -> dict[str, Any]:
        dataset = self.dataset
        split = () if dataset.train_idx is None else (dataset.train_idx, dataset.test_idx)
        labels = np.append(self.codes, -1)[dataset.labels]  # the last one of cells that a mapping leaves out
        return {
            "cells": digest(labels, dataset.bytes_per_cell, dataset.sample(256), *split),
            "genes": digest(list(dataset.gene_names)),
            **({"further": {name: digest(codes) for name, codes in self.further.items()}} if self.further else {}),
        }


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
    old : GinsengDataset, optional
        Data of which each step has a share of cells, too: see `Sampling.replay`.
    further : sequence of str
        Columns of the dataset that further outputs of the model are for, see `GinsengDataset.column`.

    Attributes
    ----------
    n_genes : int
        Inputs of the model.
    labels : list of str
        Its outputs.
    further : dict of list of str
        Classes of each further output, by its column.
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
        old: GinsengDataset | None = None,
        further: Sequence[str] = (),
    ):
        self._devices, self._sampling = devices, sampling
        self._balance: Balance = balance_of(sampling.balance)
        self._batch_size = int(sampling.batch_size)
        devices.require_equal_shares(self._batch_size)
        of_model = genes if genes is None or isinstance(genes, GeneNames) else GeneNames(genes)
        if of_model is None and old is not None:
            of_model = GeneNames(dataset.gene_names, dataset.second_names)
        self.n_genes = dataset.n_genes if of_model is None else len(of_model.first)
        self.labels = list(dataset.label_names if labels is None else labels)
        columns = _columns(dataset, further, old)
        self.further = {name: names for name, (names, _) in columns.items()}
        codes = {name: codes for name, (_, codes) in columns.items()}
        self._new = _Source.of(dataset, of_model, self.labels, codes)
        self._old = None if old is None else _Source.of(old, of_model, self.labels, {})
        self._sources = [self._new] if self._old is None else [self._new, self._old]
        per_process, width = self._batch_size // devices.share[1], devices.padded(self._batch_size)
        n_old = max(1, round(sampling.replay * per_process)) if old is not None and sampling.replay else 0
        if n_old and self._old is not None and not len(self._old.train_codes):
            raise ValueError(f"`old`, {self._old.dataset.path}, has no training cell: split it otherwise.")
        self._n_old = min(n_old, per_process - 1) * devices.share[1]  # of each step
        dtype = np.result_type(*(source.dtype for source in self._sources))
        self._shape = SlabShape.of(per_process, width, self.n_genes, dtype)
        self.n_cells_per_slab = self._shape.n_steps * self._batch_size

    @property
    def n_outputs(self) -> int | tuple[int, ...]:
        """How many outputs the model has; where there are further ones, how many each has."""
        return (len(self.labels), *map(len, self.further.values())) if self.further else len(self.labels)

    @property
    def _n_new(self) -> int:
        """Cells of the dataset itself in a training epoch."""
        return n_streamed(self._new.train_codes, self._balance)

    @property
    def n_train(self) -> int:
        """Cells of a training epoch."""
        return self._n_new + self.n_steps * self._n_old

    @property
    def n_test(self) -> int:
        """Cells held out."""
        return sum(source.n_test for source in self._sources)

    @property
    def n_steps(self) -> int:
        """Steps of a training epoch."""
        return -(-self._n_new // (self._batch_size - self._n_old))

    @property
    def _of_cell(self) -> tuple[int, ...]:
        """Shape of the classes of a cell."""
        return (1 + len(self.further),) if self.further else ()

    def budget(self) -> int:
        """Bytes that counts may take; the same in all processes, since the order of the cells depends on it."""
        memory = self._sampling.memory
        each = None if memory is None else bytes_of(memory) // len(self._sources)
        return self._devices.least(len(self._sources) * max(source.dataset.budget(each) for source in self._sources))

    @property
    def is_lacking(self) -> np.ndarray:
        """Which genes of the model the data lack: they are 0."""
        maps = [source.gene_map for source in self._sources]
        lacking = [np.zeros(self.n_genes, bool) if found is None else found.is_lacking for found in maps]
        return np.logical_and.reduce(lacking)

    def loss_weights(self, class_weights: ClassWeights | None) -> np.ndarray | None:
        """Factor of the loss of the cells of each label of the model; "balanced" has a mean of 1 over an epoch."""
        if class_weights is None:
            return None
        if not isinstance(class_weights, Mapping):
            codes, weights = balanced_weights(self._new.train_codes, self._balance, self._sampling.alpha)
            names = self._new.dataset.label_names
            class_weights = dict(zip([names[code] for code in codes], weights, strict=True))
        for name in class_weights:
            if name not in self.labels:
                raise unknown_name("label", name, "the model's outputs", self.labels)
        weights = np.array([class_weights.get(name, 1.0) for name in self.labels], np.float32)
        if not weights.any():
            raise ValueError("`class_weights` must not be 0 for every label: there would be nothing to learn.")
        return weights

    def description(self) -> dict[str, Any]:
        """What tells one feed from another: how cells are drawn, and short names for the cells and the genes."""
        return {
            "batch_size": self._batch_size,
            "balance_train": [self._balance, self._sampling.alpha],
            "labels": digest(list(self.labels)),
            **self._new.description(),
            **({} if self._old is None else {"old": self._old.description(), "replay": self._n_old}),
        }

    def slab_like(self) -> Slab:
        """Give the shapes and types of a slab."""
        of_cells = self._shape.n_steps, self._shape.width
        x = jax.ShapeDtypeStruct((*of_cells, self.n_genes), self._shape.dtype)
        y = jax.ShapeDtypeStruct((*of_cells, *self._of_cell), np.int32)
        mask = jax.ShapeDtypeStruct(of_cells, bool)
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
        n_new = self._batch_size - self._n_old
        cells = self._drawn(self._new, n_new, rng, memory, nonnegative)
        if self._old is not None and self._n_old:
            seeds = np.random.default_rng(rng.integers(2**63))
            epochs = itertools.count()  # of the old data: another begins where one ends
            old = (self._drawn(self._old, self._n_old, seeds, memory, nonnegative) for _ in epochs)
            n_processes = self._devices.share[1]
            streams = [(cells, n_new // n_processes), (itertools.chain.from_iterable(old), self._n_old // n_processes)]
            cells = interleaved(streams)
        return read_ahead(self._slabs(cells, self.n_train, rates, n_skipped))

    def _drawn(
        self, source: _Source, n_per_step: int, rng: np.random.Generator, memory: int, nonnegative: bool
    ) -> Iterator[tuple[Rows, np.ndarray]]:
        groups = source.dataset.rows(
            n_per_step,
            source.train_part,
            self._balance,
            rng=rng,
            memory=memory // len(self._sources),
            alpha=self._sampling.alpha,
            share=self._devices.share,
        )
        return source.of_model(groups, nonnegative)

    def in_order(self, part: str, memory: int, *, nonnegative: bool = False) -> Generator[tuple[Slab, int]]:
        """Give the cells of a part as slabs, each once; those of old data last."""
        streams, n_steps = [], 0
        for source in self._sources:
            if part == "test" and not source.n_test:
                continue
            options: dict[str, Any] = {"shuffle": False, "memory": memory // len(self._sources)}
            which = part if part == "test" else source.train_part
            groups = source.dataset.rows(self._batch_size, which, share=self._devices.share, **options)
            streams.append(source.of_model(groups, nonnegative))
            n_steps += -(-(source.n_test if part == "test" else len(source.train_codes)) // self._batch_size)
        cells = itertools.chain.from_iterable(streams)
        return read_ahead(self._slabs(cells, n_steps * self._batch_size, np.zeros(n_steps), 0))

    def _slabs(
        self, cells: Iterator[tuple[Rows, np.ndarray]], n_cells: int, rates: np.ndarray, n_skipped: int
    ) -> Iterator[tuple[Slab, int]]:
        n_steps, batch_size, width = self._shape[:3]
        filled = dense_slabs(cells, self._shape)
        nothing = DenseSlab(
            np.zeros((n_steps, width, self.n_genes), self._shape.dtype), np.empty((0, *self._of_cell), np.int64)
        )
        for nth, first in enumerate(range(0, n_cells, self.n_cells_per_slab)):
            x, labels = next(filled, nothing)  # the last cells may all be those of other processes
            if nth < n_skipped:
                continue
            y = np.zeros((n_steps, width, *self._of_cell), np.int32)
            mask = np.zeros((n_steps, width), bool)
            places = np.divmod(np.arange(len(labels)), batch_size)
            y[places], mask[places] = labels, True
            here = rates[nth * n_steps : (nth + 1) * n_steps].astype(np.float32)
            padded = np.pad(here, (0, n_steps - len(here)))
            placed = [self._devices.place_batches(array) for array in (x, y, mask)]
            slab = Slab(placed[0], placed[1], placed[2], padded, np.int32(len(here)))
            yield slab, min(self.n_cells_per_slab, n_cells - first)


def interleaved(
    streams: Sequence[tuple[Iterator[tuple[Rows, np.ndarray]], int]],
) -> Iterator[tuple[Rows, np.ndarray]]:
    """Rows of several streams in turn, so many of each; it ends with the first of them.

    Examples
    --------
    >>> new, old = [(np.zeros((3, 2)), np.arange(3))], [(np.ones((4, 2)), np.arange(4))]
    >>> [labels.tolist() for _, labels in interleaved([(iter(new), 2), (iter(old), 1)])]
    [[0, 1], [0], [2], [1]]
    """
    (first, n_first), *others = [(_Rows(stream), n) for stream, n in streams]
    while pieces := first.take(n_first):
        yield from pieces
        for rows, n in others:
            yield from rows.take(n)


class _Rows:
    """Rows of a stream, to be taken in any number."""

    def __init__(self, stream: Iterator[tuple[Rows, np.ndarray]]):
        self._stream = stream
        self._counts, self._labels, self._first = np.empty((0, 0)), np.empty(0, np.int32), 0

    def take(self, n: int) -> list[tuple[Rows, np.ndarray]]:
        """The next so many rows, or as many as are left, in pieces."""
        pieces = []
        while n > 0:
            if self._first == len(self._labels):
                group = next(self._stream, None)
                if group is None:
                    break
                (self._counts, self._labels), self._first = group, 0
            here = slice(self._first, self._first + n)
            pieces.append((self._counts[here], self._labels[here]))
            n_taken = len(pieces[-1][1])
            self._first, n = self._first + n_taken, n - n_taken
        return pieces


def require_nonnegative(counts: Rows, dataset: GinsengDataset) -> None:
    """Raise a ValueError if counts of a dataset cannot be normalised."""
    values = counts if isinstance(counts, np.ndarray) else counts.data
    if values.dtype.kind != "u" and values.size and values.min() < 0:
        raise ValueError(
            f"{dataset.path} holds negative values, which cannot be normalised as counts: make it from raw counts, or "
            "train with normalize=False."
        )


def _columns(
    dataset: GinsengDataset, further: Sequence[str], old: GinsengDataset | None
) -> dict[str, tuple[list[str], np.ndarray]]:
    """Names and codes of the columns that further outputs are for."""
    require_list(further)
    if further and old is not None:
        raise ValueError("Old data are replayed for the labels alone: leave out `old`, or `further`.")
    return {name: dataset.column(name) for name in further}


def gene_map_of(dataset: GinsengDataset, model: GeneNames, *, silent: bool = False) -> GeneMap | None:
    """Which genes of the model those of a dataset are; None if they are the same. Warns of those that it lacks."""
    if dataset.gene_names == list(model.first):
        return None
    names = {"dataset.gene_names": dataset.gene_names, "dataset.second_names": dataset.second_names}
    gene_map = model.match({place: np.asarray(found, object) for place, found in names.items() if found is not None})
    way_out = "make the dataset from data that have the model's genes"
    gene_map.require(gene_map.least(None), dataset.gene_names, model.first, lambda: way_out)
    if not silent:
        gene_map.warn_of_differences()
    return gene_map
