"""Which genes of a model data have, by which of their names, and what is lost with those that they lack."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pandas as pd

from ginseng.model.annotator import Annotator
from ginseng.model.attention import AttentionClassifier
from ginseng.model.ensemble import members_of
from ginseng.utils.genes import GeneMap, least_genes
from ginseng.utils.names import GeneNames, names_by_place

_FEW_FOUND = 0.5  # of the model's genes: other names are then looked for
_CLEARLY_MORE = 1.5
_N_LOOKED_AT = 2000
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
        Match by the column, or without regard to case, that finds clearly more.

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
    genes, by, names = model.match(of_data), model.best(of_data)[0][0], next(iter(of_data.values()))
    least = least_genes(len(model.first), min_overlap)
    fixed, warnings, problems = [], [], []
    if genes.n_found < max(least, _FEW_FOUND * genes.n_inputs):
        argument, better_by, better = _best_way(var, model, gene_key)
        is_clear = better.n_found > _CLEARLY_MORE * genes.n_found
        if is_clear:
            found = f"{by} finds {genes.n_found:,} of the {genes.n_inputs:,} genes of the model, {argument}"
            if fix:
                fixed.append(f"{found}, which was taken, {better.n_found:,}.")
                genes, by = better, better_by
            elif genes.n_found >= least:
                warnings.append(f"{found} would find {better.n_found:,}.")
        if better.n_found > genes.n_found:
            hint = f"{argument} would match {better.n_found:,} of them"
        else:
            hint = _hint(names, model.first)
        try:
            genes.require(least, names, model.first, lambda: hint)
        except ValueError as error:
            problems.append(str(error))
    return GeneMatch(genes, by, least, tuple(fixed), tuple(warnings), tuple(problems))


def _best_way(var: pd.DataFrame, model: GeneNames, gene_key: str | None) -> tuple[str, str, GeneMap]:
    """The argument by which most genes are found, a column or the disregard of case; by which names, and which."""
    columns = [None, *(column for column in var.columns if var[column].dtype.kind not in "biufcmM")]
    ways = [(f"gene_key={column!r}", model, column) for column in columns]
    if not model.ignore_case:
        ways.append(("ignore_case=True", replace(model, ignore_case=True), gene_key))
    found = [(argument, *of_model.best(names_by_place(var, column))) for argument, of_model, column in ways]
    argument, (by, _), genes = max(found, key=lambda way: way[2].n_found)
    return argument, by, genes


def _hint(of_data: Iterable[str], of_model: Iterable[str]) -> str:
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
