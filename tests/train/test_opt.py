import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from ginseng import adam_l2
from ginseng.model.instance import nn_annotate_loss
from ginseng.train.opt import AdamState, opt_adam_update, opt_init_adam


@pytest.mark.parametrize(("name", "weight_decay"), [("plain", 0.0), ("decayed", 0.05)])
def test_fifty_steps_are_the_reference_s(golden, golden_tree, name, weight_decay):
    x, y = jnp.asarray(golden["x"]), jnp.asarray(golden["y"])

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(nn_annotate_loss)(params, jr.key(3), x, y, 0.0)
        return loss, *opt_adam_update(grads, params, state, 1e-3, (0.9, 0.99), 1e-8, weight_decay)

    params = golden_tree("init")
    state, losses = opt_init_adam(params), []
    for _ in range(50):
        loss, params, state = step(params, state)
        losses.append(loss)
    assert int(state.step) == 50
    np.testing.assert_allclose(losses, golden[f"adam_{name}_losses"], rtol=1e-4)
    # Rounding differences of the first steps, where m / sqrt(v) is close to a sign, are carried along: a hundredth of
    # one step (1e-3) is what float32 leaves after fifty.
    for tree, prefix in ((params, ""), (state.m, "_m"), (state.v, "_v")):
        for layer, leaves in golden_tree(f"adam_{name}{prefix}").items():
            for leaf, value in leaves.items():
                np.testing.assert_allclose(tree[layer][leaf], value, rtol=1e-3, atol=1e-5, err_msg=f"{layer}/{leaf}")


def by_hand(grads, params, lr, betas, eps, weight_decay, decoupled):
    """Adam in float64, straight from the papers."""
    params = np.asarray(params, np.float64)
    m = v = np.zeros_like(params)
    for t, g in enumerate(np.asarray(grads, np.float64), start=1):
        g = g if decoupled else g + weight_decay * params
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        decay = weight_decay * params if decoupled else 0.0
        params = params - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay)
    return params


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_both_forms_follow_the_papers(decoupled, weight_decay):
    rng = np.random.default_rng(0)
    grads, start = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    optimizer = adam_l2(0.01, (0.8, 0.95), 1e-6, weight_decay, decoupled=decoupled)
    params, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        params, by_hand(grads, start, 0.01, (0.8, 0.95), 1e-6, weight_decay, decoupled), rtol=1e-4, atol=1e-5
    )
    assert isinstance(state, AdamState)


def test_decoupled_form_is_optax_adamw():
    params, grads = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1])
    ours, theirs = adam_l2(0.1, weight_decay=0.2, decoupled=True), optax.adamw(0.1, weight_decay=0.2)
    np.testing.assert_allclose(
        ours.update(grads, ours.init(params), params)[0],
        theirs.update(grads, theirs.init(params), params)[0],
        rtol=1e-5,
    )


def test_schedules_count_as_optax_s_do():
    seen = []

    def schedule(step):
        seen.append(int(step))
        return 0.1 / (1 + step)

    optimizer = adam_l2(schedule)
    params = jnp.ones(2)
    state = optimizer.init(params)
    first, state = optimizer.update(jnp.ones(2), state)
    second, state = optimizer.update(jnp.ones(2), state)
    assert seen == [0, 1]
    np.testing.assert_allclose(first, 2 * second, rtol=1e-5)


def test_inside_chain():
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), adam_l2(0.1), optax.scale(0.5))
    params = jnp.ones(2)
    updates, _ = optimizer.update(jnp.array([100.0, -100.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.05, 0.05], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"betas": (1.0, 0.9)}, r"betas.*\[0, 1\)"), ({"learning_rate": -1.0}, "learning_rate.*-1")],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adam_l2(**options)


def test_decay_without_parameters_is_refused():
    optimizer = adam_l2(weight_decay=0.1)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
