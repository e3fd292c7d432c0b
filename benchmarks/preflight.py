"""Whether every form that counts come in is named rightly, with no false alarm on raw counts.

    python benchmarks/preflight.py --folder DATA

Each form is made, in float32, of PBMC 3k, Kang, Baron and of 10x files, and named by `ginseng.utils.forms.form_of` from
250 cells, and of the raw counts of single cells and small panels also. Prints a table, what was named wrongly, and what
a look costs on 20,000 cells x 2,000 genes, in memory and on disk. Exits with 1 if any was named wrongly.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from ginseng.data.preflight import checked_counts
from ginseng.data.readers import opened_counts, read_adata
from ginseng.utils.counts import Counts
from ginseng.utils.forms import form_of

SETS = {
    "PBMC 3k": "pbmc3k.h5ad",
    "Kang": "pbmc_kang_ctrl_8donors.h5ad",
    "Baron": "pancreas_baron_human_sub.h5ad",
    "10x v3": "10x/v3/filtered_feature_bc_matrix",
}
FUNCTIONS = {"log1p": np.log1p, "log2(x + 1)": lambda x: np.log2(x + 1), "log10(x + 1)": lambda x: np.log10(x + 1)}
SUBSET = "normalised counts whose totals differ, as of a subset of genes"


def applied(function, x: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((function(x.data).astype(np.float32), x.indices, x.indptr), x.shape)


def normalised(x: sparse.csr_matrix, total: float | None) -> sparse.csr_matrix:
    return sc.pp.normalize_total(ad.AnnData(x.copy()), target_sum=total, copy=True).X


def scaled(x: sparse.csr_matrix, **options) -> sparse.csr_matrix:
    return sparse.csr_matrix(sc.pp.scale(ad.AnnData(x.toarray()), max_value=10, copy=True, **options).X)


def forms(counts: sparse.csr_matrix, rng: np.random.Generator) -> Iterator[tuple[str, sparse.csr_matrix, str]]:
    """What each form is called here, its values, and how it shall be named."""
    some = np.sort(rng.choice(counts.shape[1], counts.shape[1] // 3, replace=False))
    totals = np.asarray(counts.sum(axis=1)).ravel()
    median = float(np.median(totals[totals > 0]))
    shown = f"{median:,.6g}"
    yield "raw", counts, "raw counts"
    yield "raw, a third of the genes", counts[:, some], "raw counts"
    yield "raw, 30 genes", counts[:, some[:30]], "raw counts"
    yield "raw, one cell", counts[:1], "raw counts"
    yield "binary", applied(np.sign, counts), "only 0 and 1"
    for label, total, name in (("1e4", 1e4, "10,000"), ("1e6", 1e6, "1,000,000"), ("the median", None, shown)):
        x = normalised(counts, total)
        yield f"normalised to {label}", x, f"counts normalised to {name} per cell"
        for function, apply in FUNCTIONS.items():
            yield f"{function} of {label}", applied(apply, x), f"{function} of counts normalised to {name} per cell"
    to_1e4 = normalised(counts, 1e4)
    logarithms = applied(np.log1p, to_1e4)
    for function, apply in FUNCTIONS.items():
        yield f"{function} of raw", applied(apply, counts), f"{function} of raw counts"
        yield f"{function}, a third of the genes", applied(apply, to_1e4)[:, some], f"{function} of {SUBSET}"
    yield "normalised, a third of the genes", to_1e4[:, some], SUBSET
    yield "sqrt of raw", applied(np.sqrt, counts), "sqrt of raw counts"
    yield "sqrt of 1e4", applied(np.sqrt, to_1e4), "sqrt of counts normalised to 10,000 per cell"
    yield "log1p as float16", applied(np.float16, logarithms), ("log1p of counts normalised to 10,000 per cell")
    yield "scaled", scaled(logarithms[:, some]), "scaled or centred values"
    yield "scaled, not centred", scaled(logarithms[:, some], zero_center=False), "fractions"
    lengths = rng.lognormal(8, 1, counts.shape[1])
    tpm = normalised(sparse.csr_matrix(counts.multiply(1 / lengths), dtype=np.float32), 1e6)
    yield "TPM", tpm, "counts normalised to 1,000,000 per cell"
    yield (
        "log2(TPM + 1)",
        applied(FUNCTIONS["log2(x + 1)"], tpm),
        ("log2(x + 1) of counts normalised to 1,000,000 per cell"),
    )
    ambient = np.asarray(counts.sum(axis=0)).ravel() / counts.sum()
    corrected = counts.copy()
    of_cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    corrected.data = np.maximum(counts.data - 0.1 * totals[of_cell] * ambient[counts.indices], 0).astype(np.float32)
    yield "ambient counts subtracted", corrected, "counts with fractions, as corrections leave them"


def seconds(function, n: int = 5) -> float:
    taken = []
    for _ in range(n):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def costs() -> Iterator[str]:
    rng = np.random.default_rng(0)
    x = sparse.random(20_000, 2_000, 0.1, "csr", np.float32, rng, data_rvs=lambda n: rng.geometric(0.5, n))
    logarithms = x.copy()
    logarithms.data = np.log1p(logarithms.data)
    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("counts", x), ("logarithms", logarithms), ("dense counts", x.toarray())):
            adata = ad.AnnData(values)
            adata.write_h5ad(f"{folder}/x.h5ad")
            with opened_counts(f"{folder}/x.h5ad") as stored:
                look, open_only = [
                    [seconds(lambda each=each, made=made: made(each)) for each in (adata, stored)]
                    for made in (checked_counts, Counts)
                ]
            memory, disk = (1e3 * (with_look - without) for with_look, without in zip(look, open_only, strict=True))
            yield f"{name}: {memory:.1f} ms in memory, {disk:.1f} ms on disk"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    table, wrong = {}, []
    for of_set, path in SETS.items():
        adata = read_adata(folder / path, backed=False)
        counts = sparse.csr_matrix(adata.X[:: max(1, adata.n_obs // 250)][:250], dtype=np.float32)
        for label, x, expected in forms(counts, np.random.default_rng(0)):
            found = form_of(sparse.csr_matrix(x)).name
            table.setdefault(label, {})[of_set] = "right" if found == expected else f"WRONG: {found}"
            wrong += [(of_set, label, found, expected)] if found != expected else []
    print(pd.DataFrame(table).T.to_string())
    print(f"\n{sum(map(len, table.values())) - len(wrong)} of {sum(map(len, table.values()))} named rightly")
    for each in wrong:
        print("{}, {}: named {!r}, expected {!r}".format(*each))
    print("\nA look costs:", *costs(), sep="\n  ")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
