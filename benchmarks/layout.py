"""Which chunks and which codec are read fastest? Random blocks of cells from stores that differ in these alone.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 200000 --out /tmp/200k.h5ad
    python benchmarks/layout.py --data /tmp/200k.h5ad

Prints one JSON line for each layout. Blocks are of 400 cells, as within a budget of 256 MB.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from zarr.codecs import BloscCodec, Crc32cCodec

from ginseng.data import shards, store
from ginseng.data.dataset import GinsengDataset
from ginseng.data.reading import StoredCounts

BLOCK = 400
LAYOUTS = [(2**k, "lz4", "bitshuffle") for k in range(13, 19)] + [
    (2**16, "lz4", "shuffle"),
    (2**16, "zstd", "bitshuffle"),
    (2**16, "zstd", "shuffle"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts, .h5ad")
    parser.add_argument("--label", default="cell_type")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.zarr"
        for chunk, codec, shuffle in LAYOUTS:
            store._CHUNK_VALUES = chunk
            shards._COMPRESSORS = (BloscCodec(cname=codec, shuffle=shuffle), Crc32cCodec())
            start = time.perf_counter()
            dataset = GinsengDataset.create(path, arguments.data, arguments.label, silent=True)
            created = time.perf_counter() - start
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            stored = StoredCounts(dataset.root, store.read_contents(dataset.root))
            starts = np.random.default_rng(0).permutation(dataset.n_cells // BLOCK) * BLOCK
            blocks = [np.arange(first, first + BLOCK) for first in starts]
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                stored.read(blocks)
                seconds.append(time.perf_counter() - start)
            result = {
                "chunk": chunk,
                "codec": f"{codec}, {shuffle}",
                "read, cells/s": round(len(blocks) * BLOCK / min(seconds)),
                "created, cells/s": round(dataset.n_cells / created),
                "MiB on disk": round(size / 2**20, 1),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
