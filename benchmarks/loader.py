"""How fast are batches read, from memory and beyond it, and a dataset made? Beside scipy, ginseng 0.2.1 and annbatch.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 200000 --out /tmp/200k.h5ad
    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 1000000 --out /tmp/1m.h5ad
    python benchmarks/loader.py --data /tmp/200k.h5ad --reference /tmp/reference/bin/python
    python benchmarks/loader.py --data /tmp/1m.h5ad --memory "256 MB" --annbatch /tmp/annbatch/bin/python

Each measurement is a process of its own; prints one JSON line for each. Bare scipy is `csr[rows].toarray(out=...)` over
a shuffled float32 matrix that is held already: the least that any loader must do. With --memory, batches are read
beyond memory instead. annbatch 0.3 (with zarrs, and Python 3.12 or later) reads the same store in blocks of the same
size, in buffers of 32 (its default) and of 384 blocks; its CSR batches are made dense float32 ones, as ours are.
Shards are read by our own reader; "by zarr" is the same without it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ginseng.data.dataset import GinsengDataset
from ginseng.data.streaming import block_size_for
from ginseng.utils.memory import bytes_of

REPORT = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps(result | {"peak MiB": round(peak)}))
"""

CREATE = """
import json, resource, sys, time
from pathlib import Path
from ginseng.data.dataset import GinsengDataset
data, label, path = sys.argv[1:]
start = time.perf_counter()
dataset = GinsengDataset.create(path, data, label)
seconds = time.perf_counter() - start
size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
result = {"cells/s": round(dataset.n_cells / seconds), "MiB on disk": round(size / 2**20)}
"""

STREAM = """
import json, resource, sys, time
from ginseng.data.dataset import GinsengDataset
path, n_batches, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
start = time.perf_counter()
dataset = GinsengDataset(path)
opened = time.perf_counter() - start
if not options:
    next(iter(dataset.stream(128, "all")))
n_cells, start = 0, time.perf_counter()
for i, (x, y) in enumerate(dataset.stream(128, "all", **options), start=1):
    n_cells += len(y)
    if i == n_batches:
        break
result = {"cells/s": round(n_cells / (time.perf_counter() - start)), "seconds to open": round(opened, 3)}
"""

BY_ZARR = f"""
from ginseng.data.shards import ShardReader
ShardReader.reads = staticmethod(lambda array: False)
{STREAM}
"""

SCIPY = """
import json, resource, sys, time
import anndata, numpy as np
counts = anndata.read_h5ad(sys.argv[1]).X.tocsr()
order, out = np.random.default_rng(0).permutation(counts.shape[0]), np.empty((128, counts.shape[1]), np.float32)
start = time.perf_counter()
for i in range(0, len(order) // 128 * 128, 128):
    counts[order[i : i + 128]].toarray(out=out)
result = {"cells/s": round(len(order) / (time.perf_counter() - start))}
"""

ANNBATCH = """
import json, resource, sys, time
import anndata, numpy as np, zarr
from annbatch import Loader
path, block_size, n_blocks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
loader = Loader(batch_size=128, chunk_size=block_size, preload_nchunks=n_blocks, shuffle=True, to=None)
loader.add_dataset(anndata.io.sparse_dataset(zarr.open_group(path, mode="r")["X"]))
n_cells, start = 0, time.perf_counter()
for batch in loader:
    n_cells += batch["X"].toarray().astype(np.float32).shape[0]
result = {"cells/s": round(n_cells / (time.perf_counter() - start)), "cells per block": block_size, "blocks": n_blocks}
"""


def measure(name: str, question: str, python: str, script: str, *args: object) -> None:
    command = [python, "-c", script + REPORT, *map(str, args)]
    done = subprocess.run(command, check=True, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps({"question": question, "by": name, **result}), flush=True)


def block_size(path: Path, memory: str) -> int:
    """Cells per block that annbatch is given: ours, or the next that makes whole batches of its buffers."""
    return -(-block_size_for(GinsengDataset(path)._stored, bytes_of(memory)) // 4) * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts, .h5ad")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--memory", help="budget of batches beyond memory, such as '256 MB'")
    parser.add_argument("--reference", help="python of the environment with ginseng 0.2.1")
    parser.add_argument("--annbatch", help="python of an environment with annbatch[zarrs]")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    sides = {"ginseng-eqx": sys.executable}
    if arguments.reference:
        sides["ginseng 0.2.1"] = arguments.reference
    with tempfile.TemporaryDirectory() as folder:
        stores = {name: Path(folder) / f"{name}.zarr" for name in sides}
        for name, python in sides.items():
            measure(name, "create a dataset", python, CREATE, data, arguments.label, stores[name])
        ours = stores["ginseng-eqx"]
        os.sync()
        for _ in range(arguments.rounds):
            if arguments.memory is None:
                measure("bare scipy", "batches of 128 from memory", sys.executable, SCIPY, data)
                for name, python in sides.items():
                    n_batches = 10 if name == "ginseng 0.2.1" else 10**9
                    measure(name, "batches of 128 from memory", python, STREAM, stores[name], n_batches, "{}")
                continue
            question = f"batches of 128 within {arguments.memory}"
            options = json.dumps({"memory": arguments.memory})
            measure("ginseng-eqx", question, sys.executable, STREAM, ours, 10**9, options)
            measure("ginseng-eqx, by zarr", question, sys.executable, BY_ZARR, ours, 10**9, options)
            for n_blocks in (32, 384) if arguments.annbatch else ():
                args = (ours, block_size(ours, arguments.memory), n_blocks)
                measure("annbatch", question, arguments.annbatch, ANNBATCH, *args)


if __name__ == "__main__":
    main()
