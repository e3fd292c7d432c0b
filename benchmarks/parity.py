"""Do ginseng 0.2.1 and this package read each other's model files and predict the same? Checked live.

    python3.12 -m venv /tmp/reference
    /tmp/reference/bin/pip install ginseng==0.2.1 zarr h5py pandas requests
    .venv/bin/python benchmarks/parity.py --reference /tmp/reference/bin/python --data pbmc.h5ad --label cell_type

Each side trains a small classifier on the same cells and saves it; each side then annotates with both files. Prints one
JSON line per model file, and fails if the two sides disagree on a cell or on a probability by more than 1e-4.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

TOLERANCE = 1e-4  # softmax of float32 logits, summed in another order by another version of XLA

TRAIN = """
import sys
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import read_adata, save_model
from ginseng.model.state import state_from_classifier_trainer
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
from ginseng.utils.hvg import select_hvgs
data, label, model, folder = sys.argv[1:]
adata = read_adata(data, backed=False)
select_hvgs(adata, n_top_genes=300, silent=True)
dataset = GinsengDataset.create(folder + "/train.zarr", adata, label, genes="ginseng_genes")
trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(balance_train=False))
trainer.fit(epochs=3, silent=True)
save_model(state_from_classifier_trainer(trainer), model)
"""

ANNOTATE = """
import inspect, sys
from ginseng import classify
model, data, table = sys.argv[1:]
own = {"calibrate": False} if "calibrate" in inspect.signature(classify).parameters else {}
classify(model, data, backed=False, return_table=True, silent=True, **own).to_csv(table)
"""


def run(python: str, script: str, *args: object) -> None:
    command = [python, "-c", script, *map(str, args)]
    subprocess.run(command, check=True, cwd=tempfile.gettempdir(), stdout=subprocess.DEVNULL, stderr=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="python of the environment with ginseng 0.2.1")
    parser.add_argument("--data", required=True, type=Path, help="labelled raw counts, .h5ad")
    parser.add_argument("--label", default="cell_type")
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    pythons = {"ginseng 0.2.1": arguments.reference, f"ginseng-eqx {version('ginseng-eqx')}": sys.executable}
    agree = True
    with tempfile.TemporaryDirectory() as folder:
        for writer, python in pythons.items():
            model = Path(folder) / f"{writer.split()[0]}.h5"
            work = tempfile.mkdtemp(dir=folder)
            run(python, TRAIN, data, arguments.label, model, work)
            tables = []
            for reader in pythons.values():
                run(reader, ANNOTATE, model, data, Path(work) / "table.csv")
                tables.append(pd.read_csv(Path(work) / "table.csv", index_col=0))
            theirs, ours = tables
            same = float((theirs["ginseng_cell_type"].astype(str) == ours["ginseng_cell_type"].astype(str)).mean())
            largest = float(np.abs(theirs.iloc[:, 1:].to_numpy() - ours.iloc[:, 1:].to_numpy()).max())
            agree &= same == 1.0 and largest <= TOLERANCE
            result = {
                "question": "do both packages predict the same from one model file",
                "written by": writer,
                "cells": len(ours),
                "same cell type": same,
                "largest difference of a probability": largest,
            }
            print(json.dumps(result), flush=True)
    sys.exit(0 if agree else "The two packages disagree.")


if __name__ == "__main__":
    main()
