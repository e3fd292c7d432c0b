"""The command that looks at data before they are annotated or trained on."""

from pathlib import Path
from typing import Annotated

import typer

from ginseng.arguments import Fix, Layer
from ginseng.commands.registry import InputRefused, WrongUse, command, refusing, say
from ginseng.data.models import is_model, load_model
from ginseng.data.preflight import checked_counts, preflight
from ginseng.data.readers import opened_counts
from ginseng.model.annotator import Annotator
from ginseng.utils.genes import least_genes
from ginseng.utils.names import read_gene_table


@command
def doctor(
    files: Annotated[
        list[str], typer.Argument(help="A model and a file of counts; or only this, to train on.", show_default=False)
    ],
    layer: Layer = None,
    gene_key: Annotated[str | None, typer.Option(help="Column of var with gene names; default: its index.")] = None,
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
    look = {"fix": fix, "looks_at_all": True, "file": data}
    with refusing(WrongUse):
        least_genes(1, min_overlap)
    with refusing(InputRefused):
        if models and Path(models[0]).exists() and not is_model(models[0]):
            raise WrongUse(f"{models[0]} is no model, where one is expected before the file of counts.")
        with opened_counts(data) as adata:
            if not models:
                found = checked_counts(adata, layer, **look)[1]
            else:
                found = preflight(
                    Annotator.of(load_model(models[0])),
                    adata,
                    gene_key,
                    layer,
                    min_overlap=min_overlap,
                    gene_map=None if gene_map is None else read_gene_table(gene_map),
                    ignore_case=ignore_case,
                    **look,
                )[2]
    say(False, found.report())
    if found.problems:
        raise typer.Exit(InputRefused.exit_code)
