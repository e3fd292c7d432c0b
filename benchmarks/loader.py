"""How fast are batches read from memory, and a dataset made? Beside scipy and, in its own environment, ginseng 0.2.1.

    .venv/bin/python benchmarks/simulate.py --data pbmc3k.h5ad --cells 200000 --out /tmp/large.h5ad
    .venv/bin/python benchmarks/loader.py --data /tmp/large.h5ad --reference /tmp/reference/bin/python

Each measurement is a process of its own; prints one JSON line for each. Bare scipy is `csr[rows].toarray(out=...)` over
a shuffled float32 matrix that is held already: the least that any loader must do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CREATE = """
import resource, sys, time
from pathlib import Path
from ginseng.data.dataset import GinsengDataset
data, label, path = sys.argv[1:]
start = time.perf_counter()
dataset = GinsengDataset.create(path, data, label)
seconds = time.perf_counter() - start
size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print({"cells/s": round(dataset.n_cells / seconds), "peak MiB": round(peak), "MiB on disk": round(size / 2**20)})
"""

STREAM = """
import sys, time
from ginseng.data.dataset import GinsengDataset
path, n_batches = sys.argv[1], int(sys.argv[2])
dataset = GinsengDataset(path)
next(iter(dataset.stream(128, "all")))
n_cells, start = 0, time.perf_counter()
for i, (x, y) in enumerate(dataset.stream(128, "all"), start=1):
    n_cells += len(y)
    if i == n_batches:
        break
print({"cells/s": round(n_cells / (time.perf_counter() - start))})
"""

SCIPY = """
import sys, time
import anndata, numpy as np
counts = anndata.read_h5ad(sys.argv[1]).X.tocsr()
order, out = np.random.default_rng(0).permutation(counts.shape[0]), np.empty((128, counts.shape[1]), np.float32)
start = time.perf_counter()
for i in range(0, len(order) // 128 * 128, 128):
    counts[order[i : i + 128]].toarray(out=out)
print({"cells/s": round(len(order) / (time.perf_counter() - start))})
"""


def measure(name: str, question: str, python: str, script: str, *args: object) -> None:
    command = [python, "-c", script, *map(str, args)]
    done = subprocess.run(command, check=True, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    print(json.dumps({"question": question, "by": name, "result": done.stdout.strip()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts, .h5ad")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--reference", help="python of the environment with ginseng 0.2.1")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    sides = {"ginseng-eqx": (sys.executable, 10**9)}
    if arguments.reference:
        sides["ginseng 0.2.1"] = (arguments.reference, 10)
    with tempfile.TemporaryDirectory() as folder:
        for name, (python, _) in sides.items():
            measure(name, "create a dataset", python, CREATE, data, arguments.label, Path(folder) / f"{name}.zarr")
        for _ in range(arguments.rounds):
            measure("bare scipy", "batches of 128 from memory", sys.executable, SCIPY, data)
            for name, (python, n_batches) in sides.items():
                store = Path(folder) / f"{name}.zarr"
                measure(name, "batches of 128 from memory", python, STREAM, store, n_batches)


if __name__ == "__main__":
    main()
