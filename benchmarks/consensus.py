"""Does a consensus over clusters help? Soft averages of several weights, and the majority vote, beside each cell alone.

    python benchmarks/consensus.py --folder DATA [--kept FOLDER]

`--folder` holds pbmc_kang_ctrl_8donors.h5ad, pancreas_baron_human_sub.h5ad and pbmc3k.h5ad. Each donor of Kang and of
Baron is held out in turn; PBMC 3k and Kang annotate each other. The model is "1,000 markers, others" of accuracy.py.
Clusters of the held-out cells are made by Leiden, on principal components of their log-normalised counts and on their
logits, with the resolution of scanpy's default ("usual") and with that of `ginseng.cluster.leiden` ("small"). `--kept`
holds probabilities and clusters between runs. Prints a JSON line for each case, clusters and way, and a table.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from accuracy import parts, trained, write

from ginseng import classify
from ginseng.cluster import leiden
from ginseng.metrics import score
from ginseng.model.consensus import consensus

WEIGHTS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
POWERS = (0.5, 1.0)  # of the mean of the cluster, in a product of experts


def cases(folder: Path) -> Iterator[tuple[str, str, ad.AnnData, ad.AnnData]]:
    """Group, name, training and test part."""
    for group, file in (("Kang", "pbmc_kang_ctrl_8donors"), ("Baron", "pancreas_baron_human_sub")):
        adata = ad.read_h5ad(folder / f"{file}.h5ad")
        donor = adata.obs["donor"].astype(str).to_numpy()
        for name in np.unique(donor):
            yield group, f"{group}, donor {name}", adata[donor != name], adata[donor == name]
    for name, train, test in parts(folder, 0):
        if " to " in name:
            yield name, name, train, test


def told(folder: Path, train_part: ad.AnnData, test_part: ad.AnnData) -> pd.DataFrame:
    """True type, clusters and probabilities of the cells of the test part."""
    train, test = write(folder, train_part, test_part)
    state = trained(folder, "1,000 markers, others", train, 0)
    table = classify(state, test, return_table=True, silent=True, store_probs=True)[list(state.output_labels)]
    logits = np.log(np.maximum(table.to_numpy(), 1e-12))
    sc.pp.normalize_total(test, target_sum=1e4)
    sc.pp.log1p(test)
    sc.pp.highly_variable_genes(test, n_top_genes=2000)
    sc.pp.pca(test, n_comps=50)
    table.insert(0, "true", test.obs["cell_type"].to_numpy())
    for space, points in (("PCA", test.obsm["X_pca"]), ("logits", logits - logits.mean(axis=1, keepdims=True))):
        table.insert(1, f"{space}, small", np.asarray(leiden(points)))
        table.insert(1, f"{space}, usual", np.asarray(leiden(points, resolution=1.0)))
    return table


def labels_by_way(probabilities: np.ndarray, clusters: pd.Categorical) -> Iterator[tuple[str, np.ndarray]]:
    yield "each cell", probabilities.argmax(axis=1)
    yield "majority", consensus(probabilities, clusters, "majority").codes
    for weight in WEIGHTS:
        yield f"soft, weight {weight:g}", consensus(probabilities, clusters, weight=weight).codes
    means = pd.DataFrame(probabilities).groupby(clusters.codes).transform("mean").to_numpy()
    for power in POWERS:
        yield f"product, power {power:g}", (probabilities * means**power).argmax(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--kept", type=Path, help="folder of the answers of a run before")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for group, case, train, test in cases(arguments.folder):
            kept = (arguments.kept or Path(scratch)) / f"{case}.csv"
            if not kept.exists():
                with tempfile.TemporaryDirectory() as name:
                    told(Path(name), train, test).to_csv(kept)
            table = pd.read_csv(kept, index_col=0)
            labels = table.columns[5:].to_numpy()
            for clusters in table.columns[1:5]:
                of_cells = pd.Categorical(table[clusters])
                for way, codes in labels_by_way(table[labels].to_numpy(np.float32), of_cells):
                    scores = score(table["true"].to_numpy(), labels[codes])
                    result = {"accuracy": scores.accuracy, "macro-F1": scores.macro_f1}
                    found.append({"group": group, "clusters": clusters, "way": way, **result})
                    n_clusters = len(of_cells.categories)
                    print(json.dumps({"case": case, **found[-1], "n_clusters": n_clusters}), flush=True)
    table = pd.DataFrame(found)
    for value in ("accuracy", "macro-F1"):
        by_group = table.groupby(["group", "clusters", "way"])[value].mean().unstack("way")
        print(value, by_group.round(4).T.to_string(), by_group.mean().round(4).to_string(), sep="\n")


if __name__ == "__main__":
    main()
