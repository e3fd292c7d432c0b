"""A look at data before they are annotated or trained on: in what form the counts are, which genes are found."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ginseng.data.matching import gene_weights, matched_genes
from ginseng.model.annotator import Annotator
from ginseng.utils import forms
from ginseng.utils.counts import Counts, layer_names, x_of
from ginseng.utils.forms import Form, form_of
from ginseng.utils.genes import GeneMap, told_repeated
from ginseng.utils.messages import warn
from ginseng.utils.names import GeneNames, called_by, column_of_names

_AS_THEY_ARE = (forms.RAW, forms.EMPTY)
_TO_BE_WARNED_OF = (forms.CORRECTED, forms.NORMALISED, forms.FRACTIONS, forms.BINARY)
_MUCH_MISSING = 0.2  # of the weight
_PARTS_OF_COUNTS = ("spliced", "unspliced", "ambiguous")


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
    refused: adata.X holds log1p of raw counts, such as 0.6931, where raw counts are expected: pass fix=True (--fix), by
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
    layers: list[str | None] = [] if x_of(adata) is None else [None]
    layers += layer_names(adata)
    layers += ["raw"] if adata.raw is not None and "raw" not in layers else []
    found = {}
    for layer in layers:
        if known is not None and layer in known:
            found[layer] = known[layer]
            continue
        try:
            found[layer] = form_of(Counts(adata, layer).sample())
        except ValueError:  # text, or damaged: no counts
            continue
    return found


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
) -> tuple[Counts, Preflight]:
    """Open counts, with a look at some cells. Other matrices than `layer` are looked at where it holds no raw counts.

    Parameters
    ----------
    adata : AnnData
        The data.
    layer : str, optional
        See `Counts`.
    normalizes : bool
        Whether these are to be normalised: else any form is taken as it is.
    fix : bool
        Take the matrix that holds raw counts where `layer` does not, or else undo what was done to them.
    looks_at_all : bool
        Look at all matrices in any case.
    file : str or Path, optional
        See `Counts`.

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
    counts = Counts(adata, layer, file=file)
    form = form_of(counts.sample())
    found: dict[str | None, Form] = {layer: form}
    if looks_at_all or (normalizes and form.kind not in _AS_THEY_ARE):
        found = forms_of(adata, found)
    best = _layer_of_counts(found, layer)
    used, fixed, warnings, problems = layer, [], [], []
    if normalizes and form.kind not in _AS_THEY_ARE:
        example = "" if form.example is None else f", such as {form.example:.4g}"
        said = f"{counts.name} holds {form.name}{example}, where raw counts are expected"
        is_better = best != layer and found.get(best, form).kind == forms.RAW
        if fix and is_better and form.kind != forms.CORRECTED:
            used, counts = best, Counts(adata, best, file=file)
            fixed.append(f"{said}: {counts.name} was taken instead.")
        elif fix and form.can_be_undone:
            counts.form = form
            what = "counts are recovered" if form.shows_counts else "values are again in proportion to counts"
            fixed.append(f"{said}: this is undone, so that {what}.")
        elif form.kind not in _TO_BE_WARNED_OF or (is_better and form.kind == forms.BINARY):
            problems.append(f"{said}: {_way_out(form, best if is_better else layer, layer)}.")
        else:
            warnings.append(_warning(counts.name, form, best if is_better else layer, layer))
    if counts.left_out:
        warnings.append(counts.left_out)
    counts.nonnegative = normalizes
    counts.raw = normalizes and counts.form is None and (used != layer or form.kind in _AS_THEY_ARE)
    named = {name_of(place, adata): of_place for place, of_place in found.items()}
    holder = name_of(best, adata) if best in found and found[best].kind == forms.RAW else None
    used_name = name_of(used, adata)
    return counts, Preflight(named, used_name, holder, {}, tuple(fixed), tuple(warnings), tuple(problems))


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
    >>> checked_reference(adata)[1].warnings[0][-71:]
    "adata.var['features'] has names: pass gene_key='features' (--gene-key)."
    """
    counts, found = checked_counts(adata, layer, fix=fix, **look)
    fixed, warnings, better = [], [], None if gene_key is not None else column_of_names(counts.var)
    if better is not None:
        said = f"The genes are called by numbers such as '{counts.var.index[0]}', but adata.var['{better}'] has names"
        if fix:
            gene_key = better
            fixed.append(f"{said}, which were taken.")
        else:
            warnings.append(f"{said}: pass gene_key={better!r} (--gene-key).")
    if gene_key is not None:
        counts.var = called_by(counts.var, gene_key)
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
    form = form_of(sparse.csr_matrix(sample))
    if form.kind in (forms.LOGARITHMS, forms.ROOTS):
        raise ValueError(
            f"{name} holds {form.name}, such as {form.example:.4g}, where raw counts are expected: create it anew with "
            "fix=True (--fix) or the layer of raw counts, or train with normalize=False."
        )
    if form.kind in _TO_BE_WARNED_OF:
        warn(_warning(name, form, None, None))


def _layer_of_counts(found: Mapping[str | None, Form], asked: str | None) -> str | None:
    """The matrix of raw counts: the one that was asked for if it holds them, else X, a layer called so, another."""
    holders = [layer for layer, form in found.items() if form.kind == forms.RAW and layer not in _PARTS_OF_COUNTS]
    order = [asked, None, "counts", *holders]
    return next((layer for layer in order if layer in holders), asked)


def _way_out(form: Form, best: str | None, asked: str | None) -> str:
    if best != asked:
        named = (
            "leave `layer` out: adata.X holds" if best is None else f'pass layer="{best}" (--layer {best}), which has'
        )
        return f"{named} raw counts; fix=True (--fix) does so"
    if form.function:
        return "pass fix=True (--fix), by which this is undone, or normalize=False for a network that takes such values"
    return (
        "counts to normalise must not be negative, and no layer has them; go back to the file before it was scaled, or "
        "pass normalize=False for a network that takes such values"
    )


def _warning(name: str, form: Form, best: str | None, asked: str | None) -> str:
    better = "" if best == asked else f" {'adata.X' if best is None else f'layer={best!r}'} holds raw counts."
    if form.kind == forms.BINARY:
        return f"{name} holds only 0 and 1, where raw counts are expected.{better}"
    of = {
        forms.CORRECTED: "as of counts that were corrected: they are taken as counts",
        forms.NORMALISED: f"of {form.name}: to normalise them once more changes nothing, but they are no raw counts",
    }.get(form.kind, "where raw counts are expected: are they logarithms, or scaled? fix=True cannot tell")
    return f"{name} holds fractions such as {form.example:.4g}, {of}.{better}"


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
    counts, found = checked_counts(
        adata, layer, normalizes=annotator.takes_counts, fix=fix, looks_at_all=looks_at_all, file=file
    )
    names = GeneNames(annotator.genes, annotator.second_names, gene_map, ignore_case)
    weights = partial(gene_weights, annotator)
    of_data = counts.var, names, gene_key, min_overlap
    matched = matched_genes(*of_data, fix=fix, cells=adata.obs_names, weights=weights)
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
        "of": matched.genes.n_inputs - (matched.genes.rest is not None),  # the sum of others is no gene
        "needed": matched.least,
        "missing_weight": missing,
    }
    return counts, matched.genes, replace(found, genes=genes, **both)
