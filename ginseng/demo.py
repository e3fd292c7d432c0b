"""From counts to annotated cells and pictures, on real cells (needs the `demo` extra)."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

try:
    import scanpy as sc
except ModuleNotFoundError as error:
    raise ImportError(f"The demo needs {error.name}: pip install 'ginseng-eqx[demo]'.") from error

from ginseng import plot
from ginseng.data.annotation import labels_of, require_two_labels
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import save_model, write_adata
from ginseng.data.sampling import split_within_labels
from ginseng.metrics import Scores, score
from ginseng.model.predict import classify
from ginseng.model.state import state_from_classifier_trainer
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
from ginseng.utils.files import replacing, require_writable_path
from ginseng.utils.values import require_flags
from ginseng.utils.workspace import temporary_folder

RESULTS = ("model.h5", "annotated.h5ad", "confusion.png", "umap.png")
_HELD_OUT = 1 / 3
_FEWEST_HELD_OUT = 20


def pbmc_counts() -> AnnData:
    """Raw counts of 700 blood cells of 10x Genomics that come with scanpy, labelled in ``obs["bulk_labels"]``.

    The wheel holds ``log(1 + 1e4 * count / n_counts)``, which is turned back into counts.

    Examples
    --------
    >>> pbmc_counts().shape
    (700, 765)
    """
    reduced: Any = sc.datasets.pbmc68k_reduced()
    n_counts = reduced.obs["n_counts"].to_numpy()
    counts = np.round(np.expm1(reduced.raw.X.toarray()) * n_counts[:, None] / 1e4)
    obs = reduced.obs[["bulk_labels"]].copy()
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=pd.DataFrame(index=reduced.raw.var_names))


def run(
    adata: AnnData, label_key: str, out: Path, *, n_genes: int, epochs: int, seed: int = 1, silent: bool = False
) -> Scores:
    """Hold out a third of each cell type, train on the rest, annotate the third, and draw the result.

    Writes ``model.h5``, ``annotated.h5ad``, ``confusion.png`` and ``umap.png`` to `out`.

    Parameters
    ----------
    adata : AnnData
        Raw counts in memory.
    label_key : str
        Column of ``adata.obs`` with the cell types.
    out : Path
        Folder for the results.
    n_genes : int
        Number of genes to train on, markers of the types in the training cells.
    epochs : int
        Number of passes over the training cells.
    seed : int
        Seed of everything random.
    silent : bool
        Print no progress.

    Returns
    -------
    Scores
        On the held-out cells.
    """
    require_flags(silent=silent)
    labelled, labels = labels_of(adata.obs, label_key)
    require_two_labels(list(labels.categories), f"adata.obs['{label_key}']")
    adata = adata[labelled]
    train_cells, test_cells = split_within_labels(labels.codes, _HELD_OUT, np.random.default_rng(seed))
    if len(test_cells) < _FEWEST_HELD_OUT:
        raise ValueError(
            f"A third of {adata.n_obs} cells is too few to measure and draw anything; the demo needs "
            f"{_FEWEST_HELD_OUT} held-out cells."
        )
    training, held_out = adata[train_cells].copy(), adata[test_cells].copy()
    outputs = [out / name for name in RESULTS]
    for output in outputs:
        require_writable_path(output)
    model, annotated, confusion, umap = outputs
    with temporary_folder() as folder:
        dataset = GinsengDataset.create(
            folder / "train.zarr",
            training,
            label_key,
            genes=n_genes,
            other_genes=True,
            silent=silent,
        )
        settings = GinsengClassifierTrainerSettings(holdout_fraction=0.0, seed=seed)
        trainer = GinsengClassifierTrainer(dataset, settings)
        trainer.fit(epochs, silent=silent)
    save_model(state_from_classifier_trainer(trainer), model)
    classify(model, held_out, store_probs=True, silent=silent)
    scores = score(held_out.obs[label_key], held_out.obs["ginseng_cell_type"])
    _add_umap(held_out, seed)
    write_adata(held_out, annotated)
    with replacing(confusion) as fresh:
        plot.confusion_matrix(scores).savefig(fresh, dpi=150)
    with replacing(umap) as fresh:
        plot.embedding(held_out, [label_key, "ginseng_cell_type", "ginseng_confidence"]).savefig(fresh, dpi=150)
    return scores


def _add_umap(adata: AnnData, seed: int) -> None:
    """Add a UMAP of the log-normalised counts to ``adata.obsm``."""
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    n_components = min(30, *(size - 1 for size in normalised.shape))
    sc.pp.pca(normalised, n_comps=n_components, random_state=seed)
    sc.pp.neighbors(normalised, n_neighbors=min(15, adata.n_obs - 1), random_state=seed)
    sc.tl.umap(normalised, random_state=seed)
    adata.obsm["X_umap"] = normalised.obsm["X_umap"]
