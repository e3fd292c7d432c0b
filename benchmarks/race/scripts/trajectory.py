"""Loss of each step on given batches: path of a dataset, number of steps. Each batch is an epoch of its own.

Batches are drawn with NumPy's generator of seed 0, so that both packages see the same cells in the same order.
"""

import sys

import anndata
import numpy as np
from reporting import report

from ginseng.data.dataset import GinsengDataset
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings

BATCH = 128

path, data, n_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
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
    return lambda self, size, split="train", *_, **__: iter(
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
report(cells=BATCH * n_steps, last_loss=losses[-1], details={"losses": losses})
