"""What SECURITY.md says: tests that it names are there, and nothing that a file holds is executed."""

import ast
import json
import os
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
from ginseng.data.inputs import contents_of
from ginseng.utils.bounds import require_own_files
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


PICKLED = {
    "as it is": (".zarray", '{"filters": [{"id": "pickle"}]}'),
    "escaped": (".zarray", r'{"filters": [{"id": "\u0070ickle"}]}'),
    "beside another": ("zarr.json", r'{"codecs": [{"id": "zlib", "name": "numcodecs.\u0070ickle"}]}'),
    "by itself": ("zarr.json", r'{"codecs": ["numcodecs.pickl\u0065"]}'),
    "within another": (
        "zarr.json",
        r'{"codecs": [{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.Pickl\u0065"}]}}]}',
    ),
    "in UTF-16": (".zarray", '{"compressor": {"id": "pickle"}}'.encode("utf-16").decode("latin-1")),
}


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("case", PICKLED)
def test_pickled_arrays_are_refused_however_metadata_write_it(tmp_path, case, by_link):
    name, text = PICKLED[case]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ("elsewhere" if by_link else name)).write_bytes(text.encode("latin-1"))
    if by_link:
        (tmp_path / "x" / name).symlink_to("elsewhere")
    with pytest.raises(ValueError, match="its x is pickled, which may run code when it is read"):
        require_own_files(tmp_path)


def test_what_is_only_called_so_is_no_pickle(tmp_path):
    (tmp_path / "pickle").mkdir()
    text = '{"attributes": {"name": "pickle"}, "dimension_names": ["pickle"], "codecs": [{"name": "bytes"}]}'
    (tmp_path / "pickle" / "zarr.json").write_text(text)
    (tmp_path / "zarr.json").write_text("{")  # which zarr does not read either
    require_own_files(tmp_path)


def test_what_ends_never_is_not_hashed(tmp_path, counts):
    folder, store = tmp_path / "10x", tmp_path / "x.zarr"
    folder.mkdir()
    os.mkfifo(folder / "matrix.mtx")
    os.mkfifo(tmp_path / "x.h5ad")
    read_adata(counts).to_memory().write_zarr(store)
    assert contents_of(store) == contents_of(store)
    os.mkfifo(store / "x")
    for path in (folder, tmp_path / "x.h5ad", store):
        with pytest.raises(ValueError, match=f"{path.name}.* is neither a file nor a folder"):
            contents_of(path)
    (store / "x").unlink()
    (tmp_path / "away").write_bytes(b"counts")
    (store / "x").symlink_to(tmp_path / "away")
    with pytest.raises(ValueError, match="x.zarr cannot be read: its x is a symbolic link out of the folder"):
        contents_of(store)
