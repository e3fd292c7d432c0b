"""How well are cells of other donors, and of other studies, annotated? Beside ginseng 0.2.1 and two linear models.

    python benchmarks/accuracy.py --folder DATA --reference REF/bin/python --celltypist CT/bin/python

`--folder` holds pbmc_kang_ctrl_8donors.h5ad, pancreas_baron_human_sub.h5ad and pbmc3k.h5ad. Each case is a training
and a test part; genes are chosen on the training part. ginseng 0.2.1 and this package train for ten epochs at
their defaults; `--ours` names what of ours is tried (see OURS). Seeds change what is random in training, and the split
of PBMC 3k. Logistic regression (scikit-learn) and CellTypist see log-normalised counts of the same genes, normalised
over these ("selected") or over all genes ("all"); CellTypist also chooses genes for itself ("own genes"). With
`--missing` the query lacks that share of the model's genes, at random (one draw for each seed): our models with the
training mean in their place ("filled"), and with zeros. Prints a JSON line for each case, method and seed, and tables.
"""

import argparse
import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ginseng import (
    GinsengClassifierState,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    select_hvgs,
    select_markers,
    state_from_classifier_trainer,
)
from ginseng.metrics import score

OURS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of `create`, and settings
    "2,000 variable": ({"genes": 2000, "select": "variance"}, {}),
    "1,000 markers": ({"genes": 1000}, {}),
    "1,000 markers, others": ({"genes": 1000, "other_genes": True}, {}),
    "1,000 markers, 5 members": ({"genes": 1000}, {"members": 5}),
    "1,000 markers, others, 5 members": ({"genes": 1000, "other_genes": True}, {"members": 5}),
    "2,000 variable, 5 members": ({"genes": 2000, "select": "variance"}, {"members": 5}),
    "2,000 markers": ({"genes": 2000}, {}),
    "500 markers": ({"genes": 500}, {}),
}

REFERENCE = """
import sys
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import save_model
from ginseng.model.predict import classify
from ginseng.model.state import state_from_classifier_trainer
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
folder, seed = sys.argv[1], int(sys.argv[2])
dataset = GinsengDataset.create(folder + "/cells.zarr", folder + "/train.h5ad", "cell_type", genes="variance")
trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(seed=seed))
trainer.fit(epochs=10, silent=True)
save_model(state_from_classifier_trainer(trainer), folder + "/model.h5")
table = classify(folder + "/model.h5", folder + "/test.h5ad", return_table=True, silent=True, backed=False)
table["ginseng_cell_type"].astype(str).to_csv(folder + "/predicted.csv", index=False)
"""

LINEAR = """
import sys
import anndata as ad, numpy as np, pandas as pd
folder, method, genes, layer = sys.argv[1:5]
train, test = (ad.read_h5ad(f"{folder}/{part}.h5ad") for part in ("train", "test"))
if layer == "own":
    chosen = np.ones(train.n_vars, bool)
else:
    chosen = train.var[genes].to_numpy()
for part in (train, test):
    x = part.X.tocsr().astype(np.float32)
    totals = np.asarray((x[:, chosen] if layer == "selected" else x).sum(axis=1)).ravel()
    x.data = np.log1p(1e4 * x.data / np.repeat(np.maximum(totals, 1e-8), np.diff(x.indptr)))
    part.X = x
train, test = train[:, chosen].copy(), test[:, chosen].copy()
if layer != "own":
    train.X, test.X = train.X.toarray(), test.X.toarray()
labels = train.obs["cell_type"].astype(str).to_numpy()
if method == "logistic":
    from sklearn.linear_model import LogisticRegression
    predicted = LogisticRegression(max_iter=1000).fit(train.X, labels).predict(test.X)
else:
    import celltypist
    own = layer == "own"
    model = celltypist.train(train, labels="cell_type", check_expression=False, n_jobs=-1, feature_selection=own)
    x = test[:, model.features].X
    x = x.toarray() if own else x
    x = (x - model.scaler.mean_) / model.scaler.scale_
    predicted = model.classifier.predict(np.minimum(x, 10))  # as celltypist.annotate does, which asks for all genes
pd.Series(predicted).to_csv(folder + "/predicted.csv", index=False)
"""

COARSE = {
    "Naive CD4 T": "CD4 T cells",
    "Memory CD4 T": "CD4 T cells",
    "CD14+ Mono": "CD14+ Monocytes",
    "B": "B cells",
    "CD8 T": "CD8 T cells",
    "FCGR3A+ Mono": "FCGR3A+ Monocytes",
    "NK": "NK cells",
    "DC": "Dendritic cells",
    "Platelet": "Megakaryocytes",
}


def parts(folder: Path, seed: int) -> Iterator[tuple[str, ad.AnnData, ad.AnnData]]:
    """Training and test part of each case; those that `seed` does not change for seed 0 only."""
    kang = ad.read_h5ad(folder / "pbmc_kang_ctrl_8donors.h5ad")
    baron = ad.read_h5ad(folder / "pancreas_baron_human_sub.h5ad")
    pbmc = ad.read_h5ad(folder / "pbmc3k.h5ad")
    held_out = pbmc.obs.groupby("cell_type", observed=True).sample(frac=1 / 3, random_state=seed).index
    is_test = pbmc.obs_names.isin(held_out)
    yield "PBMC 3k, a third", pbmc[~is_test], pbmc[is_test]
    for name, adata, donors in (
        ("Kang, donors 101 and 1015", kang, ["101", "1015"]),
        ("Kang, donors 107, 1256 and 1016", kang, ["107", "1256", "1016"]),
        ("Baron, donor 4", baron, ["human4"]),
        ("Baron, donor 3", baron, ["human3"]),
    ):
        is_test = adata.obs["donor"].astype(str).isin(donors).to_numpy()
        yield name, adata[~is_test], adata[is_test]
    pbmc.obs["cell_type"] = pbmc.obs["cell_type"].astype(str).map(COARSE)
    pbmc.var_names_make_unique()
    common = kang.var_names.intersection(pbmc.var_names, sort=False)
    yield "PBMC 3k to Kang", pbmc[:, common], kang[:, common]
    yield "Kang to PBMC 3k", kang[:, common], pbmc[:, common]


def write(folder: Path, train: ad.AnnData, test: ad.AnnData) -> tuple[ad.AnnData, ad.AnnData]:
    """Write both parts, with the genes that are chosen on the first marked as "variance" and "markers"."""
    made = []
    for name, adata in (("train", train), ("test", test)):
        cells = [f"cell{number}" for number in range(adata.n_obs)]
        obs = pd.DataFrame({"cell_type": adata.obs["cell_type"].astype(str).to_numpy()}, index=cells)
        var = pd.DataFrame(index=adata.var_names.to_numpy().astype(object))
        part = ad.AnnData(adata.X.copy(), obs.astype({"cell_type": object}), var)
        if name == "train":
            select_hvgs(part, 2000, silent=True)
            part.var["variance"] = part.var.pop("ginseng_genes")
            select_markers(part, "cell_type", 1000, silent=True)
            part.var["markers"] = part.var.pop("ginseng_genes")
            del part.uns["ginseng_markers"]
        part.write_h5ad(folder / f"{name}.h5ad")
        made.append(part)
    return made[0], made[1]


def trained(folder: Path, name: str, train: ad.AnnData, seed: int) -> GinsengClassifierState:
    making, settings = OURS[name]
    dataset = GinsengDataset.create(folder / "cells.zarr", train, "cell_type", silent=True, **making)
    trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(seed=seed, **settings))
    trainer.fit(10, silent=True)
    return state_from_classifier_trainer(trainer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--reference", help="python of the environment with ginseng 0.2.1")
    parser.add_argument(
        "--celltypist", help="python of the environment with CellTypist, which also fits the regression"
    )
    parser.add_argument("--ours", nargs="*", default=list(OURS), choices=list(OURS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", help="beginnings of the names of the cases; by default all")
    parser.add_argument("--missing", type=float, help="share of the model's genes that the query lacks")
    arguments = parser.parse_args()
    found = []

    def tell(case: str, method: str, seed: int, test: ad.AnnData, predicted: np.ndarray, seconds: float) -> None:
        scores = score(test.obs["cell_type"].astype(str).to_numpy(), predicted)
        found.append({"case": case, "method": method, "accuracy": scores.accuracy, "macro-F1": scores.macro_f1})
        print(json.dumps({**found[-1], "seed": seed, "seconds": round(seconds, 1)}), flush=True)

    def annotated(state: GinsengClassifierState, test: ad.AnnData) -> np.ndarray:
        table = classify(state, test, return_table=True, silent=True)
        return table["ginseng_cell_type"].astype(str).to_numpy()

    def other(case: str, method: str, seed: int, test: ad.AnnData, folder: Path, *command: str) -> None:
        start = time.perf_counter()
        done = subprocess.run([*command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{method} failed: {done.stderr[-2000:]}")
        predicted = pd.read_csv(folder / "predicted.csv", dtype=str).iloc[:, 0].to_numpy()
        tell(case, method, seed, test, predicted, time.perf_counter() - start)

    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for case, train_part, test_part in parts(arguments.folder, seed):
            if arguments.cases and not any(case.startswith(name) for name in arguments.cases):
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                train, test = write(folder, train_part, test_part)
                for ours in arguments.ours:
                    start = time.perf_counter()
                    state = trained(folder, ours, train, seed)
                    seconds = time.perf_counter() - start
                    tell(case, f"ours, {ours}", seed, test, annotated(state, test), seconds)
                    if arguments.missing is not None:
                        is_kept = np.random.default_rng(seed).random(state.n_genes) >= arguments.missing
                        kept = np.isin(test.var_names, np.asarray(state.genes)[~is_kept], invert=True)
                        lacking = test[:, kept].copy()
                        for way, tried in (
                            ("filled", state),
                            ("zeros", dataclasses.replace(state, background=None)),
                        ):
                            told = f"ours, {ours}; {arguments.missing:g} missing, {way}"
                            tell(case, told, seed, test, annotated(tried, lacking), 0.0)
                if arguments.reference:
                    command = [arguments.reference, "-c", REFERENCE, name, str(seed)]
                    other(case, "ginseng 0.2.1, 2,000 variable", seed, test, folder, *command)
                if arguments.celltypist and (seed == 0 or case.endswith("a third")):
                    ways = [
                        (method, genes, layer)
                        for method in ("logistic", "celltypist")
                        for genes in ("variance", "markers")
                        for layer in ("selected", "all")
                    ]
                    for method, genes, layer in [*ways, ("celltypist", "all", "own")]:
                        command = [arguments.celltypist, "-c", LINEAR, name, method, genes, layer]
                        other(case, f"{method}, {genes}, {layer}", seed, test, folder, *command)
    table = pd.DataFrame(found).pivot_table(index="method", columns="case", values=["accuracy", "macro-F1"])
    print(table.round(3).T.to_string())
    print(pd.DataFrame(found).groupby("method")[["accuracy", "macro-F1"]].mean().round(4).to_string())


if __name__ == "__main__":
    main()
