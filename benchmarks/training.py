"""How fast are a training step and an epoch? Beside ginseng 0.2.1 in its own environment, and the machine's roofline.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 20000 --out /tmp/20k.h5ad
    python benchmarks/training.py --data /tmp/20k.h5ad --reference /tmp/reference/bin/python
    python benchmarks/training.py --data /tmp/200k.h5ad --questions epoch --steps 400 --reference-steps 40 ...
    python benchmarks/training.py --data /tmp/20k.h5ad --questions epoch --batch-size 512 --precision float32 bfloat16

Each measurement is a process of its own; prints one JSON line for each. A step is measured by fitting to one batch
again and again, without reading; an epoch streams its batches, of random cells of all the data, and ends with
validation on a tenth as many. `--steps` cuts it short. The first epoch compiles, and reads the counts; figures are of
the second. Memory is what training takes above what the process had before; its floor are parameters, gradients and
two moments. The roofline is the time of the matrix products of a step, each measured on its own at the same shapes, and
of moving parameters, gradients and moments through memory once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

HIDDEN = 64

TRAIN = """
import json, resource, sys, time
import numpy as np
from ginseng.data.dataset import GinsengDataset
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
question, data, label, path, precision, batch_size, n_steps = *sys.argv[1:6], *map(int, sys.argv[6:])
dataset = GinsengDataset.create(path, data, label)
dataset.make_split(0.1)
rng = np.random.default_rng(0)
n_cells = min(len(dataset.train_idx) // batch_size, n_steps) * batch_size
dataset.train_idx = np.sort(rng.choice(dataset.train_idx, n_cells, replace=False))
n_test = min(len(dataset.test_idx), n_cells // 10 if question == "epoch" else batch_size)
dataset.test_idx = np.sort(rng.choice(dataset.test_idx, n_test, replace=False))
dataset.make_split = lambda *_, **__: None  # fit of ginseng 0.2.1 splits anew, and would take all cells
if question == "step":
    x, y = next(iter(dataset.stream(batch_size, "train")))
    def stream(self, batch_size, split="train", *_, dtype="float32", **__):
        batch = x.astype(self.dtype if dtype is None else dtype), y
        return iter([batch] * (n_cells // batch_size if split == "train" else 1))
    GinsengDataset.stream = stream
    if hasattr(dataset, "rows"):
        batch, cells = next(iter(dataset.rows(batch_size, "train")))
        batch, cells = batch[:batch_size].toarray(), cells[:batch_size]
        def rows(self, batch_size, split="train", *_, **__):
            return iter([(batch, cells)] * (n_cells // batch_size if split == "train" else 1))
        GinsengDataset.rows = rows
changes = {"precision": precision} if precision != "float32" else {}
settings = GinsengClassifierTrainerSettings(hidden_dim=HIDDEN, batch_size=batch_size, balance_train=False, **changes)
trainer = GinsengClassifierTrainer(dataset, settings)
def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
first, second = (seconds(lambda: trainer.fit(epochs=1, silent=True)) for _ in range(2))
found = {"cells/s": round(n_cells / second), "first epoch, s": round(first, 2), "second, s": round(second, 2)}
print(json.dumps({**found, "memory, MiB": round(peak() - before)}))
""".replace("HIDDEN", str(HIDDEN))


def measure(name: str, question: str, python: str, precision: str, data: Path, label: str, *numbers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-c", TRAIN, question, data, label, Path(folder) / "x.zarr", precision, *numbers]
        done = subprocess.run(list(map(str, command)), check=True, cwd=folder, capture_output=True, text=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    described = {"question": question, "by": name, "precision": precision, "batch": numbers[0]}
    print(json.dumps({**described, **result}), flush=True)


def seconds_of(function, *args, repeats: int = 15) -> float:
    """Median time of a compiled function."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def memory_bandwidth(n_values: int = 2**26, repeats: int = 9) -> float:
    """Bytes per second, read and written, of an addition in place."""
    values, times = jnp.ones(n_values), []
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        values = jax.block_until_ready(add(values))
        times.append(time.perf_counter() - start)
    return 2 * values.nbytes / sorted(times[1:])[repeats // 2]


def roofline(batch_size: int, n_genes: int, n_classes: int) -> dict[str, float]:
    """Milliseconds that a step takes at least, and what they are spent on."""
    layers = [(n_genes, n_genes), (n_genes, n_genes), (n_genes, HIDDEN), (HIDDEN, n_genes), (n_genes, n_classes)]
    products = 0.0
    for number, (n_in, n_out) in enumerate(layers):
        x, w, y = (jnp.ones(shape) for shape in ((batch_size, n_in), (n_in, n_out), (batch_size, n_out)))
        products += seconds_of(jnp.matmul, x, w) + seconds_of(lambda x, y: x.T @ y, x, y)
        if number > 0:  # nothing needs the gradient of the counts
            products += seconds_of(lambda y, w: y @ w.T, y, w)
    n_parameters = 2 * n_genes**2 + 2 * n_genes * HIDDEN + n_genes * n_classes
    bandwidth = memory_bandwidth()
    traffic = 7 * 4 * n_parameters / bandwidth  # read parameters, gradients, moments; write parameters, moments
    total = products + traffic
    return {
        "ms": round(1e3 * total, 1),
        "matrix products, ms": round(1e3 * products, 1),
        "parameter traffic, ms": round(1e3 * traffic, 1),
        "bandwidth, GB/s": round(bandwidth / 1e9, 1),
        "cells/s": round(batch_size / total),
        "floor of memory, MiB": round(4 * 4 * n_parameters / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts, .h5ad")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--questions", nargs="+", default=["step", "epoch"])
    parser.add_argument("--reference", help="python of the environment with ginseng 0.2.1")
    parser.add_argument("--reference-steps", type=int, help="fewer steps for it, where it is slow")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data = arguments.data.resolve(), arguments.label, arguments.batch_size
    for _ in range(arguments.rounds):
        found = roofline(arguments.batch_size, 2_000, 9)
        print(json.dumps({"question": "step", "by": "roofline", "batch": arguments.batch_size, **found}), flush=True)
        for question in arguments.questions:
            for precision in arguments.precision:
                measure("ginseng-eqx", question, sys.executable, precision, *data, arguments.steps)
            if arguments.reference:
                n_steps = arguments.reference_steps or arguments.steps
                measure("ginseng 0.2.1", question, arguments.reference, "float32", *data, n_steps)


if __name__ == "__main__":
    main()
