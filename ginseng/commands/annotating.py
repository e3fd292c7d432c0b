"""The command that annotates."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from ginseng.arguments import (
    Cells,
    Data,
    Fix,
    Layer,
    Precision,
    Quiet,
    cells_of,
    truth_column,
)
from ginseng.commands.registry import command, say, warnings_unless
from ginseng.data.models import load_model
from ginseng.data.readers import read_adata, write_adata
from ginseng.metrics import score
from ginseng.model.predict import classify
from ginseng.train.trainer import GinsengClassifierTrainerSettings
from ginseng.utils.files import replacing, require_writable_path

_PRECISION = GinsengClassifierTrainerSettings().precision
_TABLE_WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".csv": lambda table, path: table.to_csv(path, index_label="cell"),
    ".tsv": lambda table, path: table.to_csv(path, index_label="cell", sep="\t"),
    ".parquet": lambda table, path: table.to_parquet(path),
}


@command
def annotate(
    model: Annotated[Path, typer.Argument(help="A model saved by `ginseng fit`.", show_default=False)],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help=".h5ad, .csv, .tsv or .parquet.", show_default=False)],
    cells: Cells = None,
    layer: Layer = None,
    gene_key: Annotated[str | None, typer.Option(help="Column of var with gene names; default: its index.")] = None,
    truth: Annotated[
        str | None, typer.Option(help="Column of obs with true cell types, to print how well they agree.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Store the probability of every type in the .h5ad.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Cells per forward pass.", min=1)] = 256,
    min_overlap: Annotated[
        float | None,
        typer.Option(
            help="Share of the model's genes that the data must have, in [0, 1]; default 1 %, at least 5 genes."
        ),
    ] = None,
    gene_map: Annotated[
        Path | None,
        typer.Option(help=".csv or .tsv of synonyms or orthologs: the name in the data, the name in the model."),
    ] = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", help="Match Cd3d to CD3D.")] = False,
    fix: Fix = False,
    precision: Precision = _PRECISION,
    quiet: Quiet = False,
) -> None:
    """Annotate new counts with a trained classifier.

    Example: ginseng annotate model.h5 new.h5ad -o annotated.h5ad
    """
    suffix = output.suffix
    if suffix != ".h5ad" and suffix not in _TABLE_WRITERS:
        raise ValueError(f"{output} must end in .h5ad, {', '.join(_TABLE_WRITERS)}.")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("Writing .parquet needs pyarrow: pip install 'ginseng-eqx[parquet]'.")
    if Path(data).exists() and output.exists() and output.samefile(data):
        raise ValueError(f"{output} is the file of counts itself; name another output.")
    require_writable_path(output)
    to_table = suffix != ".h5ad"
    with warnings_unless(quiet):
        state = load_model(model)
        in_memory = None if to_table and cells is None else cells_of(read_adata(data, backed=False), cells)
        counts = data if in_memory is None else in_memory
        true_types = None if truth is None else truth_column(counts, truth)
        table = classify(
            state,
            counts,
            gene_key=gene_key,
            layer=layer,
            batch_size=batch_size,
            min_overlap=min_overlap,
            gene_map=gene_map,
            ignore_case=ignore_case,
            fix=fix,
            precision=precision,
            store_probs=probabilities,
            return_table=to_table,
            silent=quiet,
        )
    if in_memory is not None and not to_table:
        annotated = in_memory.obs
        write_adata(in_memory, output)
    else:
        annotated: Any = table
        with replacing(output) as fresh:
            _TABLE_WRITERS[suffix](annotated, fresh)
    if true_types is not None:
        typer.echo(score(true_types, annotated["ginseng_cell_type"]).report())
    say(quiet, f"{len(annotated):,} cells annotated: saved {output}")
