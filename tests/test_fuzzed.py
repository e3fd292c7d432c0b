"""What the fuzzer (`python -m tests.fuzz`) has found, and a share of its cases."""

import random
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from ginseng import GinsengClassifier, GinsengClassifierState, GinsengDataset, load_model, read_adata, save_model
from ginseng.data.outputs import write_annotated
from ginseng.data.parts import merge_shards
from ginseng.train.logger import LogFile
from ginseng.utils.files import naming
from tests.conftest import REPOSITORY, SUBPROCESS_ENVIRONMENT, simulate
from tests.fuzz import corpus, mutations


def test_a_share_of_the_cases():
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "80", "--workers", "1", "--first", "0"]
    kinds = [f"--kind={kind}" for kind in ("dataset-csr", "dataset-0.2.1", "shard-csv", "shard-h5ad", "log")]
    done = subprocess.run(
        [*command, *kinds], capture_output=True, text=True, env=SUBPROCESS_ENVIRONMENT, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "80 cases" in done.stdout


def shards(folder, suffix):
    paths = [folder / f"{number}{suffix}" for number in (1, 2)]
    for number, path in enumerate(paths, start=1):
        mark = {"number": number, "of": 2, "model": "a", "input": "b", "form": [], "options": {"key_added": "ginseng"}}
        write_annotated(pd.DataFrame({"type": ["B", "T"], "n": [1.0, 2.0]}, index=["x", "y"]), path, mark=mark)
    return paths


class TestShards:
    @pytest.mark.parametrize("n_bytes", [1, 8])
    def test_cut_short_are_refused(self, tmp_path, n_bytes):
        """They were merged without a word, less a cell."""
        first, second = shards(tmp_path, ".csv")
        first.write_bytes(first.read_bytes()[:-n_bytes])
        with pytest.raises(ValueError, match=r"1\.csv is no whole shard: its cells have changed"):
            merge_shards([first, second], tmp_path / "all.csv")
        assert not (tmp_path / "all.csv").exists()

    @pytest.mark.parametrize("mark", ["[]", "5", '{"number": 1}', "{", '{"number": "1", "of": 2}'])
    def test_that_tell_something_else_of_themselves_are_refused(self, tmp_path, mark):
        first, second = shards(tmp_path, ".csv")
        lines = first.read_text().splitlines(keepends=True)
        first.write_text(f"# ginseng shard {mark}\n{''.join(lines[1:])}")
        with pytest.raises(ValueError, match=r"1\.csv"):
            merge_shards([first, second], tmp_path / "all.csv")

    def test_of_other_types_are_refused(self, tmp_path):
        first, second = shards(tmp_path, ".parquet")
        table = pd.read_parquet(second)
        changed = table.astype(str)
        changed.attrs = table.attrs
        changed.to_parquet(second)
        with pytest.raises(ValueError, match=r"2\.parquet and .*1\.parquet have other columns"):
            merge_shards([first, second], tmp_path / "all.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_log_that_is_no_text_is_refused_before_the_run(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    path.write_bytes(b"epoch\xff")
    with pytest.raises(ValueError, match=rf"log{suffix} is no log of a training run"):
        LogFile(path)


def test_metadata_of_a_model_that_have_changed_are_left_out(tmp_path):
    params = GinsengClassifier(3, 2, hidden_dim=2).params
    names = ["a", "b", "c"], ["B", "T"], [0, 1]
    state = GinsengClassifierState(params, *names, 3, 2, 2, True, 1e4, 0.2, metadata={"settings": {"lr": 0.125}})
    save_model(state, tmp_path / "m.h5")
    assert load_model(tmp_path / "m.h5").metadata["settings"] == {"lr": 0.125}
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        text = file["metadata/settings"].asstr()[()]
        del file["metadata/settings"]
        file["metadata/settings"] = text.replace("0.125", "0.925")
    with pytest.warns(UserWarning, match="metadata of the model cannot be read and are left out: they have changed"):
        assert load_model(tmp_path / "m.h5").metadata == {}


def test_names_of_a_column_of_a_dataset_that_have_changed_are_noticed(dataset):
    assert dataset.column("donor")[0] == ["d1", "d2", "d3", "d4"]
    categories = zarr.open_group(dataset.path, use_consolidated=False)["obs/donor/categories"]
    categories[0] = "e1"
    with pytest.raises(ValueError, match="cells.zarr is a damaged dataset: the values of 'donor' have changed"):
        GinsengDataset(dataset.path).column("donor")


def test_a_split_of_which_the_metadata_have_gone_is_noticed(dataset):
    dataset.make_split(0.25)
    (dataset.path / "split" / "zarr.json").unlink()
    with pytest.raises(ValueError, match=r"The split of .*cells\.zarr is damaged.*metadata have gone"):
        GinsengDataset(dataset.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("store", ["of ginseng 0.2.1", "dense"])
def test_counts_that_are_not_finite_are_not_streamed(tmp_path, store, value):
    path = tmp_path / "cells.zarr"
    if store == "dense":
        adata = simulate()
        adata.X = adata.X.toarray() + 0.5
        GinsengDataset.create(path, adata, "cell_type", normalize=False, silent=True)
    else:
        shutil.copytree(REPOSITORY / "tests" / "golden" / "dataset.zarr", path)
    zarr.open_group(path, use_consolidated=False)["X"][3, 5] = value
    with pytest.raises(OSError, match=r"cells\.zarr is damaged \(it holds counts that are not finite\)"):
        list(GinsengDataset(path).stream(16, "all"))


def test_sparse_counts_of_a_type_that_scipy_does_not_add_up_are_refused(dataset):
    root = zarr.open_group(dataset.path, use_consolidated=False)
    values = root["X/data"][:].astype(np.float16)
    del root["X/data"]
    root["X"].create_array("data", data=values)
    with pytest.raises(ValueError, match=r"cells\.zarr is a damaged dataset: X holds float16, of which SciPy has no"):
        list(GinsengDataset(dataset.path).stream(16, "all"))


@pytest.mark.parametrize("content", ["{", "[]", "[" * 10_000])
def test_annotation_of_a_dataset_that_is_no_json_is_named(dataset, content):
    (dataset.path / "obs" / "zarr.json").write_text(content)
    with pytest.raises(ValueError, match=r"cells\.zarr"):
        GinsengDataset(dataset.path).column("donor")


def test_a_type_that_hdf5_does_not_know_is_refused(counts):
    """One flipped bit; HDF5 2.0 ends the interpreter as it reads the attribute."""
    content = bytearray(counts.read_bytes())
    attribute = content.index(b"encoding-version\0")
    text = content.index(b"\x19\x01\x01\x00\x10\x00\x00\x00", attribute)  # of variable length, in UTF-8
    assert text - attribute < 64
    content[text + 1] ^= 4
    counts.write_bytes(content)
    with pytest.raises(ValueError, match=r"cells\.h5ad .*is of an unknown type"):
        read_adata(counts)


def test_a_file_that_asks_for_more_memory_than_there_is_is_named():
    with pytest.raises(OSError, match=r"Cannot allocate memory .*8\.00 TiB.*: 'cells\.h5ad'"), naming("cells.h5ad"):
        raise MemoryError("Unable to allocate 8.00 TiB")


def test_cases_follow_from_a_seed(tmp_path):
    told, contents = [], []
    for attempt in "ab":
        corpus.make(tmp_path / attempt, ["shard-csv"])
        for kind in ("10x-new", "10x-folder", "dataset-0.2.1", "shard-csv"):
            path = tmp_path / attempt / kind / corpus.WRITERS[kind][0]
            canary = tmp_path / "canary"
            others = mutations.files_in(tmp_path / attempt / "mapping")
            told.append(mutations.mutate(path, canary, others, random.Random(kind)))
            contents.append([file.read_bytes() for file in mutations.files_in(path)])
    assert told[:4] == told[4:]
    assert contents[:4] == contents[4:]
