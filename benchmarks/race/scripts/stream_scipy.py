"""Shuffled batches of a matrix that is held: data."""

import sys
import time

import anndata
import numpy as np
from reporting import peak_mib, report

counts = anndata.read_h5ad(sys.argv[1]).X.tocsr()
order, out = np.random.default_rng(0).permutation(counts.shape[0]), np.empty((128, counts.shape[1]), np.float32)
start = time.perf_counter()
for first in range(0, len(order) // 128 * 128, 128):
    counts[order[first : first + 128]].toarray(out=out)
seconds = time.perf_counter() - start
report(cells=len(order), cells_per_second=round(len(order) / seconds), peak_MiB=peak_mib())
