"""The commands that make datasets and models, and tell what is in them: create, fit, inspect, demo."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

import ginseng
from ginseng.arguments import (
    Called,
    Card,
    Cells,
    Checkpoint,
    ChosenBy,
    Fix,
    GeneColumn,
    GeneKey,
    Genes,
    Group,
    HoldOutGroups,
    Label,
    Layer,
    Log,
    Mapping,
    Memory,
    OtherGenes,
    Overwrite,
    Patience,
    Precision,
    Quiet,
    RequireLabels,
    Unlabeled,
    card_texts,
    cells_of,
    chosen_genes,
    how_to_create,
    ignore_few_genes,
    mapping_in,
    refuse,
    require_group,
    require_split,
)
from ginseng.commands.paths import Named, begin, begun_with, forget, require_outputs
from ginseng.commands.registry import InputRefused, WrongUse, command, refusing, say, warnings_unless
from ginseng.data import store
from ginseng.data.creation import free_place
from ginseng.data.dataset import GinsengDataset
from ginseng.data.models import is_model, load_model, save_model
from ginseng.data.readers import opened_counts, read_adata
from ginseng.data.sampling import balance_of
from ginseng.describe import describe_counts, describe_dataset, describe_model
from ginseng.model.calibration import LEAST_CELLS, SOURCES
from ginseng.model.state import GinsengClassifierState, state_from_classifier_trainer
from ginseng.train.checkpoint import FILE
from ginseng.train.logger import LogFile
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
from ginseng.utils.files import is_url, is_zarr_url, require_writable_path
from ginseng.utils.memory import bytes_of
from ginseng.utils.messages import shorten
from ginseng.utils.workspace import temporary_folder

_DEFAULTS = GinsengClassifierTrainerSettings()
_DEMO = Path("demo")


@command
def create(
    data: Annotated[
        list[str], typer.Argument(help="Raw counts, as for `ginseng fit`; of several, the genes that all have.")
    ],
    label: Annotated[
        str, typer.Option(help="Column of obs with the cell types.", show_default=False), Called("label_key")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the dataset.", show_default=False)],
    cells: Cells = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    group: Group = None,
    genes: Genes = None,
    select: ChosenBy = None,
    gene_column: GeneColumn = None,
    other_genes: OtherGenes = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the cells to hold out, by which no gene is chosen, in [0, 1); "
            f"default {_DEFAULTS.holdout_fraction} where --genes chooses some, else as `ginseng fit` says."
        ),
        Called("holdout_fraction", "fraction"),
    ] = None,
    hold_out_groups: HoldOutGroups = False,
    seed: Annotated[int, typer.Option(help="Seed of what is held out.")] = _DEFAULTS.seed,
    require_labels: RequireLabels = False,
    mapping: Mapping = None,
    unlabeled: Unlabeled = None,
    fix: Fix = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a dataset of labelled counts, to train on again and again, whatever its size.

    Example: ginseng create donor1.h5ad donor2.h5ad --label cell_type -o cells.zarr
    """
    with refusing(WrongUse):
        chosen = chosen_genes(genes, gene_column)
        require_group(hold_out_groups, group)
        splits = holdout is not None or hold_out_groups or isinstance(chosen, int)
        settings = GinsengClassifierTrainerSettings(
            holdout_fraction=_DEFAULTS.holdout_fraction if holdout is None else holdout,
            group_level=hold_out_groups,
            seed=seed,
        )
        how = how_to_create(chosen, select, other_genes, require_labels, settings.split() if splits else None, quiet)
        free_place(output)
        require_outputs({"--output": output}, {"DATA": data, "--mapping": mapping}, overwrite=overwrite)
        how |= {"group_key": group, "gene_key": gene_key, "fix": fix}
        how |= {"mapping": mapping_in(mapping), "unlabeled": unlabeled or ()}
    with warnings_unless(quiet), refusing(InputRefused):
        counts = data if cells is None else [cells_of(read_adata(source, backed=False), cells) for source in data]
        ignore_few_genes(genes)
        dataset = GinsengDataset.create(output, counts, label, layer, **how)
    say(quiet, f"{dataset}: saved {output}")


@command
def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="Raw counts: .h5ad, 10x .h5, 10x folder, .zarr, or an http(s) URL; or a dataset of `ginseng create`.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save the model (.h5).", show_default=False)],
    label: Label = None,
    cells: Cells = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    group: Group = None,
    genes: Genes = None,
    select: ChosenBy = None,
    gene_column: GeneColumn = None,
    other_genes: OtherGenes = None,
    require_labels: RequireLabels = False,
    mapping: Mapping = None,
    unlabeled: Unlabeled = None,
    fix: Fix = False,
    dataset: Annotated[
        Path | None, typer.Option(help="Keep the training data here, to train on again; default: not kept.")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the cells held out to measure accuracy, in [0, 1); "
            f"default {_DEFAULTS.holdout_fraction}, or as a dataset has been split before."
        ),
        Called("holdout_fraction", "fraction"),
    ] = None,
    hold_out_groups: HoldOutGroups = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training cells.", min=0)] = 10,
    patience: Patience = None,
    batch_size: Annotated[int, typer.Option(help="Cells per step.", min=1)] = _DEFAULTS.batch_size,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = _DEFAULTS.lr,
    hidden_dim: Annotated[
        int | None, typer.Option(help=f"Hidden units of the attention; default {_DEFAULTS.hidden_dim}.", min=1)
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help=f"Dropout rate, in [0, 1); default {_DEFAULTS.dropout_rate}."),
        Called("dropout_rate"),
    ] = None,
    balance: Annotated[
        str,
        typer.Option(help="Balance the types: none, downsample (to the rarest), resample (rare ones more often)."),
        Called("balance_train"),
    ] = balance_of(_DEFAULTS.balance_train),
    members: Annotated[
        int | None,
        typer.Option(help="Networks whose probabilities are averaged: more accurate, so many times the work.", min=1),
    ] = None,
    calibrate: Annotated[
        str,
        typer.Option(
            help="Cells that tell what answers are worth: groups (whole donors left out in turn of up to five more "
            "trainings), holdout, none, or auto: groups with --group, else holdout."
        ),
    ] = _DEFAULTS.calibrate,
    card: Card = None,
    precision: Precision = _DEFAULTS.precision,
    memory: Memory = None,
    checkpoint: Checkpoint = None,
    log: Log = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = _DEFAULTS.seed,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on labelled counts.

    Example: ginseng fit reference.h5ad --label cell_type -o model.h5
    """
    of_counts = {
        "--genes": genes,
        "--select": select,
        "--[no-]other-genes": other_genes,
        "--gene-column": gene_column,
        "--dataset": dataset,
    }
    with refusing(WrongUse):
        if memory is not None:
            bytes_of(memory)
        told = card_texts(card)
        settings = GinsengClassifierTrainerSettings(
            hidden_dim=_DEFAULTS.hidden_dim if hidden_dim is None else hidden_dim,
            dropout_rate=_DEFAULTS.dropout_rate if dropout is None else dropout,
            batch_size=batch_size,
            lr=lr,
            holdout_fraction=_DEFAULTS.holdout_fraction if holdout is None else holdout,
            balance_train=balance,
            group_level=hold_out_groups,
            patience=patience,
            precision=precision,
            calibrate=calibrate,
            members=_DEFAULTS.members if members is None else members,
            seed=seed,
        )
        how = how_to_create(
            chosen_genes(genes, gene_column), select, other_genes, require_labels, settings.split(), quiet
        )
        if dataset is not None:
            free_place(dataset)
        inputs = {"DATA": data, "--mapping": mapping}
        output = model_output(output, inputs, checkpoint, log, overwrite, {"--dataset": dataset})
        how |= {"label_key": label, "layer": layer, "gene_key": gene_key, "group_key": group, "fix": fix}
        how |= {"mapping": mapping_in(mapping), "unlabeled": unlabeled or ()}
    with warnings_unless(quiet), temporary_folder() as folder:
        with refusing(InputRefused):
            path = dataset or folder / "train.zarr"
            made = labelled_data(data, path, cells, how, of_counts, holdout, hold_out_groups)
            trainer = GinsengClassifierTrainer(made, settings, memory=memory, card=told)
        begin(checkpoint, [output, dataset])
        trainer.fit(epochs, silent=quiet, checkpoint=checkpoint, log=log)
        trained = state_from_classifier_trainer(trainer)
    save_model(trained, output)
    forget(checkpoint)
    say_what_was_saved(quiet, trained, output, calibrate)


def model_output(
    output: Path,
    inputs: Named,
    checkpoint: Path | None,
    log: Path | None,
    overwrite: bool,
    further: dict[str, Path | None],
) -> Path:
    """Where a model is to be saved; made sure of, as of all else that training writes, before anything is done."""
    require_writable_path(output)
    output = output if output.suffix == ".h5" else output.with_name(f"{output.name}.h5")
    require_writable_path(output)
    saved = None if checkpoint is None else checkpoint / FILE
    if saved is not None:
        require_writable_path(saved)
    if log is not None:
        LogFile(log)
    outputs = {"--output": output, **further, "--checkpoint": saved, "--log": log}
    going_on = [path for path in (saved, log) if path is not None]
    require_outputs(outputs, inputs, overwrite=overwrite, begun=[*begun_with(checkpoint), *going_on])
    return output


def labelled_data(
    data: str,
    path: Path,
    cells: str | None,
    how: dict[str, Any],
    of_counts: dict[str, Any],
    holdout: float | None,
    hold_out_groups: bool,
) -> GinsengDataset:
    """The dataset that is named, or one made at `path` of the counts that are; `how` is what `create` takes."""
    quiet, label, group = how["silent"], how["label_key"], how["group_key"]
    is_dataset = label is None and is_zarr_url(data) if is_url(data) else store.is_store(data)
    if is_dataset:
        options = {"--label": label, "--cells": cells, "--layer": how["layer"], "--gene-key": how["gene_key"]}
        options |= {"--group": group, **of_counts}
        options |= {"--require-labels": how["missing_labels"] == "error" or None, "--fix": how["fix"] or None}
        refuse(options, f"for a dataset: {data} has been made with its own")
        made = GinsengDataset(data)
        if how["mapping"] is not None or how["unlabeled"]:
            made = made.renamed(how["mapping"], unlabeled=how["unlabeled"])
        if made.test_idx is not None:
            require_split(made, holdout, hold_out_groups)
            say(quiet, f"{data} has been split before: {len(made.test_idx):,} cells are held out")
        return made
    require_group(hold_out_groups, group)
    if label is None:
        columns = read_adata(data).obs.columns
        raise WrongUse(f"--label is needed: the column with the cell types, of: {shorten(columns)}.")
    counts = data if cells is None else cells_of(read_adata(data, backed=False), cells)
    ignore_few_genes(of_counts.get("--genes"))
    made = GinsengDataset.create(path, counts, **how)
    warnings.filterwarnings("ignore", ".* holds fractions")  # told a moment ago
    return made


def say_what_was_saved(quiet: bool, state: GinsengClassifierState, output: Path, calibrate: str) -> None:
    """Tell how a trained classifier is calibrated, and where it is."""
    if (calibration := state.calibration) is not None:
        error = calibration.table()["ece"]
        say(
            quiet,
            f"calibrated by {len(calibration.labels):,} cells of {SOURCES[calibration.source]}: expected calibration "
            f"error {error['before']:.3f} before, {error['after']:.3f} after",
        )
    elif calibrate != "none":
        say(quiet, f"not calibrated, which needs {LEAST_CELLS} held-out cells: no status and no novelty of new cells")
    say(quiet, f"{state.n_classes} cell types, {state.n_genes:,} genes: saved {output}")


@command
def inspect(
    file: Annotated[str, typer.Argument(help="A model, a dataset, or a file of counts.", show_default=False)],
) -> None:
    """Tell what is in a model, a dataset or a file of counts."""
    with refusing(InputRefused):
        if is_model(file):
            told = describe_model(load_model(file))
        elif store.is_store(file):
            told = describe_dataset(GinsengDataset(file))
        else:
            with opened_counts(file) as adata:
                told = describe_counts(adata)
    say(False, told)


@command
def demo(
    data: Annotated[str | None, typer.Option(help="Your own labelled raw counts; default: 700 blood cells.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of obs with the cell types.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = _DEMO,
    genes: Annotated[
        int, typer.Option(help="How many genes to train on, markers of the types.", min=1), Called("n_genes")
    ] = 500,
    epochs: Annotated[int, typer.Option(help="Passes over the training cells.", min=0)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help=f"Replace results that are there, as is done in the folder {_DEMO}/.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train on two thirds of labelled cells, annotate the other third, and draw the result.

    Without options, on 10x Genomics blood cells that come with scanpy.
    """
    demonstration = ginseng.demo  # first of all, since it needs an extra
    if data is not None and label is None:
        raise WrongUse("--data needs --label, the column of obs with the cell types.")
    results = [out / name for name in demonstration.RESULTS]
    require_outputs({"--out": results}, {"--data": data}, overwrite=overwrite or out == _DEMO)
    with warnings_unless(quiet), refusing(InputRefused):
        adata = demonstration.pbmc_counts() if data is None else read_adata(data, backed=False)
        scores = demonstration.run(
            adata, label or "bulk_labels", out, n_genes=genes, epochs=epochs, seed=seed, silent=quiet
        )
    say(quiet, f"Saved {', '.join(demonstration.RESULTS[:-1])} and {demonstration.RESULTS[-1]} to {out}/")
    say(False, scores.report("held-out cells"))
