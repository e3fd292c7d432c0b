"""Label test cells by CellTypist at its defaults, without majority voting: folder, seed (not used)."""

import sys

import celltypist
from cells import log_normalised, parts, write
from reporting import peak_mib, report

folder = sys.argv[1]
train, test = parts(folder)
for part in (train, test):
    part.X = log_normalised(part)
model = celltypist.train(train, labels="cell_type")
found = celltypist.annotate(test, model=model)
write(folder, found.predicted_labels["predicted_labels"], found.probability_matrix.max(axis=1))
report(cells=train.n_obs, peak_MiB=peak_mib())
