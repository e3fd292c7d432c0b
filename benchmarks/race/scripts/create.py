"""Make a dataset of a .h5ad: data, label, path."""

import sys
import time
from pathlib import Path

from reporting import peak_mib, report

from ginseng.data.dataset import GinsengDataset

data, label, path = sys.argv[1:]
start = time.perf_counter()
dataset = GinsengDataset.create(path, data, label)
seconds = time.perf_counter() - start
size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
report(
    cells=int(dataset.n_cells),
    cells_per_second=round(dataset.n_cells / seconds),
    MiB_on_disk=round(size / 2**20, 1),
    peak_MiB=peak_mib(),
)
