"""What SECURITY.md says: tests that it names are there, and nothing that a file holds is executed."""

import ast
import json
import pickle
import re

import equinox as eqx
import jax
import pytest

from ginseng import (
    Annotator,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    load_annotator,
    load_model,
    read_adata,
    save_annotator,
)
from tests.conftest import REPOSITORY
from tests.test_architecture import MODULES, imported

EXECUTE = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch", "yaml"}
EXECUTE |= {"subprocess", "runpy"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
OF_MODULES = {"read_pickle", "to_pickle", "system", "popen"}


def test_files_that_are_named_are_there():
    text = (REPOSITORY / "SECURITY.md").read_text()
    named = re.findall(r"\]\(([^)]+)\)", text)
    assert len(named) > 10
    assert not [name for name in named if not (REPOSITORY / name).is_file()]
    promises = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith(("| ---", "| Promise"))]
    assert all("](" in row for row in promises)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_executes_what_a_file_holds(name):
    tree = MODULES[name]
    assert not {target.split(".")[0] for target in imported(tree)} & EXECUTE
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            assert getattr(function, "id", None) not in BUILTINS
            assert getattr(function, "attr", None) not in OF_MODULES
            assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords)


def test_files_are_written_and_read_without_pickle(dataset, counts, tmp_path, monkeypatch):
    settings = GinsengClassifierTrainerSettings(hidden_dim=8, batch_size=32, calibrate="none")
    how = {"silent": True, "checkpoint": tmp_path / "run", "log": tmp_path / "log.jsonl"}
    mlp = eqx.nn.MLP(in_size=30, out_size=3, width_size=8, depth=1, key=jax.random.key(0))
    annotator = Annotator(mlp, dataset.gene_names, dataset.label_names)

    def refused(*_, **__):
        raise AssertionError("pickle")

    dataset.make_split(0.25)
    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, refused)
    for epochs in (1, 1):
        GinsengClassifierTrainer(GinsengDataset(dataset.path), settings).fit(epochs, **how)
    save_annotator(annotator, tmp_path / "mlp.eqx")
    load_annotator(tmp_path / "mlp.eqx", like=mlp)
    assert read_adata(counts).n_obs == 120
    assert load_model(REPOSITORY / "tests" / "golden" / "model.h5").n_classes > 1
    assert (tmp_path / "run" / "checkpoint.h5").read_bytes().startswith(b"\x89HDF")
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1]
