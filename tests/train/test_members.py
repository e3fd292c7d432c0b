"""Networks trained side by side, whose probabilities are averaged."""

import dataclasses

import equinox as eqx
import h5py
import jax
import jax.random as jr
import numpy as np
import pytest

from ginseng import (
    AttentionClassifier,
    Ensemble,
    GinsengClassifierTrainer,
    GinsengDataset,
    Trainer,
    classify,
    load_model,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.model.ensemble import members_of
from tests.conftest import simulate
from tests.train.models import QUICK, assert_same_weights, leaves_of

THREE = dataclasses.replace(QUICK, members=3)


def network(seed):
    return AttentionClassifier(30, 3, 8, dropout_rate=0.0, key=jr.key(seed))


@pytest.fixture
def model_file(dataset, tmp_path):
    trainer = GinsengClassifierTrainer(dataset, THREE)
    trainer.fit(6, silent=True)
    save_model(state_from_classifier_trainer(trainer), tmp_path / "m.h5")
    return tmp_path / "m.h5"


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "class_weights": "balanced", "ema": 0.9}, {"clip": 0.05}]
)
def test_each_learns_as_it_would_alone(dataset, options):
    dataset.make_split(0.25)
    recipe, sampling = dataclasses.replace(QUICK, **options).recipe(), QUICK.sampling()
    of_two = dataclasses.replace(QUICK, members=2, **options).recipe()
    together = Trainer(Ensemble([network(0), network(1)]), dataset, of_two, sampling)
    alone = [Trainer(network(seed), dataset, recipe, sampling) for seed in (0, 1)]
    for trainer in (together, *alone):
        trainer.fit(3, silent=True)
    for member, trainer in zip(together.model.members, alone, strict=True):
        for leaf, expected in zip(leaves_of(member), leaves_of(trainer.model), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-4)
    losses = [trainer.logger.train_loss for trainer in alone]
    np.testing.assert_allclose(together.logger.train_loss, np.mean(losses, axis=0), rtol=1e-3)


def test_probabilities_are_the_mean(model_file, adata):
    state = load_model(model_file)
    state = dataclasses.replace(state, calibration=None)
    table = classify(state, adata, return_table=True, silent=True)
    alone = [
        classify(dataclasses.replace(state, params=params, members=[]), adata, return_table=True, silent=True)
        for params in (state.params, *state.members)
    ]
    labels = state.output_labels
    np.testing.assert_allclose(table[labels], np.mean([each[labels] for each in alone], axis=0), rtol=1e-4, atol=1e-6)
    assert not np.allclose(alone[0][labels], alone[1][labels], atol=1e-3)


def test_the_held_out_cells_are_scored_by_the_mean(dataset):
    trainer = GinsengClassifierTrainer(dataset, THREE)
    trainer.fit(2, silent=True)
    x, y = next(dataset.stream(64, "test", shuffle=False))
    logits = jax.vmap(eqx.nn.inference_mode(trainer.model))(x)
    assert trainer.logger.holdout_accuracy[-1] == pytest.approx((np.asarray(logits).argmax(axis=1) == y).mean())
    assert trainer.classifier.module.head.weight.shape == (3, 30)
    assert_same_weights(trainer.classifier.module, trainer.model.members[0])


def test_the_first_is_in_the_documented_layout(model_file, tmp_path):
    state = load_model(model_file)
    assert len(state.members) == 2
    with h5py.File(model_file, "r+") as file:
        del file["members"], file["metadata"]
    first = load_model(model_file)
    assert first.members == []
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, state.params))


def test_damage_of_the_others_is_noticed(model_file):
    with h5py.File(model_file, "r+") as file:
        file["members/2/head/W"][0, 0] += 1
    with pytest.raises(ValueError, match=r"m.h5.*have changed since they were written"):
        load_model(model_file)
    with h5py.File(model_file, "r+") as file:
        del file["members/2"]
    with pytest.raises(ValueError, match=r"m.h5.*have changed since they were written"):
        load_model(model_file)


def test_others_of_other_shapes_are_refused(model_file):
    state = load_model(model_file)
    with pytest.raises(ValueError, match="`members` must have weights of the same shapes"):
        dataclasses.replace(state, members=[{**state.params, "head": state.params["attn1"]}])
    with pytest.raises(ValueError, match="must be of one making"):
        Ensemble([network(0), AttentionClassifier(30, 4, 8, key=jr.key(0))])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
    activations = [eqx.nn.MLP(30, 3, 4, 1, activation=f, key=jr.key(0)) for f in (jax.nn.relu, jax.nn.tanh)]
    with pytest.raises(ValueError, match="must be of one making"):
        Ensemble(activations)
    Ensemble([eqx.nn.MLP(30, 3, 4, 1, activation=lambda x: x, key=jr.key(seed)) for seed in range(2)])


class TestFineTuning:
    @pytest.fixture
    def more_types(self, tmp_path):
        adata = simulate(n_types=4, n_cells=200)
        return GinsengDataset.create(tmp_path / "new.zarr", adata, "cell_type", silent=True)

    def test_all_go_on_with_the_new_labels(self, model_file, more_types):
        trainer = GinsengClassifierTrainer(more_types, QUICK, start=model_file)
        assert trainer.settings.members == 3
        old = load_model(model_file)
        for member, params in zip(members_of(trainer.model), (old.params, *old.members), strict=True):
            np.testing.assert_array_equal(member.head.weight[:3], params["head"]["W"].T)
        new_rows = [np.asarray(member.head.weight[3]) for member in members_of(trainer.model)]
        assert not np.array_equal(new_rows[0], new_rows[1])
        trainer.fit(8, silent=True)
        assert trainer.logger.holdout_accuracy[-1] > 0.9
        assert len(state_from_classifier_trainer(trainer).members) == 2

    @pytest.mark.parametrize("of_all", [False, True])
    def test_a_spec_holds_for_each(self, model_file, more_types, of_all):
        start = load_model(model_file)
        spec = eqx.tree_at(lambda m: m.head, jax.tree.map(lambda _: False, start.networks[0]), replace=True)
        if of_all:
            spec = eqx.tree_at(lambda m: m.stacked.head, jax.tree.map(lambda _: False, start.module), replace=True)
        trainer = GinsengClassifierTrainer(more_types, QUICK, start=start, trainable=spec)
        trainer.fit(1, silent=True)
        for member, before in zip(members_of(trainer.model), start.networks, strict=True):
            assert_same_weights(member.features1, before.features1)
            assert not np.array_equal(member.head.weight[:3], before.head.weight)
