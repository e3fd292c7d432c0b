"""Which genes tell types apart in other donors and studies? Scores, numbers, and shares of variable genes.

    python benchmarks/markers.py --folder DATA --choices variable:2000 mean:1000 second:1000 mean:1000:0.2

A choice is a score of this file, a number of genes, and the share of them that are variable genes (0 if left out).
Genes are chosen on the training part of each case of `accuracy.py`, and of some more: Baron's other donors, one donor
to train on, and queries that lack a third of the genes. Then our network trains at its defaults for ten epochs; with
`--methods logistic` scikit-learn's logistic regression sees the same genes, log-normalised over these ("selected") or
over all genes ("all"); with `--methods unknown` each type in turn is left out of training, and low confidence shall
tell its cells (AUROC). Prints one JSON line for each case, choice, method and seed, and a table.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from accuracy import parts
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.metrics import score
from ginseng.utils.hvg import most_variable
from ginseng.utils.markers import Moments, effects_of, moments_of, take_turns


class Seen(NamedTuple):
    """Moments of the training cells, of their expression and of whether a gene is expressed."""

    expression: Moments
    fraction: Moments


def over_all_cells(moments: Moments) -> Moments:
    """The same without groups."""
    return Moments(moments.n_cells.sum(0)[None], moments.sums.sum(0)[None], moments.squares)


def means(moments: Moments) -> np.ndarray:
    """Mean of each type, types x genes."""
    return moments.sums.sum(0) / moments.n_cells.sum(0)[:, None]


def deviation(moments: Moments) -> np.ndarray:
    """Standard deviation within types, a little above 0."""
    n = moments.n_cells.sum(0)
    within = moments.squares - (n[:, None] * means(moments) ** 2).sum(0)
    return np.sqrt(np.maximum(within, 0) / (n.sum() - len(n)) + 0.01)


def others(of_types: np.ndarray, rank: int) -> np.ndarray:
    """For each type the largest (0), next ... mean among the other types."""
    found = np.empty_like(of_types)
    for t in range(len(of_types)):
        rest = np.sort(np.delete(of_types, t, axis=0), axis=0)[::-1]
        found[t] = rest[min(rank, len(rest) - 1)]
    return found


def mean(seen: Seen) -> np.ndarray:
    """Above the mean of all cells."""
    return effects_of(over_all_cells(seen.expression))


def median(seen: Seen) -> np.ndarray:
    """Above the mean of all cells of a group: the median over groups."""
    return effects_of(seen.expression)


def balanced(seen: Seen) -> np.ndarray:
    """Above the mean of types."""
    m = seen.expression
    return (means(m) - means(m).mean(0)) / deviation(m)


def second(seen: Seen) -> np.ndarray:
    """Above the highest of the other types."""
    m = seen.expression
    return (means(m) - others(means(m), 0)) / deviation(m)


def third(seen: Seen) -> np.ndarray:
    """Above the second highest of the other types."""
    m = seen.expression
    return (means(m) - others(means(m), 1)) / deviation(m)


def half(seen: Seen) -> np.ndarray:
    """Above the mean, and above the highest of the other types: mean of both."""
    return (mean(seen) + second(seen)) / 2


def both_signs(seen: Seen) -> np.ndarray:
    """Above or below the mean of all cells."""
    return np.abs(mean(seen))


def mean_and_second(seen: Seen) -> np.ndarray:
    """Types take two turns: with the best above the mean, and above the highest of the other types."""
    return np.concatenate([mean(seen), second(seen)])


def pairs(seen: Seen) -> np.ndarray:
    """Every pair of types takes turns: with the best genes of the one above the other."""
    m = seen.expression
    of_types = means(m)
    n = len(of_types)
    differences = (of_types[:, None] - of_types[None]) / deviation(m)
    return differences[~np.eye(n, dtype=bool)]


def mean_and_pairs(seen: Seen) -> np.ndarray:
    """Types take as many turns above the mean as they have pairs."""
    n = seen.expression.sums.shape[1]
    return np.concatenate([np.repeat(mean(seen), n - 1, axis=0), pairs(seen)])


def mean_and_nearest(seen: Seen) -> np.ndarray:
    """Types take two turns: above the mean, and above the type whose means are nearest."""
    of_types, sd = means(seen.expression), deviation(seen.expression)
    distances = (((of_types[:, None] - of_types[None]) / sd) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return np.concatenate([mean(seen), (of_types - of_types[distances.argmin(1)]) / sd])


def fewer_turns(seen: Seen) -> np.ndarray:
    """Above the mean of all cells; a type of less than 20 cells takes fewer turns, down to one of eight."""
    few = np.minimum(1, np.sqrt(seen.expression.n_cells.sum(0) / 20))
    return np.repeat(mean(seen), np.ceil(8 * few).astype(int), axis=0)


def least(seen: Seen) -> np.ndarray:
    """Above the mean of all cells of a group: the smallest over groups that have ten cells of the type."""
    m = seen.expression
    n = m.n_cells[..., None]
    above = m.sums / np.maximum(n, 1) - m.sums.sum(1, keepdims=True) / n.sum(1, keepdims=True)
    smallest = np.where(n < 10, np.inf, above).min(0) / deviation(m)
    return np.where(np.isinf(smallest), mean(seen), smallest)


def expressed(seen: Seen) -> np.ndarray:
    """Above the fraction of all cells that express the gene."""
    return mean(Seen(seen.fraction, seen.fraction))


def mean_of_both(seen: Seen) -> np.ndarray:
    """Mean of the effects on expression and on the fraction that express the gene."""
    return (mean(seen) + expressed(seen)) / 2


def largest(seen: Seen) -> np.ndarray:
    """No turns: the largest effect of any type, rare types counted less."""
    few = np.minimum(1, np.sqrt(seen.expression.n_cells.sum(0) / 20))
    return (mean(seen) * few[:, None]).max(0, keepdims=True)


def between(seen: Seen) -> np.ndarray:
    """No turns: the variance between types over that within (types weigh equally)."""
    m = seen.expression
    return (means(m).var(0) / deviation(m) ** 2)[None]


SCORES = {
    function.__name__.replace("_", "-"): function
    for function in (
        mean,
        balanced,
        second,
        third,
        half,
        both_signs,
        mean_and_second,
        pairs,
        mean_and_pairs,
        mean_and_nearest,
        fewer_turns,
        least,
        median,
        expressed,
        mean_of_both,
        largest,
        between,
    )
}


def seen_in(train: ad.AnnData) -> Seen:
    types = train.obs["cell_type"].astype("category").cat.remove_unused_categories().cat.codes.to_numpy()
    groups = train.obs["donor"].astype("category").cat.remove_unused_categories().cat.codes.to_numpy()
    x = sparse.csr_matrix(train.X)
    return Seen(
        moments_of([(len(types), x)], x.shape, types, groups, silent=True),
        moments_of([(len(types), (x > 0).astype(float))], x.shape, types, groups, target_sum=None, silent=True),
    )


def chosen(choice: str, seen: Seen, x: sparse.csr_matrix) -> np.ndarray:
    """Indices of the genes: markers first, then the most variable that are not among them."""
    name, number, share = [*choice.split(":"), "0"][:3]
    n_genes = int(number)
    taken = np.array([], dtype=int)
    if name != "variable":
        taken = take_turns(SCORES[name](seen), n_genes - round(n_genes * float(share)))
    variable = most_variable([(x.shape[0], x)], x.shape, x.shape[1], silent=True)
    return np.sort(np.concatenate([taken, variable[~np.isin(variable, taken)]])[:n_genes])


def cases(folder: Path, seed: int) -> Iterator[tuple[str, ad.AnnData, ad.AnnData]]:
    """Those of `accuracy.py`, and more donors of Baron."""
    yield from parts(folder, seed)
    baron = ad.read_h5ad(folder / "pancreas_baron_human_sub.h5ad")
    for donor in ("human1", "human2"):
        is_test = (baron.obs["donor"].astype(str) == donor).to_numpy()
        yield f"Baron, donor {donor[-1]}", baron[~is_test], baron[is_test]
    is_train = (baron.obs["donor"].astype(str) == "human3").to_numpy()
    yield "Baron, donor 3 to others", baron[is_train], baron[~is_train]


def queries(case: str, test: ad.AnnData, seed: int) -> Iterator[tuple[str, ad.AnnData]]:
    """The test cells and, for a case of each kind, three times with two thirds of the genes."""
    yield case, test
    if case in ("PBMC 3k, a third", "Baron, donor 4", "PBMC 3k to Kang"):
        for draw in range(3):
            kept = np.random.default_rng([seed, draw]).random(test.n_vars) > 1 / 3
            yield f"{case}, two thirds of the genes", test[:, kept]


def network(train: ad.AnnData, tests: Iterable[ad.AnnData], seed: int) -> list[pd.DataFrame]:
    """Types and confidence of the cells of each query by our network at its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = GinsengDataset.create(f"{folder}/cells.zarr", train, "cell_type", silent=True)
        trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(seed=seed))
        trainer.fit(epochs=10, silent=True)
        save_model(state_from_classifier_trainer(trainer), f"{folder}/model.h5")
        return [classify(f"{folder}/model.h5", test, return_table=True, silent=True) for test in tests]


def logistic(train: ad.AnnData, test: ad.AnnData, totals: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Types by logistic regression, normalised over the genes, or by given totals."""
    aligned = np.zeros((test.n_obs, train.n_vars), dtype=np.float32)
    found = train.var_names.get_indexer(test.var_names)
    aligned[:, found[found >= 0]] = test[:, found >= 0].X.toarray()
    x, y = train.X.toarray(), aligned
    of_train, of_test = totals or (x.sum(1), y.sum(1))
    x, y = (np.log1p(1e4 * part / np.maximum(n, 1e-8)[:, None]) for part, n in ((x, of_train), (y, of_test)))
    return LogisticRegression(max_iter=1000).fit(x, train.obs["cell_type"].astype(str)).predict(y)


def unknown(train: ad.AnnData, test: ad.AnnData, choice: str, seed: int) -> Iterator[tuple[str, float]]:
    """How well low confidence tells the cells of a type that was left out of training, for each of 20 cells or more."""
    of_train, of_test = (part.obs["cell_type"].astype(str).to_numpy() for part in (train, test))
    for name, n in zip(*np.unique(of_test, return_counts=True), strict=True):
        if n >= 20:
            known = train[of_train != name]
            selected = known[:, chosen(choice, seen_in(known), sparse.csr_matrix(known.X))].copy()
            (table,) = network(selected, [test], seed)
            yield name, roc_auc_score(of_test == name, 1 - table["ginseng_confidence"])


def scores_of(test: ad.AnnData, predicted: pd.Series | np.ndarray) -> dict[str, float]:
    found = score(test.obs["cell_type"].astype(str).to_numpy(), np.asarray(predicted).astype(str))
    return {"accuracy": found.accuracy, "macro-F1": found.macro_f1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--choices", nargs="+", required=True, help="score:number, or score:number:share of variable")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=("network", "logistic", "unknown"), default=["network"])
    parser.add_argument("--cases", nargs="*", help="beginnings of the names of the cases; by default all")
    arguments = parser.parse_args()
    found = []

    def report(case: str, method: str, seed: int, scores: dict[str, float]) -> None:
        found.append({"case": case, "method": method, **scores})
        print(json.dumps({**found[-1], "seed": seed}), flush=True)

    for seed in arguments.seeds:
        for case, train, test in cases(arguments.folder, seed):
            if arguments.cases and not any(case.startswith(name) for name in arguments.cases):
                continue
            x, seen = sparse.csr_matrix(train.X), seen_in(train)
            totals = tuple(np.asarray(part.X.sum(1)).ravel() for part in (train, test))
            for choice in arguments.choices:
                selected = train[:, chosen(choice, seen, x)].copy()
                if "network" in arguments.methods:
                    names, tests = zip(*queries(case, test, seed), strict=True)
                    for name, query, table in zip(names, tests, network(selected, tests, seed), strict=True):
                        report(name, choice, seed, scores_of(query, table["ginseng_cell_type"]))
                if "unknown" in arguments.methods:
                    for name, auroc in unknown(train, test, choice, seed):
                        report(f"{case}, {name} unknown", choice, seed, {"AUROC": auroc})
                if "logistic" in arguments.methods:
                    report(case, f"{choice}, logistic, selected", seed, scores_of(test, logistic(selected, test)))
                    report(case, f"{choice}, logistic, all", seed, scores_of(test, logistic(selected, test, totals)))
    table = pd.DataFrame(found).pivot_table(index="method", columns="case")
    print(table.round(3).T.to_string())


if __name__ == "__main__":
    main()
