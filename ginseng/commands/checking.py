"""The command that looks at data before they are annotated or trained on."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ginseng.arguments import Fix, GeneKey, Layer, Mapping, Unlabeled, mapping_in, refuse
from ginseng.commands.registry import InputRefused, WrongUse, command, refusing, say
from ginseng.data.annotation import groups_of, labels_of
from ginseng.data.models import load_model
from ginseng.data.preflight import Preflight, checked_reference, preflight
from ginseng.data.readers import opened_counts
from ginseng.model.annotator import Annotator
from ginseng.utils.counts import layer_names, x_of
from ginseng.utils.forms import EMPTY
from ginseng.utils.genes import least_genes
from ginseng.utils.messages import shorten
from ginseng.utils.names import read_gene_table


@command
def doctor(
    files: Annotated[
        list[str], typer.Argument(help="A model and a file of counts; or only this, to train on.", show_default=False)
    ],
    label: Annotated[str | None, typer.Option(help="Column of obs with the cell types, to be looked at, too.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of obs with the donor or batch, the same.")] = None,
    mapping: Mapping = None,
    unlabeled: Unlabeled = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    min_overlap: Annotated[
        float | None, typer.Option(help="Share of the model's genes that the data must have, in [0, 1].")
    ] = None,
    gene_map: Annotated[Path | None, typer.Option(help=".csv or .tsv of synonyms or orthologs.")] = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", help="Match Cd3d to CD3D.")] = False,
    fix: Fix = False,
) -> None:
    """Tell whether data can be annotated, or trained on, and what to pass if not. Exits with 3 if they are refused.

    Example: ginseng doctor model.h5 new.h5ad
    """
    *models, data = files
    if len(models) > 1:
        raise WrongUse(f"A model and a file of counts are looked at, or only the latter, but got {len(files)} files.")
    with refusing(WrongUse):
        if not models:
            of_a_model = {"--gene-map": gene_map, "--min-overlap": min_overlap, "--ignore-case": ignore_case or None}
            refuse(of_a_model, "without a model: name it before the data")
        least_genes(1, min_overlap)
        names = None if gene_map is None else read_gene_table(gene_map)
        renamed = mapping_in(mapping)
    look = {"fix": fix, "looks_at_all": True, "file": data}
    with refusing(InputRefused):
        state = load_model(models[0]) if models else None
        with opened_counts(data) as adata:
            for what, n in (("cell", adata.n_obs), ("gene", adata.n_vars)):
                if not n:
                    raise _nothing_in(data, what)
            if x_of(adata) is None and not layer_names(adata) and adata.raw is None:
                raise _nothing_in(data, "count")
            if state is None:
                found = checked_reference(adata, layer, gene_key, **look)[1]
            else:
                how = {"min_overlap": min_overlap, "gene_map": names, "ignore_case": ignore_case, **look}
                found = preflight(Annotator.of(state), adata, gene_key, layer, **how)[2]
            if found.forms[found.used].kind == EMPTY and not found.problems:
                raise _nothing_in(data, "count")
            named, found = _with_labels(found, adata.obs, label, group, renamed, unlabeled or ())
    say(False, "\n".join([*named, found.report()]))
    if found.problems:
        raise typer.Exit(InputRefused.exit_code)


def _nothing_in(data: str, what: str) -> InputRefused:
    return InputRefused(f"{data} has no {what}: there is nothing to annotate, or to train on.")


def _with_labels(
    found: Preflight, obs: Any, label: str | None, group: str | None, mapping: Any, unlabeled: Sequence[str]
) -> tuple[list[str], Preflight]:
    """Lines on labels and groups, and what was found with what training would say of these."""
    lines, problems, labelled = [], [], np.ones(len(obs), bool)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            if label is not None:
                labelled, labels = labels_of(obs, label, mapping=mapping, unlabeled=unlabeled)
                lines.append(
                    f"labels: {len(labels.categories):,}, of {len(labels):,} cells: {shorten(labels.categories)}"
                )
            if group is not None:
                groups = groups_of(obs, group, labelled)
                lines.append(f"groups: {len(groups.categories):,}: {shorten(groups.categories)}")
        except ValueError as error:
            problems.append(str(error))
    warned = (str(warning.message) for warning in told)
    return lines, replace(found, warnings=(*found.warnings, *warned), problems=(*found.problems, *problems))
