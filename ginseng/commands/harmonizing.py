"""The command that puts the labels of two studies side by side."""

from pathlib import Path
from typing import Annotated

import typer

import ginseng
from ginseng.arguments import Overwrite, Quiet
from ginseng.commands.paths import require_outputs
from ginseng.commands.registry import InputRefused, WrongUse, command, refusing, say, warnings_unless
from ginseng.utils.files import require_writable_path
from ginseng.utils.pairs import write_mapping
from ginseng.utils.tables import require_table_path, save_table
from ginseng.utils.values import require_number


@command
def harmonize(
    model_a: Annotated[Path, typer.Argument(help="A model saved by `ginseng fit`.", show_default=False)],
    data_a: Annotated[str, typer.Argument(help="Raw counts with its labels.", show_default=False)],
    model_b: Annotated[Path, typer.Argument(help="A model of another study.", show_default=False)],
    data_b: Annotated[str, typer.Argument(help="Raw counts with the labels of that.", show_default=False)],
    label_a: Annotated[str, typer.Option(help="Column of obs with the labels of the first.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table of pairs, .csv or .tsv.", show_default=False)
    ],
    label_b: Annotated[str | None, typer.Option(help="Column with those of the other; default: --label-a.")] = None,
    layer_a: Annotated[str | None, typer.Option(help="Layer with the raw counts of the first.")] = None,
    layer_b: Annotated[str | None, typer.Option(help="Layer with those of the other.")] = None,
    gene_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of var with gene names, of both; given twice, of the first and of the other, '' for the index."
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Least score of labels that are related, in (0, 1].")] = 0.25,
    mapping: Annotated[
        Path | None,
        typer.Option(help="Keep here, as .csv, which names of the second are which of the first; --mapping takes it."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Let that table merge what is finer in the second than in the first.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Tell which cell types of two studies are the same, whatever they are called.

    Example: ginseng harmonize a.h5 A.h5ad b.h5 B.h5ad --label-a cell_type --label-b type -o pairs.csv
    """
    with refusing(WrongUse):
        if merge and mapping is None:
            raise WrongUse("--merge is of --mapping, the table of names to keep.")
        require_number("threshold", threshold, "(0, 1]")
        require_table_path(output, "output")
        require_writable_path(output)
        if mapping is not None:
            require_table_path(mapping, "mapping")
            require_writable_path(mapping)
        inputs = {"MODEL_A": model_a, "DATA_A": data_a, "MODEL_B": model_b, "DATA_B": data_b}
        require_outputs({"--output": output, "--mapping": mapping}, inputs, overwrite=overwrite)
    columns = {"label_a": label_a, "label_b": label_b, "layer_a": layer_a, "layer_b": layer_b}
    keys = [key or None for key in gene_key or [""]]
    how = {"gene_key": keys[0] if len(keys) == 1 else keys, "threshold": threshold, "silent": quiet}
    with warnings_unless(quiet), refusing(InputRefused):
        harmony = ginseng.harmonize(model_a, data_a, model_b, data_b, **columns, **how)
    save_table(harmony.table, output, index=False)
    if mapping is not None:
        write_mapping(mapping, harmony.merging if merge else harmony.mapping)
    say(quiet, f"{harmony.report()}\nsaved {output}" + (f" and {mapping}" if mapping else ""))
