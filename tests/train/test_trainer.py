import copy
import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
import pytest

from ginseng import (
    AttentionClassifier,
    GinsengClassifier,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    Trainer,
    adam_l2,
    classifier_from_state,
    classify,
    load_model,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.metrics import score
from ginseng.train import Recipe, Sampling
from ginseng.train.step import key_of
from tests.conftest import simulate
from tests.train.models import (
    QUICK,
    Plain,
    assert_same_weights,
    attention,
    ensemble,
    leaves_of,
    new_head,
    plain,
    replaced_layer,
    sequential,
)


class TestTrainer:
    @pytest.mark.parametrize("make", [attention, sequential, ensemble, replaced_layer, new_head, plain])
    def test_any_module_learns_and_stays_as_it_was(self, dataset, make):
        model = make()
        before = jax.tree.map(jnp.copy, leaves_of(model))
        dataset.make_split(0.25)
        trainer = Trainer(model, dataset, Recipe(optimizer=adam_l2(1e-2)), Sampling(batch_size=32))
        trained = trainer.fit(epochs=8, silent=True)
        assert jax.tree.structure(trained) == jax.tree.structure(model)
        assert trainer.logger.train_loss[-1] < 0.5 * trainer.logger.train_loss[0]
        assert trainer.logger.holdout_accuracy[-1] > 0.9
        for leaf, old in zip(leaves_of(model), before, strict=True):
            np.testing.assert_array_equal(leaf, old)

    def test_frozen_leaves_get_no_gradient_and_no_optimiser_state(self, dataset):
        model = new_head()
        spec = eqx.tree_at(lambda m: m.head, jax.tree.map(lambda _: False, model), replace=True)
        trainer = Trainer(
            model, dataset, Recipe(optimizer=adam_l2(1e-2, weight_decay=0.1)), Sampling(batch_size=32), trainable=spec
        )
        assert len(jax.tree.leaves(trainer.opt_state.m)) == 4
        trained = trainer.fit(epochs=6, silent=True)
        assert_same_weights(trained.extractor, model.extractor)
        assert_same_weights(trained.head, model.head, same=False)
        assert trainer.logger.train_loss[-1] < trainer.logger.train_loss[0]

    def test_one_step_is_the_update_of_the_optimizer_on_the_mean_gradient(self, dataset):
        model = plain()
        trained = Trainer(model, dataset, Recipe(optimizer=optax.sgd(0.1)), Sampling(batch_size=120)).fit(
            epochs=1, silent=True
        )
        ((x, y),) = dataset.stream(120, "all", shuffle=False)

        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(jnp.asarray(x)), y).mean()

        expected = model.weight - 0.1 * eqx.filter_grad(loss)(model).weight
        np.testing.assert_allclose(trained.weight, expected, rtol=1e-4, atol=1e-6)

    def test_a_padded_tail_counts_only_its_cells(self, dataset):
        """Without steps (rate 0) the mean loss does not depend on how the cells are cut into batches."""
        losses = []
        for batch_size in (120, 50, 7):
            model = plain()
            model = eqx.tree_at(lambda m: m.weight, model, jnp.asarray(np.random.default_rng(0).normal(size=(3, 30))))
            trainer = Trainer(model, dataset, Recipe(optimizer=optax.sgd(0.0)), Sampling(batch_size=batch_size))
            dataset.make_split(0.3)
            trainer.fit(1, silent=True)
            losses.append((trainer.logger.train_loss[0], trainer.logger.holdout_loss[0]))
        np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-5)

    def test_holdout_metrics_are_those_of_the_trained_module_without_dropout(self, dataset):
        dataset.make_split(0.4)
        trainer = Trainer(attention(), dataset, sampling=Sampling(batch_size=32))
        model = eqx.nn.inference_mode(trainer.fit(2, silent=True))
        x = np.vstack([x for x, _ in dataset.stream(50, "test", shuffle=False)])
        y = dataset.labels[dataset.test_idx]
        logits = jax.vmap(model)(jnp.asarray(x))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        np.testing.assert_allclose(trainer.logger.holdout_loss[-1], loss, rtol=1e-4)
        assert trainer.logger.holdout_accuracy[-1] == pytest.approx(np.mean(np.argmax(logits, axis=1) == y))

    def test_equal_seeds_give_equal_weights(self, dataset):
        def run(seed):
            return Trainer(attention(), dataset, sampling=Sampling(batch_size=32, seed=seed)).fit(2, silent=True)

        assert_same_weights(run(3), run(3))
        assert_same_weights(run(3), run(4), same=False)

    def test_fit_goes_on(self, dataset):
        at_once, in_parts = (Trainer(attention(), dataset, sampling=Sampling(batch_size=32)) for _ in range(2))
        at_once.fit(3, silent=True)
        first = in_parts.fit(1, silent=True)
        kept = jax.tree.map(jnp.copy, leaves_of(first))
        in_parts.fit(2, silent=True)
        assert_same_weights(at_once.model, in_parts.model)
        assert in_parts.logger.epoch == [0, 1, 2]
        for leaf, old in zip(leaves_of(first), kept, strict=True):
            np.testing.assert_array_equal(leaf, old)

    def test_a_model_may_be_assigned(self, dataset):
        trainer = Trainer(attention(), dataset, sampling=Sampling(batch_size=32))
        trainer.fit(1, silent=True)
        trainer.model = attention(seed=9)
        assert_same_weights(trainer.fit(0), attention(seed=9))
        assert int(trainer.opt_state.step) == 0

    def test_a_loss_of_held_out_cells_that_is_not_finite_is_refused(self, dataset):
        """Finite where it is trained, NaN where it is not: no accuracy is reported, and the epoch has not been."""
        dataset.make_split(0.25)
        trainer = Trainer(NaNWithoutDropout(attention()), dataset, sampling=Sampling(batch_size=32))
        with pytest.raises(ValueError, match="holdout loss is nan in epoch 1: the learning rate may be too large"):
            trainer.fit(2, silent=True)
        assert_same_weights(trainer.model, attention())
        assert trainer.logger.epoch == []
        assert trainer.holdout_scores is None

    def test_negative_values_are_refused_where_the_model_normalises_them(self, adata, tmp_path):
        adata.X = adata.X.toarray() - 1
        with pytest.raises(ValueError, match="holds scaled or centred values, such as -1.*normalize=False"):
            GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", normalize=False, silent=True)
        with pytest.raises(ValueError, match="negative values, which cannot be normalised"):
            Trainer(attention(), dataset).fit(1, silent=True)

    def test_patience_needs_held_out_cells(self, dataset):
        with pytest.raises(ValueError, match="`patience` needs held-out cells"):
            Trainer(attention(), dataset, patience=1).fit(1, silent=True)

    def test_augmentation_runs_inside_the_step(self, dataset):
        """Counts that are all lost leave nothing to learn from but the bias."""
        trainer = Trainer(plain(), dataset, Recipe(augment=lambda key, x: 0 * x), Sampling(batch_size=32))
        assert_same_weights(trainer.fit(1, silent=True), plain())

    def test_progress_is_shown_unless_silent(self, dataset, capsys):
        Trainer(plain(), dataset).fit(1, silent=True)
        captured = capsys.readouterr()
        assert captured.out + captured.err == ""
        Trainer(plain(), dataset).fit(1)
        captured = capsys.readouterr()
        assert "epoch 1: train loss" in captured.out
        assert "Epoch 1/1" in captured.err

    def test_bad_requests_are_refused(self, dataset):
        with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, but got 0"):
            Sampling(batch_size=0)
        with pytest.raises(ValueError, match="selects no floating-point array"):
            Trainer(plain(), dataset, trainable=False)
        with pytest.raises(ValueError, match="`epochs` must be an integer of at least 0, but got -1"):
            Trainer(plain(), dataset).fit(-1)
        with pytest.raises(ValueError, match=r"logits of shape \(3,\).*its output has shape \(2,\)"):
            Trainer(attention(2), dataset)
        with pytest.raises(ValueError, match="does not take a cell with 30 genes"):
            Trainer(Plain(jnp.zeros((3, 29))), dataset)
        with pytest.raises(ValueError, match="`class_weights` must not be 0 for every label"):
            Trainer(plain(), dataset, Recipe(class_weights=dict.fromkeys(dataset.label_names, 0.0)))

    def test_a_model_that_is_assigned_must_fit(self, dataset):
        trainer = Trainer(plain(), dataset)
        with pytest.raises(ValueError, match=r"logits of shape \(3,\).*its output has shape \(2,\)"):
            trainer.model = attention(2)
        assert_same_weights(trainer.model, plain())
        trainer.model = attention()
        assert_same_weights(trainer.fit(1, silent=True), attention(), same=False)

    @pytest.mark.parametrize("n_rates", [7, 9])
    def test_an_epoch_has_a_learning_rate_for_each_step(self, dataset, n_rates):
        trainer = Trainer(plain(), dataset, sampling=Sampling(batch_size=15))
        with pytest.raises(ValueError, match=f"a learning rate for each of the 8 steps of an epoch, but has {n_rates}"):
            trainer._run_epoch(np.ones(n_rates))
        assert np.isfinite(trainer._run_epoch(np.ones(8)))

    def test_a_loss_that_is_not_finite_is_refused(self, dataset):
        with pytest.raises(
            ValueError, match="training loss is nan in epoch 1, step 2 of 8: the learning rate may be too large"
        ):
            Trainer(plain(), dataset, Recipe(optimizer=optax.sgd(1e38)), Sampling(batch_size=16)).fit(1, silent=True)

    @pytest.mark.parametrize("inside_a_call", [False, True])
    def test_an_interruption_keeps_what_was_learnt(self, dataset, monkeypatch, inside_a_call):
        trainer = Trainer(attention(), dataset, Recipe(optimizer=adam_l2(1e-2)), Sampling(batch_size=3))  # 3 calls
        steps, n_calls = trainer._train_step, 0

        def interrupted(given, state):
            nonlocal n_calls
            n_calls += 1
            if n_calls == 5 and not inside_a_call:
                raise KeyboardInterrupt
            result = steps(given, state)
            if n_calls == 5:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(trainer, "_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(5, silent=True)
        assert trainer.logger.epoch == [0]
        assert_same_weights(trainer.model, attention(), same=False)
        assert int(trainer.opt_state.step) == (0 if inside_a_call else 40 + 16)
        trainer.fit(5, silent=True)
        assert trainer.logger.train_loss[-1] < 0.5 * trainer.logger.train_loss[0]


class NaNWithoutDropout(eqx.Module):
    """A model whose logits are NaN in validation."""

    inner: AttentionClassifier

    def __call__(self, x, *, key=None):
        return self.inner(x, key=key) if key is not None else jnp.full(3, jnp.nan)


class TestValues:
    """What training is composed of is checked when it is made, by the name that was typed."""

    @pytest.mark.parametrize(
        ("make", "values", "message"),
        [
            (Recipe, {"warmup": 1.0}, r"`warmup` must lie in \[0, 1\), but got 1.0"),
            (Sampling, {"batch_size": 0}, "`batch_size` must be an integer of at least 1, but got 0"),
            (Sampling, {"alpha": 1.5}, r"`alpha` must lie in \[0, 1\], but got 1.5"),
            (Sampling, {"balance": "up"}, "balanced by one of none, downsample, resample"),
            (Sampling, {"memory": "much"}, "An amount of memory must be like"),
            (Sampling, {"seed": -1}, r"`seed` must be an integer in \[0, 4294967296\), but got -1"),
            (GinsengClassifierTrainerSettings, {"balance_alpha": 1.5}, r"`balance_alpha` must lie in \[0, 1\]"),
            (
                GinsengClassifierTrainerSettings,
                {"batch_size": 0},
                "`batch_size` must be an integer of at least 1, but got 0",
            ),
            (GinsengClassifierTrainerSettings, {"lr": -1.0}, r"`lr` must lie in \[0, inf\), but got -1.0"),
            (GinsengClassifierTrainerSettings, {"eps": np.nan}, r"`eps` must lie in \[0, inf\), but got nan"),
            (GinsengClassifierTrainerSettings, {"ema": 1.0}, r"`ema` must lie in \[0, 1\), but got 1.0"),
            (GinsengClassifierTrainerSettings, {"precision": "float8"}, "`precision` must be one of float32"),
        ],
    )
    def test_bad_ones_are_refused(self, make, values, message):
        with pytest.raises(ValueError, match=message):
            make(**values)

    def test_keys_have_a_purpose(self):
        """Masks of the first steps are not drawn by keys that initial weights were drawn by."""
        seed = 1
        initial = jr.split(jr.key(seed))
        used = [jr.key(seed), *initial, *jr.split(initial[1], 5)]
        drawn = {"steps": key_of(seed, "steps")}
        used += [key for purpose in drawn.values() for key in (purpose, *jr.split(jr.fold_in(purpose, 0)))]
        assert len({tuple(jr.key_data(key).tolist()) for key in used}) == len(used)


class TestSettings:
    def test_the_preset_is_the_recipe_of_the_reference(self):
        expected = {
            "rate": None,
            "lam_max": None,
            "lower": None,
            "upper": None,
            "hidden_dim": 64,
            "dropout_rate": 0.2,
            "batch_size": 128,
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-9,
            "weight_decay": 0.01,
            "decoupled": True,
            "normalize": True,
            "target_sum": 1e4,
            "holdout_fraction": 0.1,
            "balance_train": "downsample",
            "group_level": False,
            "group_mode": "fraction",
            "seed": 1,
            "schedule": "constant",
            "warmup": 0.0,
            "clip": None,
            "label_smoothing": 0.0,
            "class_weights": None,
            "ema": None,
            "precision": "float32",
            "patience": None,
            "center": False,
            "stratify_label": False,
            "members": 1,
            "rates": None,
            "replay": 0.5,
            "distill": 0.0,
            "calibrate": "none",
        }
        preset = GinsengClassifierTrainerSettings.reference()
        assert dataclasses.asdict(preset) == {**expected, "balance_alpha": preset.balance_alpha}
        assert GinsengClassifierTrainerSettings.reference(lr=0.1).lr == 0.1

    def test_bad_settings_are_refused(self, dataset):
        with pytest.raises(ValueError, match="group_mode.*'leave one out'"):
            GinsengClassifierTrainerSettings(group_mode="leave one out")
        settings = GinsengClassifierTrainerSettings()
        settings.holdout_fraction = 1.0
        with pytest.raises(ValueError, match=r"`holdout_fraction` must lie in \[0, 1\), but got 1.0"):
            GinsengClassifierTrainer(dataset, settings)
        with pytest.raises(ValueError, match="batch_size"):
            GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, batch_size=0))
        with pytest.raises(ValueError, match="dropout_rate"):
            GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, dropout_rate=1.0))


class TestGinsengClassifierTrainer:
    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("trained")
        dataset = GinsengDataset.create(folder / "cells.zarr", simulate(), "cell_type", silent=True)
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        trainer.fit(6, silent=True)
        return trainer

    def test_fit_returns_the_classifier(self, trained):
        assert isinstance(trained.classifier, GinsengClassifier)
        assert trained.fit(0) is trained.classifier
        assert trained.logger.holdout_accuracy[-1] > 0.9
        assert (len(trained.dataset.test_idx), trained.classifier.hidden_dim) == (12, 8)

    def test_initial_weights_are_those_of_the_seed(self, dataset):
        trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, center=False))
        assert_same_weights(trainer.model, GinsengClassifier(30, 3, 8, 0.2, seed=QUICK.seed).module)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_the_first_layer_takes_the_mean_training_cell_to_0(self, dataset, normalize):
        dataset.make_split(0.3)
        trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, normalize=normalize))
        ((x, _),) = dataset.stream(120, "train")
        x = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)) if normalize else x
        model = trainer.classifier.module
        np.testing.assert_allclose(jax.vmap(model.features1)(x).mean(axis=0), 0, atol=1e-3)
        as_drawn = GinsengClassifier(30, 3, 8, 0.2, normalize, seed=QUICK.seed).module
        assert_same_weights(eqx.tree_at(lambda m: m.features1.bias, model, jnp.zeros(30)), as_drawn)

    def test_a_saved_classifier_is_not_centred_anew(self, trained, dataset):
        state = state_from_classifier_trainer(trained)
        tuned = GinsengClassifierTrainer(dataset, QUICK, start=state)
        assert tuned.metadata()["settings"]["center"] is False
        assert_same_weights(tuned.model, trained.classifier.module)

    def test_train_save_load_annotate(self, trained, tmp_path):
        save_model(state_from_classifier_trainer(trained), tmp_path / "m.h5")
        state = load_model(tmp_path / "m.h5")
        assert (state.normalize, state.dropout_rate, state.training) == (True, QUICK.dropout_rate, False)
        assert state.metadata["settings"]["hidden_dim"] == 8
        assert state.metadata["history"]["train_loss"] == trained.logger.train_loss
        new = simulate(n_cells=200, seed=0)
        classify(state, new, silent=True)
        assert (new.obs["ginseng_cell_type"].astype(str) == new.obs["cell_type"].astype(str)).mean() > 0.95

    def test_dataset_by_path_and_default_settings(self, dataset):
        trainer = GinsengClassifierTrainer(str(dataset.path))
        assert trainer.settings == GinsengClassifierTrainerSettings()

    def test_an_existing_split_is_kept(self, dataset):
        dataset.make_split(0.5)
        assert len(GinsengClassifierTrainer(dataset, QUICK).dataset.test_idx) == 60

    def test_a_split_that_mixes_groups_is_named(self, dataset):
        dataset.make_split(0.5)
        settings = dataclasses.replace(QUICK, group_level=True)
        with pytest.warns(UserWarning, match="cells of a group on both sides"):
            GinsengClassifierTrainer(dataset, settings)

    def test_an_interrupted_classifier_is_the_one_trained_so_far(self, dataset, monkeypatch):
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        validate = Trainer._validate

        def interrupted(self):
            if len(trainer.logger.epoch) == 2:
                raise KeyboardInterrupt
            return validate(self)

        monkeypatch.setattr(Trainer, "_validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(5, silent=True)
        assert_same_weights(trainer.classifier.module, trainer.model)
        assert_same_weights(trainer.model, GinsengClassifier(30, 3, 8, 0.2, seed=QUICK.seed).module, same=False)

    def test_training_starts_from_the_classifier_s_parameters(self, dataset):
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        trainer.classifier.params = jax.tree.map(jnp.zeros_like, trainer.classifier.params)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(trainer.fit(0).params))

    @pytest.mark.parametrize(
        ("settings", "options"),
        [
            ({"dropout_rate": 1.0}, {}),
            ({"class_weights": {"NK": 2.0}}, {}),
            ({"patience": 1, "holdout_fraction": 0.0}, {}),
            ({}, {"memory": "much"}),
            ({}, {"devices": 99}),
            ({}, {"trainable": False}),
        ],
    )
    def test_a_trainer_that_is_refused_leaves_the_dataset_without_a_split(self, dataset, settings, options):
        with pytest.raises(ValueError, match="`|memory|label"):
            GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, **settings), **options)
        assert dataset.train_idx is None
        assert GinsengDataset(dataset.path).train_idx is None
        GinsengClassifierTrainer(dataset, QUICK)
        assert len(GinsengDataset(dataset.path).test_idx) == 12

    def test_a_copy_of_the_classifier_keeps_its_weights(self, dataset):
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        kept, before = copy.deepcopy(trainer.classifier), trainer.classifier.module
        trainer.fit(1, silent=True)
        assert_same_weights(kept.module, before)
        assert_same_weights(trainer.classifier.module, before, same=False)
        assert type(kept) is GinsengClassifier

    def test_the_classifier_s_options_may_be_assigned_between_fits(self, dataset):
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        trainer.fit(1, silent=True)
        trainer.classifier.dropout_rate = 0.0
        assert trainer.fit(1, silent=True).dropout_rate == 0.0

    def test_groups_are_held_out(self, dataset):
        settings = dataclasses.replace(QUICK, group_level=True, holdout_fraction=0.25)
        GinsengClassifierTrainer(dataset, settings)
        assert not set(dataset.groups[dataset.train_idx]) & set(dataset.groups[dataset.test_idx])

    def test_nothing_held_out(self, dataset):
        trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, holdout_fraction=0.0))
        trainer.fit(1, silent=True)
        assert np.isnan(trainer.logger.holdout_loss[0])

    def test_augmentation_and_balancing(self, dataset):
        settings = dataclasses.replace(QUICK, rate=0.1, lam_max=0.1, lower=0, upper=2, balance_train=True)
        trainer = GinsengClassifierTrainer(dataset, settings)
        trainer.fit(6, silent=True)
        assert trainer.logger.train_loss[-1] < trainer.logger.train_loss[0]

    def test_weight_decay_in_both_forms(self, dataset):
        models = [
            GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, weight_decay=wd, decoupled=decoupled))
            .fit(1, silent=True)
            .module
            for wd, decoupled in ((0.0, True), (1.0, True), (1.0, False))
        ]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert_same_weights(models[first], models[second], same=False)

    def test_negative_values_are_refused_where_counts_are_normalised(self, adata, tmp_path):
        adata.X = adata.X.toarray() - 1
        with pytest.raises(ValueError, match="holds scaled or centred values, such as -1.*normalize=False"):
            GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", normalize=False, silent=True)
        with pytest.raises(ValueError, match="negative values, which cannot be normalised"):
            GinsengClassifierTrainer(dataset, QUICK)
        with pytest.raises(ValueError, match="negative values, which cannot be normalised"):
            GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, center=False)).fit(1, silent=True)
        GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, normalize=False)).fit(1, silent=True)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_a_dataset_of_normalised_counts_draws_a_warning_where_it_is_normalised(self, adata, tmp_path, normalize):
        adata.X = adata.X / 7
        with pytest.warns(UserWarning, match="fractions"):
            dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        settings = GinsengClassifierTrainerSettings(normalize=normalize)
        with warnings.catch_warnings(record=True) as warned:
            GinsengClassifierTrainer(dataset, settings)
        found = [str(each.message) for each in warned if "c.zarr holds fractions such as" in str(each.message)]
        assert len(found) == normalize

    def test_a_dataset_of_logarithms_is_refused_where_it_is_normalised(self, adata, tmp_path):
        adata.X = np.log1p(adata.X)
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", normalize=False, silent=True)
        with pytest.raises(ValueError, match="c.zarr holds log1p of raw counts.*fix=True.*normalize=False"):
            GinsengClassifierTrainer(dataset, QUICK)
        GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, normalize=False))

    def test_all_cells_held_out(self, dataset):
        dataset.train_idx, dataset.test_idx = np.array([], int), np.arange(120)
        with pytest.raises(ValueError, match="There is no cell to train on"):
            GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True)

    def test_too_many_genes_are_refused_with_the_bytes(self, dataset):
        dataset.n_genes, dataset.gene_names = 10**6, list(map(str, range(10**6)))
        with pytest.raises(MemoryError, match=r"1,000,000 genes.*40,000,000,000,000 bytes.*select_hvgs"):
            GinsengClassifierTrainer(dataset, QUICK)


def test_types_too_rare_to_hold_out_are_trained_on(tmp_path):
    adata = simulate()
    adata = adata[(adata.obs["cell_type"] != "B cell") | (np.arange(120) < 20)].copy()
    dataset = GinsengDataset.create(tmp_path / "rare.zarr", adata, "cell_type", silent=True)
    n_cells = np.bincount(dataset.labels)
    assert n_cells[0] < 10 < n_cells[1:].min()
    GinsengClassifierTrainer(dataset, QUICK)
    held_out = np.bincount(dataset.labels[dataset.test_idx], minlength=3)
    np.testing.assert_array_equal(held_out, [0, *np.round(n_cells[1:] / 10)])


class TestFineTuning:
    @pytest.fixture
    def model_file(self, dataset, tmp_path):
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        trainer.fit(6, silent=True)
        save_model(state_from_classifier_trainer(trainer), tmp_path / "m.h5")
        return tmp_path / "m.h5"

    def create(self, folder, adata, **options):
        return GinsengDataset.create(folder / "new.zarr", adata, "cell_type", silent=True, **options)

    def test_it_starts_where_training_ended(self, model_file, adata, tmp_path):
        trainer = GinsengClassifierTrainer(self.create(tmp_path, adata), QUICK, start=model_file)
        state = load_model(model_file)
        expected = classify(state, adata, return_table=True, silent=True, calibrate=False)
        np.testing.assert_allclose(
            jax.nn.softmax(trainer.classifier.predict(adata.X.toarray())),
            expected[trainer.label_names],
            rtol=1e-3,
            atol=1e-5,
        )
        trainer.fit(1, silent=True)
        assert trainer.logger.train_loss[0] < 0.5
        metadata = state_from_classifier_trainer(trainer).metadata
        assert metadata["start"]["history"] == state.metadata["history"]

    def test_settings_without_effect_are_not_saved(self, adata, tmp_path):
        trainer = GinsengClassifierTrainer(self.create(tmp_path, adata), QUICK, optimizer=optax.sgd(0.1))
        assert {"lr", "clip", "schedule"}.isdisjoint(trainer.metadata()["settings"])
        assert trainer.metadata()["settings"]["batch_size"] == QUICK.batch_size

    def test_the_network_s_settings_are_the_saved_ones(self, model_file, adata, tmp_path):
        settings = dataclasses.replace(QUICK, hidden_dim=99, dropout_rate=0.9, normalize=False, target_sum=1.0)
        trainer = GinsengClassifierTrainer(self.create(tmp_path, adata), settings, start=model_file)
        assert trainer.settings == dataclasses.replace(QUICK, center=False)
        assert trainer.metadata()["settings"]["hidden_dim"] == trainer.classifier.hidden_dim == 8

    def test_genes_in_another_order_and_some_missing(self, model_file, adata, tmp_path):
        genes = list(np.random.default_rng(0).permutation(adata.var_names)[:25])
        dataset = self.create(tmp_path, adata, genes=genes)
        with pytest.warns(UserWarning, match="5 of the 30 genes of the model are not in the data"):
            trainer = GinsengClassifierTrainer(dataset, QUICK, start=load_model(model_file))
        trainer.fit(3, silent=True)
        assert trainer.genes == list(adata.var_names)
        state = state_from_classifier_trainer(trainer)
        table = classify(state, adata[:, genes].copy(), return_table=True, silent=True)
        assert (table["ginseng_cell_type"].astype(str) == adata.obs["cell_type"].astype(str)).mean() > 0.9

    def test_a_part_of_the_labels(self, model_file, adata, tmp_path):
        subset = adata[adata.obs["cell_type"] != "B cell"].copy()
        trainer = GinsengClassifierTrainer(self.create(tmp_path, subset), QUICK, start=model_file)
        assert trainer.label_names == ["B cell", "NK cell", "T cell"]
        trainer.fit(1, silent=True)
        assert trainer.logger.holdout_accuracy[0] > 0.9

    def test_new_labels_are_added_to_the_head(self, model_file, tmp_path):
        adata = simulate(n_types=4, n_cells=200, seed=0)
        trainer = GinsengClassifierTrainer(self.create(tmp_path, adata), QUICK, start=model_file)
        assert trainer.label_names == ["B cell", "NK cell", "T cell", "γδ T cell"]
        old = load_model(model_file).params["head"]["W"]
        np.testing.assert_array_equal(trainer.classifier.params["head"]["W"][:, :3], old)
        trainer.fit(8, silent=True)
        assert trainer.logger.holdout_accuracy[-1] > 0.9
        assert state_from_classifier_trainer(trainer).n_classes == 4

    @pytest.mark.parametrize("n_types", [3, 4])
    def test_parts_can_be_frozen(self, model_file, tmp_path, n_types):
        start = load_model(model_file)
        module = classifier_from_state(start).module
        spec = eqx.tree_at(lambda m: m.head, jax.tree.map(lambda _: False, module), replace=True)
        dataset = self.create(tmp_path, simulate(n_types=n_types))
        trainer = GinsengClassifierTrainer(dataset, QUICK, start=start, trainable=spec)
        params = trainer.fit(1, silent=True).params
        for name, layer in start.params.items():
            assert np.array_equal(layer["W"], params[name]["W"][:, : layer["W"].shape[1]]) == (name != "head")
        assert len(jax.tree.leaves(trainer.opt_state.m)) == 2

    def test_no_gene_in_common(self, model_file, adata, tmp_path):
        adata.var_names = [f"mouse{i}" for i in range(30)]
        with pytest.raises(ValueError, match="No gene in common, where 5 are needed: the model knows GENE0.*mouse0"):
            GinsengClassifierTrainer(self.create(tmp_path, adata), QUICK, start=model_file)


class TestPatience:
    @pytest.fixture
    def losses(self, monkeypatch):
        """Holdout losses of the epochs, prescribed."""

        def prescribe(*losses):
            remaining = iter(losses)
            monkeypatch.setattr(Trainer, "_validate", lambda _: (next(remaining, 99.0), None))

        return prescribe

    @pytest.mark.parametrize(("patience", "n_epochs"), [(1, 3), (2, 6), (None, 8)])
    def test_it_stops_and_goes_back_to_the_best_weights(self, dataset, losses, capsys, patience, n_epochs):
        losses(3.0, 2.0, 2.5, 1.0, 1.5, 1.4, 1.3, 1.2)
        settings = dataclasses.replace(QUICK, patience=patience)
        trainer = GinsengClassifierTrainer(dataset, settings)
        classifier = trainer.fit(epochs=8)
        assert len(trainer.logger.epoch) == n_epochs
        best = {1: 2, 2: 4, None: 8}[patience]
        assert ("lowest in epoch" in capsys.readouterr().out) == (patience is not None)
        losses(*[0.0] * 8)
        expected = GinsengClassifierTrainer(dataset, QUICK).fit(epochs=best, silent=True)
        assert_same_weights(classifier.module, expected.module)
        assert_same_weights(trainer.model, expected.module)

    def test_training_goes_on_afterwards(self, dataset, losses):
        losses(1.0, 2.0, 3.0, 0.5, 0.4)
        trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, patience=1))
        before = trainer.fit(epochs=5, silent=True).module
        assert len(trainer.logger.epoch) == 2
        assert_same_weights(trainer.fit(epochs=1, silent=True).module, before, same=False)

    def test_nothing_held_out(self, dataset):
        settings = dataclasses.replace(QUICK, holdout_fraction=0.0, patience=2)
        with pytest.raises(ValueError, match="`patience` needs held-out cells"):
            GinsengClassifierTrainer(dataset, settings)
        with pytest.raises(ValueError, match="`patience` must be an integer of at least 1, but got 0"):
            GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, patience=0))


def test_scores_of_the_held_out_cells(dataset):
    trainer = GinsengClassifierTrainer(dataset, QUICK)
    classifier = trainer.fit(epochs=3, silent=True)
    batches = list(dataset.stream(500, "test", shuffle=False))
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    names = np.array(dataset.label_names)
    expected = score(names[y], names[np.argmax(classifier.predict(x), axis=1)])
    pd.testing.assert_frame_equal(trainer.holdout_scores.confusion, expected.confusion, check_dtype=False)
    assert trainer.logger.holdout_macro_f1[-1] == pytest.approx(expected.macro_f1)
    assert trainer.logger.holdout_accuracy[-1] == pytest.approx(expected.accuracy)
    frame = trainer.logger.to_frame()
    assert frame.index.tolist() == [1, 2, 3]
    assert trainer.logger.epoch == [0, 1, 2]
    assert frame["train_loss"].tolist() == trainer.logger.train_loss


class TestCountsAndBalance:
    """What the trainer passes on to the stream."""

    @pytest.fixture
    def requests(self, dataset, monkeypatch):
        """Balance, memory and labels of the training streams."""
        found = []
        rows = GinsengDataset.rows

        def recorded(self, batch_size, split="train", balance_labels=False, **options):
            groups = list(rows(self, batch_size, split, balance_labels, **options))
            if split == "train":
                cells = np.concatenate([cells for _, cells in groups])
                found.append((options["memory"], np.bincount(self.labels[cells])))
            return iter(groups)

        monkeypatch.setattr(GinsengDataset, "rows", recorded)
        return found

    @pytest.mark.parametrize("balance", [True, "downsample", "resample", "none", False])
    def test_ways_to_balance(self, dataset, requests, balance):
        settings = dataclasses.replace(QUICK, balance_train=balance, balance_alpha=1.0)
        trainer = GinsengClassifierTrainer(dataset, settings, memory="3 kB")
        trainer.fit(epochs=1, silent=True)
        ((memory, per_label),) = requests
        in_part = np.bincount(dataset.labels[dataset.train_idx])
        assert memory == 3_000
        if balance in (True, "downsample"):
            assert (per_label == in_part.min()).all()
        elif balance == "resample":
            assert per_label.sum() == in_part.sum()
            assert np.ptp(per_label) <= 1
        else:
            np.testing.assert_array_equal(per_label, in_part)

    def test_beyond_memory_it_learns_as_well(self, dataset):
        accuracies = []
        for memory in (None, "3 kB"):
            trainer = GinsengClassifierTrainer(dataset, QUICK, memory=memory)
            trainer.fit(epochs=20, silent=True)
            assert (dataset._counts is None) == (memory is not None)
            accuracies.append(trainer.logger.holdout_accuracy[-1])
            dataset = GinsengDataset(dataset.path)
        assert min(accuracies) > 0.9

    def test_unknown_ways_are_refused_at_once(self, dataset):
        with pytest.raises(ValueError, match="balanced by one of none, downsample, resample"):
            dataclasses.replace(QUICK, balance_train="upsample")
        with pytest.raises(ValueError, match="An amount of memory must be like"):
            GinsengClassifierTrainer(dataset, QUICK, memory="much")


class TestRecipe:
    """One step, or none, against what a setting is documented to do."""

    @pytest.fixture
    def batch(self, dataset):
        ((x, y),) = dataset.stream(120, "all", shuffle=False)
        return jnp.asarray(x), y

    def one_step(self, dataset, **options):
        start = eqx.tree_at(lambda m: m.weight, plain(), 0.1 * jr.normal(jr.key(0), (3, 30)))
        recipe = Recipe(optimizer=optax.sgd(0.1), **options)
        trainer = Trainer(start, dataset, recipe, Sampling(batch_size=120))
        return start, trainer.fit(1, silent=True), trainer

    def expected(self, start, batch, loss):
        x, y = batch
        return start.weight - 0.1 * eqx.filter_grad(lambda m: loss(jax.vmap(m)(x), y))(start).weight

    def test_label_smoothing(self, dataset, batch):
        def loss(logits, y):
            targets = 0.8 * jax.nn.one_hot(y, 3) + 0.2 / 3
            return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=1))

        start, trained, _ = self.one_step(dataset, label_smoothing=0.2)
        np.testing.assert_allclose(trained.weight, self.expected(start, batch, loss), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("weights", [{"NK cell": 3.0}, "balanced"])
    def test_class_weights(self, dataset, batch, weights):
        counts = np.bincount(dataset.labels)
        factors = 120 / (3 * counts) if weights == "balanced" else np.array([1.0, 3.0, 1.0])

        def loss(logits, y):
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(losses * factors[y])

        start, trained, _ = self.one_step(dataset, class_weights=weights)
        np.testing.assert_allclose(trained.weight, self.expected(start, batch, loss), rtol=1e-4, atol=1e-6)

    def test_average_of_weights(self, dataset):
        recipe, sampling = Recipe(optimizer=optax.sgd(0.1)), Sampling(batch_size=120, seed=3)
        trainer = Trainer(plain(), dataset, recipe, sampling)
        weights = [trainer.fit(1, silent=True).weight for _ in range(3)]
        average = plain().weight
        for step, weight in enumerate(weights):
            decay = min(0.15, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * weight
        averaged = Trainer(plain(), dataset, dataclasses.replace(recipe, ema=0.15), sampling).fit(3, silent=True)
        np.testing.assert_allclose(averaged.weight, average, rtol=1e-5, atol=1e-7)

    def test_rates_multiply_the_updates_of_the_optimizer(self, dataset):
        start, trained, _ = self.one_step(dataset)
        _, half, _ = self.one_step(dataset, schedule=lambda _: 0.5)
        np.testing.assert_allclose(
            half.weight - start.weight, 0.5 * (trained.weight - start.weight), rtol=1e-4, atol=1e-7
        )

    def test_settings_reach_the_optimizer(self, dataset):
        def first_update(**changes):
            settings = dataclasses.replace(QUICK, batch_size=200, holdout_fraction=0.0, weight_decay=0.0, **changes)
            trainer = GinsengClassifierTrainer(dataset, settings)
            before = trainer.classifier.params["head"]["W"]
            return np.abs(trainer.fit(1, silent=True).params["head"]["W"] - before).max()

        assert first_update() == pytest.approx(5e-3, rel=1e-2)
        assert first_update(schedule=optax.constant_schedule(1e-3)) == pytest.approx(1e-3, rel=1e-2)
        assert first_update(clip=1e-12, eps=1.0) < 1e-12

    def test_equal_settings_share_what_is_compiled(self, dataset, caplog):
        settings = dataclasses.replace(QUICK, rate=0.1, clip=1.0)
        for number, lr in enumerate((2e-3, np.float64(2e-3), np.float64(3e-3), 3e-3)):
            caplog.clear()
            with jax.log_compiles():
                GinsengClassifierTrainer(dataset, dataclasses.replace(settings, lr=lr)).fit(1, silent=True)
            assert ("jit(train_steps)" in caplog.text) == (number in (0, 2))

    def test_an_optimizer_in_place_of_that_of_the_settings(self, dataset):
        settings = dataclasses.replace(QUICK, lr=1e9, schedule="cosine", clip=1e-9)
        trainer = GinsengClassifierTrainer(dataset, settings, optimizer=optax.sgd(0.0))
        before = trainer.classifier.module
        assert_same_weights(trainer.fit(1, silent=True).module, before)

    @pytest.mark.parametrize(("balance", "power"), [("resample", 0.5), ("downsample", 0.0)])
    def test_balanced_class_weights_know_of_other_balancing(self, dataset, balance, power):
        """Over an epoch as it is streamed every label counts the same, and a cell 1 in the mean."""
        sampling = Sampling(balance=balance, alpha=0.5)
        weights = Trainer(plain(), dataset, Recipe(class_weights="balanced"), sampling)._fixed().class_weights
        drawn = np.bincount(dataset.labels) ** power
        assert np.ptp(weights * drawn) < 1e-5
        assert np.average(weights, weights=drawn) == pytest.approx(1.0, rel=1e-5)

    @pytest.mark.parametrize("optimizer", [optax.contrib.reduce_on_plateau(), optax.polyak_sgd()])
    def test_optimizers_that_need_the_loss(self, dataset, optimizer):
        Trainer(plain(), dataset, Recipe(optimizer=optax.chain(optax.sgd(0.1), optimizer))).fit(1, silent=True)

    def test_an_average_of_weights_in_bfloat16(self, dataset):
        model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), plain())
        assert Trainer(model, dataset, Recipe(ema=0.9)).fit(1, silent=True).weight.dtype == jnp.bfloat16

    def test_bfloat16_learns_as_well(self, dataset):
        trainers = [
            GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, precision=precision))
            for precision in ("float32", "bfloat16")
        ]
        first, second = (trainer.fit(6, silent=True).module for trainer in trainers)
        assert_same_weights(first, second, same=False)
        assert {leaf.dtype for leaf in leaves_of(second)} == {np.dtype("float32")}
        assert trainers[1].logger.holdout_accuracy[-1] > 0.9

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("precision", "float8", "`precision` must be one of float32, bfloat16, but got 'float8'"),
            ("ema", 1.0, r"`ema` must lie in \[0, 1\), but got 1.0"),
            ("label_smoothing", -0.1, r"`label_smoothing` must lie in \[0, 1\), but got -0.1"),
            ("class_weights", "inverse", "`class_weights` must be 'balanced' or a dict, but got 'inverse'"),
            ("class_weights", {"NK cell": -1.0}, r"`class_weights\['NK cell'\]` must lie in \[0, inf\), but got -1.0"),
            ("class_weights", {"NK": 2.0}, "label 'NK' is not in the model's outputs. It has: B cell, NK cell"),
            ("schedule", "linear", "`schedule` must be one of constant, cosine"),
        ],
    )
    def test_bad_values_are_refused(self, dataset, option, value, message):
        with pytest.raises(ValueError, match=message):
            Trainer(plain(), dataset, Recipe(**{option: value}))
        if option in ("schedule", "class_weights", "precision"):
            with pytest.raises(ValueError, match=message):
                GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, **{option: value}))
        with pytest.raises(ValueError, match=r"`clip` must lie in \(0, inf\], but got 0"):
            dataclasses.replace(QUICK, clip=0.0)


def test_a_model_of_other_genes_and_labels(dataset):
    """Any module may have inputs and outputs that are not those of the dataset."""
    genes = [*reversed(dataset.gene_names[5:]), "UNKNOWN"]
    labels = ["another type", *dataset.label_names]
    model = AttentionClassifier(26, 4, 8, key=jr.key(0))
    with pytest.warns(UserWarning, match="1 of the 26 genes"):
        trainer = Trainer(
            model, dataset, Recipe(optimizer=adam_l2(1e-2)), Sampling(batch_size=32), genes=genes, labels=labels
        )
    trainer.fit(6, silent=True)
    assert trainer.logger.train_loss[-1] < 0.5 * trainer.logger.train_loss[0]
    with pytest.raises(ValueError, match="labels that the model has no output for: NK cell"):
        Trainer(model, dataset, genes=genes, labels=["B cell", "T cell", "γδ T cell"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metrics_are_logged_while_it_runs(dataset, tmp_path, suffix):
    path = tmp_path / "logs" / f"run.{suffix}"
    trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, holdout_fraction=0.0))
    trainer.fit(2, silent=True, log=path)
    trainer.fit(1, silent=True, log=path)
    table = pd.read_csv(path) if suffix == "csv" else pd.read_json(path, lines=True)
    assert table["epoch"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(table["train_loss"], trainer.logger.train_loss)
    assert table["holdout_loss"].isna().all()
    assert (table["seconds"] >= 0).all()
    with pytest.raises(ValueError, match=r"is a .csv or a .jsonl file, but got .*run.txt"):
        trainer.fit(1, silent=True, log=tmp_path / "run.txt")
    assert len(trainer.logger.epoch) == 3
    GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, log=path)
    GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, log=path)
    assert len(path.read_text().splitlines()) == 5 + (suffix == "csv")


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(dataset):
    trainer = Trainer(plain(), dataset, Recipe(optimizer=optax.sgd(1e38)), Sampling(batch_size=16))
    with pytest.raises(ValueError, match="training loss is nan"):
        trainer.fit(1, silent=True)
    assert_same_weights(trainer.model, plain())


def test_counts_travel_in_the_type_that_they_are_stored_in(dataset, monkeypatch):
    found = set()
    steps = Trainer._train_step

    def recorded(self, given, state):
        found.add(given[1].x.dtype)
        return steps(self, given, state)

    monkeypatch.setattr(Trainer, "_train_step", recorded)
    Trainer(attention(), dataset, sampling=Sampling(batch_size=32)).fit(1, silent=True)
    assert found == {np.dtype("uint8")} == {dataset.dtype}


def test_held_out_cells_can_be_scored_before_the_first_fit(dataset):
    loss, scores = GinsengClassifierTrainer(dataset, QUICK)._validate()
    assert np.isfinite(loss)
    assert 0 <= scores.accuracy <= 1
