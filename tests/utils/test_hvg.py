import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ginseng import read_adata, select_hvgs
from ginseng.utils.hvg import log_normalize

KANG_TOP_TEN = {"ACTB", "C15orf48", "CCL2", "CCL5", "CD74", "FTL", "GNLY", "GZMB", "HLA-DRA", "TIMP1"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("default", {"n_top_genes": 50}),
        ("narrow", {"n_top_genes": 20, "min_mean": 0.2, "max_mean": 0.8, "n_bins": 5}),
        ("unscaled", {"n_top_genes": 50, "target_sum": None}),
        ("chunked", {"n_top_genes": 80, "target_sum": 500.0, "chunk_size": 64}),
    ],
)
def test_choices_are_the_reference_s(golden, name, options):
    adata = ad.AnnData(golden["hvg_counts"])
    assert select_hvgs(adata, silent=True, **options) is None
    np.testing.assert_array_equal(adata.var["ginseng_genes"], golden[f"hvg_{name}"])


@settings(max_examples=15, deadline=None)
@given(chunk_size=st.integers(1, 200))
def test_choices_depend_on_neither_storage_nor_chunks(golden, chunk_size):
    counts = golden["hvg_counts"]
    for matrix in (counts, sparse.csr_matrix(counts), sparse.csc_matrix(counts)):
        adata = ad.AnnData(matrix)
        select_hvgs(adata, 50, chunk_size=chunk_size, silent=True)
        np.testing.assert_array_equal(adata.var["ginseng_genes"], golden["hvg_default"])


def test_backed_and_copy(golden, tmp_path):
    ad.AnnData(sparse.csr_matrix(golden["hvg_counts"])).write_h5ad(tmp_path / "x.h5ad")
    backed = read_adata(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match="view of a backed AnnData; pass copy=True"):
        select_hvgs(backed[:100], 50, silent=True)
    copied = select_hvgs(backed, 50, silent=True, copy=True)
    assert "ginseng_genes" not in backed.var
    np.testing.assert_array_equal(copied.var["ginseng_genes"], golden["hvg_default"])
    select_hvgs(backed, 50, silent=True)
    np.testing.assert_array_equal(backed.var["ginseng_genes"], golden["hvg_default"])


def test_a_copy_is_independent(golden):
    adata = ad.AnnData(sparse.csr_matrix(golden["hvg_counts"]))
    copied = select_hvgs(adata, 50, silent=True, copy=True)
    copied.X.data[:] = -1
    np.testing.assert_array_equal(adata.X.toarray(), golden["hvg_counts"])


def test_a_view_is_marked_without_a_warning(golden, recwarn):
    view = ad.AnnData(golden["hvg_counts"])[:200]
    select_hvgs(view, 50, silent=True)
    assert view.var["ginseng_genes"].sum() == 50
    assert not [each for each in recwarn if issubclass(each.category, ad.ImplicitModificationWarning)]


def test_layer_is_used(golden):
    adata = ad.AnnData(np.ones_like(golden["hvg_counts"]), layers={"counts": golden["hvg_counts"]})
    select_hvgs(adata, 50, layer="counts", silent=True)
    np.testing.assert_array_equal(adata.var["ginseng_genes"], golden["hvg_default"])


def test_genes_never_expressed_are_never_chosen(golden):
    counts = golden["hvg_counts"].copy()
    counts[:, :30] = 0
    adata = ad.AnnData(counts)
    select_hvgs(adata, 10_000, silent=True)
    assert not adata.var["ginseng_genes"][:30].any()
    assert adata.var["ginseng_genes"].sum() > 100


def test_moments_do_not_suffer_from_many_equal_cells():
    counts = np.full((1000, 2), 1000.0, dtype=np.float32)
    counts[0, 0] += 1
    adata = ad.AnnData(counts)
    select_hvgs(adata, 1, target_sum=None, min_mean=0.0, max_mean=1.0, n_bins=1, silent=True)
    assert adata.var["ginseng_genes"].tolist() == [True, False]


def test_log_normalize_does_not_touch_its_input():
    block = sparse.csr_matrix(np.array([[1.0, 3.0], [0.0, 0.0]]))
    normalised = log_normalize(block, 4.0)
    np.testing.assert_allclose(normalised.toarray(), np.log1p([[1.0, 3.0], [0.0, 0.0]]))
    assert block.data.tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_top_genes": 0}, "n_top_genes.*at least 1"),
        ({"n_bins": 0}, "n_bins"),
        ({"min_mean": 0.9, "max_mean": 0.1}, "min_mean.*max_mean"),
        ({"chunk_size": 0}, "at least one"),
        ({"layer": "count"}, "'count' is not in adata.layers; did you mean 'counts'"),
    ],
)
def test_bad_parameters_are_refused_and_nothing_is_marked(adata, options, message):
    adata.layers["counts"] = adata.X
    with pytest.raises(ValueError, match=message):
        select_hvgs(adata, silent=True, **options)
    assert "ginseng_genes" not in adata.var


def test_one_cell_is_refused():
    with pytest.raises(ValueError, match="two cells"):
        select_hvgs(ad.AnnData(np.ones((1, 3))), silent=True)


def test_real_counts(real_data):
    """The 10 choices of ginseng 0.2.1 on Kang."""
    adata = read_adata(real_data("pbmc_kang_ctrl_8donors.h5ad"))
    select_hvgs(adata, 10, silent=True)
    chosen = set(adata.var_names[adata.var["ginseng_genes"]])
    assert chosen == KANG_TOP_TEN
