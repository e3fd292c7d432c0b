"""Matching the genes of a data set to those of a model."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from ginseng.utils.messages import shorten, warn
from ginseng.utils.values import require_number, texts

_LEAST_SHARE, _LEAST_GENES = 0.01, 5  # by chance, or between species, a few names are always equal
# Mouse symbols find up to 1.2 % of a human model's genes, which are up to 1.2 % of the mouse's. A panel finds as few,
# but these are 6 % of it and more, or 2 to 4 % if its genes are random. Whole data find 10 % of the model's and more.
_FEW, _FEW_OF_DATA = 0.05, 0.02
OTHER_GENES = "(other genes)"  # input of a model that is the sum of the counts of all genes which are no input
OTHER, LEFT_OUT = -1, -2  # in place of a position: a gene that is no input, and one that is not in that sum, either

_VERSIONED_ENSEMBL_ID = re.compile(r"^(ENS[A-Z]*\d{11})(?:\.\d+)?(?:_PAR_Y)?$")
_GENOME = re.compile(  # as the assemblies are called by those who make them, and by UCSC
    r"^((?:GRC[a-z]+|BDGP|hg|mm|rn|dm|ce|[a-z]{3}[A-Z][a-z]{2})\d+)[\w.-]*?(?:_premrna)?_+(?=[^_])"
)
_FEATURE_COLUMNS = ("featuretypes", "featuretype", "featurebiotype", "modality")  # of 10x and scanpy, CELLxGENE, muon
_GENE_KINDS = ("geneexpression", "gex", "genes", "gene", "rna", "mrna")
_OTHER_KINDS = frozenset(
    (
        *("antibodycapture", "antibody", "antibodies", "abseq", "abc", "protein", "proteins", "prot", "adt", "adts"),
        *("peaks", "peak", "atac", "chromatinaccessibility", "crisprguidecapture", "crispr", "guide", "guides"),
        *("sgrna", "grna", "multiplexingcapture", "hashtag", "hashtags", "hto", "htos", "cellhashing", "custom"),
        *("customfeature", "antigencapture", "cmo", "vdj", "vdjt", "vdjb", "tcr", "bcr", "sampletag", "sampletags"),
    )
)


def kinds_of_others(var: Any) -> np.ndarray:
    """What features are that are no genes, such as antibodies and peaks; "" for genes.

    Columns of ``var`` such as ``feature_types`` tell. Where one calls a feature a gene, all others that it names are
    none; where it does not, those of a kind that is known to be none. A value that is missing tells nothing.

    Examples
    --------
    >>> kinds = ["Gene Expression", "Antibody Capture", None]
    >>> kinds_of_others(pd.DataFrame({"feature_types": kinds}, ["CD4", "CD4_TotalSeqB", "CD8A"])).tolist()
    ['', 'Antibody Capture', '']
    """
    others = np.full(len(var), "", dtype=object)
    for name, column in var.items():
        if _folded(name) not in _FEATURE_COLUMNS or column.dtype.kind in "biufcmM":
            continue
        kinds = column.astype(object).where(column.notna().to_numpy(), "").astype(str).to_numpy(dtype=object)
        folded = {kind: _folded(kind) for kind in set(kinds)}
        names_genes = any(kind in _GENE_KINDS for kind in folded.values())
        is_left_out = {
            kind: plain not in ("", *_GENE_KINDS) if names_genes else plain in _OTHER_KINDS
            for kind, plain in folded.items()
        }
        others = np.where(np.array([is_left_out[kind] for kind in kinds], bool), kinds, others)
    return others


def left_out(others: np.ndarray) -> str:
    """A warning of features that are no genes, see `kinds_of_others`; "" if there are none.

    Examples
    --------
    >>> left_out(np.array(["", "Peaks", "Antibody Capture", "Peaks"]))
    'Left out features that are not genes: 2 Peaks, 1 Antibody Capture.'
    """
    counted = Counter(others[others != ""]).most_common()
    return f"Left out features that are not genes: {shorten(f'{n:,} {kind}' for kind, n in counted)}." * bool(counted)


def _folded(name: object) -> str:
    return re.sub(r"[\W_]", "", str(name).casefold())


def least_genes(n_genes: int, share: float | None = None) -> int:
    """Give the number of `n_genes` that must be found, for what is found to be no chance.

    Parameters
    ----------
    n_genes : int
        How many there are.
    share : float, optional
        Share of them that is enough, in [0, 1], but at least one gene; by default 1 %, but at least five genes, or all
        where there are fewer.

    Raises
    ------
    ValueError
        If `share` is no share.

    Examples
    --------
    >>> least_genes(2000), least_genes(40), least_genes(3), least_genes(40, 0.1), least_genes(40, 0.0)
    (20, 5, 3, 4, 1)
    """
    if share is None:
        share, least = _LEAST_SHARE, min(_LEAST_GENES, n_genes)
    else:
        require_number("min_overlap", share, "[0, 1]")
        least = 1
    return max(math.ceil(round(share * n_genes, 6)), least)  # rounded, since 0.07 * 100 is a little above 7


def match_genes(names: np.ndarray | pd.Index, model_genes: np.ndarray, *, ignore_case: bool = False) -> np.ndarray:
    """Find the position of each name among the genes of a model.

    Versions of Ensembl identifiers (``ENSG00000187608.10``) and prefixes of genomes (``GRCh38_CD3D``) are ignored, see
    `plain_names`, unless that would make two genes of the model the same. Of data of several genomes those names are
    taken that find most.

    Parameters
    ----------
    names : array of str
        Gene names of a data set; may repeat.
    model_genes : array of str
        Unique gene names.
    ignore_case : bool
        Match what is not found as it is written without regard to case, to genes of the model that nothing else was
        found for and that differ by more than case.

    Returns
    -------
    numpy.ndarray
        For each name its position in `model_genes`, or -1.

    Raises
    ------
    ValueError
        If `model_genes` repeats a name.

    Examples
    --------
    >>> match_genes(np.array(["CD3D", "XIST", "ENSG00000187608.10"]), np.array(["ENSG00000187608", "CD3D"]))
    array([ 1, -1,  0])
    >>> match_genes(np.array(["Cd3d", "Xist"]), np.array(["XIST", "CD3D"]), ignore_case=True)
    array([1, 0])
    """
    genes = pd.Index(texts(model_genes, "gene"))
    if not genes.is_unique:
        raise ValueError(f"Genes of a model must be unique; repeated: {list(genes[genes.duplicated()].unique()[:5])}.")
    names = pd.Index(texts(names, "gene"))
    is_of_several = len(genomes_of(genes)) > 1  # genomes, by which it tells genes apart
    if not (plain := plain_names(genes, "" if is_of_several else None)).is_unique:
        return _positions(names, genes, ignore_case)
    genomes = [""] if is_of_several else genomes_of(names) or [""]
    of_genomes = [plain_names(names, genome) for genome in genomes]
    return _positions(max(of_genomes, key=lambda names: names.isin(plain).sum()), plain, ignore_case)


def _positions(names: pd.Index, genes: pd.Index, ignore_case: bool) -> np.ndarray:
    positions = genes.get_indexer(names)
    if ignore_case:
        folded = genes.str.upper()
        is_free = ~folded.duplicated(keep=False)
        is_free[positions[positions >= 0]] = False
        found = folded[is_free].get_indexer(names.str.upper())
        positions = np.where(positions >= 0, positions, np.append(np.flatnonzero(is_free), -1)[found])
    return positions


def plain_names(names: Iterable[str], genome: str | None = None) -> pd.Index:
    """Names without versions of Ensembl identifiers, the mark of the copy on Y, and prefixes of any genome, or of one.

    Examples
    --------
    >>> list(plain_names(pd.Index(["ENSG00000187608.10", "ENSG00000182378.15_PAR_Y", "CH507-9B2.2", "GRCh38_CD3D"])))
    ['ENSG00000187608', 'ENSG00000182378', 'CH507-9B2.2', 'CD3D']
    """
    return pd.Index([_plain(name, genome) if "." in name or "_" in name else name for name in names], dtype=object)


def _plain(name: str, genome: str | None) -> str:
    prefix = _GENOME.match(name)
    if prefix is not None and genome in (None, prefix[1]):
        name = name[prefix.end() :]
    return _VERSIONED_ENSEMBL_ID.sub(r"\1", name)


def genomes_of(names: Iterable[str]) -> list[str]:
    """The genomes that names begin with.

    Examples
    --------
    >>> genomes_of(["GRCh38_CD3D", "mm10___Cd3d", "CD4"])
    ['GRCh38', 'mm10']
    """
    return list(dict.fromkeys(found[1] for name in names if "_" in name and (found := _GENOME.match(name))))


def told_repeated(n_genes: int) -> str:
    """A warning of genes that occur more than once.

    Examples
    --------
    >>> told_repeated(1)
    '1 genes occur more than once in the data; their counts are summed.'
    """
    return f"{n_genes:,} genes occur more than once in the data; their counts are summed."


@dataclass(frozen=True)
class GeneMap:
    """Which inputs of a model the genes of a data set are.

    Genes that the data set has more than once are summed, those it lacks are zero.

    Attributes
    ----------
    positions : numpy.ndarray
        For each gene of the data set its position among the inputs, or `OTHER`, or `LEFT_OUT`.
    n_inputs : int
        Genes of the model.
    rest : int, optional
        The input, if there is one, that is the sum of all genes which are no input: see `OTHER_GENES`.
    lacks_rest : bool
        Whether that sum is not known, and then 0: the data set has no other genes, or too few of them.

    Examples
    --------
    >>> genes = GeneMap.matching(np.array(["B", "X", "B"]), np.array(["A", "B"]))
    >>> genes.n_found, genes.of(sparse.csr_matrix([[1, 2, 3]])).toarray()
    (1, array([[0., 4.]]))
    """

    positions: np.ndarray
    n_inputs: int
    rest: int | None = None
    lacks_rest: bool = False

    @classmethod
    def matching(cls, names: np.ndarray | pd.Index, model_genes: np.ndarray) -> "GeneMap":
        """Match by name, see `match_genes`."""
        return cls.to(match_genes(names, model_genes), model_genes)

    @classmethod
    def to(cls, positions: np.ndarray, model_genes: np.ndarray) -> "GeneMap":
        """Which of the genes of a model are at `positions`."""
        others = np.flatnonzero(np.asarray(model_genes, object) == OTHER_GENES)
        rest = int(others[0]) if len(others) else None
        return cls(positions, len(model_genes), rest, rest is not None and not np.isin(positions, [OTHER, rest]).any())

    @cached_property
    def _times_found(self) -> np.ndarray:
        return np.bincount(self.positions[self.positions >= 0], minlength=self.n_inputs)

    @cached_property
    def _short_positions(self) -> np.ndarray:
        return self.positions.astype(np.int32)

    @cached_property
    def _is_identity(self) -> bool:
        return np.array_equal(self.positions, np.arange(self.n_inputs))

    @cached_property
    def _repeats(self) -> bool:
        return bool((self._times_found > 1).any())

    @cached_property
    def _rises(self) -> bool:
        return bool((np.diff(self.positions[self.positions >= 0]) > 0).all())

    @property
    def n_genes(self) -> int:
        """Inputs that are genes."""
        return self.n_inputs - (self.rest is not None)

    @property
    def n_found(self) -> int:
        """Inputs that the data set has."""
        return int((self._times_found > 0).sum())

    def least(self, share: float | None, weights: Callable[[], np.ndarray] | None = None) -> int:
        """How many inputs must be found: see `least_genes`; 5 % by default, where what is found may be chance.

        It may be if it is a small part of the inputs, of their weights, and of the genes of the data, as of symbols of
        another species. A panel of few genes has a small part of the inputs, but these are no small part of it.

        Examples
        --------
        >>> names = np.array([f"G{n}" for n in range(1000)])
        >>> panel, chance = names[:20], np.append(names[:20], [f"g{n}" for n in range(5000)])
        >>> GeneMap.matching(panel, names).least(None), GeneMap.matching(chance, names).least(None)
        (10, 50)
        """
        is_gene = np.arange(self.n_inputs) != (-1 if self.rest is None else self.rest)
        n_genes, n_of_data = int(is_gene.sum()), int((self.positions >= 0).sum())
        least = least_genes(n_genes, share)
        if share is not None or self.n_found >= _FEW * n_genes or n_of_data >= _FEW_OF_DATA * len(self.positions):
            return least
        of_genes = np.ones(self.n_inputs) if weights is None else np.asarray(weights())
        is_light = of_genes[is_gene & ~self.is_lacking].sum() < _FEW * of_genes[is_gene].sum()
        return max(least, least_genes(n_genes, _FEW)) if is_light else least

    def require(self, least: int, names: Iterable[str], model_genes: Iterable[str], way_out: Callable[[], str]) -> None:
        """Raise a ValueError, which tells the `way_out`, if the data set has fewer of the inputs than `least`."""
        if self.n_found < least:
            found = f"Only {self.n_found:,} of {self.n_inputs:,} genes" if self.n_found else "No gene"
            raise ValueError(
                f"{found} in common, where {least:,} are needed: the model knows {shorten(model_genes, 3)}; the data "
                f"have {shorten(names, 3)}; {way_out()}."
            )

    @property
    def is_lacking(self) -> np.ndarray:
        """Which inputs the data set lacks."""
        lacks = self._times_found == 0
        if self.rest is not None:
            lacks[self.rest] = self.lacks_rest
        return lacks

    def warn_of_differences(self, stand_in: str = "count as zero") -> None:
        """Warn of inputs that the data set lacks, and what these do, and of those that it has more than once."""
        if n_missing := int(self.is_lacking.sum()) - self.lacks_rest:
            warn(f"{n_missing:,} of the {self.n_genes:,} genes of the model are not in the data and {stand_in}.")
        if n_repeated := int((self._times_found > 1).sum()):
            warn(told_repeated(n_repeated))

    def of(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Counts over the inputs, of counts over the genes of the data set."""
        if self._is_identity:
            return counts
        positions = self._short_positions.take(counts.indices)
        kept = np.flatnonzero(positions >= 0)
        data = counts.data.take(kept)
        if self._repeats or not counts.has_canonical_format:
            data = data.astype(np.float64)  # sums may not fit in a small integer
        row_ends = np.searchsorted(kept, counts.indptr)
        shape = (len(row_ends) - 1, self.n_inputs)
        chosen = sparse.csr_matrix((data, positions.take(kept), row_ends), shape=shape)
        if self._rises and counts.has_canonical_format:
            chosen.has_canonical_format = True
        else:
            chosen = sparse.csr_matrix(chosen.tocsc())  # sorts in linear time: half that of `sort_indices`
            chosen.sum_duplicates()
        return chosen if self.rest is None or self.lacks_rest else chosen + self._rest_of(counts)

    def has_counts(self, aligned: sparse.csr_matrix) -> np.ndarray:
        """Which cells have a count of any input but the sum of the genes that are none."""
        counts = aligned.data != 0
        if self.rest is not None:
            counts &= aligned.indices != self.rest
        n_before = np.concatenate([[0], np.cumsum(counts)])[aligned.indptr]
        return n_before[1:] > n_before[:-1]

    def _rest_of(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        sums = counts @ (self.positions == OTHER).astype(np.float64)
        n_cells = len(sums)
        return sparse.csr_matrix((sums, np.full(n_cells, self.rest), np.arange(n_cells + 1)), (n_cells, self.n_inputs))
