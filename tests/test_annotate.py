import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from ginseng import GinsengDataset, classify, read_adata, save_model
from ginseng.commands import annotating
from ginseng.commands.runs import Record
from ginseng.data import outputs
from ginseng.data.inputs import InputChanged, contents_of, identity_of
from ginseng.data.outputs import read_mark, write_annotated
from ginseng.data.parts import merge_shards
from tests.conftest import SUBPROCESS_ENVIRONMENT, contents, ginseng, simulate, untrained


class TestAnnotate:
    def test_h5ad(self, model, counts, tmp_path):
        output = ginseng(
            "annotate", model, counts, "-o", tmp_path / "a.h5ad", "--probabilities", "--truth", "cell_type"
        )
        assert "120 cells annotated: saved" in output
        assert "macro-F1" in output
        annotated = ad.read_h5ad(tmp_path / "a.h5ad")
        assert (annotated.obs["ginseng_cell_type"].astype(str) == annotated.obs["cell_type"].astype(str)).mean() > 0.9
        assert annotated.obsm["ginseng_probs"].shape == (120, 3)
        assert annotated.X.sum() == ad.read_h5ad(counts).X.sum()

    @pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
    def test_tables(self, model, counts, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        ginseng("annotate", model, counts, "-o", path, "--cells", "donor == 'd1'")
        read = {"csv": pd.read_csv, "tsv": lambda p, **k: pd.read_csv(p, sep="\t", **k), "parquet": pd.read_parquet}
        table = read[suffix](path) if suffix == "parquet" else read[suffix](path, index_col=0)
        assert table.columns[:2].tolist() == ["ginseng_cell_type", "ginseng_confidence"]
        assert len(table) == (simulate().obs["donor"] == "d1").sum()

    @pytest.mark.parametrize(
        ("output", "args", "message"),
        [
            ("a.txt", [], r"error: .*must end in .h5ad, .zarr, .csv, .tsv, .parquet"),
            ("cells.h5ad", [], "is DATA .*cells.h5ad itself; name another"),
            ("a.csv", ["--truth", "type"], "column of true cell types 'type' is not in adata.obs"),
            ("a.csv", ["--gene-key", "name"], "gene column 'name' is not in adata.var"),
            ("a.csv", ["--gene-key", "symbol"], "No gene in common.*no --gene-key would match 30"),
            ("a.csv", ["--layer", "raw"], "layer 'raw' is not in adata.layers"),
        ],
    )
    def test_errors(self, model, counts, tmp_path, output, args, message):
        before = counts.read_bytes()
        printed = ginseng("annotate", model, counts, "-o", tmp_path / output, *args, fails=True)
        assert pd.Series([printed.replace("\n", " ")]).str.contains(message)[0], printed
        assert counts.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]

    def test_swapped_arguments(self, model, counts, tmp_path):
        assert "were the two swapped" in ginseng("annotate", counts, model, "-o", tmp_path / "a.csv", fails=True)


def test_names_of_another_species(model, adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata.var_names = [f"m{i}" if i < 9 else f"Gene{i}" for i in range(30)]
    adata.write_h5ad(tmp_path / "mouse.h5ad")
    table = tmp_path / "orthologs.csv"
    table.write_text("".join(f"m{i},GENE{i}\n" for i in range(9)))
    annotate = ["annotate", model, tmp_path / "mouse.h5ad", "-o", tmp_path / "a.csv", "--truth", "cell_type"]
    annotate.append("--overwrite")
    assert "No gene in common" in " ".join(ginseng(*annotate, fails=True).split())
    whole = ginseng("annotate", model, tmp_path / "cells.h5ad", *annotate[3:], "-q")
    assert ginseng(*annotate, "--gene-map", table, "--ignore-case", "-q") == whole
    missing = ginseng(*annotate, "--gene-map", tmp_path / "no.csv", fails=True)
    assert "There is no file" in missing


N_CELLS, BATCH = 120, 16  # 8 batches


def annotated_as(contents):
    """What counts as the same of two outputs: bytes of a file, contents of AnnData."""
    if contents.suffix in (".h5ad", ".zarr"):
        read = ad.read_h5ad if contents.suffix == ".h5ad" else ad.read_zarr
        return read(contents)
    return contents.read_bytes()


def assert_same(one, other):
    one, other = annotated_as(one), annotated_as(other)
    if isinstance(one, bytes):
        assert one == other
        return
    for name in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert str(dict(one.uns)) == str(dict(other.uns))
    for name in ("obsm", "varm", "layers"):
        assert list(getattr(one, name)) == list(getattr(other, name))
        for key in getattr(one, name):
            assert_same_matrix(getattr(one, name)[key], getattr(other, name)[key])
    assert_same_matrix(one.X, other.X)
    assert (one.raw is None) == (other.raw is None)
    if one.raw is not None:
        assert_same_matrix(one.raw.X, other.raw.X)
        pd.testing.assert_frame_equal(one.raw.var, other.raw.var)


def assert_same_matrix(one, other):
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(*(m.toarray() if sparse.issparse(m) else m for m in (one, other)))


@pytest.fixture
def rich(adata, tmp_path):
    """Counts with all that AnnData may have, but pairs of cells."""
    adata.raw = adata.copy()
    adata.layers["dense"] = adata.X.toarray()
    adata.obsm["X_pca"] = np.arange(2.0 * N_CELLS).reshape(N_CELLS, 2)
    adata.varm["loadings"] = np.ones((adata.n_vars, 2))
    adata.uns["colors"] = ["#000000", "#ffffff", "#00ff00"]
    adata.obs["rare"] = pd.Categorical(["a"] * (N_CELLS - 1) + ["b"])
    adata.obs["flag"] = pd.array([True, None] * (N_CELLS // 2), dtype="boolean")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata.write_zarr(tmp_path / "cells.zarr")
    return tmp_path / "cells.h5ad"


class TestFiles:
    @pytest.mark.parametrize("storage", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
    @pytest.mark.parametrize("kinds", ["h5ad h5ad", "zarr zarr", "h5ad zarr", "zarr h5ad"])
    def test_all_that_was_there_is_there(self, model, rich, tmp_path, kinds, storage):
        source, target = (tmp_path / f"{name}.{kind}" for name, kind in zip(("in", "out"), kinds.split(), strict=True))
        adata = ad.read_h5ad(rich)
        adata.X = storage(adata.X.toarray())
        adata.obsp["near"] = sparse.csr_matrix(np.eye(N_CELLS))
        adata.write_h5ad(source) if source.suffix == ".h5ad" else adata.write_zarr(source)
        for options in ([], ["--overwrite"]):  # over an output that is there
            ginseng("annotate", model, source, "-o", target, "-q", "--probabilities", *options)
        classify(str(model), adata, store_probs=True, silent=True)
        adata.write_h5ad(tmp_path / "expected.h5ad")
        expected, found = (annotated_as(path) for path in (tmp_path / "expected.h5ad", target))
        assert_same_matrix(expected.obsp["near"], found.obsp["near"])
        expected.write_zarr(tmp_path / "expected.zarr")
        assert_same(tmp_path / f"expected{target.suffix}", target)
        assert not list(tmp_path.glob(".*"))

    def test_a_file_that_was_annotated_is_annotated_anew(self, model, rich, tmp_path):
        ginseng("annotate", model, rich, "-o", tmp_path / "once.h5ad", "-q")
        ginseng("annotate", model, tmp_path / "once.h5ad", "-o", tmp_path / "twice.h5ad", "-q")
        assert_same(tmp_path / "once.h5ad", tmp_path / "twice.h5ad")

    def test_a_folder_that_is_no_store_is_not_replaced(self, model, rich, tmp_path):
        (tmp_path / "mine.zarr").mkdir()
        (tmp_path / "mine.zarr" / "thesis.txt").write_text("all")
        refused = ginseng("annotate", model, rich, "-o", tmp_path / "mine.zarr", fails=2)
        assert "is a folder, but no zarr store" in refused
        assert (tmp_path / "mine.zarr" / "thesis.txt").exists()

    @pytest.mark.parametrize("suffix", [".csv", ".tsv"])
    def test_names_with_control_characters_read_back(self, model, adata, tmp_path, suffix):
        odd = ["AAAC-1\r", "a\nb", "a\tb", "\x1b[31mred", 'a"b', "a,b", "\r\n"]
        names = [*odd, *adata.obs_names[len(odd) :]]
        adata.obs_names = names
        adata.write_h5ad(tmp_path / "odd.h5ad")
        how = {"sep": {".csv": ",", ".tsv": "\t"}[suffix], "index_col": "cell"}
        ginseng("annotate", model, tmp_path / "odd.h5ad", "-o", tmp_path / f"a{suffix}", "-q", "--batch-size", BATCH)
        assert pd.read_csv(tmp_path / f"a{suffix}", **how).index.tolist() == names
        shards = TestShards.sharded(model, [tmp_path / "odd.h5ad"], 3, tmp_path, suffix)
        ginseng("merge", *shards, "-o", tmp_path / f"b{suffix}", "--strict", "unassigned=1")
        assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()

    def test_a_name_that_ends_a_text_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"hold no NUL character, as in a\\x00b"):
            write_annotated(pd.DataFrame({"type": ["B"]}, index=["a\0b"]), tmp_path / "a.csv")

    @pytest.mark.parametrize("suffix", [".h5ad", ".csv"])
    def test_a_report(self, model, rich, tmp_path, suffix):
        page, output = tmp_path / "page.html", tmp_path / f"a{suffix}"
        ginseng("annotate", model, rich, "-o", output, "-q", "--report", page, "--truth", "cell_type")
        assert "NK cell" in page.read_text()
        refused = ginseng("annotate", model, rich, "-o", output, "--report", page, "--shard", "1/2", fails=2)
        assert "--report is of all cells of one input" in refused


class TestChangedInputs:
    @pytest.mark.parametrize(("kind", "suffix"), [("h5ad", ".h5ad"), ("h5ad", ".csv"), ("zarr", ".zarr")])
    def test_an_input_that_is_replaced_meanwhile_is_refused(self, model, adata, tmp_path, monkeypatch, kind, suffix):
        source, target = tmp_path / f"cells.{kind}", tmp_path / f"out{suffix}"
        getattr(adata, f"write_{kind}")(source)
        getattr(simulate(seed=1), f"write_{kind}")(tmp_path / f"new.{kind}")
        annotate = ["annotate", model, source, "-o", target, "-q", "--overwrite"]
        ginseng(*annotate)
        before = annotated_as(target)

        def classify_and_replace(*args, **kwargs):
            answer = classify(*args, **kwargs)
            source.rename(tmp_path / f"old.{kind}")
            (tmp_path / f"new.{kind}").rename(source)
            return answer

        monkeypatch.setattr(annotating, "classify", classify_and_replace)
        refused = ginseng(*annotate, fails=3)
        assert f"{source} has been replaced or changed since it was opened: {target} is not written" in refused
        assert str(annotated_as(target)) == str(before)

    def test_one_that_is_replaced_while_it_is_copied_is_not_written(self, adata, tmp_path, monkeypatch):
        source, target = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
        adata.write_h5ad(source)
        identity, copy = identity_of(source), shutil.copyfile

        def copy_of_another(given, fresh):
            simulate(seed=1).write_h5ad(given)
            return copy(given, fresh)

        monkeypatch.setattr(shutil, "copyfile", copy_of_another)
        with pytest.raises(InputChanged, match=r"cells.h5ad has been replaced .*out.h5ad is not written"):
            write_annotated(adata, target, source, identity=identity)
        assert not target.exists()


class TestNames:
    @pytest.mark.parametrize(
        ("put", "part"),
        [
            (lambda a: a.obs.insert(0, "G1/S", 0), "obs"),
            (lambda a: a.var.insert(0, "G1/S", 0), "var"),
        ],
    )
    def test_those_that_an_output_cannot_have_are_refused_before_the_work(self, model, adata, tmp_path, put, part):
        put(adata)
        with warnings.catch_warnings(action="ignore"):  # of anndata, which is to stop writing them
            adata.write_h5ad(tmp_path / "x.h5ad")
        refused = ginseng("annotate", model, tmp_path / "x.h5ad", "-o", tmp_path / "o.zarr", fails=3)
        assert f"o.zarr cannot hold 'G1/S' of {part}: anndata writes no such name to .zarr. Rename it" in refused
        assert "Annotating" not in refused
        ginseng("annotate", model, tmp_path / "x.h5ad", "-o", tmp_path / "o.csv", "-q")

    @pytest.mark.parametrize("part", ["obsm", "varm", "layers", "uns"])
    def test_in_every_part(self, adata, tmp_path, part):
        given = {"uns": {"phases": {"G1/S": 1}}, "layers": {"G1/S": adata.X}, "varm": {"G1/S": np.ones((30, 2))}}
        getattr(adata, part).update(given.get(part, {"G1/S": np.ones((N_CELLS, 2))}))
        with pytest.raises(ValueError, match=f"o.zarr cannot hold 'G1/S' of {part}"):
            outputs.require_keys(adata, tmp_path / "o.zarr")

    def test_of_an_h5ad_they_are_what_anndata_writes(self, adata, tmp_path):
        adata.obs["G1/S"] = 0
        outputs._is_written.cache_clear()
        outputs.require_keys(adata, tmp_path / "o.h5ad")
        outputs._is_written.cache_clear()
        with (
            ad.settings.override(disallow_forward_slash_in_h5ad=True),
            pytest.raises(ValueError, match=r"o.h5ad cannot hold 'G1/S' of obs"),
        ):
            outputs.require_keys(adata, tmp_path / "o.h5ad")
        outputs._is_written.cache_clear()

    def test_a_dataset_cannot_have_them_either(self, adata, tmp_path):
        adata.obs["G1/S"] = adata.obs["cell_type"]
        with pytest.raises(ValueError, match=r"cannot hold 'G1/S' of obs"):
            GinsengDataset.create(tmp_path / "cells", adata, "G1/S", silent=True)


class TestSeveral:
    @pytest.fixture
    def inputs(self, tmp_path):
        (tmp_path / "in").mkdir()
        for seed, name in enumerate("abc"):
            simulate(60, seed=seed).write_h5ad(tmp_path / "in" / f"{name}.h5ad")
        return tmp_path / "in"

    def test_a_pattern_becomes_a_folder(self, model, inputs, tmp_path):
        ginseng("annotate", model, inputs / "[ab].h5ad", inputs / "c.h5ad", "-o", tmp_path / "out", "-q")
        assert sorted(path.name for path in (tmp_path / "out").glob("*")) == [".ginseng", "a.h5ad", "b.h5ad", "c.h5ad"]
        assert "ginseng_cell_type" in ad.read_h5ad(tmp_path / "out" / "c.h5ad").obs
        ginseng("annotate", model, inputs / "a*", "-o", tmp_path / "tables", "--format", "csv", "-q")
        alone = tmp_path / "alone.csv"
        ginseng("annotate", model, inputs / "a.h5ad", "-o", alone, "-q")
        assert (tmp_path / "tables" / "a.csv").read_bytes() == alone.read_bytes()

    @pytest.mark.parametrize(
        ("data", "output", "options", "message"),
        [
            (["in/x*.h5ad"], "out", [], "Nothing matches '.*x"),
            (["in/a.h5ad", "in/b.h5ad"], "out.csv", [], "names one file for 2 inputs; name a folder"),
            (["in/a.h5ad", "in/a.h5ad"], "out", [], "would both become .*a.h5ad; annotate them apart"),
            (["in/*.h5ad"], "in", [], "a.h5ad is DATA .*a.h5ad itself"),
            (["in/*.h5ad"], "out", ["--format", "xlsx"], "--format must be one of h5ad"),
            (["in/a.h5ad"], "out.csv", ["--format", "csv"], "--format is of several outputs"),
            (["in/a.h5ad"], "out.csv", ["--shard", "0/3"], "given as 1/10"),
            (["in/a.h5ad"], "out.csv", ["--strict", "rare=0.3"], "--strict takes shares"),
            (["in/a.h5ad"], "out.csv", ["--precision", "half"], "precision"),
            (["in/a.h5ad"], "out.csv", ["--min-overlap", "2"], "0, 1"),
        ],
    )
    def test_wrong_use(self, model, inputs, tmp_path, data, output, options, message):
        printed = ginseng("annotate", model, *(tmp_path / d for d in data), "-o", tmp_path / output, *options, fails=2)
        assert pd.Series([printed.replace("\n", " ")]).str.contains(message)[0], printed
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.h5ad", "b.h5ad", "c.h5ad", "in"]

    def test_one_that_is_refused_does_not_stop_the_others(self, model, inputs, tmp_path):
        broken = ad.read_h5ad(inputs / "b.h5ad")
        broken.var_names = [f"other{i}" for i in range(broken.n_vars)]
        broken.write_h5ad(inputs / "b.h5ad")
        printed = ginseng("annotate", model, inputs / "*", "-o", tmp_path / "out", fails=3)
        assert f"error: {inputs / 'b.h5ad'}: No gene in common" in printed
        assert "1 of 3 inputs were refused" in printed
        assert [path.name for path in sorted((tmp_path / "out").glob("[!.]*"))] == ["a.h5ad", "c.h5ad"]

    def test_what_is_finished_is_not_made_again(self, model, inputs, tmp_path):
        annotate = ["annotate", model, inputs / "*", "-o", tmp_path / "out"]
        out = tmp_path / "out"
        made = lambda *options: ginseng(*annotate, *options).count("cells annotated")  # noqa: E731
        assert [made(), made(), made("--overwrite"), made()] == [3, 0, 3, 0]
        (out / "a.h5ad").unlink()
        assert made() == 1
        before = contents(out)
        simulate(70).write_h5ad(inputs / "b.h5ad")
        (out / "c.h5ad").unlink()
        for options in ([], ["--batch-size", 16]):
            refused = ginseng(*annotate, *options, fails=2)
            assert "exists, and is not what this call finishes" in refused and "--overwrite" in refused
            assert not (out / "c.h5ad").exists()
        (out / "b.h5ad").unlink()
        assert made() == 2
        assert ad.read_h5ad(out / "b.h5ad").n_obs == 70
        assert contents(out).keys() == before.keys()

    def test_what_a_user_has_changed_is_replaced_on_request_only(self, model, inputs, tmp_path):
        annotate = ["annotate", model, inputs / "*", "-o", tmp_path / "out", "--format", "csv"]
        ginseng(*annotate)
        changed = tmp_path / "out" / "b.csv"
        changed.write_text("curated by hand")
        assert f"{changed} exists, and is not what" in ginseng(*annotate, fails=2)
        assert changed.read_text() == "curated by hand"
        assert ginseng(*annotate, "--overwrite").count("cells annotated") == 3

    def test_an_input_of_equal_size_and_time_is_another_and_a_copy_is_not(self, model, inputs, tmp_path):
        annotate = ["annotate", model, inputs / "*", "-o", tmp_path / "out"]
        ginseng(*annotate, "-q")
        changed, before = inputs / "b.h5ad", (inputs / "b.h5ad").stat()
        with h5py.File(changed, "r+") as file:
            file["X/data"][:20] = file["X/data"][:20] + 1
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert changed.stat().st_size == before.st_size
        (inputs / "c.h5ad").touch()
        annotated = tmp_path / "out" / "b.h5ad"
        assert f"{annotated} exists, and is not what" in ginseng(*annotate, fails=2)
        annotated.unlink()
        printed = ginseng(*annotate)
        assert printed.count("is finished already") == 2
        assert f"cells annotated: saved {annotated}" in printed

    def test_an_output_of_another_is_replaced_on_request_only(self, model, inputs, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "b.h5ad").write_text("mine")
        annotate = ["annotate", model, inputs / "*", "-o", tmp_path / "out", "-q"]
        assert "b.h5ad exists; --overwrite replaces it" in ginseng(*annotate, fails=2)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.h5ad"]
        ginseng(*annotate, "--overwrite")
        assert ad.read_h5ad(tmp_path / "out" / "b.h5ad").n_obs == 60

    def test_what_was_begun_before_a_kill_is_made_again(self, model, inputs, tmp_path, monkeypatch):
        def killed(*_):
            raise KeyboardInterrupt

        annotate = ["annotate", model, inputs / "*", "-o", tmp_path / "out", "-q"]
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr(Record, "keep", killed)
            ginseng(*annotate)
        assert (tmp_path / "out" / "a.h5ad").exists()
        ginseng(*annotate)

    def test_what_a_damaged_record_is_of_is_made_again_on_request_only(self, model, inputs, tmp_path):
        annotate = ["annotate", model, inputs / "*", "-o", tmp_path / "out"]
        ginseng(*annotate)
        for name, content in {"a": b"\xff", "b": b"[]", "c": b"{}"}.items():
            (tmp_path / "out" / ".ginseng" / f"{name}.h5ad.json").write_bytes(content)
        assert "a.h5ad exists, and is not what" in ginseng(*annotate, fails=2)
        assert ginseng(*annotate, "--overwrite").count("cells annotated") == 3
        assert ginseng(*annotate).count("is finished already") == 3

    @pytest.mark.parametrize("is_finished", [False, True])
    def test_one_that_may_not_be_read_does_not_stop_the_others(self, model, inputs, tmp_path, monkeypatch, is_finished):
        read = []

        def locked(path):
            if str(path).endswith("in/b.h5ad"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            read.append(str(path))
            return contents_of(path)

        annotate = ["annotate", model, inputs / "*", "-o", tmp_path / "out"]
        if is_finished:
            ginseng(*annotate)
            (tmp_path / "out" / "c.h5ad").unlink()
        monkeypatch.setattr("ginseng.commands.runs.contents_of", locked)
        printed = ginseng(*annotate, fails=3)
        assert "Permission denied" in printed and "1 of 3 inputs were refused" in printed
        assert (tmp_path / "out" / "b.h5ad").exists() == is_finished
        assert (tmp_path / "out" / "c.h5ad").exists()
        assert len(read) == len(set(read)) == 4  # an input is read once

    def test_that_a_model_is_not_calibrated_is_told_once(self, inputs, tmp_path):
        save_model(untrained(), tmp_path / "m.h5")
        with pytest.warns(UserWarning, match="is not calibrated") as told:
            ginseng("annotate", tmp_path / "m.h5", inputs / "*", "-o", tmp_path / "out")
        assert sum("is not calibrated" in str(warning.message) for warning in told) == 1

    @pytest.mark.parametrize("content", ["", "[" * 100_000, '{"made_with": {}}'])
    def test_a_damaged_record_is_none(self, tmp_path, content):
        (tmp_path / "a.csv").touch()
        record = Record(tmp_path / "a.csv", {})
        record.keep({"novel": 0.1})
        assert record.found() == {"novel": 0.1}
        (tmp_path / ".ginseng" / "a.csv.json").write_text(content)
        assert record.found() is None

    def test_a_run_that_is_killed_goes_on_where_it_was(self, model, tmp_path):
        for number in range(20):
            simulate(400, seed=number).write_h5ad(tmp_path / f"{number}.h5ad")
        annotate = ["annotate", model, tmp_path / "*.h5ad", "-o", tmp_path / "out"]
        command = [sys.executable, "-m", "ginseng", *map(str, annotate), "-q"]
        run = subprocess.Popen(command, env=SUBPROCESS_ENVIRONMENT)
        records = tmp_path / "out" / ".ginseng"
        while len(list(records.glob("*.json"))) < 2:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        n_finished = len(list(records.glob("[!.]*.json")))
        assert 2 <= n_finished < 20
        printed = ginseng(*annotate)
        assert printed.count("is finished already") == n_finished
        assert printed.count("cells annotated") == 20 - n_finished
        assert all(ad.read_h5ad(path).n_obs == 400 for path in (tmp_path / "out").glob("[!.]*.h5ad"))
        assert len(list((tmp_path / "out").glob("[!.]*.h5ad"))) == 20


class TestShards:
    @staticmethod
    def sharded(model, data, n_shards, folder, suffix, *options):
        shards = [folder / f"{number}{suffix}" for number in range(1, n_shards + 1)]
        for number, shard in enumerate(shards, start=1):
            part = ["--shard", f"{number}/{n_shards}"]
            ginseng("annotate", model, *data, "-o", shard, *part, "--batch-size", BATCH, "-q", *options)
        return shards

    @pytest.mark.parametrize(
        ("suffix", "n_shards"),
        [
            (".csv", 1),
            (".csv", 11),
            (".tsv", 3),
            (".parquet", 3),
            (".parquet", 7),
            (".h5ad", 3),
            (".h5ad", 11),
            (".zarr", 3),
        ],
    )
    def test_merged_they_are_what_one_run_writes(self, model, rich, tmp_path, suffix, n_shards):
        whole, merged = tmp_path / f"whole{suffix}", tmp_path / f"merged{suffix}"
        options = ["--probabilities"] if suffix in (".h5ad", ".zarr") else []
        ginseng("annotate", model, rich, "-o", whole, "--batch-size", BATCH, "-q", *options)
        shards = self.sharded(model, [rich], n_shards, tmp_path, suffix, *options)
        ginseng("merge", *reversed(shards), "-o", merged)
        assert_same(whole, merged)

    def test_of_several_inputs(self, model, rich, tmp_path):
        simulate(50, seed=4).write_h5ad(tmp_path / "more.h5ad")
        data = [rich, tmp_path / "more.h5ad"]
        ginseng("annotate", model, *data, "-o", tmp_path / "whole", "--format", "csv", "--batch-size", BATCH, "-q")
        shards = self.sharded(model, data, 3, tmp_path, "", "--format", "csv")
        ginseng("merge", *shards, "-o", tmp_path / "merged")
        for name in ("cells.csv", "more.csv"):
            assert_same(tmp_path / "whole" / name, tmp_path / "merged" / name)
        (shards[0] / "more.csv").unlink()
        refused = ginseng("merge", *shards, "-o", tmp_path / "merged", fails=3)
        assert "no shards of the same inputs" in refused

    def test_chosen_cells(self, model, rich, tmp_path):
        some = ["--cells", "donor != 'd1'"]
        ginseng("annotate", model, rich, "-o", tmp_path / "whole.csv", "--batch-size", BATCH, "-q", *some)
        ginseng("merge", *self.sharded(model, [rich], 2, tmp_path, ".csv", *some), "-o", tmp_path / "merged.csv")
        assert_same(tmp_path / "whole.csv", tmp_path / "merged.csv")

    def test_what_does_not_belong_together(self, model, rich, tmp_path):
        first, second, third = self.sharded(model, [rich], 3, tmp_path, ".csv")
        merge = ["merge", "-o", tmp_path / "merged.csv"]
        assert "Of 3 shards of merged.csv, these are missing: 2" in ginseng(*merge, first, third, fails=3)
        assert f"{first} and {first} are both shard 1 of 3" in ginseng(*merge, first, first, second, third, fails=3)
        assert "There is no" in ginseng(*merge, first, tmp_path / "no.csv", fails=1)
        whole, other = tmp_path / "whole.csv", tmp_path / "other.csv"
        ginseng("annotate", model, rich, "-o", whole, "-q")
        assert f"{whole} is no shard" in ginseng(*merge, first, second, whole, fails=3)
        part = ["-o", other, "--shard", "3/3", "-q"]
        ginseng("annotate", model, rich, *part, "--batch-size", 8)
        assert f"{other} does not belong to {first}: its options is another" in ginseng(
            *merge, first, second, other, fails=3
        )
        simulate(50, seed=4).write_h5ad(tmp_path / "more.h5ad")
        ginseng("annotate", model, tmp_path / "more.h5ad", *part, "--batch-size", BATCH, "--overwrite")
        assert f"{other} does not belong to {first}: its input is another" in ginseng(
            *merge, first, second, other, fails=3
        )
        assert not (tmp_path / "merged.csv").exists()
        refused = ginseng("merge", "-o", first, first, second, third, "--overwrite", fails=2)
        assert f"--output {first} is SHARDS {first} itself" in refused

    def test_counts_that_have_changed_are_another_input_and_a_copy_is_the_same(self, model, rich, tmp_path):
        first, second = self.sharded(model, [rich], 2, tmp_path, ".csv")
        copied = shutil.copy(rich, tmp_path / "copied.h5ad")
        part = ["--shard", "2/2", "--batch-size", BATCH, "-q", "--overwrite"]
        ginseng("annotate", model, copied, "-o", second, *part)
        ginseng("merge", first, second, "-o", tmp_path / "merged.csv")
        before = rich.stat()
        with h5py.File(rich, "r+") as file:
            file["X/data"][:20] = file["X/data"][:20] + 1
        os.utime(rich, ns=(before.st_atime_ns, before.st_mtime_ns))
        ginseng("annotate", model, rich, "-o", second, *part)
        refused = ginseng("merge", first, second, "-o", tmp_path / "other.csv", fails=3)
        assert f"{second} does not belong to {first}: its input is another" in refused

    @pytest.mark.parametrize("suffix", [".csv", ".h5ad"])
    def test_the_form_of_the_counts_is_told_once_of_all_cells(self, model, adata, tmp_path, suffix):
        counts = adata.X.toarray()
        adata.layers["counts"], adata.X = counts, np.log1p(counts)
        adata.X[: N_CELLS * 3 // 5] = np.roll(counts[: N_CELLS * 3 // 5], 1, axis=1)  # whole, as raw counts are
        adata.write_h5ad(tmp_path / "x.h5ad")
        whole, merged = tmp_path / f"whole{suffix}", tmp_path / f"merged{suffix}"
        ginseng("annotate", model, tmp_path / "x.h5ad", "-o", whole, "--batch-size", BATCH, "--fix", "-q")
        shards = self.sharded(model, [tmp_path / "x.h5ad"], 2, tmp_path, suffix, "--fix")
        assert read_mark(shards[0])["form"][0] == "layer counts"
        ginseng("merge", *shards, "-o", merged)
        assert_same(whole, merged)

    def test_shards_of_another_form_are_not_merged(self, tmp_path):
        for number, used in enumerate(("X", "layer counts"), start=1):
            mark = {"number": number, "of": 2, "model": "m", "options": {"key_added": "ginseng"}, "input": "i"}
            cells = pd.DataFrame({"type": ["B"]}, index=[f"cell{number}"])
            write_annotated(cells, tmp_path / f"{number}.csv", mark={**mark, "form": [used, {}]})
        with pytest.raises(ValueError, match=r"2.csv does not belong to .*1.csv: its form is another"):
            merge_shards([tmp_path / "1.csv", tmp_path / "2.csv"], tmp_path / "merged.csv")

    def test_chunks_of_zeros_of_our_own_stores_are_there(self, model, adata, tmp_path, recwarn):
        adata.X = adata.X.toarray()
        adata.X[:] = np.where(np.arange(adata.n_vars) < 5, 3, 0)
        adata.obs["flag"] = False
        adata.obs["type"] = pd.Categorical(["a"] * (N_CELLS - 1) + ["b"])
        adata.write_h5ad(tmp_path / "x.h5ad")
        with zarr.config.set({"array.write_empty_chunks": False}):
            shards = self.sharded(model, [tmp_path / "x.h5ad"], 2, tmp_path, ".zarr")
            ginseng("merge", *shards, "-o", tmp_path / "merged.zarr")
        assert (read_adata(tmp_path / "merged.zarr").obs["flag"] == False).all()  # noqa: E712
        assert not [found for found in recwarn if "have no file" in str(found.message)]

    def test_pairs_of_cells_are_not_parted(self, model, adata, tmp_path):
        adata.obsp["near"] = sparse.csr_matrix(np.eye(N_CELLS))
        adata.write_h5ad(tmp_path / "x.h5ad")
        shard = ["annotate", model, tmp_path / "x.h5ad", "--shard", "1/2"]
        assert "obsp['near'] is of pairs of cells" in ginseng(*shard, "-o", tmp_path / "a.h5ad", fails=3)
        ginseng(*shard, "-o", tmp_path / "a.csv")


class TestExitCodes:
    def test_of_each_kind(self, model, counts, tmp_path):
        annotate = ["annotate", model, counts, "-o", tmp_path / "a.csv", "-q", "--overwrite"]
        ginseng(*annotate)
        ginseng("annotate", tmp_path / "no.h5", counts, "-o", tmp_path / "b.csv", fails=1)
        ginseng("annotate", model, counts, fails=2)
        ginseng(*annotate, "--layer", "no", fails=3)

    def test_limits(self, model, adata, tmp_path):
        adata.X[:30] = 0
        adata.write_h5ad(tmp_path / "x.h5ad")
        annotate = ["annotate", model, tmp_path / "x.h5ad", "-o", tmp_path / "a.csv", "-q", "--overwrite", "--strict"]
        ginseng(*annotate, "unassigned=0.25")
        exceeded = ginseng(*annotate, "unassigned=0.2", fails=4)
        assert "25.0% of the cells of" in exceeded
        assert len(pd.read_csv(tmp_path / "a.csv")) == N_CELLS
        shards = TestShards.sharded(model, [tmp_path / "x.h5ad"], 2, tmp_path, ".csv")
        ginseng("merge", *shards, "-o", tmp_path / "b.csv", "--strict", "unassigned=0.25")
        ginseng("merge", *shards, "-o", tmp_path / "b.csv", "--overwrite", "--strict", "unassigned=0.2", fails=4)
        several = ["annotate", model, tmp_path / "x.h5*", "-o", tmp_path / "out", "--strict", "unassigned=0.2"]
        for _ in range(2):  # the second time of what the first has finished
            ginseng(*several, fails=4)
