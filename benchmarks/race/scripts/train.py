"""Train for two epochs: "step" or "epoch", path of a dataset, number of steps. Of a step, reading is taken out.

The first epoch compiles, and reads the counts; figures are of the second.
"""

import sys
import time

import numpy as np
from reporting import peak_mib, report

from ginseng.data.dataset import GinsengDataset
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings

BATCH = 128

question, path, n_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
dataset = GinsengDataset(path)
dataset.make_split(0.1)
rng = np.random.default_rng(0)
n_cells = min(len(dataset.train_idx) // BATCH, n_steps) * BATCH
dataset.train_idx = np.sort(rng.choice(dataset.train_idx, n_cells, replace=False))
n_test = min(len(dataset.test_idx), n_cells // 10 if question == "epoch" else BATCH)
dataset.test_idx = np.sort(rng.choice(dataset.test_idx, n_test, replace=False))
dataset.make_split = lambda *_, **__: None  # fit of ginseng 0.2.1 splits anew, and would take all cells


def held(batch):
    """A stream of one batch, again and again."""
    return lambda self, batch_size, split="train", *_, **__: iter(
        [batch] * (n_cells // BATCH if split == "train" else 1)
    )


if question == "step":
    if hasattr(GinsengDataset, "rows"):  # ours
        counts, cells = next(iter(dataset.rows(BATCH, "train")))
        GinsengDataset.rows = held((counts[:BATCH].toarray(), cells[:BATCH]))
    else:
        GinsengDataset.stream = held(next(iter(dataset.stream(BATCH, "train"))))

settings = GinsengClassifierTrainerSettings(hidden_dim=64, batch_size=BATCH, balance_train=False)
if hasattr(settings, "calibrate"):
    settings.calibrate = "none"
trainer = GinsengClassifierTrainer(dataset, settings)
seconds = []
for _ in range(2):
    start = time.perf_counter()
    trainer.fit(epochs=1, silent=True)
    seconds.append(time.perf_counter() - start)
first, second = seconds
report(
    cells=n_cells, cells_per_second=round(n_cells / second), seconds_of_the_first=round(first, 2), peak_MiB=peak_mib()
)
