"""What is in a model, a dataset or a file of counts, in words."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from anndata import AnnData

from ginseng.data.dataset import GinsengDataset
from ginseng.data.preflight import forms_of, name_of
from ginseng.model.calibration import SOURCES
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.counts import layer_names
from ginseng.utils.messages import in_short, shorten


def describe_model(state: GinsengClassifierState) -> str:
    """Size, genes, cell types and origin of a model."""
    normalisation = f"to {state.target_sum:g} counts per cell, log1p" if state.normalize else "none"
    lines = [
        f"ginseng model: {state.n_genes:,} genes, {state.n_classes} cell types, hidden dimension {state.hidden_dim}",
        f"cell types: {shorten(state.output_labels, 50)}",
        f"genes: {shorten(state.genes, 8)}",
        f"normalisation: {normalisation}",
        f"dropout rate: {state.dropout_rate:g}",
    ]
    if state.members:
        lines.append(f"networks: {1 + len(state.members)}, whose probabilities are averaged")
    if state.second_names is not None:
        lines.insert(3, f"also named: {shorten([name for name in state.second_names if name], 8)}")
    saved = partial(_saved, state.metadata.get("created"))
    shown = {"history": _history, "card": _card, "settings": _settings, "versions": saved}
    for part, lines_of in shown.items():
        if value := state.metadata.get(part):
            lines += _as_far_as_read(part, value, lines_of)
    return "\n".join(lines)


def _as_far_as_read(part: str, value: Any, lines_of: Callable[[Any], list[str]]) -> list[str]:
    """Lines of a part of what a model tells of itself; as it stands, where it is of another kind than is written."""
    try:
        return lines_of(value)
    except (TypeError, ValueError, LookupError, AttributeError):
        return [f"{part}: {in_short(value)}"]


def _history(history: Any) -> list[str]:
    if not history["epoch"]:
        return []
    line = (
        f"training: {len(history['epoch'])} epochs, train loss {history['train_loss'][-1]:.4f}, "
        f"holdout accuracy {history['holdout_accuracy'][-1]:.3f}"
    )
    return [line.replace(", holdout accuracy nan", "")]


def _settings(settings: Any) -> list[str]:
    return ["settings: " + ", ".join(f"{name}={value}" for name, value in settings.items())]


def _saved(created: Any, versions: Any) -> list[str]:
    return [f"saved: {created} by {', '.join(f'{name} {version}' for name, version in versions.items())}"]


def _card(card: Any) -> list[str]:
    """Lines of a model card: each type, how answers are calibrated, and what its maker tells."""
    told = dict(card.items())
    lines, types, calibration = [], told.pop("types", {}), told.pop("calibration", None)
    if types:
        lines += _as_far_as_read("trained on", types, _types)
    if calibration:
        lines += _as_far_as_read("calibration", calibration, _calibration)
    elif types:
        lines.append("calibration: none, so that new cells get no status and no novelty")
    return lines + [f"{name}: {text}" for name, text in told.items()]


def _types(types: Any) -> list[str]:
    table = pd.DataFrame.from_dict(types, orient="index").rename(
        columns={"holdout_f1": "held-out F1", "judged_by": "judged by"}
    )
    shown = table.to_string(na_rep="-", formatters={"held-out F1": "{:.3f}".format}).splitlines()
    return ["trained on:", *(f"  {line}" for line in shown)]


def _calibration(calibration: Any) -> list[str]:
    before, after = calibration["before"], calibration["after"]
    return [
        f"calibration: temperature {calibration['temperature']:.2f}, by {calibration['cells']:,} cells of "
        f"{SOURCES[calibration['source']]}",
        f"  expected calibration error {before['ece']:.3f} before, {after['ece']:.3f} after; log loss "
        f"{before['nll']:.3f} before, {after['nll']:.3f} after (on these cells)",
    ]


def describe_dataset(dataset: GinsengDataset) -> str:
    """Size, genes, split and cell types of a dataset."""
    counts = pd.Series(dataset.labels).value_counts().reindex(range(len(dataset.label_names)), fill_value=0)
    lines = [repr(dataset), f"genes: {shorten(dataset.gene_names, 8)}"]
    if dataset.train_idx is None or dataset.test_idx is None:
        lines.append("split: none yet")
    else:
        lines.append(f"split: {len(dataset.train_idx):,} cells to train on, {len(dataset.test_idx):,} held out")
    lines += [f"  {name}: {n:,} cells" for name, n in zip(dataset.label_names, counts, strict=True)]
    return "\n".join(lines)


def describe_counts(adata: AnnData) -> str:
    """Size, genes, layers, raw and annotation of a file of counts; in what form its matrices are."""
    found = {name_of(layer, adata): form for layer, form in forms_of(adata).items()}
    whole = [name for name, form in found.items() if form.is_whole]
    lines = [
        f"counts: {adata.n_obs:,} cells x {adata.n_vars:,} genes",
        f"genes: {shorten(adata.var_names, 8)}",
        f"layers: {shorten(layer_names(adata)) or 'none'}",
        f"raw: {'none' if adata.raw is None else f'{adata.raw.n_vars:,} genes'}",
        f"whole numbers, as raw counts are: {shorten(whole) or 'none'}",
        *(f"  {name}: {form.name}" for name, form in found.items()),
        f"var: {shorten(adata.var.columns) or 'no columns'}",
        "obs:" if len(adata.obs.columns) else "obs: no columns",
    ]
    for column, of_cells in adata.obs.items():
        values = of_cells.value_counts()
        lines.append(f"  {column}: {len(values):,} values ({shorten(values.index, 6)})")
    return "\n".join(lines)
