"""Annotate: model, data, "memory" (compiled and read before) or "disk"."""

import sys
import time

import anndata
from reporting import peak_mib, report

from ginseng import classify
from ginseng.data.io import load_model

model, data, where = sys.argv[1:]
if where == "memory":
    model, data = load_model(model), anndata.read_h5ad(data)
    classify(model, data[:5000].copy(), return_table=True, silent=True)
start, cpu_start = time.perf_counter(), time.process_time()
table = classify(model, data, return_table=True, silent=True)
seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
report(
    cells=len(table),
    cells_per_second=round(len(table) / seconds),
    cells_per_CPU_second=round(len(table) / cpu_seconds),
    peak_MiB=peak_mib(),
)
