"""Pictures of the page: one a question, small, as SVG whose text is text."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.race.questions import OURS, REFERENCE, Question, average_of

COLOURS = {  # Okabe and Ito's, which colour-blind people tell apart
    OURS: "#0072B2",
    REFERENCE: "#D55E00",
    "CellTypist": "#009E73",
    "logistic regression": "#CC79A7",
    "annbatch": "#E69F00",
}
OTHERS = ("#000000", "#56B4E9", "#7F7F7F", "#A6761D", "#999933")
MARKERS = "osD^vPX*"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "race",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colours_of(names: list[str]) -> dict[str, str]:
    """A colour for each contestant, the same in every picture for the usual ones."""
    rest = iter(OTHERS * len(names))
    return {name: COLOURS.get(name) or next(rest) for name in names}


def draw(question: Question, found: pd.DataFrame, path: Path) -> None:
    """Losses by step, figures by number of cells, or a row of dots for each contestant."""
    with matplotlib.rc_context(STYLE):
        if question.name == "trajectory":
            figure = losses(found)
        elif question.name != "memory" and is_by_size(found):
            figure = by_size(question, found)
        else:
            figure = dots(question, found)
        figure.savefig(path, bbox_inches="tight", facecolor="white", metadata={"Date": None})


def is_by_size(found: pd.DataFrame) -> bool:
    """Whether cases are numbers of cells, several of them."""
    sizes = found["case"].str.fullmatch(r"[\d,]+ cells")
    return bool(sizes.all()) and found["case"].nunique() > 1


def by_size(question: Question, found: pd.DataFrame) -> Figure:
    """A line for each contestant, through medians, with the dots of the rounds."""
    figure = Figure(figsize=(5.2, 2.8))
    axes = figure.subplots()
    sizes = found["case"].str.extract(r"([\d,]+)")[0].str.replace(",", "").astype(int)
    names = list(dict.fromkeys(found["by"]))
    for marker, (name, colour) in zip(MARKERS, colours_of(names).items(), strict=False):
        is_by = found["by"] == name
        values = found.loc[is_by, question.figure].astype(float)
        medians = values.groupby(sizes[is_by]).median()
        axes.plot(sizes[is_by], values, marker, color=colour, alpha=0.35, markersize=4)
        axes.plot(medians.index, medians, marker=marker, color=colour, label=name, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="cells", ylabel=question.figure)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def dots(question: Question, found: pd.DataFrame) -> Figure:
    """A row for each case and contestant: its rounds as dots, their median or mean as a bar."""
    rows = list(dict.fromkeys(zip(found["case"], found["by"], strict=True)))
    colours = colours_of(list(dict.fromkeys(found["by"])))
    figure = Figure(figsize=(5.2, 0.6 + 0.24 * len(rows)))
    axes = figure.subplots()
    for nth, (case, by) in enumerate(rows):
        values = found.loc[(found["case"] == case) & (found["by"] == by), question.figure].astype(float)
        axes.plot(values, [nth] * len(values), "o", color=colours[by], alpha=0.6, markersize=4)
        axes.plot(
            values.agg(average_of(question.figure)), nth, "|", color=colours[by], markersize=12, markeredgewidth=2
        )
    of_cases = [nth for nth in range(1, len(rows)) if rows[nth][0] != rows[nth - 1][0]]
    for nth in of_cases:
        axes.axhline(nth - 0.5, color="#BBBBBB", linewidth=0.6)
    several = len({case for case, _ in rows}) > 1
    labels = [f"{case}: {by}" if several else by for case, by in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=question.figure)
    spread_out(axes, found[question.figure].astype(float))
    return figure


def spread_out(axes: Axes, values: pd.Series) -> None:
    """A logarithmic axis where figures are far apart; rates, times and sizes begin at 0 otherwise, shares do not."""
    if values.min() > 0 and values.max() > 8 * values.min() and values.max() > 1:
        axes.set_xscale("log")
    elif values.max() > 1:
        axes.set_xlim(0, 1.05 * values.max())


def losses(found: pd.DataFrame) -> Figure:
    """Loss by step of each side, the second dashed over the first."""
    figure = Figure(figsize=(5.2, 2.6))
    axes = figure.subplots()
    names = list(dict.fromkeys(found["by"]))
    for style, (name, colour) in zip(("-", "--"), colours_of(names).items(), strict=False):
        axes.plot(found.loc[found["by"] == name, "details"].iloc[0]["losses"], style, color=colour, label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    return figure
