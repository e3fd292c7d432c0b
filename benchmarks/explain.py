"""Does a classifier pay attention to known markers? Their rank among its genes, by what they contribute to their type.

    python benchmarks/explain.py --folder DATA

`--folder` holds pbmc3k.h5ad and pancreas_baron_human_sub.h5ad. Ranks, of 1,001 inputs, are by integrated gradients, as
`ginseng.explain` tells them, and by gate x value x head at the position of the gene. Prints a JSON line for
each marker.
"""

import argparse
import json
import tempfile
from pathlib import Path

import anndata as ad
import equinox as eqx
import jax
import numpy as np

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    explain,
    state_from_classifier_trainer,
)
from ginseng.utils.genes import GeneMap

MARKERS = {
    "pbmc3k.h5ad": {
        "B": ["MS4A1", "CD79A"],
        "NK": ["GNLY", "NKG7"],
        "CD14+ Mono": ["LYZ"],
        "FCGR3A+ Mono": ["FCGR3A"],
        "CD8 T": ["CD8A"],
        "DC": ["FCER1A"],
        "Platelet": ["PPBP"],
    },
    "pancreas_baron_human_sub.h5ad": {
        "beta": ["INS"],
        "alpha": ["GCG"],
        "delta": ["SST"],
        "gamma": ["PPY"],
        "acinar": ["PRSS1"],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--seed", default=123, type=int)
    arguments = parser.parse_args()
    for name, markers in MARKERS.items():
        adata = ad.read_h5ad(arguments.folder / name)
        with tempfile.TemporaryDirectory() as folder:
            dataset = GinsengDataset.create(
                Path(folder) / "x.zarr", adata, "cell_type", genes=1000, other_genes=True, silent=True
            )
            trainer = GinsengClassifierTrainer(
                dataset, GinsengClassifierTrainerSettings(holdout_fraction=0.0, seed=arguments.seed)
            )
            trainer.fit(10, silent=True)
        state = state_from_classifier_trainer(trainer)
        table = explain(state, adata, n_genes=None, silent=True)
        types = classify(state, adata, return_table=True, silent=True)["ginseng_cell_type"]
        counts = GeneMap.matching(adata.var_names, state.genes).of(adata.X.tocsr()).toarray().astype(np.float32)
        network = eqx.nn.inference_mode(state.networks[0])
        gated = np.asarray(jax.lax.map(network.features, counts, batch_size=256))
        for kind, genes in markers.items():
            by_gradient = table.loc[table["group"] == kind, "gene"].tolist()
            nth = list(state.output_labels).index(kind)
            by_gate = np.asarray(network.head.weight)[nth] * gated[types == kind].mean(axis=0)
            order = np.asarray(state.genes)[np.argsort(-by_gate)].tolist()
            for gene in genes:
                ranks = {"explain": by_gradient.index(gene) + 1, "gate x value x head": order.index(gene) + 1}
                print(json.dumps({"data": name, "type": kind, "gene": gene, **ranks}), flush=True)


if __name__ == "__main__":
    main()
