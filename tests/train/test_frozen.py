import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ginseng import AttentionClassifier, Ensemble, GinsengClassifierTrainerSettings, GinsengDataset, Trainer
from ginseng.model.attention import PARTS
from ginseng.train.checkpoint import Checkpoint
from ginseng.train.frozen import (
    cached,
    frozen_parts,
    split_at_trunk,
    trainable_leaves,
    with_answers,
    without_dropout_of,
)
from ginseng.train.opt import adam_l2, require_rates, scale_by_part
from ginseng.train.recipe import Recipe, Sampling
from ginseng.utils.devices import Devices
from ginseng.utils.names import GeneNames
from tests.conftest import simulate
from tests.train.models import assert_same_weights, leaves_of

RECIPE = Recipe(optimizer=adam_l2(5e-3))
SAMPLING = Sampling(batch_size=16, balance="resample", seed=3)


@pytest.fixture
def split(dataset):
    dataset.make_split(0.2, seed=1)
    return dataset


@pytest.fixture
def network():
    return AttentionClassifier(30, 3, 8, dropout_rate=0.2, key=jr.key(0))


def tuned(network, dataset, freeze, *, epochs=3, **options):
    """By steps through the whole network."""
    trainable = trainable_leaves(network, freeze)
    without = without_dropout_of(network, frozen_parts(network, trainable))
    trainer = Trainer(without, dataset, RECIPE, SAMPLING, trainable=trainable, **options)
    trainer.fit(epochs, silent=True)
    return trainer


def tuned_on_answers(network, dataset, freeze, *, epochs=3, genes=None, devices=None, **options):
    options |= {"devices": devices}
    found = cached(
        network,
        dataset,
        RECIPE,
        SAMPLING,
        trainable=trainable_leaves(network, freeze),
        genes=genes,
        devices=devices,
    )
    trainer = Trainer(found.module, found.dataset, RECIPE, SAMPLING, trainable=found.trainable, **options)
    trainer.fit(epochs, silent=True)
    return trainer, found.whole(trainer.model)


def assert_close(one, other):
    for a, b in zip(leaves_of(one), leaves_of(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "freeze", ["trunk", ("features1", "features2"), ("features2", "features1", "attn1"), PARTS[:2] + PARTS[4:]]
)
def test_on_answers_of_the_trunk_training_ends_as_through_the_whole_network(split, network, freeze):
    whole = tuned(network, split, freeze)
    trainer, model = tuned_on_answers(network, split, freeze)
    assert_close(model, whole.model)
    np.testing.assert_allclose(trainer.logger.holdout_loss, whole.logger.holdout_loss, rtol=1e-4)
    np.testing.assert_allclose(trainer.answers("test")[0], whole.answers("test")[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(trainer.answers("test")[1], whole.answers("test")[1])
    for part in PARTS:
        names = PARTS[:4] if freeze == "trunk" else freeze
        assert_same_weights(getattr(model, part), getattr(network, part), same=part in names)
    assert not model.input_dropout.inference
    assert not model.gate_dropout.inference


def test_genes_of_the_model_are_found_in_the_data(network, tmp_path):
    adata = simulate()
    dataset = GinsengDataset.create(tmp_path / "x.zarr", adata[:, ::-1].copy(), "cell_type", silent=True)
    genes = GeneNames(list(adata.var_names))
    whole = tuned(network, dataset, "trunk", genes=genes)
    _, model = tuned_on_answers(network, dataset, "trunk", genes=genes)
    assert_close(model, whole.model)


def test_cells_of_neither_part_are_left_out(split, network):
    few = split.divided(split.train_idx[::2], split.test_idx[:3])
    trunk, _ = split_at_trunk(network, trainable_leaves(network, "trunk"))
    view = with_answers(trunk, few, SAMPLING, 2**30, Devices())[0]
    assert view.n_cells == len(few.train_idx) + 3
    x, y = next(view.stream(100, "test", shuffle=False))
    counts, labels = next(few.stream(100, "test", shuffle=False))
    np.testing.assert_allclose(x, jax.vmap(eqx.nn.inference_mode(network).features)(counts), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y, labels)


def test_a_view_is_split_without_a_trace_in_the_dataset(split, network):
    trunk, _ = split_at_trunk(network, trainable_leaves(network, "trunk"))
    few = split.divided(split.train_idx[:9], split.test_idx[:3])
    with_answers(trunk, few, SAMPLING, 2**30, Devices())[0].make_split(0.5)
    np.testing.assert_array_equal(GinsengDataset(split.path).train_idx, split.train_idx)


@pytest.mark.parametrize("fraction", [None, 0.2])
def test_cells_that_a_view_leaves_out_are_left_out(dataset, fraction):
    if fraction is not None:
        dataset.make_split(fraction)
    view = dataset.renamed({"NK cell": None})
    network = AttentionClassifier(30, 2, 8, dropout_rate=0.0, key=jr.key(0))
    whole = tuned(network, view, "trunk", epochs=1)
    on_answers, _ = tuned_on_answers(network, view, "trunk", epochs=1)
    assert on_answers.logger.train_loss == pytest.approx(whole.logger.train_loss, rel=1e-4)
    assert on_answers.answers("train")[1].size == (view.cells if fraction is None else view.train_idx).size


def test_a_run_that_was_stopped_goes_on(split, network, tmp_path, monkeypatch):
    _, expected = tuned_on_answers(network, split, ("features1", "features2"))
    save = Checkpoint.save

    def stop_after_two(self, run):
        save(self, run)
        if run.epoch == 2:
            raise KeyboardInterrupt

    def go():
        found = cached(network, split, RECIPE, SAMPLING, trainable=trainable_leaves(network, PARTS[:2]))
        trainer = Trainer(found.module, found.dataset, RECIPE, SAMPLING, trainable=found.trainable)
        return found.whole(trainer.fit(3, silent=True, checkpoint=tmp_path / "run"))

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            go()
    assert_same_weights(go(), expected)


def test_there_is_nothing_to_keep(split, network):
    trunk = trainable_leaves(network, "trunk")
    found = cached(network, split, RECIPE, SAMPLING, trainable=trunk)
    n_bytes = found.dataset.n_cells * 30 * 4
    for memory, fits in ((n_bytes, True), (n_bytes - 1, False)):
        sampling = Sampling(batch_size=16, memory=memory)
        assert (cached(network, split, RECIPE, sampling, trainable=trunk) is not None) == fits
    augmenting = Recipe(augment=lambda key, x: x)
    assert cached(network, split, augmenting, SAMPLING, trainable=trunk) is None
    for freeze in ((), "head", ("features1", "attn1", "attn2"), lambda leaf: leaf.ndim == 1):
        assert cached(network, split, RECIPE, SAMPLING, trainable=trainable_leaves(network, freeze)) is None
    members = Ensemble([network, network])
    assert cached(members, split, RECIPE, SAMPLING, trainable=trainable_leaves(members, "trunk")) is None


def test_members_share_what_is_frozen_of_them(split):
    members = Ensemble([AttentionClassifier(30, 3, 8, dropout_rate=0.2, key=jr.key(seed)) for seed in range(2)])
    trainer = tuned(members, split, "trunk", epochs=1)
    assert trainer.model.stacked.gate_dropout.inference
    assert_same_weights(trainer.model.stacked.attn2, members.stacked.attn2)
    assert_same_weights(trainer.model.stacked.head, members.stacked.head, same=False)


def test_what_is_frozen_is_named_or_selected(network):
    frozen = eqx.tree_at(lambda m: m.attn2.bias, jax.tree.map(lambda _: False, network), True)
    trainable = trainable_leaves(network, frozen)
    assert (trainable.attn2.bias, trainable.attn2.weight, trainable.head.bias) == (False, True, True)
    assert frozen_parts(network, trainable) == ()
    assert frozen_parts(network, trainable_leaves(network, ["trunk"])) == PARTS[:4]
    assert frozen_parts(network, eqx.is_inexact_array) == ()
    assert frozen_parts(network, trainable_leaves(network, lambda leaf: leaf is network.head.weight)) == ()


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("heads", "part 'heads' is not in the network; did you mean 'head'"),
        (("features1", "feature2"), "did you mean 'features2'"),
        (("trunk", "head"), "leaves nothing to train"),
        (True, "leaves nothing to train"),
        ({"head": True}, "`freeze` must be names of parts"),
    ],
)
def test_bad_names_of_parts(network, freeze, message):
    with pytest.raises(ValueError, match=message):
        trainable_leaves(network, freeze)


def first_steps(network, factors):
    """Updates of the first step by plain descent, by part."""
    optimizer = optax.sgd(1.0) if factors is None else optax.chain(optax.sgd(1.0), scale_by_part(factors))
    params = eqx.filter(network, eqx.is_inexact_array)
    return optimizer.update(params, optimizer.init(params), params)[0]


def test_rates_scale_the_parts_that_they_name(network):
    factors = {"features1": 0.0, "attn2": 0.25}
    plain, scaled = first_steps(network, None), first_steps(network, factors)
    for part in PARTS:
        for one, other in zip(leaves_of(getattr(plain, part)), leaves_of(getattr(scaled, part)), strict=True):
            np.testing.assert_array_equal(other, factors.get(part, 1.0) * one)
    members = first_steps(Ensemble([network, network]), factors)
    np.testing.assert_array_equal(members.stacked.attn2.weight[1], scaled.attn2.weight)
    _, remainder = split_at_trunk(network, trainable_leaves(network, PARTS[:2]))
    np.testing.assert_array_equal(first_steps(remainder, factors).network.attn2.weight, scaled.attn2.weight)


def test_settings_have_rates(split, network):
    settings = GinsengClassifierTrainerSettings(rates={"features1": 0.0, "head": 0.5}, clip=1.0)
    same = GinsengClassifierTrainerSettings(rates={"head": 0.5, "features1": 0.0}, clip=1.0)
    assert settings.recipe().optimizer is same.recipe().optimizer
    assert settings.recipe().optimizer is not GinsengClassifierTrainerSettings(clip=1.0).recipe().optimizer
    model = Trainer(network, split, settings.recipe(), SAMPLING).fit(1, silent=True)
    assert_same_weights(model.features1, network.features1)
    assert_same_weights(model.features2, network.features2, same=False)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"body": 1.0}, "part 'body' is not in the network"),
        ({"head": -1.0}, r"`rates\['head'\]` must lie in \[0, inf\)"),
        ({"head": np.inf}, r"`rates\['head'\]` must lie in \[0, inf\)"),
    ],
)
def test_bad_rates(rates, message):
    with pytest.raises(ValueError, match=message):
        scale_by_part(rates)
    with pytest.raises(ValueError, match=message):
        GinsengClassifierTrainerSettings(rates=rates)


def test_the_stages_are_the_network(network):
    x, key = jnp.arange(30.0), jr.key(1)
    trunk, remainder = split_at_trunk(network, trainable_leaves(network, PARTS[:2]))
    without = without_dropout_of(network, PARTS[:2])
    np.testing.assert_array_equal(remainder(trunk(x), key=key), without(x, key=key))


def test_rates_are_a_dict():
    with pytest.raises(ValueError, match="`rates` must be a dict of factors by part"):
        require_rates(0.1)
