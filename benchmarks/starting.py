"""Seconds that fresh processes take: the help of the command line, the import, a trainer, its first step, an epoch.

    python benchmarks/starting.py --data pbmc3k.h5ad
    python benchmarks/starting.py --data pbmc3k.h5ad --before /tmp/older-checkout

Prints one JSON line per question, checkout and state of JAX's persistent compilation cache: medians and least seconds
of `--rounds` processes, after one that is not counted. The dataset, 2,000 variable genes of `--data`, is made before.
Seconds of a trainer run from the start of the process: until `ginseng` is imported, the dataset open, the trainer
made, and its fit returned, of one step of 128 cells ("first step") or of an epoch with validation. The cache is off, or
warm: JAX is told a folder that a process before has filled, and to keep there whatever it compiles. `ginseng fit` runs
on the command line with an empty cache folder of the user's, and with what the process before left there: that is what
a user sees.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from contestants import Contestant, add_checkouts, ours, tell

DATASET = """
import sys
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import read_adata
from ginseng.utils.hvg import select_hvgs
data, label, path = sys.argv[1:]
adata = read_adata(data, backed=False)
select_hvgs(adata, n_top_genes=2000, silent=True)
GinsengDataset.create(path, adata, label, genes="ginseng_genes").make_split(0.1, stratify_label=True, keep_rare=True)
print("{}")
"""

TRAINER = """
import json, sys, time
path, started, n_cells = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
marks = {}
def mark(name):
    marks[name] = time.time() - started
import ginseng
from ginseng import GinsengClassifierTrainer, GinsengClassifierTrainerSettings, GinsengDataset
mark("imported")
dataset = GinsengDataset(path)
if n_cells:
    dataset.train_idx, dataset.test_idx = dataset.train_idx[:n_cells], dataset.test_idx[:0]
mark("dataset open")
trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(balance_train=False))
mark("trainer made")
trainer.fit(epochs=1, silent=True)
mark("fit returned")
print(json.dumps(marks))
"""


def seconds(side: Contestant, *command: object, **variables: object) -> dict[str, float]:
    start = time.perf_counter()
    side.run(*command, **variables)
    return {"seconds": time.perf_counter() - start}


def measure(side: Contestant, dataset: Path, folder: Path, n_nth: int) -> dict[tuple[str, str], dict[str, float]]:
    """Seconds of a process for each question and state of the cache."""
    fresh, jax_cache = folder / f"{side.name}-{n_nth}", folder / f"{side.name}-jax"
    private = {"XDG_CACHE_HOME": folder / f"{side.name}-unused"}
    warm = {
        **private,
        "JAX_COMPILATION_CACHE_DIR": jax_cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
    }
    found = {
        ("ginseng --help", "off"): seconds(side, "-m", "ginseng", "--help", **private),
        ("import ginseng", "off"): seconds(side, "-c", "import ginseng", **private),
    }
    for question, n_cells in (("first step", 128), ("epoch", 0)):
        for cache, variables in (("off", private), ("warm", warm)):
            found[question, cache] = side.ask(TRAINER, dataset, time.time(), n_cells, **variables)
    fit = "-m", "ginseng", "fit", dataset, "-o", folder / "model.h5", "--epochs", "1", "--quiet", "--overwrite"
    for cache in ("empty", "left by the process before"):
        found["ginseng fit --epochs 1", cache] = seconds(side, *fit, XDG_CACHE_HOME=fresh)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts, .h5ad: PBMC 3k")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--rounds", type=int, default=7)
    add_checkouts(parser)
    arguments = parser.parse_args()
    sides = ours(arguments.before)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = folder / "cells.zarr"
        sides[0].ask(DATASET, arguments.data.resolve(), arguments.label, dataset)
        rounds = [{side: measure(side, dataset, folder, nth) for side in sides} for nth in range(arguments.rounds + 1)]
    for question, cache in rounds[0][sides[0]]:
        for side in sides:
            taken = [found[side][question, cache] for found in rounds[1:]]
            of_each = {mark: [times[mark] for times in taken] for mark in taken[0]}
            result = {mark: round(statistics.median(times), 2) for mark, times in of_each.items()}
            least = {f"{mark}, least": round(min(times), 2) for mark, times in of_each.items()}
            tell(question, side.name, cache=cache, rounds=len(taken), **result, **least)


if __name__ == "__main__":
    main()
