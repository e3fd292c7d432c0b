"""Label test cells by ginseng 0.2.1 at its defaults, on 2,000 variable genes, for ten epochs: folder, seed."""

import sys

from cells import write
from reporting import peak_mib, report

from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import save_model
from ginseng.model.predict import classify
from ginseng.model.state import state_from_classifier_trainer
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings

folder, seed = sys.argv[1], int(sys.argv[2])
dataset = GinsengDataset.create(f"{folder}/reference.zarr", f"{folder}/train.h5ad", "cell_type", genes="variance")
trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(seed=seed))
trainer.fit(epochs=10, silent=True)
model = f"{folder}/reference.h5"
save_model(state_from_classifier_trainer(trainer), model)
table = classify(model, f"{folder}/test.h5ad", return_table=True, silent=True, backed=False)
write(folder, table["ginseng_cell_type"], table["ginseng_confidence"])
report(cells=int(dataset.n_cells), peak_MiB=peak_mib())
