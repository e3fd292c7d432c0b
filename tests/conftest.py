"""Fixtures: golden numbers, simulated and real counts."""

import os
from pathlib import Path

import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from ginseng import GinsengClassifier, GinsengClassifierState, GinsengDataset
from ginseng.cli import app

REPOSITORY = Path(__file__).parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"
REAL_DATA = Path(os.environ.get("GINSENG_DATA", REPOSITORY.parent / "shared" / "data"))

NEW_OR_TUNED = ["--epochs", "6", "--batch-size", "32", "--lr", "0.005"]
QUICK = [*NEW_OR_TUNED, "--hidden-dim", "8"]

COMPILED_FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
if COMPILED_FAST not in (_given := os.environ.get("XLA_FLAGS", "")):  # compiling takes a quarter of the time by it
    os.environ["XLA_FLAGS"] = f"{_given} {COMPILED_FAST}"
jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
SUBPROCESS_ENVIRONMENT = {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PLATFORMS": "cpu",
}


def ginseng(*args, fails=False):
    """What a command prints; `fails` may be the exit code that is expected."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == (0 if not fails else result.exit_code), result.output
    assert not fails or result.exit_code == (fails if fails is not True else result.exit_code) != 0, result.output
    return result.output


def contents(folder):
    """Every file within, but for what fills the disk."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "full"}


@pytest.fixture(scope="module", autouse=True)
def compiled_for_one_file():
    """Forget what was compiled, which few tests of another file need and which adds up to gigabytes."""
    yield
    jax.clear_caches()


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


def untrained(n_genes=30):
    """A small model of the genes that `simulate` names."""
    model = GinsengClassifier(n_genes, 3, hidden_dim=4)
    genes = [f"GENE{i}" for i in range(n_genes)]
    return GinsengClassifierState(model.params, genes, list("ABC"), [0, 1, 2], n_genes, 3, 4, True, 1e4, 0.2)


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


@pytest.fixture
def counts(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    simulate().write_h5ad(folder / "cells.h5ad")
    ginseng("fit", folder / "cells.h5ad", "--label", "cell_type", "-o", folder / "m.h5", *QUICK)
    return folder / "m.h5"
