"""The inputs of a dataset, seen as one: their common genes, and their labels and groups in the same terms."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ginseng.data.annotation import (
    Genes,
    chosen_names,
    further_of,
    groups_of,
    labels_of,
    n_chosen,
    require_column,
)
from ginseng.data.preflight import HeldGenes, checked_reference
from ginseng.data.readers import opened_counts
from ginseng.utils.genes import LEFT_OUT, OTHER, OTHER_GENES, GeneMap, least_genes, match_genes, plain_names
from ginseng.utils.hvg import most_variable
from ginseng.utils.markers import markers
from ginseng.utils.messages import UnknownName, warn
from ginseng.utils.names import agreed_names, called_by, second_names
from ginseng.utils.values import texts

Source = str | Path | AnnData
WAYS_TO_CHOOSE = ("markers", "variance")


class Sources:
    """Labelled counts from one or several AnnData objects or files.

    Parameters
    ----------
    sources : str, Path, AnnData or an iterable of these
        Raw counts; files that are opened here are closed on leaving the context.
    label_key : str
        Column of ``obs`` with the cell types, in all of them.
    group_key : str or None
        Column of ``obs`` with the donor or batch, in all of them.
    layer : str or None
        Key in ``layers``, or ``"raw"``; None for ``X``.
    genes : str, int, list of str, numpy.ndarray or None
        Which genes, see `chosen_names`; of several inputs those that are chosen in all. Of a number to be chosen,
        all until `keep_best` chooses them.
    missing_labels : {"drop", "error"}
        What to do with cells without a label.
    mapping : mapping, optional
        Other names of the labels, see `labels_of`.
    unlabeled : str or sequence of str
        Labels that say that there is none, see `labels_of`.
    further : sequence of str
        Columns of ``obs`` to keep beside these, in all of them.
    gene_key : str or None
        Column of ``var`` with gene names, in all of them; None for its index.
    normalize, fix : bool
        See `checked_reference`.

    Attributes
    ----------
    gene_names : list of str
        Names of the genes.
    second_names : list of str or None
        Other names of the genes, see `agreed_names`.
    labels, groups : pandas.Categorical
        Of the labelled cells; there may be no groups (None).
    further : dict of pandas.Categorical
        What the further columns say of them, or nothing (missing).
    cell_names : pandas.Index
        Names of the labelled cells. Where names are repeated between inputs, the number of the input is appended.
    n_read : int
        Number of all cells.
    findings : list of Preflight
        Of each input.

    Raises
    ------
    ValueError
        If a column, layer or gene does not exist, the counts are in the wrong form, no cell has a label, `mapping` does
        not fit, or too few genes are common, see `least_genes`.

    Examples
    --------
    >>> def of(label, genes):
    ...     counts = np.ones((2, len(genes)))
    ...     return AnnData(counts, pd.DataFrame({"type": label}, ["a", "b"]), pd.DataFrame(index=genes))
    >>> sources = Sources([of("T", ["CD3D", "CD8A", "CD4"]), of("B", ["CD4", "CD3D"])], "type")
    >>> sources.gene_names, list(sources.labels), list(sources.cell_names)
    (['CD3D', 'CD4'], ['T', 'T', 'B', 'B'], ['a-0', 'b-0', 'a-1', 'b-1'])
    """

    def __init__(
        self,
        sources: Source | Iterable[Source],
        label_key: str,
        group_key: str | None = None,
        layer: str | None = None,
        genes: Genes = None,
        missing_labels: str = "drop",
        *,
        mapping: Any = None,
        unlabeled: str | Sequence[str] = (),
        further: Sequence[str] = (),
        gene_key: str | None = None,
        normalize: bool = True,
        fix: bool = False,
    ):
        given = [sources] if isinstance(sources, str | Path | AnnData) else list(sources)
        self._files = ExitStack()
        if not given:
            raise ValueError("There is no input: pass an AnnData, a path, or a list of these.")
        self._n_chosen = n_chosen(genes)
        if len(given) > 1 and not isinstance(genes, str) and np.asarray(genes).dtype == bool:
            raise ValueError("A mask of genes cannot hold for several inputs: pass names, or a column of adata.var.")
        data, chosen, self._counts, self.findings = [], [], [], []
        for number, source in enumerate(given):
            try:
                adata = self._opened(source)
                for kind, key in (("label", label_key), ("group", group_key), *(("further", key) for key in further)):
                    require_column(adata.obs, kind, key, adata.var)
                file = None if isinstance(source, AnnData) else source
                how: dict[str, Any] = {"fix": fix, "file": file, "held_genes": lambda var: _held(var, genes, gene_key)}
                counts, found = checked_reference(adata, layer, gene_key, normalizes=normalize, **how)
                found.require()
                found.warn()
                counts.nonnegative = self._n_chosen is not None
                mask: Any = np.asarray(genes)
                is_mask = mask.dtype == bool and mask.shape == (counts.n_columns,)
                chosen.append(chosen_names(counts.var, mask[counts.columns] if is_mask else genes))
            except ValueError as error:
                if len(given) == 1:
                    raise
                kind = UnknownName if isinstance(error, UnknownName) else ValueError
                raise kind(f"In input {number + 1} of {len(given)}: {error}") from error
            data.append(adata)
            self._counts.append(counts)
            self.findings.append(found)
        self._keep(_common(chosen))

        keys = [key for key in dict.fromkeys([label_key, group_key, *further]) if key is not None]
        obs = pd.concat([adata.obs[keys] for adata in data]) if len(data) > 1 else data[0].obs[keys]
        labelled, self.labels = labels_of(obs, label_key, missing_labels, mapping, unlabeled)
        self.groups = None if group_key is None else groups_of(obs, group_key, labelled)
        self.further = {key: further_of(obs, key, labelled) for key in further if key not in (label_key, group_key)}
        self.cell_names = _unique([adata.obs_names for adata in data])[labelled]
        self._labelled = labelled
        self.n_read = len(labelled)

    def __enter__(self) -> "Sources":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _opened(self, source: Source) -> AnnData:
        return source if isinstance(source, AnnData) else self._files.enter_context(opened_counts(source))

    def _keep(self, gene_names: list[str]) -> None:
        self.gene_names = gene_names
        kept = np.array(gene_names, dtype=object)
        self._gene_maps = [GeneMap(match_genes(counts.var.index, kept), len(kept)) for counts in self._counts]

    def add_others(self) -> None:
        """Add, as a last gene, the sum of the counts of all genes that are not kept, if there are any.

        Of several inputs it is that of the genes that all of them have: sums of different genes cannot be compared.
        """
        names = [plain_names(counts.var.index) for counts in self._counts]
        is_common = [np.logical_and.reduce([of_input.isin(others) for others in names]) for of_input in names]
        positions = [
            np.where((gene_map.positions < 0) & ~common, LEFT_OUT, gene_map.positions)
            for gene_map, common in zip(self._gene_maps, is_common, strict=True)
        ]
        if n_left_out := max(int((of_input == LEFT_OUT).sum()) for of_input in positions):
            warn(
                f"The sum of the other genes is that of genes that all {len(names)} inputs have; up to {n_left_out:,} "
                "of one are left out."
            )
        if all((of_input != OTHER).all() for of_input in positions):
            return
        if OTHER_GENES not in self.gene_names:
            self.gene_names = [*self.gene_names, OTHER_GENES]
        rest = self.gene_names.index(OTHER_GENES)
        self._gene_maps = [GeneMap(of_input, len(self.gene_names), rest) for of_input in positions]
        for counts in self._counts:
            counts.nonnegative = True  # negative ones would be hidden in the sum

    @property
    def second_names(self) -> list[str] | None:
        """Other names of the genes that are kept, which the inputs that have such names agree on."""
        of_inputs = []
        for counts, gene_map in zip(self._counts, self._gene_maps, strict=True):
            if (names := second_names(counts.var)) is not None:
                is_kept, kept = gene_map.positions >= 0, np.full(gene_map.n_inputs, "", dtype=object)
                of_kept, names = gene_map.positions[is_kept], names[is_kept]
                kept[of_kept] = names
                kept[of_kept[kept[of_kept] != names]] = ""  # genes of one name that are summed have several
                if gene_map.rest is not None:
                    kept[gene_map.rest] = ""
                of_inputs.append(kept)
        agreed = agreed_names(of_inputs) if of_inputs else None
        return None if agreed is None else agreed.tolist()

    def keep_best(self, select: str, size: int, cells: np.ndarray | None = None, *, silent: bool = False) -> bool:
        """Choose genes over the labelled cells of all inputs, or some of these, if a number of them is asked for.

        The counts are read once, in blocks of `size` cells. If there are no more genes than asked for, all are kept.
        Returns whether genes were chosen.

        Parameters
        ----------
        select : {"markers", "variance"}
            Genes that tell the types apart, consistently over groups, or that vary most.
        size : int
            Cells to read at once.
        cells : numpy.ndarray, optional
            Which of the labelled cells to choose by.
        silent : bool
            Show no progress bar.

        Raises
        ------
        ValueError
            If there is no gene to choose, or a count is NaN, infinite or negative.
        """
        n_genes = len(self.gene_names)
        if self._n_chosen is None or self._n_chosen >= n_genes:
            if self._n_chosen is not None and self._n_chosen > n_genes:
                warn(f"{self._n_chosen:,} genes were to be chosen, but there are {n_genes:,}: all of them are kept.")
            return False
        n_labelled = len(self.labels)
        among = np.ones(n_labelled, bool) if cells is None else np.isin(np.arange(n_labelled), cells)
        blocks, shape = self.blocks(size, among), (self.n_read, len(self.gene_names))
        if select == "markers":
            if len(self.labels.categories) < 2:
                raise ValueError(
                    f"Markers tell labels apart, but there is only one, '{self.labels.categories[0]}': name the genes, "
                    "or choose them by 'variance'."
                )
            _, types = np.unique(self.labels.codes[among], return_inverse=True)
            groups = None if self.groups is None else np.unique(self.groups.codes[among], return_inverse=True)[1]
            chosen = markers(blocks, shape, self._n_chosen, types, groups, silent=silent).genes
        else:
            chosen = most_variable(blocks, shape, self._n_chosen, silent=silent)
        if len(chosen) == 0:
            raise ValueError("No gene is expressed in any cell that has a label.")
        self._keep([self.gene_names[gene] for gene in np.sort(chosen)])
        return True

    def blocks(self, size: int, among: np.ndarray | None = None) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yield the number of cells read, `size` at a time, with the counts of the labelled ones, or some of them."""
        wanted = self._labelled.copy()
        if among is not None:
            wanted[wanted] = among
        ends = np.cumsum([counts.n_cells for counts in self._counts])
        for counts, gene_map, of_input in zip(self._counts, self._gene_maps, np.split(wanted, ends[:-1]), strict=True):
            for start, stop, block in counts.blocks(size):
                here = of_input[start:stop]
                chosen = gene_map.of(block if here.all() else sparse.csr_matrix(block[here]))
                if not chosen.data.astype(np.float32, copy=False).all():  # as what fractions are stored
                    chosen = chosen.copy()  # a block of all cells may be the caller's own matrix
                    chosen.data[chosen.data.astype(np.float32) == 0] = 0
                    chosen.eliminate_zeros()
                yield stop - start, chosen


def _held(var: pd.DataFrame, genes: Genes, gene_key: str | None) -> HeldGenes:
    """How many genes can be kept of a matrix with this annotation."""
    try:
        named = var if gene_key is None else called_by(var, gene_key)
        return HeldGenes.number(len(chosen_names(named, genes)))
    except ValueError:
        return HeldGenes.number(0)


def _common(names: list[list[str]]) -> list[str]:
    """Names that are in all of the lists, in the order of the first."""
    common = np.array(names[0], dtype=object)
    for others in names[1:]:
        common = common[np.isin(np.arange(len(common)), match_genes(np.array(others, dtype=object), common))]
    fewest, most = min(map(len, names)), max(map(len, names))
    if len(common) < (least := least_genes(fewest)):
        found = f"only {len(common):,} of {fewest:,} genes" if len(common) else "no gene"
        raise ValueError(
            f"The inputs have {found} in common, where {least:,} are needed; are their genes named in the same way?"
        )
    if len(common) < most:
        warn(
            f"{len(common):,} genes are common to all {len(names)} inputs, which have {fewest:,} to {most:,}; the "
            "others are left out."
        )
    return texts(common, "gene").tolist()


def _unique(names: list[pd.Index]) -> pd.Index:
    joined = names[0].append(names[1:])
    if len(names) == 1 or joined.is_unique:
        return joined
    return pd.Index([f"{name}-{number}" for number, of_input in enumerate(names) for name in of_input])
