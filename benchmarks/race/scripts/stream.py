"""Stream a dataset: path, number of batches (0: all), bytes of memory (0: as it likes)."""

import sys
import time

from reporting import peak_mib, report

from ginseng.data.dataset import GinsengDataset

path, n_batches, memory = sys.argv[1], *map(int, sys.argv[2:])
dataset = GinsengDataset(path)
options = {"memory": memory} if memory else {}
if not memory:
    next(iter(dataset.stream(128, "all")))
n_cells, start = 0, time.perf_counter()
for nth, (_, y) in enumerate(dataset.stream(128, "all", **options), start=1):
    n_cells += len(y)
    if nth == n_batches:
        break
report(cells=n_cells, cells_per_second=round(n_cells / (time.perf_counter() - start)), peak_MiB=peak_mib())
