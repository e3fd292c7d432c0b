"""Matching the genes of a data set to those of a model."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse

from ginseng.utils.messages import shorten, warn
from ginseng.utils.values import require_number, texts

_LEAST_SHARE, _LEAST_GENES = 0.01, 5  # by chance, or between species, a few names are always equal
OTHER_GENES = "(other genes)"  # input of a model that is the sum of the counts of all genes which are no input

_VERSIONED_ENSEMBL_ID = re.compile(r"^(ENS[A-Z]*\d{11})\.\d+$")


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

    Versions of Ensembl identifiers (``ENSG00000187608.10``) are ignored, unless that would make two genes of the model
    the same.

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
    without_versions = unversioned(genes)
    if without_versions.is_unique:
        genes, names = without_versions, unversioned(names)
    positions = genes.get_indexer(names)
    if ignore_case:
        folded = genes.str.upper()
        is_free = ~folded.duplicated(keep=False)
        is_free[positions[positions >= 0]] = False
        found = folded[is_free].get_indexer(names.str.upper())
        positions = np.where(positions >= 0, positions, np.append(np.flatnonzero(is_free), -1)[found])
    return positions


def unversioned(names: np.ndarray | pd.Index) -> pd.Index:
    """Names without the versions of Ensembl identifiers.

    Examples
    --------
    >>> list(unversioned(pd.Index(["ENSG00000187608.10", "CH507-9B2.2"])))
    ['ENSG00000187608', 'CH507-9B2.2']
    """
    return pd.Index([_VERSIONED_ENSEMBL_ID.sub(r"\1", name) if "." in name else name for name in names], dtype=object)


@dataclass(frozen=True)
class GeneMap:
    """Which inputs of a model the genes of a data set are.

    Genes that the data set has more than once are summed, those it lacks are zero.

    Attributes
    ----------
    positions : numpy.ndarray
        For each gene of the data set its position among the inputs, or -1.
    n_inputs : int
        Genes of the model.
    rest : int, optional
        The input, if there is one, that is the sum of all genes which are no input: see `OTHER_GENES`.

    Examples
    --------
    >>> genes = GeneMap.matching(np.array(["B", "X", "B"]), np.array(["A", "B"]))
    >>> genes.n_found, genes.of(sparse.csr_matrix([[1, 2, 3]])).toarray()
    (1, array([[0., 4.]]))
    """

    positions: np.ndarray
    n_inputs: int
    rest: int | None = None

    @classmethod
    def matching(cls, names: np.ndarray | pd.Index, model_genes: np.ndarray) -> "GeneMap":
        """Match by name, see `match_genes`."""
        return cls.to(match_genes(names, model_genes), model_genes)

    @classmethod
    def to(cls, positions: np.ndarray, model_genes: np.ndarray) -> "GeneMap":
        """Which of the genes of a model are at `positions`."""
        others = np.flatnonzero(np.asarray(model_genes, object) == OTHER_GENES)
        return cls(positions, len(model_genes), int(others[0]) if len(others) else None)

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
    def n_found(self) -> int:
        """Inputs that the data set has."""
        return int((self._times_found > 0).sum())

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
            lacks[self.rest] = False
        return lacks

    def warn_of_differences(self, stand_in: str = "count as zero") -> None:
        """Warn of inputs that the data set lacks, and what these do, and of those that it has more than once."""
        if n_missing := int(self.is_lacking.sum()):
            warn(f"{n_missing:,} of the {self.n_inputs:,} genes of the model are not in the data and {stand_in}.")
        if n_repeated := int((self._times_found > 1).sum()):
            warn(f"{n_repeated:,} genes occur more than once in the data; their counts are summed.")

    def of(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Counts over the inputs, of counts over the genes of the data set."""
        if self._is_identity:
            return counts
        positions = self._short_positions.take(counts.indices)
        kept = np.flatnonzero(positions >= 0)
        data = counts.data.take(kept)
        if self._repeats:
            data = data.astype(np.result_type(data, np.float32))  # sums may not fit in a small integer
        row_ends = np.searchsorted(kept, counts.indptr)
        shape = (len(row_ends) - 1, self.n_inputs)
        chosen = sparse.csr_matrix((data, positions.take(kept), row_ends), shape=shape)
        if self._rises and counts.has_canonical_format:
            chosen.has_canonical_format = True
        else:
            chosen = sparse.csr_matrix(chosen.tocsc())  # sorts in linear time: half that of `sort_indices`
            chosen.sum_duplicates()
        return chosen if self.rest is None else chosen + self._rest_of(counts)

    def has_counts(self, aligned: sparse.csr_matrix) -> np.ndarray:
        """Which cells have a count of any input but the sum of the genes that are none."""
        counts = aligned.data != 0
        if self.rest is not None:
            counts &= aligned.indices != self.rest
        n_before = np.concatenate([[0], np.cumsum(counts)])[aligned.indptr]
        return n_before[1:] > n_before[:-1]

    def _rest_of(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        sums = counts @ (self.positions < 0).astype(np.float64)
        n_cells = len(sums)
        return sparse.csr_matrix((sums, np.full(n_cells, self.rest), np.arange(n_cells + 1)), (n_cells, self.n_inputs))
