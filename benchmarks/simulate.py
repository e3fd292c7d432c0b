"""Large counts from real ones: cells are drawn again and again, and their counts thinned to 8 % non-zero.

    .venv/bin/python benchmarks/simulate.py --data pbmc3k.h5ad --cells 200000 --out /tmp/large.h5ad

Keeps the 2,000 genes found in most cells. Seeded: the same command gives the same file.
"""

import argparse
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

CELLS_AT_ONCE = 20_000


def thinned(counts: sparse.csr_matrix, share: float, rng: np.random.Generator) -> sparse.csr_matrix:
    """Keep each count with probability `share`."""
    counts = counts.copy()
    counts.data = rng.binomial(counts.data.astype(np.int64), share).astype(np.float32)
    counts.eliminate_zeros()
    return counts


def share_for(counts: sparse.csr_matrix, density: float, rng: np.random.Generator) -> float:
    """Share of the counts to keep for a given density, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        kept = thinned(counts, middle, rng)
        low, high = (middle, high) if kept.nnz < density * np.prod(kept.shape) else (low, middle)
    return (low + high) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="real counts, .h5ad")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--density", type=float, default=0.08)
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--sorted", action="store_true", help="sort the cells by label, as many published data are")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    source = ad.read_h5ad(arguments.data)
    common = np.sort(np.argsort(-np.asarray((source.X > 0).sum(axis=0)).ravel(), kind="stable")[: arguments.genes])
    counts = sparse.csr_matrix(source.X[:, common])
    share = share_for(counts, arguments.density, rng)
    drawn = rng.integers(0, source.n_obs, arguments.cells)
    if arguments.sorted:
        drawn = drawn[np.argsort(source.obs[arguments.label].astype(str).to_numpy()[drawn], kind="stable")]
    names = pd.Index([f"cell{i}" for i in range(arguments.cells)], dtype=object)
    labels = pd.Categorical(source.obs[arguments.label].astype(str).to_numpy()[drawn])
    shell = ad.AnnData(
        sparse.csr_matrix((arguments.cells, len(common)), dtype=np.float32),
        obs=pd.DataFrame({arguments.label: labels}, index=names),
        var=pd.DataFrame(index=pd.Index(source.var_names[common].to_numpy(), dtype=object)),
    )
    shell.write_h5ad(arguments.out)
    with h5py.File(arguments.out, "r+") as file:
        del file["X"]
        for start in range(0, arguments.cells, CELLS_AT_ONCE):
            block = thinned(counts[drawn[start : start + CELLS_AT_ONCE]], share, rng)
            if start == 0:
                ad.io.write_elem(file, "X", block)
            else:
                ad.io.sparse_dataset(file["X"]).append(block)


if __name__ == "__main__":
    main()
