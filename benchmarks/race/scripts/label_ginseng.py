"""Label test cells by this package, as `ginseng fit` and `ginseng annotate` do at their defaults: folder, seed."""

import sys

from cells import parts, write
from reporting import peak_mib, report

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    state_from_classifier_trainer,
)

folder, seed = sys.argv[1], int(sys.argv[2])
train, test = parts(folder)
settings = GinsengClassifierTrainerSettings(seed=seed)
how = {"genes": 1000, "other_genes": True, "split": settings.split(), "overwrite": True, "silent": True}
dataset = GinsengDataset.create(f"{folder}/ginseng.zarr", train, "cell_type", **how)
trainer = GinsengClassifierTrainer(dataset, settings)
trainer.fit(10, silent=True)
table = classify(state_from_classifier_trainer(trainer), test, return_table=True, silent=True)
write(folder, table["ginseng_cell_type"], table["ginseng_confidence"], table["ginseng_novelty"])
report(cells=train.n_obs, peak_MiB=peak_mib())
