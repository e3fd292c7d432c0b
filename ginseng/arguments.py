"""What the commands take: the options that they share, and what these stand for."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from anndata import AnnData

from ginseng.data.dataset import GinsengDataset
from ginseng.data.sampling import is_split_of, mixes_groups
from ginseng.utils.counts import copy_of
from ginseng.utils.labels import names_in
from ginseng.utils.messages import require_one, shorten
from ginseng.utils.pairs import read_mapping
from ginseng.utils.values import WrongValue

N_GENES, SELECT = 1000, "markers"


class Called:
    """Beside an option: what Python calls the argument that it stands for, where it has another name there.

    Parameters
    ----------
    names : str
        As they stand in messages.
    """

    def __init__(self, *names: str):
        self.names = names


Data = Annotated[
    str, typer.Argument(help="Raw counts: .h5ad, 10x .h5, 10x folder, .zarr, or an http(s) URL.", show_default=False)
]
Cells = Annotated[
    str | None,
    typer.Option(help="Use only cells for which this holds, e.g. \"donor != 'd4'\" (a pandas query on obs)."),
]
Label = Annotated[
    str | None,
    typer.Option(help="Column of obs with the cell types; a dataset knows its own.", show_default=False),
    Called("label_key"),
]
Layer = Annotated[str | None, typer.Option(help="Layer with the raw counts ('raw' for adata.raw); default X.")]
GeneKey = Annotated[str | None, typer.Option(help="Column of var with gene names; default: its index.")]
Group = Annotated[
    str | None, typer.Option(help="Column of obs with the donor or batch of each cell."), Called("group_key")
]
Genes = Annotated[
    int | None,
    typer.Option(help=f"How many genes to train on, chosen by --select; 0 for all; default {N_GENES}.", min=0),
]
ChosenBy = Annotated[
    str | None,
    typer.Option("--select", help="Genes to choose: markers (they tell the types apart; default) or variance."),
]
OtherGenes = Annotated[
    bool | None,
    typer.Option(
        "--other-genes/--no-other-genes",
        help="Add the sum of the counts of all other genes as one more input; default where --genes chooses some.",
    ),
]
HoldOutGroups = Annotated[
    bool, typer.Option("--hold-out-groups", help="Hold out whole groups."), Called("group_level", "stratify_group")
]
GeneColumn = Annotated[str | None, typer.Option(help="Boolean column of var to choose genes by instead.")]
RequireLabels = Annotated[
    bool, typer.Option("--require-labels", help="Refuse cells without a label instead of leaving them out.")
]
Mapping = Annotated[
    Path | None,
    typer.Option(
        help="Table (.csv, .tsv; no header) of two columns: a label of the data, and the name to take for it; empty to "
        "leave its cells out. Labels that it does not name stay."
    ),
]
Unlabeled = Annotated[
    list[str] | None,
    typer.Option(help="A label that says that there is none, such as Unknown, beside nan, NA, None; repeat for more."),
]
Fix = Annotated[
    bool,
    typer.Option(
        "--fix", help="Put right what can be: take the layer that holds raw counts, undo logarithms, match other names."
    ),
]
Patience = Annotated[
    int | None, typer.Option(help="Stop after so many epochs without a lower holdout loss; keep the best.", min=1)
]
Precision = Annotated[
    str, typer.Option(help="Of matrix products: float32, or bfloat16 (faster where the hardware has them).")
]
Card = Annotated[
    list[str] | None,
    typer.Option(help="What to tell of the model, e.g. --card 'licence=CC BY 4.0'; repeat for more."),
]
Memory = Annotated[str | None, typer.Option(help="What counts may take, such as 2GB; default half of what is free.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Save the run in this folder as it goes on; after a kill repeat the call, which may replace what it began."
    ),
]
Log = Annotated[Path | None, typer.Option(help="Append the metrics of each epoch to this .csv or .jsonl file.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no warnings.")]


def refuse(options: dict[str, Any], where: str) -> None:
    """Raise an error that names the options that are given where they have no effect.

    Examples
    --------
    >>> refuse({"--label": None, "--layer": "counts"}, "for a dataset")
    Traceback (most recent call last):
        ...
    ginseng.utils.values.WrongValue: --layer cannot be chosen for a dataset.
    """
    if given := [name for name, value in options.items() if value is not None]:
        raise WrongValue(f"{' and '.join(given)} cannot be chosen {where}.")


def card_texts(entries: list[str] | None) -> dict[str, str]:
    """What ``--card name=text`` tells of a model.

    Examples
    --------
    >>> card_texts(["data=Kang et al. 2018", "licence=CC BY 4.0"])
    {'data': 'Kang et al. 2018', 'licence': 'CC BY 4.0'}
    """
    parts = [entry.partition("=") for entry in entries or []]
    for name, separator, _ in parts:
        if not (name and separator):
            raise WrongValue(f"--card takes name=text, such as licence=MIT, but got {name!r}.")
    return {name: text for name, _, text in parts}


def chosen_genes(number: int | None, column: str | None) -> str | int | None:
    """How the options of `create` and `fit` choose genes; None for all."""
    if number is not None and column is not None:
        raise WrongValue("Genes are chosen by --genes or by --gene-column, not by both.")
    return column or (N_GENES if number is None else number) or None


def ignore_few_genes(number: int | None) -> None:
    """Leave out the warning of fewer genes than were to be chosen, where no number was given with --genes."""
    if number is None:
        warnings.filterwarnings("ignore", "[0-9,]+ genes were to be chosen")


def mapping_in(table: Path | None, option: str = "mapping") -> dict[str, str | None] | None:
    """What the table of an option says of labels."""
    return None if table is None else read_mapping(table, option, ("label", "new name"))


def how_to_create(
    genes: str | int | None,
    select: str | None,
    other_genes: bool | None,
    require_labels: bool,
    split: dict[str, Any] | None,
    quiet: bool,
) -> dict[str, Any]:
    """What `GinsengDataset.create` takes, of the options that `create` and `fit` share."""
    if select is not None and not isinstance(genes, int):
        raise WrongValue("--select is how --genes are chosen; leave it out where no number of genes is asked for.")
    return {
        "genes": genes,
        "missing_labels": "error" if require_labels else "drop",
        "select": select or SELECT,
        "split": split,
        "other_genes": isinstance(genes, int) if other_genes is None else other_genes,
        "silent": quiet,
    }


def require_group(hold_out_groups: bool, group: str | None) -> None:
    """Refuse to hold out groups of which the column is not given."""
    if hold_out_groups and group is None:
        raise WrongValue("--hold-out-groups needs --group, the column of obs with the donor or batch.")


def require_split(dataset: GinsengDataset, holdout: float | None, whole_groups: bool) -> None:
    """Refuse a share, or groups, to hold out that are not those of the split there is."""
    if dataset.train_idx is None or dataset.test_idx is None:
        return
    found = (
        f"{dataset.path} has been split before, with {len(dataset.test_idx):,} of {dataset.n_cells:,} cells held out"
    )
    way_out = f"make the dataset anew, or in Python call GinsengDataset('{dataset.path}').make_split"
    if holdout is not None and not is_split_of(holdout, dataset.test_idx, dataset.labels, dataset.groups):
        raise WrongValue(f"{found}, which --holdout {holdout:g} does not change: leave it out, {way_out}({holdout:g}).")
    if whole_groups and mixes_groups(dataset.groups, dataset.train_idx, dataset.test_idx):
        raise WrongValue(f"{found}, and no whole groups: {way_out}(0.1, stratify_group=True).")


def truth_column(adata: AnnData, column: str) -> Any:
    """What the column of ``obs`` with the true types names."""
    require_one("column of true cell types", column, "adata.obs", adata.obs.columns)
    return names_in(adata.obs[column], f"adata.obs['{column}']")


def cells_of(adata: AnnData, query: str | None) -> AnnData:
    """The cells of `adata` for which a pandas query on ``obs`` holds."""
    if query is None:
        return adata
    try:
        obs: Any = adata.obs
        chosen = obs.eval(query)
    except Exception as error:  # pandas raises whatever its parser and the expression do
        raise ValueError(
            f"--cells {query!r} cannot be evaluated ({error}). Columns of obs: {shorten(adata.obs.columns)}."
        ) from error
    if not isinstance(chosen, pd.Series) or chosen.dtype != bool:
        raise ValueError(
            f"--cells {query!r} is not true or false for each cell; to compare, write `column == 'value'`."
        )
    if not chosen.any():
        raise ValueError(f"--cells {query!r} holds for none of the {adata.n_obs:,} cells.")
    return copy_of(adata[chosen.to_numpy()])
