import functools

import anndata as ad
import h5py
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from ginseng.utils import transpose
from ginseng.utils.counts import Counts
from tests.conftest import simulate


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 12)),
    seed=st.integers(0, 99),
    n_parts=st.integers(1, 6),
    memory=st.sampled_from([200, 1000, 2**28]),
    bounds=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_rows_are_those_of_the_matrix(shape, seed, n_parts, memory, bounds):
    x = np.random.default_rng(seed).poisson(0.5, shape)
    with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
        ad.io.write_elem(file, "X", sparse.csc_matrix(x))
        rows = transpose.TransposedRows(ad.io.sparse_dataset(file["X"]), n_parts, memory)
        start, stop = sorted(min(bound, shape[0] - 1) for bound in bounds)
        np.testing.assert_array_equal(rows[start : stop + 1].toarray(), x[start : stop + 1])
        np.testing.assert_array_equal(rows[0 : shape[0]].toarray(), x)


def test_backed_columns_pass_through_files_that_go(tmp_path, monkeypatch):
    adata = simulate(50)
    expected = adata.X.toarray()
    adata.X = sparse.csc_matrix(adata.X)
    adata.write_h5ad(tmp_path / "x.h5ad")
    (tmp_path / "files").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "files"))
    by_rows = functools.partial(transpose.by_rows, memory=2048)
    monkeypatch.setattr("ginseng.utils.counts.by_rows", by_rows)
    counts = Counts(ad.read_h5ad(tmp_path / "x.h5ad", backed="r"))
    assert list((tmp_path / "files").iterdir())
    np.testing.assert_array_equal(np.vstack([block.toarray() for *_, block in counts.blocks(7)]), expected)
    del counts
    assert not list((tmp_path / "files").iterdir())
