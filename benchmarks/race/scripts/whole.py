"""From .h5ad to written labels in two processes: "ginseng" or "celltypist", folder with train.h5ad and test.h5ad.

Labels go to labels.csv there, in the order of the cells.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from reporting import report

CELLTYPIST = {
    "fit": """
import sys
import anndata, celltypist, scanpy
data, model = sys.argv[1:]
adata = anndata.read_h5ad(data)
scanpy.pp.normalize_total(adata, target_sum=1e4)
scanpy.pp.log1p(adata)
celltypist.train(adata, labels="cell_type").write(model)
""",
    "annotate": """
import sys
import anndata, celltypist, scanpy
model, data, table = sys.argv[1:]
adata = anndata.read_h5ad(data)
scanpy.pp.normalize_total(adata, target_sum=1e4)
scanpy.pp.log1p(adata)
celltypist.annotate(adata, model=model).predicted_labels["predicted_labels"].to_csv(table)
""",
}

package, folder = sys.argv[1], Path(sys.argv[2])
train, test, table = (folder / name for name in ("train.h5ad", "test.h5ad", "labels.csv"))
table.unlink(missing_ok=True)
if package == "ginseng":
    model = folder / "whole.h5"
    model.unlink(missing_ok=True)
    fit = ["-m", "ginseng", "fit", train, "--label", "cell_type", "-o", model, "--quiet"]
    annotate = ["-m", "ginseng", "annotate", model, test, "-o", table, "--quiet"]
else:
    model = folder / "whole.pkl"
    fit = ["-c", CELLTYPIST["fit"], train, model]
    annotate = ["-c", CELLTYPIST["annotate"], model, test, table]
seconds = []
for command in (fit, annotate):
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    seconds.append(time.perf_counter() - start)
times = os.times()
report(
    seconds=round(sum(seconds), 2),
    seconds_of_fit=round(seconds[0], 2),
    seconds_of_annotate=round(seconds[1], 2),
    CPU_seconds=round(times.children_user + times.children_system, 2),
    peak_MiB=round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10),
)
