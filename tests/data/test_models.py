"""Saving and loading models."""

import dataclasses
import json

import anndata as ad
import h5py
import numpy as np
import pytest

from ginseng import (
    GinsengClassifier,
    GinsengClassifierState,
    classifier_from_state,
    classify,
    load_model,
    read_adata,
    save_model,
)
from ginseng.data.io import _load_pytree, _save_pytree
from ginseng.describe import describe_model
from tests.conftest import GOLDEN


@pytest.fixture
def state():
    model = GinsengClassifier(4, 3, hidden_dim=5, dropout_rate=0.25, target_sum=500.0)
    return GinsengClassifierState(
        params=model.params,
        genes=["CD3D", "Ω1", "MS4A1", "LYZ"],
        label_keys=["B", "γδ T", "mono"],
        label_values=[2, 0, 1],
        n_genes=4,
        n_classes=3,
        hidden_dim=5,
        normalize=True,
        target_sum=500.0,
        dropout_rate=0.25,
        metadata={"settings": {"lr": 0.1}, "history": {"epoch": [0], "holdout_accuracy": [0.5]}},
    )


def assert_states_equal(first, second):
    for field in dataclasses.fields(first):
        if field.name == "params":
            for layer, leaves in first.params.items():
                for leaf, value in leaves.items():
                    np.testing.assert_array_equal(second.params[layer][leaf], value)
        elif field.name != "metadata":
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


def test_round_trip(state, tmp_path):
    save_model(state, tmp_path / "m.h5")
    loaded = load_model(tmp_path / "m.h5")
    assert_states_equal(state, loaded)
    assert loaded.output_labels.tolist() == ["γδ T", "mono", "B"]
    assert loaded.metadata["settings"] == {"lr": 0.1}
    assert loaded.metadata["history"]["holdout_accuracy"] == [0.5]
    assert {"ginseng-eqx", "jax"} <= set(loaded.metadata["versions"])
    assert loaded.metadata["created"].startswith("20")
    x = np.random.default_rng(0).poisson(2.0, (6, 4)).astype(np.float32)
    np.testing.assert_array_equal(classifier_from_state(state).predict(x), classifier_from_state(loaded).predict(x))
    save_model(loaded, tmp_path / "again.h5")
    assert_states_equal(load_model(tmp_path / "again.h5"), state)


def test_layout_is_the_reference_s(state, tmp_path):
    ascii_only = dataclasses.replace(state, genes=["A", "B", "C", "D"], label_keys=["x", "y", "z"])
    save_model(ascii_only, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as ours, h5py.File(GOLDEN / "model.h5") as theirs:
        assert set(ours) - set(theirs) == {"metadata"}
        assert set(ours.attrs) == set(theirs.attrs)
        for name, value in theirs.attrs.items():
            assert ours.attrs[name].dtype == value.dtype, name
        names = []
        theirs.visit(names.append)
        for name in names:
            if isinstance(theirs[name], h5py.Dataset):
                assert ours[name].dtype.kind == theirs[name].dtype.kind, name
                assert ours[name].compression == theirs[name].compression == "gzip"
                assert ours[name].ndim == theirs[name].ndim


def test_the_reference_s_file_predicts_the_reference_s_numbers(golden):
    state = load_model(GOLDEN / "model.h5")
    adata = ad.AnnData(golden["x"])
    adata.var_names = [f"GENE{i}" for i in range(24)]
    table = classify(state, adata, return_table=True, silent=True)
    assert table["ginseng_cell_type"].tolist() == golden["predicted"].tolist()
    np.testing.assert_allclose(table["ginseng_confidence"], golden["confidence"], rtol=1e-4)
    np.testing.assert_allclose(table[["B cell", "NK cell", "T cell"]], golden["probabilities"], rtol=1e-3, atol=1e-6)
    partial = ad.AnnData(golden["partial_x"])
    partial.var_names = golden["partial_genes"]
    table = classify(state, partial, return_table=True, silent=True)
    np.testing.assert_allclose(
        table[["B cell", "NK cell", "T cell"]], golden["partial_probabilities"], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(("given", "written"), [("m", "m.h5"), ("m.h5", "m.h5"), ("model.v2", "model.v2.h5")])
def test_suffix(state, tmp_path, given, written):
    save_model(state, tmp_path / given)
    assert [path.name for path in tmp_path.iterdir()] == [written]


def test_a_failed_save_leaves_the_old_file(state, tmp_path, monkeypatch):
    save_model(state, tmp_path / "m.h5")

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(h5py.Group, "create_group", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_model(dataclasses.replace(state, dropout_rate=0.5), tmp_path / "m.h5")
    assert_states_equal(load_model(tmp_path / "m.h5"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


def test_loading_what_is_not_there(state, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        load_model(tmp_path / "m")
    save_model(state, tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*m.h5"):
        load_model(tmp_path / "m")


def test_loading_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, where a model file is expected"):
        load_model(tmp_path)


def test_loading_something_else(state, adata, tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(ValueError, match="not an HDF5 file, or it is truncated"):
        load_model(tmp_path / "text.h5")
    adata.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(
        ValueError, match=r"file of counts \(AnnData\), where a model is expected; were the two swapped"
    ):
        load_model(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="not a ginseng model: it lacks params, genes"):
        load_model(tmp_path / "other.h5")
    save_model(state, tmp_path / "m.h5")
    with pytest.raises(ValueError, match="is a ginseng model, where a file of counts is expected"):
        read_adata(tmp_path / "m.h5")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(state, tmp_path, share):
    save_model(state, tmp_path / "m.h5")
    whole = (tmp_path / "m.h5").read_bytes()
    (tmp_path / "m.h5").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="truncated|lacks"):
        load_model(tmp_path / "m.h5")


def set_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_attribute("n_genes", 5), "`n_genes` is 5, but the weights are those of a model with 4"),
        (set_attribute("hidden_dim", 6), "`hidden_dim` is 6.*5"),
        (set_attribute("dropout_rate", 1.5), "dropout_rate"),
        (set_attribute("target_sum", -1.0), "target_sum"),
        (replace("genes", np.array([b"A", b"B", b"C"])), "`genes` has 3 names, but the model has 4"),
        (replace("genes", np.array([b"A", b"A", b"B", b"C"])), "`genes` must not name anything twice"),
        (replace("label_keys", np.array([b"A", b"B"])), "`label_keys` has 2 names"),
        (
            replace("label_values", np.array([0, 1, 5])),
            r"`label_values` must be 0 to 2 in any order, but got \[0 1 5\]",
        ),
        (replace("params/features1/W", np.ones((3, 4), np.float32)), "Layer 'features1'"),
        (lambda file: file["params"].pop("head"), "lacks W or b of the layers.*head"),
        (lambda file: file["params/head"].pop("W"), "lacks W or b of the layers.*head"),
        (replace("params/head", np.ones(3)), "no whole ginseng model"),
        (
            lambda file: file.create_dataset("names/second", data=[b"a", b"b"]),
            "`second_names` has 2 names, for 4 genes",
        ),
        (set_attribute("n_genes", "thirty"), "no whole ginseng model"),
        (replace("params/attn1/b", np.full(5, np.nan, np.float32)), "layer 'attn1' that are not finite"),
        (lambda file: file.attrs.pop("normalize"), "lacks attribute normalize"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(state, tmp_path, change, message):
    save_model(state, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=message) as raised:
        load_model(tmp_path / "m.h5")
    assert "m.h5" in str(raised.value)


def test_no_target_sum_is_the_default_and_can_be_saved(state, tmp_path):
    save_model(dataclasses.replace(state, target_sum=None), tmp_path / "m.h5")
    assert load_model(tmp_path / "m.h5").target_sum == 1e4


def test_any_metadata_can_be_saved(state, tmp_path):
    settings = {"lr": np.float32(0.5), "seed": np.int64(3), "betas": np.array([0.5, 0.75]), "path": tmp_path}
    save_model(dataclasses.replace(state, metadata={"settings": settings}), tmp_path / "m.h5")
    loaded = load_model(tmp_path / "m.h5").metadata["settings"]
    assert loaded == {"lr": 0.5, "seed": 3, "betas": [0.5, 0.75], "path": str(tmp_path)}


def test_metadata_that_cannot_be_read_are_left_out_with_a_warning(state, tmp_path):
    save_model(state, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        replace("metadata/settings", "{broken")(file)
    with pytest.warns(UserWarning, match="metadata of the model cannot be read"):
        assert_states_equal(load_model(tmp_path / "m.h5"), state)


def test_trees_of_any_depth(tmp_path):
    tree = {"a": {"b": {"c": np.arange(3)}, "d": np.ones((2, 2))}}
    with h5py.File(tmp_path / "t.h5", "w") as file:
        _save_pytree(file, tree)
        loaded = _load_pytree(file)
    np.testing.assert_array_equal(loaded["a"]["b"]["c"], tree["a"]["b"]["c"])
    np.testing.assert_array_equal(loaded["a"]["d"], tree["a"]["d"])


@pytest.mark.parametrize(
    "value", [[1, 2], 3, "text", {"a": [1]}, {"types": 4, "calibration": [5]}, {"epoch": 7}, [], None]
)
@pytest.mark.parametrize("part", ["history", "card", "settings", "versions"])
def test_metadata_of_another_kind_are_shown_as_they_are(state, tmp_path, part, value):
    save_model(state, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        file.pop(f"metadata/{part}", None)
        file[f"metadata/{part}"] = json.dumps(value)
        del file["metadata"].attrs["metadata_digest"]
    shown = describe_model(load_model(tmp_path / "m.h5"))
    assert shown.startswith("ginseng model: 4 genes")
    assert ("settings: lr=0.1" in shown) == (part != "settings")
    if value and not isinstance(value, dict):
        assert f"{part}: {value}" in shown


def test_metadata_of_which_a_part_is_no_json_are_read_but_for_that(state, tmp_path):
    save_model(state, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        replace("metadata/history", "{broken")(file)
        del file["metadata"].attrs["metadata_digest"]
    with pytest.warns(UserWarning, match="cannot be read as to 'history'"):
        assert load_model(tmp_path / "m.h5").metadata["settings"] == {"lr": 0.1}


@pytest.mark.parametrize("name", ["genes", "label_keys"])
def test_names_are_texts_of_any_width_but_have_a_bound(state, name):
    names = [*getattr(state, name)[:-1], "x" * 1000]
    assert getattr(dataclasses.replace(state, **{name: names}), name).dtype == object
    with pytest.raises(ValueError, match=r"'x{40}\.\.\.' has 1,001 characters, where a name has 1,000 at most"):
        dataclasses.replace(state, **{name: [*names[:-1], "x" * 1001]})
