import gc
import os
import pickle
import signal
import threading
import time
import warnings
from collections import Counter
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from ginseng import GinsengDataset
from ginseng.data import reading, sampling, shards, store, streaming
from tests.conftest import GOLDEN, simulate

N_CELLS, N_GENES = 300, 12
BUDGET = 3_000  # bytes, of the about 10,000 that the counts below take in memory


def create(path, x, labels, **options):
    adata = ad.AnnData(x, obs=pd.DataFrame({"label": labels}, index=[f"c{i}" for i in range(len(labels))]))
    return GinsengDataset.create(path, adata, "label", silent=True, **options)


def in_small_chunks(dataset):
    """The dataset with its CSR in files of five chunks of 16 values, as if it were of many cells."""
    x = dataset.root["X"]
    for name in ("data", "indices"):
        values, fill_value = x[name][:], int(x[name].fill_value)
        del x[name]
        with shards.GrowingArray(x, name, (16,), (80,), values.dtype, fill_value) as growing:
            growing.append(values)
    return GinsengDataset(dataset.path)


def beyond_memory(dataset, cells, batch_size, rng=None, memory=BUDGET, n_blocks=5, drop_last=False):
    """Stream from the store as `stream` does, but blocks of several cells, as of a window of many."""
    stored = reading.StoredCounts(dataset.root, store.read_contents(dataset.root))
    order = streaming.Order(batch_size, rng, drop_last)
    return streaming.dense_batches(streaming.from_store(stored, cells, memory, order, n_blocks), batch_size)


def cells_of(batches):
    """Numbers of the cells, which the first gene tells."""
    return [int(cell) - 1 for x, _ in batches for cell in x[:, 0]]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """The count of the first gene is the number of the cell, from 1. Sorted by label, as data often are."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.3, (N_CELLS, N_GENES)).astype(np.float32)
    x[:, 0] = np.arange(1, N_CELLS + 1)
    labels = np.repeat(["a", "b", "c"], [220, 70, 10])
    return in_small_chunks(create(tmp_path_factory.mktemp("numbered") / "x.zarr", sparse.csr_matrix(x), labels)), x


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 310),
    split=st.sampled_from(["train", "test", "all"]),
    fraction=st.floats(0.0, 0.9),
    balance=st.sampled_from(["none", "downsample", "resample"]),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    memory=st.sampled_from([None, 800, BUDGET]),
    seed=st.integers(0, 99),
)
def test_the_promised_cells_as_often_as_promised(
    numbered, batch_size, split, fraction, balance, shuffle, drop_last, memory, seed
):
    dataset, x_of_cell = numbered
    dataset.make_split(fraction, seed=seed)
    part = {"train": dataset.train_idx, "test": dataset.test_idx, "all": np.arange(N_CELLS)}[split]
    request = {"shuffle": shuffle, "rng": seed, "memory": memory}
    batches = list(dataset.stream(batch_size, split, balance, drop_last=drop_last, **request))
    for x, y in batches:
        rows = x[:, 0].astype(int) - 1
        np.testing.assert_array_equal(x, x_of_cell[rows])
        np.testing.assert_array_equal(y, dataset.labels[rows])
        assert x.dtype == np.float32
    cells = cells_of(batches)
    whole = list(dataset.stream(batch_size, split, balance, **request))
    assert [len(y) for _, y in batches] == [len(y) for _, y in whole if len(y) == batch_size or not drop_last]
    assert all(len(y) == batch_size for _, y in whole[:-1])
    assert cells == cells_of(whole)[: len(cells)]
    if not shuffle:
        assert cells == sorted(cells)
    cells = cells_of(whole)
    if balance == "none" or split != "train":
        assert sorted(cells) == list(part)
        return
    per_label = np.bincount(dataset.labels[cells], minlength=3)
    present = np.bincount(dataset.labels[part], minlength=3)
    times = np.bincount(cells, minlength=N_CELLS)
    assert set(cells) <= set(part)
    if balance == "downsample":
        assert per_label.tolist() == np.where(present > 0, present[present > 0].min(), 0).tolist()
        assert times.max() == 1
    else:
        assert len(cells) == len(part)
        assert np.ptp(per_label[present > 0]) <= 1
        for label in np.flatnonzero(present):
            assert np.ptp(times[part][dataset.labels[part] == label]) <= 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.integers(0, N_CELLS - 1), min_size=1, max_size=400).map(sorted),
    batch_size=st.integers(1, 310),
    drop_last=st.booleans(),
    memory=st.sampled_from([800, BUDGET]),
    n_blocks=st.integers(1, 8),
    seed=st.none() | st.integers(0, 99),
)
def test_blocks_of_several_cells_lose_and_mix_up_none(numbered, cells, batch_size, drop_last, memory, n_blocks, seed):
    dataset, x_of_cell = numbered
    rng = None if seed is None else np.random.default_rng(seed)
    options = {"rng": rng, "memory": memory, "n_blocks": n_blocks, "drop_last": drop_last}
    batches = list(beyond_memory(dataset, np.array(cells), batch_size, **options))
    for x, here in batches:
        np.testing.assert_array_equal(x, x_of_cell[here])
    sizes = [len(here) for _, here in batches]
    assert sizes[:-1] == [batch_size] * len(sizes[:-1])
    assert sum(sizes) == (len(cells) // batch_size * batch_size if drop_last else len(cells))
    found = [int(cell) for _, here in batches for cell in here]
    assert Counter(found) <= Counter(cells)
    if seed is None:
        assert found == cells[: len(found)]


@pytest.mark.parametrize("rate", [0.3, 5.0])
def test_more_cells_than_are_read_at_once_are_held(tmp_path, rate):
    x = np.random.default_rng(0).poisson(rate, (9_000, 5)).astype(np.float32)
    dataset = create(tmp_path / "x.zarr", x, ["a", "b"] * 4_500)
    np.testing.assert_array_equal(np.vstack([x for x, _ in dataset.stream(500, "all", shuffle=False)]), x)
    assert dataset._counts.shape == x.shape


@pytest.mark.parametrize("memory", ["1 GB", BUDGET])
def test_equal_seeds_give_equal_batches(numbered, memory):
    dataset, _ = numbered
    first, second, other = (cells_of(dataset.stream(7, "all", rng=seed, memory=memory)) for seed in (3, 3, 4))
    assert first == second
    assert first != other
    again = GinsengDataset(dataset.path)
    assert cells_of(again.stream(7, "all", rng=3, memory=memory)) == first


def test_batches_do_not_depend_on_what_else_is_drawn_meanwhile(numbered):
    dataset, _ = numbered
    alone, shared = np.random.default_rng(1), np.random.default_rng(1)
    expected = cells_of(dataset.stream(7, "all", rng=alone, memory=BUDGET))
    found = []
    for x, _ in dataset.stream(7, "all", rng=shared, memory=BUDGET):
        shared.random()
        found += list(x[:, 0].astype(int) - 1)
    assert found == expected


def test_cells_are_mixed_beyond_memory(numbered):
    """Sorted cells leave a buffer of a quarter of them in random order, from all over the store."""
    dataset, _ = numbered
    cells = np.array(cells_of(beyond_memory(dataset, np.arange(N_CELLS), 10, np.random.default_rng(0))))
    assert np.abs(np.diff(cells)).mean() > N_CELLS / 5
    assert np.ptp(cells[:40]) > N_CELLS / 2


def test_repeats_of_rare_cells_are_spread_over_the_epoch(numbered):
    dataset, _ = numbered
    rng = np.random.default_rng(0)
    cells = sampling.cells_of_epoch(dataset.labels, np.arange(N_CELLS), "resample", 1.0, rng)
    labels = np.concatenate([dataset.labels[here] for _, here in beyond_memory(dataset, cells, 30, rng)])
    shares = [np.mean(part == 2) for part in np.array_split(labels, 4)]
    assert min(shares) > 0.1
    assert np.mean(labels == 2) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [220, 70, 10]), (0.5, [166, 93, 36]), (1.0, [100, 100, 100])])
def test_alpha_tells_how_much_resampling_balances(numbered, alpha, expected):
    dataset, _ = numbered
    dataset.make_split(0.0)
    labels = np.concatenate([y for _, y in dataset.stream(30, "train", "resample", alpha=alpha)])
    weights = np.array([220, 70, 10]) ** (1 - alpha)
    np.testing.assert_allclose(np.bincount(labels), 300 * weights / weights.sum(), atol=1)
    assert alpha != 0.0 or np.bincount(labels).tolist() == expected


def test_counts_are_held_only_if_they_fit(numbered):
    dataset = GinsengDataset(numbered[0].path)
    next(dataset.stream(5, "all", memory=BUDGET))
    assert dataset._counts is None
    next(dataset.stream(5, "all", memory="1 MB"))
    assert dataset._counts.shape == (N_CELLS, N_GENES)
    expected = cells_of(numbered[0].stream(5, "all", memory=BUDGET, rng=0))
    assert cells_of(dataset.stream(5, "all", memory=BUDGET, rng=0)) == expected
    assert dataset._counts is None


def test_a_pickled_dataset_reads_its_counts_again(numbered):
    dataset = GinsengDataset(numbered[0].path)
    expected = cells_of(dataset.stream(5, "all", rng=0))
    again = pickle.loads(pickle.dumps(dataset))
    assert again._counts is None
    assert cells_of(again.stream(5, "all", rng=0)) == expected


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_out_of_range(numbered, alpha):
    dataset, _ = numbered
    dataset.make_split(0.1)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\]"):
        dataset.stream(5, "train", "resample", alpha=alpha)


def test_without_a_split_all_cells_are_balanced(tmp_path):
    dataset = create(tmp_path / "x.zarr", np.eye(30, 40, dtype=np.float32), ["a"] * 20 + ["b"] * 10)
    for balance, expected in ((False, [20, 10]), (True, [10, 10]), ("resample", [15, 15])):
        y = np.concatenate([y for _, y in dataset.stream(7, "all", balance)])
        assert np.bincount(y).tolist() == expected
    dataset.make_split(0.5)
    assert len(np.concatenate([y for _, y in dataset.stream(7, "all", True)])) == 30


@pytest.mark.parametrize("damage", ["truncated", "emptied", "index", "chunk", "gone"])
def test_damaged_counts_are_told(tmp_path, damage):
    x = np.random.default_rng(0).poisson(0.3, (60, 20)).astype(np.float32)
    dataset = in_small_chunks(create(tmp_path / "x.zarr", x, ["a", "b"] * 30))
    file = tmp_path / "x.zarr" / "X" / "data" / "c" / "0"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "emptied":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes(content[:-30])
    else:
        content[-12 if damage == "index" else 2] ^= 0xFF
        file.write_bytes(content)
    with pytest.raises(OSError, match="is damaged .*Create the dataset anew"):
        list(dataset.stream(5, "all", memory=BUDGET))


def test_without_a_budget_counts_that_fit_are_kept(numbered):
    dataset = GinsengDataset(numbered[0].path)
    assert dataset.budget() == dataset.bytes_per_cell.sum()
    next(dataset.stream(5, "all"))
    assert dataset._counts is not None
    assert dataset.budget(BUDGET) == BUDGET
    next(dataset.stream(5, "all", memory=BUDGET))
    assert dataset._counts is None


def test_without_a_budget_it_is_that_of_the_dataset(numbered, monkeypatch):
    dataset = GinsengDataset(numbered[0].path)
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
        assert dataset.budget() == 2**26
    monkeypatch.setattr(GinsengDataset, "budget", lambda *_: BUDGET)
    first = cells_of(dataset.stream(5, "all", rng=0))
    assert dataset._counts is None
    monkeypatch.undo()
    assert first == cells_of(dataset.stream(5, "all", rng=0, memory=BUDGET))


def test_at_most_two_windows_within_the_budget_are_read(numbered, monkeypatch):
    dataset, _ = numbered
    held = []
    read = reading.StoredCounts.read

    def recorded(self, visits, stopped=None):
        counts = read(self, visits, stopped)
        held.append(counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes)
        return counts

    monkeypatch.setattr(reading.StoredCounts, "read", recorded)
    iterator = dataset.stream(10, "all", memory=BUDGET)
    next(iterator)
    iterator.close()  # which waits for what the thread was asked to read
    assert len(held) == 2
    held.clear()
    list(beyond_memory(dataset, np.arange(N_CELLS), 10, np.random.default_rng(0)))
    assert len(held) > 5
    assert max(held) <= BUDGET / 2 + 8


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ginseng")]


@pytest.fixture
def read(monkeypatch):
    """Reads that were made so far."""
    made, original = [], reading.StoredCounts.read

    def recorded(self, visits, stopped=None):
        counts = original(self, visits, stopped)
        made.append(len(visits))
        return counts

    monkeypatch.setattr(reading.StoredCounts, "read", recorded)
    return made


def test_closing_ends_the_reading(numbered, read):
    iterator = numbered[0].stream(10, "all", memory=BUDGET)
    next(iterator)
    iterator.close()
    n_read = len(read)
    time.sleep(0.1)
    assert n_read == len(read) == 2


def test_an_error_of_the_consumer_ends_the_reading(numbered, read):
    def consume():
        for _ in numbered[0].stream(10, "all", memory=BUDGET):
            raise KeyError("the consumer's")

    with pytest.raises(KeyError, match="the consumer's"):
        consume()
    gc.collect()
    n_read = len(read)
    time.sleep(0.1)
    assert n_read == len(read) == 2


def test_one_thread_after_the_other_is_not_many(numbered):
    """A new one each time would keep, each, the memory that it has freed."""
    list(numbered[0].stream(10, "all", memory=BUDGET))
    before = set(reading_threads())
    for _ in range(3):
        list(numbered[0].stream(10, "all", memory=BUDGET))
    assert set(reading_threads()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_streams(numbered):
    list(numbered[0].stream(10, "all", memory=BUDGET))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX, which a child must not call
        child = os.fork()
    if not child:
        signal.alarm(30)
        n_cells = sum(len(y) for _, y in numbered[0].stream(10, "all", memory=BUDGET))
        os._exit(0 if n_cells == N_CELLS else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_of_the_thread_reaches_the_consumer(numbered, monkeypatch):
    dataset = GinsengDataset(numbered[0].path)
    iterator = dataset.stream(10, "all", memory=BUDGET)
    next(iterator)

    def broken(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(shards.ShardReader, "read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        list(iterator)


@pytest.mark.parametrize("memory", [BUDGET, "1 GB"])
def test_a_dataset_replaced_meanwhile_is_noticed(tmp_path, memory):
    labels = ["a", "b"] * 150
    x = np.eye(300, 300, dtype=np.float32)
    dataset = in_small_chunks(create(tmp_path / "x.zarr", x, labels))
    iterator = dataset.stream(10, "all", memory=memory)
    if memory == BUDGET:
        next(iterator)
    create(tmp_path / "x.zarr", x[:290], labels[:290], chunk_size=290)
    with pytest.raises(OSError, match="has been replaced since it was opened; open it anew"):
        list(iterator)


@pytest.mark.parametrize("memory", ["9" * 400, "lots", "-1", 0, "1 parsec", "1.2.3 GB"])
def test_budgets_that_cannot_be_understood(numbered, memory):
    with pytest.raises(ValueError, match="like 256_000_000, '256 MB' or '1.5 GiB'"):
        numbered[0].stream(10, "all", memory=memory)


def test_unknown_ways_to_balance():
    with pytest.raises(ValueError, match="one of none, downsample, resample .*but got 'upsample'"):
        sampling.balance_of("upsample")


@pytest.mark.parametrize("with_zarrs", [False, True])
class TestLayouts:
    """Beyond memory, whatever the store, with the package zarrs or without."""

    @pytest.fixture(autouse=True)
    def codecs(self, with_zarrs, monkeypatch):
        if with_zarrs:
            pytest.importorskip("zarrs")
        else:
            monkeypatch.setattr("ginseng.data.store.find_spec", lambda _: None)

    def assert_it_streams(self, dataset, x, memory):
        cells = np.arange(len(x))
        for batches in (
            dataset.stream(9, "all", shuffle=False, memory=memory),
            beyond_memory(dataset, cells, 9, memory=memory),
            dataset.stream(9, "all", shuffle=False),
        ):
            np.testing.assert_array_equal(np.vstack([batch for batch, _ in batches]), x)
        shuffled = list(beyond_memory(dataset, cells, 9, np.random.default_rng(0), memory))
        order = np.concatenate([here for _, here in shuffled])
        assert sorted(order) == list(cells)
        np.testing.assert_array_equal(np.vstack([batch for batch, _ in shuffled]), x[order])

    def test_dense(self, tmp_path):
        """In chunks of 3 cells and files of 9."""
        x = np.random.default_rng(0).integers(0, 9, (60, 22_000)).astype(np.float32)
        dataset = create(tmp_path / "x.zarr", x, ["a", "b"] * 30, chunk_size=8)
        assert dataset.root["X"].chunks == (3, 22_000)
        assert dataset.root["X"].shards == (9, 22_000)
        self.assert_it_streams(dataset, x, memory=x.size // 2)

    def test_of_ginseng_0_2_1(self, golden):
        dataset = GinsengDataset(GOLDEN / "dataset.zarr")
        self.assert_it_streams(dataset, golden["x"], memory=2_000)

    def test_the_codecs_are_those_at_hand(self, with_zarrs, tmp_path):
        dataset = create(tmp_path / "x.zarr", np.ones((20, 3), np.float32), ["a", "b"] * 10)
        (array,) = dataset._stored._arrays
        pipeline = type(array.async_array.codec_pipeline).__name__
        assert (pipeline == "ZarrsCodecPipeline") == with_zarrs
        assert zarr.config.get("codec_pipeline.path") != "zarrs.ZarrsCodecPipeline"

    def test_written_by_others(self, tmp_path):
        """A CSR matrix without shards, as AnnData writes it, in place of ours."""
        adata = simulate(100)
        dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True)
        del dataset.root["X"]
        ad.io.write_elem(dataset.root, "X", adata.X)
        self.assert_it_streams(GinsengDataset(dataset.path), adata.X.toarray(), memory=1_000)


def test_annbatch_reads_the_store(tmp_path):
    """Its Loader takes a CSR matrix of AnnData's."""
    annbatch = pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    adata = simulate(100)
    dataset = in_small_chunks(GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True))
    loader = annbatch.Loader(batch_size=20, chunk_size=10, preload_nchunks=4)
    loader.add_dataset(ad.io.sparse_dataset(dataset.root["X"]))
    read = np.vstack([batch["X"].toarray() for batch in loader])
    np.testing.assert_array_equal(read, adata.X.toarray())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.sampled_from([0, 0, 0, 1, 3, 255, 300, 70_000]), max_size=60),
    chunk=st.integers(1, 5),
    n_chunks=st.integers(1, 4),
    n_blocks=st.integers(1, 5),
    bounds=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_shards_are_read_as_zarr_reads_them(tmp_path_factory, values, chunk, n_chunks, n_blocks, bounds):
    group = zarr.create_group(tmp_path_factory.mktemp("shards"))
    with shards.GrowingArray(group, "x", (chunk,), (chunk * n_chunks,)) as growing:
        for block in np.array_split(np.array(values, dtype=np.int64), n_blocks):
            growing.append(block)
    np.testing.assert_array_equal(growing.array[:], values)
    assert shards.ShardReader.reads(growing.array)
    wanted = slice(*sorted(bounds))
    found = shards.ShardReader(growing.array)[wanted]
    np.testing.assert_array_equal(found, values[wanted])
    assert found.dtype == growing.array.dtype


@settings(max_examples=80, deadline=None)
@given(
    cells=st.lists(st.integers(0, 80), max_size=150).map(sorted),
    block_size=st.integers(1, 90),
    capacity=st.integers(1, 2000),
    batch_size=st.integers(1, 40),
    seed=st.none() | st.integers(0, 9),
)
def test_visits_and_windows_lose_no_cell_and_keep_to_the_capacity(cells, block_size, capacity, batch_size, seed):
    cells = np.array(cells, dtype=int)
    bytes_per_cell = np.random.default_rng(0).integers(1, 30, 81)
    visited = sampling.visits(cells, block_size, None if seed is None else np.random.default_rng(seed))
    assert all(len(visit) <= block_size for visit in visited)
    assert all(visit[0] // block_size == visit[-1] // block_size for visit in visited)
    windows = list(sampling.windows(visited, bytes_per_cell, capacity, batch_size))
    flat = [cell for window in windows for visit in window for cell in visit]
    assert flat == [cell for visit in visited for cell in visit]
    assert sorted(flat) == list(cells)
    for window in windows[:-1]:
        assert sum(map(len, window)) % batch_size == 0
    largest_batch = 30 * (batch_size + block_size)
    for window in windows:
        assert bytes_per_cell[np.concatenate(window)].sum() <= max(capacity, largest_batch)
