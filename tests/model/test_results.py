"""What is told of annotated cells by `classify`, beyond their type."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from ginseng import GinsengClassifierTrainer, GinsengDataset, classify
from ginseng import state_from_classifier_trainer as state_of
from tests.conftest import simulate
from tests.train.models import QUICK

ABOVE = {"NK cell": "cytotoxic", "T cell": "cytotoxic", "cytotoxic": "lymphocyte", "B cell": "lymphocyte"}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "cells.zarr"
    dataset = GinsengDataset.create(path, simulate(600), "cell_type", silent=True)
    trainer = GinsengClassifierTrainer(dataset, QUICK.__class__(**{**vars(QUICK), "calibrate": "holdout"}))
    trainer.fit(3, silent=True)
    return state_of(trainer)


@pytest.fixture
def cells():
    adata = simulate(90)  # of the same types
    adata.obs["leiden"] = pd.Categorical(np.where(np.arange(90) % 3 == 0, "0", "1"))
    return adata


def annotated(state, cells, **options):
    classify(state, cells, silent=True, **options)
    return cells


def test_what_is_kept_survives_a_file(state, cells, tmp_path):
    annotated(state, cells, over="leiden", only=["B cell", "T cell"], hierarchy=ABOVE)
    cells.write_h5ad(tmp_path / "a.h5ad")
    kept = ad.read_h5ad(tmp_path / "a.h5ad")
    about = kept.uns["ginseng"]
    assert about["parameters"]["over"] == "leiden" and list(about["parameters"]["only"]) == ["B cell", "T cell"]
    assert len(about["model"]) == 16 and "ginseng-eqx" in about["versions"]
    assert about["preflight"]["used"] == "X"
    assert about["clusters"].index.tolist() == ["0", "1"]
    assert kept.obsm["X_ginseng"].shape == (90, 3)
    for name in ("status", "consensus", "candidates", "parent"):
        assert kept.obs[f"ginseng_{name}"].equals(cells.obs[f"ginseng_{name}"])


def test_the_embedding_tells_types_apart(state, cells):
    places = annotated(state, cells).obsm["X_ginseng"]
    truth = cells.obs["cell_type"].to_numpy()
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (truth[distances.argmin(axis=1)] == truth).mean() > 0.9
    assert places[:, 0].std() >= places[:, 1].std()


def test_only_some_types_can_be_there(state, cells):
    every = classify(state, cells, return_table=True, silent=True)
    some = classify(state, cells, return_table=True, silent=True, only=["B cell", "T cell"])
    assert (some["NK cell"] == 0).all() and set(some["ginseng_cell_type"].dropna()) <= {"B cell", "T cell"}
    kept = every[["B cell", "T cell"]].div(every[["B cell", "T cell"]].sum(axis=1), axis=0)
    sure = every["NK cell"] < 0.9
    np.testing.assert_allclose(some.loc[sure, ["B cell", "T cell"]], kept[sure], atol=1e-3)
    without = classify(state, cells, return_table=True, silent=True, exclude="NK cell")
    pd.testing.assert_frame_equal(some, without)


def test_cells_of_a_type_that_cannot_be_there_look_novel(state, cells):
    obs = annotated(state, cells, only=("B cell", "NK cell"), class_error=0.3).obs
    is_t = (obs["cell_type"] == "T cell").to_numpy()
    assert (
        (obs["ginseng_status"] == "novel")[is_t].mean() > 0.9 > 0.3 > (obs["ginseng_status"] == "novel")[~is_t].mean()
    )
    assert not obs["ginseng_candidates"].str.contains("T cell").any()


def test_one_type_can_be_there(state, cells):
    table = classify(state, cells, return_table=True, silent=True, only="T cell")
    assert (table["ginseng_cell_type"] == "T cell").all() and (table["ginseng_confidence"] == 1).all()
    assert annotated(state, cells, only="T cell").obs["ginseng_second"].isna().all()


def test_parents_never_contradict_children(state, cells):
    obs = annotated(state, cells, hierarchy=ABOVE, class_error=0.3, novel_error=0.2).obs
    above = {**ABOVE, "lymphocyte": None}
    for _, cell in obs.iterrows():
        if cell["ginseng_status"] == "novel":
            assert pd.isna(cell["ginseng_parent"])
        elif cell["ginseng_status"] == "assigned":
            assert cell["ginseng_parent"] == cell["ginseng_cell_type"]
        else:
            for node in cell["ginseng_candidates"].split("; "):
                while node != cell["ginseng_parent"]:
                    node = above[node]
    assert (obs["ginseng_status"] == "novel").any()


def test_without_a_calibration_unsure_cells_back_off(state, cells):
    obs = annotated(state, cells, hierarchy=ABOVE, calibrate=False).obs
    assert set(obs["ginseng_parent"].dropna()) <= {*ABOVE, *ABOVE.values()}
    assert "ginseng_status" not in obs and "X_ginseng" not in cells.obsm


def test_consensus_is_beside_the_types(state, cells):
    alone = classify(state, cells, return_table=True, silent=True)
    obs = annotated(state, cells, over="leiden", consensus="majority", compat="celltypist").obs
    assert obs["ginseng_cell_type"].equals(alone["ginseng_cell_type"])
    assert (obs.groupby("leiden", observed=True)["ginseng_consensus"].nunique() == 1).all()
    assert obs["ginseng_consensus_share"].between(0, 1).all()
    assert obs["majority_voting"].equals(obs["ginseng_consensus"].rename("majority_voting"))
    assert {"predicted_labels", "over_clustering", "conf_score"} <= set(obs)


def test_clusters_are_made_when_asked(state, cells):
    cells.X[3] = 0
    obs = annotated(state, cells, over="auto").obs
    assert obs["ginseng_cluster"].isna().tolist() == (np.arange(90) == 3).tolist()
    assert set(cells.uns["ginseng"]["clusters"].index) == set(obs["ginseng_cluster"].dropna())
    assert (obs["ginseng_consensus"] == obs["ginseng_cell_type"]).mean() > 0.8


def test_nothing_of_an_earlier_annotation_stays(state, cells):
    annotated(state, cells, over="leiden", compat="celltypist", store_probs=True)
    annotated(state, cells, calibrate=False)
    assert not cells.obsm
    added = set(cells.obs) - {"cell_type", "donor", "leiden"}
    assert added == {f"ginseng_{name}" for name in ("cell_type", "confidence", "second", "margin")}


def test_whatever_is_asked_for_can_be_kept(state, cells, tmp_path):
    over = [None, *["a"] * 89]
    annotated(state, cells, over=over, only=("B cell", "T cell"), hierarchy=ABOVE, key_added="my.own")
    parameters = cells.uns["my.own"]["parameters"]
    assert parameters["over"] == parameters["hierarchy"] == "given" and parameters["only"] == ["B cell", "T cell"]
    cells.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").uns["my.own"]["parameters"]["consensus"] == "soft"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": "louvain"}, "column 'louvain' is not in adata.obs"),
        ({"over": "leiden", "consensus": "hard"}, "'soft' or 'majority'"),
        ({"only": ["B cels"]}, "did you mean 'B cell'"),
        ({"only": "B cell", "exclude": "T cell"}, "pass one of them"),
        ({"hierarchy": {"B cell": "B cell"}}, "above itself"),
        ({"compat": "scanpy"}, "`compat` must be 'celltypist'"),
    ],
)
def test_bad_choices_change_nothing(state, cells, options, message):
    before = cells.copy()
    with pytest.raises(ValueError, match=message):
        annotated(state, cells, **options)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert not cells.uns and not cells.obsm


def test_the_table_of_clusters_has_one_that_is_unlike_training(state, cells, recwarn):
    counts = cells.X.toarray()
    rng = np.random.default_rng(0)
    strange = np.arange(90) < 25
    counts[strange] = rng.permuted(counts[strange], axis=1) + rng.poisson(3.0, (25, counts.shape[1]))
    cells.X = counts
    cells.obs["leiden"] = np.where(strange, "strange", cells.obs["cell_type"].astype(str))
    classify(state, cells, over="leiden")
    assert not [each for each in recwarn if "strange" in str(each.message)]  # of known types such are as often
    assert cells.uns["ginseng"]["clusters"].loc["strange", "is_novel"]


@pytest.mark.parametrize(
    ("name", "options", "way_out"),
    [
        ("ginseng_status", {}, "pass another `key_added`"),
        ("my_cell_type", {"key_added": "my"}, "pass another `key_added`"),
        ("conf_score", {"compat": "celltypist"}, "leave `compat` out"),
    ],
)
def test_a_type_called_as_a_column_of_the_table_is_refused_before_the_work(state, cells, name, options, way_out):
    odd = dataclasses.replace(state, label_keys=[name, "NK cell", "T cell"])
    with pytest.raises(ValueError, match=f"a type called '{name}', which is a column of the table: {way_out}"):
        classify(odd, cells, return_table=True, silent=True, **options)
    assert name in classify(odd, cells, return_table=True, silent=True, key_added="other").columns
    classify(odd, cells, silent=True, **options)
    assert name in cells.obs[f"{options.get('key_added', 'ginseng')}_cell_type"].cat.categories
