"""Label test cells by scANVI (scvi-tools), on 2,000 variable genes, without a batch: folder, seed."""

import sys

import anndata
import scvi
from cells import parts, write
from reporting import peak_mib, report

folder, seed = sys.argv[1], int(sys.argv[2])
scvi.settings.seed = seed
train, test = parts(folder)
chosen = train.var["variance"].to_numpy()
train, test = train[:, chosen].copy(), test[:, chosen].copy()
test.obs["cell_type"] = "unknown"
both = anndata.concat([train, test], index_unique="-")
scvi.model.SCVI.setup_anndata(both)
model = scvi.model.SCVI(both)
model.train()
model = scvi.model.SCANVI.from_scvi_model(model, labels_key="cell_type", unlabeled_category="unknown")
model.train(max_epochs=20)
probabilities = model.predict(both[train.n_obs :].copy(), soft=True)
write(folder, probabilities.idxmax(axis=1), probabilities.max(axis=1))
report(cells=train.n_obs, peak_MiB=peak_mib())
