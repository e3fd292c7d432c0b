"""Batches of a dataset of ours by annbatch: path, cells per block, blocks read at a time."""

import sys
import time

import anndata
import numpy as np
import zarr
from annbatch import Loader
from reporting import peak_mib, report

path, block_size, n_blocks = sys.argv[1], *map(int, sys.argv[2:])
zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
loader = Loader(batch_size=128, chunk_size=block_size, preload_nchunks=n_blocks, shuffle=True, to=None)
loader.add_dataset(anndata.io.sparse_dataset(zarr.open_group(path, mode="r")["X"]))
n_cells, start = 0, time.perf_counter()
for batch in loader:
    n_cells += batch["X"].toarray().astype(np.float32).shape[0]
report(cells=n_cells, cells_per_second=round(n_cells / (time.perf_counter() - start)), peak_MiB=peak_mib())
