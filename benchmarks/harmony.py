"""Are the types of two studies found to be the same where their names are shuffled? PBMC 3k and Kang et al.

    python benchmarks/harmony.py --folder DATA [--seeds 5] [--epochs 10]

`--folder` holds pbmc_kang_ctrl_8donors.h5ad and pbmc3k.h5ad. The models are "1,000 markers, others" of accuracy.py;
each seed trains both anew, and gives PBMC 3k the names of its types (those of Kang, "coarse", or its own, of which two
are finer than one of Kang, "fine") in another order. Prints a JSON line for each seed and names: the pairs found (of
eight types, or of seven and two finer ones), those that are wrong, the lowest score of a pair and the highest of any
other two labels.
"""

import argparse
import json
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
from accuracy import COARSE, OURS

from ginseng import (
    GinsengClassifierState,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    harmonize,
    state_from_classifier_trainer,
)


def trained(adata: ad.AnnData, seed: int, epochs: int) -> GinsengClassifierState:
    making, settings = OURS["1,000 markers, others"]
    with tempfile.TemporaryDirectory() as name:
        split = {"fraction": 0.1}
        dataset = GinsengDataset.create(f"{name}/cells.zarr", adata, "cell_type", silent=True, split=split, **making)
        trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(seed=seed, **settings))
        trainer.fit(epochs, silent=True)
        return state_from_classifier_trainer(trainer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    kang = ad.read_h5ad(arguments.folder / "pbmc_kang_ctrl_8donors.h5ad")
    pbmc = ad.read_h5ad(arguments.folder / "pbmc3k.h5ad")
    pbmc.var_names_make_unique()
    own_names = pbmc.obs["cell_type"].astype(str)
    for seed in range(arguments.seeds):
        of_kang = trained(kang, seed, arguments.epochs)
        for names in ("coarse", "fine"):
            true = own_names.map(COARSE) if names == "coarse" else own_names
            types = np.unique(true)
            shuffled = dict(zip(types, np.random.default_rng(seed).permutation(types), strict=True))
            pbmc.obs["cell_type"] = true.map(shuffled)
            of_pbmc = trained(pbmc, seed, arguments.epochs)
            harmony = harmonize(of_kang, kang, of_pbmc, pbmc, label_a="cell_type", silent=True)
            expected = {shuffled[name]: COARSE.get(name, name) for name in types}
            found = harmony.merging.items()
            is_pair = harmony.table["a"] == harmony.table["b"].map(expected)
            result = {
                "seed": seed,
                "names": names,
                "pairs": len(expected),
                "found": len(found & expected.items()),
                "wrong": len(found - expected.items()),
                "finer": int((harmony.table["relation"] == "coarser").sum()),
                "lowest score of a pair": round(harmony.table["score"][is_pair].min(), 3),
                "highest score of others": round(harmony.table["score"][~is_pair].max(), 3),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
