"""Models, settings and a comparison that the tests of training share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ginseng import AttentionClassifier, GinsengClassifierTrainerSettings

QUICK = GinsengClassifierTrainerSettings(
    hidden_dim=8,
    batch_size=32,
    lr=5e-3,
    balance_train=False,
    schedule="constant",
    warmup=0.0,
    calibrate="none",
)


def leaves_of(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_array))


def assert_same_weights(first, second, same=True):
    pairs = zip(leaves_of(first), leaves_of(second), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs) == same


class Ensemble(eqx.Module):
    """The mean logits of several classifiers."""

    members: AttentionClassifier

    def __call__(self, x, *, key=None):
        n_members = self.members.head.weight.shape[0]
        keys = None if key is None else jr.split(key, n_members)
        logits = eqx.filter_vmap(lambda member, key: member(x, key=key))(self.members, keys)
        return logits.mean(axis=0)


class NewHead(eqx.Module):
    """A frozen extractor under a new head, as in the guides."""

    extractor: AttentionClassifier
    head: eqx.nn.MLP

    def __call__(self, x, *, key=None):
        return self.head(self.extractor.features(x, key=key))


class Plain(eqx.Module):
    """A module whose call takes no key."""

    weight: jax.Array

    def __call__(self, x):
        return self.weight @ jnp.log1p(x)


def attention(n_classes=3, seed=0):
    return AttentionClassifier(30, n_classes, 8, dropout_rate=0.2, key=jr.key(seed))


def sequential():
    return eqx.nn.Sequential([attention(8), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(8, 3, key=jr.key(1))])


def ensemble():
    make = eqx.filter_vmap(lambda key: AttentionClassifier(30, 3, 8, dropout_rate=0.2, key=key))
    return Ensemble(make(jr.split(jr.key(0), 3)))


def replaced_layer():
    return eqx.tree_at(lambda m: m.features2, attention(), eqx.nn.MLP(30, 30, 6, 1, key=jr.key(2)))


def new_head():
    return NewHead(attention(), eqx.nn.MLP(30, 3, 16, 1, key=jr.key(3)))


def plain():
    return Plain(jnp.zeros((3, 30)))
