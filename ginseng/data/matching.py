"""Which genes of a model data have, by which of their names, and what is lost with those that they lack."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd

from ginseng.model.annotator import Annotator
from ginseng.model.attention import AttentionClassifier
from ginseng.model.ensemble import members_of
from ginseng.utils.genes import GeneMap, least_genes, plain_names
from ginseng.utils.names import SPELLINGS, GeneNames, are_numbers, names_by_place

_FEW_FOUND = 0.5  # of the model's genes: other names are then looked for
_CLEARLY_MORE = 1.5
_N_LOOKED_AT = 2000
_CUT = 1000  # characters of the name of a cell
_IDENTIFIER = re.compile(r"(ENS[A-Z]*)G\d{11}")
_SPECIES = {"ENS": "human", "ENSMUS": "mouse", "ENSRNO": "rat", "ENSDAR": "zebrafish", "ENSSSC": "pig"}


@dataclass(frozen=True)
class GeneMatch:
    """How the genes of data match those of a model.

    Attributes
    ----------
    genes : GeneMap
        Which they are.
    by : str
        By which names of the data, such as ``"adata.var_names"``.
    least : int
        How many are needed.
    fixed, warnings, problems : tuple of str
        See `ginseng.data.preflight.Preflight`.
    """

    genes: GeneMap
    by: str
    least: int
    fixed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def missing_weight(self, weights: Callable[[], np.ndarray]) -> float:
        """The share of the weights of a model's genes, see `gene_weights`, of those that the data lack."""
        is_lacking = self.genes.is_lacking
        if not is_lacking.any():
            return 0.0
        of_genes = weights()
        return float(of_genes[is_lacking].sum() / of_genes.sum()) if of_genes.any() else float(is_lacking.mean())


def matched_genes(
    var: pd.DataFrame,
    model: GeneNames,
    gene_key: str | None = None,
    min_overlap: float | None = None,
    *,
    fix: bool = False,
    cells: Iterable[str] | None = None,
    weights: Callable[[], np.ndarray] | None = None,
) -> GeneMatch:
    """Match the genes of `var` to those of a model; look for better names where fewer than half are found.

    Parameters
    ----------
    var : pandas.DataFrame
        Annotation of the genes.
    model : GeneNames
        Names of the model's genes.
    gene_key : str, optional
        Column of `var`; None for its index, and second names.
    min_overlap : float, optional
        See `least_genes`.
    fix : bool
        Match in the way that finds clearly more: by another column, without regard to case, by names without what is
        written around them, by the table with its columns swapped.
    cells : array of str, optional
        Names of the cells, which are genes where the two are swapped.
    weights : callable, optional
        See `gene_weights`; by default all weigh the same.

    Raises
    ------
    ValueError
        If the column does not exist, or the table of names has none of the data's.

    Examples
    --------
    >>> var = pd.DataFrame(index=["Cd3d", "Cd4", "Ms4a1", "Nkg7", "Lyz"])
    >>> model = GeneNames([name.upper() for name in var.index])
    >>> matched_genes(var, model).problems[0][-39:]
    'ignore_case=True would match 5 of them.'
    >>> matched_genes(var, model, fix=True).genes.n_found
    5
    """
    of_data = names_by_place(var, gene_key)
    names = next(iter(of_data.values()))
    ((by, kind), genes), least = model.best(of_data), least_genes(len(model.first), min_overlap)
    fixed, warnings, problems, way = [], [], [], None
    if genes.n_found < max(least, _FEW_FOUND * genes.n_inputs):
        way = max(_ways(var, model, gene_key), key=lambda way: way.genes.n_found)
    is_clear = way is not None and way.genes.n_found > _CLEARLY_MORE * genes.n_found
    found = f"{by} finds {genes.n_found:,} of the {genes.n_inputs:,} genes of the model"
    if fix and way is not None and is_clear:
        fixed.append(f"{found}, {way.what}, which was taken, {way.genes.n_found:,}.")
        genes, by = way.genes, way.by
    else:
        genes = model.match(of_data)
        if text := _stripped(of_data[by], model.first if kind == "names" else model.second, genes.positions):
            warnings.append(text)
    least = genes.least(min_overlap, weights)
    if way is not None and is_clear and not fix and genes.n_found >= least:
        warnings.append(f"{found}, {way.argument} would find {way.genes.n_found:,}.")
    hint = _hint(names, model.first) if way is None or way.genes.n_found <= genes.n_found else way.hint
    if cells is not None and way is not None and way.genes.n_found < _FEW_FOUND * genes.n_inputs:
        hint = _hint_of_cells(cells, model, way.genes.n_found) or hint
    try:
        genes.require(least, names, model.first, lambda: hint)
    except ValueError as error:
        problems.append(str(error))
    return GeneMatch(genes, by, least, tuple(fixed), tuple(warnings), tuple(problems))


class _Way(NamedTuple):
    """Another way to match: what to pass for it, what it is called, by which names, and what it finds."""

    argument: str
    what: str
    by: str
    genes: GeneMap

    @property
    def hint(self) -> str:
        return f"{self.argument} would match {self.genes.n_found:,} of them"


def _ways(var: Any, model: GeneNames, gene_key: str | None) -> Iterator[_Way]:
    """Other names, other case, names without what is written around them, a table the other way round."""

    def way(argument: str, what: str, model: GeneNames, key: str | None) -> _Way:
        (by, _), genes = model.best(names_by_place(var, key))
        return _Way(argument, what, by, genes)

    for key in (None, *(name for name, column in var.items() if column.dtype.kind not in "biufcmM")):
        yield way(f"gene_key={key!r}", f"gene_key={key!r}", model, key)
    if not model.ignore_case:
        yield way("ignore_case=True", "ignore_case=True", replace(model, ignore_case=True), gene_key)
    if model.table is not None:
        what = "gene_map with its columns swapped"
        yield way(f"{what} (fix=True does so)", what, model.turned(), gene_key)
    for spelling in SPELLINGS.values():
        spelled = way("", "", replace(model, spelling=spelling), gene_key)
        of_data = names_by_place(var, gene_key)[spelled.by]
        pairs = ((of_data[n], model.first[at]) for n, at in enumerate(spelled.genes.positions) if at >= 0)
        read = next((f"'{name}' is read as '{gene}'" for name, gene in pairs if name != gene), "")
        yield spelled._replace(argument=f"fix=True, by which {read},", what=f"where {read}")


def _hint_of_cells(cells: Iterable[str], model: GeneNames, n_found: int) -> str | None:
    """What to say where the cells are called as genes are."""
    names = np.array([str(name)[:_CUT] for name in cells], dtype=object)  # no gene is called so at length
    of_cells = model.best({"adata.obs_names": names})[1].n_found
    if of_cells <= _CLEARLY_MORE * n_found:
        return None
    return f"adata.obs_names would match {of_cells:,} of them: cells and genes are swapped, pass adata.T"


def _stripped(names: np.ndarray, of_model: Any, positions: np.ndarray) -> str | None:
    """A warning of names that are found without versions and prefixes only."""
    exact = set(np.asarray(of_model))
    others = [name for name, position in zip(names, positions, strict=True) if position >= 0 and name not in exact]
    examples = [(name, plain) for name, plain in zip(others, plain_names(others), strict=True) if plain != name]
    if not examples:
        return None
    return (
        f"{len(examples):,} genes are found without the version of their identifier, or the prefix of a genome: "
        f"'{examples[0][0]}' is read as '{examples[0][1]}'."
    )


def _hint(of_data: Iterable[str], of_model: Iterable[str]) -> str:
    if are_numbers(of_data) and not are_numbers(of_model):
        return "the genes are called by numbers: pass gene_key=, a column of adata.var with names, or set var_names"
    species = _species(of_data), _species(of_model)
    if None not in species and species[0] != species[1]:
        return f"the data are of {species[0]}, the model is of {species[1]}: pass gene_map=, a table of orthologs"
    return (
        "other species, or symbols on one side and identifiers on the other? For a panel of few genes, pass a lower "
        "min_overlap"
    )


def _species(names: Iterable[str]) -> str | None:
    """The species of most Ensembl identifiers, if there are any."""
    found = [match.group(1) for name in list(names)[:_N_LOOKED_AT] if (match := _IDENTIFIER.match(str(name)))]
    if not found:
        return None
    prefix = max(set(found), key=found.count)
    return _SPECIES.get(prefix, prefix)


def gene_weights(annotator: Annotator) -> np.ndarray:
    """How much each gene can move a classifier: the norm of its weights in the first layer, times its mean input.

    The mean input is that of training cells, if they are known, and else 1; so is the weight in other modules.

    Examples
    --------
    >>> import jax.random as jr
    >>> network = AttentionClassifier(2, 2, 4, key=jr.key(0))
    >>> gene_weights(Annotator(network, ["CD3D", "CD4"], ["B", "T"])).shape
    (2,)
    """
    networks = members_of(annotator.module)
    if not isinstance(networks[0], AttentionClassifier):
        return np.ones(len(annotator.genes))
    norms = [np.asarray(jnp.linalg.norm(network.features1.weight, axis=0)) for network in networks]
    return np.mean(norms, axis=0) * (1.0 if annotator.background is None else annotator.background.expression)
