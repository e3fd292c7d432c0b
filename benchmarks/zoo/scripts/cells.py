"""The cells that every file of the zoo holds, the same by every NumPy."""

import numpy as np

TYPES = ("B cell", "NK cell", "T cell")
GENES = (
    "CD79A MS4A1 CD79B CD19 BANK1 HLA-DRA HLA-DQA1 CD74 TCL1A IGHM GNLY NKG7 KLRD1 KLRF1 PRF1 GZMB SPON2 FGFBP2 "
    "XCL1 NCAM1 CD3D CD3E CD3G IL7R LTB TRAC LDHB LEF1 CCR7 MAL ACTB B2M MT-CO1 MT-ND4 RPS27A RPL13 MALAT1 TMSB4X "
    "RP11-34P13.7 C1orf56"
).split()
N_CELLS = 60


def cells(n=N_CELLS, seed=0):
    """Counts (cells x genes, int64), the type and the donor of each cell, and their names."""
    rng = np.random.RandomState(seed)  # noqa: NPY002 (its stream is the same in every version)
    types = np.arange(n) % len(TYPES)
    rates = np.full((len(TYPES), len(GENES)), 0.3)
    for i in range(len(TYPES)):
        rates[i, 10 * i : 10 * i + 10] = 6.0
    rates[:, 30:] = 3.0
    counts = rng.poisson(rates[types])
    donors = np.array(["d1", "d2", "d3"])[np.arange(n) // 2 % 3]
    names = np.array(["AAAC%04d-1" % i for i in range(n)])  # noqa: UP031
    return counts, np.array(TYPES)[types], donors, names


def ensembl():
    """Identifiers in place of the names of the genes."""
    return ["ENSG%011d" % (100000 + i) for i in range(len(GENES))]  # noqa: UP031
