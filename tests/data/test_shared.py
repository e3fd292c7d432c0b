"""Datasets that other processes use, and those on other machines."""

import errno
import multiprocessing
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from ginseng import GinsengClassifierTrainer, GinsengClassifierTrainerSettings, GinsengDataset
from ginseng.utils import workspace
from tests.conftest import simulate


def streamed(dataset, **options):
    return np.vstack([x for x, _ in dataset.stream(50, "all", shuffle=False, **options)])


def split_again_and_again(path, seeds):
    dataset = GinsengDataset(path)
    for seed in seeds:
        dataset.make_split(0.1 + 0.1 * (seed % 5), seed=seed)


def test_processes_that_split_and_read_at_once(dataset):
    dataset.make_split(0.2)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=split_again_and_again, args=(dataset.path, range(k, 80, 2))) for k in range(2)]
    for writer in writers:
        writer.start()
    n_read, sizes = 0, set()
    while any(writer.is_alive() for writer in writers):
        again = GinsengDataset(dataset.path)
        assert sorted([*again.train_idx, *again.test_idx]) == list(range(120))
        n_read += 1
        sizes.add(len(again.test_idx))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert n_read > 10
    assert len(sizes) > 1
    assert not list(dataset.path.glob(".split*"))


CREATE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
import anndata as ad, numpy as np
from ginseng import GinsengDataset
from ginseng.cli import main
from ginseng.utils.counts import Counts

blocks = Counts.blocks
def slow(self, size):
    for number, block in enumerate(blocks(self, 10)):
        if number == 3:
            print("writing", flush=True)
            sys.stdin.readline()
        yield block

Counts.blocks = slow
sys.argv = ["ginseng", "create", sys.argv[1], "--label", "cell_type", "-o", sys.argv[2], "--overwrite", "-q"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_create_leaves_the_old_dataset_and_nothing_else(dataset, adata, tmp_path, number):
    adata.write_h5ad(tmp_path / "source.h5ad")
    command = [sys.executable, "-c", CREATE, tmp_path / "source.h5ad", dataset.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else process.returncode) != 0
    assert streamed(GinsengDataset(dataset.path)).shape == (120, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [dataset.path.name, "source.h5ad"]


def test_a_split_that_cannot_be_stored_holds_for_the_object(dataset, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(workspace, "_begin", refused)
    with pytest.warns(UserWarning, match="cannot be written to: the split holds for this object only"):
        dataset.make_split(0.25)
    assert len(dataset.test_idx) == 30
    assert GinsengDataset(dataset.path).test_idx is None


def test_a_damaged_split_is_told(dataset):
    dataset.make_split(0.25)
    next(path for path in (dataset.path / "split" / "test").rglob("*") if path.name == "0").write_bytes(b"0123")
    with pytest.raises(ValueError, match=r"The split of .* is damaged: delete its folder"):
        GinsengDataset(dataset.path)


def test_a_split_of_a_dataset_replaced_meanwhile_is_not_stored(dataset):
    GinsengDataset.create(dataset.path, simulate(40), "cell_type", silent=True)
    with pytest.raises(OSError, match="has been replaced since it was opened; open it anew"):
        dataset.make_split(0.25)
    assert GinsengDataset(dataset.path).train_idx is None


def test_a_relative_path_holds_wherever_the_process_goes(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = GinsengDataset(dataset.path.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    relative.make_split(0.25)
    assert streamed(relative).shape == (120, 30)
    assert len(GinsengDataset(dataset.path).test_idx) == 30


def test_a_full_disk_leaves_the_old_split(dataset, monkeypatch):
    dataset.make_split(0.25)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        dataset.make_split(0.5)
    monkeypatch.undo()
    assert len(GinsengDataset(dataset.path).test_idx) == 30
    assert not list(dataset.path.glob(".split*"))


class WithRanges(BaseHTTPRequestHandler):
    """Serve files and parts of files, as zarr asks for them."""

    folder = Path()

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, code = path.read_bytes(), 200
        size = len(content)
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = wanted.groups()
            start = int(first) if first else size - int(last)
            stop = int(last) + 1 if first and last else size
            content, code = content[start:stop], 206
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """URL of the temporary folder."""
    handler = type("Handler", (WithRanges,), {"folder": tmp_path})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def in_memory():
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/", recursive=True)


class TestRemote:
    @pytest.fixture(params=["memory", "http"])
    def url(self, request, dataset):
        if request.param == "http":
            return f"{request.getfixturevalue('served')}/{dataset.path.name}"
        request.getfixturevalue("in_memory").put(f"{dataset.path}/", "/bucket/cells.zarr/", recursive=True)
        return "memory://bucket/cells.zarr"

    def test_it_streams(self, url, adata):
        remote = GinsengDataset(url)
        assert remote.path == url
        assert remote.label_names == ["B cell", "NK cell", "T cell"]
        for memory in (None, 4_000):
            np.testing.assert_array_equal(streamed(GinsengDataset(url), memory=memory), adata.X.toarray())

    @pytest.mark.filterwarnings("ignore:.*the split holds for this object only")
    def test_it_is_trained_on(self, url):
        settings = GinsengClassifierTrainerSettings(hidden_dim=8, batch_size=32, balance_train=False)
        trainer = GinsengClassifierTrainer(url, settings)
        trainer.fit(epochs=1, silent=True)
        assert np.isfinite(trainer.logger.train_loss[0])

    def test_what_is_not_there(self, url):
        with pytest.raises(ValueError, match=r"nothing\.zarr is not a ginseng dataset"):
            GinsengDataset(url.replace("cells.zarr", "nothing.zarr"))

    def test_its_counts_make_another_dataset(self, url, adata, tmp_path):
        dataset = GinsengDataset.create(tmp_path / "again.zarr", url, "cell_type", silent=True)
        np.testing.assert_array_equal(streamed(dataset), adata.X.toarray())


def test_a_split_of_a_store_in_memory_is_stored_there(dataset, in_memory):
    in_memory.put(f"{dataset.path}/", "/bucket/cells.zarr/", recursive=True)
    GinsengDataset("memory://bucket/cells.zarr").make_split(0.25)
    again = GinsengDataset("memory://bucket/cells.zarr")
    assert len(again.test_idx) == 30
    again.make_split(0.5)
    assert len(GinsengDataset("memory://bucket/cells.zarr").test_idx) == 60


def test_the_split_of_a_store_on_a_server_holds_for_the_object(dataset, served):
    remote = GinsengDataset(f"{served}/{dataset.path.name}")
    with pytest.warns(UserWarning, match="the split holds for this object only"):
        remote.make_split(0.25)
    assert len(remote.test_idx) == 30


def test_datasets_are_created_here(adata):
    with pytest.raises(ValueError, match="create it here and copy it there"):
        GinsengDataset.create("memory://bucket/cells.zarr", adata, "cell_type")


def test_a_moment_without_a_split_is_waited_for(dataset, monkeypatch):
    """Between the two renames of another process there is no split."""
    dataset.make_split(0.25)
    hidden = dataset.path / ".split.other.old"
    (dataset.path / "split").rename(hidden)

    def put_back(_):
        hidden.rename(dataset.path / "split")

    monkeypatch.setattr(time, "sleep", put_back)
    assert len(GinsengDataset(dataset.path).test_idx) == 30
