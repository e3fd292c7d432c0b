"""How fast are cells annotated, and in how much memory? Beside ginseng 0.2.1 and the network's bare matrix products.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 20000 --out /tmp/20k.h5ad  # and 100000, 1000000
    python benchmarks/annotating.py --train /tmp/20k.h5ad --memory /tmp/100k.h5ad --reference /tmp/reference/bin/python
    python benchmarks/annotating.py --train /tmp/20k.h5ad --disk /tmp/20k.h5ad /tmp/1m.h5ad --reference ...
    python benchmarks/annotating.py --train /tmp/20k.h5ad --memory /tmp/100k.h5ad --options '{"precision": "bfloat16"}'

Each measurement is a process of its own; prints one JSON line for each, in rounds. A classifier of hidden dimension 64
is trained on `--train` for an epoch, with all its genes, and saved; all annotate with that file. Of `--memory`, the
first `--cells` are read, and a few annotated, before the time that is measured begins, so that nothing is compiled in
it. `--disk` annotates files from where they are: the .h5ad, backed, and (ours) an AnnData .zarr of the same cells;
compilation is in the time, and peak memory is that of the process. `--options` are arguments of our `classify`, a
contestant for each; labels are compared with those of `ginseng-eqx` without options. `--before` is an older checkout of
this package. Bare products are the network's five, compiled, on one batch again and again: of 256 cells, the default
of both packages, and of the best size. Rates per second of CPU tell more where others load the machine.
ginseng 0.2.1 slows down with the size of a backed file: it had not done a million cells after 29 minutes, on a machine
that others loaded.
"""

import argparse
import json
import tempfile
from pathlib import Path

from contestants import Contestant, add_checkouts, ours, tell

TRAIN = """
import sys
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import save_model
from ginseng.model.state import state_from_classifier_trainer
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
data, label, folder = sys.argv[1:]
dataset = GinsengDataset.create(folder + "/train.zarr", data, label)
trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(hidden_dim=64))
trainer.fit(epochs=1, silent=True)
save_model(state_from_classifier_trainer(trainer), folder + "/model.h5")
print("{}")
"""

STORE = """
import sys
import anndata
anndata.read_h5ad(sys.argv[1]).write_zarr(sys.argv[2])
print("{}")
"""

CLASSIFY = """
import json, resource, sys, time
import anndata
from ginseng import classify
from ginseng.data.io import load_model
model, data, n_cells, options, labels = sys.argv[1:]
given = {"return_table": True, "silent": True, **json.loads(options)}
if n_cells:
    model, data = load_model(model), anndata.read_h5ad(data)[: int(n_cells)].copy()
    classify(model, data[:5000].copy(), **given)
start, cpu_start = time.perf_counter(), time.process_time()
table = classify(model, data, **given)
seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
with open(labels, "w") as file:
    file.writelines(f"{label}\\n" for label in table["ginseng_cell_type"])
rates = {"cells/s": round(len(table) / seconds), "cells per CPU second": round(len(table) / cpu_seconds)}
print(json.dumps({"cells": len(table), **rates, "peak MiB": round(peak)}))
"""

PRODUCTS = """
import json, sys, time
import jax, jax.numpy as jnp, jax.random as jr
from ginseng.data.io import load_model
state, dtype = load_model(sys.argv[1]), sys.argv[2]
layers = ("features1", "features2", "attn1", "attn2", "head")
weights = [jnp.asarray(state.params[layer]["W"], dtype) for layer in layers]
@jax.jit
def products(x, weights):
    for w in weights:
        x = jnp.matmul(x.astype(dtype), w, preferred_element_type=jnp.float32)
    return x
rates, cpu_rates = {}, {}
for batch_size in (128, 256, 512, 1024, 2048, 4096):
    x, times = jr.uniform(jr.key(0), (batch_size, weights[0].shape[0])), []
    jax.block_until_ready(products(x, weights))
    n_batches, cpu_start = max(8, 16384 // batch_size), time.process_time()
    for _ in range(n_batches):
        start = time.perf_counter()
        jax.block_until_ready(products(x, weights))
        times.append(time.perf_counter() - start)
    rates[batch_size] = round(batch_size / sorted(times)[n_batches // 2])
    cpu_rates[batch_size] = round(n_batches * batch_size / (time.process_time() - cpu_start))
best = max(rates, key=rates.get)
of_best = {"best batch": best, "best cells/s": rates[best], "best cells per CPU second": cpu_rates[best]}
print(json.dumps({"cells/s": rates[256], "cells per CPU second": cpu_rates[256], **of_best}))
"""


def equal_share(one: Path, other: Path) -> float:
    """Share of the cells that have the same label in two files."""
    pairs = list(zip(one.read_text().splitlines(), other.read_text().splitlines(), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, type=Path, help="labelled counts, .h5ad")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--memory", type=Path, help="counts to annotate from memory, .h5ad")
    parser.add_argument("--cells", type=int, default=100_000, help="so many of them")
    parser.add_argument("--disk", nargs="*", type=Path, default=[], help="counts to annotate from disk, .h5ad")
    parser.add_argument("--options", nargs="*", default=[], help="JSON of arguments of classify: a contestant for each")
    parser.add_argument("--reference", help="python of the environment with ginseng 0.2.1")
    parser.add_argument("--rounds", type=int, default=3)
    add_checkouts(parser)
    arguments = parser.parse_args()
    here = ours(arguments.before)
    reference = [Contestant("ginseng 0.2.1", arguments.reference)] if arguments.reference else []
    sides = [(side, "{}") for side in (*here, *reference)] + [(here[0], options) for options in arguments.options]
    with tempfile.TemporaryDirectory() as folder:
        model, labels = Path(folder) / "model.h5", Path(folder) / "labels"
        here[0].ask(TRAIN, arguments.train.resolve(), arguments.label, folder)

        def measure(question: str, sides: list[tuple[Contestant, str]], data: Path, n_cells: int | str) -> None:
            for nth, (side, options) in enumerate(sides):
                written = labels.with_name(f"labels{nth}")
                found = side.ask(CLASSIFY, model, data.resolve(), n_cells, options, written)
                share = equal_share(written, labels.with_name("labels0"))
                given = {} if options == "{}" else {"options": json.loads(options)}
                tell(question, side.name, **given, **found, **{"equal labels": round(share, 5)})

        stores = {data: Path(folder) / f"{data.stem}.zarr" for data in arguments.disk}
        for data, store in stores.items():
            here[0].ask(STORE, data.resolve(), store)
        for _ in range(arguments.rounds):
            if arguments.memory:
                for dtype in ("float32", *(["bfloat16"] if "bfloat16" in "".join(arguments.options) else [])):
                    found = here[0].ask(PRODUCTS, model, dtype)
                    tell("annotate from memory", "bare matrix products", dtype=dtype, **found)
                measure("annotate from memory", sides, arguments.memory, arguments.cells)
            for data, store in stores.items():
                measure("annotate a backed .h5ad", sides, data, "")
                measure("annotate a .zarr", [side for side in sides if side[0] in here], store, "")


if __name__ == "__main__":
    main()
