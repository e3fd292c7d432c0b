"""Training and test cells of a split, and labels written for the latter. Runs in each contestant's environment."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd


def parts(folder):
    """Raw counts to train on, with labels in ``obs["cell_type"]``, and those to label."""
    return [anndata.read_h5ad(Path(folder, f"{name}.h5ad")) for name in ("train", "test")]


def log_normalised(adata):
    """log(1 + counts per 10,000), over all genes."""
    x = adata.X.tocsr().astype(np.float32)
    totals = np.asarray(x.sum(axis=1)).ravel()
    x.data = np.log1p(1e4 * x.data / np.repeat(np.maximum(totals, 1e-8), np.diff(x.indptr)))
    return x


def write(folder, labels, confidence, novelty=None):
    """What was predicted of the test cells, in their order; confidence may be NaN, and stands in for `novelty`."""
    table = pd.DataFrame({"type": np.asarray(labels, str), "confidence": np.asarray(confidence, float)})
    table["novelty"] = -table["confidence"] if novelty is None else np.asarray(novelty, float)
    table.to_csv(Path(folder, "predicted.csv"), index=False)
