"""Disks that are full, folders that are denied or missing, caches that cannot be kept, datasets that go meanwhile."""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pooch
import pytest

from ginseng import GinsengDataset, load_model, read_adata, save_model
from ginseng.commands import training
from ginseng.data.outputs import write_annotated
from ginseng.train.logger import GinsengLogger
from ginseng.utils import ahead
from ginseng.utils.files import replacing, require_writable_path, require_writable_place
from ginseng.utils.hdf5 import changed_hdf5, new_hdf5
from ginseng.utils.workspace import PREFIX
from tests.conftest import QUICK, SUBPROCESS_ENVIRONMENT, contents, ginseng, simulate

SUFFIXES = (".h5ad", ".zarr", ".csv", ".parquet")
OUTPUTS = [f"{name}{suffix}" for name in ("annotated", "merged") for suffix in SUFFIXES]
OUTPUTS += ["copy.zarr", "dataset.zarr", "report.html", "contributions.csv"]


def n_busy_threads():
    """Of ours; zarr keeps its own."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith(("ginseng", "ThreadPoolExecutor"))]
    return len(ours) - len(ahead._idle)


@pytest.fixture
def n_busy_before():
    """Of tests before, in the same process."""
    return n_busy_threads()


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs an administrator")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def filled(disk, n_free):
    """Fill a disk but for so many bytes."""
    (disk / "full").unlink(missing_ok=True)
    stat = os.statvfs(disk)
    (disk / "full").write_bytes(bytes(stat.f_bavail * stat.f_frsize - n_free))


WITHOUT_PRIVILEGES = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of the program to come
    if os.getuid() == 0 and ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
        sys.exit("an administrator stays one")
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from ginseng.cli import app
for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, command)
    print(json.dumps([done.exit_code, done.output, type(done.exception).__name__]))
"""


def commands_without_privileges(*commands, **environment):
    """For somebody who is no administrator: of each command, the exit code and what it says."""
    texts = json.dumps([[str(arg) for arg in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVILEGES, COMMANDS, texts],
        capture_output=True,
        text=True,
        env={**SUBPROCESS_ENVIRONMENT, **environment},
    )
    if "an administrator stays one" in done.stderr:
        pytest.skip("an administrator stays one")
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kind for *_, kind in said} <= {"NoneType", "SystemExit"}
    return [(code, text) for code, text, _ in said]


class TestFullDisk:
    @pytest.mark.parametrize("output", OUTPUTS)
    def test_the_old_output_stays_and_nothing_else(self, disk, model, counts, output, n_busy_before):
        command = ("annotate", model, counts, "-q", "--overwrite", "-o", disk / output)
        if output == "copy.zarr":
            with ad.settings.override(zarr_write_format=3):
                simulate().write_zarr(counts.with_suffix(".zarr"))
            command = ("annotate", model, counts.with_suffix(".zarr"), "-q", "--overwrite", "-o", disk / output)
        elif output == "dataset.zarr":
            command = ("create", counts, "--label", "cell_type", "-q", "--overwrite", "-o", disk / output)
        elif output.startswith("merged"):
            shards = [counts.with_name(f"{number}{Path(output).suffix}") for number in (1, 2)]
            for number, shard in enumerate(shards, start=1):
                ginseng("annotate", model, counts, "-q", "--shard", f"{number}/2", "-o", shard)
            command = ("merge", *shards, "-q", "--overwrite", "-o", disk / output)
        elif output in ("report.html", "contributions.csv"):
            ginseng("annotate", model, counts, "-q", "-o", counts.with_name("a.h5ad"))
            of = (counts.with_name("a.h5ad"),) if output == "report.html" else (model, counts.with_name("a.h5ad"))
            command = (
                *(("report",) if output == "report.html" else ("explain", "-q")),
                *of,
                "--overwrite",
                "-o",
                disk / output,
            )
        ginseng(*command)
        before = contents(disk)
        for share in (0, 0.5):
            filled(disk, int(sum(map(len, before.values())) * share))
            said = ginseng(*command, fails=1)
            assert said.count("\n") == 1
            assert "No space left on device: nothing was changed; make room there, or name another place" in said
            assert said.endswith(f"'{disk / output}'\n")
            assert contents(disk) == before
            assert not list(disk.glob(f"{PREFIX}*"))
            assert n_busy_threads() <= n_busy_before

    def test_the_old_model_stays(self, disk, model):
        state = load_model(model)
        save_model(state, disk / "m.h5")
        before = contents(disk)
        filled(disk, 2**13)
        with pytest.raises(OSError, match=r"No space left on device: nothing was changed.*m\.h5"):
            save_model(state, disk / "m.h5")
        assert contents(disk) == before

    def test_training_goes_on_from_its_last_checkpoint(self, disk, dataset, monkeypatch, n_busy_before):
        fit = ("fit", dataset.path, "-q", "--overwrite", *QUICK, "--calibrate", "none", "-o")
        fit = (*fit, dataset.path.with_name("m.h5"))
        ginseng(*fit)
        shutil.rmtree(dataset.path / "split")
        weights = np.asarray(load_model(fit[-1]).params["head"]["W"])
        report = GinsengLogger.report

        def fill_after_two_epochs(logger, silent):
            if len(logger.epoch) == 2:
                filled(disk, 2**13)
            report(logger, silent)

        with monkeypatch.context() as patch:
            patch.setattr(GinsengLogger, "report", fill_after_two_epochs)
            said = ginseng(*fit, "--checkpoint", disk / "run", fails=1)
        assert re.search(r"No space left on device: nothing was changed.*checkpoint\.h5'\n$", said)
        assert n_busy_threads() <= n_busy_before
        (disk / "full").unlink()
        said = ginseng(*fit[:2], *fit[3:], "--checkpoint", disk / "run")
        assert "goes on in epoch 2 of 6" in said
        np.testing.assert_array_equal(load_model(fit[-1]).params["head"]["W"], weights)

    def test_a_file_that_may_not_grow_is_not_replaced(self, model, counts, tmp_path):
        """The limit of the size of a file, which batch systems set; HDF5 would end the interpreter."""
        resource = pytest.importorskip("resource")
        ginseng("annotate", model, counts, "-o", tmp_path / "a.h5ad", "-q")
        before = contents(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (counts.stat().st_size + 2**14, hard))
        try:
            said = ginseng("annotate", model, counts, "-o", tmp_path / "a.h5ad", "-q", "--overwrite", fails=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "File too large: nothing was changed" in said
        assert contents(tmp_path) == before

    def test_pages_of_an_hdf5_file_that_change_are_written_by_python(self, tmp_path):
        rng = np.random.default_rng(0)
        arrays = {name: rng.integers(0, 100, 50_000) for name in "abc"}
        with new_hdf5(tmp_path / "x.h5") as file:
            file["kept"], file["changed"], file["removed"] = arrays["a"], arrays["a"], arrays["b"]
        size = (tmp_path / "x.h5").stat().st_size
        with changed_hdf5(tmp_path / "x.h5") as file:
            file["changed"][100:40_000] = arrays["b"][100:40_000]
            del file["removed"]
            file.create_dataset("new", data=arrays["c"], chunks=(1000,), compression="gzip")
            assert (tmp_path / "x.h5").stat().st_size == size
        with h5py.File(tmp_path / "x.h5") as file:
            assert sorted(file) == ["changed", "kept", "new"]
            np.testing.assert_array_equal(file["kept"], arrays["a"])
            np.testing.assert_array_equal(file["new"], arrays["c"])
            np.testing.assert_array_equal(file["changed"][100:40_000], arrays["b"][100:40_000])
            np.testing.assert_array_equal(file["changed"][40_000:], arrays["a"][40_000:])


class TestPlacesThatCannotBeWritten:
    """They are refused before anything is done, with whatever is there as it was."""

    @pytest.fixture
    def commands(self, model, counts, dataset):
        annotated = counts.with_name("annotated.h5ad")
        ginseng("annotate", model, counts, "-o", annotated, "-q")
        fit = ("fit", dataset.path, "-q", *QUICK, "-o", counts.with_name("m.h5"))
        return {
            "dataset": (("create", counts, "--label", "cell_type", "--overwrite", "-q", "-o"), "d.zarr"),
            **{suffix: (("annotate", model, counts, "-q", "-o"), f"a{suffix}") for suffix in SUFFIXES},
            "page": (("annotate", model, counts, "-q", "-o", counts.with_name("x.csv"), "--report"), "r.html"),
            "model": (("fit", dataset.path, "-q", *QUICK, "-o"), "m.h5"),
            "checkpoint": ((*fit, "--checkpoint"), "run"),
            "log": ((*fit, "--log"), "log.csv"),
            "report": (("report", annotated, "-o"), "r.html"),
        }

    def test_whose_folder_is_a_file(self, commands, tmp_path):
        (tmp_path / "file").write_text("old")
        before = contents(tmp_path)
        for name, (command, output) in commands.items():
            said = ginseng(*command, tmp_path / "file" / output, fails=2)
            assert f"file/{output}" in said, name
            assert "cannot be written" in said and "(Not a directory)" in said, name
        assert contents(tmp_path) == before

    def test_which_are_of_another_kind(self, commands, tmp_path):
        for name, (command, output) in commands.items():
            target = tmp_path / name.strip(".") / output
            target.parent.mkdir()
            if name == "dataset" or output.endswith(".zarr"):
                target.write_text("old")
            else:
                target = target / "checkpoint.h5" if name == "checkpoint" else target
                target.mkdir(parents=True)
                (target / "thesis.txt").write_text("all of it")
                target = target.parent if name == "checkpoint" else target
            before = contents(tmp_path)
            said = ginseng(*command, target, fails=2)
            assert "name a file" in said or "ame another" in said, name
            assert contents(tmp_path) == before, name

    def test_which_are_denied_to_somebody_without_a_home(self, commands, model, counts, tmp_path):
        """Nor is there a cache, which is needed for downloads only."""
        denied = tmp_path / "denied"
        denied.mkdir()
        (denied / "a.csv").write_text("old")
        denied.chmod(0o555)
        before = {*tmp_path.rglob("*")}
        allowed, cache = (
            ("annotate", model, counts, "-q", "-o", tmp_path / "b.csv"),
            ("inspect", "https://a.invalid/b.h5"),
        )
        refused = [(*command, denied / output) for command, output in commands.values()]
        places = {"HOME": str(denied), "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path)}
        first, *others, last = commands_without_privileges(allowed, *refused, cache, **places)
        assert first == (0, "")
        for (name, (_, output)), said in zip(commands.items(), others, strict=True):
            assert said[0] == 2, (name, said)
            refusal = rf"error: .*/{output}.* cannot be written: {denied} is not a folder .*\(Permission denied\)\.\n$"
            assert re.search(refusal, said[1]), (name, said)  # after what matplotlib says
        assert last[0] == 3
        assert last[1].count("\n") == 1
        assert "(Permission denied): set the environment variable XDG_CACHE_HOME to a folder that you may" in last[1]
        assert {*tmp_path.rglob("*")} == before | {tmp_path / "b.csv"}
        assert (denied / "a.csv").read_text() == "old"

    def test_which_are_read_only(self, disk, adata):
        dataset = GinsengDataset.create(disk / "cells.zarr", adata, "cell_type", silent=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = contents(disk)
        for output in ("cells.zarr", "new/cells.zarr"):
            with pytest.raises(ValueError, match=r"cells.zarr cannot be written: .*\(Read-only file system\)"):
                GinsengDataset.create(disk / output, adata, "cell_type", silent=True)
        with pytest.raises(OSError, match="Read-only file system: .*cells.csv"):
            write_annotated(adata.obs, disk / "cells.csv")
        with pytest.warns(UserWarning, match="cannot be written to: the split holds for this object only"):
            dataset.make_split(0.25)
        assert len(dataset.test_idx) == 30
        assert contents(disk) == before

    def test_which_are_mounted_or_no_files(self, disk, tmp_path):
        with pytest.raises(ValueError, match="disk is mounted itself, and cannot be replaced"):
            require_writable_place(disk)
        os.mkfifo(tmp_path / "pipe.h5")
        for check in (require_writable_path, lambda path: replacing(path).__enter__()):
            with pytest.raises(ValueError, match="pipe.h5 is neither a file nor a folder, and is not replaced"):
                check(tmp_path / "pipe.h5")
        assert (tmp_path / "pipe.h5").is_fifo()

    def test_a_link_stays_and_what_it_points_to_is_written(self, adata, tmp_path):
        (tmp_path / "far").mkdir()
        for name in ("cells.zarr", "cells.csv"):
            (tmp_path / name).symlink_to(tmp_path / "far" / name)
        for _ in range(2):
            GinsengDataset.create(tmp_path / "cells.zarr", adata, "cell_type", silent=True)
            write_annotated(adata.obs, tmp_path / "cells.csv")
        assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["cells.csv", "cells.zarr"]
        assert (tmp_path / "cells.zarr").is_symlink() and (tmp_path / "cells.csv").is_symlink()
        (tmp_path / "far" / "cells.csv").unlink()
        (tmp_path / "far" / "cells.csv").symlink_to(tmp_path / "cells.csv")
        require_writable_path(tmp_path / "cells.csv")  # links in a circle end


class TestDatasetThatGoesMeanwhile:
    @pytest.mark.parametrize("what", ["removed", "replaced"])
    @pytest.mark.parametrize("memory", ["1 GB", "3 kB"])
    def test_is_told_from_one_that_is_damaged(self, dataset, what, memory, n_busy_before):
        batches = GinsengDataset(dataset.path).stream(8, "all", memory=memory, rng=0)
        if memory == "3 kB":
            next(batches)
        if what == "removed":
            shutil.rmtree(dataset.path)
        else:
            GinsengDataset.create(dataset.path, simulate(seed=1), "cell_type", silent=True)
        with pytest.raises(OSError, match=f"has been {what} since it was opened"):
            list(batches)
        with pytest.raises(OSError, match=f"has been {what} since it was opened"):
            dataset.make_split(0.25)
        assert n_busy_threads() <= n_busy_before


class TestCacheThatCannotBeKept:
    def test_numba_has_a_folder_for_as_long_as_a_command_takes(self, model, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(training, "describe_model", lambda _: os.environ["NUMBA_CACHE_DIR"])
        folder = ginseng("inspect", model).strip()
        assert folder.startswith(str(tmp_path))
        assert not os.path.exists(folder)  # noqa: PTH110
        assert "NUMBA_CACHE_DIR" not in os.environ
        monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
        assert ginseng("inspect", model).strip() == "mine"

    def test_somebody_without_a_home_is_told_what_to_set(self, model, monkeypatch, tmp_path):
        def unknown(_):
            raise KeyError("uid not found")

        for name in ("HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pwd, "getpwuid", unknown)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="There is no home folder .*XDG_CACHE_HOME"):
            read_adata("https://example.invalid/cells.h5ad")
        assert "genes" in ginseng("inspect", model)
        assert not list(tmp_path.iterdir())

    def test_compiled_code_that_is_cut_short_is_compiled_once_more_in_silence(self, model, counts, tmp_path):
        """As where two processes begin at once, and one reads what the other is writing."""
        cache = tmp_path / "cache"
        variables = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        tables = []
        for name in ("a.csv", "b.csv"):
            command = [sys.executable, "-m", "ginseng", "annotate", model, counts, "-q", "-o", tmp_path / name]
            done = subprocess.run(
                command, env={**SUBPROCESS_ENVIRONMENT, **variables}, capture_output=True, text=True, check=True
            )
            assert (done.stdout, done.stderr) == ("", "")
            tables.append((tmp_path / name).read_text())
            entries = [entry for entry in cache.iterdir() if entry.name.endswith("-cache")]
            assert entries
            for entry in entries:
                os.truncate(entry, entry.stat().st_size // 2)
        assert tables[0] == tables[1]

    def test_a_download_that_is_there_needs_no_place(self, adata, tmp_path, monkeypatch):
        """As in an image with a cache that cannot be written to."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        url = "https://example.invalid/cells.h5ad"
        kept = tmp_path / "ginseng" / pooch.utils.unique_file_name(url)
        kept.parent.mkdir()
        adata.write_h5ad(kept)
        monkeypatch.setattr("ginseng.data.downloads.require_writable_place", lambda _: pytest.fail("not needed"))
        assert read_adata(url).shape == adata.shape
