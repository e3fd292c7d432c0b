"""Does tuning a model help, beside training on the new cells alone, and what is forgotten? On Kang, Baron and PBMC 3k.

    python benchmarks/finetuning.py --folder DATA --celltypist CT/bin/python --reference REF/bin/python

`--folder` and `--celltypist` are those of accuracy.py; `--reference` has ginseng 0.2.1. The models are "1,000 markers,
others" of accuracy.py, tuned as `ginseng.finetune` does by default; those from scratch on the new cells alone have the
same genes and take 100 steps, or ten epochs if these are more.

- donors: a model of five of Kang's donors (the five that follow, round by seed), tuned with 200 cells of a sixth, and
  tested on the rest of its cells, every donor in turn.
- types: each type of Baron with 60 cells or more is left out of training, and added from 50 cells. Trained on 70 % of
  the other cells of three donors; tested on all cells not trained on. Old types are those with ten test cells or more;
  what they lose is the difference of their mean F1 from that of the untuned model on the old types' cells alone.
  Without the old data there are the 50 cells only, or 200 cells of old types of a fourth donor beside them.
- genes: a model of PBMC 3k tuned on Kang, and back: moved to the genes of the other study (chosen on its training
  cells), and tuned with 200 cells of it, or with all; beside a model trained there on the same cells.
- file: is a tuned model, with a type more and other genes, the same to ginseng 0.2.1?

Logistic regression and CellTypist are those of accuracy.py on markers, normalised over all genes, of the new cells
alone, and of old and new. Prints a JSON line for each case, method and seed, and tables.
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
import parity
from accuracy import COARSE, LINEAR, trained, write
from contestants import Contestant, ours

from ginseng import (
    GinsengClassifierState,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    finetune,
    load_model,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.metrics import score
from ginseng.train.finetuning import tuning_settings
from ginseng.utils.genes import OTHER_GENES

MODEL = "1,000 markers, others"
N_STEPS = 100
LEFT_OUT_FROM = 60  # cells of a type
TESTED_FROM = 10
SETTINGS: dict[str, Any] = {}  # changes to those of `finetune`


def dataset_of(adata: ad.AnnData, path: Path, **making: Any) -> GinsengDataset:
    return GinsengDataset.create(path, adata, "cell_type", silent=True, overwrite=True, **making)


def base(kept: Path, name: str, cells: ad.AnnData, seed: int) -> tuple[GinsengClassifierState, GinsengDataset]:
    """A model of some cells, and its dataset; trained once for each name."""
    folder = kept / f"{name}, seed {seed}"
    if not (folder / "model.h5").exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_model(trained(folder, MODEL, cells, seed), folder / "model.h5")
    return load_model(folder / "model.h5"), GinsengDataset(folder / "cells.zarr")


def tuned(state: GinsengClassifierState, cells: ad.AnnData, folder: Path, seed: int, **how: Any):
    """The state tuned with all of some cells."""
    making = how.pop("making", {})
    settings = tuning_settings(
        with_old="old" in how, **{"seed": seed, "holdout_fraction": 0.0, "calibrate": "none", **SETTINGS}
    )
    data = dataset_of(cells, folder / "new.zarr", **making)
    return finetune(state, data, settings, silent=True, **how).state


def from_scratch(genes: np.ndarray, cells: ad.AnnData, folder: Path, seed: int) -> GinsengClassifierState:
    """The same network, of the same genes, trained on all of some cells alone."""
    own = [name for name in genes if name != OTHER_GENES]
    data = dataset_of(cells[:, own], folder / "alone.zarr")
    settings = GinsengClassifierTrainerSettings(seed=seed, holdout_fraction=0.0, calibrate="none")
    trainer = GinsengClassifierTrainer(data, settings)
    steps = -(-cells.n_obs // settings.batch_size)
    trainer.fit(max(10, -(-N_STEPS // steps)), silent=True)
    return state_from_classifier_trainer(trainer)


def retrained(cells: ad.AnnData, seed: int) -> GinsengClassifierState:
    with tempfile.TemporaryDirectory() as folder:
        return trained(Path(folder), MODEL, cells, seed)


def labels_by(state: GinsengClassifierState, test: ad.AnnData) -> np.ndarray:
    table = classify(state, test, return_table=True, silent=True)
    return table["ginseng_cell_type"].astype(str).to_numpy()


def others(
    python: str | None, of: str, train: ad.AnnData, test: ad.AnnData, seed: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """What the linear models say, trained on some cells, and, with a seed, the network from scratch."""
    if python is None:
        return
    if seed is not None:
        yield f"from scratch, {of}", labels_by(retrained(train, seed), test)
    for method in ("logistic", "celltypist"):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), train, test)
            command = [python, "-c", LINEAR, folder, method, "markers", "all"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{method} failed: {done.stderr[-2000:]}")
            predicted = pd.read_csv(Path(folder) / "predicted.csv", dtype=str).iloc[:, 0].to_numpy()
        yield f"{method}, {of}", predicted


def joined(*parts: ad.AnnData) -> ad.AnnData:
    return ad.concat(parts, index_unique="-")


def drawn(rng: np.random.Generator, cells: np.ndarray, n_cells: int) -> np.ndarray:
    return np.sort(rng.permutation(cells)[:n_cells])


def donors(data: dict[str, ad.AnnData], seed: int, kept: Path, python: str | None) -> Iterator[dict]:
    kang = data["kang"]
    donor = kang.obs["donor"].to_numpy()
    names = np.unique(donor)
    for nth, held_out in enumerate(names):
        rest = np.roll(names, -nth - 1)[:-1]
        trained_on = np.roll(rest, -seed)[:5]
        of_donor = np.flatnonzero(donor == held_out)
        few = drawn(np.random.default_rng(seed), of_donor, 200)
        old, new, test = kang[np.isin(donor, trained_on)], kang[few], kang[np.setdiff1d(of_donor, few)]
        truth = test.obs["cell_type"].to_numpy()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            state, past = base(kept, f"Kang without {held_out}", old, seed)
            old_and_new = joined(old, new)
            answers = [
                ("untuned", labels_by(state, test)),
                ("tuned, old data", labels_by(tuned(state, new, folder, seed, old=past), test)),
                ("tuned", labels_by(tuned(state, new, folder, seed), test)),
                ("from scratch, new cells", labels_by(from_scratch(state.genes, new, folder, seed), test)),
                *others(python, "new cells", new, test),
                *others(python, "old and new", old_and_new, test, seed),
            ]
        for method, predicted in answers:
            scores = score(truth, predicted)
            yield {"case": held_out, "method": method, "accuracy": scores.accuracy, "macro-F1": scores.macro_f1}


def types(data: dict[str, ad.AnnData], seed: int, kept: Path, python: str | None) -> Iterator[dict]:
    baron = data["baron"]
    kind, donor = baron.obs["cell_type"].to_numpy(), baron.obs["donor"].to_numpy()
    sizes = pd.Series(kind).value_counts()
    for left_out in np.sort(sizes.index[sizes >= LEFT_OUT_FROM]):
        rng = np.random.default_rng(seed)
        is_new, is_elsewhere = kind == left_out, donor == "human2"
        few = drawn(rng, np.flatnonzero(is_new), 50)
        here = pd.Series(np.flatnonzero(~is_new & ~is_elsewhere))
        shares = [drawn(rng, cells.to_numpy(), -(-7 * len(cells) // 10)) for _, cells in here.groupby(kind[here])]
        old = np.sort(np.concatenate(shares))
        more = drawn(rng, np.flatnonzero(~is_new & is_elsewhere & np.isin(kind, kind[old])), 200)
        rest = np.setdiff1d(np.arange(len(kind)), np.concatenate([few, old, more]))
        test = baron[rest[is_new[rest] | np.isin(kind[rest], kind[old])]]
        truth = test.obs["cell_type"].to_numpy()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            state, past = base(kept, f"Baron without {left_out}", baron[old], seed)
            old_and_few, few_and_more = baron[np.concatenate([old, few])], baron[np.concatenate([few, more])]
            answers = [
                ("untuned", labels_by(state, test)),
                ("tuned, old data", labels_by(tuned(state, baron[few], folder, seed, old=past), test)),
                ("tuned, 50 cells only", labels_by(tuned(state, baron[few], folder, seed), test)),
                ("tuned, 50 cells and 200 of old types", labels_by(tuned(state, few_and_more, folder, seed), test)),
                ("from scratch, new cells", labels_by(from_scratch(state.genes, few_and_more, folder, seed), test)),
                *others(python, "new cells", few_and_more, test),
                *others(python, "old and new", old_and_few, test, seed),
            ]
        is_old = truth != left_out
        before = score(truth[is_old], answers[0][1][is_old])
        told = before.table.index[before.table["cells"] >= TESTED_FROM]
        for method, predicted in answers:
            after = score(truth, predicted).table["f1"]
            change = after[told] - before.table["f1"][told]
            yield {
                "case": left_out,
                "method": method,
                "new F1": after[left_out],
                "old, change of F1": change.mean(),
                "old, change of accuracy": (predicted == truth)[is_old].mean() - before.accuracy,
            }


def genes(data: dict[str, ad.AnnData], seed: int, kept: Path, python: str | None) -> Iterator[dict]:
    kang, pbmc = data["kang"], data["pbmc"]
    rng = np.random.default_rng(seed)
    of_donors = np.isin(kang.obs["donor"], rng.permutation(np.unique(kang.obs["donor"]))[:5])
    order = rng.permutation(pbmc.n_obs)
    two_thirds = np.isin(np.arange(pbmc.n_obs), order[: 2 * pbmc.n_obs // 3])
    for case, start, there, is_train in (
        ("PBMC 3k to Kang", pbmc, kang, of_donors),
        ("Kang to PBMC 3k", kang, pbmc, two_thirds),
    ):
        train, test = there[is_train], there[~is_train]
        truth = test.obs["cell_type"].to_numpy()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            state, _ = base(kept, case.split(" to ")[0], start, seed)
            untuned = labels_by(state, test)
            for n_cells in (200, train.n_obs):
                cells = train[drawn(rng, np.arange(train.n_obs), n_cells)]
                from_there = retrained(cells, seed)
                own = [gene for gene in from_there.genes if gene != OTHER_GENES]
                making = {"genes": own, "other_genes": True}
                moved = tuned(state, cells, folder, seed, genes="dataset", making=making)
                answers = [
                    ("untuned", untuned),
                    ("moved and tuned", labels_by(moved, test)),
                    ("tuned, genes of the model", labels_by(tuned(state, cells, folder, seed), test)),
                    ("from scratch", labels_by(from_scratch(from_there.genes, cells, folder, seed), test)),
                    *others(python, "new cells", cells, test),
                ]
                for method, predicted in answers:
                    scores = score(truth, predicted)
                    told = {"accuracy": scores.accuracy, "macro-F1": scores.macro_f1}
                    yield {"case": f"{case}, {n_cells if n_cells == 200 else 'all'} cells", "method": method, **told}


def file(data: dict[str, ad.AnnData], seed: int, reference: str) -> Iterator[dict]:
    """A model of PBMC 3k without the sum of the other genes, which ginseng 0.2.1 does not add up."""
    pbmc, kang = data["pbmc"], data["kang"]
    few = kang[drawn(np.random.default_rng(seed), np.arange(kang.n_obs), 500)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = pbmc[pbmc.obs["cell_type"] != "Dendritic cells"]
        state = trained(folder, "1,000 markers", known, seed)
        own = trained(folder, "500 markers", few, seed).genes
        state = tuned(state, few, folder, seed, genes="dataset", making={"genes": list(own)})
        save_model(state, folder / "tuned.h5")
        write(folder, few, few)
        tables = []
        for side in (Contestant("ginseng 0.2.1", reference), *ours(None)):
            side.run("-c", parity.ANNOTATE, folder / "tuned.h5", folder / "test.h5ad", folder / "table.csv")
            tables.append(pd.read_csv(folder / "table.csv", index_col=0))
        theirs, here = tables
        same = (theirs["ginseng_cell_type"] == here["ginseng_cell_type"]).mean()
        columns = list(state.output_labels)
        largest = np.abs(theirs[columns].to_numpy() - here[columns].to_numpy()).max()
        yield {"case": "PBMC 3k to Kang", "method": "ginseng 0.2.1", "same": same, "largest difference": largest}


def read(folder: Path) -> dict[str, ad.AnnData]:
    """The three studies, of which PBMC 3k has the names of Kang, and both the genes that they share."""
    files = {"kang": "pbmc_kang_ctrl_8donors", "baron": "pancreas_baron_human_sub", "pbmc": "pbmc3k"}
    found = {name: ad.read_h5ad(folder / f"{file}.h5ad") for name, file in files.items()}
    found["pbmc"].obs["cell_type"] = found["pbmc"].obs["cell_type"].astype(str).map(COARSE)
    found["pbmc"].var_names_make_unique()
    for adata in found.values():
        columns = adata.obs.columns.intersection(["cell_type", "donor"])
        adata.obs = adata.obs[columns].astype(str).astype(object)
    return found


def tell_differences(found: pd.DataFrame) -> None:
    """Means over seeds, by case and over all, and the worst case."""
    for question, of_question in found.groupby("question", sort=False):
        figures = of_question.drop(columns=["question", "seed"]).dropna(axis=1, how="all")
        by_case = figures.groupby(["method", "case"], sort=False).mean()
        print(question, by_case.unstack("case").round(3).T.to_string(), sep="\n")
        print(by_case.groupby("method", sort=False).agg(["mean", "min"]).round(4).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--celltypist", help="python of the environment with CellTypist and scikit-learn")
    parser.add_argument("--reference", help="python of the environment with ginseng 0.2.1")
    parser.add_argument("--questions", nargs="*", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--beside", type=int, nargs="*", default=[0], help="seeds of what is trained beside ours")
    parser.add_argument("--kept", type=Path, help="folder of the models of a run before")
    parser.add_argument("--settings", type=json.loads, default={}, help="changes to those of `finetune`, as JSON")
    arguments = parser.parse_args()
    SETTINGS.update(arguments.settings)
    data, found = read(arguments.folder), []
    with tempfile.TemporaryDirectory() as scratch:
        kept = arguments.kept or Path(scratch)
        for question in arguments.questions:
            for seed in arguments.seeds:
                python = arguments.celltypist if seed in arguments.beside else None
                if question == "file":
                    results = file(data, seed, arguments.reference) if arguments.reference else ()
                else:
                    results = QUESTIONS[question](data, seed, kept, python)
                for result in results:
                    found.append({"question": question, "seed": seed, **result})
                    print(json.dumps(found[-1], default=float), flush=True)
    tell_differences(pd.DataFrame(found))


QUESTIONS = {"donors": donors, "types": types, "genes": genes, "file": file}

if __name__ == "__main__":
    main()
