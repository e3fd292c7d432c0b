"""How well are cells of other donors, and of other studies, annotated? Beside ginseng 0.2.1 and two linear models.

    python benchmarks/accuracy.py --folder DATA --reference REF/bin/python --celltypist CT/bin/python

`--folder` holds pbmc_kang_ctrl_8donors.h5ad, pancreas_baron_human_sub.h5ad and pbmc3k.h5ad. Each case is a training
and a test part; 2,000 genes are selected on the training part. ginseng 0.2.1 and this package train for ten epochs at
their defaults, `--settings` changes ours; seeds change what is random in training, and the split of PBMC 3k. Logistic
regression (scikit-learn) and CellTypist see log-normalised counts, normalised over the selected genes ("selected") or
over all genes ("all"), which the others do not see. Prints one JSON line for each case, method and seed, and a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ginseng.metrics import score
from ginseng.utils import select_hvgs

GINSENG = """
import json, sys
from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import save_model
from ginseng.model.predict import classify
from ginseng.model.state import state_from_classifier_trainer
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
folder, seed, changes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
dataset = GinsengDataset.create(folder + "/cells.zarr", folder + "/train.h5ad", "cell_type")
settings = GinsengClassifierTrainerSettings(seed=seed, **changes)
trainer = GinsengClassifierTrainer(dataset, settings)
trainer.fit(epochs=10, silent=True)
save_model(state_from_classifier_trainer(trainer), folder + "/model.h5")
table = classify(folder + "/model.h5", folder + "/test.h5ad", return_table=True, silent=True, backed=False)
table["ginseng_cell_type"].astype(str).to_csv(folder + "/predicted.csv", index=False)
"""

LINEAR = """
import sys
import anndata as ad, numpy as np, pandas as pd
folder, method, layer = sys.argv[1:4]
train, test = (ad.read_h5ad(f"{folder}/{part}.h5ad") for part in ("train", "test"))
for part in (train, test):
    part.X = np.log1p(1e4 * part.X.toarray() / np.maximum(part.obs[layer].to_numpy(), 1e-8)[:, None])
labels = train.obs["cell_type"].astype(str).to_numpy()
if method == "logistic":
    from sklearn.linear_model import LogisticRegression
    predicted = LogisticRegression(max_iter=1000).fit(train.X, labels).predict(test.X)
else:
    import celltypist
    model = celltypist.train(train, labels="cell_type", check_expression=False, n_jobs=-1)
    x = (test[:, model.features].X - model.scaler.mean_) / model.scaler.scale_
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


def write(folder: Path, train: ad.AnnData, test: ad.AnnData) -> None:
    """Write both parts with the genes that are selected on the first."""
    train, test = train.copy(), test.copy()
    select_hvgs(train, 2000, silent=True)
    genes = train.var_names[train.var["ginseng_genes"]]
    for name, adata in (("train", train), ("test", test)):
        x = adata[:, genes].X
        sums = {layer: np.asarray(counts.sum(axis=1)).ravel() for layer, counts in (("all", adata.X), ("selected", x))}
        cells = [f"cell{number}" for number in range(adata.n_obs)]
        obs = pd.DataFrame({"cell_type": adata.obs["cell_type"].astype(str).to_numpy(), **sums}, index=cells)
        ad.AnnData(
            x, obs.astype({"cell_type": object}), pd.DataFrame(index=genes.to_numpy().astype(object))
        ).write_h5ad(folder / f"{name}.h5ad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--reference", help="python of the environment with ginseng 0.2.1")
    parser.add_argument(
        "--celltypist", help="python of the environment with CellTypist, which also fits the regression"
    )
    parser.add_argument("--settings", nargs="*", default=["{}"], help="JSON of our settings: a method for each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", help="beginnings of the names of the cases; by default all")
    arguments = parser.parse_args()
    found = []

    def measure(case: str, method: str, seed: int, test: ad.AnnData, folder: Path, *command: str) -> None:
        done = subprocess.run([*command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{method} failed: {done.stderr[-2000:]}")
        predicted = pd.read_csv(folder / "predicted.csv", dtype=str).iloc[:, 0]
        scores = score(test.obs["cell_type"].astype(str).to_numpy(), predicted.to_numpy())
        found.append({"case": case, "method": method, "accuracy": scores.accuracy, "macro-F1": scores.macro_f1})
        print(json.dumps({**found[-1], "seed": seed}), flush=True)

    for seed in range(arguments.seeds):
        for case, train, test in parts(arguments.folder, seed):
            if arguments.cases and not any(case.startswith(name) for name in arguments.cases):
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                write(folder, train, test)
                for changes in arguments.settings:
                    label = f"ginseng-eqx {changes}".replace(" {}", "")
                    measure(case, label, seed, test, folder, sys.executable, "-c", GINSENG, name, str(seed), changes)
                if arguments.reference:
                    command = [arguments.reference, "-c", GINSENG, name, str(seed), "{}"]
                    measure(case, "ginseng 0.2.1", seed, test, folder, *command)
                if arguments.celltypist and (seed == 0 or case.endswith("a third")):
                    for method in ("logistic", "celltypist"):
                        for layer in ("selected", "all"):
                            command = [arguments.celltypist, "-c", LINEAR, name, method, layer]
                            measure(case, f"{method}, {layer}", seed, test, folder, *command)
    table = pd.DataFrame(found).pivot_table(index="method", columns="case", values=["accuracy", "macro-F1"])
    print(table.round(3).T.to_string())


if __name__ == "__main__":
    main()
