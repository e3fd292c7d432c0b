"""What is on disk after a SIGKILL at a random moment, and after the next run.

    python benchmarks/kills.py
    python benchmarks/kills.py --cases create split --kills 1000

Each case writes over what an earlier run of other settings has written. It is started again and again from the same
folder and killed: half of the runs at a moment drawn from the time that a whole run takes, half upon the n-th time that
the process opens a file to write or makes, renames or removes a file or a folder, n drawn from how often a whole run
does. Then each output is opened, by the package, in a process of its own: it must hold what it held before, or what a
run that is not killed writes (of a training run, the same weights bit by bit). Then the case runs to its end, where
each output must be the new one, and the folder hold what it holds after a run that was never killed.

Prints one JSON line per case: kills (runs that were killed before their end), outputs found old and found new after
them, kills after which unfinished files were found, those left after the next whole run, and outputs that were neither
old nor new, missing, or not to be opened, or files that the next run did not leave as they should be (wrong). Processes
are forks of one that has imported all and computed nothing.
"""

import argparse
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pyarrow.parquet  # noqa: F401
from scipy import sparse

import ginseng.cli
import ginseng.commands
from ginseng import GinsengDataset, load_model, save_model
from ginseng.utils.workspace import PREFIX

WRITING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}  # the last before folders are swapped
TINY = ("--epochs", "3", "--batch-size", "32", "--hidden-dim", "8", "--quiet")


def simulate(path: Path, n_cells: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n_cells)
    counts = rng.poisson(np.random.default_rng(0).gamma(0.4, 3.0, (3, 40))[types]).astype(np.float32)
    obs = pd.DataFrame({"type": np.array(["B", "NK", "T"])[types]}, index=[f"cell{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(40)])
    ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var).write_h5ad(path)


def command(*words: object) -> None:
    ginseng.cli.app([str(word) for word in words], standalone_mode=False)


def create(folder: Path, seed: int) -> None:
    GinsengDataset.create(folder / "cells.zarr", folder / f"{seed}.h5ad", "type", split={"seed": seed}, silent=True)


def split(folder: Path, seed: int) -> None:
    GinsengDataset(folder / "cells.zarr").make_split(0.2, seed=seed)


def save(folder: Path, seed: int) -> None:
    save_model(load_model(folder / f"model{seed}.h5"), folder / "model.h5")


def fit(folder: Path, seed: int) -> None:
    ginseng.train.checkpoint._SECONDS_BETWEEN = 0  # saved after each call of the compiled steps
    kept = ("--overwrite", "--checkpoint", folder / f"run{seed}", "--log", folder / f"log{seed}.csv")
    command(
        "fit",
        folder / f"{seed}.h5ad",
        "--label",
        "type",
        "-o",
        folder / "model.h5",
        "--seed",
        seed,
        "--overwrite",
        *kept,
        *TINY,
    )


def finetune(folder: Path, seed: int) -> None:
    how = ("--label", "type", "-o", folder / "model.h5", "--seed", seed, "--epochs", 2, "--quiet", "--overwrite")
    command("finetune", folder / "model1.h5", folder / f"{seed}.h5ad", *how)


def annotate(output: str, folder: Path, seed: int) -> None:
    command("annotate", folder / f"model{seed}.h5", folder / "1.h5ad", "-o", folder / output, "--quiet", "--overwrite")


def annotate_all(folder: Path, seed: int) -> None:
    inputs = [folder / f"{number}.h5ad" for number in (1, 2)]
    command("annotate", folder / f"model{seed}.h5", *inputs, "-o", folder / "out", "--quiet")


def merge(suffix: str, folder: Path, seed: int) -> None:
    shards = [folder / f"shard{seed}{number}{suffix}" for number in (1, 2)]
    command("merge", *shards, "-o", folder / f"merged{suffix}", "--quiet", "--overwrite")


CASES = {
    "create": (create, ["cells.zarr"]),
    "split": (split, ["cells.zarr"]),
    "save_model": (save, ["model.h5"]),
    "fit": (fit, ["model.h5"]),
    "finetune": (finetune, ["model.h5"]),
    **{
        f"annotate {suffix}": (functools.partial(annotate, f"annotated{suffix}"), [f"annotated{suffix}"])
        for suffix in (".h5ad", ".zarr", ".csv", ".parquet")
    },
    "annotate several": (annotate_all, ["out/1.h5ad", "out/2.h5ad"]),
    **{
        f"merge {suffix}": (functools.partial(merge, suffix), [f"merged{suffix}"])
        for suffix in (".h5ad", ".zarr", ".csv", ".parquet")
    },
}


def prepare(folder: Path, cases: list[str]) -> None:
    """Counts, models and shards of two kinds: those of the earlier run (1), and those of the run to be killed (2)."""
    suffixes = [case.removeprefix("merge ") for case in cases if case.startswith("merge ")]
    for seed in (1, 2):
        simulate(folder / f"{seed}.h5ad", 200 + 10 * seed, seed)
        fit(folder, seed)
        (folder / "model.h5").rename(folder / f"model{seed}.h5")
        shutil.rmtree(folder / f"run{seed}")
        (folder / f"log{seed}.csv").unlink()
        for suffix in suffixes:
            for shard in (1, 2):
                how = ("-o", folder / f"shard{seed}{shard}{suffix}", "--shard", f"{shard}/2", "--batch-size", 64)
                command("annotate", folder / f"model{seed}.h5", folder / "1.h5ad", *how, "--quiet")
    create(folder, 1)


def contents(path: Path) -> str:
    """Digest of what an output says, read as users read it."""
    if path.name == "cells.zarr":
        dataset = GinsengDataset(path)
        cells = next(iter(dataset.stream(dataset.n_cells, "all", shuffle=False)))[0]
        ad.read_zarr(path)
        said = [cells.tobytes(), dataset.labels.tobytes(), dataset.train_idx.tobytes(), dataset.test_idx.tobytes()]
    elif path.suffix == ".h5":
        state = load_model(path)
        said = [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(state.params))]
        said.append(json.dumps(state.metadata["history"]).encode())
    elif path.suffix in (".csv", ".parquet"):
        said = [path.read_bytes()]
    else:
        adata = ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
        said = [np.asarray(adata.X.sum(axis=1)).tobytes(), adata.obs.to_csv().encode()]
    return hashlib.sha256(b"".join(said)).hexdigest()


def all_contents(folder: Path, outputs: list[str]) -> dict[str, str]:
    found = {}
    for name in outputs:
        try:
            found[name] = contents(folder / name)
        except Exception:  # whatever a user would meet
            found[name] = f"{name}: {traceback.format_exc(limit=-1)}"
    return found


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Operations:
    """Counts how often this process begins to write or change a file, and kills it upon the n-th time."""

    def __init__(self, folder: Path, n_until: int | None = None):
        self.n_seen, self._folder, self._n_until = 0, str(folder), n_until
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple) -> None:
        is_opened = event == "open" and str(args[0]).startswith(self._folder) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if is_opened or event in WRITING:
            self.n_seen += 1
            if self.n_seen == self._n_until:
                os.kill(os.getpid(), signal.SIGKILL)


def forked(folder: Path, call: Callable[[], object], kill_after: float | None = None) -> Any:
    """What a call returns in a process of its own; None if that was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            tempfile.tempdir = str(folder / "tmp")
            answer, code = call(), 0
        except BaseException:
            answer = traceback.format_exc()
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return None
    if status:
        sys.exit(f"A run failed:\n{json.loads(text)}")
    return json.loads(text)


def measure(case: str, template: Path, n_kills: int, rng: random.Random) -> dict[str, object]:
    run, outputs = CASES[case]
    folder = template.with_name("work")

    def anew(source: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)  # keeps times, by which finished outputs are known

    def whole() -> int:
        seen = Operations(folder)
        run(folder, 2)
        return seen.n_seen

    def killed(n_until: int) -> None:
        Operations(folder, n_until)
        run(folder, 2)

    before = template.with_name("before")
    shutil.rmtree(before, ignore_errors=True)
    anew(template)
    forked(folder, lambda: run(folder, 1))
    folder.rename(before)
    anew(before)
    old = forked(folder, lambda: all_contents(folder, outputs))
    forked(folder, whole)  # what is compiled is kept, and does not count
    anew(before)
    start = time.perf_counter()
    n_operations = forked(folder, whole)
    seconds = time.perf_counter() - start
    new, expected = forked(folder, lambda: all_contents(folder, outputs)), names_in(folder)
    assert all(len(digest) == 64 for digest in [*old.values(), *new.values()]), (old, new)
    assert all(old[name] != new[name] for name in outputs)
    counts = dict.fromkeys(("kills", "old", "new", "debris_found", "debris_left", "wrong"), 0)

    def unlike(found: dict[str, str], *allowed: dict[str, str]) -> None:
        for name, digest in found.items():
            if all(digest != each[name] for each in allowed):
                counts["wrong"] += 1
                print(f"{case}: {digest}", file=sys.stderr)

    while counts["kills"] < n_kills:
        anew(before)
        if rng.random() < 0.5:
            ended = forked(folder, lambda: run(folder, 2), kill_after=rng.uniform(0, seconds)) is None
        else:
            n_until = rng.randint(1, n_operations)
            ended = forked(folder, functools.partial(killed, n_until)) is None
        if not ended or not (found := forked(folder, lambda: all_contents(folder, outputs))):
            continue
        counts["kills"] += 1
        counts["old"] += sum(found[name] == old[name] for name in outputs)
        counts["new"] += sum(found[name] == new[name] for name in outputs)
        unlike(found, old, new)
        counts["debris_found"] += any(PREFIX in name for name in names_in(folder))
        forked(folder, lambda: run(folder, 2))
        unlike(forked(folder, lambda: all_contents(folder, outputs)), new)
        left = names_in(folder)
        counts["debris_left"] += any(PREFIX in name for name in left)
        differing = {name for name in left ^ expected if PREFIX not in name}
        unlike({name: "not as expected: " + name for name in differing}, dict.fromkeys(differing, ""))
    return {"case": case, **counts, "seconds": round(seconds, 2), "operations": n_operations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        template = Path(name).resolve() / "template"
        (template / "tmp").mkdir(parents=True)
        forked(template, lambda: prepare(template, arguments.cases))
        for case in arguments.cases:
            print(json.dumps(measure(case, template, arguments.kills, random.Random(arguments.seed))), flush=True)


if __name__ == "__main__":
    main()
