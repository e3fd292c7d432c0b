"""What form counts are in, told from the values of some cells: raw, normalised, logarithms, scaled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

_UNDO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda values: values,
    "log1p": np.expm1,
    "log2(x + 1)": lambda values: np.expm1(values * np.log(2.0)),
    "log10(x + 1)": lambda values: np.expm1(values * np.log(10.0)),
    "sqrt": np.square,
}
_LARGEST_LOGARITHM = 30.0  # of any of these bases
_LEAST_PART = 5  # cells of a form of their own
_BY_CHANCE = 1e-3  # probability that all values of a cell are whole, where those of others are not
_LEAST_NEGATIVE = 0.01  # share of the entries; single ones are errors, and no form
_EQUAL_TOTALS = 1e-2  # 95th less 5th percentile, over the median
_FEW_CELLS = 3  # whose totals may be equal by chance
_LARGEST_MULTIPLE, _NEARLY_WHOLE = 20.5, 0.03
_LARGEST_LEAST = 5  # count of a cell without a count of 1
_LEAST_MULTIPLES, _LEAST_WHOLE = 20, 0.95
_LEAST_PAIRS = 20.0  # values above 1 to be expected, where there is none
_WIDE_RANGE = 10.0  # from a small value to the largest of a cell
_OFTEN, _AROUND_ONE, _MOST = 0.3, 0.4, 0.8  # share of cells; binary logarithm; share of genes

RAW, CORRECTED, NORMALISED, LOGARITHMS = "raw counts", "corrected counts", "normalised", "logarithms"
ROOTS, SCALED, BINARY, FRACTIONS, EMPTY = "square roots", "scaled", "binary", "fractions", "empty"
MIXED = "mixed"
_TOLD = (RAW, BINARY, NORMALISED, LOGARITHMS, ROOTS)  # by values of a few cells


@dataclass(frozen=True)
class Form:
    """What form counts are in.

    Attributes
    ----------
    kind : str
        "raw counts"; "corrected counts", with fractions, as a correction for ambient RNA leaves them; "normalised";
        "logarithms"; "square roots"; "scaled", with negative values; "binary"; "fractions" of another kind; "empty";
        "mixed", of which some cells are in one form and some in another.
    function : str
        What was applied, such as "log1p", or "".
    total : float, optional
        What each cell, before that, adds up to.
    shows_counts : bool
        Whether values, before that, are whole multiples of the smallest of their cell, which stands for a count of 1.
    is_of_raw : bool
        Whether that smallest value is 1, so that the function was applied to raw counts.
    example : float, optional
        A value that no raw count has.
    parts : str
        Of mixed forms, how many cells are in which.
    """

    kind: str
    function: str = ""
    total: float | None = None
    shows_counts: bool = False
    is_of_raw: bool = False
    example: float | None = None
    parts: str = ""

    @property
    def name(self) -> str:
        """In words."""
        if self.kind == NORMALISED or self.function:
            if self.is_of_raw:
                of = "raw counts"
            elif self.total is not None:
                of = f"counts normalised to {_number(self.total)} per cell"
            else:
                of = "normalised counts whose totals differ, as of a subset of genes"
            return f"{self.function} of {of}" if self.function else of
        return {
            SCALED: "scaled or centred values",
            BINARY: "only 0 and 1",
            CORRECTED: "counts with fractions, as corrections leave them",
            FRACTIONS: "fractions",
            EMPTY: "no counts",
            MIXED: self.parts,
        }.get(self.kind, self.kind)

    @property
    def is_whole(self) -> bool:
        """Whether all values are whole numbers, as those of counts are."""
        return self.kind in (RAW, BINARY, EMPTY)

    @property
    def can_be_undone(self) -> bool:
        """Whether counts, or values in proportion to them, can be had of what are neither."""
        return bool(self.function) or self.shows_counts

    @property
    def bound(self) -> float:
        """What values of this form are below."""
        return _LARGEST_LOGARITHM if self.kind == LOGARITHMS else np.inf

    def undone(self, block: sparse.csr_matrix) -> sparse.csr_matrix:
        """Values in proportion to counts, or the counts themselves where these can be told, cell by cell.

        Examples
        --------
        >>> logarithms = sparse.csr_matrix(np.log1p([[0.0, 5.0, 15.0], [2.5, 4.1, 0.0]]))
        >>> Form("logarithms", "log1p", shows_counts=True).undone(logarithms).toarray()
        array([[0. , 1. , 3. ],
               [2.5, 4.1, 0. ]], dtype=float32)
        """
        values = _UNDO[self.function](block.data.astype(np.float64))
        if self.shows_counts and len(values):
            n_cells = len(block.indptr) - 1
            of_cell = np.repeat(np.arange(n_cells), np.diff(block.indptr))
            smallest = np.full(n_cells, 1.0 if self.is_of_raw else np.inf)
            if not self.is_of_raw:
                np.minimum.at(smallest, of_cell[values > 0], values[values > 0])
            multiples = values / smallest[of_cell]
            is_told = np.zeros(n_cells, bool)
            for least in range(1, 2 if self.is_of_raw else _LARGEST_LEAST + 1):
                counts = least * multiples
                is_off = np.abs(counts - np.rint(counts)) > _NEARLY_WHOLE + 1e-5 * counts
                is_new = ~is_told & (np.bincount(of_cell[is_off], minlength=n_cells) == 0)
                values = np.where(is_new[of_cell], np.rint(counts), values)
                is_told |= is_new
        return sparse.csr_matrix((values.astype(np.float32), block.indices, block.indptr), block.shape)


def form_of(sample: sparse.csr_matrix) -> Form:
    """Tell the form of some cells.

    Raw counts are whole. Of others, each function is undone in turn: where cells then add up to the same, or each value
    is a whole multiple of the smallest of its cell (which is that of a count of 1), it is the one that was applied.
    What cannot be told, of few values for one, is "corrected counts" or "fractions".

    Parameters
    ----------
    sample : scipy.sparse.csr_matrix
        Finite values of some cells.

    Returns
    -------
    Form
        The form.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(1.0, (50, 30))
    >>> totals = counts.sum(axis=1, keepdims=True)
    >>> [form_of(sparse.csr_matrix(x)).name for x in (counts, np.log1p(1e4 * counts / totals), counts - 1.0)]
    ['raw counts', 'log1p of counts normalised to 10,000 per cell', 'scaled or centred values']
    """
    is_nonzero = sample.data.astype(np.float32) != 0
    values = sample.data[is_nonzero].astype(np.float64)
    if not len(values):
        return Form(EMPTY)
    n_cells, n_genes = sample.get_shape()
    n_negative = np.count_nonzero(values < 0)
    if n_negative >= _LEAST_NEGATIVE * n_cells * n_genes:
        return Form(SCALED, example=float(values.min()))
    fractions = values != np.rint(values)
    if not fractions.any():
        is_binary = values.max() == 1 and len(values) ** 2 / 2 >= _LEAST_PAIRS * n_cells * n_genes
        return Form(BINARY) if is_binary else Form(RAW)
    cells = np.repeat(np.arange(n_cells), np.diff(sample.indptr))[is_nonzero]
    if n_negative:
        cells, values = cells[values > 0], values[values > 0]
    cells = np.unique(cells, return_inverse=True)[1]
    example = float(sample.data[is_nonzero][fractions][0])
    if (found := _function_of(values, cells, example)) is not None:
        return found
    is_wide = _range_within(values, cells) >= _WIDE_RANGE and not _is_scaled_by_gene(sample)
    return Form(CORRECTED if is_wide else FRACTIONS, example=example)


def forms_by_cell(sample: sparse.csr_matrix) -> list[tuple[Form, np.ndarray]]:
    """Tell the form of some cells where these may be of several data sets, which were joined in different forms.

    Cells of whole numbers, of fractions no larger than a logarithm, and of others are looked at apart, if there are a
    few of each; a cell that is whole by chance, as small ones of square roots are, goes with the others.

    Parameters
    ----------
    sample : scipy.sparse.csr_matrix
        See `form_of`.

    Returns
    -------
    list of (Form, numpy.ndarray)
        One form with all cells, or, if different functions were applied to them, each form with its cells.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(1.0, (50, 30))
    >>> both = sparse.csr_matrix(np.vstack([counts, np.log1p(counts)]))
    >>> [(form.name, len(cells)) for form, cells in forms_by_cell(both)]
    [('raw counts', 50), ('log1p of raw counts', 50)]
    """
    whole = form_of(sample), np.arange(len(sample.indptr) - 1)
    values, n_values = sample.data.astype(np.float64), np.diff(sample.indptr)
    cells = np.repeat(whole[1], n_values)
    is_fraction = values != np.rint(values)
    has_fractions = np.bincount(cells[is_fraction], minlength=len(n_values)) > 0
    if not has_fractions.any():
        return [whole]
    share_whole, n_telling = 0.0, n_values
    if (~is_fraction[has_fractions[cells]]).any():  # a count of 1 is whole in most forms
        is_telling = np.abs(values) > 1
        share_whole = 1 - is_fraction.sum() / max((is_telling & has_fractions[cells]).sum(), is_fraction.sum())
        n_telling = np.bincount(cells[is_telling], minlength=len(n_values))
    is_whole = ~has_fractions & (n_telling > 0) & (share_whole**n_telling < _BY_CHANCE)
    is_large = np.bincount(cells[np.abs(values) >= _LARGEST_LOGARITHM], minlength=len(n_values)) > 0
    parts = [is_whole, ~is_whole & ~is_large, ~is_whole & is_large]
    if form_of(sparse.csr_matrix(sample[is_whole | is_large])).kind == NORMALISED:  # of which some are whole by chance
        parts = [is_whole | is_large, ~is_whole & ~is_large]
    groups = map(np.flatnonzero, parts)
    found = [(form_of(sparse.csr_matrix(sample[group])), group) for group in groups if len(group) >= _LEAST_PART]
    told = [(form, group) for form, group in found if form.kind in _TOLD]
    return told if len({form.function for form, _ in told}) > 1 else [whole]


def _function_of(values: np.ndarray, cells: np.ndarray, example: float) -> Form | None:
    """The form of values, by cell in ascending order, that are a function of counts."""
    undone = {
        function: undo(values)
        for function, undo in _UNDO.items()
        if function in ("", "sqrt") or values.max() < _LARGEST_LOGARITHM
    }
    whole = {function: _share_of_multiples(plain, cells) for function, plain in undone.items()}
    totals = {function: _Total.of(plain, cells) for function, plain in undone.items()}
    if whole["sqrt"] < _LEAST_WHOLE or whole[""] >= _LEAST_WHOLE:  # values of which the squares have equal sums
        del totals["sqrt"]
    equal = [function for function in totals if totals[function].spread <= _EQUAL_TOTALS]
    total = None
    if equal:
        function = min(equal, key=lambda name: (not totals[name].is_round, totals[name].spread))
        total = totals[function].total
    else:
        # Whole numbers are so by any of the functions, too.
        function = "" if whole[""] >= _LEAST_WHOLE else max(whole, key=lambda name: whole[name])
        if whole[function] < _LEAST_WHOLE:
            return None
    kind = {"": NORMALISED, "sqrt": ROOTS}.get(function, LOGARITHMS)
    shows_counts = whole[function] >= _LEAST_WHOLE
    is_of_raw = shows_counts and total is None and _starts_at_one(undone[function], cells)
    if is_of_raw and not function:
        kind, is_of_raw, shows_counts = CORRECTED, False, False
    return Form(kind, function, total, shows_counts, is_of_raw, example)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-6 * value else f"{value:,.6g}"


def _firsts(cells: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(cells, prepend=-1))


class _Total(NamedTuple):
    """What cells add up to, whether that is a power of ten, and how far it differs between them."""

    total: float
    is_round: bool
    spread: float

    @classmethod
    def of(cls, values: np.ndarray, cells: np.ndarray) -> "_Total":
        totals = np.bincount(cells, values)
        low, middle, high = np.percentile(totals, [5, 50, 95])
        power = 10.0 ** np.rint(np.log10(middle))
        is_round = bool(abs(middle - power) <= 1e-3 * power)
        is_chance = len(totals) < _FEW_CELLS and not is_round
        return cls(
            float(power if is_round else middle), is_round, np.inf if is_chance else float((high - low) / middle)
        )


def _share_of_multiples(values: np.ndarray, cells: np.ndarray) -> float:
    """The share of values that are whole multiples of the smallest of their cell, of the moderately larger ones."""
    multiples = values / np.minimum.reduceat(values, _firsts(cells))[cells]
    multiples = multiples[(multiples > 1 + _NEARLY_WHOLE) & (multiples < _LARGEST_MULTIPLE)]
    if len(multiples) < _LEAST_MULTIPLES:
        return 0.0
    return float((np.abs(multiples - np.rint(multiples)) <= _NEARLY_WHOLE).mean())


def _starts_at_one(values: np.ndarray, cells: np.ndarray) -> bool:
    smallest = np.minimum.reduceat(values, _firsts(cells))
    return bool((np.abs(smallest - np.rint(smallest)) <= _NEARLY_WHOLE).mean() >= _LEAST_WHOLE)


def _range_within(values: np.ndarray, cells: np.ndarray) -> float:
    """From the smallest to the largest value of a cell, in the middle over cells."""
    firsts = _firsts(cells)
    return float(np.median(np.maximum.reduceat(values, firsts) / np.minimum.reduceat(values, firsts)))


def _is_scaled_by_gene(sample: sparse.csr_matrix) -> bool:
    """Whether genes that many cells express have about unit variance."""
    genes = sample[:, sample.getnnz(axis=0) >= _OFTEN * (len(sample.indptr) - 1)].toarray().astype(np.float64)
    return genes.shape[1] > 0 and float((np.abs(np.log2(genes.std(axis=0) + 1e-30)) < _AROUND_ONE).mean()) > _MOST
