"""Fixtures: golden numbers, simulated and real counts."""

import os
from pathlib import Path

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ginseng import GinsengDataset

REPOSITORY = Path(__file__).parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"
REAL_DATA = Path(os.environ.get("GINSENG_DATA", REPOSITORY.parent / "shared" / "data"))

jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
SUBPROCESS_ENVIRONMENT = {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PLATFORMS": "cpu",
}


@pytest.fixture(scope="session")
def golden():
    """Numbers recorded from ginseng 0.2.1 by golden/record.py."""
    with np.load(GOLDEN / "reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_tree(golden):
    """Give a recorded parameter tree by its prefix."""

    def tree(prefix):
        found = {}
        for name, value in golden.items():
            if name.startswith(f"{prefix}/"):
                _, layer, leaf = name.split("/")
                found.setdefault(layer, {})[leaf] = value
        return found

    return tree


@pytest.fixture
def real_data():
    """Give the path of a real data set, or skip the test where it is not at hand."""

    def path(name):
        if not (REAL_DATA / name).exists():
            pytest.skip(f"real data {name} not at hand; set GINSENG_DATA to the folder that holds it")
        return REAL_DATA / name

    return path


def simulate(n_cells=120, n_genes=30, n_types=3, seed=0):
    """Counts of cell types that differ enough to be learnt within a few epochs."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.4, 3.0, (4, n_genes))[:n_types]
    types = rng.integers(0, n_types, n_cells)
    counts = rng.poisson(profiles[types]).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(["B cell", "NK cell", "T cell", "γδ T cell"])[types]),
            "donor": rng.choice(["d1", "d2", "d3", "d4"], n_cells),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame({"symbol": [f"SYM{i}" for i in range(n_genes)]}, index=[f"GENE{i}" for i in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


@pytest.fixture
def adata():
    return simulate()


@pytest.fixture
def dataset(adata, tmp_path):
    return GinsengDataset.create(tmp_path / "cells.zarr", adata, "cell_type", group_key="donor", silent=True)
