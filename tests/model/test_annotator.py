import dataclasses
import functools
import os
import subprocess
import sys
from enum import Enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ginseng import AttentionClassifier, classify
from ginseng.model.annotator import Annotator, load_annotator, save_annotator
from tests.conftest import REPOSITORY, SUBPROCESS_ENVIRONMENT, simulate

GENES = [f"GENE{i}" for i in range(30)]
LABELS = ["B", "γδ T", "NK"]


class Ensemble(eqx.Module):
    members: AttentionClassifier

    def __call__(self, x, *, key=None):
        keys = None if key is None else jr.split(key, self.members.head.weight.shape[0])
        return eqx.filter_vmap(lambda member, key: member(x, key=key))(self.members, keys).mean(axis=0)


def ensemble_of(seed):
    make = eqx.filter_vmap(lambda key: AttentionClassifier(30, 3, 4, dropout_rate=0.5, key=key))
    return Ensemble(make(jr.split(jr.key(seed), 3)))


MODULES = {
    "attention": AttentionClassifier(30, 3, 4, key=jr.key(0)),
    "linear, without a key": eqx.nn.Linear(30, 3, key=jr.key(1)),
    "ensemble": ensemble_of(2),
    "sequence": eqx.nn.Sequential(
        [AttentionClassifier(30, 8, 4, key=jr.key(3)), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(8, 3, key=jr.key(4))]
    ),
}


def table_of(annotator, adata, **options):
    return classify(annotator, adata, return_table=True, silent=True, **options)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("where", ["memory", "file"])
def test_any_module_annotates(name, where, tmp_path):
    adata = simulate(n_cells=50)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    module = MODULES[name]
    table = table_of(Annotator(module, GENES, LABELS), adata if where == "memory" else tmp_path / "cells.h5ad")
    expected = jax.nn.softmax(jax.vmap(eqx.nn.inference_mode(module))(jnp.asarray(adata.X.toarray())))
    np.testing.assert_allclose(table[LABELS], expected, rtol=1e-4, atol=1e-6)
    assert table["ginseng_cell_type"].tolist() == [LABELS[best] for best in expected.argmax(axis=1)]


def test_its_genes_are_found_in_any_order():
    adata = simulate(n_cells=50)
    annotator = Annotator(MODULES["sequence"], GENES, LABELS)
    np.testing.assert_allclose(
        table_of(annotator, adata[:, ::-1].copy())[LABELS], table_of(annotator, adata)[LABELS], rtol=1e-4, atol=1e-6
    )


def test_dropout_at_random_and_from_a_seed():
    annotator, adata = Annotator(MODULES["ensemble"], GENES, LABELS), simulate(n_cells=50)
    first = table_of(annotator, adata, randomness=True, seed=1)[LABELS]
    np.testing.assert_array_equal(first, table_of(annotator, adata, randomness=True, seed=1)[LABELS])
    assert not np.allclose(first, table_of(annotator, adata, randomness=True, seed=2)[LABELS])
    assert not np.allclose(first, table_of(annotator, adata)[LABELS])


def test_modules_that_take_normalised_values():
    adata = simulate(n_cells=50)
    adata.X = adata.X.toarray() - 1
    with pytest.raises(ValueError, match="must not be negative"):
        table_of(Annotator(MODULES["linear, without a key"], GENES, LABELS), adata)
    table_of(Annotator(MODULES["linear, without a key"], GENES, LABELS, takes_counts=False), adata)


@pytest.mark.parametrize(
    ("genes", "labels", "message"),
    [
        (GENES[1:], LABELS, "does not take a cell with 29 genes"),
        (GENES, LABELS[1:], r"logits of shape \(2,\).*has shape \(3,\)"),
        ([*GENES[1:], "GENE1"], LABELS, "`genes` must not name anything twice"),
        (GENES, ["B", "B", "T"], "`labels` must not name anything twice"),
    ],
)
def test_names_that_do_not_fit(genes, labels, message):
    with pytest.raises(ValueError, match=message):
        Annotator(MODULES["attention"], genes, labels)


class Raising(eqx.Module):
    """A module of no use, which may hold what looks like outputs."""

    error: Exception | None

    def __call__(self, x):
        if self.error is not None:
            raise self.error
        return x[:3], x[3:]


@pytest.mark.parametrize("error", [KeyError("gate"), AttributeError("gate"), ZeroDivisionError("gate"), None])
def test_modules_that_cannot_be_used(error):
    with pytest.raises(ValueError, match=r"must map a cell, of shape \(30,\), to logits of shape \(3,\)") as refused:
        Annotator(Raising(error), GENES, LABELS)
    if error is not None:
        assert f"{type(error).__name__}: " in str(refused.value)


def test_normalisation_is_a_setting_of_the_classifier_only():
    adata = simulate(n_cells=50)
    classifier = Annotator(MODULES["attention"], GENES, LABELS)
    other = table_of(classifier, adata, target_sum=10.0)[LABELS]
    assert not np.allclose(other, table_of(classifier, adata)[LABELS])
    with pytest.raises(ValueError, match="settings of an AttentionClassifier"):
        table_of(Annotator(MODULES["ensemble"], GENES, LABELS), adata, target_sum=10.0)


class Direction(Enum):
    FORWARD, BACKWARD = 1, 2


@dataclasses.dataclass(frozen=True)
class Settings:
    scale: float


class Set(eqx.Module):
    """A module with settings of every kind."""

    linear: eqx.nn.Linear
    setting: Any
    static: Any = eqx.field(static=True)

    def __call__(self, x):
        return self.linear(x)


SETTINGS = {
    "number of NumPy": (np.float32(1), np.float32(2)),
    "text": ("id", "neg"),
    "enum": (Direction.FORWARD, Direction.BACKWARD),
    "dataclass": (Settings(1.0), Settings(2.0)),
    "set": (frozenset("ab"), frozenset("ac")),
    "bytes": (b"a", b"b"),
    "partial": (
        functools.partial(jax.nn.leaky_relu, negative_slope=0.3),
        functools.partial(jax.nn.leaky_relu, negative_slope=0.01),
    ),
    "tuple": ((1, "a", None), (1, "b", None)),
    "functions": ((jax.nn.relu, jax.nn.gelu), (jax.nn.relu, jax.nn.relu)),
    "dict": ({"a": "x"}, {"a": "y"}),
}


class TestFile:
    @pytest.mark.parametrize(
        ("kind", "is_static"), [(kind, static) for kind in SETTINGS for static in (True, False)][1:]
    )
    def test_settings_of_every_kind_are_compared(self, tmp_path, kind, is_static):
        linear = eqx.nn.Linear(30, 3, key=jr.key(0))
        made = [Set(linear, None, value) if is_static else Set(linear, value, None) for value in SETTINGS[kind]]
        save_annotator(Annotator(made[0], GENES, LABELS), tmp_path / "a.eqx")
        load_annotator(tmp_path / "a.eqx", made[0])
        if kind == "number of NumPy":  # which Equinox saves
            assert load_annotator(tmp_path / "a.eqx", made[1]).module.setting == SETTINGS[kind][0]
            return
        with pytest.raises(ValueError, match=r"module of another making: `like\.(static|setting)"):
            load_annotator(tmp_path / "a.eqx", made[1])

    def test_what_is_no_annotator_or_no_file(self, tmp_path):
        with pytest.raises((ValueError, TypeCheckError)):
            save_annotator(MODULES["attention"], tmp_path / "a.eqx")
        with pytest.raises(IsADirectoryError, match="is a folder, where a file of save_annotator is expected"):
            load_annotator(tmp_path, MODULES["attention"])

    def test_round_trip(self, tmp_path):
        save_annotator(Annotator(MODULES["ensemble"], GENES, LABELS, takes_counts=False), tmp_path / "a.eqx")
        loaded = load_annotator(tmp_path / "a.eqx", ensemble_of(7))
        assert (loaded.genes, loaded.labels, loaded.takes_counts) == (GENES, LABELS, False)
        leaves = map(jax.tree.leaves, (loaded.module, MODULES["ensemble"]))
        assert all(map(np.array_equal, *leaves))

    @pytest.mark.parametrize(
        ("like", "difference"),
        [
            (eqx.nn.Linear(30, 3, key=jr.key(1)), "`like` is Linear, but AttentionClassifier was saved"),
            (MODULES["attention"].normalizing(None, 10.0), "`like.target_sum` is 10.0, but 10000.0 was saved"),
            (MODULES["attention"].normalizing(False, None), "`like.normalize` is False, but True was saved"),
            (AttentionClassifier(30, 3, 5, key=jr.key(0)), r"`like.attn1.weight` is float32 of shape \(5, 30\)"),
        ],
    )
    def test_another_module(self, tmp_path, like, difference):
        save_annotator(Annotator(MODULES["attention"], GENES, LABELS), tmp_path / "a.eqx")
        with pytest.raises(ValueError, match=f"a.eqx.*module of another making: {difference}"):
            load_annotator(tmp_path / "a.eqx", like)

    @pytest.mark.parametrize("content", [b"", b"{}", b"no JSON\nx", b'{"format": "other"}\n'])
    def test_another_file(self, tmp_path, content):
        (tmp_path / "a.eqx").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.eqx is no annotator"):
            load_annotator(tmp_path / "a.eqx", MODULES["ensemble"])

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[:-3] + bytes([content[-3] ^ 4]) + content[-2:],
            lambda content: content + b"more",
            lambda content: content.replace(b'"NK"', b'"NA"'),
            lambda content: content.replace(b'"GENE7"', b'"GENE6"'),
            lambda content: content.replace(b'"takes_counts": true', b'"takes_counts": null'),
        ],
        ids=["weight", "longer", "label", "gene", "takes_counts"],
    )
    def test_damage_is_noticed(self, tmp_path, damage):
        save_annotator(Annotator(MODULES["attention"], GENES, LABELS), tmp_path / "a.eqx")
        content = (tmp_path / "a.eqx").read_bytes()
        (tmp_path / "a.eqx").write_bytes(damage(content))
        assert damage(content) != content
        with pytest.raises(ValueError, match=r"its names or weights have changed since they were written"):
            load_annotator(tmp_path / "a.eqx", MODULES["attention"])

    def test_a_path_of_it_does_not_tell_the_module(self, tmp_path):
        with pytest.raises(ValueError, match=r"a.eqx is of save_annotator: pass what load_annotator\("):
            classify(tmp_path / "a.eqx", simulate(), return_table=True, silent=True)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_annotator(tmp_path / "b.eqx", MODULES["attention"])


def test_bfloat16_gives_nearly_the_same():
    annotator, adata = Annotator(MODULES["attention"], GENES, LABELS), simulate(n_cells=50)
    rounded = table_of(annotator, adata, precision="bfloat16")[LABELS]
    np.testing.assert_allclose(rounded, table_of(annotator, adata)[LABELS], atol=0.02)
    assert not np.array_equal(rounded, table_of(annotator, adata)[LABELS])
    with pytest.raises(ValueError, match="`precision` must be"):
        table_of(annotator, adata, precision="float16")


FORKED = """
import multiprocessing
import ginseng
from tests.conftest import simulate, untrained

state, adata = untrained(), simulate(30)
roads = {
    "classify": lambda: ginseng.classify(state, adata, return_table=True, silent=True),
    "explain": lambda: ginseng.explain(state, adata, silent=True),
    "Annotator": lambda: ginseng.Annotator(state.module, state.genes, state.label_keys),
    "GinsengClassifier": lambda: ginseng.GinsengClassifier(3, 2),
    "GinsengClassifierTrainer": lambda: ginseng.GinsengClassifierTrainer(None, start=state),
    "finetune": lambda: ginseng.finetune(state, None),
}

def ask(name):
    try:
        roads[name]()
        return "done"
    except RuntimeError as error:
        return str(error)

if __name__ == "__main__":
    ask("classify")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(*pool.map_async(ask, list(roads)).get(120), sep="\\n")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_after_jax_was_used_says_so():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, env=SUBPROCESS_ENVIRONMENT, cwd=REPOSITORY)
    told = done.stdout.splitlines()
    assert len(told) == 6, done.stderr
    assert all("forked from one that uses JAX" in each and "'spawn'" in each for each in told), told
