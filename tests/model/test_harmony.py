"""Labels of two studies: those that are the same are found, finer ones are told, and others stay."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    harmonize,
    read_adata,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.model.harmony import Harmony
from tests.conftest import QUICK, ginseng, simulate

OTHER_NAMES = {"B cell": "T cell", "NK cell": "B cell", "T cell": "NK cell", "γδ T cell": "x"}
COLUMN = {"label_a": "cell_type", "silent": True}


def study(folder, names, seed):
    """Cells of four types, those of each seed its own, called by these names, and a model of them."""
    cells = simulate(n_cells=720, n_types=4)
    adata = cells[seed * 240 : (seed + 1) * 240].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace(names)
    return adata, trained(folder, adata, seed)


def trained(folder, adata, seed):
    dataset = GinsengDataset.create(folder / f"{seed}.zarr", adata, "cell_type", silent=True)
    settings = GinsengClassifierTrainerSettings(seed=seed, hidden_dim=8, batch_size=32, lr=0.005)
    trainer = GinsengClassifierTrainer(dataset, settings)
    trainer.fit(6, silent=True)
    return state_from_classifier_trainer(trainer)


@pytest.fixture(scope="module")
def a(tmp_path_factory):
    return study(tmp_path_factory.mktemp("a"), {}, 0)


@pytest.fixture(scope="module")
def b(tmp_path_factory):
    return study(tmp_path_factory.mktemp("b"), OTHER_NAMES, 1)


def test_shuffled_names_are_found_and_the_data_stay_as_they_are(a, b):
    before = [data.copy() for data in (a[0], b[0])]
    harmony = harmonize(a[1], a[0], b[1], b[0], **COLUMN)
    assert harmony.mapping == {new: old for old, new in OTHER_NAMES.items()}
    renamed = b[0].obs["cell_type"].replace(harmony.mapping)
    assert (renamed.replace(OTHER_NAMES) == b[0].obs["cell_type"]).all()
    for data, copy in zip((a[0], b[0]), before, strict=True):
        pd.testing.assert_frame_equal(data.obs, copy.obs)
        assert (data.X != copy.X).nnz == 0
        assert not data.uns
        assert not data.obsm


def test_both_ways_tell_the_same(a, b):
    there = harmonize(a[1], a[0], b[1], b[0], **COLUMN)
    back = harmonize(b[1], b[0], a[1], a[0], **COLUMN)
    assert back.mapping == {old: new for new, old in there.mapping.items()}
    pd.testing.assert_frame_equal(
        there.matrix.T, back.matrix.loc[there.matrix.columns, there.matrix.index], check_names=False
    )


def test_a_finer_type_is_told_as_finer(a, tmp_path):
    adata, model = study(tmp_path, {"T cell": "T", "γδ T cell": "T", "B cell": "b"}, 2)
    pairs = harmonize(a[1], a[0], model, adata, **COLUMN).pairs.set_index(["a", "b"])["relation"].to_dict()
    assert pairs == {
        ("B cell", "b"): "same",
        ("NK cell", "NK cell"): "same",
        ("T cell", "T"): "finer",
        ("γδ T cell", "T"): "finer",
    }
    turned = harmonize(model, adata, a[1], a[0], **COLUMN)
    assert set(turned.pairs["relation"]) == {"same", "coarser"}
    assert turned.mapping == {"B cell": "b", "NK cell": "NK cell"}
    assert turned.merging == {**turned.mapping, "T cell": "T", "γδ T cell": "T"}


def test_a_type_of_one_study_alone_stays(a, b, tmp_path):
    is_there = (a[0].obs["cell_type"] != "NK cell").to_numpy()
    fewer = a[0][is_there].copy()
    harmony = harmonize(trained(tmp_path, fewer, 4), fewer, b[1], b[0], **COLUMN)
    assert harmony.mapping == {new: old for old, new in OTHER_NAMES.items() if old != "NK cell"}
    assert "Only in B: B cell." in harmony.report()
    assert "called so in both: B cell. Rename" in harmony.report()


def shares(values, a, b):
    return pd.DataFrame(values, index=a, columns=b, dtype=float)


def test_genes_may_have_their_names_in_a_column(a, b, tmp_path):
    expected = harmonize(a[1], a[0], b[1], b[0], **COLUMN)
    data_b = b[0].copy()
    data_b.var = pd.DataFrame({"name": data_b.var_names, "id": "x"}, map(str, range(data_b.n_vars)))
    for gene_key in ((None, "name"), "name"):
        data_a = a[0].copy()
        if gene_key == "name":
            data_a.var = data_b.var
        found = harmonize(a[1], data_a, b[1], data_b, gene_key=gene_key, **COLUMN)
        pd.testing.assert_frame_equal(found.table, expected.table)
    for state, data, name in ((a[1], a[0], "a"), (b[1], data_b, "b")):
        save_model(state, tmp_path / f"{name}.h5")
        data.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / name for name in ("a.h5", "a.h5ad", "b.h5", "b.h5ad")]
    command = ["harmonize", *files, "--label-a", "cell_type", "-o", tmp_path / "pairs.csv"]
    ginseng(*command, "--gene-key", "", "--gene-key", "name")
    assert pd.read_csv(tmp_path / "pairs.csv")["relation"].tolist() == expected.table["relation"].tolist()
    with pytest.raises(ValueError, match="gene column 'name' is not in adata.var"):
        harmonize(a[1], a[0], b[1], data_b, gene_key="name", **COLUMN)
    with pytest.raises(ValueError, match="a column of both data, or a pair of columns"):
        harmonize(a[1], a[0], b[1], data_b, gene_key=("name",), **COLUMN)


def test_relations_by_shares():
    a_to_b = shares([[0.15, 0.85, 0], [0, 0, 0], [0, 0, 0.11]], ["CD4", "plasma", "platelet"], ["memory", "naive", "P"])
    b_to_a = shares([[0.95, 0, 0], [0.95, 0.05, 0], [0, 0, 0.93]], a_to_b.columns, a_to_b.index)
    harmony = Harmony.of(a_to_b, b_to_a, 0.25)
    assert harmony.pairs[["a", "b", "relation"]].to_numpy().tolist() == [
        ["platelet", "P", "same"],
        ["CD4", "naive", "coarser"],
        ["CD4", "memory", "coarser"],
    ]
    assert harmony.mapping == {"P": "platelet"}
    assert harmony.merging == {"P": "platelet", "naive": "CD4", "memory": "CD4"}
    assert Harmony.of(a_to_b, b_to_a, 0.5).mapping == {"naive": "CD4"}
    told = harmony.report().splitlines()
    assert told[0] == "1 pair of the same type; A has 3 labels, B has 3."
    assert told[1] == "A platelet = B P (0.11 of the cells of A, 0.93 of those of B)"
    assert told[-1] == "Only in A: plasma."


def test_a_type_and_a_part_of_it_are_finer_than_both_together():
    a_to_b = shares([[0.8], [0.9]], ["T", "NKT"], ["T"])
    b_to_a = shares([[0.7, 0.3]], ["T"], ["T", "NKT"])
    assert Harmony.of(a_to_b, b_to_a, 0.25).pairs["relation"].tolist() == ["finer", "finer"]
    assert Harmony.of(a_to_b, b_to_a, 0.6).mapping == {"T": "T"}


def test_a_few_errors_do_not_part_two_that_are_the_same():
    a_to_b = shares([[0.99], [0.97]], ["CD14", "FCGR3A"], ["CD14"])
    b_to_a = shares([[0.9, 0.09]], ["CD14"], ["CD14", "FCGR3A"])
    harmony = Harmony.of(a_to_b, b_to_a, 0.25)
    assert harmony.mapping == {"CD14": "CD14"}
    assert harmony.pairs["relation"].tolist() == ["same", "finer"]


def test_labels_that_are_no_texts_or_missing(a, b):
    numbered = a[0].copy()
    numbered.obs["cell_type"] = numbered.obs["cell_type"].astype(object)
    numbered.obs.iloc[:3, 0] = None
    numbered.obs.iloc[3:5, 0] = "of another model"
    with pytest.warns(UserWarning, match="5 cells of `data_a` have no label of `model_a` and are left out"):
        assert len(harmonize(a[1], numbered, b[1], b[0], label_a="cell_type").mapping) == 4
    few = a[0][a[0].obs["cell_type"] != "T cell"].copy()
    with pytest.warns(UserWarning, match="`data_a` has no cells of T cell, which are left out"):
        harmony = harmonize(a[1], few, b[1], b[0], label_a="cell_type")
    assert "Only in B: NK cell." in harmony.report()


@pytest.mark.parametrize("trained_as", ["0123", ["0.0", "1.0", "2.0", "3.0"]])
def test_whole_floats_are_the_integers_that_they_were(a, trained_as):
    names = dict(zip(sorted(a[0].obs["cell_type"].unique()), trained_as, strict=False))
    model = dataclasses.replace(a[1], label_keys=[names[str(name)] for name in a[1].label_keys])
    data = a[0].copy()
    data.obs["cell_type"] = data.obs["cell_type"].astype(str).map(names).astype(float)
    mapping = harmonize(model, data, model, data, **COLUMN).mapping
    assert mapping == {name: name for name in names.values()}


def test_cells_without_a_type_count_as_called_by_no_name(a, b):
    emptied = a[0].copy()
    is_t = (emptied.obs["cell_type"] == "T cell").to_numpy()
    is_emptied = is_t & (np.cumsum(is_t) <= is_t.sum() // 2)
    emptied.X = emptied.X.multiply(~is_emptied[:, None]).tocsr()
    pairs = harmonize(a[1], emptied, b[1], b[0], **COLUMN).pairs.set_index("a")
    assert pairs.loc["T cell", "a_to_b"] == pytest.approx(1 - is_emptied.sum() / is_t.sum())


def test_what_cannot_be_meant(a, b):
    with pytest.raises(ValueError, match="label column 'celltype' is not in obs of `data_a`; did you mean 'cell_type'"):
        harmonize(a[1], a[0], b[1], b[0], label_a="celltype")
    with pytest.raises(ValueError, match="label column 'type' is not in obs of `data_b`"):
        harmonize(a[1], a[0], b[1], b[0], label_a="cell_type", label_b="type")
    with pytest.raises(ValueError, match=r"No cell of `data_b` has a label of `model_b` in obs\['donor'\].*`label_b`"):
        harmonize(a[1], a[0], b[1], b[0], **COLUMN, label_b="donor")
    for threshold in (0.0, 1.5):
        with pytest.raises(ValueError, match="`threshold` must lie in"):
            harmonize(a[1], a[0], b[1], b[0], **COLUMN, threshold=threshold)


def test_the_command_writes_the_table(model, tmp_path):
    simulate(seed=0).write_h5ad(tmp_path / "cells.h5ad")
    files = (model, tmp_path / "cells.h5ad") * 2
    printed = ginseng("harmonize", *files, "--label-a", "cell_type", "-o", tmp_path / "pairs.csv")
    assert "3 pairs of the same type; A has 3 labels, B has 3." in printed
    table = pd.read_csv(tmp_path / "pairs.csv")
    assert len(table) == 9
    assert (table["a"] == table["b"])[table["relation"] == "same"].all()


def test_the_command_keeps_the_names_for_create(model, tmp_path):
    renamed = simulate(seed=0)
    renamed.obs["type"] = renamed.obs["cell_type"].astype(str).radd("my ")
    renamed.write_h5ad(tmp_path / "b.h5ad")
    ginseng("fit", tmp_path / "b.h5ad", "--label", "type", "-o", tmp_path / "b.h5", "-q", *QUICK)
    simulate().write_h5ad(tmp_path / "a.h5ad")
    files = model, tmp_path / "a.h5ad", tmp_path / "b.h5", tmp_path / "b.h5ad"
    labels = ["--label-a", "cell_type", "--label-b", "type", "-o", tmp_path / "pairs.csv", "-q", "--overwrite"]
    names = tmp_path / "names.csv"
    for options in ([], ["--merge"]):
        ginseng("harmonize", *files, *labels, "--mapping", names, *options)
        ginseng(
            *("create", files[-1], "--label", "type", "--mapping", names, "--genes", 0),
            *("-o", tmp_path / "cells.zarr", "--overwrite", "-q"),
        )
        assert GinsengDataset(tmp_path / "cells.zarr").label_names == sorted(renamed.obs["cell_type"].unique())
    assert "--merge is of --mapping" in ginseng("harmonize", *files, *labels, "--merge", fails=True)
    assert ".csv or .tsv" in ginseng("harmonize", *files, *labels, "--mapping", tmp_path / "names.xls", fails=True)


def test_blood_cells_of_two_studies(real_data, tmp_path):
    rng = np.random.default_rng(0)
    kang, pbmc = (read_adata(real_data(name), backed=False) for name in ("pbmc_kang_ctrl_8donors.h5ad", "pbmc3k.h5ad"))
    pbmc.var_names_make_unique()
    models = []
    for data in (kang, pbmc):
        data._inplace_subset_obs(np.sort(rng.choice(data.n_obs, 1500, replace=False)))
        dataset = GinsengDataset.create(
            tmp_path / f"{len(models)}.zarr", data, "cell_type", genes=400, split={"fraction": 0.1}, silent=True
        )
        trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(seed=0))
        trainer.fit(5, silent=True)
        models.append(state_from_classifier_trainer(trainer))
    harmony = harmonize(models[0], kang, models[1], pbmc, **COLUMN)
    expected = {"B": "B cells", "CD14+ Mono": "CD14+ Monocytes", "CD8 T": "CD8 T cells", "NK": "NK cells"}
    assert expected.items() <= harmony.mapping.items()
    assert harmony.merging["Naive CD4 T"] == "CD4 T cells"
