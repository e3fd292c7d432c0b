"""What a process leaves that is killed while it writes, and who removes it."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from ginseng import GinsengDataset
from ginseng.utils import workspace as module
from ginseng.utils.files import replacing
from ginseng.utils.workspace import PREFIX, remove_leftovers, temporary_folder, workspace
from tests.conftest import REPOSITORY, SUBPROCESS_ENVIRONMENT, simulate

WRITE = """
import os, signal, sys
from ginseng.utils.files import replacing
with replacing(sys.argv[1]) as fresh:
    fresh.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""
SWAP = """
import os, signal, sys
from pathlib import Path
from ginseng.utils import workspace
workspace._exchange = lambda *_: False  # as on a file system that cannot
rename = Path.rename
def once(path, target):
    rename(path, target)
    if Path(target).parent.name == "old":
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = once
path = Path(sys.argv[1])
with workspace.workspace(path.parent) as folder:
    (folder / path.name).mkdir()
    workspace.put_in_place(folder / path.name, path)
"""


@contextmanager
def another_writes(path):
    """A process that has begun to write; it is killed in the end."""
    command = [sys.executable, "-c", WRITE, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=SUBPROCESS_ENVIRONMENT
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def unfinished(folder):
    return [path for path in folder.iterdir() if path.name.startswith(PREFIX)]


def write(path, text="new"):
    with replacing(path) as fresh:
        fresh.write_text(text)


def test_what_a_dead_process_left_goes_with_the_next_that_is_written(tmp_path):
    write(tmp_path / "x.csv", "old")
    with another_writes(tmp_path / "x.csv"):
        pass
    assert len(unfinished(tmp_path)) == 1
    assert (tmp_path / "x.csv").read_text() == "old"
    write(tmp_path / "x.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_what_a_living_process_writes_is_left(tmp_path):
    with another_writes(tmp_path / "x.csv") as other:
        write(tmp_path / "x.csv")
        assert len(unfinished(tmp_path)) == 1
        other.communicate(b"")
        assert other.returncode == 0
    assert (tmp_path / "x.csv").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_what_another_thread_writes_is_left(tmp_path):
    with workspace(tmp_path):
        thread = threading.Thread(target=remove_leftovers, args=[tmp_path])
        thread.start()
        thread.join()
        assert len(unfinished(tmp_path)) == 1


@pytest.mark.parametrize("of", ["another machine", "another user", "a file system without locks"])
def test_what_cannot_be_known_to_be_of_a_dead_process_is_left(tmp_path, monkeypatch, of):
    with another_writes(tmp_path / "x.csv"):
        pass
    left = unfinished(tmp_path)
    if of == "another machine":
        left = [left[0].rename(tmp_path / f"{PREFIX}{'0' * 16}-{'1' * 16}")]
    elif of == "another user":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:

        def fails(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(module.fcntl, "flock", fails)
    write(tmp_path / "x.csv")
    assert unfinished(tmp_path) == left
    assert (left[0] / "new" / "x.csv").read_text() == "half"


def test_what_others_made_under_similar_names_is_left(tmp_path):
    with workspace(tmp_path) as folder:
        ours = folder.parent.name
    others = [f"{ours}.bak", f"{PREFIX}notes", f"{PREFIX}{'0' * 16}", f"my{ours}", ".x.0badcafe.csv", ".x.0badcafe.old"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").write_text("")
    (tmp_path / ours[:-1]).write_text("a file")
    ours_but_for_its_contents = tmp_path / ours
    ours_but_for_its_contents.mkdir()
    (ours_but_for_its_contents / "thesis.txt").write_text("all of it")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").write_text("")
    (tmp_path / f"{ours[:-1]}{'1' if ours[-1] == '0' else '0'}").symlink_to(elsewhere, target_is_directory=True)
    before = sorted(tmp_path.rglob("*"))
    write(tmp_path / "x.csv")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "x.csv"])


def test_what_died_between_its_first_steps_is_removed(tmp_path):
    with workspace(tmp_path) as folder:
        name = folder.parent.name
    (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert not unfinished(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "lock").write_text("")
    remove_leftovers(tmp_path)
    assert not unfinished(tmp_path)


def test_a_dataset_moved_away_by_a_dead_process_is_told_of_and_put_back(dataset):
    done = subprocess.run([sys.executable, "-c", SWAP, str(dataset.path)], env=SUBPROCESS_ENVIRONMENT)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match=rf"There is no dataset .*: rename .*{PREFIX}.*/old/cells\.zarr"):
        GinsengDataset(dataset.path)
    remove_leftovers(dataset.path.parent)
    assert GinsengDataset(dataset.path).n_cells == 120
    assert [path.name for path in dataset.path.parent.iterdir()] == ["cells.zarr"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_whether_or_not_the_file_system_swaps(dataset, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    GinsengDataset.create(dataset.path, simulate(40), "cell_type", silent=True).make_split(0.25)
    GinsengDataset(dataset.path).make_split(0.5)
    assert len(GinsengDataset(dataset.path).test_idx) == 20
    assert not [path for path in dataset.path.parent.rglob("*") if PREFIX in path.name]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    """Where folders are not swapped, the old one is moved away first."""
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "inside").write_text("old")
    rename = type(tmp_path).rename

    def refused(path, target):
        if path.parent.name == "new" and not target.exists():
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", refused)
    with pytest.raises(PermissionError), replacing(tmp_path / "x") as fresh:
        fresh.mkdir()
    assert (tmp_path / "x" / "inside").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_temporary_folders_of_dead_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with another_writes(tmp_path / "train.zarr"):
        pass
    with temporary_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0 or folder.parent.stat().st_mode & 0o077 == 0
        assert unfinished(tmp_path) == [folder.parent]
    assert not list(tmp_path.iterdir())


def test_killed_at_random_moments(tmp_path):
    """A share of what the benchmark does."""
    cases = ["create", "split", "save_model", "annotate .csv"]
    command = [sys.executable, REPOSITORY / "benchmarks" / "kills.py", "--kills", "3", "--cases", *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=SUBPROCESS_ENVIRONMENT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["case"] for result in results] == cases
    for result in results:
        assert result["kills"] == 3 == result["old"] + result["new"], done.stderr
        assert result["debris_left"] == result["wrong"] == 0, done.stderr
