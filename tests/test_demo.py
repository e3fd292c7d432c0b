import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from typer.testing import CliRunner

from ginseng import demo, load_model
from ginseng.cli import app
from tests.conftest import simulate

FILES = ["annotated.h5ad", "confusion.png", "model.h5", "umap.png"]


def test_counts_are_whole_and_give_back_what_scanpy_has():
    adata, reduced = demo.pbmc_counts(), sc.datasets.pbmc68k_reduced()
    assert (adata.X.data == np.round(adata.X.data)).all()
    scaled = adata.X.toarray() / reduced.obs["n_counts"].to_numpy()[:, None] * 1e4
    np.testing.assert_allclose(np.log1p(scaled), reduced.raw.X.toarray(), atol=1e-3)


def test_the_demo(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    words = lines[-1].split()
    assert words[0::2] == ["accuracy", "macro-F1", "on", "held-out"]
    assert float(words[1]) > 0.7
    assert float(words[3]) > 0.55
    assert words[-3:] == ["233", "held-out", "cells"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == FILES
    annotated = ad.read_h5ad(tmp_path / "demo" / "annotated.h5ad")
    right = annotated.obs["bulk_labels"].astype(str) == annotated.obs["ginseng_cell_type"].astype(str)
    assert right.mean() == pytest.approx(float(words[1]), abs=1e-3)
    assert annotated.obsm["X_umap"].shape == (233, 2)
    assert load_model(tmp_path / "demo" / "model.h5").n_classes == 10


def test_the_demo_on_one_s_own_file(tmp_path):
    simulate(n_cells=150).write_h5ad(tmp_path / "mine.h5ad")
    options = ["--data", str(tmp_path / "mine.h5ad"), "--label", "cell_type", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["demo", *options, "--genes", "20", "--epochs", "8", "-q"])
    assert result.exit_code == 0, result.output
    assert "on 49 held-out cells" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_too_few_cells_are_refused_before_training(tmp_path):
    simulate(n_cells=30).write_h5ad(tmp_path / "mine.h5ad")
    options = ["--data", str(tmp_path / "mine.h5ad"), "--label", "cell_type", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 3
    assert "A third of 30 cells is too few" in result.output
    assert not (tmp_path / "out").exists()


def test_the_label_is_needed_and_named(tmp_path):
    simulate().write_h5ad(tmp_path / "mine.h5ad")
    result = CliRunner().invoke(app, ["demo", "--data", str(tmp_path / "mine.h5ad")])
    assert result.exit_code == 2
    assert "--data needs --label" in result.output
    result = CliRunner().invoke(app, ["demo", "--data", str(tmp_path / "mine.h5ad"), "--label", "celltype"])
    assert "did you mean 'cell_type'" in result.output
