"""Memory, throughput, threads and open files of a long run: several epochs on a dataset, then the annotation of a file.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 1000000 --out /tmp/1000k.h5ad
    ginseng create /tmp/1000k.h5ad --label cell_type --genes 200 -o /tmp/1000k.zarr
    python benchmarks/long.py --dataset /tmp/1000k.zarr --data /tmp/1000k.h5ad --plot benchmarks/long.svg

A thread notes every half second what the process holds (resident memory, threads, open files) and how many cells it
has trained on. Prints a JSON line for each half of an epoch, and for the annotation: cells per second, the resident
memory at its end, and the most threads and open files; and what is held at the beginning and at the end. `--plot` draws
memory and cells over time.
"""

import argparse
import gc
import json
import threading
import time
from pathlib import Path
from typing import Any

import jax
import psutil
from matplotlib.figure import Figure

import ginseng
from ginseng.train.loop import Trainer

_EVERY = 0.5


class Watch:
    """Notes what this process holds, until it is told to stop."""

    def __init__(self):
        self.cells, self.phase, self.notes = 0, "start", []
        self._process, self._over = psutil.Process(), threading.Event()
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()

    def held(self) -> dict[str, Any]:
        """What the process holds now."""
        process = self._process
        return {
            "MiB": round(process.memory_info().rss / 2**20),
            "threads": process.num_threads(),
            "open files": process.num_fds(),
        }

    def _note(self) -> None:
        ended = False
        while not ended:
            ended = self._over.wait(_EVERY)
            seconds = time.perf_counter() - self._started
            self.notes.append({"seconds": seconds, "phase": self.phase, "cells": self.cells, **self.held()})

    def stop(self) -> None:
        """Note a last time."""
        self._over.set()
        self._thread.join()


def summary(notes: list[dict[str, Any]], phase: str) -> dict[str, Any]:
    first, last = notes[0], notes[-1]
    return {
        "phase": phase,
        "cells/s": round((last["cells"] - first["cells"]) / max(last["seconds"] - first["seconds"], 1e-9)),
        "MiB": last["MiB"],
        "most threads": max(note["threads"] for note in notes),
        "most open files": max(note["open files"] for note in notes),
    }


def drawn(notes: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    minutes = [note["seconds"] / 60 for note in notes]
    above.plot(minutes, [note["MiB"] for note in notes], color="C0")
    above.set(ylabel="resident memory (MiB)", ylim=(0, None))
    below.plot(minutes, [note["cells"] / 1e6 for note in notes], color="C1")
    below.set(ylabel="cells seen (millions)", xlabel="minutes")
    for nth in range(1, len(notes)):
        if notes[nth]["phase"] != notes[nth - 1]["phase"]:
            for axes in (above, below):
                axes.axvline(minutes[nth], color="grey", linewidth=0.5)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--memory", default="256 MB")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    dataset = ginseng.GinsengDataset(arguments.dataset)
    settings = ginseng.GinsengClassifierTrainerSettings(calibrate="none", batch_size=512)
    trainer = ginseng.GinsengClassifierTrainer(dataset, settings, memory=arguments.memory)
    watch, steps, n_cells = Watch(), Trainer._train_step, len(dataset.train_idx)

    def counted(self: Trainer, given: Any, state: Any) -> Any:
        result = steps(self, given, state)
        watch.cells += int(given[1].n_steps) * settings.batch_size
        nth, half = divmod(min(2 * watch.cells // n_cells, 2 * arguments.epochs - 1), 2)
        watch.phase = f"epoch {nth + 1}, {('first', 'second')[half]} half"
        return result

    Trainer._train_step = counted
    begun = watch.held()
    trainer.fit(arguments.epochs, silent=True)
    state = ginseng.state_from_classifier_trainer(trainer)
    watch.phase = "annotation"
    table = ginseng.classify(state, arguments.data, return_table=True, silent=True)
    watch.cells += len(table)
    watch.stop()
    for phase in dict.fromkeys(note["phase"] for note in watch.notes):
        print(json.dumps(summary([note for note in watch.notes if note["phase"] == phase], phase)), flush=True)
    del trainer, state, dataset, table
    gc.collect()
    jax.clear_caches()
    print(json.dumps({"phase": "begun", **begun}), json.dumps({"phase": "left", **watch.held()}), sep="\n")
    if arguments.plot is not None:
        drawn(watch.notes, arguments.plot)


if __name__ == "__main__":
    main()
