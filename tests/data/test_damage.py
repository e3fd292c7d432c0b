"""Files that are damaged, cut short or of another kind: refused by name, or read as they were."""

import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import warnings

import anndata as ad
import h5py
import jax
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from ginseng import (
    GinsengDataset,
    classify,
    load_model,
    read_adata,
    save_model,
)
from tests.conftest import SUBPROCESS_ENVIRONMENT, contents, simulate, untrained


@pytest.fixture(scope="module")
def state():
    return untrained()


@pytest.fixture
def whole(tmp_path, adata):
    dataset = GinsengDataset.create(tmp_path / "cells.zarr", adata, "cell_type", group_key="donor", silent=True)
    dataset.make_split(0.2)
    return tmp_path / "cells.zarr"


def everything(dataset):
    batches = [batch for part in ("train", "test") for batch in dataset.stream(32, part, shuffle=False)]
    names = dataset.label_names, dataset.gene_names, dataset.group_names
    return [*(array for batch in batches for array in batch), dataset.labels, dataset.groups], names


def equal(first, second):
    return first[1] == second[1] and all(np.array_equal(x, y) for x, y in zip(first[0], second[0], strict=True))


def flipped(content, rng):
    content = bytearray(content)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


class TestSparseCountsThatContradictThemselves:
    """Sparse routines trust indices and row ends: a wrong one ends the interpreter, or counts for another cell."""

    @pytest.mark.parametrize("storage", ["csr", "csc"])
    @pytest.mark.parametrize(
        ("array", "value", "message"),
        [
            ("indices", 10**6, "index of 1,000,000"),
            ("indices", -7, "index of -7"),
            ("indptr", 10**9, "row ends do not rise"),
            ("indptr", 0, "row ends do not rise"),
        ],
    )
    def test_in_a_file(self, state, tmp_path, storage, array, value, message):
        adata = simulate()
        adata.X = adata.X.asformat(storage)
        path = tmp_path / "cells.h5ad"
        adata.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file[f"X/{array}"][5] = value
        for read in (
            lambda: classify(state, path, return_table=True, silent=True),
            lambda: classify(state, path, backed=False, return_table=True, silent=True),
            lambda: classify(state, ad.read_h5ad(path, backed="r")[::2], return_table=True, silent=True),
            lambda: GinsengDataset.create(tmp_path / "new.zarr", path, "cell_type", silent=True),
        ):
            with pytest.raises(ValueError, match=rf"cells.h5ad.*{message}"):
                read()
        assert not (tmp_path / "new.zarr").exists()

    @pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix])
    def test_in_memory(self, state, kind):
        adata = simulate()
        matrix = kind(adata.X)
        matrix.indices[3] = 500
        with pytest.raises(ValueError, match=r"adata.X is damaged: it has an index of 500"):
            classify(state, ad.AnnData(matrix, adata.obs, adata.var), return_table=True, silent=True)


def set_entry(name, position, value):
    def change(root):
        root[name][position] = value

    return change


def set_attribute(name, value):
    return lambda root: root.attrs.update({name: value})


def set_shape(root):
    root["X"].attrs.update({"shape": [120, 29]})


def replace(name, values):
    def change(root):
        del root[name]
        root.create_array(name, data=np.asarray(values))

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_entry("X/indices", slice(None), 200),
        set_entry("X/indptr", 4, 10**12),
        set_entry("X/indptr", 4, -1),
        set_entry("X/indptr", 4, 0),
        set_shape,
        set_attribute("n_cells", 119),
        set_attribute("n_genes", 10**9),
        set_attribute("n_genes", -1),
        set_attribute("n_cells", None),
        set_attribute("label_names", None),
        set_attribute("label_names", ["B cell"]),
        set_attribute("label_names", ["B cell", "B cell", "T cell"]),
        set_attribute("label_names", {"B cell": 1}),
        set_attribute("gene_names", [f"GENE{i}" for i in range(29)]),
        set_attribute("gene_names", [f"GENE{i}" for i in range(31)]),
        set_attribute("gene_names", list(range(30))),
        set_attribute("group_names", ["d1"]),
        set_entry("labels", 0, -1),
        set_entry("labels", 0, 3),
        replace("labels", np.zeros(119, np.int32)),
        replace("labels", np.zeros(120)),
        set_entry("groups", 0, 4),
        set_entry("split/train", 0, 120),
        set_entry("split/train", 0, -1),
        replace("X/indptr", np.zeros(120, np.int64)),
        replace("X/data", np.ones(3, np.uint8)),
    ],
)
def test_a_dataset_that_contradicts_itself_is_refused(whole, change):
    untouched = everything(GinsengDataset(whole))
    root = zarr.open_group(whole, mode="r+", use_consolidated=False)
    change(root)
    try:
        found = everything(GinsengDataset(whole))
    except (ValueError, OSError) as error:
        assert "cells.zarr" in str(error)
    else:
        assert equal(found, untouched)
        raise AssertionError("not noticed")


def test_cells_both_trained_on_and_held_out_are_refused(whole):
    """Of ginseng 0.2.1, whose splits have no digest."""
    root = zarr.open_group(whole, mode="r+", use_consolidated=False)
    del root["split"].attrs["digest"]
    root["split/test"][0] = int(root["split/train"][0])
    with pytest.raises(ValueError, match=r"split of .*cells.zarr is damaged.*names a cell twice"):
        GinsengDataset(whole)


@pytest.mark.parametrize(
    "name", ["labels", "groups", "split/train", "split/test", "X/data", "X/indices", "X/indptr", "split"]
)
def test_files_that_have_gone_are_noticed(whole, name):
    shutil.rmtree(whole / name / "c") if (whole / name / "c").exists() else shutil.rmtree(whole / name / "train")
    with pytest.raises((ValueError, OSError), match=r"cells.zarr.*"):
        everything(GinsengDataset(whole))


def test_a_file_of_dense_counts_that_has_gone_is_noticed(tmp_path):
    adata = ad.AnnData(np.ones((40, 5), np.float32), {"cell_type": ["a", "b"] * 20})
    adata.X[8:16] = 0  # a file of zeros is none that has gone
    dataset = GinsengDataset.create(tmp_path / "dense.zarr", adata, "cell_type", chunk_size=8, silent=True)
    assert next(dataset.stream(40, "all", shuffle=False))[0].tolist() == adata.X.tolist()
    shutil.rmtree(next((tmp_path / "dense.zarr" / "X" / "c").iterdir()))
    with pytest.raises(ValueError, match=r"dense.zarr is a damaged dataset: 1 of the 5 chunks of X have no file"):
        GinsengDataset(tmp_path / "dense.zarr")


def test_a_file_of_dense_counts_that_goes_while_they_are_streamed_is_noticed(tmp_path):
    adata = ad.AnnData(np.ones((40, 5), np.float32), {"cell_type": ["a", "b"] * 20})
    dataset = GinsengDataset.create(tmp_path / "dense.zarr", adata, "cell_type", chunk_size=8, silent=True)
    shutil.rmtree(next((tmp_path / "dense.zarr" / "X" / "c").iterdir()))
    with pytest.raises(OSError, match=r"dense.zarr is damaged \(1 of the 5 chunks of X have no file\)"):
        list(dataset.stream(40, "all"))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "layers/counts/indices"])
def test_files_of_an_anndata_store_that_have_gone_are_noticed(state, tmp_path, version, name):
    adata = simulate()
    adata.layers["counts"] = adata.X.copy()
    with ad.settings.override(zarr_write_format=version):
        adata.write_zarr(tmp_path / "cells.zarr")
    classify(state, tmp_path / "cells.zarr", return_table=True, silent=True)
    folder = tmp_path / "cells.zarr" / name
    shutil.rmtree(folder / "c") if version == 3 else (folder / "0").unlink()
    for read in (
        lambda: classify(state, tmp_path / "cells.zarr", return_table=True, silent=True),
        lambda: classify(state, tmp_path / "cells.zarr", silent=True),
        lambda: GinsengDataset.create(tmp_path / "new.zarr", tmp_path / "cells.zarr", "cell_type", silent=True),
    ):
        with pytest.raises(ValueError, match=rf"cells.zarr.*: 1 of the 1 chunks of {name} have no file"):
            read()


@pytest.mark.parametrize("version", [2, 3])
class TestColumnsOfAnAnndataStore:
    @pytest.fixture
    def store(self, tmp_path, version):
        with ad.settings.override(zarr_write_format=version):
            simulate().write_zarr(tmp_path / "cells.zarr")
        return tmp_path / "cells.zarr"

    def lose(self, store, name, version):
        name = f"{name}/values" if (store / name / "values").exists() else name  # as newer anndata writes names
        shutil.rmtree(store / name / "c") if version == 3 else (store / name / "0").unlink()

    @pytest.mark.parametrize("name", ["obs/_index", "var/_index", "obs/cell_type/categories"])
    def test_names_that_have_gone_are_noticed(self, store, version, name):
        self.lose(store, name, version)
        with pytest.raises(ValueError, match=rf"cells.zarr.*: 1 of the 1 chunks of {name} have no file"):
            read_adata(store)

    def test_labels_that_may_have_gone_draw_a_warning(self, store, version, tmp_path):
        self.lose(store, "obs/cell_type/codes", version)
        other = simulate(seed=1)
        with pytest.warns(UserWarning, match=r"1 of the 1 chunks of obs/cell_type/codes have no file, and are read as"):
            GinsengDataset.create(tmp_path / "x.zarr", [store, other], "cell_type", silent=True)


def test_labels_that_are_empty_are_none(tmp_path):
    """As zarr reads those of a column of which a part has gone."""
    adata = simulate()
    adata.obs["t"] = ["a"] * 40 + [""] * 20 + ["b"] * 60
    with pytest.warns(UserWarning, match="20 of 120 cells have no label"):
        dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "t", silent=True)
    assert (dataset.label_names, dataset.n_cells) == (["a", "b"], 100)
    with pytest.raises(ValueError, match="20 cells have no group"):
        GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", group_key="t", silent=True)


@pytest.mark.parametrize("version", [2, 3])
def test_sound_anndata_stores_draw_no_alarm(tmp_path, version):
    """zarr writes no file of what is all zero, or all of the first category."""
    adata = simulate(n_cells=20)
    first = np.zeros((20, 30), np.float32)
    first[::2, 0] = 7
    adata.layers.update({"none": sparse.csr_matrix((20, 30)), "first": sparse.csr_matrix(first)})
    adata.layers["of the first cell"] = sparse.csc_matrix(np.vstack([np.ones((1, 30)), np.zeros((19, 30))]))
    adata.raw = ad.AnnData(sparse.csr_matrix((20, 30)), var=adata.var)
    adata.obs["same"] = ["a"] * 20
    adata.obs["zero"], adata.obs["false"] = 0, False
    adata.obs["batch"], adata.obs["doublet"] = pd.Categorical([0] * 20), pd.Categorical([False] * 20)
    with ad.settings.override(zarr_write_format=version):
        adata.write_zarr(tmp_path / "cells.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert read_adata(tmp_path / "cells.zarr").shape == (20, 30)


def test_chunks_of_an_anndata_store_that_may_have_gone_draw_a_warning(state, tmp_path):
    adata = simulate()
    adata.X = adata.X.toarray()
    adata.obs["n_doublets"] = 0  # a column of which zarr writes no file
    adata.write_zarr(tmp_path / "cells.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read_adata(tmp_path / "cells.zarr")
    adata.write_zarr(tmp_path / "cells.zarr", chunks=(60, 30))
    next(path for path in (tmp_path / "cells.zarr" / "X").rglob("0*") if path.is_file()).unlink()
    with pytest.warns(UserWarning, match=r"1 of the 2 chunks of X have no file, and are read as zeros"):
        classify(state, tmp_path / "cells.zarr", return_table=True)


@pytest.mark.parametrize("content", ["[]", "5", "", "{}", '{"zarr_format": 3, "node_type": "group", "attributes": 5}'])
@pytest.mark.parametrize("name", ["zarr.json", ".zgroup"])
def test_a_store_whose_root_is_none_is_named(tmp_path, content, name):
    (tmp_path / "cells.zarr").mkdir()
    (tmp_path / "cells.zarr" / name).write_text(content)
    with pytest.raises(ValueError, match=r"cells.zarr is not a ginseng dataset"):
        GinsengDataset(tmp_path / "cells.zarr")
    with pytest.raises(ValueError, match=r"cells.zarr is"):
        read_adata(tmp_path / "cells.zarr")


def test_flipped_bits_of_dense_counts_are_noticed(tmp_path):
    adata = ad.AnnData(
        np.random.default_rng(0).poisson(9.0, (40, 5)).astype(np.float32), {"cell_type": ["a", "b"] * 20}
    )
    dataset = GinsengDataset.create(tmp_path / "dense.zarr", adata, "cell_type", silent=True)
    (file,) = (path for path in (dataset.path / "X" / "c").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"dense.zarr is damaged .*Create the dataset anew"):
        list(GinsengDataset(dataset.path).stream(9, "all"))


def test_dense_counts_written_by_others_open(tmp_path):
    adata = ad.AnnData(np.ones((40, 5), np.float32), {"cell_type": ["a", "b"] * 20})
    dataset = GinsengDataset.create(tmp_path / "dense.zarr", adata, "cell_type", silent=True)
    del dataset.root["X"]
    dataset.root.create_array("X", data=adata.X, chunks=(9, 5), attributes={"encoding-type": "array"})
    assert next(GinsengDataset(dataset.path).stream(40, "all", shuffle=False))[0].tolist() == adata.X.tolist()


def test_flipped_bits_of_a_dataset_change_nothing_in_silence(whole):
    untouched, rng, refused = everything(GinsengDataset(whole)), random.Random(0), 0
    files = [file for file in whole.rglob("*") if file.is_file() and not {"obs", "var"} & set(file.parts)]
    for file in rng.choices(files, k=40):
        content = file.read_bytes()
        file.write_bytes(flipped(content, rng))
        try:
            assert equal(everything(GinsengDataset(whole)), untouched)
        except (ValueError, OSError) as error:
            refused += 1
            assert "cells.zarr" in str(error)
        file.write_bytes(content)
    assert refused > 20
    assert equal(everything(GinsengDataset(whole)), untouched)


def test_flipped_bits_of_a_model_change_nothing_in_silence(state, tmp_path):
    save_model(state, tmp_path / "m.h5")
    content, rng, refused = (tmp_path / "m.h5").read_bytes(), random.Random(0), 0
    saved = load_model(tmp_path / "m.h5")
    for _ in range(60):
        (tmp_path / "m.h5").write_bytes(flipped(content, rng))
        try:
            found = load_model(tmp_path / "m.h5")
        except ValueError as error:
            refused += 1
            assert "m.h5" in str(error)
        else:
            assert all(map(np.array_equal, jax.tree.leaves(found.params), jax.tree.leaves(saved.params)))
            assert (found.genes == saved.genes).all()
            assert (found.output_labels == saved.output_labels).all()
            assert (found.normalize, found.target_sum) == (saved.normalize, saved.target_sum)
    assert refused > 10


def test_a_weight_changed_after_saving_is_noticed(state, tmp_path):
    save_model(state, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        file["params/head/W"][0, 0] += 1
    with pytest.raises(ValueError, match=r"m.h5 is no whole ginseng model: weights, names or settings have changed"):
        load_model(tmp_path / "m.h5")


class TestMatricesOfOtherKinds:
    @pytest.mark.parametrize("dtype", [np.float16, bool, np.int8, np.uint64, np.longdouble, ">f4", ">i2"])
    def test_numbers_of_any_type_are_read(self, state, adata, dtype):
        adata.X = np.minimum(adata.X.toarray(), 1)
        expected = classify(state, adata, return_table=True, silent=True)
        adata.X = adata.X.astype(dtype)
        assert adata.X.dtype == dtype
        assert classify(state, adata, return_table=True, silent=True).equals(expected)

    @pytest.mark.parametrize("dtype", [object, complex, "U3"])
    def test_what_are_no_numbers_is_refused(self, state, adata, dtype):
        adata.X = adata.X.toarray().astype(dtype)
        with pytest.raises(ValueError, match=r"adata.X holds .*, where numbers are expected; try adata.X.astype"):
            classify(state, adata, return_table=True, silent=True)

    @pytest.mark.parametrize("backed", [True, False])
    def test_indices_that_are_fractions_are_refused(self, state, adata, tmp_path, backed):
        adata.write_h5ad(tmp_path / "x.h5ad")
        with h5py.File(tmp_path / "x.h5ad", "r+") as file:
            indices = file["X/indices"][:].astype(float)
            del file["X/indices"]
            file["X/indices"] = indices
        with pytest.raises(ValueError, match=r"x.h5ad.*its indices are float64"):
            classify(state, tmp_path / "x.h5ad", backed=backed, return_table=True, silent=True)

    @pytest.mark.parametrize("values", [np.float32(3), np.zeros(120, np.float32), np.zeros((120, 30, 2), np.float32)])
    @pytest.mark.parametrize("table", [True, False])
    def test_other_dimensions_are_refused(self, state, adata, tmp_path, values, table):
        adata.write_h5ad(tmp_path / "x.h5ad")
        with h5py.File(tmp_path / "x.h5ad", "r+") as file:
            del file["X"]
            file["X"] = values
            file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        with pytest.raises(ValueError, match=r"x.h5ad"):
            classify(state, tmp_path / "x.h5ad", return_table=table, silent=True)


class TestOtherFiles:
    def test_loom(self, tmp_path):
        with h5py.File(tmp_path / "x.loom", "w") as file:
            file["matrix"] = np.eye(3)
            file.create_group("row_attrs")
            file.create_group("col_attrs")
        with pytest.raises(ValueError, match=r"x.loom is a loom file: convert it.*write_h5ad"):
            read_adata(tmp_path / "x.loom")

    @pytest.mark.parametrize("backed", [True, False])
    def test_h5ad_without_x(self, state, adata, tmp_path, backed):
        adata.layers["counts"] = adata.X
        adata.X = None
        adata.write_h5ad(tmp_path / "x.h5ad")
        with pytest.raises(ValueError, match='adata.X has no count: pass layer="counts"'):
            classify(state, tmp_path / "x.h5ad", backed=backed, silent=True)
        assert classify(state, tmp_path / "x.h5ad", layer="counts", backed=backed, return_table=True, silent=True).size

    @pytest.mark.parametrize("name", ["matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"])
    def test_truncated_gz(self, tmp_path, name):
        texts = {
            "matrix.mtx.gz": "%%MatrixMarket matrix coordinate integer general\n2 3 2\n1 1 5\n2 3 7\n",
            "features.tsv.gz": "E1\tA\nE2\tB\n",
            "barcodes.tsv.gz": "x\ny\nz\n",
        }
        for file, text in texts.items():
            content = gzip.compress(text.encode())
            (tmp_path / file).write_bytes(content[:-9] if file == name else content)
        with pytest.raises(ValueError, match=rf"{name} is damaged.*ended before"):
            read_adata(tmp_path)

    def test_damaged_10x_file(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_group("matrix/features")["id"] = np.array(["E1"], "S")
        with pytest.raises(ValueError, match=r"x.h5 is damaged, or of another kind"):
            read_adata(tmp_path / "x.h5")


FULL_DISK = """
import contextlib, io, json, os, resource, sys
from pathlib import Path
import anndata, numpy as np
from ginseng import GinsengDataset
from ginseng.cli import main
from ginseng.data.io import load_model, save_model, write_adata
from ginseng.train.logger import GinsengLogger, LogFile

folder, model_file = Path(sys.argv[1]), sys.argv[2]
counts = np.random.default_rng(0).poisson(3.0, (400, 200)).astype("float32")
adata = anndata.AnnData(counts, {"cell_type": ["A", "B"] * 200})
adata.var_names = [f"GENE{i}" for i in range(200)]
adata.write_h5ad(folder / "source.h5ad")
model = load_model(model_file)
logger = GinsengLogger()
for epoch in range(200):
    logger.update(epoch, 0.1, 0.2, 0.3)
writers = {
    "model": lambda path: save_model(model, path),
    "cells": lambda path: write_adata(adata, path),
    "dataset": lambda path: GinsengDataset.create(path, adata, "cell_type", silent=True),
    "log": lambda path: [LogFile(path).append(logger, 1.0) for _ in range(200)],
}
whole, unlimited = os.path.getsize(folder / "source.h5ad"), resource.getrlimit(resource.RLIMIT_FSIZE)
for kind, name in json.loads(sys.argv[3]):
    path, errors = str(folder / kind / name), io.StringIO()
    sys.argv = ["ginseng", "annotate", model_file, str(folder / "source.h5ad"), "-o", path, "-q", "--overwrite"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + whole * (kind == "copy"), unlimited[1]))
    try:
        with contextlib.redirect_stderr(errors):
            writers.get(kind, lambda _: main())(path)
    except (OSError, SystemExit) as error:
        errors.write(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print(json.dumps([kind, errors.getvalue()]), flush=True)
"""
FULL_DISKS = {
    "model": "m.h5",
    "cells": "cells.h5ad",
    "dataset": "cells.zarr",
    "log": "log.csv",
    "table": "t.csv",
    "annotated": "annotated.h5ad",
    "copy": "copy.h5ad",
}


@pytest.fixture(scope="module")
def full_disks(state, tmp_path_factory):
    """Of each kind, the folder of an old file, what it held, and what is told where a new one finds no room."""
    home = tmp_path_factory.mktemp("full")
    save_model(state, home / "source.h5")
    for kind, name in FULL_DISKS.items():
        (home / kind).mkdir()
        if kind == "dataset":
            GinsengDataset.create(home / kind / name, simulate(), "cell_type", silent=True)
        else:
            (home / kind / name).write_text("epoch,old")
    before = {kind: contents(home / kind) for kind in FULL_DISKS}
    arguments = [str(home), str(home / "source.h5"), json.dumps(list(FULL_DISKS.items()))]
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], env=SUBPROCESS_ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    told = dict(json.loads(line) for line in run.stdout.splitlines())
    return {kind: (home / kind, before[kind], told[kind]) for kind in FULL_DISKS}


@pytest.mark.parametrize("kind", FULL_DISKS)
def test_a_full_disk_is_an_error_by_name_and_leaves_the_old_file(full_disks, kind):
    """By itself, HDF5 would end the interpreter, and with it the process that tries all kinds."""
    folder, before, told = full_disks[kind]
    assert re.search(rf"File too large.*{FULL_DISKS[kind]}", told), told
    if kind == "log":
        assert (folder / FULL_DISKS[kind]).read_text().startswith("epoch,old\n")
    else:
        assert contents(folder) == before
    assert [path.name for path in folder.iterdir()] == [FULL_DISKS[kind]]
