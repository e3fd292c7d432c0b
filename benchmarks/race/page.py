"""From JSON lines the page, with pictures: `python -m benchmarks.race --page-only`.

`results.jsonl` has one object a line, appended and never rewritten. A measurement:

    run       when its run of the race began; lines of one run share it
    question  name in `questions.QUESTIONS`
    case      what was measured on, such as "20,000 cells" or "pbmc3k"
    by        contestant: "ginseng-eqx" is this checkout
    round     0, 1, ...; where cells are held out, the seed
    figures   numbers by name: "cells/s", "seconds", "peak MiB", "accuracy", "macro-F1", "ECE", "AUROC", ...
    cells     how many cells were read, trained on or annotated
    details   what else is told, such as the type left out ("withheld"), or "losses" by step; may be missing
    load      of the machine, over a minute, as the measurement ended
    machine, versions (by package), date, command (of the race)

One that failed has `failed`, one line, in place of `figures` and `cells`; a contestant that was left out of a run has
`left out` in place of all from `question` to `details` but `by`. `read` gives measurements as a table, `latest` those
of the last run of each question, `of_question` those that a section shows, and `compared` ours beside theirs.
"""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.race.plots import draw
from benchmarks.race.questions import OURS, QUESTIONS, Question, average_of

HEADER = """# The race

What `make bench DATA=DIR` found: ours (`ginseng-eqx`) beside others, each in an environment of its own, each
measurement a process of its own, in turn, round by round. Ratios and differences are of the same round; then their
spread. [`results.jsonl`](results.jsonl) has every measurement, and the load of the machine at its end. What other
scripts measured, and what was tried, is in the [record](README.md). To run it on your machine: `make bench-quick`
(five minutes, on cells that come with scanpy), or `make bench DATA=DIR` with a folder of .h5ad whose obs has
`cell_type` and, better, `donor`.
"""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """All lines; one that a killed run left half-written is passed over."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def read(path: Path) -> pd.DataFrame:
    """A row for each measurement, a column for each figure; of failed ones, `failed` says why."""
    rows = [
        {**{key: value for key, value in line.items() if key != "figures"}, **line.get("figures", {})}
        for line in lines_of(path)
        if "question" in line
    ]
    columns = ("run", "question", "case", "by", "round", "failed", "details", "load", "machine", "date", "command")
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*table.columns, *(name for name in columns if name not in table)])


def latest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each question the measurements of its last run."""
    return table[table["run"] == table.groupby("question")["run"].transform("max")]


def of_question(table: pd.DataFrame, question: Question) -> pd.DataFrame:
    """The measurements that a section shows; where they are of several questions, cases say of which."""
    found = table[table["question"].isin(question.measured)]
    if question.figure not in found:
        return found.iloc[:0]
    found = found.dropna(subset=[question.figure])
    if len(question.measured) > 1:
        found = found.assign(case=found["question"].str.replace("-", " ") + ", " + found["case"])
    return found


def compared(table: pd.DataFrame, question: Question) -> pd.DataFrame:
    """Ours / theirs, or ours - theirs in points where figures are shares, and their spread over rounds.

    A row for each case and contestant beside ours; columns ``average`` (the median of ratios, the mean of points),
    ``least``, ``most`` and ``rounds``.
    """
    measured = of_question(table, question).reindex(columns=["case", "by", "round", question.figure])
    found = measured.set_index(["case", "by", "round"])[question.figure].astype(float)
    found = found[~found.index.duplicated(keep="last")]
    pairs = found.unstack("by")
    rows = []
    for by in pairs.columns.drop(OURS, errors="ignore") if OURS in pairs else ():
        ours, theirs = pairs[OURS], pairs[by]
        beside = 100 * (ours - theirs) if question.is_share else ours / theirs
        for case, values in beside.dropna().groupby("case", sort=False):
            spread = {"least": values.min(), "most": values.max(), "rounds": len(values)}
            rows.append({"case": case, "by": by, "average": values.agg(average_of(question.figure)), **spread})
    order = {case: nth for nth, case in enumerate(dict.fromkeys(found.index.get_level_values("case")))}
    rows.sort(key=lambda row: (row["by"], order[row["case"]]))
    return pd.DataFrame(rows, columns=["case", "by", "average", "least", "most", "rounds"])


def number(value: float) -> str:
    """Three digits, or whole where it is large."""
    if pd.isna(value):
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-4 else f"{value:.3g}"


def beside(question: Question, comparison: pd.DataFrame) -> list[str]:
    """What is said first: a line for each contestant beside ours."""
    how = "ours - theirs, in points" if question.is_share else "ours / theirs"
    average, n_cases = average_of(question.figure), comparison["case"].nunique()
    good = "more" if question.more_is_better else "less"
    told = [f"**{how}** ({good} is better for ours), {average} and spread:", ""] if len(comparison) else []
    for by, rows in comparison.groupby("by", sort=False):
        each = [
            f"**{value(row['average'], question)}** ({spread(row, question)}) {row['case']}"
            for _, row in rows.iterrows()
        ]
        if question.is_share and len(rows) == n_cases > 1:
            each.insert(0, f"**{value(rows['average'].mean(), question)}** over all")
        told.append(f"- beside {by}: {'; '.join(each)}")
    return [*told, ""]


def spread(row: pd.Series, question: Question) -> str:
    """From the least to the most, where there is more than one round."""
    return "one round" if row["rounds"] == 1 else f"{value(row['least'], question)} to {value(row['most'], question)}"


def value(found: float, question: Question) -> str:
    """A ratio, or a difference in points with its sign."""
    return f"{found:+.1f}" if question.is_share else number(found)


def table_of(question: Question, found: pd.DataFrame) -> list[str]:
    """Averages over rounds, as Markdown."""
    figures = [question.figure, *(name for name in question.others if name in found and found[name].notna().any())]
    lines = [f"| case | by | {' | '.join(figures)} | rounds |", f"|---|---|{'--:|' * (len(figures) + 1)}"]
    for (case, by), rows in found.groupby(["case", "by"], sort=False):
        shown = [number(rows[name].dropna().astype(float).agg(average_of(name))) for name in figures]
        lines.append(f"| {case} | {by} | {' | '.join(shown)} | {len(rows)} |")
    return [*lines, ""]


def withheld(question: Question, found: pd.DataFrame) -> list[str]:
    """Which types were left out of training, where that was the question, and our figure of each."""
    names = [told.get("withheld") if isinstance(told, dict) else None for told in found["details"]]
    ours = found.assign(withheld=names)[found["by"] == OURS].dropna(subset="withheld")
    told = []
    for case, of_case in ours.groupby("case", sort=False):
        figures = of_case[question.figure].map(number)
        told.append(f"{', '.join(of_case['withheld'] + ' ' + figures)} ({case})")
    return [f"Left out by each seed, and our {question.figure}: {'; '.join(told)}.", ""] if told else []


def measured_with(found: pd.DataFrame) -> list[str]:
    """Machine, versions, date, load and command of a section's measurements."""
    lines = []
    for _, of_run in found.groupby("run", sort=True):
        first = of_run.iloc[0]
        versions = "; ".join(f"{by}: {named(of_by['versions'].iloc[0])}" for by, of_by in of_run.groupby("by"))
        load = of_run["load"].astype(float)
        lines += [
            f"*{first['machine']}; {str(first['run'])[:10]}; load {load.min():.1f} to {load.max():.1f}. {versions}.*",
            "",
            f"```text\n{first['command']}\n```",
            "",
        ]
    return lines


def named(versions: Any) -> str:
    """Versions by package, in a line."""
    return ", ".join(f"{package} {version}" for package, version in versions.items()) if versions else "unknown"


def section(question: Question, table: pd.DataFrame, folder: Path) -> list[str]:
    """One question: ratio, picture, table, what failed, how it was measured."""
    found = of_question(table, question)
    failed = table[table["question"].eq(question.name) & table["failed"].notna()]
    lines = [f'<a id="{question.name}"></a>', "", f"## {question.title}", "", question.about, ""]
    if not len(found) and not len(failed):
        return [*lines, f"Not asked yet: `python -m benchmarks.race --questions {' '.join(question.measured)}`.", ""]
    if len(found):
        lines += withheld(question, found)
        lines += beside(question, compared(table, question))
        draw(question, found, folder / f"{question.name}.svg")
        lines += [f"![{question.title}]({folder.name}/{question.name}.svg)", ""]
        lines += table_of(question, found)
    for (case, by), rows in failed.groupby(["case", "by"], sort=False):
        lines.append(f"- {by}, {case}: failed in {len(rows)} of its rounds: {one_line(rows['failed'].iloc[-1])}")
    return [*lines, "", *measured_with(found if len(found) else failed)]


def one_line(text: str) -> str:
    """Without what Markdown would take for its own."""
    return re.sub(r"[`*_<>|\[\]]", "", text)


def write_page(results: Path) -> Path:
    """Write `results.md` beside `results.jsonl`, and its pictures into the folder `results`."""
    folder = results.with_suffix("")
    folder.mkdir(exist_ok=True)
    table = latest(read(results))
    sections = [section(question, table, folder) for question in QUESTIONS]
    left_out = {
        line["by"]: line["left out"]
        for line in lines_of(results)
        if "left out" in line and line["run"] == table["run"].max()
    }
    absent = [f"- {by} was left out: {one_line(why)}" for by, why in left_out.items()]
    contents = [f"- [{question.title}](#{question.name})" for question in QUESTIONS]
    text = "\n".join([HEADER, *contents, "", *absent, "", *(line for lines in sections for line in lines)])
    page = results.with_suffix(".md")
    page.write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")
    return page
