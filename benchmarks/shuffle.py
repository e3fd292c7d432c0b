"""How well are cells mixed that are sorted by label? The label entropy of batches, within a budget and from memory.

    python benchmarks/simulate.py --data pbmc3k.h5ad --cells 1000000 --sorted --out /tmp/sorted.h5ad
    python benchmarks/shuffle.py --data /tmp/sorted.h5ad

Prints one JSON line for each budget: the mean entropy of the labels of a batch of 128, as a share of that of a true
shuffle of all cells.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from ginseng.data.dataset import GinsengDataset


def entropy(labels: np.ndarray) -> float:
    shares = np.bincount(labels) / len(labels)
    return float(-np.sum(shares[shares > 0] * np.log2(shares[shares > 0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="labelled counts sorted by label, .h5ad")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--memory", nargs="+", default=["128 MB", "256 MB", "512 MB", "4 GB"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = GinsengDataset.create(Path(folder) / "x.zarr", arguments.data, arguments.label)
        assert (np.diff(dataset.labels) >= 0).all(), "the cells are not sorted by label"
        rng = np.random.default_rng(0)
        shuffled = rng.permutation(dataset.labels)
        true = np.mean([entropy(shuffled[i : i + 128]) for i in range(0, len(shuffled) - 127, 128)])
        for memory in arguments.memory:
            batches = dataset.stream(128, "all", rng=rng, memory=memory, drop_last=True)
            found = [entropy(y) for _, y in batches]
            result = {"mean": np.mean(found) / true, "lowest batch": np.min(found) / true}
            print(json.dumps({"memory": memory, **{name: round(float(share), 4) for name, share in result.items()}}))


if __name__ == "__main__":
    main()
