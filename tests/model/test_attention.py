import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginseng import AttentionClassifier
from ginseng.model.attention import model_from_params, params_of
from ginseng.model.functional import attend_batch


@pytest.fixture(scope="module")
def model():
    return AttentionClassifier(10, 3, 4, dropout_rate=0.5, key=jr.key(0))


@pytest.fixture(scope="module")
def cells():
    return jnp.asarray(np.random.default_rng(0).poisson(2.0, (6, 10)), jnp.float32)


def test_one_cell_in_logits_out(model, cells):
    assert eqx.nn.inference_mode(model)(cells[0]).shape == (3,)
    with pytest.raises(Exception, match="genes|shape|type"):
        eqx.nn.inference_mode(model)(cells)


def test_a_batch_scores_as_its_cells_do(model, cells):
    model = eqx.nn.inference_mode(model)
    one_by_one = [model.attend(cell) for cell in cells]
    logits, attention = attend_batch(model, cells, None)
    np.testing.assert_allclose(logits, jnp.stack([each[0] for each in one_by_one]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(attention, jnp.stack([each[1] for each in one_by_one]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(model)(cells), logits, rtol=1e-5, atol=1e-5)


def test_head_scores_the_features(model, cells):
    model = eqx.nn.inference_mode(model)
    np.testing.assert_allclose(model.head(model.features(cells[0])), model(cells[0]), rtol=1e-5, atol=1e-6)


def test_dropout_needs_a_key_and_changes_the_logits(model, cells):
    with pytest.raises(RuntimeError, match="key"):
        model(cells[0])
    first, second = model(cells[0], key=jr.key(1)), model(cells[0], key=jr.key(2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, model(cells[0], key=jr.key(1)))


def test_attention_lies_between_0_and_1_and_an_empty_cell_is_fine(model):
    logits, attention = eqx.nn.inference_mode(model).attend(jnp.zeros(10))
    assert np.isfinite(logits).all()
    assert ((attention > 0) & (attention < 1)).all()


def test_integer_counts_score_as_floats(model, cells):
    model = eqx.nn.inference_mode(model)
    np.testing.assert_array_equal(model(cells[0].astype(jnp.uint8)), model(cells[0]))


@settings(max_examples=10, deadline=None)
@given(scale=st.integers(2, 50))
def test_normalised_scores_do_not_depend_on_depth(model, cells, scale):
    model = eqx.nn.inference_mode(model)
    np.testing.assert_allclose(model(cells[0] * scale), model(cells[0]), rtol=2e-3, atol=2e-3)


def test_parameters_survive_the_documented_tree(model):
    again = model_from_params(params_of(model), dropout_rate=0.5)
    assert eqx.tree_equal(again, model)


def test_parameters_that_do_not_fit_are_refused(model):
    params = params_of(model)
    with pytest.raises(ValueError, match="lacks W or b of the layers.*'head'"):
        model_from_params({name: layer for name, layer in params.items() if name != "head"})
    with pytest.raises(ValueError, match="'features2'.*has W"):
        model_from_params({**params, "features2": {"W": jnp.ones((3, 3)), "b": jnp.ones(3)}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_genes": 0}, "n_genes.*at least 1.*0"),
        ({"n_classes": 0}, "n_classes"),
        ({"hidden_dim": -1}, "hidden_dim"),
        ({"dropout_rate": 1.0}, "dropout_rate.*1.0"),
        ({"target_sum": -1.0}, "target_sum.*-1.0"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionClassifier(**{"n_genes": 4, "n_classes": 2, "hidden_dim": 2, "key": jr.key(0), **options})


def test_layers_too_large_for_the_machine_are_refused_with_their_bytes():
    with pytest.raises(MemoryError, match=r"10,000,000 genes.*800,000,000,000,000 bytes.*Select genes first"):
        AttentionClassifier(n_genes=10_000_000, n_classes=2, key=jr.key(0))


def test_inside_sequential(cells):
    model = eqx.nn.Sequential(
        [AttentionClassifier(10, 8, 4, key=jr.key(0)), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(8, 2, key=jr.key(1))]
    )
    assert jax.vmap(eqx.nn.inference_mode(model))(cells).shape == (6, 2)
    assert model(cells[0], key=jr.key(2)).shape == (2,)


def test_an_ensemble_under_filter_vmap(cells):
    members = eqx.filter_vmap(lambda key: AttentionClassifier(10, 3, 4, key=key))(jr.split(jr.key(0), 5))
    members = eqx.nn.inference_mode(members)
    logits = eqx.filter_vmap(lambda member, x: jax.vmap(member)(x), in_axes=(eqx.if_array(0), None))(members, cells)
    assert logits.shape == (5, 6, 3)
    alone = eqx.nn.inference_mode(AttentionClassifier(10, 3, 4, key=jr.split(jr.key(0), 5)[2]))
    np.testing.assert_allclose(logits[2], jax.vmap(alone)(cells), rtol=1e-5, atol=1e-5)


def test_a_layer_replaced_by_tree_at(model, cells):
    class LowRank(eqx.Module):
        down: eqx.nn.Linear
        up: eqx.nn.Linear

        def __call__(self, x):
            return self.up(self.down(x))

    low_rank = LowRank(eqx.nn.Linear(10, 2, key=jr.key(1)), eqx.nn.Linear(2, 10, key=jr.key(2)))
    changed = eqx.nn.inference_mode(eqx.tree_at(lambda m: m.features2, model, low_rank))
    assert jax.vmap(changed)(cells).shape == (6, 3)
    assert not np.allclose(changed(cells[0]), eqx.nn.inference_mode(model)(cells[0]))


def test_gradients_reach_every_leaf(model, cells):
    def loss(model):
        logits = jax.vmap(lambda x, key: model(x, key=key))(cells, jr.split(jr.key(0), 6))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1, 2, 0, 1, 2])).mean()

    grads = jax.tree.leaves(eqx.filter_grad(loss)(model))
    assert len(grads) == 10
    assert all(np.abs(grad).max() > 0 for grad in grads)
