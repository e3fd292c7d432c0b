import functools
import tempfile
from unittest import mock

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from ginseng.utils.counts import Counts
from ginseng.utils.transpose import by_rows

STORAGES = [
    "dense",
    "fortran",
    "csr",
    "csc",
    "backed dense",
    "backed csr",
    "backed csc",
    "dask",
    "zarr",
    "layer",
    "raw",
]


def stored(values, storage, folder):
    """Store the same counts in each way an AnnData can."""
    kind = storage.removeprefix("backed ")
    make = {"dense": np.asarray, "fortran": np.asfortranarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
    if storage in ("layer", "raw"):
        adata = ad.AnnData(sparse.csr_matrix(values))
        if storage == "raw":
            adata.raw = adata.copy()
        adata.layers["other"] = adata.X.copy()
        adata.X = np.zeros_like(values)
        return adata
    if storage == "dask":
        return ad.AnnData(da.from_array(values, chunks=(3, -1)))
    if storage == "zarr":
        ad.AnnData(sparse.csr_matrix(values)).write_zarr(folder / "x.zarr")
        return ad.AnnData(ad.experimental.read_elem_lazy(zarr.open_group(folder / "x.zarr", mode="r")["X"]))
    adata = ad.AnnData(make[kind](values))
    if storage.startswith("backed"):
        adata.write_h5ad(folder / "x.h5ad")
        return ad.read_h5ad(folder / "x.h5ad", backed="r")
    return adata


def read_all(counts, size):
    return np.vstack([block.toarray() for _, _, block in counts.blocks(size)])


@pytest.fixture
def values():
    return np.random.default_rng(0).poisson(0.7, (11, 7)).astype(np.float32)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_every_storage_reads_the_same(values, storage, size, tmp_path):
    layer = {"layer": "other", "raw": "raw"}.get(storage)
    counts = Counts(stored(values, storage, tmp_path), layer)
    np.testing.assert_array_equal(read_all(counts, size), values)


@pytest.mark.parametrize("storage", [s for s in STORAGES if s not in ("zarr", "raw")])
def test_views_read_the_same(values, storage, tmp_path):
    rows, columns = [9, 2, 5, 3], [6, 0, 3]
    view = stored(values, storage, tmp_path)[rows, columns]
    counts = Counts(view, "other" if storage == "layer" else None)
    np.testing.assert_array_equal(read_all(counts, 3), values[np.ix_(rows, columns)])


@settings(max_examples=50, deadline=None)
@given(
    values=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 9)),
    size=st.integers(1, 15),
)
def test_any_block_size_covers_every_cell_once(values, size):
    blocks = list(Counts(ad.AnnData(sparse.csr_matrix(values))).blocks(size))
    assert [start for start, _, _ in blocks] == list(range(0, len(values), size))
    assert blocks[-1][1] == len(values)
    np.testing.assert_array_equal(np.vstack([block.toarray() for _, _, block in blocks]), values)


def test_entries_stored_twice_are_added():
    twice = sparse.csr_matrix((np.ones(3, np.float32), [1, 1, 0], [0, 2, 3]), shape=(2, 2))
    before = twice.copy()
    block = Counts(ad.AnnData(twice)).rows(0, 2)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(before, name))
    assert block.nnz == 2
    assert block.toarray().tolist() == [[0, 2], [1, 0]]


@pytest.mark.parametrize("storage", ["dense", "csr", "csc", "backed csr"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(values, storage, bad, tmp_path):
    values[8, 3] = bad
    counts = Counts(stored(values, storage, tmp_path))
    with pytest.raises(ValueError, match=f"adata.X holds {bad} for gene '3' in cell '8'.*finite"):
        read_all(counts, 4)


def test_negative_values_are_refused_where_counts_are_normalised(values):
    values[2, 1] = -1
    adata = ad.AnnData(values)
    assert read_all(Counts(adata), 4).min() == -1
    with pytest.raises(ValueError, match=r"-1.0 for gene '1' in cell '2'.*must not be negative"):
        read_all(Counts(adata, nonnegative=True), 4)


@pytest.mark.parametrize("first", [0, 8])
def test_normalised_values_draw_one_warning_wherever_they_begin(values, first):
    values[first:] = np.log1p(values[first:])
    with pytest.warns(UserWarning, match=r"fractions such as 0\.[0-9]+, where raw counts are expected") as warned:
        read_all(Counts(ad.AnnData(values), raw=True), 2)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_an_unknown_layer_and_an_empty_x_are_named(values):
    adata = ad.AnnData(layers={"counts": values})
    with pytest.raises(ValueError, match=r"adata.X is empty.*counts"):
        Counts(adata)
    for kind in (ValueError, KeyError):  # as code written for this library, and for ginseng 0.2.1, expects it
        with pytest.raises(kind, match="^layer 'cuonts' is not in adata.layers; did you mean 'counts'"):
            Counts(adata, "cuonts")


def test_room_to_grow_is_no_damage(values):
    """SciPy leaves arrays longer than the last row end, e.g. after `eliminate_zeros`."""
    matrix = sparse.csr_matrix(values)
    roomy = matrix.copy()
    roomy.data, roomy.indices = np.append(matrix.data, [7, 7]), np.append(matrix.indices, [999, -1])
    np.testing.assert_array_equal(read_all(Counts(ad.AnnData(roomy)), 4), values)


def test_masked_counts_are_refused_and_those_of_which_nothing_is_masked_are_read():
    values = np.ma.array(
        np.arange(6, dtype="float32").reshape(3, 2), mask=[[False, False], [True, False], [False, False]]
    )
    with pytest.raises(ValueError, match=r"adata\.X is masked in places; say what is there: adata\.X\.filled\(0\)"):
        Counts(ad.AnnData(values))
    ((_, _, block),) = Counts(ad.AnnData(np.ma.array(values.data))).blocks(3)
    np.testing.assert_array_equal(block.toarray(), values.data)


NARROW = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


def in_pieces(x, dtype, rng):
    """Counts of which each is stored as two entries, as far as the type holds them, in any order."""
    largest = 1 if dtype == "bool" else 127
    row, column = np.nonzero(x)
    total = np.minimum(x[row, column], 2 * largest)
    first = np.minimum(total, largest)
    order = rng.permutation(2 * len(row))
    values = np.concatenate([first, total - first]).astype(dtype)[order]
    places = np.tile(row, 2)[order], np.tile(column, 2)[order]
    whole = np.zeros(x.shape)
    whole[row, column] = total
    by_row = np.argsort(places[0], kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(places[0], minlength=len(x)))])
    return sparse.csr_matrix((values[by_row], places[1][by_row], ends), shape=x.shape), whole


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(NARROW),
    storage=st.sampled_from(["csr", "csc", "backed csr", "backed csc", "raw", "columns by parts"]),
    seed=st.integers(0, 99),
)
def test_entries_for_one_place_add_up_in_any_type(dtype, storage, seed):
    rng = np.random.default_rng(seed)
    matrix, whole = in_pieces(rng.integers(0, 300, (6, 5)) * rng.integers(0, 2, (6, 5)), dtype, rng)
    if "csc" in storage or "columns" in storage:
        matrix = matrix.tocsc()  # which keeps entries for one place apart
    with tempfile.TemporaryDirectory() as folder:
        adata = ad.AnnData(matrix)
        if storage == "raw":
            adata.raw = adata.copy()
            adata = adata[:, :2].copy()
        elif storage not in ("csr", "csc"):
            adata.write_h5ad(f"{folder}/x.h5ad")
            adata = ad.read_h5ad(f"{folder}/x.h5ad", backed="r")
        by_parts = functools.partial(by_rows, memory=256 if "parts" in storage else 2**28)
        with mock.patch("ginseng.utils.counts.by_rows", by_parts):
            counts = Counts(adata, "raw" if storage == "raw" else None, nonnegative=True, raw=True)
            np.testing.assert_array_equal(read_all(counts, 4), whole)
        del counts, adata


@pytest.mark.parametrize("dtype", [*NARROW, "float16"])
def test_dense_counts_of_any_type(dtype):
    x = np.array([[1, 0, 1], [0, 0, 1]], dtype)
    np.testing.assert_array_equal(read_all(Counts(ad.AnnData(x), nonnegative=True, raw=True), 1), x.astype(float))
