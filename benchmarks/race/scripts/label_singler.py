"""Label test cells by SingleR (`singler`), which tells how far ahead a type is, not how sure it is: folder, seed."""

import sys

import numpy as np
import singler
from cells import log_normalised, parts, write
from reporting import peak_mib, report

folder = sys.argv[1]
train, test = parts(folder)
found = singler.annotate_single(
    test_data=log_normalised(test).T.tocsc(),
    test_features=test.var_names.tolist(),
    ref_data=log_normalised(train).T.tocsc(),
    ref_labels=train.obs["cell_type"].astype(str).tolist(),
    ref_features=train.var_names.tolist(),
)
labels, ahead = found.column("best"), np.asarray(found.column("delta"), float)
write(folder, labels, np.full(len(labels), np.nan), novelty=-np.nan_to_num(ahead))
report(cells=train.n_obs, peak_MiB=peak_mib())
