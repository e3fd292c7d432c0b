"""Does confidence mean what it says, and are types that were never seen told apart? On donors and types left out.

    python benchmarks/trust.py --folder DATA --celltypist CT/bin/python

`--folder` is that of `accuracy.py`, and so are the settings ("1,000 markers, others", ten epochs). Of the training
donors of each case whole ones are left out in turn, in at most five folds: the networks of the folds answer for the
cells of the donors that they have not seen, and all that is calibrated is calibrated on these.

- novelty: each type of Kang and Baron with 40 cells or more is left out of training in turn, with some donors. AUROC
  of its cells (of all donors) against those of the other types of the donors left out; how many of the latter are
  called novel at 5 %; and whether the withheld type, and each of the others with 20 cells or more, is as a cluster.
- confidence: each donor is left out in turn. ECE (15 equal-mass bins) and NLL before and after.
- decisions: in the same cases, error and coverage of the cells kept by `target_error`; and whether the sets of types
  hold the right one, by type, where there are 50 calibration cells and 20 to test.
- studies: from PBMC 3k to Kang and back; reported, not promised.

`--celltypist` adds CellTypist's confidence, trained on the same genes. Prints a JSON line for each result, and tables.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from accuracy import COARSE, trained, write
from scipy import special, stats
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score

from ginseng import GinsengClassifierState, GinsengDataset
from ginseng.model.annotator import Annotator
from ginseng.model.forward import Forward
from ginseng.utils.counts import Counts
from ginseng.utils.devices import Devices
from ginseng.utils.names import GeneNames, names_by_place

SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity
NOVEL_CLUSTER = 0.75  # mean novelty of its cells above which a cluster is called novel
FEWEST = 20  # calibration cells of a type; types with fewer share theirs
OURS = "1,000 markers, others"
HELD_OUT = {"Kang": ["107", "1256", "1016"], "Baron": ["human4"]}

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


@dataclass
class Answers:
    """What a network answers for cells, beside the truth: codes of `labels`, -1 for a type that it does not know."""

    logits: np.ndarray
    truth: np.ndarray
    donors: np.ndarray
    labels: list[str]

    def __getitem__(self, chosen: np.ndarray) -> "Answers":
        return Answers(self.logits[chosen], self.truth[chosen], self.donors[chosen], self.labels)

    @property
    def is_right(self) -> np.ndarray:
        """Whether the likeliest type is the true one."""
        return self.logits.argmax(axis=1) == self.truth


def answers(state: GinsengClassifierState, adata: ad.AnnData, labels: list[str] | None = None) -> Answers:
    """Logits of `labels`; those of types that the network does not know are its least ones."""
    annotator, counts = Annotator.of(state), Counts(adata, None)
    genes = GeneNames(annotator.genes, annotator.second_names).match(names_by_place(counts.var, None))
    module = annotator.lacking(genes.is_lacking).module
    forward = Forward(module, 256, "float32", Devices(None, alone=True), None)
    logits = forward(counts, genes, len(annotator.labels), silent=True).logits.astype(np.float64)
    known = list(map(str, annotator.labels))
    labels = known if labels is None else labels
    logits = np.column_stack([logits[:, known.index(name)] if name in known else logits.min(1) for name in labels])
    types = adata.obs["cell_type"].astype(str)
    truth = np.where(types.isin(known), pd.Index(labels).get_indexer(types), -1)
    return Answers(logits, truth, adata.obs["donor"].astype(str).to_numpy(), labels)


def donor_folds(donors: pd.Series, most: int = 5) -> Iterator[np.ndarray]:
    """Which cells each fold leaves out: whole donors, the largest first, each to the fold with fewest cells."""
    sizes = donors.value_counts()
    folds: list[list[str]] = [[] for _ in range(min(most, len(sizes)))]
    for donor in sizes.index:
        min(folds, key=lambda fold: sizes[fold].sum()).append(donor)
    for fold in folds:
        yield donors.isin(fold).to_numpy()


@dataclass
class Case:
    """A network, and what the networks of the folds answer for the donors that they have not seen."""

    state: GinsengClassifierState
    training: Answers
    unseen: Answers
    unseen_distance: np.ndarray
    holdout: Answers


def case_of(train: ad.AnnData, seed: int) -> Case:
    def network(adata: ad.AnnData) -> tuple[GinsengClassifierState, np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            state = trained(Path(folder), OURS, adata.copy(), seed)
            return state, GinsengDataset(Path(folder) / "cells.zarr").test_idx

    state, held_out = network(train)
    training = answers(state, train)
    is_held_out = np.isin(np.arange(train.n_obs), held_out)
    if train.obs["donor"].nunique() == 1:
        folds = [(training, is_held_out)]
    else:
        masks = donor_folds(train.obs["donor"].astype(str))
        folds = [(answers(network(train[~is_out])[0], train, training.labels), is_out) for is_out in masks]
    parts = [of_fold[is_out & (of_fold.truth >= 0)] for of_fold, is_out in folds]
    geometries = [Geometry.of(of_fold[~is_out & (of_fold.truth >= 0)]) for of_fold, is_out in folds]
    distances = [geometry.distance(part.logits) for geometry, part in zip(geometries, parts, strict=True)]
    logits, truth, donors = (np.concatenate([getattr(p, n) for p in parts]) for n in ("logits", "truth", "donors"))
    unseen = Answers(logits, truth, donors, training.labels)
    return Case(state, training, unseen, np.concatenate(distances), training[is_held_out])


@dataclass
class Geometry:
    """Where the training cells of each type lie in the space of the logits."""

    means: np.ndarray
    whitening: np.ndarray

    @classmethod
    def of(cls, cells: Answers) -> "Geometry":
        """Means of the types that are there, and what makes the shrunk covariance within types the identity."""
        n_classes = cells.logits.shape[1]
        there = np.unique(cells.truth)
        means = np.stack([cells.logits[cells.truth == code].mean(axis=0) for code in there])
        residual = cells.logits - means[np.searchsorted(there, cells.truth)]
        covariance = residual.T @ residual / len(residual)
        isotropic = np.trace(covariance) / n_classes * np.eye(n_classes)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * isotropic
        return cls(means, np.linalg.cholesky(np.linalg.inv(shrunk)))

    def distance(self, logits: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance to the nearest mean."""
        return np.min([np.square((logits - mean) @ self.whitening).sum(axis=1) for mean in self.means], axis=0)


def novelty_of(unseen: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The share of cells of unseen donors that are less far from training than each cell."""
    return np.searchsorted(np.sort(unseen), distance) / (len(unseen) + 1)


def nll(logits: np.ndarray, truth: np.ndarray) -> float:
    return -special.log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean()


def temperature_of(cells: Answers) -> float:
    found = minimize_scalar(lambda t: nll(cells.logits / np.exp(t), cells.truth), bounds=(-3, 3), method="bounded")
    return float(np.exp(found.x))


def calibration_error(confidence: np.ndarray, is_right: np.ndarray, n_bins: int = 15) -> float:
    bins = np.array_split(np.argsort(confidence, kind="stable"), n_bins)
    return sum(len(cells) * abs(confidence[cells].mean() - is_right[cells].mean()) for cells in bins) / len(is_right)


def pooled_threshold(confidence: np.ndarray, is_right: np.ndarray, target: float) -> float:
    """The loosest threshold whose 95 % Clopper-Pearson bound of the error among kept cells is below the target."""
    order = np.argsort(-confidence)
    wrong, kept = np.cumsum(~is_right[order]), np.arange(1, len(order) + 1)
    bound = np.where(wrong < kept, stats.beta.ppf(0.95, wrong + 1, np.maximum(kept - wrong, 1)), 1.0)
    good = np.flatnonzero(bound < target)
    return confidence[order[good[-1]]] if good.size else np.inf


def donor_threshold(confidence: np.ndarray, is_right: np.ndarray, donors: np.ndarray, target: float) -> float:
    """The loosest threshold at which the 95 % prediction bound of the error in one more donor is at most the target."""
    for threshold in np.unique(np.quantile(confidence, np.linspace(0, 1, 400))):
        is_kept = confidence >= threshold
        errors = pd.Series(~is_right[is_kept]).groupby(donors[is_kept]).mean().to_numpy()
        n = len(errors)
        if n < 2:
            break
        bound = errors.mean() + stats.t.ppf(0.95, n - 1) * errors.std(ddof=1) * np.sqrt(1 + 1 / n)
        if bound <= target:
            return threshold
    return np.inf


def p_values(unseen: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each type, the share of its unseen cells that are at least as unlikely; types with few share theirs."""
    counts = np.bincount(truth, minlength=scores.shape[1])
    of_truth = unseen[np.arange(len(truth)), truth]
    pooled = of_truth[counts[truth] < FEWEST]
    pooled = pooled if len(pooled) >= FEWEST else of_truth
    found = np.empty_like(scores)
    for code, count in enumerate(counts):
        own = np.sort(of_truth[truth == code] if count >= FEWEST else pooled)
        found[:, code] = (1 + len(own) - np.searchsorted(own, scores[:, code])) / (len(own) + 1)
    return found


def auroc(seen: np.ndarray, novel: np.ndarray) -> float:
    return roc_auc_score(np.repeat([0, 1], [len(seen), len(novel)]), np.concatenate([seen, novel]))


def celltypist(python: str, train: ad.AnnData, test: ad.AnnData) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), train, test)
        done = subprocess.run([python, "-c", CELLTYPIST, folder], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return pd.read_csv(Path(folder) / "confidence.csv", dtype={"type": str})


def novelty(adata: ad.AnnData, name: str, left_out: str, seed: int, python: str | None) -> Iterator[dict]:
    is_test, is_left_out = adata.obs["donor"].isin(HELD_OUT[name]), adata.obs["cell_type"] == left_out
    train, test = adata[~is_test & ~is_left_out], adata[is_test | is_left_out]
    case = case_of(train, seed)
    cells = answers(case.state, test, case.training.labels)
    is_novel = (test.obs["cell_type"] == left_out).to_numpy()
    is_seen = ~is_novel & (cells.truth >= 0)
    distance = Geometry.of(case.training).distance(cells.logits)
    probabilities = special.softmax(cells.logits, axis=1)
    scores = {
        "novelty": novelty_of(case.unseen_distance, distance),
        "energy": -special.logsumexp(cells.logits, axis=1),
        "largest probability": -probabilities.max(axis=1),
    }
    if python:
        scores["CellTypist"] = -celltypist(python, train, test)["confidence"].to_numpy()
    for method, values in scores.items():
        yield {"method": method, "AUROC": auroc(values[is_seen], values[is_novel])}
    share = scores["novelty"]
    of_new_donors = is_novel & test.obs["donor"].isin(HELD_OUT[name]).to_numpy()
    withheld = of_new_donors if of_new_donors.sum() >= 20 else is_novel
    types = [is_seen & (cells.truth == code) for code in range(len(cells.labels))]
    of_types = [share[one].mean() for one in types if one.sum() >= 20]
    yield {
        "method": "at 5 %, and as clusters",
        "seen cells called novel": (share[is_seen] > 0.95).mean(),
        "withheld cells called novel": (share[withheld] > 0.95).mean(),
        "mean novelty of withheld": share[withheld].mean(),
        "withheld type called novel": float(share[withheld].mean() > NOVEL_CLUSTER),
        "share of seen types called novel": np.mean(np.array(of_types) > NOVEL_CLUSTER),
    }


def told(case: Case, cells: Answers, of_celltypist: pd.DataFrame | None) -> Iterator[dict]:
    """Confidence of cells and what is decided by it; cells of types that were not trained on are left out."""
    is_known = cells.truth >= 0
    cells = cells[is_known]
    ways = {"raw": 1.0, "holdout": temperature_of(case.holdout), "donors": temperature_of(case.unseen)}
    for way, temperature in ways.items():
        confidence = special.softmax(cells.logits / temperature, axis=1).max(axis=1)
        yield {
            "method": f"confidence, {way}",
            "temperature": temperature,
            "ECE": calibration_error(confidence, cells.is_right),
            "NLL": nll(cells.logits / temperature, cells.truth),
        }
    if of_celltypist is not None:
        kept = of_celltypist[is_known]
        is_right = kept["type"].to_numpy() == np.asarray(cells.labels)[cells.truth]
        yield {"method": "confidence, CellTypist", "ECE": calibration_error(kept["confidence"].to_numpy(), is_right)}
    unseen = case.unseen
    of_unseen = special.softmax(unseen.logits / ways["donors"], axis=1)
    of_cells = special.softmax(cells.logits / ways["donors"], axis=1)
    for target in (0.05, 0.1):
        likeliest = of_unseen.max(axis=1)
        for way, threshold in (
            ("pooled", pooled_threshold(likeliest, unseen.is_right, target)),
            ("over donors", donor_threshold(likeliest, unseen.is_right, unseen.donors, target)),
        ):
            is_kept = of_cells.max(axis=1) >= threshold
            error = (~cells.is_right[is_kept]).mean() if is_kept.any() else 0.0
            told_of = {"error": error, "kept": is_kept.mean(), "error within target": float(error <= target)}
            yield {"method": f"target error {target}, {way}", **told_of}
        in_set = p_values(1 - of_unseen, unseen.truth, 1 - of_cells) > target
        in_set[np.arange(len(in_set)), of_cells.argmax(axis=1)] = True
        counts = np.bincount(unseen.truth, minlength=len(cells.labels))
        coverage = {
            cells.labels[code]: in_set[cells.truth == code, code].mean()
            for code in np.flatnonzero(counts >= 50)
            if (cells.truth == code).sum() >= 20
        }
        yield {"method": f"sets {target}", "single": (in_set.sum(axis=1) == 1).mean(), "coverage": coverage}


def between(train: ad.AnnData, test: ad.AnnData, seed: int, python: str | None) -> Iterator[dict]:
    """Confidence and decisions from cells to others; a single donor calibrates on its holdout."""
    case = case_of(train, seed)
    of_celltypist = celltypist(python, train, test) if python else None
    yield from told(case, answers(case.state, test, case.training.labels), of_celltypist)


def studies(folder: Path) -> Iterator[tuple[str, ad.AnnData, ad.AnnData]]:
    """Kang and PBMC 3k with the genes of both, and types named alike."""
    kang, pbmc = (ad.read_h5ad(folder / name) for name in ("pbmc_kang_ctrl_8donors.h5ad", "pbmc3k.h5ad"))
    pbmc.obs["cell_type"] = pbmc.obs["cell_type"].astype(str).map(COARSE)
    pbmc.var_names_make_unique()
    common = kang.var_names.intersection(pbmc.var_names, sort=False)
    yield "Kang to PBMC 3k", kang[:, common], pbmc[:, common]
    yield "PBMC 3k to Kang", pbmc[:, common], kang[:, common]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--celltypist", help="python of the environment with CellTypist")
    parser.add_argument("--questions", nargs="*", default=["novelty", "confidence", "studies"])
    parser.add_argument("--sets", nargs="*", default=["Baron", "Kang"], choices=["Baron", "Kang"])
    parser.add_argument("--cases", nargs="*", help="ends of the names of cases, such as donors; by default all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    files = {"Kang": "pbmc_kang_ctrl_8donors.h5ad", "Baron": "pancreas_baron_human_sub.h5ad"}
    found = []

    def tell(question: str, case: str, results: Iterator[dict]) -> None:
        if arguments.cases and not any(case.endswith(name) for name in arguments.cases):
            return
        for result in results:
            found.append({"question": question, "case": case, **result})
            print(json.dumps(found[-1], default=float), flush=True)

    for name in arguments.sets:
        adata = ad.read_h5ad(arguments.folder / files[name])
        obs = adata.obs
        obs["cell_type"], obs["donor"] = obs["cell_type"].astype(str), obs["donor"].astype(str)
        sizes = obs["cell_type"].value_counts()
        for left_out in sizes.index[sizes >= 40] if "novelty" in arguments.questions else []:
            tell("novelty", f"{name}, {left_out}", novelty(adata, name, left_out, arguments.seed, arguments.celltypist))
        for donor in sorted(obs["donor"].unique()) if "confidence" in arguments.questions else []:
            is_test = (obs["donor"] == donor).to_numpy()
            results = between(adata[~is_test], adata[is_test], arguments.seed, arguments.celltypist)
            tell("confidence", f"{name}, {donor}", results)
    if "studies" in arguments.questions:
        for case, train, test in studies(arguments.folder):
            tell("studies", case, between(train, test, arguments.seed, arguments.celltypist))
    table = pd.DataFrame(found).drop(columns="coverage", errors="ignore")
    print(table.drop(columns="case").groupby(["question", "method"]).agg(["mean", "min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
