"""What an annotation says, as one page to be read in a browser (needs the `plot` extra)."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
from anndata import AnnData

from ginseng import plot
from ginseng.data.annotation import given_types
from ginseng.data.models import load_model
from ginseng.describe import describe_model
from ginseng.metrics import NO_TYPE, in_the_same_terms, score
from ginseng.model.judgement import STATUSES
from ginseng.model.results import MOST_NOVEL
from ginseng.model.state import GinsengClassifierState, of_its_weights
from ginseng.page import bar, facts, histogram, page, picture, require_page, section, table, tag, tiles
from ginseng.utils.files import replacing
from ginseng.utils.labels import beside
from ginseng.utils.messages import in_short, printable, require_one, warn

_UMAP = "X_umap"
_MOST_DRAWN = 50_000  # cells of a UMAP
_N_MARKERS, _N_CANDIDATES = 8, 10
_NUMBERS = ("confidence", "novelty", "consensus_share")


def report(
    adata: AnnData | pd.DataFrame,
    path: str | Path,
    *,
    model: GinsengClassifierState | str | Path | None = None,
    truth: str | None = None,
    key: str = "ginseng",
    title: str = "Cell types",
) -> None:
    """Write what an annotation says as one page of HTML, which needs no other file, no script and no network.

    It tells what there is: cell types with confidence, status and novelty; a UMAP (``obsm["X_umap"]``); what genes
    contribute (``uns`` of `ginseng.explain`) and markers (of ``scanpy.tl.rank_genes_groups``); the consensus of
    clusters; how well the types agree with true ones; how all of it was made.

    Parameters
    ----------
    adata : AnnData or pandas.DataFrame
        Annotated by `ginseng.classify`, or the table that it returns.
    path : str or Path
        The page, such as ``"report.html"``; replaced if it is there.
    model : GinsengClassifierState, str or Path, optional
        The model, to be described.
    truth : str, optional
        Column with true cell types.
    key : str
        The ``key_added`` of the annotation.
    title : str
        Of the page.

    Raises
    ------
    ValueError
        If there is no annotation of that key, or one of another kind, no column of that name, or the file is no .html.

    Examples
    --------
    >>> import tempfile
    >>> cells = pd.DataFrame({"ginseng_cell_type": ["B", "T"], "ginseng_confidence": [0.9, 0.8]}, index=["c1", "c2"])
    >>> report(cells, Path(tempfile.mkdtemp()) / "report.html")
    """
    require_page(path)
    title = printable(title)  # the name of a file, which need not be UTF-8
    state = load_model(model) if isinstance(model, str | Path) else model and of_its_weights(model)
    told = _Told(adata, key, truth)
    parts = [
        tag("header", tag("h1", title), tag("p", _subtitle(told)), tiles(_first_numbers(told))),
        _types(told),
        _certainty(told),
        _embedding(told),
        _of_uns(told, f"{key}_contributions", _contributions),
        _of_uns(told, "rank_genes_groups", _markers),
        _consensus(told),
        _agreement(told),
        _origin(told, state),
    ]
    with replacing(path) as fresh:
        fresh.write_text(page(title, *parts), encoding="utf-8")


class _Told:
    """What an annotation tells of cells."""

    def __init__(self, adata: AnnData | pd.DataFrame, key: str, truth: str | None):
        self.adata, self.key = adata, key
        self._obs: Any = adata.obs if isinstance(adata, AnnData) else adata
        self.types: Any = given_types(self._obs, key)
        if truth is not None:
            require_one("column of true cell types", truth, "the annotated cells", self._obs.columns)
        given = self._obs[f"{key}_cell_type"]
        self.has_type = given.notna()
        self.no_type = beside(NO_TYPE, self.types[self.has_type])
        self.truth_name = truth
        self.truth: Any = None
        if truth is not None:
            true, predicted = in_the_same_terms(self._obs[truth], given)
            self.truth, self.is_right = true.set_axis(self._obs.index), (true == predicted).to_numpy()
            self.scores = score(self._obs[truth], given)

    @property
    def uns(self) -> Mapping[str, Any]:
        return self.adata.uns if isinstance(self.adata, AnnData) else {}

    def column(self, name: str) -> Any:
        """A column of the annotation, or None if it has none."""
        if f"{self.key}_{name}" not in self._obs:
            return None
        require_one("annotation", f"{self.key}_{name}", "the annotated cells", self._obs.columns)
        return self._of_its_kind(name, self._obs[f"{self.key}_{name}"])

    def _of_its_kind(self, name: str, values: Any) -> Any:
        is_there = values.notna()
        if name in _NUMBERS:
            is_number = pd.api.types.is_numeric_dtype(values) and values.dtype.kind in "iuf"
            is_right = is_number or not is_there.any()
            expected = "numbers are"
        else:
            is_right = name != "status" or values[is_there].isin(STATUSES).all()
            expected = f"only {', '.join(STATUSES)} are"
        if not is_right:
            raise ValueError(
                f"column '{self.key}_{name}' of the annotated cells holds '{in_short(values[is_there].iloc[0], 40)}' "
                f"({values.dtype}), where {expected} expected: annotate the cells anew, or drop the column."
            )
        return values.astype(float) if name in _NUMBERS else values

    def by_status(self) -> dict[str, Any] | None:
        """For each cell, whether it is of each status."""
        status = self.column("status")
        return None if status is None else {name: status.astype(str) == name for name in STATUSES}


def _subtitle(told: _Told) -> str:
    today = datetime.now(UTC).date().isoformat()
    return f"{len(told.types):,} cells, annotated with ginseng. Report of {today}, by ginseng {version('ginseng-eqx')}."


def _first_numbers(told: _Told) -> dict[str, str]:
    has_type = told.has_type
    numbers = {"cells": f"{len(told.types):,}", "cell types found": f"{told.types[has_type].nunique():,}"}
    if not has_type.all():
        numbers["cells without counts"] = f"{(~has_type).sum():,}"
    if (confidence := told.column("confidence")) is not None:
        numbers["median confidence"] = _number(confidence[has_type].median())
    if (statuses := told.by_status()) is not None:
        numbers |= {name: f"{is_of.mean():.1%}" for name, is_of in statuses.items()}
    if told.truth is not None:
        numbers["agree with truth"] = f"{told.scores.accuracy:.1%}"
    return numbers


def _types(told: _Told) -> Element:
    counts = told.types.value_counts()
    medians = {name: told.column(name) for name in ("confidence", "novelty")}
    medians = {name: values.groupby(told.types).median() for name, values in medians.items() if values is not None}
    statuses = told.by_status()
    of_types = {} if statuses is None else {name: of.groupby(told.types).mean() for name, of in statuses.items()}
    whole = {"cells": counts / counts}
    rows = [
        [
            name,
            f"{n_cells:,}",
            f"{n_cells / len(told.types):.1%}",
            bar({status: share[name] * n_cells / counts.iloc[0] for status, share in (of_types or whole).items()}),
            *(_number(median[name]) for median in medians.values()),
            *(f"{share[name]:.0%}" for share in of_types.values()),
        ]
        for name, n_cells in counts.items()
    ]
    columns = ["cell type", "cells", "share", "", *(f"median {name}" for name in medians), *of_types]
    colours = [part for name in of_types for part in (tag("i", class_=name), name)]
    key = tag("p", *colours, class_="note key") if of_types else None
    return section("Cell types", key, table(columns, rows))


def _certainty(told: _Told) -> Element | None:
    confidence, novelty, statuses = told.column("confidence"), told.column("novelty"), told.by_status()
    has_type = told.has_type.to_numpy()
    drawn = [
        histogram(values[has_type].dropna().to_numpy(np.float64), name)
        for name, values in (("Confidence", confidence), ("Novelty", novelty))
        if values is not None
    ]
    if not drawn:
        return None
    warning = None
    if statuses is not None and statuses["novel"].mean() > MOST_NOVEL:
        warning = tag(
            "p",
            tag("b", "This data set differs from the training data. "),
            f"{statuses['novel'].mean():.0%} of the cells look novel: another protocol, tissue, condition or species, "
            "or a wrong layer of counts, is likelier than so many new cell types.",
            class_="warning",
        )
    note = (
        "Confidence is the probability that a cell has the type that it was given, were it of a type that the model "
        "knows."
    )
    if novelty is not None:
        note += " Novelty is the share of held-out cells that are less unlike the training cells than this cell is."
    parts = [warning, tag("p", note, class_="note"), tag("div", *drawn, class_="beside"), _candidates(told)]
    return section("Confidence and novelty" if novelty is not None else "Confidence", *parts)


def _candidates(told: _Told) -> Element | None:
    candidates, statuses = told.column("candidates"), told.by_status()
    if candidates is None or statuses is None or not statuses["ambiguous"].any():
        return None
    counts = candidates[statuses["ambiguous"].to_numpy()].astype(str).value_counts()
    rows = [[names, f"{n_cells:,}"] for names, n_cells in counts.head(_N_CANDIDATES).items()]
    more = f"; the {_N_CANDIDATES} most frequent of {len(counts):,}" if len(counts) > _N_CANDIDATES else ""
    return tag("div", tag("h3", f"What ambiguous cells may be{more}"), table(["types", "cells"], rows))


def _embedding(told: _Told) -> Element | None:
    if not isinstance(told.adata, AnnData) or _UMAP not in told.adata.obsm:
        return None
    n_cells = len(told.types)
    chosen = np.arange(n_cells)
    if n_cells > _MOST_DRAWN:
        chosen = np.sort(np.random.default_rng(0).choice(n_cells, _MOST_DRAWN, replace=False))
    named = {"cell type": told.types} | ({} if told.truth is None else {f"{told.truth_name}, true": told.truth})
    measured = {name: told.column(name) for name in ("confidence", "novelty")}
    shown = {name: values.iloc[chosen] for name, values in {**named, **measured}.items() if values is not None}
    cells = AnnData(obs=pd.DataFrame(shown))
    cells.obsm[_UMAP] = np.asarray(told.adata.obsm[_UMAP])[chosen]
    what = "UMAP of the cells" if len(chosen) == n_cells else f"UMAP of {len(chosen):,} of the cells, drawn at random"
    panels = [[name for name in shown if name in some] for some in (named, measured)]
    drawn = [
        picture(plot.embedding(cells, names, _UMAP), f"{what}: {' and '.join(names)}.") for names in panels if names
    ]
    return section("UMAP", *drawn)


def _of_uns(told: _Told, name: str, section_of: Callable[[Any], Element]) -> Element | None:
    """The section of what ``uns`` may hold, left out with a warning where that is of another kind than is written."""
    if (found := told.uns.get(name)) is None:
        return None
    try:
        return section_of(found)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        warn(f"adata.uns['{name}'] is of another kind than is written there, and is left out: {in_short(error)}.")
        return None


def _contributions(found: Any) -> Element:
    first = found.groupby("group", sort=False).head(_N_MARKERS)
    rows = [
        [group, tag("span", ", ".join(of_group["gene"].astype(str)))]
        for group, of_group in first.groupby("group", sort=False)
    ]
    text = "Mean contribution of genes to the score of the type of each group of cells, by integrated gradients."
    return section("Why", picture(plot.contributions(found), text), _words(["cells", "first genes"], rows))


def _markers(found: Any) -> Element:
    names = pd.DataFrame.from_records(found["names"]).head(_N_MARKERS)
    rows = [[str(group), tag("span", ", ".join(names[group].astype(str)))] for group in names]
    grouped = found.get("params", {}).get("groupby", "group")
    return section("Markers", _words([str(grouped), "first genes by rank_genes_groups"], rows))


def _words(columns: list[str], rows: list[list[Any]]) -> Element:
    """A table of text."""
    drawn = table(columns, rows)
    for cell in (*drawn.iter("td"), *list(drawn.iter("th"))[1 : len(columns)]):
        cell.set("class", "words")
    return drawn


def _consensus(told: _Told) -> Element | None:
    consensus, share = told.column("consensus"), told.column("consensus_share")
    if consensus is None:
        return None
    consensus = consensus.astype(object).where(consensus.notna(), told.no_type).astype(str)
    is_same = consensus.to_numpy() == told.types.to_numpy()
    counts = pd.DataFrame({"cell": told.types.value_counts(), "consensus": consensus.value_counts()}).fillna(0)
    shares = None if share is None else share.groupby(consensus.to_numpy()).mean()
    rows = [
        [
            str(name),
            f"{row['cell']:,.0f}",
            f"{row['consensus']:,.0f}",
            *([] if shares is None else [_number(shares.get(name, np.nan))]),
        ]
        for name, row in counts.sort_values("cell", ascending=False).iterrows()
    ]
    columns = ["cell type", "cells, each for itself", "cells, by consensus", "mean vote share"][: len(rows[0])]
    note = f"{is_same.mean():.1%} of the cells have the same type by the consensus of their cluster."
    return section("Consensus", tag("p", note, class_="note"), table(columns, rows))


def _agreement(told: _Told) -> Element | None:
    if told.truth is None:
        return None
    scores = told.scores
    rows = [
        [str(name), f"{row['cells']:,.0f}", *(_number(row[part]) for part in ("precision", "recall", "f1"))]
        for name, row in scores.table.iterrows()
    ]
    drawn = [
        picture(plot.confusion_matrix(scores), f"Cells of each true type, of {told.truth_name}, by what they got.")
    ]
    confidence = told.column("confidence")
    if confidence is not None:
        known = told.truth.notna().to_numpy()
        figure = plot.reliability(confidence.to_numpy()[known], told.is_right[known])
        drawn.append(picture(figure, "Accuracy by confidence, in bins of equally many cells."))
    note = f"Accuracy {scores.accuracy:.3f}, macro-F1 {scores.macro_f1:.3f}, on {scores.table['cells'].sum():,} cells."
    of_types = table(["cell type", "cells", "precision", "recall", "F1"], rows)
    return section("Agreement with true types", tag("p", note), *drawn, of_types)


def _origin(told: _Told, state: GinsengClassifierState | None) -> Element | None:
    parts: list[Element] = []
    if state is not None:
        parts += [tag("h3", "Model"), facts(_by_name(describe_model(state)))]
    kept = told.uns.get(told.key, {})
    kept = dict(kept) if isinstance(kept, Mapping) else {told.key: kept}  # of another kind than is written there
    if preflight := kept.pop("preflight", None):
        parts += [tag("h3", "Preflight"), facts(preflight if isinstance(preflight, Mapping) else {"": preflight})]
    if isinstance(clusters := kept.get("clusters"), pd.DataFrame):
        kept["clusters"] = tag("pre", clusters.to_string(float_format="{:.3f}".format))
    if kept:
        parts += [tag("h3", "Annotation"), facts(kept)]
    return section("How it was made", *parts) if parts else None


def _by_name(told: str) -> dict[str, Element | str]:
    """What lines of "name: value" tell; lines that are indented go on with the one before, or are its table."""
    found: dict[str, list[str]] = {}
    for line in told.splitlines():
        if line.startswith("  ") and found:
            found[next(reversed(found))].append(line[2:])
        else:
            name, _, value = line.removesuffix(":").partition(": ")
            found[name] = [value] if value else []
    is_table = {name: len(lines) > 1 and lines[0].startswith(" ") for name, lines in found.items()}
    return {name: tag("pre", "\n".join(lines)) if is_table[name] else "; ".join(lines) for name, lines in found.items()}


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"
