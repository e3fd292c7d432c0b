"""Cells to race on, in the environment of ours: which files have labels, and training and test cells of one.

python -m benchmarks.race.splits labelled FILE...
python -m benchmarks.race.splits split FILE FOLDER SEED [withhold]
"""

import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np

from benchmarks.accuracy import write

FEWEST_WITHHELD = 40


def labelled(files: list[str]) -> dict:
    """Those files that have labels, and the one of most genes, from which large data are drawn."""
    n_genes = {}
    for path in files:
        adata = ad.read_h5ad(path, backed="r")
        if "cell_type" in adata.obs:
            n_genes[path] = adata.n_vars
        adata.file.close()
    return {"files": list(n_genes), "largest": max(n_genes, key=n_genes.get, default=None)}


def split(path: str, folder: str, seed: str, *withhold: str) -> dict:
    """Hold out a third of the donors, or of each type; `withhold` puts all cells of a type among the test cells."""
    adata = ad.read_h5ad(path)
    adata = adata[adata.obs["cell_type"].notna().to_numpy()]
    adata.var_names_make_unique()
    types, rng = adata.obs["cell_type"].astype(str), np.random.default_rng(int(seed))
    donors = adata.obs["donor"].astype(str) if "donor" in adata.obs else types
    names = np.unique(donors)
    if "donor" in adata.obs and len(names) > 1:
        is_test = donors.isin(rng.permutation(names)[: max(1, round(len(names) / 3))]).to_numpy()
    else:
        third = types.groupby(types).sample(frac=1 / 3, random_state=int(seed)).index
        is_test = adata.obs_names.isin(third)
    told = {}
    if withhold:
        sizes = types.value_counts()
        enough = sorted(sizes.index[sizes >= FEWEST_WITHHELD])
        told["withheld"] = str(rng.permutation(enough)[0])
        is_test = is_test | (types == told["withheld"]).to_numpy()
    train, test = adata[~is_test], adata[is_test]
    if withhold:
        train = train[(train.obs["cell_type"].astype(str) != told["withheld"]).to_numpy()]
    Path(folder).mkdir(parents=True)
    write(Path(folder), train, test)
    return {"training cells": train.n_obs, "test cells": test.n_obs, **told}


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    print(json.dumps(split(*arguments) if what == "split" else labelled(arguments)))
