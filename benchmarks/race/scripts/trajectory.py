"""Loss of each step on given batches, each an epoch: path of a dataset, its counts, number of steps, where to write.

Batches are drawn with NumPy's generator of seed 0, so that both packages see the same cells in the same order.
"""

import json
import sys
from pathlib import Path

import anndata
import numpy as np
from reporting import report

from ginseng.data.dataset import GinsengDataset
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings

BATCH = 128

path, data, n_steps, written = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
dataset = GinsengDataset(path)
x = anndata.read_h5ad(data).X.tocsr()
labels = np.asarray(dataset.labels[:])
rng = np.random.default_rng(0)
batches = iter([rng.choice(len(labels), BATCH, replace=False) for _ in range(n_steps)])
dataset.make_split(0.1)
dataset.train_idx, dataset.test_idx = np.arange(BATCH), np.arange(BATCH, 2 * BATCH)
dataset.make_split = lambda *_, **__: None


def given(of_batch):
    """A stream of the next batch, or of held-out cells."""
    return lambda self, batch_size, split="train", *_, **__: iter(
        [of_batch(next(batches) if split == "train" else self.test_idx)]
    )


settings = {"dropout_rate": 0.0, "balance_train": False, "batch_size": BATCH, "seed": 1}
if hasattr(GinsengDataset, "rows"):  # ours
    GinsengDataset.rows = given(lambda cells: (x[cells].toarray(), cells))
    trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings.reference(**settings))
else:
    GinsengDataset.stream = given(lambda cells: (x[cells].toarray(), labels[cells]))
    trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(**settings))
trainer.fit(epochs=n_steps, silent=True)
losses = [float(loss) for loss in trainer.logger.train_loss]
written.write_text(json.dumps(losses))
report(cells=BATCH * n_steps, last_loss=losses[-1], details={"losses": losses})
