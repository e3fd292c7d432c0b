"""Pictures of training and annotation (needs the `plot` extra: matplotlib)."""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import hsv_to_rgb, to_rgba_array
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ImportError(f"Pictures need {error.name}: pip install 'ginseng-eqx[plot]'.") from error

from ginseng.metrics import Scores, ece
from ginseng.metrics import reliability as reliability_of
from ginseng.model.calibration import Calibration
from ginseng.model.harmony import SIGNS, Harmony
from ginseng.train.logger import GinsengLogger
from ginseng.utils.labels import text_of
from ginseng.utils.messages import require_one, unknown_name

_MOST_ROWS = 32  # of a legend
_TEN_COLOURS = (  # apart from each other for the colour-blind, too: Petroff, arXiv:2107.02270
    *("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#92dadd"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#94a4a2"),
)


def confusion_matrix(scores: Scores) -> Figure:
    """Draw the share of each true type that was given each type.

    Parameters
    ----------
    scores : Scores
        From `ginseng.metrics.score`.

    Returns
    -------
    matplotlib.figure.Figure
        To be shown in a notebook, or saved with ``figure.savefig(path)``.

    Examples
    --------
    >>> from ginseng.metrics import score
    >>> figure = confusion_matrix(score(["B", "B", "T"], ["B", "T", "T"]))
    """
    confusion = scores.confusion
    share = confusion.div(confusion.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(confusion.to_numpy()), strict=True):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(confusion.iat[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted type", ylabel="true type")
    axes.set_title(f"accuracy {scores.accuracy:.3f}, macro-F1 {scores.macro_f1:.3f}", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the true type", shrink=0.8)
    _name_squares(figure, axes, confusion)
    return figure


def training_curve(logger: GinsengLogger) -> Figure:
    """Draw the losses, and accuracy and macro-F1 on the held-out cells, of each epoch.

    Parameters
    ----------
    logger : GinsengLogger
        The ``logger`` of a trainer.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels.

    Examples
    --------
    >>> figure = training_curve(GinsengLogger([0, 1], [1.0, 0.5], [0.9, 0.6], [0.6, 0.8], [0.5, 0.7]))
    """
    epochs = np.asarray(logger.epoch) + 1
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, logger.train_loss, marker=".", label="training")
    left.plot(epochs, logger.holdout_loss, marker=".", label="holdout")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    right.plot(epochs, logger.holdout_accuracy, marker=".", color="C1", label="accuracy")
    right.plot(epochs, logger.holdout_macro_f1, marker=".", color="C1", linestyle="--", label="macro-F1")
    right.set(xlabel="epoch", ylabel="on held-out cells", ylim=(0, 1.02))
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def reliability(
    confidence: Calibration | Sequence[float] | Mapping[str, Sequence[float]] | Any,
    is_right: Sequence[bool] | Any = None,
    n_bins: int = 15,
) -> Figure:
    """Draw the accuracy of cells against their confidence, in bins of equally many cells.

    Parameters
    ----------
    confidence : Calibration, sequence of float, or mapping of str to sequence of float
        Probability that each cell's type is right; of a mapping, each is drawn. The ``calibration`` of a trainer is
        drawn before and after, by its held-out cells.
    is_right : sequence of bool, optional
        Whether the type is right; a calibration knows.
    n_bins : int
        See `ginseng.metrics.reliability`.

    Returns
    -------
    matplotlib.figure.Figure
        With the expected calibration error of each.

    Examples
    --------
    >>> figure = reliability([0.6, 0.6, 0.9, 0.9], [True, False, True, True])
    """
    if isinstance(confidence, Calibration):
        before, is_right = confidence.confidence(before=True)
        confidence = {"before": before, "after": confidence.confidence()[0]}
    curves = confidence if isinstance(confidence, Mapping) else {"": confidence}
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    errors = []
    for name, values in curves.items():
        table = reliability_of(values, is_right, n_bins)
        axes.plot(table["confidence"], table["accuracy"], marker="o", markersize=4, linewidth=1, label=name)
        errors.append(f"{name} ECE {ece(values, is_right, n_bins):.3f}".strip())
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    axes.set_title(", ".join(errors), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, loc="lower right")
    return figure


def contributions(table: pd.DataFrame, n_genes: int = 4) -> Figure:
    """Draw what genes contribute to the types of groups of cells, as a dot plot.

    Parameters
    ----------
    table : pandas.DataFrame
        From `ginseng.explain`, or ``adata.uns["ginseng_contributions"]``.
    n_genes : int
        So many first genes of each group are drawn, for all groups.

    Returns
    -------
    matplotlib.figure.Figure
        A dot is as large as the share of the cells of a group that express the gene, and of a colour for its mean
        contribution.

    Examples
    --------
    >>> columns = {"group": "B", "gene": ["CD79A", "LYZ"], "contribution": [1.5, 0.2], "share": [0.9, 0.1]}
    >>> figure = contributions(pd.DataFrame(columns))
    """
    groups = list(table["group"].unique())
    genes = list(table.groupby("group", sort=False).head(n_genes)["gene"].unique())
    drawn: Any = table[table["gene"].isin(genes)]
    x, y = drawn["gene"].map(genes.index), drawn["group"].map(groups.index)
    farthest = drawn["contribution"].abs().max()
    width, height = 2.4 + 0.26 * len(genes), 1.5 + 0.3 * len(groups)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.scatter(
        x, y, s=110 * drawn["share"], c=drawn["contribution"], cmap="RdBu_r", vmin=-farthest, vmax=farthest
    )
    image.set(edgecolor="grey", linewidth=0.3)
    axes.set_xticks(range(len(genes)), genes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(groups)), groups)
    axes.set(xlim=(-0.7, len(genes) - 0.3), ylim=(len(groups) - 0.3, -0.7))
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(image, ax=axes, label="contribution", shrink=0.8, aspect=12, pad=0.01)
    handles = [axes.scatter([], [], s=110 * share, color="grey", label=f"{share:.0%}") for share in (0.25, 0.5, 1.0)]
    legend = figure.legend(
        handles=handles, title="cells that express it", loc="outside upper right", ncols=3, frameon=False, fontsize=8
    )
    legend.get_title().set_fontsize(8)
    left = max(label.get_window_extent().width for label in axes.get_yticklabels()) / figure.dpi
    below = max(label.get_window_extent().height for label in axes.get_xticklabels()) / figure.dpi
    figure.set_size_inches(max(width + left, 4.0), height + below)
    return figure


def harmony(found: Harmony) -> Figure:
    """Draw how well the labels of two studies fit each other, as a heat map.

    Parameters
    ----------
    found : Harmony
        From `ginseng.harmonize`.

    Returns
    -------
    matplotlib.figure.Figure
        Labels of A are rows, those of B columns, and related ones are marked: = for the same, < where that of A is
        finer, > where it is coarser.

    Examples
    --------
    >>> shares = pd.DataFrame([[0.9, 0.1], [0.0, 1.0]], ["B", "T"], ["CD19+", "CD3+"])
    >>> figure = harmony(Harmony.of(shares, shares.T, 0.25))
    """
    matrix = found.matrix
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    rows, columns = list(matrix.index), list(matrix.columns)
    for a, b, score, relation in found.pairs[["a", "b", "score", "relation"]].to_numpy():
        colour = "white" if score > 0.5 else "black"
        axes.text(columns.index(b), rows.index(a), SIGNS[relation], ha="center", va="center", color=colour)
    axes.set(xlabel="label of B", ylabel="label of A")
    _name_squares(figure, axes, matrix)
    figure.colorbar(image, ax=axes, label="score", shrink=0.8)
    return figure


def gained(table: pd.DataFrame) -> Figure:
    """Draw the F1 of each type before and after fine-tuning, as pairs of bars.

    Parameters
    ----------
    table : pandas.DataFrame
        The ``table`` of what `ginseng.finetune` returns.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for the held-out cells of the new data and, where there are any, one for those of the old, whose types
        are named with their numbers of cells.

    Raises
    ------
    ValueError
        If the table is empty, since no cell was held out.

    Examples
    --------
    >>> types = pd.MultiIndex.from_tuples([("new", "B"), ("new", "T")], names=["part", "type"])
    >>> figure = gained(pd.DataFrame({"cells": [9, 20], "before": [0.0, 0.9], "after": [0.8, 0.9]}, types))
    """
    if table.empty:
        raise ValueError("No cell was held out, so that there is nothing to draw: split the dataset before tuning.")
    parts = list(table.index.unique("part"))
    n_rows = int(table.groupby("part").size().max())
    types = table.index.get_level_values("type")
    names = [f"{name} ({n_cells:,})" for name, n_cells in zip(types, table["cells"], strict=True)]
    figure = Figure(layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=True):
        here = table.index.get_level_values("part") == part
        at = np.arange(here.sum())
        for column, shift, colour in (("before", -0.2, "lightgrey"), ("after", 0.2, "C0")):
            axes.barh(at + shift, table.loc[here, column], height=0.4, color=colour, label=column)
        axes.set_yticks(at, [name for name, is_here in zip(names, here, strict=True) if is_here], fontsize=9)
        axes.set(xlabel="F1", xlim=(0, 1), ylim=(n_rows - 0.4, -0.6), title=f"held-out cells of the {part} data")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    room = sum(max(label.get_window_extent().width for label in axes.get_yticklabels()) for axes in panels)
    figure.set_size_inches(3.2 * len(parts) + room / figure.dpi, 1.6 + 0.4 * n_rows)
    return figure


def embedding(adata: AnnData, columns: Sequence[str], basis: str = "X_umap") -> Figure:
    """Draw cells in a two-dimensional embedding, coloured by columns of ``obs``.

    Categorical columns that share their categories share their colours, so that truth and prediction compare at a
    glance.

    Parameters
    ----------
    adata : AnnData
        With the embedding in ``adata.obsm``.
    columns : sequence of str
        Columns of ``adata.obs``: a panel for each.
    basis : str
        Key in ``adata.obsm``.

    Returns
    -------
    matplotlib.figure.Figure
        One row of panels.

    Raises
    ------
    ValueError
        If the embedding or a column does not exist.

    Examples
    --------
    >>> adata = AnnData(np.zeros((3, 1)), obs=pd.DataFrame({"type": ["B", "B", "T"]}, index=list("xyz")))
    >>> adata.obsm["X_umap"] = np.arange(6.0).reshape(3, 2)
    >>> figure = embedding(adata, ["type"])
    """
    if basis not in adata.obsm:
        raise unknown_name("embedding", basis, "adata.obsm", adata.obsm)
    for column in columns:
        require_one("column", column, "adata.obs", adata.obs.columns)
    points = np.asarray(adata.obsm[basis])[:, :2]
    is_number = {column: pd.api.types.is_numeric_dtype(adata.obs[column]) for column in columns}
    of_cells = {column: _names_of(adata.obs[column]) for column in columns if not is_number[column]}
    names = sorted({name for of_column in of_cells.values() for name in of_column.dropna()})
    colours = dict(zip(names, _palette(len(names)), strict=True))
    width, height = 4.4 * len(columns), 4.0
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    size = float(np.clip(20_000 / max(1, len(points)), 2, 30))
    for axes, column in zip(panels, columns, strict=True):
        if is_number[column]:
            drawn = axes.scatter(*points.T, c=adata.obs[column], s=size, cmap="viridis", linewidths=0)
            figure.colorbar(drawn, ax=axes, shrink=0.7)
        else:
            _scatter_by_name(axes, points, of_cells[column].to_numpy(), colours, size)
        axes.set_title(column.replace("_", " "))
        axes.set(xticks=[], yticks=[], xlabel=f"{basis.removeprefix('X_')} 1", ylabel=f"{basis.removeprefix('X_')} 2")
    if colours:
        labelled = next(axes for axes, column in zip(panels, columns, strict=True) if not is_number[column])
        handles = [labelled.scatter([], [], color=colour, label=name, s=30) for name, colour in colours.items()]
        n_columns = math.ceil(len(names) / _MOST_ROWS)
        legend = figure.legend(
            handles=handles, loc="outside right center", frameon=False, fontsize=8, ncols=n_columns
        ).get_window_extent()
        room = 1.1 / figure.dpi  # text is up to a tenth larger in pictures of few pixels, which it is fitted to
        figure.set_size_inches(width + room * legend.width, max(height, room * legend.height + 0.2))
    return figure


def _name_squares(figure: Figure, axes: Axes, table: pd.DataFrame) -> None:
    """Name the rows and columns of a picture of a table, and give the picture the size that they need."""
    axes.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(table.shape[0]), table.index)
    left = max(label.get_window_extent().width for label in axes.get_yticklabels()) / figure.dpi
    below = max(label.get_window_extent().height for label in axes.get_xticklabels()) / figure.dpi
    figure.set_size_inches(2.2 + 0.45 * table.shape[1] + left, 1.6 + 0.45 * table.shape[0] + below)


def _palette(n: int) -> np.ndarray:
    """Give `n` distinct colours: those of a palette, or hues all around the circle at three lightnesses."""
    if n <= len(_TEN_COLOURS):
        return to_rgba_array(_TEN_COLOURS[:n])[:, :3]
    if n <= 20:
        return colormaps["tab20"](np.arange(n))[:, :3]
    stride = next(step for step in count(round(0.38 * n)) if math.gcd(step, n) == 1)  # types in a row are far in hue
    place = np.arange(n) * stride % n
    saturation, value = np.array([[1.0, 0.55], [0.75, 0.95], [0.4, 0.8]])[place % 3].T
    hue = place / (n + 2)  # the first and the last, which may be equally light, are no nearer than others that are
    return hsv_to_rgb(np.stack([hue, saturation, value], axis=1))


def _names_of(column: Any) -> pd.Series:
    return column.astype(object).map(text_of, na_action="ignore")


def _scatter_by_name(axes: Axes, points: np.ndarray, names: np.ndarray, colours: dict, size: float) -> None:
    order = np.random.default_rng(0).permutation(len(points))  # so that no type hides the others
    drawn = [colours.get(name, "lightgrey") for name in names[order]]
    axes.scatter(*points[order].T, c=drawn, s=size, linewidths=0)
