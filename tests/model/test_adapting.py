"""A classifier moved to other genes answers as before, as far as it can, and can learn from there."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from ginseng import AttentionClassifier, GinsengClassifierState
from ginseng.model.adapting import moved
from ginseng.model.attention import params_of
from ginseng.model.background import Background, lacking
from ginseng.model.calibration import calibration_of, distances_in_parts, geometry_of
from ginseng.utils.genes import OTHER_GENES
from ginseng.utils.names import GeneNames

N_GENES, N_CLASSES = 12, 3
GENES = [f"GENE{nth}" for nth in range(N_GENES)]
SECOND = [f"ENSG{nth:011}" for nth in range(N_GENES)]


def network(seed, n_genes=N_GENES, **options):
    """With biases, which a fresh one lacks."""
    fresh = AttentionClassifier(n_genes, N_CLASSES, 5, target_sum=100.0, key=jr.key(seed), **options)
    biases = [leaf for leaf in jax.tree.leaves(fresh) if eqx.is_array(leaf) and leaf.ndim == 1]
    drawn = [0.3 * jr.normal(key, bias.shape) for key, bias in zip(jr.split(jr.key(seed), 5), biases, strict=True)]
    layers = ("features1", "features2", "attn1", "attn2", "head")
    return eqx.tree_at(lambda m: [getattr(m, layer).bias for layer in layers], fresh, drawn)


def state_of(genes=GENES, members=1, **changes):
    networks = [network(seed, len(genes)) for seed in range(members)]
    params, *others = map(params_of, networks)
    rng = np.random.default_rng(7)
    known = {
        "second_names": None,
        "background": Background(rng.random(len(genes)).astype("f4"), rng.dirichlet(np.ones(len(genes))).astype("f4")),
        "calibration": calibration(),
        "metadata": {"settings": {"lr": 0.1}},
    }
    sizes = {"n_genes": len(genes), "n_classes": N_CLASSES, "hidden_dim": 5}
    how = {"normalize": True, "target_sum": 100.0, "dropout_rate": 0.5}
    return GinsengClassifierState(
        params, list(genes), ["T", "B", "NK"], [2, 0, 1], members=others, **sizes, **how, **{**known, **changes}
    )


def calibration():
    labels = np.arange(90) % N_CLASSES
    logits = (np.random.default_rng(0).normal(size=(90, N_CLASSES)) + 4 * np.eye(N_CLASSES)[labels]).astype("f4")
    geometry = geometry_of(logits, labels)
    return calibration_of("holdout", geometry, logits, labels, distances_in_parts(geometry, logits))


def logits(state, counts):
    return np.asarray(jax.vmap(eqx.nn.inference_mode(state.module))(jnp.asarray(counts, jnp.float32)))


def draw(n_genes=N_GENES, n_cells=40, seed=0):
    return np.random.default_rng(seed).poisson(3.0, (n_cells, n_genes)).astype(np.float32)


@pytest.mark.parametrize("members", [1, 2])
def test_the_same_genes_in_another_order_are_the_same_function(members):
    state, counts = state_of(members=members, second_names=SECOND), draw()
    order = np.random.default_rng(1).permutation(N_GENES)
    second = np.array(SECOND)[order]
    after, report = moved(state, GeneNames(np.array(GENES)[order], second), counts[:, order], seed=0)
    np.testing.assert_allclose(logits(after, counts[:, order]), logits(state, counts), atol=1e-5)
    assert (report.n_kept, report.n_new, report.n_dropped) == (N_GENES, 0, 0)
    assert report.carried == pytest.approx(1.0, abs=1e-5)
    assert report.agreement == 1.0
    assert after.target_sum == state.target_sum
    assert list(after.genes) == [GENES[nth] for nth in order]
    assert list(after.second_names) == [SECOND[nth] for nth in order]
    for means, before in zip(after.background, state.background, strict=True):
        np.testing.assert_array_equal(means, before[order])
    assert after.calibration is None
    assert after.metadata == state.metadata
    np.testing.assert_array_equal(after.output_labels, state.output_labels)


@pytest.mark.parametrize("members", [1, 2])
def test_new_genes_change_nothing_at_the_start_and_learn(members):
    state = state_of(members=members)
    counts = np.hstack([np.zeros((40, 4), np.float32), draw()])
    after, report = moved(state, GeneNames(["NEW1", "NEW2", "NEW3", "NEW4", *GENES]), counts, seed=0)
    assert (report.n_kept, report.n_new, report.n_dropped, report.agreement) == (N_GENES, 4, 0, 1.0)
    np.testing.assert_allclose(logits(after, counts), logits(state, counts[:, 4:]), atol=1e-5)

    def loss(network, x):
        return -jax.nn.log_softmax(jax.vmap(eqx.nn.inference_mode(network))(x))[:, 0].mean()

    x = jnp.asarray(draw(N_GENES + 4))
    for one in after.networks:
        gradient = eqx.filter_grad(loss)(one, x)
        assert (jnp.abs(gradient.features1.weight[4:, :4]).max(axis=0) > 0).all()
        assert (jnp.abs(gradient.features2.weight[4:, :4]).max(axis=0) > 0).all()
        assert (jnp.abs(gradient.attn1.weight[:, :4]).max(axis=0) > 0).all()
        assert (jnp.abs(gradient.head.weight[:, :4]).max(axis=0) > 0).all()
        assert (
            jnp.abs(one.features1.weight[:4]).max(axis=1) > 0
        ).all()  # so that their rows learn from the second step


def test_counts_of_new_genes_do_not_scale_the_others():
    """Where each cell has the same share of new genes, the known ones keep their values."""
    state, known = state_of(), draw()
    counts = np.hstack([known, known.sum(axis=1, keepdims=True)])
    after, _ = moved(state, GeneNames([*GENES, "NEW"]), counts, seed=0)
    assert after.target_sum == pytest.approx(200.0)
    np.testing.assert_allclose(logits(after, counts), logits(state, known), atol=1e-4)
    assert after.background.share[:N_GENES] == pytest.approx(state.background.share / 2)
    assert after.background.share[N_GENES] == pytest.approx(0.5)
    np.testing.assert_array_equal(after.background.expression[:N_GENES], state.background.expression)
    assert after.background.expression[N_GENES] == pytest.approx(np.log1p(100.0))


@pytest.mark.parametrize("members", [1, 2])
def test_the_mean_stands_in_for_dropped_genes_whose_units_new_ones_take(members):
    state, counts = state_of(members=members), draw()
    counts[:, 8:] = 0
    after, report = moved(state, GeneNames([*GENES[:8], "NEW1", "NEW2", "NEW3", "NEW4"]), counts, seed=0)
    assert (report.n_kept, report.n_new, report.n_dropped, report.agreement) == (8, 4, 4, 1.0)
    expected = eqx.nn.inference_mode(lacking(state.module, state.background, np.arange(N_GENES) >= 8))
    found = logits(after, counts)
    np.testing.assert_allclose(found, jax.vmap(expected)(jnp.asarray(counts)), atol=1e-4)
    assert 0.5 < report.carried < 1


def test_units_without_a_place_are_made_up_for():
    """By what the others tell of them, which is all where there are but a few kinds of cells."""
    state, counts = state_of(), np.repeat(draw(9, n_cells=4), 10, axis=0)
    after, report = moved(state, GeneNames(GENES[:9]), counts, seed=0)
    assert (report.n_kept, report.n_new, report.n_dropped) == (9, 0, 3)
    assert report.carried < 1
    before = eqx.nn.inference_mode(lacking(state.module, state.background, np.arange(N_GENES) >= 9))
    padded = jnp.pad(jnp.asarray(counts), ((0, 0), (0, 3)))
    expected, gated = jax.vmap(before)(padded), jax.vmap(before.features)(padded)
    without = jnp.where(np.arange(N_GENES) >= 9, gated.mean(axis=0), gated) @ before.head.weight.T + before.head.bias
    found = logits(after, counts)
    assert np.abs(found - expected).max() < 0.2 * np.abs(without - expected).max()
    assert report.agreement > 0.9


def test_the_sum_of_other_genes_keeps_its_mean():
    """Genes that leave or join it change its input, which the biases take up."""
    genes = [*GENES[:6], OTHER_GENES]
    state = state_of(genes, background=None)
    each = np.tile([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]], (6, 1)) * np.arange(1, 7)[:, None]
    before = np.hstack([each[:, :6], each[:, 6:].sum(axis=1, keepdims=True)])
    now = np.hstack([each[:, [7]], each[:, :6], each[:, [6, 8]].sum(axis=1, keepdims=True)])
    after, report = moved(state, GeneNames(["GENE7", *GENES[:6], OTHER_GENES]), now, seed=0)
    assert (report.n_kept, report.n_new) == (7, 1)
    assert after.target_sum == state.target_sum
    np.testing.assert_allclose(logits(after, now), logits(state, before), atol=1e-4)
    assert after.background is None


def test_a_gene_that_goes_into_the_sum_of_others_leaves_its_mean():
    genes = [*GENES[:6], OTHER_GENES]
    shares = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) / 28
    state = state_of(genes, background=Background(np.log1p(100 * shares), shares))
    before = 28 * np.tile(shares, (4, 1))
    now = np.hstack([before[:, 1:6], before[:, [0, 6]].sum(axis=1, keepdims=True), np.zeros((4, 1))])
    after, report = moved(state, GeneNames([*GENES[1:6], OTHER_GENES, "NEW"]), now, seed=0)
    assert (report.n_kept, report.n_new, report.n_dropped) == (6, 1, 1)
    np.testing.assert_allclose(logits(after, now), logits(state, before), atol=1e-3)
    assert after.background.share[5] == pytest.approx(8 / 28)  # of what it is now


def test_without_a_sum_of_others_it_is_a_gene_like_those_dropped():
    state, counts = state_of([*GENES[:6], OTHER_GENES]), draw(8)
    after, report = moved(state, GeneNames(GENES[:8]), counts, seed=0)
    assert (report.n_kept, report.n_new, report.n_dropped) == (6, 2, 1)
    assert np.isfinite(logits(after, counts)).all()


def test_identifiers_find_symbols():
    state, counts = state_of(second_names=SECOND), draw()
    with pytest.warns(UserWarning, match="second names of the model"):
        after, report = moved(state, GeneNames([f"{name}.3" for name in SECOND[::-1]]), counts[:, ::-1], seed=0)
    assert report.n_kept == N_GENES
    np.testing.assert_allclose(logits(after, counts[:, ::-1]), logits(state, counts), atol=1e-5)
    assert after.second_names is None


def test_equal_seeds_are_equal_and_others_draw_other_weights():
    state, counts = state_of(), draw(N_GENES + 1)
    genes = GeneNames([*GENES, "NEW"])
    rows = [moved(state, genes, counts, seed=seed)[0].params["features1"]["W"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_a_sample_of_other_genes_and_genes_of_another_world_are_refused():
    state = state_of()
    with pytest.raises(ValueError, match="`sample` must have cells with the 12 new genes"):
        moved(state, GeneNames(GENES), draw(5), seed=0)
    with pytest.raises(ValueError, match="No gene in common"):
        moved(state, GeneNames([f"X{nth}" for nth in range(N_GENES)]), draw(), seed=0)


def test_networks_that_do_not_normalise_keep_their_inputs():
    state = dataclasses.replace(state_of(), normalize=False)
    counts = np.log1p(draw(N_GENES + 2))
    after, _ = moved(state, GeneNames([*GENES, "NEW1", "NEW2"]), counts, seed=0)
    np.testing.assert_allclose(logits(after, counts), logits(state, counts[:, :N_GENES]), atol=1e-5)
