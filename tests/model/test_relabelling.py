"""Outputs renamed, merged, dropped, and begun from some cells."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import special

from ginseng import (
    GinsengClassifierTrainer,
    GinsengDataset,
    load_model,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.model.relabelling import relabelled, with_labels
from tests.conftest import simulate
from tests.model.test_adapting import draw, logits, state_of
from tests.train.models import QUICK


def probabilities(state, counts):
    return dict(zip(map(str, state.output_labels), special.softmax(logits(state, counts), axis=1).T, strict=True))


def head(state):
    return {str(label): (np.asarray(w), b) for label, w, b in zip(state.output_labels, *columns(state), strict=True)}


def columns(state):
    return np.asarray(state.params["head"]["W"]).T, np.asarray(state.params["head"]["b"])


@pytest.mark.parametrize("members", [1, 2])
def test_renaming_is_a_matter_of_names(members):
    state, counts = state_of(members=members), draw()
    after = relabelled(state, {"T": "T cell", "NK": "T"})
    assert set(after.output_labels) == {"T cell", "T", "B"}
    np.testing.assert_array_equal(logits(after, counts), logits(state, counts))
    before = probabilities(state, counts)
    np.testing.assert_array_equal(probabilities(after, counts)["T cell"], before["T"])
    assert after.calibration is state.calibration


@pytest.mark.parametrize("members", [1, 2])
def test_dropping_leaves_the_others_as_they_are(members):
    state, counts = state_of(members=members), draw()
    after = relabelled(state, {"B": None})
    for label, (weight, bias) in head(after).items():
        np.testing.assert_array_equal(weight, head(state)[label][0])
        assert bias == head(state)[label][1]
    assert after.calibration is None
    assert len(after.members) == members - 1
    assert np.isfinite(logits(after, counts)).all()
    assert list(relabelled(state, {"B": None, "T": None}).output_labels) == ["NK"]


@pytest.mark.parametrize("mapping", [{"T": "NK"}, {"NK": "T"}, {"T": "T or NK", "NK": "T or NK"}])
def test_merging_leaves_the_rest_in_place(mapping):
    state = state_of()
    after = relabelled(state, mapping)
    assert len(after.output_labels) == 2
    np.testing.assert_array_equal(head(after)["B"][0], head(state)["B"][0])
    assert list(relabelled(state, dict.fromkeys(["T", "B", "NK"], "cell")).output_labels) == ["cell"]


def test_merged_probabilities_are_near_the_sum(trained):
    state, _, counts, _ = trained
    before = probabilities(state, counts)
    for known, margin in ((state, 0.05), (dataclasses.replace(state, calibration=None), 0.1)):
        after = probabilities(relabelled(known, {"B cell": "lymphocyte", "NK cell": "lymphocyte"}), counts)
        assert np.abs(after["lymphocyte"] - before["B cell"] - before["NK cell"]).mean() < margin


def test_names_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="label 'nk' is not in the model's outputs; did you mean 'NK'"):
        relabelled(state_of(), {"nk": "NK cell"})
    with pytest.raises(ValueError, match="Every output of the model is dropped"):
        relabelled(state_of(), dict.fromkeys(["T", "B", "NK"]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of three of four types, and cells of all of them."""
    adata = simulate(n_cells=900, n_genes=60, n_types=4)
    types = adata.obs["cell_type"].astype(str).to_numpy()
    known = adata[(types != "γδ T cell") & (np.arange(900) < 500)].copy()
    path = tmp_path_factory.mktemp("known") / "cells.zarr"
    settings = dataclasses.replace(QUICK, holdout_fraction=0.2, calibrate="holdout")
    trainer = GinsengClassifierTrainer(GinsengDataset.create(path, known, "cell_type", silent=True), settings)
    trainer.fit(8, silent=True)
    counts = adata.X.toarray()
    new = counts[(types == "γδ T cell") & (np.arange(900) < 500)][:30]
    return state_from_classifier_trainer(trainer), new, counts[500:], types[500:]


@pytest.mark.parametrize("how", ["whole", "no calibration", "nor background"])
def test_a_new_type_is_told_before_any_training(trained, how):
    state, new, counts, types = trained
    assert state.calibration is not None
    if how != "whole":
        state = dataclasses.replace(state, calibration=None)
    if how == "nor background":
        state = dataclasses.replace(state, background=None)
    after = with_labels(state, ["γδ T cell"], {"γδ T cell": new})
    called = np.asarray(after.output_labels)[logits(after, counts).argmax(axis=1)]
    is_new = types == "γδ T cell"
    assert (called[is_new] == "γδ T cell").mean() > 0.8
    assert (called[~is_new] == types[~is_new]).mean() > 0.9


def test_what_is_there_stays_bit_for_bit(tmp_path):
    state = state_of(members=2)
    after = with_labels(state, ["γδ", "DC"], {"γδ": draw(seed=1), "DC": draw(n_cells=1, seed=2)})
    assert list(after.output_labels) == [*state.output_labels, "γδ", "DC"]
    for old, new in zip(state.networks, after.networks, strict=True):
        np.testing.assert_array_equal(new.head.weight[:3], old.head.weight)
        np.testing.assert_array_equal(new.head.bias[:3], old.head.bias)
        for layer in ("features1", "features2", "attn1", "attn2"):
            jax.tree.map(np.testing.assert_array_equal, getattr(new, layer).weight, getattr(old, layer).weight)
        assert np.isfinite(new.head.weight).all()
    assert after.calibration is None
    save_model(after, tmp_path / "m.h5")
    np.testing.assert_array_equal(logits(load_model(tmp_path / "m.h5"), draw()), logits(after, draw()))


def test_types_without_cells_and_outputs_that_exist_are_refused():
    state = state_of()
    for counts_of in ({}, {"DC": draw()[:0]}):
        with pytest.raises(ValueError, match="no cell of 'DC'"):
            with_labels(state, ["DC"], counts_of)
    with pytest.raises(ValueError, match="already"):
        with_labels(state, ["NK"], {"NK": draw()})
    with pytest.raises(ValueError, match="over the 12 genes of the model"):
        with_labels(state, ["DC"], {"DC": draw(5)})
