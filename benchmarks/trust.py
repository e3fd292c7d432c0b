"""Does confidence mean what it says, and are types that were never seen told apart? On donors and types left out.

    python benchmarks/trust.py --folder DATA --celltypist CT/bin/python

`--folder` is that of `accuracy.py`; models are trained as the command line does (1,000 markers, the sum of the others,
ten epochs), with the donors as groups, so that `fit` calibrates them by whole donors left out in turn.

- novelty: each type of Kang and Baron with 40 cells or more is left out of training in turn, with some donors (two
  splits of these). AUROC of its cells (of all donors) against those of the other types of the donors left out; how many
  of the latter are called novel at 5 %; whether the withheld type, and each of the others with 20 cells or more, is
  called novel as a cluster.
- confidence: each donor is left out in turn. ECE (15 equal-mass bins) and NLL without and with calibration; error and
  share of the assigned cells by `target_error`; whether what cells may be by `class_error` has the right type, for each
  type with 50 calibration cells and 20 to test. Cells of types that were not trained on are left out.
- studies: the same from PBMC 3k to Kang and back; reported, not promised.

`--celltypist` adds CellTypist's confidence, trained on the same genes. Prints a JSON line for each result, and tables.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from accuracy import COARSE, write
from scipy import stats

from ginseng import (
    GinsengClassifierState,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    state_from_classifier_trainer,
)
from ginseng.metrics import ece
from ginseng.model.consensus import novel_by_cluster

HELD_OUT = {"Kang": (["107", "1256", "1016"], ["101", "1015"]), "Baron": (["human4"], ["human3"])}
FILES = {"Kang": "pbmc_kang_ctrl_8donors.h5ad", "Baron": "pancreas_baron_human_sub.h5ad"}

CELLTYPIST = """
import logging, sys
import anndata as ad, numpy as np, pandas as pd
import celltypist
from scipy.special import expit
logging.disable(logging.CRITICAL)
folder = sys.argv[1]
train, test = (ad.read_h5ad(f"{folder}/{part}.h5ad") for part in ("train", "test"))
chosen = train.var["markers"].to_numpy()
for part in (train, test):
    x = part.X.tocsr().astype(np.float32)
    totals = np.asarray(x.sum(axis=1)).ravel()
    x.data = np.log1p(1e4 * x.data / np.repeat(np.maximum(totals, 1e-8), np.diff(x.indptr)))
    part.X = x
train, test = train[:, chosen].copy(), test[:, chosen].copy()
train.X, test.X = train.X.toarray(), test.X.toarray()
model = celltypist.train(train, labels="cell_type", check_expression=False, feature_selection=False)
x = (test[:, model.features].X - model.scaler.mean_) / model.scaler.scale_
scores = expit(model.classifier.decision_function(np.minimum(x, 10)))
table = pd.DataFrame({"type": model.classifier.classes_[scores.argmax(1)], "confidence": scores.max(1)})
table.to_csv(folder + "/confidence.csv", index=False)
"""


def trained(adata: ad.AnnData, seed: int) -> GinsengClassifierState:
    settings = GinsengClassifierTrainerSettings(seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"genes": 1000, "other_genes": True, "split": settings.split(), "silent": True}
        dataset = GinsengDataset.create(f"{folder}/cells.zarr", adata, "cell_type", group_key="donor", **how)
        trainer = GinsengClassifierTrainer(dataset, settings)
        trainer.fit(10, silent=True)
        return state_from_classifier_trainer(trainer)


def annotated(state: GinsengClassifierState, adata: ad.AnnData, **how: Any) -> pd.DataFrame:
    return classify(state, adata, return_table=True, silent=True, **how)


def celltypist(python: str, train: ad.AnnData, test: ad.AnnData) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), train, test)
        done = subprocess.run([python, "-c", CELLTYPIST, folder], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return pd.read_csv(Path(folder) / "confidence.csv", dtype={"type": str})


def auroc(seen: np.ndarray, novel: np.ndarray) -> float:
    return stats.mannwhitneyu(novel, seen).statistic / (len(novel) * len(seen))


def novelty(adata: ad.AnnData, donors: list[str], left_out: str, seed: int, python: str | None) -> Iterator[dict]:
    of_donors, is_left_out = adata.obs["donor"].isin(donors), adata.obs["cell_type"] == left_out
    train, test = adata[~of_donors & ~is_left_out], adata[of_donors | is_left_out]
    state = trained(train, seed)
    table = annotated(state, test)
    types = test.obs["cell_type"].to_numpy()
    is_novel = types == left_out
    is_seen = ~is_novel & np.isin(types, state.label_keys)
    scores = {
        "novelty": table["ginseng_novelty"].to_numpy(),
        "largest probability": -annotated(state, test, calibrate=False)["ginseng_confidence"].to_numpy(),
    }
    if python:
        scores["CellTypist"] = -celltypist(python, train, test)["confidence"].to_numpy()
    for method, values in scores.items():
        yield {"method": method, "AUROC": auroc(values[is_seen], values[is_novel])}
    is_called_novel = (table["ginseng_status"] == "novel").to_numpy()
    new_donors = test.obs["donor"].isin(donors).to_numpy()
    of_new_donors = is_novel & new_donors
    withheld = of_new_donors if of_new_donors.sum() >= 20 else is_novel
    clusters = novel_by_cluster(scores["novelty"], pd.Categorical(np.where(withheld | is_seen, types, None)))
    of_seen = clusters[clusters["n_cells"] >= 20].drop(index=left_out, errors="ignore")
    yield {
        "method": "at 5 %, and as clusters",
        "seen cells called novel": is_called_novel[is_seen].mean(),
        "withheld cells called novel": is_called_novel[withheld].mean(),
        "withheld type called novel": float(clusters.loc[left_out, "is_novel"]),
        "seen types called novel": of_seen["is_novel"].mean(),
    }


def between(train: ad.AnnData, test: ad.AnnData, seed: int, python: str | None) -> Iterator[dict]:
    """Confidence and decisions from cells to others."""
    state = trained(train, seed)
    is_known = test.obs["cell_type"].isin(state.label_keys).to_numpy()
    truth = test.obs["cell_type"].astype(str).to_numpy()[is_known]
    known = test[is_known]
    for calibrate in (False, True):
        table = annotated(state, known, calibrate=calibrate)
        is_right = table["ginseng_cell_type"].astype(str).to_numpy() == truth
        of_truth = table[list(state.output_labels)].to_numpy()[
            np.arange(len(truth)), pd.Index(state.output_labels).get_indexer(truth)
        ]
        yield {
            "method": "confidence, calibrated" if calibrate else "confidence, the network's own",
            "temperature": state.calibration.temperature if calibrate else 1.0,
            "ECE": ece(table["ginseng_confidence"], is_right),
            "NLL": -np.log(np.maximum(of_truth, 1e-12)).mean(),
        }
    if python:
        found = celltypist(python, train, test)[is_known]
        is_right = found["type"].to_numpy() == truth
        yield {"method": "confidence, CellTypist", "ECE": ece(found["confidence"].clip(0, 1), is_right)}
    for target in (0.05, 0.1):
        table = annotated(state, known, target_error=target)
        is_wrong = table["ginseng_cell_type"].astype(str).to_numpy() != truth
        is_kept = (table["ginseng_status"] == "assigned").to_numpy()
        error = is_wrong[is_kept].mean() if is_kept.any() else 0.0
        told = {"error of all": is_wrong.mean(), "error": error, "assigned": is_kept.mean()}
        yield {"method": f"target error {target}", **told, "error within target": float(error <= target)}
        table = annotated(state, known, class_error=target, novel_error=1e-9)
        sets = [
            set((candidates or label).split("; "))
            for candidates, label in zip(table["ginseng_candidates"], table["ginseng_cell_type"], strict=True)
        ]
        is_in = np.array([name in may_be for name, may_be in zip(truth, sets, strict=True)])
        n_calibration = pd.Series(state.output_labels[state.calibration.labels]).value_counts()
        coverage = {
            name: is_in[truth == name].mean()
            for name in n_calibration.index[n_calibration >= 50]
            if (truth == name).sum() >= 20
        }
        yield {
            "method": f"class error {target}",
            "one type only": np.mean([len(may_be) == 1 for may_be in sets]),
            "types covered": np.mean([share >= 1 - target - 0.02 for share in coverage.values()]),
            "least coverage": min(coverage.values()),
            "coverage": coverage,
            "cells": {name: int((truth == name).sum()) for name in coverage},
        }


def pooled_coverage(results: pd.DataFrame) -> pd.DataFrame:
    """Share of the cells of each type, over all cases, whose types have the right one among them."""
    rows = [
        {"question": row.question, "method": row.method, "type": name, "in": share * n, "n": n}
        for row in results.itertuples()
        for (name, share), n in zip(row.coverage.items(), row.cells.values(), strict=True)
    ]
    pooled = pd.DataFrame(rows).groupby(["question", "method", "type"]).sum()
    return (pooled["in"] / pooled["n"]).unstack("method")


def studies(folder: Path) -> Iterator[tuple[str, ad.AnnData, ad.AnnData]]:
    """Kang and PBMC 3k with the genes of both, and types named alike."""
    kang, pbmc = (ad.read_h5ad(folder / name) for name in ("pbmc_kang_ctrl_8donors.h5ad", "pbmc3k.h5ad"))
    pbmc.obs["cell_type"] = pbmc.obs["cell_type"].astype(str).map(COARSE)
    pbmc.var_names_make_unique()
    common = kang.var_names.intersection(pbmc.var_names, sort=False)
    pbmc.obs["donor"] = "pbmc3k"
    yield "Kang to PBMC 3k", kang[:, common], pbmc[:, common]
    yield "PBMC 3k to Kang", pbmc[:, common], kang[:, common]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--celltypist", help="python of the environment with CellTypist")
    parser.add_argument("--questions", nargs="*", default=["novelty", "confidence", "studies"])
    parser.add_argument("--sets", nargs="*", default=["Baron", "Kang"], choices=["Baron", "Kang"])
    parser.add_argument("--cases", nargs="*", help="ends of the names of cases, such as donors; by default all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    arguments = parser.parse_args()
    python, found = arguments.celltypist, []

    def tell(question: str, case: str, seed: int, results: Iterator[dict]) -> None:
        if arguments.cases and not any(case.endswith(name) for name in arguments.cases):
            return
        for result in results:
            found.append({"question": question, "case": case, "seed": seed, **result})
            print(json.dumps(found[-1], default=float), flush=True)

    for seed in arguments.seeds:
        for name in arguments.sets:
            adata = ad.read_h5ad(arguments.folder / FILES[name])
            obs = adata.obs
            obs["cell_type"], obs["donor"] = obs["cell_type"].astype(str), obs["donor"].astype(str)
            sizes = obs["cell_type"].value_counts()
            for donors in HELD_OUT[name] if "novelty" in arguments.questions else []:
                for left_out in sizes.index[sizes >= 40]:
                    case = f"{name} without {' '.join(donors)}, {left_out}"
                    tell(
                        f"novelty, split {'ab'[HELD_OUT[name].index(donors)]}",
                        case,
                        seed,
                        novelty(adata, donors, left_out, seed, python),
                    )
            for donor in sorted(obs["donor"].unique()) if "confidence" in arguments.questions else []:
                is_test = (obs["donor"] == donor).to_numpy()
                tell("confidence", f"{name}, {donor}", seed, between(adata[~is_test], adata[is_test], seed, python))
        if "studies" in arguments.questions:
            for case, train, test in studies(arguments.folder):
                tell("studies", case, seed, between(train, test, seed, python))
    results = pd.DataFrame(found)
    figures = results.drop(columns=["case", "seed", "coverage", "cells"], errors="ignore")
    print(figures.groupby(["question", "method"]).agg(["mean", "min", "max"]).round(3).to_string())
    if "coverage" in results:
        print(pooled_coverage(results.dropna(subset="coverage")).round(3).to_string())


if __name__ == "__main__":
    main()
