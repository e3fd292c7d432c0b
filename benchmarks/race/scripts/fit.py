"""A classifier of ours, trained for an epoch with all genes: path of a dataset, path of the model."""

import sys

from reporting import report

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    save_model,
    state_from_classifier_trainer,
)

path, model = sys.argv[1:]
settings = GinsengClassifierTrainerSettings(hidden_dim=64, calibrate="none")
trainer = GinsengClassifierTrainer(GinsengDataset(path), settings)
trainer.fit(epochs=1, silent=True)
save_model(state_from_classifier_trainer(trainer), model)
report()
