import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest

from ginseng import (
    Annotator,
    GinsengClassifierTrainer,
    GinsengDataset,
    classify,
    load_annotator,
    load_model,
    plot,
    save_annotator,
    save_model,
)
from ginseng import state_from_classifier_trainer as state_of
from ginseng.describe import describe_model
from ginseng.model.calibration import Geometry
from ginseng.model.modules import weights_digest
from ginseng.model.state import sealed
from ginseng.train import calibrating
from ginseng.train.card import require_card
from tests.conftest import simulate
from tests.train.models import QUICK, assert_same_weights

CALIBRATED = dataclasses.replace(QUICK, calibrate="auto")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrating") / "cells.zarr"
    dataset = GinsengDataset.create(path, simulate(), "cell_type", group_key="donor", silent=True)
    trainer = GinsengClassifierTrainer(dataset, CALIBRATED, card={"data": "simulated", "licence": "CC0"})
    trainer.fit(4, silent=True)
    return trainer


def test_each_cell_is_answered_by_a_network_that_did_not_see_its_group(trainer):
    calibration, dataset = trainer.calibration, trainer.dataset
    assert calibration.source == "groups"
    folds = calibrating.left_out_in_turn(dataset.groups[dataset.train_idx])
    expected = np.concatenate([dataset.labels[dataset.train_idx][is_out] for is_out in folds])
    np.testing.assert_array_equal(calibration.labels, expected)
    assert isinstance(calibration.geometry, Geometry)


def test_the_classifier_is_the_same_with_and_without(trainer, tmp_path):
    dataset = GinsengDataset.create(tmp_path / "c.zarr", simulate(), "cell_type", group_key="donor", silent=True)
    plain = GinsengClassifierTrainer(dataset, QUICK)
    plain.fit(4, silent=True)
    assert_same_weights(plain.model, trainer.model)
    assert plain.calibration is None


def test_scores_history_and_card_tell_of_it(trainer, tmp_path):
    assert (
        trainer.holdout_scores.calibration.loc["after", "nll"]
        <= trainer.holdout_scores.calibration.loc["before", "nll"]
    )
    save_model(state_of(trainer), tmp_path / "m.h5")
    state = load_model(tmp_path / "m.h5")
    assert state.metadata["history"]["calibration"]["source"] == "groups"
    assert state.metadata["card"]["types"]["B cell"]["groups"] == 4
    told = describe_model(state)
    for text in ("held-out F1", "of groups (donors, batches) left out in turn", "data: simulated", "licence: CC0"):
        assert text in told


def test_it_is_drawn_before_and_after(trainer):
    (axes,) = plot.reliability(trainer.calibration).axes
    table = trainer.holdout_scores.calibration
    assert f"before ECE {table.loc['before', 'ece']:.3f}" in axes.get_title()
    assert f"after ECE {table.loc['after', 'ece']:.3f}" in axes.get_title()


def test_weights_that_were_changed_are_not_calibrated(trainer, tmp_path):
    dataset = GinsengDataset.create(tmp_path / "c.zarr", simulate(), "cell_type", group_key="donor", silent=True)
    other = GinsengClassifierTrainer(dataset, CALIBRATED)
    other.fit(1, silent=True)
    assert other.calibration is not None
    other.classifier.params = trainer.classifier.params
    assert other.calibration is None


class TestOtherWeights:
    @pytest.fixture(scope="class")
    def state(self, trainer):
        return state_of(trainer)

    @staticmethod
    def halved(state):
        return dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf / 2, state.params))

    def test_of_a_state_are_saved_without_what_was_known_of_the_earlier(self, state, tmp_path):
        with pytest.warns(UserWarning, match="The weights have been replaced: what was known of the earlier ones"):
            save_model(self.halved(state), tmp_path / "m.h5")
        saved = load_model(tmp_path / "m.h5")
        assert saved.calibration is None
        assert not {"card", "history", "settings"} & set(saved.metadata)

    def test_of_a_file_are_noticed_too(self, state, tmp_path):
        save_model(state, tmp_path / "m.h5")
        loaded = load_model(tmp_path / "m.h5")
        with pytest.warns(UserWarning, match="The weights have been replaced"):
            save_model(self.halved(loaded), tmp_path / "m.h5")
        assert load_model(tmp_path / "m.h5").calibration is None

    def test_annotate_without_status(self, state):
        with pytest.warns(UserWarning, match="The calibration was learnt for other weights than the module has"):
            table = classify(self.halved(state), simulate(), return_table=True)
        assert "ginseng_status" not in table
        annotator = Annotator.of(state)
        assert "ginseng_status" in classify(annotator, simulate(), return_table=True)
        module = eqx.tree_at(lambda network: network.head.bias, annotator.module, replace_fn=lambda bias: bias + 1)
        with pytest.warns(UserWarning, match="The calibration was learnt for other weights"):
            table = classify(dataclasses.replace(annotator, module=module), simulate(), return_table=True)
        assert "ginseng_status" not in table

    def test_are_saved_with_an_annotator_without_calibration(self, trainer, tmp_path):
        annotator = Annotator(trainer.model, trainer.genes, trainer.label_names, calibration=trainer.calibration)
        save_annotator(annotator, tmp_path / "a.eqx")
        loaded = load_annotator(tmp_path / "a.eqx", trainer.model)
        assert loaded.own_calibration is not None
        other = eqx.tree_at(lambda network: network.head.bias, loaded.module, replace_fn=lambda bias: bias + 1)
        with pytest.warns(UserWarning, match="The calibration was learnt for other weights"):
            save_annotator(dataclasses.replace(loaded, module=other), tmp_path / "a.eqx")
        assert load_annotator(tmp_path / "a.eqx", trainer.model).calibration is None

    def test_that_are_the_same_keep_it(self, state, tmp_path, recwarn):
        same = dataclasses.replace(state, params=jax.tree.map(np.array, state.params), dropout_rate=0.1)
        save_model(same, tmp_path / "m.h5")
        assert load_model(tmp_path / "m.h5").calibration is not None
        assert "ginseng_status" in classify(same, simulate(), return_table=True)
        assert not [each for each in recwarn if "weights" in str(each.message)]

    def test_of_a_state_and_of_its_module_have_one_name(self, state):
        several = dataclasses.replace(state, members=[jax.tree.map(lambda leaf: leaf + 1, state.params)])
        for one in (state, several):
            assert sealed(one).metadata["weights"] == weights_digest(one.module)

    def test_with_a_calibration_of_their_own_keep_that(self, state, tmp_path):
        own = dataclasses.replace(state.calibration, weights=None)
        with pytest.warns(UserWarning, match="The weights have been replaced"):
            save_model(dataclasses.replace(self.halved(state), calibration=own), tmp_path / "m.h5")
        saved = load_model(tmp_path / "m.h5")
        assert saved.calibration is not None
        assert "card" not in saved.metadata

    def test_are_no_start_with_the_history_of_others(self, state, trainer):
        with pytest.warns(UserWarning, match="The weights have been replaced"):
            other = GinsengClassifierTrainer(trainer.dataset, CALIBRATED, start=self.halved(state))
        assert other.metadata()["start"] == {}

    def test_that_are_assigned_begin_a_history_of_their_own(self, trainer, tmp_path):
        dataset = GinsengDataset.create(tmp_path / "c.zarr", simulate(), "cell_type", silent=True)
        other = GinsengClassifierTrainer(dataset, QUICK)
        other.fit(2, silent=True)
        other.classifier.params = trainer.classifier.params
        metadata = state_of(other).metadata
        assert metadata["history"]["epoch"] == []
        assert not any("holdout_f1" in told for told in metadata["card"]["types"].values())


@pytest.mark.parametrize("asked", ["auto", "holdout"])
def test_without_groups_the_holdout_tells(tmp_path, asked):
    adata = simulate(300)
    dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
    trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, calibrate=asked))
    trainer.fit(2, silent=True)
    assert trainer.calibration.source == "holdout"
    np.testing.assert_array_equal(trainer.calibration.labels, dataset.labels[dataset.test_idx])
    table = classify(state_of(trainer), adata, return_table=True, silent=True)
    assert (table["ginseng_novelty"].dropna() < 1).all()


def test_too_few_held_out_cells_tell_nothing(tmp_path):
    dataset = GinsengDataset.create(tmp_path / "c.zarr", simulate(60), "cell_type", silent=True)
    trainer = GinsengClassifierTrainer(dataset, CALIBRATED)
    trainer.fit(1, silent=True)
    assert trainer.calibration is None
    assert "calibration" not in state_of(trainer).metadata["card"]


def test_a_type_of_one_group_is_not_asked_of_those_that_never_saw_it(tmp_path):
    adata = simulate()
    of_one = (adata.obs["donor"] == "d1").to_numpy() & (np.arange(120) % 2 == 0)
    adata.obs["cell_type"] = np.where(of_one, "only in d1", adata.obs["cell_type"].astype(str))
    dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", group_key="donor", silent=True)
    trainer = GinsengClassifierTrainer(dataset, CALIBRATED)
    trainer.fit(1, silent=True)
    assert dataset.label_names.index("only in d1") not in trainer.calibration.labels


def test_types_of_one_group_each_are_judged_by_the_holdout(tmp_path):
    adata = simulate(300)
    adata.obs["donor"] = adata.obs["cell_type"].astype(str)
    dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", group_key="donor", silent=True)
    trainer = GinsengClassifierTrainer(dataset, CALIBRATED)
    with pytest.warns(UserWarning, match="calibrated by held-out cells"):
        trainer.fit(1, silent=True)
    assert trainer.calibration.source == "holdout"


def test_networks_for_others_learn_as_long_as_the_one_that_is_kept(dataset, monkeypatch):
    asked = []
    monkeypatch.setattr("ginseng.train.trainer.calibrated", lambda *given: asked.append(given[3]))
    trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(CALIBRATED, patience=1, lr=0.2))
    trainer.fit(8, silent=True)
    losses = trainer.logger.holdout_loss
    assert asked == [int(np.argmin(losses)) + 1] and asked[0] < len(losses)


def test_it_goes_on_after_a_kill(dataset, tmp_path, monkeypatch):
    whole = GinsengClassifierTrainer(dataset, CALIBRATED)
    whole.fit(2, silent=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):

        def killed(*_):
            raise KeyboardInterrupt

        patched.setattr(calibrating, "calibration_of", killed)
        GinsengClassifierTrainer(dataset, CALIBRATED).fit(2, silent=True, checkpoint=tmp_path / "run")
    again = GinsengClassifierTrainer(dataset, CALIBRATED)
    again.fit(2, silent=True, checkpoint=tmp_path / "run")
    assert_same_weights(again.model, whole.model)
    np.testing.assert_array_equal(again.calibration.logits, whole.calibration.logits)


def test_many_groups_are_left_out_a_few_at_a_time():
    groups = np.repeat(np.arange(12), np.arange(1, 13))
    folds = list(calibrating.left_out_in_turn(groups))
    assert len(folds) == 5
    assert np.sum(folds, axis=0).tolist() == [1] * len(groups)
    assert not any(set(groups[is_out]) & set(groups[~is_out]) for is_out in folds)


def test_bad_choices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`calibrate` must be one of auto, groups, holdout, none"):
        dataclasses.replace(QUICK, calibrate="donors")
    dataset = GinsengDataset.create(tmp_path / "c.zarr", simulate(), "cell_type", silent=True)
    with pytest.raises(ValueError, match="`group_key`"):
        GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, calibrate="groups"))
    with pytest.raises(ValueError, match="dictionary of texts"):
        require_card({"cells": 3})
    with pytest.raises(ValueError, match="types, which training itself tells"):
        require_card({"types": "B, T"})
    assert dataset.train_idx is None
