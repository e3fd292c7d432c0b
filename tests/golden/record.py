"""Record numbers by running ginseng 0.2.1, in an environment of its own.

    python3.12 -m venv /tmp/reference
    /tmp/reference/bin/pip install ginseng==0.2.1 zarr h5py pandas requests
    /tmp/reference/bin/python tests/golden/record.py

Rewrites `reference.npz`, `model.h5` and `dataset.zarr` beside this script. Inputs are seeded and
stored with the outputs.
"""

import shutil
from pathlib import Path

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ginseng import classify
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import save_model
from ginseng.model.instance import (
    GinsengClassifier,
    nn_annotate,
    nn_annotate_evaluate,
    nn_annotate_loss,
    nn_normalize,
)
from ginseng.model.nn import nn_dropout, nn_xavier_uniform
from ginseng.model.state import GinsengClassifierState
from ginseng.train.opt import opt_adam_update, opt_init_adam
from ginseng.utils.hvg import select_hvgs

HERE = Path(__file__).parent
N_GENES, N_CLASSES, HIDDEN_DIM, SEED = 24, 3, 5, 7
N_STEPS = 50


def flatten(prefix, params):
    return {f"{prefix}/{layer}/{leaf}": np.asarray(a) for layer, leaves in params.items() for leaf, a in leaves.items()}


def counts_of(rng, n_cells, n_genes, labels):
    mean = rng.gamma(0.5, 2.0, n_genes)
    shift = rng.gamma(1.0, 1.0, (labels.max() + 1, n_genes))
    return rng.poisson(mean * shift[labels]).astype(np.float32)


def main():
    rng = np.random.default_rng(0)
    y = rng.integers(0, N_CLASSES, 60)
    x = counts_of(rng, 60, N_GENES, y)
    golden = {"x": x, "y": y}

    model = GinsengClassifier(
        N_GENES, N_CLASSES, HIDDEN_DIM, dropout_rate=0.3, normalize=True, target_sum=1e4, seed=SEED
    )
    params, key, xj, yj = model.params, jax.random.key(3), jnp.asarray(x), jnp.asarray(y)
    golden |= flatten("init", params)
    golden["xavier"] = nn_xavier_uniform(key, (4, 6))
    golden["dropout"] = nn_dropout(key, xj, 0.4)
    golden["normalized"] = nn_normalize(xj, 500.0)
    options = {"dropout_rate": 0.3, "normalize": True, "target_sum": 1e4}
    golden["logits"], golden["attention"] = nn_annotate(params, key, xj, **options, return_attn=True, training=False)
    golden["logits_dropout"], golden["attention_dropout"] = nn_annotate(params, key, xj, **options, return_attn=True)
    golden["logits_raw"] = nn_annotate(params, key, xj, 0.3, normalize=False, training=False)
    golden["loss"], grads = jax.value_and_grad(nn_annotate_loss)(params, key, xj, yj, **options)
    golden |= flatten("grads", grads)
    _, total, correct = nn_annotate_evaluate(params, key, xj, yj, 0.0, True, 1e4)
    golden["total"], golden["correct"] = total, correct

    for name, weight_decay in (("plain", 0.0), ("decayed", 0.05)):
        p, state, losses = params, opt_init_adam(params), []
        for _ in range(N_STEPS):
            loss, grads = jax.value_and_grad(nn_annotate_loss)(p, key, xj, yj, 0.0, True, 1e4)
            p, state = opt_adam_update(grads, p, state, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay)
            losses.append(loss)
        golden |= flatten(f"adam_{name}", p) | flatten(f"adam_{name}_m", state.m) | flatten(f"adam_{name}_v", state.v)
        golden[f"adam_{name}_losses"] = np.asarray(losses)
    trained = p

    labels = rng.integers(0, 4, 300)
    hvg_counts = counts_of(rng, 300, 200, labels)
    golden["hvg_counts"] = hvg_counts
    for name, options in {
        "default": {"n_top_genes": 50},
        "narrow": {"n_top_genes": 20, "min_mean": 0.2, "max_mean": 0.8, "n_bins": 5},
        "unscaled": {"n_top_genes": 50, "target_sum": None},
        "chunked": {"n_top_genes": 80, "target_sum": 500.0, "chunk_size": 64},
    }.items():
        adata = ad.AnnData(hvg_counts)
        select_hvgs(adata, silent=True, **options)
        golden[f"hvg_{name}"] = adata.var["ginseng_genes"].to_numpy()

    genes = [f"GENE{i}" for i in range(N_GENES)]
    label_names = ["B cell", "NK cell", "T cell"]
    state = GinsengClassifierState(
        trained, np.array(genes), np.array(label_names), np.arange(3), N_GENES, N_CLASSES, HIDDEN_DIM, True, 1e4, 0.3
    )
    (HERE / "model.h5").unlink(missing_ok=True)
    save_model(state, HERE / "model.h5")
    obs = pd.DataFrame(
        {"cell_type": np.array(label_names)[y], "donor": rng.choice(["d1", "d2", "d3"], 60)},
        index=[f"cell{i}" for i in range(60)],
    )
    adata = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))
    table = classify(state, adata, return_table=True, silent=True)
    golden["predicted"] = table["ginseng_cell_type"].to_numpy().astype(str)
    golden["confidence"] = table["ginseng_confidence"].to_numpy()
    golden["probabilities"] = table[label_names].to_numpy()
    shuffled = adata[:, rng.permutation(N_GENES)[: N_GENES - 4]].copy()
    golden["partial_x"], golden["partial_genes"] = shuffled.X, shuffled.var_names.to_numpy().astype(str)
    golden["partial_probabilities"] = classify(state, shuffled, return_table=True, silent=True)[label_names].to_numpy()

    shutil.rmtree(HERE / "dataset.zarr", ignore_errors=True)
    dataset = GinsengDataset.create(HERE / "dataset.zarr", adata, "cell_type", group_key="donor", chunk_size=32)
    dataset.make_split(0.25, seed=5)
    golden["donor"] = obs["donor"].to_numpy().astype(str)
    golden["train_idx"], golden["test_idx"] = dataset.train_idx, dataset.test_idx
    np.savez_compressed(HERE / "reference.npz", **{name: np.asarray(value) for name, value in golden.items()})


if __name__ == "__main__":
    main()
