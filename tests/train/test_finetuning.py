"""A saved classifier learns from new cells, and what it forgets is told."""

import dataclasses

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    finetune,
    harmonize,
    load_model,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.train.finetuning import tuning_settings
from tests.conftest import simulate

QUICK = tuning_settings(lr=3e-3, batch_size=32, calibrate="none")


def cells(types=None, n_cells=300, n_rolled=0):
    """Cells of some types, of a donor in which some genes have the counts of others."""
    adata = simulate(n_cells=n_cells, n_types=4)
    adata.X = adata.X[:, np.r_[np.roll(np.arange(n_rolled), 1), n_rolled:30]]
    return adata if types is None else adata[adata.obs["cell_type"].isin(types)].copy()


KNOWN = ["B cell", "NK cell", "T cell"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def reference(folder):
    dataset = GinsengDataset.create(folder / "reference.zarr", cells(KNOWN), "cell_type", silent=True)
    dataset.make_split(0.2, stratify_label=True)
    return dataset


@pytest.fixture(scope="module", params=[1, 2], ids=["one network", "two networks"])
def state(request, reference):
    options = {"hidden_dim": 8, "batch_size": 32, "lr": 5e-3, "members": request.param}
    trainer = GinsengClassifierTrainer(reference, GinsengClassifierTrainerSettings(**options))
    trainer.fit(6, silent=True)
    return state_from_classifier_trainer(trainer)


one_network = pytest.mark.parametrize("state", [1], ids=["one network"], indirect=True)


@pytest.fixture
def mine(tmp_path):
    """A dataset of new cells."""

    def make(*args, **options):
        return GinsengDataset.create(tmp_path / "mine.zarr", cells(*args, **options), "cell_type", silent=True)

    return make


def leaves(state, part):
    return [params[part]["W"] for params in (state.params, *state.members)]


def agreement(state, adata):
    table = classify(state, adata, return_table=True, silent=True)
    return (table["ginseng_cell_type"].astype(str) == adata.obs["cell_type"].astype(str)).mean()


def test_the_same_labels_of_a_donor_that_differs(state, mine, tmp_path):
    tuned = finetune(state, mine(KNOWN, n_rolled=24), QUICK, silent=True)
    table = tuned.table.loc["new"]
    assert list(table.columns) == ["cells", "before", "after", "change"]
    assert table["after"].mean() > table["before"].mean() + 0.02
    assert table["after"].mean() > 0.9
    assert "held-out cells of the new data: macro-F1 " in tuned.report()
    save_model(tuned.state, tmp_path / "tuned.h5")
    assert agreement(load_model(tmp_path / "tuned.h5"), cells(KNOWN, n_rolled=24)) > 0.9


def test_a_new_label_is_added_and_the_others_keep_their_places(state, mine, reference):
    tuned = finetune(state, mine(), QUICK, old=reference, silent=True)
    assert list(tuned.state.output_labels) == [*KNOWN, "γδ T cell"]
    new, old = tuned.table.loc["new"], tuned.table.loc["old"]
    assert new.loc["γδ T cell", "before"] == 0.0
    assert new.loc["γδ T cell", "after"] > 0.85
    assert set(old.index) == set(KNOWN)
    assert old["change"].min() > -0.1
    assert "gained, by type (cells): γδ T cell +" in tuned.report()


def test_a_label_alone_is_added_without_training(state, mine):
    with pytest.warns(UserWarning, match="All labels of the data are new to the model"):
        tuned = finetune(state, mine(["γδ T cell"]), silent=True)
    for before, after in zip(leaves(state, "head"), leaves(tuned.state, "head"), strict=True):
        np.testing.assert_array_equal(after[:, :3], before)
    assert agreement(tuned.state, cells()) > 0.8
    assert agreement(tuned.state, cells(["γδ T cell"])) > 0.8
    assert tuned.state.calibration is None


@one_network
def test_nothing_is_written_to_the_data(state, mine):
    dataset = mine(KNOWN)
    finetune(state, dataset.path, QUICK, epochs=1, silent=True)
    assert GinsengDataset(dataset.path).train_idx is None


@one_network
def test_labels_by_a_mapping(state, mine):
    adata_names = {"B cell": "CD19", "NK cell": "CD56", "T cell": "CD3", "γδ T cell": "doublet"}
    adata = cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).map(adata_names)
    dataset = GinsengDataset.create(mine().path, adata, "cell_type", silent=True)
    mapping = {"CD19": "B cell", "CD56": "NK cell", "CD3": "T cell", "doublet": None}
    tuned = finetune(state, dataset, QUICK, mapping=mapping, silent=True)
    assert list(tuned.state.output_labels) == KNOWN
    assert tuned.table["after"].mean() > 0.9


@one_network
def test_labels_by_what_harmonize_proposes(state, mine):
    adata = cells(KNOWN, n_cells=240)
    adata.obs["type"] = adata.obs["cell_type"].astype(str).str.upper()
    dataset = GinsengDataset.create(mine().path, adata, "type", silent=True)
    other = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(hidden_dim=8, batch_size=32, lr=5e-3))
    other.fit(6, silent=True)
    states = state, state_from_classifier_trainer(other)
    harmony = harmonize(states[0], cells(KNOWN), states[1], adata, label_a="cell_type", label_b="type", silent=True)
    tuned = finetune(state, dataset, QUICK, mapping=harmony, epochs=1, silent=True)
    assert list(tuned.state.output_labels) == KNOWN


def test_labels_of_the_model_are_merged_renamed_and_dropped(state, mine, reference):
    relabel = {"NK cell": "lymphocyte", "T cell": "lymphocyte"}
    tuned = finetune(state, mine(KNOWN), QUICK, mapping=relabel, relabel=relabel, old=reference, silent=True)
    assert list(tuned.state.output_labels) == ["B cell", "lymphocyte"]
    assert tuned.table.loc["old", "after"].mean() > 0.9
    without = finetune(state, mine(KNOWN[:2]), QUICK, relabel={"T cell": None}, epochs=1, silent=True)
    assert list(without.state.output_labels) == KNOWN[:2]


class TestGenes:
    def test_the_weights_are_carried_to_those_of_the_data(self, state, mine):
        adata = cells(KNOWN)
        adata.var_names = [f"NEW{nth}" if nth % 3 == 0 else name for nth, name in enumerate(adata.var_names)]
        dataset = GinsengDataset.create(mine().path, adata, "cell_type", silent=True)
        tuned = finetune(state, dataset, QUICK, genes="dataset", silent=True)
        assert list(tuned.state.genes) == dataset.gene_names
        assert (tuned.moved.n_kept, tuned.moved.n_new, tuned.moved.n_dropped) == (20, 10, 10)
        assert tuned.table["after"].mean() > 0.9
        assert tuned.report().startswith("20 genes of the model are kept, 10 are dropped, 10 are new.")

    def test_those_that_the_data_lack_take_their_mean(self, state, mine):
        adata = cells(KNOWN)[:, :20].copy()
        dataset = GinsengDataset.create(mine().path, adata, "cell_type", silent=True)
        with pytest.warns(UserWarning, match="10 of the 30 genes of the model are not in the data"):
            tuned = finetune(state, dataset, QUICK, epochs=0, silent=True)
        assert list(tuned.state.genes) == list(state.genes)
        for before, after in zip(leaves(state, "features1"), leaves(tuned.state, "features1"), strict=True):
            np.testing.assert_array_equal(before, after)
        options = {"return_table": True, "calibrate": False, "silent": True}
        told = [classify(one, adata, **options).filter(like=" cell") for one in (state, tuned.state)]
        assert told[0].shape == (adata.n_obs, 3)
        np.testing.assert_allclose(*[table.to_numpy() for table in told], atol=1e-5)
        whole = [classify(one, cells(KNOWN), **options).filter(like=" cell") for one in (state, tuned.state)]
        np.testing.assert_allclose(*[table.to_numpy() for table in whole], atol=1e-5)

    def test_annotation_does_as_training_did_where_old_data_have_more(self, state, mine, reference):
        """The held-out cells of the table are called the same by the tuned state."""
        adata = cells(KNOWN)[:, :20].copy()
        dataset = GinsengDataset.create(mine().path, adata, "cell_type", silent=True)
        dataset.make_split(0.3)
        tuned = finetune(state, dataset, QUICK, old=reference, silent=True)
        logits, labels = tuned.trainer.answers("test")
        test = np.sort(dataset.test_idx)
        assert len(labels) == len(test) + len(reference.test_idx)
        told = classify(tuned.state, adata[test].copy(), return_table=True, calibrate=False, silent=True)
        names = tuned.state.output_labels[logits[: len(test)].argmax(axis=1)]
        assert told["ginseng_cell_type"].astype(str).tolist() == names.tolist()
        before = classify(state, adata[test].copy(), return_table=True, calibrate=False, silent=True)
        recall = (before["ginseng_cell_type"].astype(str) == adata.obs["cell_type"].iloc[test].astype(str)).mean()
        if recall == 1.0:
            assert (tuned.table.loc["new", "before"] == 1.0).all()


class TestFreezing:
    @pytest.mark.parametrize(
        ("freeze", "kept", "trained"),
        [
            ("trunk", ["features1", "features2", "attn1", "attn2"], ["head"]),
            (["features1", "features2"], ["features1", "features2"], ["attn1", "attn2", "head"]),
            (["head"], ["head"], ["features1", "attn2"]),
            (lambda leaf: leaf.shape[-1] == 30, ["features1", "features2", "attn1", "head"], ["attn2"]),
        ],
    )
    def test_what_is_frozen_stays_bit_for_bit(self, state, mine, freeze, kept, trained):
        tuned = finetune(state, mine(KNOWN), QUICK, freeze=freeze, epochs=1, silent=True)
        for part, same in [*((part, True) for part in kept), *((part, False) for part in trained)]:
            for before, after in zip(leaves(state, part), leaves(tuned.state, part), strict=True):
                assert np.array_equal(before, after) == same, part

    def test_a_spec_of_the_network(self, state, mine):
        spec = jax.tree.map(lambda _: True, state.module)
        where = (lambda m: m.head) if state.members == [] else (lambda m: m.stacked.head)
        spec = eqx.tree_at(where, spec, replace=False)
        tuned = finetune(state, mine(), QUICK, freeze=spec, epochs=1, silent=True)
        assert tuned.state.n_classes == 4
        np.testing.assert_array_equal(leaves(tuned.state, "features1")[0], leaves(state, "features1")[0])

    def test_rates_by_part(self, state, mine):
        tuned = finetune(state, mine(KNOWN), QUICK, rates={"features1": 0.0, "head": 2.0}, epochs=1, silent=True)
        np.testing.assert_array_equal(leaves(tuned.state, "features1")[0], leaves(state, "features1")[0])
        assert not np.array_equal(leaves(tuned.state, "head")[0], leaves(state, "head")[0])


def test_the_trunk_is_frozen_where_types_would_be_forgotten(state, mine):
    with pytest.warns(UserWarning, match="The trunk of the network is frozen: .* no cells of B cell, NK cell, and"):
        tuned = finetune(state, mine(["T cell", "γδ T cell"]), QUICK, epochs=3, silent=True)
    np.testing.assert_array_equal(leaves(tuned.state, "features1")[0], leaves(state, "features1")[0])
    assert tuned.added == ["γδ T cell"]
    assert "New labels: γδ T cell." in tuned.report()
    tuned = finetune(state, mine(["T cell", "γδ T cell"]), QUICK, freeze=(), epochs=1, silent=True)
    assert not np.array_equal(leaves(tuned.state, "features1")[0], leaves(state, "features1")[0])


def test_donors_that_lack_a_new_type_are_left_out_in_turn_all_the_same(state, tmp_path):
    adata = cells()
    adata.obs["donor"] = np.where(adata.obs["cell_type"] == "γδ T cell", "d1", adata.obs["donor"].astype(str))
    dataset = GinsengDataset.create(tmp_path / "d.zarr", adata, "cell_type", group_key="donor", silent=True)
    settings = tuning_settings(batch_size=64, calibrate="groups")
    tuned = finetune(state, dataset, settings, epochs=1, silent=True)
    assert tuned.state.calibration.source == "groups"
    assert 3 not in tuned.state.calibration.labels


@one_network
def test_a_checkpoint_of_other_labels_is_another_run(state, mine, tmp_path):
    dataset = mine(["γδ T cell"])
    options = {"epochs": 1, "silent": True, "checkpoint": tmp_path / "run"}
    finetune(state, dataset, QUICK, **options)
    with pytest.raises(ValueError, match="holds another run"):
        finetune(state, dataset, QUICK, mapping={"γδ T cell": "NK cell"}, **options)
    swapped = {"B cell": "NK cell", "NK cell": "B cell"}
    finetune(state, mine(KNOWN), QUICK, **{**options, "checkpoint": tmp_path / "swapped"})
    with pytest.raises(ValueError, match="holds another run"):
        finetune(state, mine(KNOWN), QUICK, relabel=swapped, **{**options, "checkpoint": tmp_path / "swapped"})


@one_network
def test_a_name_that_is_written_otherwise_is_told(state, mine):
    dataset = mine(KNOWN).renamed({"B cell": "B_cells"})
    with pytest.warns(UserWarning, match="'B_cells' is added to the model beside its 'B cell'.*mapping={'B_cells': 'B"):
        finetune(state, dataset, QUICK, epochs=0, silent=True)


@one_network
@pytest.mark.parametrize(("trained_as", "tuned_with"), [("012", ["0.0", "1.0", "2.0"]), (["0.0", "1.0", "2.0"], "012")])
def test_labels_that_became_floats_are_those_of_the_model(state, mine, trained_as, tuned_with):
    state = dataclasses.replace(state, label_keys=list(trained_as))
    dataset = mine(KNOWN).renamed(dict(zip(KNOWN, tuned_with, strict=True)))
    with pytest.warns(UserWarning, match="are those of the model as floats or integers"):
        tuned = finetune(state, dataset, QUICK, epochs=0, silent=True)
    assert tuned.added == []
    assert list(tuned.state.output_labels) == list(trained_as)


@one_network
def test_names_with_a_dot_are_no_other_names(state, mine, recwarn):
    state = dataclasses.replace(state, label_keys=["1", "11", "2"])
    names = dict(zip(KNOWN, ["1.0", "1.1", "2"], strict=True))
    tuned = finetune(state, mine(KNOWN).renamed(names), QUICK, epochs=0, silent=True)
    assert tuned.added == ["1.0", "1.1"]
    assert not [told for told in recwarn if "beside its" in str(told.message)]


@one_network
def test_labels_that_are_declared_to_say_none_are_left_out(state, mine):
    dataset = mine(KNOWN).renamed({"B cell": "Unknown"})
    tuned = finetune(state, dataset, QUICK, epochs=0, unlabeled="unknown", silent=True)
    assert tuned.added == []
    assert sorted(tuned.table.loc["new"].index) == ["NK cell", "T cell"]


def test_what_the_answers_are_worth_is_learnt_anew(state, mine, reference):
    settings = tuning_settings(batch_size=32, calibrate="holdout", holdout_fraction=0.4)
    tuned = finetune(state, mine(KNOWN), settings, epochs=1, silent=True).state
    assert tuned.calibration is not None
    assert not np.isnan(tuned.calibration.geometry.means).any()
    few = finetune(state, mine(KNOWN[:2]), settings, epochs=1, silent=True).state  # the mean of the third is known
    np.testing.assert_array_equal(few.calibration.geometry.means[2], state.calibration.geometry.means[2])
    with_old = finetune(state, mine(["B cell", "γδ T cell"]), settings, epochs=1, old=reference, silent=True).state
    assert not np.isnan(with_old.calibration.geometry.means).any()


@one_network
def test_new_labels_are_calibrated_by_what_there_is(state, mine):
    with pytest.warns(UserWarning, match="No training cell is of NK cell, T cell: the novelty of"):
        settings = tuning_settings(batch_size=32, holdout_fraction=0.4)
        tuned = finetune(state, mine(["B cell", "γδ T cell"]), settings, epochs=3, silent=True)
    calibration = tuned.state.calibration
    assert calibration.source == "holdout"
    assert len(calibration.labels) == len(tuned.trainer.dataset.test_idx)
    assert np.isnan(calibration.geometry.means).all(axis=1).tolist() == [False, True, True, False]
    table = classify(tuned.state, cells(), return_table=True, silent=True)
    is_judged = table["ginseng_cell_type"].isin(["B cell", "γδ T cell"])
    assert 0 < is_judged.sum() < len(table)
    np.testing.assert_array_equal(table["ginseng_novelty"].notna(), is_judged)
    assert not (table["ginseng_status"][~is_judged] == "novel").any()
    assert "Not calibrated" not in tuned.report()


@one_network
def test_too_few_held_out_cells_are_told(state, mine):
    tuned = finetune(state, mine(KNOWN, n_cells=60), tuning_settings(batch_size=32), epochs=0, silent=True)
    assert tuned.state.calibration is None
    n_cells = len(tuned.trainer.dataset.test_idx)
    assert f"Not calibrated: {n_cells} cells of types that it knows are held out, and 20 are needed." in tuned.report()


@one_network
def test_a_model_is_calibrated_without_training(state, mine):
    plain = dataclasses.replace(state, calibration=None)
    dataset, settings = mine(KNOWN), tuning_settings(batch_size=32, holdout_fraction=0.3)
    tuned = finetune(plain, dataset, settings, epochs=0, silent=True)
    for part in ("features1", "head"):
        np.testing.assert_array_equal(leaves(tuned.state, part), leaves(plain, part))
    assert len(tuned.state.calibration.labels) == len(tuned.trainer.dataset.test_idx)
    assert "ginseng_status" in classify(tuned.state, cells(), return_table=True, silent=True)


@one_network
def test_held_out_cells_of_old_data_tell_too_where_groups_are_left_out(state, reference, tmp_path):
    path, settings = tmp_path / "groups.zarr", tuning_settings(batch_size=32)
    adata = cells(["B cell", "γδ T cell"])
    dataset = GinsengDataset.create(path, adata, "cell_type", group_key="donor", silent=True)
    calibration = finetune(state, dataset, settings, epochs=1, old=reference, silent=True).state.calibration
    assert calibration.source == "groups"
    n_old = len(reference.test_idx)
    np.testing.assert_array_equal(calibration.labels[-n_old:], reference.labels[np.sort(reference.test_idx)])
    assert np.bincount(calibration.groups).tolist()[4:] == [n_old]


def test_it_can_be_stopped_and_goes_on(state, mine, tmp_path):
    options = {"epochs": 2, "silent": True, "checkpoint": tmp_path / "run", "log": tmp_path / "log.csv"}
    once = finetune(state, mine(KNOWN), QUICK, **options)
    again = finetune(state, mine(KNOWN), QUICK, **options)
    for part in ("features2", "head"):
        np.testing.assert_array_equal(leaves(once.state, part), leaves(again.state, part))


@one_network
def test_the_start_is_kept_in_the_history(state, mine):
    tuned = finetune(state, mine(KNOWN), QUICK, epochs=1, card={"data": "mine"}, silent=True).state
    assert tuned.metadata["start"]["settings"]["lr"] == 5e-3
    assert tuned.metadata["settings"]["lr"] == 3e-3
    assert tuned.metadata["card"]["data"] == "mine"


@one_network
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": "both"}, "`genes` must be one of model, dataset, but got 'both'"),
        ({"epochs": -1}, "`epochs` must be"),
        ({"freeze": "feature1"}, "part 'feature1' is not in the network; did you mean 'features1'"),
        ({"freeze": ["trunk", "head"]}, "leaves nothing to train"),
        ({"rates": {"heads": 1.0}}, "heads"),
        ({"rates": {"head": 0.1}, "freeze": "head"}, "`rates` and `freeze` both name head"),
        ({"rates": {"head": 0.0}, "freeze": "trunk"}, "there would be nothing to learn"),
        ({"relabel": {"B cell": ""}}, "`relabel` must map 'B cell' to a name"),
        ({"relabel": ["B cell"]}, "`relabel` must be a dictionary of names"),
        ({"replay": -0.1}, "`replay` must lie in"),
        ({"mapping": {"T cells": "T cell"}}, "label 'T cells' is not in .*did you mean 'T cell'"),
        ({"relabel": {"T cells": "T cell"}}, "label 'T cells' is not in the model's outputs; did you mean 'T cell'"),
        ({"relabel": dict.fromkeys(KNOWN)}, "Every output of the model is dropped"),
    ],
)
def test_what_does_not_fit_is_refused(state, mine, options, message):
    with pytest.raises(ValueError, match=message):
        finetune(state, mine(KNOWN), **{"settings": QUICK, "silent": True, **options})


@one_network
def test_old_data_are_of_the_model(state, mine, tmp_path):
    other = GinsengDataset.create(tmp_path / "other.zarr", cells(), "cell_type", silent=True)
    with pytest.raises(ValueError, match="`old` has labels that the model does not know: γδ T cell"):
        finetune(state, mine(KNOWN), QUICK, old=other, silent=True)
    with pytest.raises(ValueError, match=r"`replay` must lie in \[0, 1\)"):
        finetune(state, mine(KNOWN), QUICK, old=other, replay=1.0, silent=True)


@one_network
def test_a_trainer_whose_trunk_is_frozen_takes_no_other_trunk(state, mine):
    trainer = finetune(state, mine(KNOWN), QUICK, freeze="trunk", epochs=1, silent=True).trainer
    params = trainer.classifier.params
    trainer.classifier.params = {**params, "head": {**params["head"], "b": params["head"]["b"] + 1}}
    np.testing.assert_array_equal(trainer.classifier.params["head"]["b"], params["head"]["b"] + 1)
    other = {**params["features1"], "W": params["features1"]["W"] + jr.normal(jr.key(0), (30, 30))}
    with pytest.raises(ValueError, match="The trunk of the network is frozen"):
        trainer.classifier.params = {**params, "features1": other}


@one_network
def test_data_that_are_none_are_refused(state, mine, reference, tmp_path):
    dataset = mine(KNOWN)
    plain = getattr(finetune, "__wrapped__", finetune)  # without the type check of the tests
    with pytest.raises(ValueError, match="`dataset` must be a dataset, .* but got a AnnData"):
        plain(state, cells(KNOWN), silent=True)
    (tmp_path / "cells.h5ad").write_bytes(b"x")
    with pytest.raises(
        ValueError, match="cells.h5ad is a file, not a ginseng dataset; GinsengDataset.create makes one"
    ):
        finetune(state, tmp_path / "cells.h5ad", silent=True)
    with pytest.raises(ValueError, match="`model` must be a GinsengClassifierState, but got None"):
        plain(None, dataset, silent=True)
    with pytest.raises(ValueError, match="`old` is `dataset` itself"):
        finetune(state, dataset, old=dataset.path, silent=True)
    with pytest.raises(ValueError, match="There is no cell to train on"):
        finetune(state, dataset.divided(np.array([], int), np.arange(dataset.n_cells)), silent=True)
    without = reference.divided(np.array([], int), reference.test_idx)
    with pytest.raises(ValueError, match="`old`, .*reference.zarr, has no training cell"):
        finetune(state, dataset, old=without, silent=True)


@one_network
def test_genes_that_were_chosen_by_held_out_labels_are_told_of(state, mine):
    dataset = GinsengDataset.create(mine().path, cells(KNOWN), "cell_type", genes=20, silent=True)
    with pytest.warns(UserWarning, match="were chosen by the labels of other cells"):
        finetune(state, dataset, QUICK, genes="dataset", epochs=0, silent=True)
    assert GinsengDataset(dataset.path).train_idx is None


def test_a_proposal_may_name_types_that_a_part_of_the_study_lacks(state, mine):
    class Proposal:
        mapping = {"T cell": "NK cell", "elsewhere": "B cell"}

    assert mine(KNOWN).renamed(Proposal()).label_names == ["B cell", "NK cell"]
