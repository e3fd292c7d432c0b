import time
from contextlib import contextmanager

import anndata as ad
import dask.array as da
import equinox as eqx
import jax.random as jr
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from scipy import sparse

from ginseng import Annotator, classify
from ginseng.utils.counts import Counts
from tests.conftest import simulate

VALUES = np.random.default_rng(0).poisson(0.7, (23, 7)).astype(np.float32)


COMPUTED = []  # of this process, as what Dask is given it may copy


def compute(block, block_info=None):
    COMPUTED.append(block_info[0]["chunk-location"][0])
    return sparse.csr_matrix(block)


@pytest.fixture
def partitioned():
    """Counts of a Dask array of CSR partitions of so many rows, each of which tells when it is computed."""
    COMPUTED.clear()

    def of(chunks):
        meta = sparse.csr_matrix((0, 0), dtype=VALUES.dtype)
        return Counts(ad.AnnData(da.from_array(VALUES, chunks=(chunks, -1)).map_blocks(compute, meta=meta)))

    return of


@contextmanager
def cluster(processes):
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=processes, **options) as started, Client(started):
        yield


def read_all(counts, size):
    return np.vstack([block.toarray() for _, _, block in counts.blocks(size)])


@pytest.mark.parametrize("size", [1, 4, 10, 23, 50])
def test_each_partition_is_computed_once(partitioned, size):
    np.testing.assert_array_equal(read_all(partitioned(5), size), VALUES)
    assert sorted(COMPUTED) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [np.float16, np.int64])
def test_dense_partitions(dtype):
    array = da.from_array(VALUES.astype(dtype), chunks=(5, 3))
    np.testing.assert_array_equal(read_all(Counts(ad.AnnData(array)), 7), VALUES)


def test_rows_in_any_order(partitioned):
    counts = partitioned(5)
    for start, stop in ((12, 20), (3, 4), (0, 23), (22, 23), (5, 5)):
        np.testing.assert_array_equal(counts.rows(start, stop).toarray(), VALUES[start:stop])


def test_a_cluster_computes_ahead_no_more_than_it_has_threads(partitioned):
    counts = partitioned(2)
    with cluster(processes=False):
        for number, (start, stop, block) in enumerate(counts.blocks(2)):
            assert set(COMPUTED) <= set(range(number + 3))
            np.testing.assert_array_equal(block.toarray(), VALUES[start:stop])
            time.sleep(0.05)
            assert set(COMPUTED) == set(range(min(number + 3, 12)))
    assert sorted(COMPUTED) == list(range(12))


@pytest.mark.parametrize("processes", [False, True])
def test_cells_are_annotated_by_way_of_a_cluster(processes):
    adata = simulate()
    module = eqx.nn.Linear(adata.n_vars, 3, key=jr.key(0))
    annotator = Annotator(module, list(adata.var_names), ["B", "NK", "T"])
    options = {"return_table": True, "silent": True, "batch_size": 16}
    expected = classify(annotator, adata, **options)
    adata.X = da.from_array(adata.X.toarray(), chunks=(25, -1)).map_blocks(sparse.csr_matrix)
    with cluster(processes):
        found = classify(annotator, adata, **options)
    pd.testing.assert_frame_equal(found, expected)
