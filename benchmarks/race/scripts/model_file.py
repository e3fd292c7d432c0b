"""Train a small classifier and save it ("write": data, model, folder), or read it ("read": model, data, table)."""

import inspect
import sys

from reporting import report

from ginseng import classify
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import read_adata, save_model
from ginseng.model.state import state_from_classifier_trainer
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
from ginseng.utils.hvg import select_hvgs

what, *arguments = sys.argv[1:]
if what == "write":
    data, model, folder = arguments
    adata = read_adata(data, backed=False)
    select_hvgs(adata, n_top_genes=300, silent=True)
    dataset = GinsengDataset.create(f"{folder}/written.zarr", adata, "cell_type", genes="ginseng_genes")
    trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(balance_train=False))
    trainer.fit(epochs=3, silent=True)
    save_model(state_from_classifier_trainer(trainer), model)
else:
    model, data, path = arguments
    own = {"calibrate": False} if "calibrate" in inspect.signature(classify).parameters else {}
    classify(model, data, backed=False, return_table=True, silent=True, **own).to_csv(path)
report()
