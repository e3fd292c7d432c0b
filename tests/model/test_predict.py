import anndata as ad
import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ginseng import Annotator, GinsengClassifier, GinsengClassifierState, classifier_from_state, classify, save_model
from ginseng.model.predict import _get_gene_indices, annotate_iter
from tests.conftest import simulate

N_GENES = 30
GENES = [f"GENE{i}" for i in np.random.default_rng(1).permutation(N_GENES)]
LABELS = ["mono", "γδ T", "B"]


@pytest.fixture(scope="module")
def state():
    model = GinsengClassifier(N_GENES, 3, hidden_dim=5, dropout_rate=0.4, seed=0)
    return GinsengClassifierState(
        params=model.params,
        genes=GENES,
        label_keys=LABELS,
        label_values=[1, 0, 2],
        n_genes=N_GENES,
        n_classes=3,
        hidden_dim=5,
        normalize=True,
        target_sum=1e4,
        dropout_rate=0.4,
    )


@pytest.fixture(scope="module")
def expected(state):
    """Probabilities by hand, in the order of the model's outputs."""
    x = simulate().X.toarray()[:, [int(gene.removeprefix("GENE")) for gene in GENES]]
    return np.asarray(jax.nn.softmax(classifier_from_state(state).predict(x)))


def table_of(state, adata, **options):
    return classify(state, adata, return_table=True, silent=True, **options)


class TestClassify:
    def test_table(self, state, adata, expected):
        before = adata.copy()
        table = table_of(state, adata)
        assert table.columns.tolist() == ["ginseng_cell_type", "ginseng_confidence", "γδ T", "mono", "B"]
        assert table.index.tolist() == adata.obs_names.tolist()
        np.testing.assert_allclose(table[["γδ T", "mono", "B"]], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(table["ginseng_confidence"], expected.max(axis=1), rtol=1e-4)
        assert table["ginseng_cell_type"].tolist() == [["γδ T", "mono", "B"][i] for i in expected.argmax(axis=1)]
        pd.testing.assert_frame_equal(adata.obs, before.obs)

    def test_in_place(self, state, adata, expected):
        assert classify(state, adata, silent=True) is None
        assert isinstance(adata.obs["ginseng_cell_type"].dtype, pd.CategoricalDtype)
        np.testing.assert_allclose(adata.obs["ginseng_confidence"], expected.max(axis=1), rtol=1e-4)
        assert "ginseng_probs" not in adata.obsm
        classify(state, adata, silent=True, store_probs=True)
        np.testing.assert_allclose(adata.obsm["ginseng_probs"], expected, rtol=1e-4, atol=1e-6)

    def test_copy(self, state, adata):
        copy = classify(state, adata, silent=True, copy=True)
        assert "ginseng_cell_type" in copy.obs
        assert "ginseng_cell_type" not in adata.obs

    @pytest.mark.parametrize("backed", [True, False])
    def test_a_path_returns_the_annotated_data(self, state, adata, expected, tmp_path, backed):
        adata.write_h5ad(tmp_path / "x.h5ad")
        save_model(state, tmp_path / "m.h5")
        annotated = classify(tmp_path / "m.h5", str(tmp_path / "x.h5ad"), backed=backed, silent=True)
        assert annotated.isbacked == backed
        np.testing.assert_allclose(annotated.obs["ginseng_confidence"], expected.max(axis=1), rtol=1e-4)
        copied = classify(tmp_path / "m.h5", tmp_path / "x.h5ad", backed=backed, copy=True, silent=True)
        assert not copied.isbacked
        assert "ginseng_cell_type" not in ad.read_h5ad(tmp_path / "x.h5ad").obs

    @pytest.mark.parametrize(
        "storage",
        ["dense", "fortran", "csr", "csc", "backed dense", "backed csr", "backed csc", "view", "backed view", "layer"],
    )
    def test_genes_in_any_order_in_any_storage(self, state, adata, expected, tmp_path, storage):
        adata = adata[:, np.random.default_rng(2).permutation(N_GENES)].copy()
        convert = {"dense": sparse.csr_matrix.toarray, "csc": sparse.csc_matrix, "csr": sparse.csr_matrix}
        kind, layer = storage.removeprefix("backed ").replace("view", "csr"), None
        if storage == "layer":
            adata.layers["counts"], layer = adata.X.copy(), "counts"
            adata.X = np.zeros(adata.shape)
        elif storage == "fortran":
            adata.X = np.asfortranarray(adata.X.toarray())
        else:
            adata.X = convert[kind](adata.X)
        if storage.startswith("backed"):
            adata.write_h5ad(tmp_path / "x.h5ad")
            adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
        cells = np.arange(120)
        if storage == "backed view":
            with pytest.raises(ValueError, match="view of a backed AnnData; pass copy=True"):
                classify(state, adata[:3], silent=True)
        if storage.endswith("view"):
            cells = np.array([7, 100, 3, 55])
            adata = adata[cells]
        table = table_of(state, adata, layer=layer, batch_size=50)
        np.testing.assert_allclose(table[["γδ T", "mono", "B"]], expected[cells], rtol=1e-4, atol=1e-6)

    @settings(max_examples=10, deadline=None)
    @given(batch_size=st.integers(1, 200))
    def test_batch_size_does_not_matter(self, state, expected, batch_size):
        table = table_of(state, simulate(), batch_size=batch_size)
        np.testing.assert_allclose(table[["γδ T", "mono", "B"]], expected, rtol=1e-4, atol=1e-6)

    def test_repeated_genes_are_summed_with_a_warning(self, state, adata, expected):
        x = adata.X.toarray()
        halves = np.random.default_rng(0).binomial(x.astype(int), 0.5)
        doubled = ad.AnnData(np.hstack([halves, x - halves]).astype(np.float32))
        doubled.var_names = [*adata.var_names, *adata.var_names]
        with pytest.warns(UserWarning, match="30 genes occur more than once in the data; their counts are summed"):
            table = classify(state, doubled, return_table=True)
        np.testing.assert_allclose(table[["γδ T", "mono", "B"]], expected, rtol=1e-4, atol=1e-6)

    def test_a_model_that_is_not_calibrated_says_so_once(self, state, adata, recwarn):
        classify(state, adata, return_table=True)
        (told,) = [str(each.message) for each in recwarn if "not calibrated" in str(each.message)]
        for text in ("no status and no novelty", "epochs=0", "--epochs 0", "calibrate=False"):
            assert text in told
        recwarn.clear()
        classify(state, adata, return_table=True, calibrate=False)
        classify(Annotator.of(state), adata, return_table=True)
        classify(state, adata, return_table=True, silent=True)
        assert not [each for each in recwarn if "calibrated" in str(each.message)]

    def test_missing_genes_count_as_zero_with_a_warning(self, state, adata):
        with pytest.warns(UserWarning, match="10 of the 30 genes of the model are not in the data"):
            table = classify(state, adata[:, :20].copy(), return_table=True)
        adata.X = adata.X.toarray() * (np.arange(N_GENES) < 20)
        pd.testing.assert_frame_equal(table, table_of(state, adata), rtol=1e-4)

    def test_gene_key(self, state, adata, expected):
        adata.var["name"] = adata.var_names
        adata.var_names = [f"ENSG{i:011d}" for i in range(N_GENES)]
        table = table_of(state, adata, gene_key="name")
        np.testing.assert_allclose(table[["γδ T", "mono", "B"]], expected, rtol=1e-4, atol=1e-6)
        with pytest.raises(ValueError, match=r"No gene in common.*GENE.*ENSG.*gene_key='name' would match 30"):
            classify(state, adata, silent=True)
        with pytest.raises(ValueError, match="gene column 'names' is not in adata.var; did you mean 'name'"):
            classify(state, adata, gene_key="names", silent=True)
        assert "ginseng_cell_type" not in adata.obs

    def test_few_genes_in_common_are_refused_unless_asked_for(self, state, adata):
        few = adata[:, ["GENE3"]].copy()
        few.var_names = ["GENE3"]
        with pytest.raises(ValueError, match=rf"Only 1 of {N_GENES} genes in common.*lower min_overlap"):
            table_of(state, few, min_overlap=0.1)
        with pytest.raises(ValueError, match="Only 1 of 30 genes in common, where 5 are needed"):
            table_of(state, few)
        assert len(table_of(state, few, min_overlap=0.0)) == adata.n_obs

    @pytest.mark.parametrize("min_overlap", [7.0, np.nan, -1.0])
    def test_a_share_of_genes_that_is_none_is_refused(self, state, adata, min_overlap):
        with pytest.raises(ValueError, match=rf"`min_overlap` must lie in \[0, 1\], but got {min_overlap}"):
            table_of(state, adata, min_overlap=min_overlap)

    def test_warnings_point_at_the_line_that_asked(self, state, adata):
        fractions = adata[:, :-2].copy()
        fractions.X = fractions.X.toarray() + 0.5
        with pytest.warns(UserWarning) as warned:
            classify(state, fractions, return_table=True)
        messages = [str(each.message) for each in warned]
        assert [each.filename for each in warned] == [__file__] * 3, messages
        for text in ("2 of the", "fractions such as 0.5"):
            assert any(text in message for message in messages)

    def test_cells_without_counts_get_no_type(self, state, adata, expected):
        x = adata.X.toarray()
        x[[3, 50]] = 0
        adata.X = x
        with pytest.warns(UserWarning, match="2 cells have no count of the model's genes and get no type"):
            classify(state, adata)
        assert np.flatnonzero(adata.obs["ginseng_cell_type"].isna()).tolist() == [3, 50]
        assert (adata.obs["ginseng_confidence"].iloc[[3, 50]] == 0).all()
        others = np.setdiff1d(np.arange(120), [3, 50])
        np.testing.assert_allclose(
            adata.obs["ginseng_confidence"].iloc[others], expected.max(axis=1)[others], rtol=1e-4
        )

    def test_answers_that_are_not_finite_are_refused(self, state, adata):
        x = adata.X.toarray()
        x[7] = 3e38
        adata.X = x
        with pytest.raises(
            ValueError, match=r"not finite for 1 of 120 cells, such as 'cell7'.*takes normalised values"
        ):
            classify(state, adata, normalize=False, silent=True)
        assert "ginseng_cell_type" not in adata.obs

    def test_no_gene_in_common(self, state, adata):
        adata.var_names = [f"mouse{i}" for i in range(N_GENES)]
        adata.var = adata.var.drop(columns="symbol")
        with pytest.raises(
            ValueError, match="No gene in common, where 5 are needed: the model knows GENE.*; the data have mouse0"
        ):
            classify(state, adata, silent=True)

    def test_overrides(self, state, adata):
        default = table_of(state, adata)["ginseng_confidence"]
        assert not np.allclose(table_of(state, adata, target_sum=10.0)["ginseng_confidence"], default)
        assert not np.allclose(table_of(state, adata, normalize=False)["ginseng_confidence"], default)
        totals = np.asarray(adata.X.sum(axis=1))
        adata.X = np.log1p(adata.X.toarray() / totals * 1e4)
        by_hand = table_of(state, adata, normalize=False)["ginseng_confidence"]
        np.testing.assert_allclose(by_hand, default, rtol=1e-4)

    def test_randomness_follows_the_seed(self, state, adata):
        first, second, other = (
            table_of(state, adata, randomness=True, seed=seed)["ginseng_confidence"] for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.allclose(first, other)
        assert not np.allclose(first, table_of(state, adata)["ginseng_confidence"])

    def test_a_view_is_annotated_without_a_warning(self, state, adata, recwarn):
        view = adata[:10]
        classify(state, view, store_probs=True, silent=True)
        assert view.obsm["ginseng_probs"].shape == (10, 3)
        assert not [each for each in recwarn if issubclass(each.category, ad.ImplicitModificationWarning)]

    def test_no_cells(self, state, adata):
        table = table_of(state, adata[:0].copy())
        assert table.shape == (0, 5)

    @pytest.mark.parametrize(
        ("value", "options", "message"),
        [
            (np.nan, {}, "holds nan for gene 'GENE4' in cell 'cell70'"),
            (np.inf, {"normalize": False}, "holds inf"),
            (-1.0, {}, r"holds -1.0 for gene.*must not be negative"),
        ],
    )
    def test_bad_values_are_refused_and_nothing_changes(self, state, adata, value, options, message):
        x = adata.X.toarray()
        x[70, 4] = value
        adata.X = x
        with pytest.raises(ValueError, match=message):
            classify(state, adata, silent=True, **options)
        assert "ginseng_cell_type" not in adata.obs

    def test_negative_values_pass_where_nothing_is_normalised(self, state, adata):
        adata.X = adata.X.toarray() - 1
        assert np.isfinite(table_of(state, adata, normalize=False)["ginseng_confidence"]).all()

    def test_normalised_input_draws_a_warning_unless_silent(self, state, adata, recwarn):
        adata.X = adata.X.toarray() / 7
        classify(state, adata, silent=True)
        assert not recwarn
        with pytest.warns(UserWarning, match="fractions such as 0.[0-9]+, of normalised counts"):
            classify(state, adata)

    @pytest.mark.parametrize("batch_size", [0, -5])
    def test_bad_batch_size(self, state, adata, batch_size):
        with pytest.raises(ValueError, match=f"`batch_size` must be an integer of at least 1, but got {batch_size}"):
            classify(state, adata, batch_size=batch_size, silent=True)

    def test_missing_layer(self, state, adata):
        with pytest.raises(ValueError, match="layer 'counts' is not in adata.layers"):
            classify(state, adata, layer="counts", silent=True)


def test_gene_indices_of_repeated_genes():
    adata = ad.AnnData(np.zeros((1, 4)))
    adata.var_names = ["B", "A", "B", "X"]
    available, positions = _get_gene_indices(adata, np.array(["A", "C", "B"]), None)
    assert available.tolist() == [1, 0, 2]
    assert positions.tolist() == [0, 2, 2]


def test_batches_cover_every_cell_in_order(adata):
    genes = np.array(["GENE5", "absent", "GENE1"])
    with pytest.warns(UserWarning, match="1 of the 3 genes"):
        batches = list(annotate_iter(adata, genes, batch_size=50))
    assert [(start, end) for _, start, end in batches] == [(0, 50), (50, 100), (100, 120)]
    x = np.vstack([batch for batch, _, _ in batches])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[:, [0, 2]], adata.X.toarray()[:, [5, 1]])
    assert not x[:, 1].any()
