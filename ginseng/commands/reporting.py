"""The commands that tell what an annotation says, and why: report, explain."""

from pathlib import Path
from typing import Annotated

import typer

import ginseng
from ginseng.arguments import Cells, Data, GeneKey, Layer, Overwrite, Quiet, cells_of
from ginseng.commands.paths import require_outputs
from ginseng.commands.registry import InputRefused, WrongUse, command, refusing, say, warnings_unless
from ginseng.data.outputs import TABLES
from ginseng.data.readers import read_adata, read_annotation
from ginseng.multiqc import require_mqc
from ginseng.page import require_page
from ginseng.utils.files import require_writable_path
from ginseng.utils.tables import require_table_path, save_table


@command
def report(
    data: Annotated[
        Path, typer.Argument(help="Cells annotated by `ginseng annotate`, .h5ad or .zarr.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, .html.", show_default=False)],
    model: Annotated[Path | None, typer.Option(help="The model, to be described.")] = None,
    truth: Annotated[str | None, typer.Option(help="Column of obs with true cell types.")] = None,
    mqc: Annotated[Path | None, typer.Option(help="Write cells of each type here for MultiQC, *_mqc.json.")] = None,
    sample: Annotated[str | None, typer.Option(help="Column of obs with the sample, for --mqc; default: one.")] = None,
    key: Annotated[str, typer.Option(help="What the names of the columns begin with.")] = "ginseng",
    title: Annotated[str | None, typer.Option(help="Of the page; default: the name of the file.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write what an annotation says as one page for the browser, which needs no other file and no network.

    Example: ginseng report annotated.h5ad -o report.html --truth cell_type
    """
    write_page = ginseng.report  # first of all, since it needs an extra
    with refusing(WrongUse):
        if sample is not None and mqc is None:
            raise WrongUse("--sample is for --mqc, which is not given.")
        require_page(output)
        if mqc is not None:
            require_mqc(mqc)
        require_outputs({"--output": output, "--mqc": mqc}, {"DATA": data, "--model": model}, overwrite=overwrite)
    with warnings_unless(quiet), refusing(InputRefused):
        if data.suffix in TABLES and data.is_file():
            raise InputRefused(
                f"{data} is a table, and a report is made of .h5ad or .zarr: annotate with -o annotated.h5ad."
            )
        adata = read_annotation(data)
        if mqc is not None:
            ginseng.mqc(adata, mqc, sample=sample, key=key)
        write_page(adata, output, model=model, truth=truth, key=key, title=title or data.name)
    say(quiet, f"{adata.n_obs:,} cells: saved {output}")


@command
def explain(
    model: Annotated[Path, typer.Argument(help="A model saved by `ginseng fit`.", show_default=False)],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="The table, .csv or .tsv.", show_default=False)],
    groupby: Annotated[
        str | None, typer.Option(help="Column of obs; default: the types that the model gives.", show_default=False)
    ] = None,
    n_genes: Annotated[int, typer.Option(help="Genes that are among so many first of any group.", min=1)] = 20,
    cells: Cells = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Tell what each gene contributes to the type of cells, on average over groups of them.

    Example: ginseng explain model.h5 new.h5ad --groupby leiden -o contributions.csv
    """
    with refusing(WrongUse):
        require_table_path(output, "output")
        require_writable_path(output)
        require_outputs({"--output": output}, {"MODEL": model, "DATA": data}, overwrite=overwrite)
    with warnings_unless(quiet), refusing(InputRefused):
        adata = cells_of(read_adata(data, backed=False), cells)
        table = ginseng.explain(model, adata, groupby, layer=layer, gene_key=gene_key, n_genes=n_genes, silent=quiet)
    save_table(table, output, index=False)
    say(quiet, f"{table['gene'].nunique():,} genes, {table['group'].nunique():,} groups: saved {output}")
