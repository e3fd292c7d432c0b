"""Labelled counts on disk, split and streamed for training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from jaxtyping import Float32, Int32
from scipy import sparse
from tqdm.auto import tqdm

from ginseng.data import sampling, store
from ginseng.data.annotation import gene_columns, groups_of, labels_of, positions_of
from ginseng.data.io import read_adata
from ginseng.utils.counts import Counts
from ginseng.utils.files import replacing
from ginseng.utils.genes import gene_selector
from ginseng.utils.messages import shorten


class GinsengDataset:
    """An on-disk dataset for training cell-type classifiers.

    Parameters
    ----------
    path : str or Path
        An existing dataset; `create` makes one.

    Attributes
    ----------
    path : Path
        The zarr directory.
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
    labels : numpy.ndarray
        Integer label of every cell.
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
    >>> adata = AnnData(np.eye(6, 4, dtype="float32"), obs=pd.DataFrame({"cell_type": list("ABABAB")}, list("uvwxyz")))
    >>> dataset = GinsengDataset.create(tempfile.mkdtemp() + "/cells.zarr", adata, "cell_type", silent=True)
    >>> dataset
    GinsengDataset: 6 cells x 4 genes, 2 labels (A, B)
    >>> dataset.make_split(0.3)
    >>> [(x.shape, y.shape) for x, y in dataset.stream(batch_size=3)]
    [((3, 4), (3,)), ((1, 4), (1,))]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.root: zarr.Group = store.open_store(self.path)
        self._counts: np.ndarray | sparse.csr_matrix | None = None
        self._load_metadata()

    def __repr__(self) -> str:
        groups = "" if self.group_names is None else f", {len(self.group_names)} groups"
        return (
            f"GinsengDataset: {self.n_cells:,} cells x {self.n_genes:,} genes, {len(self.label_names)} labels "
            f"({shorten(self.label_names, 6)}){groups}"
        )

    def _load_metadata(self) -> None:
        """Load names and small arrays into memory."""
        attributes: dict[str, Any] = dict(self.root.attrs)
        self.n_cells = int(attributes["n_cells"])
        self.n_genes = int(attributes["n_genes"])
        self.label_names: list[str] = attributes["label_names"]
        self.gene_names: list[str] = attributes["gene_names"]
        self.group_names: list[str] | None = attributes.get("group_names")
        self.labels = np.asarray(store.read_array(self.root, "labels"))
        self.groups = store.read_array(self.root, "groups")
        self.train_idx, self.test_idx = store.read_split(self.root)

    @classmethod
    def create(
        cls,
        path: str | Path,
        adata: str | Path | AnnData,
        label_key: str,
        layer: str | None = None,
        genes: str | list[str] | np.ndarray | None = None,
        group_key: str | None = None,
        chunk_size: int = 4096,
        overwrite: bool = True,
        *,
        missing_labels: Literal["drop", "error"] = "drop",
        silent: bool = False,
    ) -> "GinsengDataset":
        """Create a dataset from labelled counts.

        The dataset is written beside `path` and renamed, so that a failure leaves an older one as it was.

        Parameters
        ----------
        path : str or Path
            Directory to create.
        adata : str, Path or AnnData
            Raw counts, or the path or URL of such (.h5ad, 10x .h5, 10x directory, .zarr).
        label_key : str
            Column of ``adata.obs`` with the cell types.
        layer : str, optional
            Key in ``adata.layers``, or ``"raw"``; None for ``adata.X``.
        genes : str, list of str or numpy.ndarray, optional
            A boolean column of ``adata.var`` (such as ``"ginseng_genes"``), a boolean mask, or the names of the genes
            to keep, in the order to keep them; None for all.
        group_key : str, optional
            Column of ``adata.obs`` with the donor or batch of each cell.
        chunk_size : int
            Cells per chunk of the stored counts.
        overwrite : bool
            Replace a dataset that exists at `path`. Anything else there is never replaced.
        missing_labels : {"drop", "error"}
            Leave cells without a label out, with a warning that counts them, or refuse them.
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
            If a column, layer or gene does not exist, a value is not finite, or there are fewer than two labels.
        """
        path = Path(path)
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be at least 1, but got {chunk_size}.")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; pass overwrite=True to replace it.")
        if path.exists() and not store.is_store(path):
            raise FileExistsError(f"{path} exists and is not a ginseng dataset; it is not replaced. Name another path.")
        data = adata if isinstance(adata, AnnData) else read_adata(adata)
        counts = Counts(data, layer)
        counts.warn_unless_integers()
        columns = gene_columns(counts.var, genes)
        gene_names = [str(name) for name in counts.var.index[columns]]
        labelled, labels = labels_of(data.obs, label_key, missing_labels)
        obs = {label_key: labels}
        if group_key is not None:
            obs[group_key] = groups_of(data.obs, group_key, labelled)
        groups = obs.get(group_key) if group_key is not None else None

        arrays = {"labels": labels.codes} | ({} if groups is None else {"groups": groups.codes})
        attributes = {
            "label_names": list(labels.categories),
            "group_names": None if groups is None else list(groups.categories),
            "gene_names": gene_names,
            "n_cells": int(labelled.sum()),
            "n_genes": len(gene_names),
            "layer_used": layer or "X",
        }
        selector = gene_selector(positions_of(columns, counts.n_genes), len(columns))
        with (
            replacing(path) as fresh,
            tqdm(total=counts.n_cells, desc="Writing", unit="cells", unit_scale=True, disable=silent) as bar,
        ):

            def blocks() -> Iterator[sparse.csr_matrix]:
                for start, stop, block in counts.blocks(chunk_size):
                    selected = sparse.csr_matrix(block[labelled[start:stop]] @ selector)
                    selected.sort_indices()
                    yield selected
                    bar.update(stop - start)

            store.write_store(
                fresh,
                blocks(),
                pd.DataFrame(obs, index=pd.Index(data.obs_names[labelled].to_numpy(), dtype=object)),
                gene_names,
                attributes,
                arrays,
                chunk_size,
            )
        return cls(path)

    def make_split(
        self, fraction: float = 0.1, stratify_group: bool = False, seed: int = 123, *, stratify_label: bool = False
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

        Raises
        ------
        ValueError
            If `fraction` is out of range, groups are asked for and the dataset has fewer than two, or groups and labels
            are both asked for.
        """
        if not 0.0 <= fraction < 1.0:
            raise ValueError(f"`fraction` must lie in [0, 1), but got {fraction}.")
        if stratify_group and stratify_label:
            raise ValueError("Whole groups cannot be split within labels: choose `stratify_group` or `stratify_label`.")
        rng = np.random.default_rng(seed)
        if stratify_label:
            train, test = sampling.split_within_labels(self.labels, fraction, rng)
        elif stratify_group:
            if self.groups is None:
                raise ValueError("A split by groups needs groups: pass `group_key` to GinsengDataset.create.")
            if fraction > 0 and len(np.unique(self.groups)) < 2:
                raise ValueError(f"A split by groups needs two of them; there is only {self.group_names}.")
            train, test = sampling.split_groups(self.groups, fraction, rng)
        else:
            train, test = sampling.split_cells(self.n_cells, fraction, rng)
        store.write_split(self.root, train, test)
        self.train_idx, self.test_idx = train, test

    def stream(
        self,
        batch_size: int,
        split: Literal["train", "test", "all"] = "train",
        balance_labels: bool = False,
        shuffle: bool = True,
        *,
        rng: np.random.Generator | int | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[Float32[np.ndarray, "batch genes"], Int32[np.ndarray, " batch"]]]:
        """Stream mini-batches of counts and labels, each cell once.

        Parameters
        ----------
        batch_size : int
            Number of cells per batch; the last may be smaller.
        split : {"train", "test", "all"}
            Cells to stream; "train" and "test" need `make_split`.
        balance_labels : bool
            Of the training part, take of every label only as many cells as the rarest has, chosen anew at each call.
        shuffle : bool
            Random order; else the order of the dataset.
        rng : numpy.random.Generator or int, optional
            Source or seed of everything random; by default not reproducible.
        drop_last : bool
            Leave out the last batch if it is smaller than the others.

        Yields
        ------
        X : numpy.ndarray
            Counts of shape ``(batch_size, n_genes)``, float32.
        y : numpy.ndarray
            Labels of shape ``(batch_size,)``, int32.

        Raises
        ------
        ValueError
            If `batch_size` is below 1, `split` is unknown or was not made.
        """
        cells = self._epoch(batch_size, split, balance_labels, shuffle, np.random.default_rng(rng))
        if drop_last:
            cells = cells[: len(cells) // batch_size * batch_size]
        return self._batches(cells, batch_size)

    def _epoch(
        self, batch_size: int, split: str, balance_labels: bool, shuffle: bool, rng: np.random.Generator
    ) -> np.ndarray:
        """Cells of one epoch, in order."""
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
        parts = {"train": self.train_idx, "test": self.test_idx, "all": np.arange(self.n_cells)}
        if split not in parts:
            raise ValueError(f"`split` must be 'train', 'test' or 'all', but got '{split}'.")
        cells = parts[split]
        if cells is None:
            raise ValueError("The dataset has not been split; call make_split first.")
        if balance_labels and split == "train":
            cells = sampling.downsample(self.labels, cells, rng)
        return rng.permutation(cells) if shuffle else cells

    def _batches(self, cells: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._counts is None:
            self._counts = store.read_counts(self.root)
        for start in range(0, len(cells), batch_size):
            rows = cells[start : start + batch_size]
            batch = self._counts[rows]
            dense = batch if isinstance(batch, np.ndarray) else batch.toarray()
            yield dense.astype(np.float32), self.labels[rows]
