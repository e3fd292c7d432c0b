"""The commands that annotate, at once or in shards."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import numpy as np
import pandas as pd
import typer
from anndata import AnnData

import ginseng
from ginseng.arguments import Called, Cells, Fix, GeneKey, Layer, Overwrite, Precision, Quiet, cells_of, truth_column
from ginseng.commands.paths import require_outputs
from ginseng.commands.registry import (
    InputRefused,
    LimitExceeded,
    WrongUse,
    command,
    refusing,
    say,
    tell_error,
    warnings_unless,
)
from ginseng.commands.runs import Record, has_record, inputs_of, is_finished, outputs_of, require_there, stamp
from ginseng.data.inputs import InputChanged, identity_of, require_as_opened
from ginseng.data.models import load_model
from ginseng.data.outputs import SUFFIXES, TABLES, read_told, require_keys, write_annotated
from ginseng.data.parts import Shard, merge_shards, planned_merge
from ginseng.data.preflight import checked_counts
from ginseng.data.readers import opened_counts, read_adata
from ginseng.metrics import score
from ginseng.model.annotator import Annotator
from ginseng.model.consensus import require_compat, require_way
from ginseng.model.judgement import AMBIGUOUS, NOVEL, Judgement, require_key
from ginseng.model.predict import classify
from ginseng.model.state import GinsengClassifierState
from ginseng.page import require_page
from ginseng.train.trainer import GinsengClassifierTrainerSettings
from ginseng.utils.digest import digest
from ginseng.utils.genes import least_genes
from ginseng.utils.names import read_gene_table
from ginseng.utils.precision import require_precision

_PRECISION = GinsengClassifierTrainerSettings().precision
_N_EXPLAINED = 2000  # cells, for what genes contribute
_SHARES = (NOVEL, AMBIGUOUS, "unassigned")

Strict = Annotated[
    str | None,
    typer.Option(
        help=f"Exit with code 4 where a larger share of the cells than this is {' or '.join(_SHARES)}, e.g. "
        "novel=0.3,unassigned=0.1; what is written is the same."
    ),
]


@command
def annotate(
    model: Annotated[Path, typer.Argument(help="A model saved by `ginseng fit`.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Argument(
            help="Raw counts: .h5ad, 10x .h5, 10x folder, .zarr, http(s) URL; several, or 'in/*.h5ad' in quotes.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help=f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}; of several inputs, a folder.",
            show_default=False,
        ),
    ],
    kind: Annotated[
        str | None, typer.Option("--format", help="Of several outputs: h5ad (default), zarr, csv, tsv or parquet.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace outputs that are there; of several inputs, also those that are finished."
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Annotate this part of the cells only, for `ginseng merge`: 1/10, or ${SLURM_ARRAY_TASK_ID}/10 in an "
            "array of jobs 1-10."
        ),
    ] = None,
    cells: Cells = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    truth: Annotated[
        str | None, typer.Option(help="Column of obs with true cell types, to print how well they agree.")
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Store the probability of every type in AnnData, as tables do."),
        Called("store_probs"),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Cells per forward pass.", min=1)] = 256,
    min_overlap: Annotated[
        float | None,
        typer.Option(
            help="Share of the model's genes that the data must have, in [0, 1]; default 1 %, at least 5 genes, or 5 % "
            "where these may be found by chance."
        ),
    ] = None,
    gene_map: Annotated[
        Path | None,
        typer.Option(help=".csv or .tsv of synonyms or orthologs: the name in the data, the name in the model."),
    ] = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", help="Match Cd3d to CD3D.")] = False,
    fix: Fix = False,
    only: Annotated[list[str] | None, typer.Option(help="A type that can be there; repeat for more.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A type that cannot; repeat for more.")] = None,
    hierarchy: Annotated[
        Path | None, typer.Option(help="Wider types for unsure cells: .csv or .tsv of child and parent, or .obo.")
    ] = None,
    target_error: Annotated[
        float | None, typer.Option(help="Share of the assigned cells that may be wrong; default 0.05.")
    ] = None,
    class_error: Annotated[
        float | None, typer.Option(help="In its place: share of each type whose candidates may leave out the truth.")
    ] = None,
    novel_error: Annotated[float, typer.Option(help="Share of known cells that may be called novel.")] = 0.05,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Use what the model knows of its answers.")
    ] = True,
    over: Annotated[
        str | None, typer.Option(help="Clusters to agree over: a column of obs, or auto to make small ones.")
    ] = None,
    consensus: Annotated[str, typer.Option(help="soft (keeps rare types), or majority.")] = "soft",
    key_added: Annotated[str, typer.Option(help="Beginning of the names of the new columns.")] = "ginseng",
    compat: Annotated[str | None, typer.Option(help="celltypist: add columns as it calls them.")] = None,
    strict: Strict = None,
    report: Annotated[
        Path | None, typer.Option(help="Write what `ginseng report` tells here, .html; of one input.")
    ] = None,
    precision: Precision = _PRECISION,
    quiet: Quiet = False,
) -> None:
    """Annotate new counts with a trained classifier.

    Of several inputs, those whose outputs a run before has finished are left as they are; one that it has only begun
    is made anew; one that was changed since, or was made otherwise, is replaced with --overwrite only.

    Example: ginseng annotate model.h5 new.h5ad -o annotated.h5ad
    """
    with refusing(WrongUse):
        limits = _limits(strict)
        part = None if shard is None else Shard.parse(shard)
        require_precision(precision)
        least_genes(1, min_overlap)
        inputs = inputs_of(data)
        is_folder = len(inputs) > 1 or (output.suffix not in SUFFIXES and (inputs != data or output.is_dir()))
        outputs = outputs_of(inputs, output, kind, is_folder)
        if part and limits:
            raise WrongUse("--strict is of all cells: give it to `ginseng merge`.")
        if part and over:
            raise WrongUse("--over is of all cells, which no shard has.")
        if report is not None:
            if part or is_folder:
                raise WrongUse("--report is of all cells of one input: for others, see `ginseng report`.")
            require_page(report)
        inputs_read = {"MODEL": model, "DATA": inputs, "--gene-map": gene_map, "--hierarchy": hierarchy}
        begun = [target for target in outputs if has_record(target)] if is_folder else []
        require_outputs({"--output": outputs, "--report": report}, inputs_read, overwrite=overwrite, begun=begun)
    write_page = None if report is None else partial(ginseng.report, path=report)  # before the work: it needs an extra
    if is_folder:
        require_there(inputs)
    with refusing(InputRefused):
        state = load_model(model)
        synonyms = None if gene_map is None else read_gene_table(gene_map)
    how = {
        "gene_key": gene_key,
        "layer": layer,
        "batch_size": batch_size,
        "min_overlap": min_overlap,
        "gene_map": synonyms,
        "ignore_case": ignore_case,
        "fix": fix,
        "only": only or None,
        "exclude": exclude or None,
        "hierarchy": hierarchy,
        "target_error": target_error,
        "class_error": class_error,
        "novel_error": novel_error,
        "calibrate": calibrate,
        "over": over,
        "consensus": consensus,
        "key_added": key_added,
        "compat": compat,
        "precision": precision,
        "store_probs": probabilities,
    }
    with refusing(WrongUse):
        promises = target_error, class_error, novel_error
        Judgement.of(Annotator.of(state), how["only"], how["exclude"], hierarchy, *promises, calibrate=calibrate)
        if state.calibration is None or not calibrate:
            for name in {NOVEL, AMBIGUOUS} & set(limits):
                raise WrongUse(f"--strict {name}=... needs what a calibrated model knows of its answers.")
        require_way(consensus)
        require_compat(compat)
        require_key(key_added)
    told = {**how, "cells": cells}
    for name, file in (("gene_map", gene_map), ("hierarchy", hierarchy)):
        told[name] = None if file is None else digest(np.fromfile(file, np.uint8))
    made_with = {"model": digest(np.fromfile(model, np.uint8)), "options": told}
    run = _Run(state, how, made_with, cells, truth, part, write_page, quiet)
    finished: dict[Path, dict[str, float] | InputRefused | None] = {}
    if is_folder and not overwrite:
        with refusing(WrongUse):
            for source, target in zip(inputs, outputs, strict=True):
                if is_finished(target):
                    try:
                        finished[target] = run.record(source, target).found_or_refused()
                    except InputRefused as error:
                        finished[target] = error
    n_refused, exceeded = 0, []
    with warnings_unless(quiet):
        for source, target, rows in zip(inputs, outputs, run.rows(inputs), strict=True):
            shares = finished.get(target)
            if isinstance(shares, dict):
                say(quiet, f"{target} is finished already; --overwrite makes it anew")
            else:
                try:
                    if shares is not None:
                        raise shares
                    shares = run.annotate(source, target, rows, is_recorded=is_folder)
                    warnings.filterwarnings("ignore", "The model is not calibrated")  # told once
                except InputRefused as error:
                    if not is_folder:
                        raise
                    tell_error(error if source in str(error) else f"{source}: {error}")
                    n_refused += 1
                    continue
            exceeded += _exceeded(limits, shares, target)
    if n_refused:
        raise InputRefused(f"{n_refused} of {len(inputs)} inputs were refused; the others are annotated.")
    _require_none(exceeded)


@command
def merge(
    shards: Annotated[
        list[Path], typer.Argument(help="All outputs of `ginseng annotate --shard`, in any order.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A file of their kind; of shards of several inputs, a folder.", show_default=False
        ),
    ],
    strict: Strict = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Put the shards of an annotation together, to what one run would have written.

    Example: ginseng merge shard_*.parquet -o annotated.parquet
    """
    with refusing(WrongUse):
        limits = _limits(strict)
    with refusing(InputRefused):
        planned = planned_merge(shards, output)
        read = [shard for of_output in planned.values() for shard in of_output]
        require_outputs({"--output": planned}, {"SHARDS": read}, overwrite=overwrite)
        written = merge_shards(shards, output)
    say(quiet, f"{len(shards)} shards merged: saved {output}")
    exceeded = []
    for path, key in written.items() if limits else ():
        exceeded += _exceeded(limits, _shares(read_told(path), key), path)
    _require_none(exceeded)


@dataclass(frozen=True)
class _Run:
    """How inputs are annotated: all that they share."""

    state: GinsengClassifierState
    how: dict[str, Any]
    made_with: dict[str, Any]
    cells: str | None
    truth: str | None
    part: Shard | None
    write_page: Callable[..., None] | None
    quiet: bool

    def rows(self, inputs: list[str]) -> list[slice | None]:
        """Which cells of each input are to be annotated; None for all."""
        if self.part is None:
            return [None] * len(inputs)
        sizes = []
        for source in inputs:
            with refusing(InputRefused), self._opened(source, annotation=False) as adata:
                sizes.append(adata.n_obs)
        return [*self.part.rows(sizes, self.how["batch_size"])]

    def record(self, source: str, target: Path) -> Record:
        """What is kept of an output."""
        with refusing(InputRefused):
            return Record(target, {**self.made_with, "input": stamp(source), "shard": self.part})

    def annotate(self, source: str, target: Path, rows: slice | None, *, is_recorded: bool) -> dict[str, float]:
        """Annotate one input, and give the shares of its cells that may be limited."""
        is_table, mark = target.suffix in TABLES, None
        with refusing(InputRefused):
            identity = identity_of(source)
        record = self.record(source, target) if is_recorded else None
        is_whole, whole = self.part is None and self.cells is None, None
        with ExitStack() as files:
            with refusing(InputRefused):
                adata = files.enter_context(self._opened(source, annotation=not is_table))
                require_keys(adata, target, source if is_whole else None)
                if rows is not None and self.part is not None:
                    form = checked_counts(adata, self.how["layer"], fix=self.how["fix"])[1].as_dict()
                    mark = {
                        "number": self.part.number,
                        "of": self.part.n_shards,
                        "input": stamp(source) if record is None else record.made_with["input"],
                        "form": [form["used"], form["forms"]],
                    }
                    whole = adata
                    # Types and columns of a part without cells are those of any others.
                    adata = _part(adata, rows if rows.stop else slice(0, self.how["batch_size"]), is_table)
                true_types = None if self.truth is None else truth_column(adata, self.truth)
                more: Any = {"return_table": is_table, "silent": self.quiet, "part_of": whole}
                table = classify(self.state, adata, **self.how, **more)
                require_as_opened(source, identity, f"{target} is not written")
            if self.write_page is not None and table is None:
                self._explain(adata)
            annotated: Any = adata if table is None else table
            if rows is not None and not rows.stop:
                annotated, true_types = annotated[:0], None
            if record is not None:
                record.begin()
            try:
                mark = mark and {**mark, **self.made_with}
                write_annotated(annotated, target, source if is_whole else None, mark, identity=identity)
            except InputChanged as error:
                raise InputRefused(str(error)) from error
            if self.write_page is not None:
                truth = self.truth if table is None else None
                self.write_page(
                    annotated, model=self.state, truth=truth, key=self.how["key_added"], title=Path(source).name
                )
            obs = annotated.obs if table is None else annotated
        if true_types is not None:
            say(False, score(true_types, obs[f"{self.how['key_added']}_cell_type"]).report())
        say(self.quiet, f"{len(obs):,} cells annotated: saved {target}")
        shares = _shares(obs, self.how["key_added"])
        if record is not None:
            record.keep(shares)
        return shares

    def _explain(self, adata: AnnData) -> None:
        """Keep what genes contribute to each type, by some of the cells, for the page."""
        spread = np.unique(np.linspace(0, adata.n_obs - 1, min(adata.n_obs, _N_EXPLAINED)).astype(int))
        names = {name: self.how[name] for name in ("layer", "gene_key")}
        with warnings_unless(quiet=True), suppress(ValueError):  # data that only `gene_map` or `fix` made readable
            key = self.how["key_added"]
            some = adata[spread].to_memory()
            adata.uns[f"{key}_contributions"] = ginseng.explain(self.state, some, **names, key_added=key, silent=True)

    @contextmanager
    def _opened(self, source: str, annotation: bool) -> Iterator[AnnData]:
        if self.cells is not None:
            yield cells_of(read_adata(source, backed=False), self.cells)
        else:
            with opened_counts(source, annotation) as adata:
                yield adata


def _part(adata: AnnData, rows: slice, is_table: bool) -> AnnData:
    if is_table:
        return adata[rows]
    if len(adata.obsp):
        raise ValueError(
            f"obsp['{next(iter(adata.obsp))}'] is of pairs of cells, which shards part; write tables, or remove it."
        )
    with ad.settings.override(remove_unused_categories=False):
        return adata[rows].to_memory()


def _limits(strict: str | None) -> dict[str, float]:
    """What a text like ``"novel=0.3,unassigned=0.1"`` stands for."""
    limits = {}
    for limit in filter(None, (strict or "").split(",")):
        name, _, share = limit.partition("=")
        try:
            limits[name] = float(share)
        except ValueError:
            limits[name] = np.nan
        if name not in _SHARES or not 0 <= limits[name] <= 1:
            raise ValueError(
                f"--strict takes shares in [0, 1] of {', '.join(_SHARES)}, like novel=0.3, but got '{limit}'."
            )
    return limits


def _shares(obs: pd.DataFrame, key: str) -> dict[str, float]:
    shares = {"unassigned": obs[f"{key}_cell_type"].isna()}
    if f"{key}_status" in obs:
        shares |= {name: obs[f"{key}_status"] == name for name in (NOVEL, AMBIGUOUS)}
    return {name: float(is_so.mean()) if len(obs) else 0.0 for name, is_so in shares.items()}


def _exceeded(limits: Mapping[str, float], shares: Mapping[str, float], path: Path) -> list[str]:
    for name in limits:
        if name not in shares:
            raise WrongUse(f"--strict {name}=... has no meaning for a model that does not tell it; fit it anew.")
    return [
        f"{shares[name]:.1%} of the cells of {path} are {name}, more than {limit:.1%}"
        for name, limit in limits.items()
        if shares[name] > limit
    ]


def _require_none(exceeded: list[str]) -> None:
    if exceeded:
        raise LimitExceeded("; ".join(exceeded) + ".")
