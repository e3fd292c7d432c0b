"""The command that trains a saved classifier on."""

from pathlib import Path
from typing import Annotated

import typer

import ginseng
from ginseng.arguments import (
    Called,
    Card,
    Cells,
    Checkpoint,
    Fix,
    GeneKey,
    Group,
    HoldOutGroups,
    Label,
    Layer,
    Log,
    Mapping,
    Memory,
    Overwrite,
    Patience,
    Precision,
    Quiet,
    RequireLabels,
    Unlabeled,
    card_texts,
    chosen_genes,
    how_to_create,
    mapping_in,
)
from ginseng.commands.paths import begin, forget
from ginseng.commands.registry import InputRefused, WrongUse, command, refusing, say, warnings_unless
from ginseng.commands.training import labelled_data, model_output, say_what_was_saved
from ginseng.data.models import load_model, save_model
from ginseng.train.finetuning import GENES, tuning_settings
from ginseng.utils.memory import bytes_of
from ginseng.utils.workspace import temporary_folder

_DEFAULTS, _WITH_OLD = tuning_settings(), tuning_settings(with_old=True)


@command
def finetune(
    model: Annotated[Path, typer.Argument(help="A model saved by `ginseng fit`.", show_default=False)],
    data: Annotated[
        str,
        typer.Argument(help="New labelled cells: raw counts, or a dataset of `ginseng create`.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to save it (.h5).", show_default=False)],
    label: Label = None,
    cells: Cells = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    group: Group = None,
    require_labels: RequireLabels = False,
    fix: Fix = False,
    mapping: Mapping = None,
    unlabeled: Unlabeled = None,
    relabel: Annotated[
        Path | None,
        typer.Option(help="Such a table for the labels of the model: to rename, merge, or drop (empty) them."),
    ] = None,
    genes: Annotated[
        str,
        typer.Option(help="model keeps its genes; dataset carries its weights to those of the data (markers, others)."),
    ] = "model",
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Part not to train: trunk (all but the head), features1, ..., head; repeat for more."),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(help="Factor of the learning rate of a part, e.g. --rate features1=0.1; repeat for more."),
        Called("rates"),
    ] = None,
    old: Annotated[
        Path | None, typer.Option(help="Dataset of `ginseng create` that the model was trained on, to be replayed.")
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(
            help="With --old, share of old cells; without, weight of the model's own answers as soft targets; default "
            f"{_DEFAULTS.replay}, {_DEFAULTS.distill}."
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the cells held out to measure what is gained, in [0, 1); "
            f"default {_DEFAULTS.holdout_fraction}, or as a dataset has been split before."
        ),
        Called("holdout_fraction", "fraction"),
    ] = None,
    hold_out_groups: HoldOutGroups = False,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the new cells; default 10, or more of few cells.", min=0)
    ] = None,
    patience: Patience = None,
    batch_size: Annotated[int, typer.Option(help="Cells per step.", min=1)] = _DEFAULTS.batch_size,
    lr: Annotated[
        float | None,
        typer.Option(
            help=f"Learning rate; default {tuning_settings(with_old=True).lr} with --old, else {_DEFAULTS.lr}."
        ),
    ] = None,
    calibrate: Annotated[
        str, typer.Option(help="Cells that tell what answers are worth, as for `ginseng fit`.")
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
    """Train a saved classifier on, with new labelled cells, and tell what it gained and forgot.

    Example: ginseng finetune model.h5 mine.h5ad --label cell_type -o tuned.h5
    """
    with refusing(WrongUse):
        if genes not in GENES:
            raise WrongUse(f"--genes must be one of {', '.join(GENES)}, but got {genes!r}.")
        if memory is not None:
            bytes_of(memory)
        told, rates = card_texts(card), _rates(rate)
        settings = tuning_settings(
            with_old=old is not None,
            **({} if lr is None else {"lr": lr}),
            holdout_fraction=_DEFAULTS.holdout_fraction if holdout is None else holdout,
            group_level=hold_out_groups,
            patience=patience,
            batch_size=batch_size,
            calibrate=calibrate,
            precision=precision,
            seed=seed,
        )
        chosen = chosen_genes(None, None) if genes == "dataset" else None
        how = how_to_create(chosen, None, None, require_labels, settings.split(), quiet)
        inputs = {"MODEL": model, "DATA": data, "--mapping": mapping, "--relabel": relabel, "--old": old}
        output = model_output(output, inputs, checkpoint, log, overwrite, {})
        how |= {"label_key": label, "layer": layer, "gene_key": gene_key, "group_key": group, "fix": fix}
        how |= {"mapping": mapping_in(mapping), "unlabeled": unlabeled or ()}
    with warnings_unless(quiet), temporary_folder() as folder, refusing(InputRefused):
        state = load_model(model)
        made = labelled_data(data, folder / "new.zarr", cells, how, {}, holdout, hold_out_groups)
        begin(checkpoint, [output])
        tuned = ginseng.finetune(
            state,
            made,
            settings,
            epochs=epochs,
            genes=genes,
            relabel=mapping_in(relabel, "relabel"),
            freeze=None if freeze is None else tuple(freeze),
            rates=rates,
            old=old,
            replay=replay,
            memory=memory,
            card=told,
            checkpoint=checkpoint,
            log=log,
            silent=quiet,
        )
    save_model(tuned.state, output)
    forget(checkpoint)
    say(quiet, tuned.report())
    say_what_was_saved(quiet, tuned.state, output, "none" if tuned.state.calibration is None else calibrate)


def _rates(entries: list[str] | None) -> dict[str, float] | None:
    """What ``--rate part=factor`` says."""
    rates = {}
    for entry in entries or []:
        part, _, factor = entry.partition("=")
        try:
            rates[part] = float(factor)
        except ValueError as error:
            raise ValueError(f"--rate takes part=factor, such as features1=0.1, but got {entry!r}.") from error
    return rates or None
