import threading
from contextlib import suppress

import pytest

from ginseng.utils.files import replacing
from ginseng.utils.messages import unknown_name


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
