import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from ginseng.utils.ahead import read_ahead
from ginseng.utils.counts import Counts
from ginseng.utils.files import replacing
from ginseng.utils.messages import unknown_name
from tests.conftest import SUBPROCESS_ENVIRONMENT


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_all_or_nothing(tmp_path, kind, existing, error):
    def write(path, text):
        if kind == "folder":
            path.mkdir()
            path = path / "inside"
        path.write_text(text)

    def read():
        return (target / "inside" if kind == "folder" else target).read_text()

    target = tmp_path / "deep" / "x.out"
    if existing:
        target.parent.mkdir()
        write(target, "old")
    if error is None:
        with replacing(target) as fresh:
            write(fresh, "new")
        assert read() == "new"
    else:
        with pytest.raises(error), replacing(target) as fresh:
            write(fresh, "new")
            raise error
        assert target.exists() == existing
        if existing:
            assert read() == "old"
    assert [path.name for path in target.parent.iterdir()] == (["x.out"] if target.exists() else [])


def test_an_error_suggests_the_nearest_name_whatever_its_case():
    assert "did you mean 'Cell_Type'" in str(unknown_name("label column", "celltype", "adata.obs", ["Cell_Type", "x"]))
    assert "did you mean" not in str(unknown_name("label column", "celltype", "adata.obs", ["donor"]))
    assert "It has: nothing" in str(unknown_name("layer", "counts", "adata.layers", []))


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept.txt").write_text("kept")
    with pytest.raises(IsADirectoryError, match="results is a folder"), replacing(tmp_path / "results") as fresh:
        fresh.write_text("new")
    assert (tmp_path / "results" / "kept.txt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_folder_in_which_a_thread_still_writes_is_removed(tmp_path):
    """As zarr's threads do once the main one has been interrupted."""
    folders, stopped = [], threading.Event()

    def write():
        workspace = folders[0].parents[1]
        for number in range(100):
            if not workspace.exists():  # on a busy machine, before this thread has had its turn
                return
            with suppress(FileNotFoundError):
                (folders[0] / str(number)).mkdir(parents=number < 10)
            if stopped.wait(0.002):
                return

    thread = threading.Thread(target=write)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "cells.zarr") as fresh:
        folders.append(fresh)
        thread.start()
        while not fresh.exists():
            pass
        raise KeyboardInterrupt
    stopped.set()
    thread.join()
    assert not list(tmp_path.iterdir())


class TestBeingAskedToEnd:
    SCRIPT = """
import os, signal, sys, types
from ginseng import interruption
from ginseng.interruption import leave_if_asked, leaving_when_asked
library = types.ModuleType(sys.argv[1])
code = "import os, signal\\ndef call():\\n    os.kill(os.getpid(), signal.SIGTERM)\\n    print('went on', flush=True)"
exec(code, library.__dict__)
with leaving_when_asked():
    try:
        library.call()
        print("back", flush=True)
        leave_if_asked()
        print("lost", flush=True)
    finally:
        print("cleaned", flush=True)
        if sys.argv[2] == "twice":
            interruption._MOMENT = -1
            os.kill(os.getpid(), signal.SIGTERM)
            print("too late", flush=True)
"""

    @pytest.mark.parametrize(
        ("within", "times", "printed"),
        [("mine", "once", "cleaned"), ("jax.fake", "once", "went on back cleaned"), ("mine", "twice", "cleaned")],
    )
    def test_it_is_at_once_but_where_jax_runs(self, within, times, printed):
        command = [sys.executable, "-c", self.SCRIPT, within, times]
        done = subprocess.run(command, capture_output=True, text=True, env=SUBPROCESS_ENVIRONMENT)
        assert (done.returncode, done.stdout.split(), done.stderr) == (143, printed.split(), "")

    def test_loops_and_outputs_end(self, adata, tmp_path, monkeypatch):
        monkeypatch.setattr("ginseng.interruption._asked_at", 0.0)
        with pytest.raises(SystemExit, match="143"):
            next(read_ahead(iter("ab")))
        with pytest.raises(SystemExit, match="143"):
            next(Counts(adata).blocks(2))
        with pytest.raises(SystemExit, match="143"), replacing(tmp_path / "a.csv") as fresh:
            fresh.write_text("new")
        assert not list(tmp_path.iterdir())
