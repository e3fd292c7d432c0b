"""How long do whole processes take, from .h5ad to written labels, and how right are these? Beside CellTypist.

    python benchmarks/whole.py --data pbmc_kang_ctrl_8donors.h5ad --celltypist /tmp/celltypist/bin/python

A model is fitted to the cells of all donors but three and annotates these three: `ginseng fit` and `ginseng annotate`
with their defaults, and CellTypist in its usual use (10,000 counts per cell, log1p, `train` with its defaults or with
its selection of features, `annotate` without majority voting), each a process that reads the .h5ad and one that reads
it again. Prints one JSON line for each contestant and round. ginseng runs first with an empty cache folder of the
user's, then with what the run before left there. `--before` is an older checkout of this package.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import pandas as pd
from contestants import Contestant, add_checkouts, ours, tell

CELLTYPIST_FIT = """
import json, sys
import anndata, celltypist, scanpy
data, label, group, held_out, model, options = sys.argv[1:]
adata = anndata.read_h5ad(data)
adata = adata[~adata.obs[group].isin(json.loads(held_out))].copy()
scanpy.pp.normalize_total(adata, target_sum=1e4)
scanpy.pp.log1p(adata)
celltypist.train(adata, labels=label, **json.loads(options)).write(model)
"""

CELLTYPIST_ANNOTATE = """
import json, sys
import anndata, celltypist, scanpy
data, group, held_out, model, table = sys.argv[1:]
adata = anndata.read_h5ad(data)
adata = adata[adata.obs[group].isin(json.loads(held_out))].copy()
scanpy.pp.normalize_total(adata, target_sum=1e4)
scanpy.pp.log1p(adata)
celltypist.annotate(adata, model=model).predicted_labels["predicted_labels"].to_csv(table)
"""


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts of several donors, .h5ad: Kang")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--group", default="donor")
    parser.add_argument("--held-out", nargs="+", default=["107", "1256", "1016"], help="donors to annotate")
    parser.add_argument("--celltypist", help="python of an environment with CellTypist")
    parser.add_argument("--rounds", type=int, default=3)
    add_checkouts(parser)
    arguments = parser.parse_args()
    data, label, group, held_out = arguments.data.resolve(), arguments.label, arguments.group, arguments.held_out
    truth = ad.read_h5ad(data, backed="r").obs.loc[lambda obs: obs[group].isin(held_out), label].astype(str)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, table = folder / "model.h5", folder / "labels.csv"

        def measure(side: Contestant, fit: tuple, annotate: tuple, described: dict, **variables: object) -> None:
            cpu_start = cpu_of_children()
            stages = {
                "fit, s": seconds(lambda: side.run(*fit, **variables)),
                "annotate, s": seconds(lambda: side.run(*annotate, **variables)),
            }
            stages["in all, s"] = sum(stages.values())
            stages["in all, CPU s"] = cpu_of_children() - cpu_start
            labels = pd.read_csv(table, index_col=0).iloc[:, 0].reindex(truth.index)
            accuracy = round(float((labels == truth).mean()), 4)
            tell(
                "fit and annotate",
                side.name,
                **described,
                **{k: round(s, 2) for k, s in stages.items()},
                accuracy=accuracy,
            )

        for nth in range(arguments.rounds):
            for side in ours(arguments.before):
                fit = "-m", "ginseng", "fit", data, "--label", label, "-o", model, "--quiet"
                fit += "--cells", f"{group} not in {held_out}"
                annotate = "-m", "ginseng", "annotate", model, data, "-o", table, "--quiet"
                annotate += "--cells", f"{group} in {held_out}"
                for cache in ("empty", "left by the run before"):
                    measure(side, fit, annotate, {"cache": cache}, XDG_CACHE_HOME=folder / f"{side.name}-{nth}")
            for options in ({}, {"feature_selection": True}) if arguments.celltypist else ():
                fit = "-c", CELLTYPIST_FIT, data, label, group, json.dumps(held_out), model.with_suffix(".pkl")
                annotate = (
                    "-c",
                    CELLTYPIST_ANNOTATE,
                    data,
                    group,
                    json.dumps(held_out),
                    model.with_suffix(".pkl"),
                    table,
                )
                side = Contestant("CellTypist", arguments.celltypist)
                measure(side, (*fit, json.dumps(options)), annotate, {"options": options})


if __name__ == "__main__":
    main()
