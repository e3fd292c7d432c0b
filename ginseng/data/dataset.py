"""Labelled counts on disk, split and streamed for training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Int32, Num
from numpy.typing import DTypeLike

from ginseng.data import sampling, splits, store, streaming, views
from ginseng.data.annotation import Genes
from ginseng.data.creation import create_dataset
from ginseng.data.reading import AnyCounts, StoredCounts
from ginseng.data.slabs import Rows
from ginseng.data.sources import Source
from ginseng.utils.files import is_url, local_path
from ginseng.utils.memory import bytes_of, default_budget, free_memory
from ginseng.utils.messages import shorten
from ginseng.utils.values import require_flags


class GinsengDataset:
    """An on-disk dataset for training cell-type classifiers.

    Parameters
    ----------
    path : str or Path
        An existing dataset, which `create` makes: a directory, or a URL that zarr opens by fsspec (``s3://``,
        ``https://``; with the extra ``remote``).

    Attributes
    ----------
    path : Path
        The zarr directory; of a URL, the text.
    root : zarr.Group
        Its root.
    n_cells, n_genes : int
        Numbers of cells and genes.
    label_names : list of str
        Names of the integer labels, sorted.
    group_names : list of str or None
        Names of the integer groups, sorted.
    gene_names : list of str
        Names of the genes.
    second_names : list of str or None
        Other names of the genes (identifiers, or symbols), "" where the data had none; see `second_names`.
    labels : numpy.ndarray
        Integer label of every cell; -1 of those that `renamed` leaves out.
    cells : numpy.ndarray
        The others, of which parts are made: all, but in a view by `renamed`.
    groups : numpy.ndarray or None
        Integer group (donor, batch) of every cell.
    train_idx, test_idx : numpy.ndarray or None
        Cells of the two parts of the split, from `make_split`.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If what is there is not a dataset.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> adata = AnnData(np.eye(6, 4, dtype="float32"), obs=pd.DataFrame({"cell_type": list("ABABAB")}, list("uvwxyz")))
    >>> dataset = GinsengDataset.create(tempfile.mkdtemp() + "/cells.zarr", adata, "cell_type", silent=True)
    >>> dataset
    GinsengDataset: 6 cells x 4 genes, 2 labels (A, B)
    >>> dataset.make_split(0.3)
    >>> [(x.shape, y.shape) for x, y in dataset.stream(batch_size=3)]
    [((3, 4), (3,)), ((1, 4), (1,))]
    """

    def __init__(self, path: str | Path):
        self.path = str(path) if is_url(path) else local_path(path)
        self.root: zarr.Group = store.open_store(self.path)
        self._counts: Rows | None = None
        self._is_view = False
        self._load_metadata()

    def _load_metadata(self) -> None:
        """Load names and small arrays into memory."""
        contents = store.read_contents(self.root)
        self.n_cells, self.n_genes = contents.shape
        self.label_names, self.gene_names = contents.label_names, contents.gene_names
        self.group_names, self.labels, self.groups = contents.group_names, contents.labels, contents.groups
        self.second_names = contents.second_names
        self.cells = np.arange(self.n_cells)
        self._stored: AnyCounts = StoredCounts(self.root, contents)
        self.train_idx, self.test_idx = splits.read_split(self.root, self.n_cells)

    def __repr__(self) -> str:
        groups = "" if self.group_names is None else f", {len(self.group_names)} groups"
        return (
            f"GinsengDataset: {len(self.cells):,} cells x {self.n_genes:,} genes, {len(self.label_names)} labels "
            f"({shorten(self.label_names, 6)}){groups}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """State without the counts that are held: they are read again where they are needed."""
        return {**self.__dict__, "_counts": None}

    @classmethod
    def create(
        cls,
        path: str | Path,
        adata: Source | Iterable[Source],
        label_key: str,
        layer: str | None = None,
        genes: Genes = None,
        group_key: str | None = None,
        chunk_size: int = 4096,
        overwrite: bool = True,
        *,
        missing_labels: Literal["drop", "error"] = "drop",
        mapping: Any = None,
        unlabeled: str | Sequence[str] = (),
        further: Sequence[str] = (),
        gene_key: str | None = None,
        select: str = "markers",
        split: Mapping[str, Any] | None = None,
        other_genes: bool = False,
        normalize: bool = True,
        fix: bool = False,
        silent: bool = False,
    ) -> "GinsengDataset":
        """Create a dataset from labelled counts.

        The counts of files and of backed, zarr and Dask arrays pass through memory in blocks. The dataset is written
        beside `path` and renamed, so that a failure leaves an older one as it was.

        Parameters
        ----------
        path : str or Path
            Directory to create.
        adata : str, Path, AnnData or an iterable of these
            Raw counts, or the path or URL of such (.h5ad, 10x .h5, 10x directory, .zarr). Of several, the genes that
            all have are kept, in the order of the first. Features that ``var["feature_types"]`` does not call genes
            (antibodies, peaks) are left out, and the counts of genes of one name are summed, with a warning.
        label_key : str
            Column of ``adata.obs`` with the cell types.
        layer : str, optional
            Key in ``adata.layers``, or ``"raw"``; None for ``adata.X``.
        genes : str, int, list of str or numpy.ndarray, optional
            A boolean column of ``adata.var`` (such as ``"ginseng_genes"``), a boolean mask, or the names of the genes
            to keep, in the order to keep them; None for all. With several inputs no mask. A number chooses so many, by
            `select`, over the labelled cells of all inputs together (with a `split`, over those to train on).
        group_key : str, optional
            Column of ``adata.obs`` with the donor or batch of each cell.
        chunk_size : int
            Cells that are read at once from the input, and stored together in one file.
        overwrite : bool
            Replace a dataset that exists at `path`. Anything else there is never replaced.
        missing_labels : {"drop", "error"}
            Leave cells without a label out, with a warning that counts them, or refuse them. Labels that say that there
            is none ("nan", "NA", "N/A", "None", "null", blanks) are missing, too.
        mapping : dict or Harmony, optional
            Other names of the labels, of which several may become one; None leaves their cells out, and labels that it
            does not name stay. A label that it names is kept whatever it says.
        unlabeled : str or sequence of str
            Further labels that say that there is none, such as ``["Unknown"]``, case and blanks aside.
        further : sequence of str
            Columns of ``adata.obs`` to keep for `column`, in which values may be missing.
        gene_key : str, optional
            Column of ``adata.var`` with gene names; None for its index. Genes without a name are not kept.
        select : {"markers", "variance"}
            How a number of genes is chosen: those that tell the types apart, as `select_markers` does, in all groups if
            there are any, or those that vary most, as `select_hvgs` does.
        split : dict, optional
            Arguments of `make_split`, such as ``{"fraction": 0.1}``: the split is made first, so that genes are chosen
            without the cells that are held out.
        other_genes : bool
            Add, as a last gene `ginseng.utils.genes.OTHER_GENES`, the sum of the counts of all genes that are not kept,
            if there are any: a network then normalises by all counts of a cell. Of several inputs it is the sum of
            genes that all of them have. Annotation adds up what such a model does not know; data that were cut to the
            model's genes lack the sum, which then takes its mean over the training cells, with a warning.
        normalize : bool
            Whether the network to be trained normalises, so that values which are no counts (logarithms, scaled ones)
            are refused; False takes any.
        fix : bool
            Take the layer, or raw, that holds raw counts where `layer` does not; else undo what was done to them. Take
            the column of ``adata.var`` that looks like gene names where its index has numbers.
        silent : bool
            Show no progress bar.

        Returns
        -------
        GinsengDataset
            The new dataset.

        Raises
        ------
        FileExistsError
            If `path` exists and must not be replaced.
        ValueError
            If a column, layer, gene or label does not exist, the counts are in the wrong form, a value is not finite,
            or no cell has a label.
        """
        options: dict[str, Any] = {"missing_labels": missing_labels, "mapping": mapping, "select": select}
        options |= {"unlabeled": unlabeled, "further": further, "gene_key": gene_key, "split": split}
        options |= {"other_genes": other_genes, "normalize": normalize, "fix": fix, "silent": silent}
        create_dataset(path, adata, label_key, layer, genes, group_key, chunk_size, overwrite, **options)
        return cls(path)

    def make_split(
        self,
        fraction: float = 0.1,
        stratify_group: bool = False,
        seed: int = 123,
        *,
        stratify_label: bool = False,
        keep_rare: bool = False,
    ) -> None:
        """Split the cells into a training and a test part, and store the split with the dataset.

        Parameters
        ----------
        fraction : float
            Share of the cells (or groups) in the test part, in [0, 1). Above 0, both parts get at least one.
        stratify_group : bool
            Keep all cells of a group in the same part.
        seed : int
            Seed of the choice.
        stratify_label : bool
            Split the cells of each label on their own, so that rare types are in both parts.
        keep_rare : bool
            With `stratify_label`, leave types of fewer than ``1 / fraction`` cells to training.

        Raises
        ------
        ValueError
            If `fraction` is out of range, groups are asked for and the dataset has fewer than two, or groups and labels
            are both asked for.
        """
        options = {"stratify_group": stratify_group, "stratify_label": stratify_label, "keep_rare": keep_rare}
        self.keep_split(*self.draw_split(fraction=fraction, seed=seed, **options))

    def keep_split(self, train: np.ndarray, test: np.ndarray) -> None:
        """Store a training and a test part with the dataset."""
        splits.warn_of_genes(self.root, test, self.test_idx)
        if not self._is_view:
            splits.keep_split(self.root, train, test)
        self.train_idx, self.test_idx = train, test

    changed, column, divided = views.changed, views.column, views.divided
    draw_split, renamed = views.draw_split, views.renamed

    @property
    def has_test(self) -> bool:
        """Whether cells are held out."""
        return self.test_idx is not None and self.test_idx.size > 0

    def stream(
        self,
        batch_size: int,
        split: Literal["train", "test", "all"] = "train",
        balance_labels: bool | sampling.Balance = False,
        shuffle: bool = True,
        *,
        rng: np.random.Generator | int | None = None,
        memory: int | str | None = None,
        drop_last: bool = False,
        alpha: float = 1.0,
        dtype: DTypeLike | None = np.float32,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Num[np.ndarray, "batch genes"], Int32[np.ndarray, " batch"]]]:
        """Stream mini-batches of counts and labels, each cell once.

        Counts that fit in `memory` are read once and kept, and every epoch is an exact shuffle. Others are read in each
        epoch: 400 random blocks of consecutive cells at a time fill a buffer, whose cells are shuffled and streamed
        while a thread reads the next. Closing the iterator ends the reading.

        Parameters
        ----------
        batch_size : int
            Number of cells per batch; the last may be smaller.
        split : {"train", "test", "all"}
            Cells to stream; "train" and "test" need `make_split`.
        balance_labels : bool or {"none", "downsample", "resample"}
            Balance the labels of the training part (of all cells as long as there is no split). "downsample", or True,
            takes of every label only as many cells as the rarest has, chosen anew at each call. "resample" draws as
            many cells as there are, those of rare labels more often: each with a weight of ``1 / n**alpha`` for the n
            cells of its label. "none", or False, streams each cell once.
        shuffle : bool
            Random order; else the order of the dataset.
        rng : numpy.random.Generator or int, optional
            Source or seed of everything random; by default not reproducible.
        memory : int or str, optional
            Bytes that counts may take, such as ``"2 GB"``. By default half of what is free for counts that are kept,
            and for a buffer 1 GiB, or half of what is free if that is less. With one and the same budget, equal seeds
            give equal batches.
        drop_last : bool
            Leave out the last batch if it is smaller than the others.
        alpha : float
            How much "resample" balances, from 0 (not at all) to 1 (equally many of each label).
        dtype : dtype, optional
            Type of the counts; None for the one that they are stored in, the smallest that holds them.
        share : tuple of int
            ``(i, n)`` to get only the i-th of n equal parts of every batch, where n processes stream with the same
            `rng` and `memory`.

        Yields
        ------
        X : numpy.ndarray
            Counts of shape ``(batch_size, n_genes)``.
        y : numpy.ndarray
            Labels of shape ``(batch_size,)``, int32.

        Raises
        ------
        ValueError
            If `batch_size` is below 1 or cannot be shared equally, `split`, `balance_labels` or `memory` cannot be
            understood, or the split was not made.
        OSError
            If the dataset is damaged, or replaced while it is read.

        Examples
        --------
        >>> for x, y in dataset.stream(128, "train", "resample", memory="2 GB", rng=0):  # doctest: +SKIP
        ...     model.update(x, y)
        """
        options = {"shuffle": shuffle, "rng": rng, "memory": memory, "drop_last": drop_last, "alpha": alpha}
        groups = self.rows(batch_size, split, balance_labels, **options, share=share)
        batches = streaming.dense_batches(groups, batch_size // share[1])
        return ((x.astype(self.dtype if dtype is None else dtype, copy=False), self.labels[y]) for x, y in batches)

    def rows(
        self,
        batch_size: int,
        split: str = "train",
        balance_labels: bool | sampling.Balance = False,
        *,
        shuffle: bool = True,
        rng: np.random.Generator | int | None = None,
        memory: int | str | None = None,
        drop_last: bool = False,
        alpha: float = 1.0,
        share: tuple[int, int] = (0, 1),
    ) -> streaming.Groups:
        """Stream as `stream` does, but ``(counts, cells)`` of several batches at a time, as they are stored."""
        streaming.require_shares(batch_size, share)
        require_flags(shuffle=shuffle, drop_last=drop_last)
        rng = np.random.default_rng(rng)
        balance = sampling.balance_of(balance_labels)
        is_training = split == "train" or (split == "all" and self.train_idx is None)
        balance = balance if is_training else "none"
        cells = sampling.cells_of_epoch(self.labels, self._part(split), balance, alpha, rng)
        # A generator of its own: this one is drawn from while the iterator is used, and in any order with others.
        child = np.random.default_rng(rng.integers(2**63)) if shuffle else None
        order = streaming.Order(batch_size, child, drop_last, share)
        return self._groups(cells, memory if memory is None else bytes_of(memory), order)

    def _part(self, split: str) -> np.ndarray:
        """Cells of a part of the dataset, in increasing order."""
        parts = {"train": self.train_idx, "test": self.test_idx, "all": self.cells}
        if split not in parts:
            raise ValueError(f"`split` must be 'train', 'test' or 'all', but got '{split}'.")
        if (cells := parts[split]) is None:
            raise ValueError(f"{self.path} has not been split; call make_split first.")
        return cells

    def _groups(self, cells: np.ndarray, memory: int | None, order: streaming.Order) -> streaming.Groups:
        budget = self.budget(memory)
        if self._n_bytes <= budget:
            if self._counts is None:
                self._counts = self._stored.read_all()
            yield from streaming.from_memory(self._counts, cells[order.of(len(cells))], order.n_per_batch)
        else:
            self._counts = None
            yield from streaming.from_store(self._stored, cells, budget, order)

    @property
    def dtype(self) -> np.dtype:
        """Type that the counts are stored in."""
        return self._stored.dtype

    def sample(self, n_cells: int, part: str | np.ndarray = "all") -> np.ndarray:
        """Read the counts of about so many cells, dense, in blocks that are spread evenly over a part of the dataset.

        The same ones at each call; all of a part, named or given as its cells, that has fewer than twice as many.
        """
        cells = self._part(part) if isinstance(part, str) else part
        return streaming.sample(self._stored, cells, n_cells)

    @property
    def bytes_per_cell(self) -> np.ndarray:
        """Memory that the counts of each cell take once they are read."""
        return self._stored.bytes_per_cell

    def budget(self, memory: int | None = None) -> int:
        """Bytes that counts may take in `stream`: `memory`, or what is chosen by what is free now."""
        if memory is not None:
            return memory
        return self._n_bytes if self._counts is not None else default_budget(self._n_bytes, free_memory())

    @property
    def _n_bytes(self) -> int:
        """Memory that all counts take once they are read."""
        return int(self.bytes_per_cell.sum())
