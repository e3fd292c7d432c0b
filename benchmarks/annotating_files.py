"""From file to file: time, memory, and whether shards, merged, are what one run writes.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 100000 --out /tmp/100k.h5ad  # and 1000000
    ginseng fit /tmp/20k.h5ad --label cell_type -o /tmp/model.h5
    python benchmarks/annotating_files.py --model /tmp/model.h5 --data /tmp/100k.h5ad /tmp/1m.h5ad --before ...

Each measurement is a process of its own; prints one JSON line for each. Every input is annotated into each `--kinds` of
output. Peak memory is that of the process, which holds JAX and the annotation of all cells (obs, obsm, uns), but of the
counts only what is read at a time. `--shards` of the first input are annotated one after the other and merged; of
tables the bytes are compared with those of one run. `--before` is an older checkout of this package.
"""

import argparse
import tempfile
from pathlib import Path

from contestants import add_checkouts, ours, tell

COMMAND = """
import json, resource, sys, time
from ginseng.cli import app
start = time.perf_counter()
app(sys.argv[1:], standalone_mode=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak MiB": round(peak)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="counts to annotate")
    parser.add_argument("--kinds", nargs="+", default=["h5ad", "parquet"], help="of output")
    parser.add_argument("--shards", type=int, default=0)
    add_checkouts(parser)
    arguments = parser.parse_args()
    sides, model = ours(arguments.before), arguments.model.resolve()
    data = [path.resolve() for path in arguments.data]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in arguments.kinds:
            for source in data:
                for side in sides:
                    found = side.ask(
                        COMMAND, "annotate", model, source, "-q", "--overwrite", "-o", folder / f"whole.{kind}"
                    )
                    tell(f"annotate {source.name} into .{kind}", side.name, **found)
            if arguments.shards:
                part = ["annotate", model, data[0], "-q", "--overwrite", "-o"]
                sides[0].ask(COMMAND, *part, folder / f"whole.{kind}")
                shards = [folder / f"{number}.{kind}" for number in range(1, arguments.shards + 1)]
                for number, shard in enumerate(shards, start=1):
                    found = sides[0].ask(COMMAND, *part, shard, "--shard", f"{number}/{len(shards)}")
                tell(f"shard {len(shards)}/{len(shards)} of {data[0].name} into .{kind}", sides[0].name, **found)
                merged = folder / f"merged.{kind}"
                found = sides[0].ask(COMMAND, "merge", *shards, "-o", merged, "-q")
                whole = folder / f"whole.{kind}"
                same = {} if kind in ("h5ad", "zarr") else {"bytes equal": whole.read_bytes() == merged.read_bytes()}
                tell(f"merge {len(shards)} shards into .{kind}", sides[0].name, **found, **same)


if __name__ == "__main__":
    main()
