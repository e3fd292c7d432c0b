"""Training that cannot go on says where, and why, and keeps the last good weights; odd cells do not stop it."""

import anndata as ad
import equinox as eqx
import jax.random as jr
import numpy as np
import optax
import pandas as pd
import pytest
from scipy import sparse

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    Trainer,
    classify,
    state_from_classifier_trainer,
)
from ginseng.train import Recipe, Sampling
from tests.conftest import simulate
from tests.train.models import QUICK, assert_same_weights


def linear(scale=1.0):
    model = eqx.nn.Linear(30, 3, key=jr.key(0))
    return eqx.tree_at(lambda m: m.weight, model, model.weight * scale)


def test_the_step_and_the_rising_losses_are_told_and_the_last_good_weights_kept(dataset):
    trainer = Trainer(linear(), dataset, Recipe(optimizer=optax.sgd(1e-4)), Sampling(batch_size=16))
    good = trainer.fit(1, silent=True)
    exploding = optax.scale_by_schedule(lambda step: 1e8 ** (step + 1.0))
    far = Trainer(good, dataset, Recipe(optimizer=exploding), Sampling(batch_size=16))
    with pytest.raises(ValueError, match=r"epoch 1, step \d of 8: the learning rate may be .* losses were rising \("):
        far.fit(2, silent=True)
    assert_same_weights(far.model, good)


def test_a_batch_with_counts_that_are_not_finite(tmp_path):
    adata = simulate()
    adata.X = adata.X.toarray()
    dataset = GinsengDataset.create(tmp_path / "cells.zarr", adata, "cell_type", normalize=False, silent=True)
    rows = dataset.rows

    def with_nan(*args, **options):
        for counts, cells in rows(*args, **options):
            counts = sparse.csr_matrix(counts, dtype=np.float32)
            counts.data[:] = np.where(np.arange(len(counts.data)) < 5, np.nan, counts.data)
            yield counts, cells

    dataset.rows, dataset._stored.dtype = with_nan, np.dtype(np.float32)
    with pytest.raises(ValueError, match=r"step 1 of 1: \d+ of its cells have counts that are not finite"):
        Trainer(linear(), dataset, sampling=Sampling(batch_size=128)).fit(1, silent=True)


def test_counts_that_are_too_large_for_a_model_that_does_not_normalise(tmp_path):
    adata = simulate()
    adata.X[5, 3] = 1e30
    dataset = GinsengDataset.create(tmp_path / "cells.zarr", adata, "cell_type", normalize=False, silent=True)
    with pytest.raises(ValueError, match=r"its counts are as large as 1e\+30.*normalize=True scales them"):
        Trainer(linear(1e11), dataset, sampling=Sampling(batch_size=128)).fit(2, silent=True)


def odd_cells():
    """Cells without any count, with one count of 1e9, and a gene that is the same in all."""
    adata = simulate()
    counts = adata.X.toarray()
    counts[:, 0] = 7
    counts[3] = 0
    counts[4] = 0
    counts[4, 2] = 1e9
    obs = pd.DataFrame({"cell_type": adata.obs["cell_type"].to_numpy()}, index=adata.obs_names.astype(object))
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=adata.var_names.astype(object)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_odd_cells_leave_losses_finite(tmp_path, precision):
    dataset = GinsengDataset.create(tmp_path / "cells.zarr", odd_cells(), "cell_type", silent=True)
    settings = {"hidden_dim": 8, "batch_size": 32, "precision": precision, "calibrate": "none"}
    trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(**settings))
    trainer.fit(2, silent=True)
    assert np.isfinite([*trainer.logger.train_loss, *trainer.logger.holdout_loss]).all()
    table = classify(state_from_classifier_trainer(trainer), odd_cells(), return_table=True, silent=True)
    assert table["ginseng_cell_type"].isna().tolist() == (np.arange(120) == 3).tolist()
    assert table["ginseng_confidence"].between(0, 1).all()


def test_a_rate_far_too_high_stops_or_stays_finite(dataset):
    settings = GinsengClassifierTrainerSettings(hidden_dim=8, batch_size=32, lr=1e30, calibrate="none")
    trainer = GinsengClassifierTrainer(dataset, settings)
    before = trainer.classifier.module
    with pytest.raises(ValueError, match=r"loss is (nan|inf) in epoch 1, step \d of \d"):
        trainer.fit(2, silent=True)
    assert_same_weights(trainer.model, before)
    assert GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True) is not None
