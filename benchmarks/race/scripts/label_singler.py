"""Label test cells by SingleR (`singler`), which gives scores rather than confidence: folder, seed (not used)."""

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
write(folder, found.column("best"), np.nan_to_num(np.asarray(found.column("delta"), float)).clip(0, 1))
report(cells=train.n_obs, peak_MiB=peak_mib())
