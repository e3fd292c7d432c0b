"""What a caller typed is checked when it is made, in a process that does not check types besides."""

import json
import subprocess
import sys

import pytest

from ginseng import GinsengDataset
from tests.conftest import SUBPROCESS_ENVIRONMENT, simulate

BAD = {
    "Recipe(optimizer='adam')": "`optimizer` must be an optax.GradientTransformation, such as optax.adam(1e-3), "
    "but got 'adam'.",
    "Recipe(augment=3)": "`augment` must be a function of a key and counts, or None, but got 3.",
    "Recipe(ema='a')": "`ema` must lie in [0, 1), but got 'a'.",
    "Recipe(warmup='a')": "`warmup` must lie in [0, 1), but got 'a'.",
    "Recipe(class_weights={'B': 'a'})": "`class_weights['B']` must lie in [0, inf), but got 'a'.",
    "Sampling(batch_size=2.5)": "`batch_size` must be an integer of at least 1, but got 2.5.",
    "Sampling(batch_size=True)": "`batch_size` must be an integer of at least 1, but got True.",
    "Sampling(alpha='a')": "`alpha` must lie in [0, 1], but got 'a'.",
    "Sampling(seed=1.5)": "`seed` must be an integer in [0, 4294967296), but got 1.5.",
    "Settings(batch_size=2.5)": "`batch_size` must be an integer of at least 1, but got 2.5.",
    "Settings(seed=1.5)": "`seed` must be an integer in [0, 4294967296), but got 1.5.",
    "Settings(patience=1.5)": "`patience` must be an integer of at least 1, but got 1.5.",
    "Settings(patience=0)": "`patience` must be an integer of at least 1, but got 0.",
    "Settings(hidden_dim=2.5)": "`hidden_dim` must be an integer of at least 1, but got 2.5.",
    "Settings(hidden_dim=0)": "`hidden_dim` must be an integer of at least 1, but got 0.",
    "Settings(dropout_rate=1)": "`dropout_rate` must lie in [0, 1), but got 1.",
    "Settings(balance_alpha='a')": "`balance_alpha` must lie in [0, 1], but got 'a'.",
    "Settings(betas=('a', 0.9))": "`betas` must lie in [0, 1), but got 'a'.",
    "Settings(betas=0.9)": "`betas` must be two decay rates, such as (0.9, 0.999), but got 0.9.",
    "Settings(members=0)": "`members` must be an integer of at least 1, but got 0.",
    "Trainer(model, dataset, devices=1.5)": "`devices` must be an integer of at least 1, but got 1.5.",
    "Settings(lr=10**400)": f"`lr` must lie in [0, inf), but got {10**400}.",
    "Settings(normalize='x')": "`normalize` must be True or False, but got 'x'.",
    "Sampling(balance=2)": "Labels are balanced by one of none, downsample, resample (or True or False), but got 2.",
    "Trainer(model, dataset, recipe={})": "`recipe` must be a Recipe, but got {}.",
    "Trainer(model, dataset, devices='x')": "`devices` must be a Device, but got 'x'.",
    "classify(None, dataset.path)": "`model_state` must be a state, an Annotator or a path, but got a NoneType: a "
    "module is named by Annotator(module, genes, labels).",
    "classify(annotator, None)": "`adata` must be an AnnData or a path, but got a NoneType.",
    "classify(annotator, dataset.path, randomness=True, seed=2.5, silent=True)": "`seed` must be an integer in "
    "[0, 4294967296), but got 2.5.",
    "Settings(lower=0, upper=2.5)": "Genes to drop need integers 0 <= `lower` < `upper`, but got 0 and 2.5; "
    "0 and 0 drop none.",
    **{
        f"Settings(target_sum={value})": f"`target_sum` must lie in (0, inf), but got {value}."
        for value in ("-1", "0", "nan", "inf", "'a'")
    },
    "AttentionClassifier(4, 2.5, key=key)": "`n_classes` must be an integer of at least 1, but got 2.5.",
    "AttentionClassifier(4, 2, dropout_rate='a', key=key)": "`dropout_rate` must lie in [0, 1), but got 'a'.",
    "AttentionClassifier(4, 2, target_sum=nan, key=key)": "`target_sum` must lie in (0, inf), but got nan.",
    "Trainer(model, dataset, patience=1.5)": "`patience` must be an integer of at least 1, but got 1.5.",
    "Trainer(model, dataset).fit(1.5)": "`epochs` must be an integer of at least 0, but got 1.5.",
}
FLAGS = {
    **{
        f"classify(annotator, dataset.path, {name}='no')": name
        for name in (
            *("backed", "randomness", "copy", "store_probs", "return_table"),
            *("silent", "ignore_case", "fix", "calibrate"),
        )
    },
    "classify(annotator, dataset.path, randomness=0)": "randomness",
    "ginseng.explain(annotator, dataset.path, silent='no')": "silent",
    "ginseng.finetune('model.h5', dataset, silent='no')": "silent",
    "ginseng.harmonize(annotator, None, annotator, None, label_a='a', silent='no')": "silent",
    "ginseng.read_adata('cells.h5ad', backed='no')": "backed",
    "ginseng.data.io.read_10x_mtx('folder', make_unique='no')": "make_unique",
    "ginseng.data.io.read_10x_h5('cells.h5', gex_only='no')": "gex_only",
    "ginseng.select_hvgs(None, copy='no')": "copy",
    "ginseng.select_markers(None, 'type', silent='no')": "silent",
    "ginseng.adam_l2(decoupled='no')": "decoupled",
    "GinsengDataset.create(dataset.path, None, 'type', overwrite='no')": "overwrite",
    "dataset.make_split(stratify_group='no')": "stratify_group",
    "dataset.stream(2, 'all', shuffle='no')": "shuffle",
    "AttentionClassifier(4, 2, normalize='no', key=key)": "normalize",
    "ginseng.GinsengClassifier(4, 2, normalize='no')": "normalize",
    "ginseng.GinsengClassifier(4, 2).predict(np.ones((1, 4)), training='no')": "training",
    "ginseng.model.nn.nn_dropout(key, np.ones(4), 0.5, training='no')": "training",
    "ginseng.model.functional.nn_annotate({}, key, np.ones((1, 4)), return_attn='no')": "return_attn",
    "Annotator(model, dataset.gene_names, dataset.label_names, takes_counts='no')": "takes_counts",
    "Trainer(model, dataset).fit(1, silent='no')": "silent",
    "GinsengLogger().report(flush='no')": "flush",
}
BAD |= {
    code: f"`{name}` must be True or False, but got {0 if '=0)' in code else 'no'!r}." for code, name in FLAGS.items()
}
GOOD = [
    "Sampling(batch_size=np.int64(16), seed=np.uint32(3))",
    "Settings(hidden_dim=np.int32(8), patience=np.int64(2), dropout_rate=0, clip=inf, target_sum=np.float32(10))",
    "Trainer(model, dataset).fit(np.int8(0), silent=True)",
    "classify(annotator, dataset.path, return_table=np.True_, silent=True)",
]
TRY = """
import json, sys
import equinox as eqx
import jax
import ginseng
import ginseng.data.io, ginseng.model.functional, ginseng.model.nn
import numpy as np
from ginseng.train.logger import GinsengLogger
from numpy import inf, nan
from ginseng import Annotator, AttentionClassifier, GinsengDataset, Recipe, Sampling, Trainer, classify
from ginseng import GinsengClassifierTrainerSettings as Settings
dataset, key = GinsengDataset(sys.argv[1]), jax.random.key(0)
model, told = eqx.nn.Linear(30, 3, key=key), {}
annotator = Annotator(model, dataset.gene_names, dataset.label_names)
for code in json.loads(sys.argv[2]):
    try:
        eval(code)
        told[code] = "accepted"
    except Exception as error:
        told[code] = ("ValueError" if isinstance(error, ValueError) else type(error).__name__) + f": {error}"
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    path = tmp_path_factory.mktemp("values") / "cells.zarr"
    GinsengDataset.create(path, simulate(), "cell_type", silent=True)
    command = [sys.executable, "-c", TRY, str(path), json.dumps([*BAD, *GOOD])]
    done = subprocess.run(command, capture_output=True, text=True, env=SUBPROCESS_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("code", "message"), BAD.items())
def test_bad_ones_are_refused_by_name_and_rule(told, code, message):
    assert told[code] == f"ValueError: {message}"


@pytest.mark.parametrize("code", GOOD)
def test_integers_of_numpy_are_integers(told, code):
    assert told[code] == "accepted"
