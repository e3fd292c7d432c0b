"""A look at data before they are annotated or trained on: in what form the counts are, which genes are found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ginseng.data.matching import GeneMatch, gene_weights, matched_genes
from ginseng.model.annotator import Annotator
from ginseng.utils import forms
from ginseng.utils.counts import Counts, NoMatrix, layer_names
from ginseng.utils.forms import Form, form_of, forms_by_cell
from ginseng.utils.genes import GeneMap, kinds_of_others, told_repeated
from ginseng.utils.messages import warn
from ginseng.utils.names import GeneNames, are_numbers, called_by, column_of_names, names_by_place

_TO_BE_WARNED_OF = (forms.CORRECTED, forms.NORMALISED, forms.FRACTIONS, forms.BINARY)
_GIVES_COUNTS = {  # or values in proportion to them; the lower the better
    forms.RAW: 0,
    forms.CORRECTED: 1,
    forms.NORMALISED: 2,
    forms.LOGARITHMS: 2,
    forms.ROOTS: 2,
}
_MUCH_MISSING = 0.2  # of the weight
_CLEARLY_FEWER = 0.9  # of the weight of the genes of another matrix
_TOO_FEW_OTHERS = 2 / 3  # of their share of the counts in training; a single type has 0.78 (acinar cells of pancreas)
_NOT_CUT = 10_000  # other genes
_WITHOUT_OTHERS = 0.85  # of the weight; of the statuses, 0.92 are as with them
_PARTS_OF_COUNTS = ("spliced", "unspliced", "ambiguous")


class HeldGenes(NamedTuple):
    """Which genes a matrix has.

    Attributes
    ----------
    weight : float
        Their share of the weight of a model's genes; without a model, how many they are.
    told : str
        How many they are, in words.
    """

    weight: float
    told: str

    @classmethod
    def number(cls, n_genes: int) -> "HeldGenes":
        """Of training data."""
        return cls(n_genes, f"{n_genes:,} genes")


_THE_SAME = HeldGenes(1.0, "")


class Candidate(NamedTuple):
    """A matrix that might be taken.

    Attributes
    ----------
    layer : str or None
        The argument that stands for it.
    place : str
        What errors call it.
    form : Form
        Its form.
    genes : HeldGenes
        Its genes.
    """

    layer: str | None
    place: str
    form: Form
    genes: HeldGenes

    @property
    def argument(self) -> str:
        """How to ask for it."""
        if self.layer is None:
            said = "leave `layer` out"
            return f"{said} and pass fix=True" if self.needs_fix else said
        if self.needs_fix:
            return f'pass layer="{self.layer}", fix=True'
        return f'pass layer="{self.layer}"'

    @property
    def needs_fix(self) -> bool:
        """Whether it is refused unless what was done to it is undone."""
        return self.form.kind in (forms.LOGARITHMS, forms.ROOTS)

    def has_clearly_more_than(self, other: "Candidate") -> bool:
        """Whether the other lacks a good part of its genes."""
        return other.genes.weight < _CLEARLY_FEWER * self.genes.weight


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The matrix to take: raw counts, or what counts can be had of, but none that lacks a good part of the genes.

    Parameters
    ----------
    candidates : sequence of Candidate
        The one that was asked for, which is taken if none gives counts, then others, the likeliest first.

    Examples
    --------
    >>> few, all_genes = HeldGenes(0.4, "80 genes"), HeldGenes(1.0, "200 genes")
    >>> x = Candidate(None, "adata.X", Form("scaled"), few)
    >>> raw = Candidate("raw", "adata.raw", Form("logarithms", "log1p"), all_genes)
    >>> counts = Candidate("counts", "adata.layers['counts']", Form("raw counts"), few)
    >>> [best_of(candidates).place for candidates in ([x, raw], [x, raw, counts], [x, counts], [x])]
    ['adata.raw', 'adata.raw', "adata.layers['counts']", 'adata.X']
    """
    give_counts = [candidate for candidate in candidates if candidate.form.kind in _GIVES_COUNTS]
    if not give_counts:
        return candidates[0]
    richest = max(give_counts, key=lambda candidate: candidate.genes.weight)
    rich = [candidate for candidate in give_counts if not richest.has_clearly_more_than(candidate)]
    if candidates[0] in rich and candidates[0].form.kind == forms.CORRECTED:
        return candidates[0]
    return min(rich, key=lambda candidate: _GIVES_COUNTS[candidate.form.kind])


@dataclass(frozen=True)
class Preflight:
    """What a look at data has found.

    Attributes
    ----------
    forms : mapping of str to Form
        The form of each matrix that was looked at: "X", "layer counts", "raw".
    used : str
        Which of them is used.
    counts : str, optional
        Which of them holds raw counts.
    genes : dict
        With a model: which names were matched (``by``), how many of the model's genes were ``found``, ``of`` how many,
        how many are ``needed``, and which share of the model's weight those that lack carry (``missing_weight``).
    fixed : tuple of str
        What was put right.
    warnings : tuple of str
        What to know of data that can be used as they are.
    problems : tuple of str
        For what the data are refused, with the way out.

    Examples
    --------
    >>> adata = AnnData(np.log1p(np.random.default_rng(0).poisson(1.0, (50, 30))))
    >>> print(checked_counts(adata)[1].report())  # doctest: +NORMALIZE_WHITESPACE
    X (used): log1p of raw counts
    refused: adata.X holds log1p of raw counts, such as 0.6931, where raw counts are expected: pass fix=True, by
    which this is undone, or normalize=False for a network that takes such values.
    """

    forms: Mapping[str, Form]
    used: str
    counts: str | None = None
    genes: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise a ValueError if the data are refused."""
        if self.problems:
            raise ValueError(" ".join(self.problems))

    def warn(self) -> None:
        """Warn of what there is to know."""
        for text in (*self.warnings, *self.fixed):
            warn(text)

    def report(self) -> str:
        """All of it, in lines."""
        lines = [f"{name}{' (used)' * (name == self.used)}: {form.name}" for name, form in self.forms.items()]
        if self.genes:
            lines.append(
                f"genes: {self.genes['found']:,} of the model's {self.genes['of']:,}, by {self.genes['by']}; "
                f"{self.genes['needed']:,} are needed; those that lack carry {self.genes['missing_weight']:.1%} of its "
                "weight"
            )
        for kind, texts in (("put right", self.fixed), ("warning", self.warnings), ("refused", self.problems)):
            lines += [f"{kind}: {text}" for text in texts]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """What ``adata.uns`` can hold, of any file format."""
        return {
            "forms": {name.replace("/", "_"): form.name for name, form in self.forms.items()},
            "used": self.used,
            "counts": self.counts or "",
            "genes": dict(self.genes),
            "fixed": list(self.fixed),
            "warnings": list(self.warnings),
        }


def forms_of(adata: AnnData, known: Mapping[str | None, Form] | None = None) -> dict[str | None, Form]:
    """The form of each matrix of numbers, by the argument `layer` that stands for it, but of those that are known.

    Examples
    --------
    >>> adata = AnnData(np.eye(3), layers={"scaled": np.eye(3) - 0.5})
    >>> {layer: form.kind for layer, form in forms_of(adata).items()}
    {None: 'raw counts', 'scaled': 'scaled'}
    """
    layers = [None, *layer_names(adata), *(["raw"] if _has_raw(adata) else [])]
    found = {} if known is None else dict(known)
    for layer in layers:
        if layer not in found and (form := _form_in(adata, layer)) is not None:
            found[layer] = form
    return found


def _form_in(adata: AnnData, layer: str | None) -> Form | None:
    """The form of a matrix; None if it holds no counts: text, or what is damaged."""
    try:
        return form_of_counts(Counts(adata, layer))
    except ValueError:
        return None


def form_of_counts(counts: Counts) -> Form:
    """The form of counts, told from some cells; where these are of several forms, with how many are of which.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(1.0, (50, 30))
    >>> form_of_counts(Counts(AnnData(np.vstack([counts, np.log1p(counts)])))).parts
    "raw counts in 50 of the 100 cells that were looked at, such as '0', and log1p of raw counts in 50, such as '50'"
    """
    sample, cells = counts.sample()
    (first, first_cells), *others = forms_by_cell(sample)
    if not others:
        return first
    of_first, *of_others = (
        (form.name, len(rows), counts.cell_names[cells[rows[0]]]) for form, rows in [(first, first_cells), *others]
    )
    told = f"{of_first[0]} in {of_first[1]} of the {len(cells)} cells that were looked at, such as '{of_first[2]}'"
    parts = [told, *(f"{name} in {n}, such as '{cell}'" for name, n, cell in of_others)]
    return Form(forms.MIXED, parts=", and ".join(parts))


def _has_raw(adata: AnnData) -> bool:
    return adata.raw is not None and "raw" not in adata.layers


def name_of(layer: str | None, adata: AnnData) -> str:
    """What a matrix is called in reports.

    Examples
    --------
    >>> name_of("counts", AnnData(np.eye(2))), name_of(None, AnnData(np.eye(2)))
    ('layer counts', 'X')
    """
    if layer is None:
        return "X"
    return layer if layer == "raw" and layer not in adata.layers else f"layer {layer}"


def checked_counts(
    adata: AnnData,
    layer: str | None = None,
    *,
    normalizes: bool = True,
    fix: bool = False,
    looks_at_all: bool = False,
    file: str | Path | None = None,
    held_genes: Callable[[pd.DataFrame], HeldGenes] = lambda var: HeldGenes.number(len(var)),
) -> tuple[Counts, Preflight]:
    """Open counts, with a look at some cells. Other matrices than `layer` are looked at where they may be better.

    Parameters
    ----------
    adata : AnnData
        The data.
    layer : str, optional
        See `Counts`.
    normalizes : bool
        Whether these are to be normalised: else any form is taken as it is.
    fix : bool
        Take the matrix that `best_of` names, and undo what was done to it.
    looks_at_all : bool
        Look at all matrices in any case.
    file : str or Path, optional
        See `Counts`.
    held_genes : callable, optional
        What a matrix with the annotation ``var`` has of the genes that are looked for.

    Returns
    -------
    Counts, Preflight
        To be read, unless the second has problems.

    Raises
    ------
    ValueError
        See `Counts`.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(1.0, (50, 30))
    >>> adata = AnnData(np.log1p(counts), layers={"umis": counts})
    >>> checked_counts(adata, fix=True)[1].used
    'layer umis'
    """
    try:
        counts = Counts(adata, layer, file=file)
        form = form_of_counts(counts)
    except NoMatrix:
        counts, form = None, Form(forms.EMPTY)
    has_raw = _has_raw(adata)

    @cache
    def genes_of(is_raw: bool) -> HeldGenes:
        var: Any = adata.raw.var if is_raw else adata.var
        return held_genes(var[kinds_of_others(var) == ""])

    def candidate(layer: str | None, form: Form) -> Candidate:
        is_raw = has_raw and layer == "raw"
        place = "adata.raw" if is_raw else "adata.X" if layer is None else f"adata.layers['{layer}']"
        return Candidate(layer, place, form, genes_of(is_raw) if has_raw else _THE_SAME)

    found: dict[str | None, Form] = {layer: form}
    if looks_at_all or (normalizes and form.kind != forms.RAW):
        found |= forms_of(adata, found)
    elif normalizes and has_raw and candidate("raw", form).has_clearly_more_than(candidate(layer, form)):
        found |= {} if (of_raw := _form_in(adata, "raw")) is None else {"raw": of_raw}
    order = [layer, None, "counts", *found]
    asked, *others = [
        candidate(place, found[place])
        for place in dict.fromkeys(order)
        if place in found and (place == layer or place not in _PARTS_OF_COUNTS)
    ]
    best = best_of([asked, *others]) if normalizes else asked
    if counts is None and best is asked:
        counts = Counts(adata, layer, file=file)  # says that it is empty
    taken, fixed, warnings, problems = asked, [], [], []
    is_refused = normalizes and _is_refused(asked, best)
    if normalizes and (is_refused or best is not asked or form.kind in _TO_BE_WARNED_OF):
        said = _fault(asked, best)
        if fix and best is not asked:
            taken, counts = best, Counts(adata, best.layer, file=file)
            undone = ""
            if best.form.can_be_undone:
                counts.form = best.form
                undone = f", and its {best.form.function} undone" if best.form.function else ""
            fixed.append(f"{said}: {best.place} was taken instead{undone}.")
        elif fix and form.can_be_undone and counts is not None:
            counts.form = form
            what = "counts are recovered" if form.shows_counts else "values are again in proportion to counts"
            fixed.append(f"{said}: this is undone, so that {what}.")
        elif is_refused:
            problems.append(f"{said}: {_way_out(asked, best)}.")
        else:
            warnings += _warnings(asked, best)
    if counts is None:  # refused
        counts = Counts(adata, best.layer, file=file)
    if counts.left_out:
        warnings.append(counts.left_out)
    counts.nonnegative = normalizes
    is_as_counts = taken is not asked or form.kind in (forms.RAW, forms.EMPTY)
    counts.raw = normalizes and counts.form is None and is_as_counts
    named = {name_of(place, adata): of_place for place, of_place in found.items()}
    holder = next((name_of(one.layer, adata) for one in (asked, *others) if one.form.kind == forms.RAW), None)
    used = name_of(taken.layer, adata)
    return counts, Preflight(named, used, holder, {}, tuple(fixed), tuple(warnings), tuple(problems))


def checked_reference(
    adata: AnnData, layer: str | None = None, gene_key: str | None = None, *, fix: bool = False, **look: Any
) -> tuple[Counts, Preflight]:
    """Open counts to train on, as `checked_counts` does, with a look at the names of their genes.

    Parameters
    ----------
    adata, layer, fix, look
        See `checked_counts`.
    gene_key : str, optional
        Column of ``var`` with gene names, which becomes the index of ``Counts.var``. With `fix` it is found, where the
        index has numbers.

    Raises
    ------
    ValueError
        See `Counts`; if the column does not exist, or has no name.

    Examples
    --------
    >>> adata = AnnData(np.eye(3), var=pd.DataFrame({"features": ["CD3D", "CD4", "LYZ"]}, ["0", "1", "2"]))
    >>> checked_reference(adata)[1].warnings[0][-58:]
    "adata.var['features'] has names: pass gene_key='features'."
    """
    counts, found = checked_counts(adata, layer, fix=fix, **look)
    fixed, warnings, better = [], [], None if gene_key is not None else column_of_names(counts.var)
    if better is not None:
        said = f"The genes are called by numbers such as '{counts.var.index[0]}', but adata.var['{better}'] has names"
        if fix:
            gene_key = better
            fixed.append(f"{said}, which were taken.")
        else:
            warnings.append(f"{said}: pass gene_key={better!r}.")
    if gene_key is not None:
        counts.var = called_by(counts.var, gene_key)
    if better is None and are_numbers(counts.var.index):
        warnings.append(
            f"The genes are called by numbers such as '{counts.var.index[0]}': a model of these finds no gene in other "
            "data. Name a column of adata.var with their names by gene_key, or set adata.var_names."
        )
    known = pd.Index([name for name in counts.var.index if name])
    if not len(known):
        raise ValueError(f"No gene has a name in adata.{'var_names' if gene_key is None else f'var[{gene_key!r}]'}.")
    if n_repeated := known[known.duplicated()].nunique():
        warnings.append(told_repeated(n_repeated))
    return counts, replace(found, fixed=(*found.fixed, *fixed), warnings=(*found.warnings, *warnings))


def require_counts(sample: np.ndarray, name: str) -> None:
    """Raise a ValueError, or warn, if the values of a dataset are in a form that is not to be normalised.

    Negative ones are named where they are read.

    Examples
    --------
    >>> require_counts(np.eye(3), "cells.zarr")
    """
    values = sparse.csr_matrix(sample)
    for form, _ in forms_by_cell(values):
        if form.kind in (forms.LOGARITHMS, forms.ROOTS):
            raise ValueError(
                f"{name} holds {form.name}, such as {form.example:.4g}, where raw counts are expected: create it anew "
                "with fix=True or the layer of raw counts, or train with normalize=False."
            )
    if (form := form_of(values)).kind in _TO_BE_WARNED_OF:
        warn(_warning(name, form))


def _is_refused(asked: Candidate, best: Candidate) -> bool:
    """Whether a matrix is not used unless it is put right: that it holds 0 and 1, or nothing, only if there is more."""
    if asked.form.kind in (forms.BINARY, forms.EMPTY):
        return best is not asked
    return asked.form.kind not in (forms.RAW, *_TO_BE_WARNED_OF)


def _fault(asked: Candidate, best: Candidate) -> str:
    form = asked.form
    if form.kind == forms.EMPTY:
        return f"{asked.place} has no count"
    has_more = f"{best.place} has {best.genes.told}, {asked.place} {asked.genes.told}"
    if form.kind in (forms.RAW, forms.CORRECTED):
        return has_more
    example = "" if form.example is None else f", such as {form.example:.4g}"
    holds = f"{asked.place} holds {form.name}{example}, where raw counts are expected"
    return f"{holds}, and {has_more}" if best.has_clearly_more_than(asked) else holds


def _way_out(asked: Candidate, best: Candidate) -> str:
    if best is not asked:
        holds = f"adata.X holds {best.form.name}" if best.layer is None else f"which has {best.form.name}"
        named = f"{best.argument}{':' if best.layer is None else ','} {holds}"
        return f"{named}; fix=True {'alone ' * best.needs_fix}does so"
    if asked.form.function:
        return "pass fix=True, by which this is undone, or normalize=False for a network that takes such values"
    if asked.form.kind == forms.MIXED:
        return "bring all cells into one form before they are joined, best the raw counts"
    return (
        "counts to normalise must not be negative, and no layer has them; go back to the file before it was scaled, or "
        "pass normalize=False for a network that takes such values"
    )


def _warnings(asked: Candidate, best: Candidate) -> list[str]:
    """What is said of a matrix that is used although it is no raw counts, or another is better."""
    said = [] if asked.form.kind == forms.RAW else [_warning(asked.place, asked.form)]
    if best is not asked:
        of_genes = f"has {best.genes.told}, {asked.place} {asked.genes.told}"
        if not best.has_clearly_more_than(asked):
            of_genes = f"holds {best.form.name}"
        said.append(f"{best.place} {of_genes}: {best.argument}.")
    return said


def _warning(name: str, form: Form) -> str:
    if form.kind == forms.BINARY:
        return f"{name} holds only 0 and 1, where raw counts are expected."
    of = {
        forms.CORRECTED: "as of counts that were corrected: they are taken as counts",
        forms.NORMALISED: f"of {form.name}: to normalise them once more changes nothing, but they are no raw counts",
    }.get(form.kind, "where raw counts are expected: are they logarithms, or scaled? fix=True cannot tell")
    return f"{name} holds fractions such as {form.example:.4g}, {of}."


def preflight(
    annotator: Annotator,
    adata: AnnData,
    gene_key: str | None = None,
    layer: str | None = None,
    *,
    min_overlap: float | None = None,
    gene_map: pd.DataFrame | None = None,
    ignore_case: bool = False,
    fix: bool = False,
    looks_at_all: bool = False,
    file: str | Path | None = None,
) -> tuple[Counts, GeneMap, Preflight]:
    """Look at data for a model: arguments as of `ginseng.classify`, and of `checked_counts`.

    Returns
    -------
    Counts, GeneMap, Preflight
        What is to be read, which genes of the model it has, and what was found.

    Raises
    ------
    ValueError
        If a layer or column does not exist, or a matrix is damaged.

    Examples
    --------
    >>> import equinox as eqx, jax.random as jr
    >>> model = Annotator(eqx.nn.Linear(3, 2, key=jr.key(0)), ["0", "1", "2"], ["B", "T"])
    >>> print(preflight(model, AnnData(np.eye(3)))[2].report())
    X (used): raw counts
    genes: 3 of the model's 3, by adata.var_names; 3 are needed; those that lack carry 0.0% of its weight
    """
    names = GeneNames(annotator.genes, annotator.second_names, gene_map, ignore_case)
    weights = cache(partial(gene_weights, annotator))

    def held_genes(var: pd.DataFrame) -> HeldGenes:
        try:
            genes = names.best(names_by_place(var, gene_key))[1]
        except ValueError:  # there is no such column
            return HeldGenes(0.0, "none of the model's genes")
        share = float(weights()[~genes.is_lacking].sum() / weights().sum())
        told = f"{genes.n_found:,} of the model's {genes.n_genes:,} genes"
        return (
            HeldGenes(share * _WITHOUT_OTHERS, f"{told} and no others") if genes.lacks_rest else HeldGenes(share, told)
        )

    how: dict[str, Any] = {"fix": fix, "looks_at_all": looks_at_all, "file": file, "held_genes": held_genes}
    counts, found = checked_counts(adata, layer, normalizes=annotator.takes_counts, **how)
    of_data = counts.var, names, gene_key, min_overlap
    matched = matched_genes(*of_data, fix=fix, cells=adata.obs_names, weights=weights)
    if not (found.problems or matched.problems):
        matched = _without_too_few_others(matched, counts, annotator)
    missing = matched.missing_weight(weights)
    if missing > _MUCH_MISSING and not matched.problems:
        text = (
            f"The genes that the data lack carry {missing:.0%} of the model's weight: types are less sure, and more "
            "cells look novel."
        )
        matched = replace(matched, warnings=(*matched.warnings, text))
    both = {name: getattr(found, name) + getattr(matched, name) for name in ("fixed", "warnings", "problems")}
    genes = {
        "by": matched.by,
        "found": matched.genes.n_found,
        "of": matched.genes.n_genes,
        "needed": matched.least,
        "missing_weight": missing,
    }
    return counts, matched.genes, replace(found, genes=genes, **both)


def _without_too_few_others(matched: GeneMatch, counts: Counts, annotator: Annotator) -> GeneMatch:
    """The same where the sum of other genes than the model's is not known, of which there are none, or too few."""
    genes = matched.genes
    if genes.rest is None:
        return matched
    few = "no genes beside the model's"
    is_given = (genes.positions == genes.rest).any()  # by data that were made of the model's genes
    may_be_cut = not is_given and (genes.positions < 0).sum() < _NOT_CUT
    if not genes.lacks_rest and may_be_cut and annotator.background is not None:
        aligned = genes.of(counts.sample()[0])
        totals = np.asarray(aligned.sum(axis=1)).ravel()
        of_cells = aligned[:, [genes.rest]].toarray().ravel()[totals > 0] / totals[totals > 0]
        in_training = float(annotator.background.share[genes.rest])
        if len(of_cells) and of_cells.mean() < _TOO_FEW_OTHERS * in_training:
            genes = replace(genes, lacks_rest=True)
            few = (
                f"few genes beside the model's, with {of_cells.mean():.0%} of the counts where they had "
                f"{in_training:.0%} in training"
            )
    if not genes.lacks_rest:
        return matched
    stand_in = "counts as zero" if annotator.background is None else "takes its mean over the training cells"
    text = f"The data have {few}: the sum of these, an input of the model, is not known and {stand_in}."
    return replace(matched, genes=genes, warnings=(*matched.warnings, text))
