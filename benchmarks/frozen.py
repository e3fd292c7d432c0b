"""How much faster an epoch is on the answers of a frozen trunk than one through the whole network.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 20000 --out /tmp/20k.h5ad
    python benchmarks/frozen.py --data /tmp/20k.h5ad

One process, in which rounds alternate; prints one JSON line for each: seconds of an epoch, with validation on a tenth
of the cells, of which the first, which compiles and reads, is left out. "all" trains everything, "head" and "gate" what
comes after a frozen beginning; "whole" steps through the frozen parts, "answers" are computed once, which takes the
seconds of "once". The roofline counts the multiplications and additions of the matrix products of an epoch, as seconds
at the speed at which this machine multiplies a batch with a genes x genes matrix, and the bytes of parameters,
gradients and moments, and of answers, at the speed at which it adds.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from training import HIDDEN, memory_bandwidth

from ginseng import AttentionClassifier, GinsengClassifierTrainerSettings, GinsengDataset, Trainer
from ginseng.train.frozen import cached, frozen_parts, trainable_leaves, without_dropout_of

FREEZE = {"head": "trunk", "gate": ("features1", "features2")}


def seconds_of(function, *args, repeats: int = 1) -> float:
    """Least time of a function, whose result is waited for."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def roofline(n_train: int, n_test: int, batch_size: int, n_genes: int, n_classes: int) -> dict[str, float]:
    """Seconds that epochs, and the answers of a trunk, take at least."""
    x, w = jnp.ones((batch_size, n_genes)), jnp.ones((n_genes, n_genes))
    multiply = jax.jit(jnp.matmul)
    multiply(x, w)
    speed = 2 * batch_size * n_genes**2 / seconds_of(multiply, x, w, repeats=30)
    bandwidth = memory_bandwidth()
    encoder, gate, head = 2 * n_genes**2, 2 * n_genes * HIDDEN, n_genes * n_classes
    forward = {name: 2 * n for name, n in (("encoder", encoder), ("gate", gate), ("head", head))}
    whole = sum(forward.values())
    per_cell = {  # products forward, for the gradients of weights, and for those of inputs where a layer needs them
        "all": (3 * whole - forward["encoder"] / 2, whole),
        "head, whole": (whole + forward["head"], whole),
        "gate, whole": (whole + 2 * (forward["gate"] + forward["head"]) - forward["gate"] / 2, whole),
        "head, answers": (2 * forward["head"], forward["head"]),
        "gate, answers": (3 * forward["head"] + 2.5 * forward["gate"], forward["gate"] + forward["head"]),
    }
    epochs = {name: (n_train * train + n_test * test) / speed for name, (train, test) in per_cell.items()}
    for name in epochs:  # read parameters, gradients, moments; write parameters, moments
        trained = {"all": whole, "head": forward["head"], "gate": forward["gate"] + forward["head"]}[name.split(",")[0]]
        epochs[name] += 7 * 4 * trained / 2 * (n_train / batch_size) / bandwidth
        if name.endswith("answers"):  # read and written: gathered, put in a slab, placed
            epochs[name] += 6 * 4 * n_genes * (n_train + n_test) / bandwidth
    once = (n_train + n_test) * (forward["encoder"] + forward["gate"]) / speed
    found = {**epochs, "once": once, "GFLOP/s": speed / 1e9, "GB/s": bandwidth / 1e9}
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts, .h5ad")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    settings = GinsengClassifierTrainerSettings(hidden_dim=HIDDEN, batch_size=arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        dataset = GinsengDataset.create(Path(folder) / "x.zarr", arguments.data, arguments.label, silent=True)
        dataset.make_split(0.1)
        n_train, n_test = len(dataset.train_idx), len(dataset.test_idx)
        sizes = dataset.n_genes, len(dataset.label_names), HIDDEN
        network = AttentionClassifier(*sizes, dropout_rate=settings.dropout_rate, key=jax.random.key(0))
        how = settings.recipe(), settings.sampling()
        trainers, once = {"all": Trainer(network, dataset, *how)}, {}
        for name, freeze in FREEZE.items():
            trainable = trainable_leaves(network, freeze)
            without = without_dropout_of(network, frozen_parts(network, trainable))
            trainers[f"{name}, whole"] = Trainer(without, dataset, *how, trainable=trainable)
            start = time.perf_counter()
            found = cached(network, dataset, *how, trainable=trainable)
            once[f"once, {name}"] = round(time.perf_counter() - start, 2)
            trainers[f"{name}, answers"] = Trainer(found.module, found.dataset, *how, trainable=found.trainable)
        for trainer in trainers.values():
            trainer.fit(1, silent=True)
        print(json.dumps({"cells": n_train + n_test, "genes": dataset.n_genes, **once}), flush=True)
        for _ in range(arguments.rounds):
            at_least = roofline(n_train, n_test, arguments.batch_size, dataset.n_genes, len(dataset.label_names))
            print(json.dumps({"by": "roofline", **at_least}), flush=True)
            taken = {name: seconds_of(trainer.fit, 1, True) for name, trainer in trainers.items()}
            faster = {f"all / {name}": round(taken["all"] / taken[name], 1) for name in taken if name != "all"}
            print(json.dumps({"by": "ginseng-eqx", **{k: round(v, 3) for k, v in taken.items()}, **faster}), flush=True)


if __name__ == "__main__":
    main()
