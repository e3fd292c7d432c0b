import functools
import warnings

import anndata as ad
import dask.array
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ginseng import GinsengDataset, select_hvgs, select_markers
from ginseng.utils.genes import OTHER_GENES
from ginseng.utils.transpose import by_rows
from tests.conftest import simulate


def streamed(dataset):
    return np.vstack([x for x, _ in dataset.stream(50, "all", shuffle=False)])


def labels_of(dataset):
    return [dataset.label_names[label] for label in dataset.labels]


class TestSeveralInputs:
    @pytest.fixture
    def inputs(self):
        first, second = simulate(40, seed=1), simulate(30, seed=2)
        second = second[:, ["GENE20", "GENE3", "GENE7", "GENE29", "GENE0"]].copy()
        second.obs["cell_type"] = second.obs["cell_type"].astype(str).replace("T cell", "Platelet")
        second.obs["donor"] = "d9"
        return first, second

    @pytest.mark.filterwarnings("ignore:.*genes are common")
    def test_common_genes_and_labels_in_the_same_terms(self, inputs, tmp_path):
        first, second = inputs
        dataset = GinsengDataset.create(tmp_path / "x.zarr", inputs, "cell_type", group_key="donor", silent=True)
        assert dataset.gene_names == ["GENE0", "GENE3", "GENE7", "GENE20", "GENE29"]
        assert dataset.label_names == ["B cell", "NK cell", "Platelet", "T cell"]
        assert labels_of(dataset) == [*first.obs["cell_type"], *second.obs["cell_type"]]
        assert [dataset.group_names[i] for i in dataset.groups] == [*first.obs["donor"], *second.obs["donor"]]
        x = np.vstack([adata[:, dataset.gene_names].X.toarray() for adata in inputs])
        np.testing.assert_array_equal(streamed(dataset), x)

    def test_genes_that_are_left_out_are_counted(self, inputs, tmp_path):
        with pytest.warns(UserWarning, match="5 genes are common to all 2 inputs, which have 5 to 30"):
            GinsengDataset.create(tmp_path / "x.zarr", inputs, "cell_type", silent=True)

    def test_paths_and_named_genes(self, inputs, tmp_path):
        first, second = inputs
        first.write_h5ad(tmp_path / "first.h5ad")
        second.write_zarr(tmp_path / "second.zarr")
        dataset = GinsengDataset.create(
            tmp_path / "x.zarr",
            [tmp_path / "first.h5ad", str(tmp_path / "second.zarr"), first],
            "cell_type",
            genes=["GENE7", "GENE0"],
            chunk_size=11,
            silent=True,
        )
        assert dataset.gene_names == ["GENE7", "GENE0"]
        x = np.vstack([adata[:, ["GENE7", "GENE0"]].X.toarray() for adata in (first, second, first)])
        np.testing.assert_array_equal(streamed(dataset), x)

    @pytest.mark.filterwarnings("ignore:.*genes are common")
    def test_chosen_genes_are_those_chosen_in_all(self, tmp_path):
        inputs = first, second = simulate(40, seed=1), simulate(30, seed=2)
        first.var["chosen"] = np.arange(30) < 7
        second.var["chosen"] = np.arange(30) >= 2
        dataset = GinsengDataset.create(tmp_path / "x.zarr", inputs, "cell_type", genes="chosen", silent=True)
        assert dataset.gene_names == [f"GENE{i}" for i in range(2, 7)]

    def test_repeated_cell_names_get_the_number_of_their_input(self, tmp_path):
        adata = simulate(20)
        GinsengDataset.create(tmp_path / "x.zarr", [adata, adata], "cell_type", silent=True)
        names = ad.read_zarr(tmp_path / "x.zarr").obs_names
        assert names.is_unique
        assert names[20] == "cell0-1"
        other = simulate(20)
        other.obs_names = [f"other{i}" for i in range(20)]
        GinsengDataset.create(tmp_path / "x.zarr", [adata, other], "cell_type", silent=True)
        assert list(ad.read_zarr(tmp_path / "x.zarr").obs_names) == [*adata.obs_names, *other.obs_names]

    def test_each_input_may_have_one_label(self, tmp_path):
        inputs = [simulate(20), simulate(20)]
        for adata, label in zip(inputs, "TB", strict=True):
            adata.obs["only"] = label
        dataset = GinsengDataset.create(tmp_path / "x.zarr", inputs, "only", silent=True)
        assert labels_of(dataset) == ["T"] * 20 + ["B"] * 20

    def test_cells_without_label_in_one_input(self, tmp_path):
        inputs = [simulate(20, seed=1), simulate(20, seed=2)]
        inputs[1].obs.loc[inputs[1].obs_names[[0, 19]], "cell_type"] = np.nan
        with pytest.warns(UserWarning, match="2 of 40 cells have no label"):
            dataset = GinsengDataset.create(tmp_path / "x.zarr", inputs, "cell_type", silent=True)
        np.testing.assert_array_equal(
            streamed(dataset), np.vstack([inputs[0].X.toarray(), inputs[1].X.toarray()[1:19]])
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"genes": np.ones(30, bool)}, "mask of genes cannot hold for several inputs"),
            ({"genes": ["GENE1"]}, "In input 2 of 2: 1 of 1 genes are not in the data: GENE1"),
            ({"layer": "counts"}, "In input 1 of 2: layer 'counts'"),
            ({"group_key": "batch"}, "In input 2 of 2: group column 'batch' is not in adata.obs"),
        ],
    )
    def test_what_does_not_fit(self, inputs, tmp_path, options, message):
        inputs[0].obs["batch"] = "b1"
        with pytest.raises(ValueError, match=message):
            GinsengDataset.create(tmp_path / "x.zarr", inputs, "cell_type", silent=True, **options)
        assert not list(tmp_path.iterdir())

    def test_too_few_genes_in_common_and_no_input(self, inputs, tmp_path):
        inputs[1].var_names = [f"ENSG{i}" for i in range(5)]
        with pytest.raises(
            ValueError, match="no gene in common, where 5 are needed; are their genes named in the same"
        ):
            GinsengDataset.create(tmp_path / "x.zarr", inputs, "cell_type", silent=True)
        inputs[1].var_names = [*(f"ENSG{i}" for i in range(4)), "GENE7"]
        with pytest.raises(ValueError, match="only 1 of 5 genes in common, where 5 are needed"):
            GinsengDataset.create(tmp_path / "x.zarr", inputs, "cell_type", silent=True)
        with pytest.raises(ValueError, match="There is no input"):
            GinsengDataset.create(tmp_path / "x.zarr", [], "cell_type", silent=True)


def chosen_by(select, adata, n):
    if select == "variance":
        marked = select_hvgs(adata, n, silent=True, copy=True)
    else:
        marked = select_markers(adata, "cell_type", n, silent=True, copy=True)
    return list(marked.var_names[marked.var["ginseng_genes"]])


@pytest.mark.parametrize("select", ["variance", "markers"])
class TestANumberOfGenes:
    @pytest.mark.parametrize("n", [1, np.int64(10)])
    def test_they_are_those_of_the_function(self, adata, tmp_path, n, select):
        dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", genes=n, select=select, silent=True)
        assert dataset.gene_names == chosen_by(select, adata, int(n))
        assert dataset.n_genes == n
        np.testing.assert_array_equal(streamed(dataset), adata[:, dataset.gene_names].X.toarray())
        assert "ginseng_genes" not in adata.var

    @pytest.mark.filterwarnings("ignore:.*genes are common", "ignore:.*have no label")
    @pytest.mark.parametrize("chunk_size", [7, 4096])
    def test_of_several_inputs_by_the_labelled_cells_of_all(self, tmp_path, chunk_size, select):
        first, second = simulate(60, seed=1), simulate(50, n_types=2, seed=2)
        second = second[:, second.var_names[::-1][:25]].copy()
        second.X = second.X * 3
        second.obs["cell_type"] = second.obs["cell_type"].astype(str)
        second.obs.loc[second.obs_names[:10], "cell_type"] = np.nan
        together = ad.concat([first[:, first.var_names.isin(second.var_names)], second[10:]], index_unique="-")
        first.write_h5ad(tmp_path / "first.h5ad")
        second.write_zarr(tmp_path / "second.zarr")
        sources = [tmp_path / "first.h5ad", tmp_path / "second.zarr"]
        options = {"genes": 9, "select": select, "chunk_size": chunk_size, "silent": True}
        dataset = GinsengDataset.create(tmp_path / "x.zarr", sources, "cell_type", **options)
        chosen = chosen_by(select, together, 9)
        assert dataset.gene_names == chosen
        assert chosen != chosen_by(select, first[:, together.var_names], 9)
        np.testing.assert_array_equal(streamed(dataset), together[:, chosen].X.toarray())

    def test_of_raw(self, adata, tmp_path, select):
        expected = chosen_by(select, adata, 8)
        adata.raw = adata.copy()
        adata = adata[:, :3].copy()
        options = {"layer": "raw", "genes": 8, "select": select, "overwrite": False, "silent": True}
        dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", **options)
        assert dataset.gene_names == expected

    @pytest.mark.parametrize("split", [{"fraction": 0.4}, {"fraction": 0.5, "stratify_group": True, "seed": 7}])
    def test_the_held_out_cells_have_no_say(self, adata, tmp_path, select, split):
        options = {"group_key": "donor", "genes": 6, "select": select, "silent": True}
        dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", split=split, **options)
        whole = GinsengDataset.create(tmp_path / "y.zarr", adata, "cell_type", group_key="donor", silent=True)
        whole.make_split(**split)
        np.testing.assert_array_equal(dataset.test_idx, whole.test_idx)
        changed = adata.copy()
        changed.X = changed.X.toarray()
        changed.X[dataset.test_idx] = np.random.default_rng(0).poisson(50, (len(dataset.test_idx), 30))
        again = GinsengDataset.create(tmp_path / "z.zarr", changed, "cell_type", split=split, **options)
        assert again.gene_names == dataset.gene_names
        on_all = GinsengDataset.create(tmp_path / "z.zarr", changed, "cell_type", **options)
        assert on_all.gene_names != dataset.gene_names

    def test_the_sum_of_the_others_is_a_gene(self, adata, tmp_path, select):
        options = {"genes": 6, "select": select, "silent": True}
        plain = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", **options)
        dataset = GinsengDataset.create(tmp_path / "y.zarr", adata, "cell_type", other_genes=True, **options)
        assert dataset.gene_names == [*plain.gene_names, OTHER_GENES]
        np.testing.assert_array_equal(streamed(dataset)[:, :6], streamed(plain))
        np.testing.assert_array_equal(streamed(dataset).sum(axis=1), adata.X.sum(axis=1).A1)


def test_the_sum_of_the_others_is_of_genes_that_all_inputs_have(tmp_path):
    whole, cut = simulate(40, seed=1), simulate(30, seed=2)[:, :20].copy()
    names = [f"GENE{i}" for i in range(6)]
    how = {"genes": names, "other_genes": True, "overwrite": True, "silent": True}
    with pytest.warns(UserWarning, match="that of genes that all 2 inputs have; up to 10 of one are left out"):
        dataset = GinsengDataset.create(tmp_path / "x.zarr", [whole, cut], "cell_type", **how)
    assert dataset.gene_names == [*names, OTHER_GENES]
    expected = np.concatenate([adata[:, [f"GENE{i}" for i in range(6, 20)]].X.sum(axis=1).A1 for adata in (whole, cut)])
    np.testing.assert_array_equal(streamed(dataset)[:, -1], expected)
    with pytest.warns(UserWarning, match="that all 2 inputs have; up to 24 of one are left out"):
        dataset = GinsengDataset.create(tmp_path / "x.zarr", [whole, cut[:, :6].copy()], "cell_type", **how)
    assert dataset.gene_names == names


def test_a_gene_called_like_the_sum_of_the_others_is_part_of_it(adata, tmp_path):
    first = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", genes=6, other_genes=True, silent=True)
    again = GinsengDataset.create(
        tmp_path / "y.zarr", ad.read_zarr(first.path), "cell_type", other_genes=True, silent=True
    )
    assert again.gene_names == first.gene_names
    np.testing.assert_array_equal(streamed(again), streamed(first))
    names = [first.gene_names[0], OTHER_GENES]
    fewer = GinsengDataset.create(
        tmp_path / "z.zarr", ad.read_zarr(first.path), "cell_type", genes=names, other_genes=True, silent=True
    )
    assert fewer.gene_names == names
    np.testing.assert_array_equal(streamed(fewer).sum(axis=1), adata.X.sum(axis=1).A1)


def test_a_split_after_the_markers_were_chosen_draws_a_warning(adata, tmp_path):
    options = {"genes": 6, "silent": True}
    dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", split={"fraction": 0.2}, **options)
    with pytest.warns(UserWarning, match=r"genes of .*x.zarr were chosen .* held-out figures .* Split first"):
        dataset.make_split(0.3)
    others = [{"genes": 6, "select": "variance"}, {"genes": None}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*have no count of the genes that are kept")
        for options in others:
            GinsengDataset.create(tmp_path / "y.zarr", adata, "cell_type", silent=True, **options).make_split(0.3)
        dataset.make_split(0.0)
        again = GinsengDataset.create(
            tmp_path / "y.zarr", adata, "cell_type", genes=6, split={"fraction": 0.2}, silent=True
        )
        again.make_split(0.2)


def test_a_type_that_is_held_out_whole_has_no_markers(adata, tmp_path):
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories("rare")
    adata.obs.loc[adata.obs["donor"] == "d1", "cell_type"] = "rare"
    split = {"fraction": 0.25, "stratify_group": True}
    for seed in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            dataset = GinsengDataset.create(
                tmp_path / "x.zarr",
                adata,
                "cell_type",
                group_key="donor",
                genes=6,
                split={**split, "seed": seed},
                silent=True,
            )
        assert dataset.n_genes == 6


def test_what_is_no_split_or_selection_leaves_the_old_dataset(adata, tmp_path):
    options = {"genes": 6, "silent": True}
    old = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True)
    for bad, message in (
        (
            {"split": {"fractoin": 0.1}},
            "'fractoin' is not in what make_split takes; did you mean 'fraction'",
        ),
        ({"split": {"fraction": 1.5}}, r"`fraction` must lie in \[0, 1\)"),
        ({"split": {"stratify_group": True}}, "needs groups"),
    ):
        with pytest.raises(ValueError, match=message):
            GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", **options, **bad)
    assert GinsengDataset(tmp_path / "x.zarr").n_genes == old.n_genes == 30


def cite(adata, column="feature_types", gene="Gene Expression", n_others=5):
    """The same cells with antibodies of large counts among the genes, one of them called as a gene is."""
    rng = np.random.default_rng(1)
    others = sparse.csr_matrix(rng.integers(500, 900, (adata.n_obs, n_others)).astype(np.float32))
    kinds = ["Antibody Capture"] * (n_others - 1) + ["CRISPR Guide Capture"]
    names = ["GENE3", *(f"CD{i}_TotalSeqB" for i in range(1, n_others))]
    var = pd.DataFrame({column: [*kinds, *[gene] * adata.n_vars]}, [*names, *adata.var_names])
    return ad.AnnData(sparse.hstack([others, adata.X]).tocsr(), obs=adata.obs, var=var)


LEFT_OUT = "Left out features that are not genes: 4 Antibody Capture, 1 CRISPR Guide Capture."


class TestFeaturesThatAreNoGenes:
    @pytest.mark.parametrize("genes", [None, 6, "mask", "column", ["GENE3", "GENE7"]])
    def test_they_are_left_out_and_told_once(self, adata, tmp_path, genes):
        both = cite(adata)
        for data in (adata, both):
            data.var["chosen"] = data.var_names.isin(["GENE3", "GENE8"])
        of = {"column": "chosen", "mask": both.var["chosen"].to_numpy()}
        options = {"other_genes": True, "silent": True}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = GinsengDataset.create(
                tmp_path / "x.zarr",
                both,
                "cell_type",
                genes=of.get(genes, genes) if isinstance(genes, str) else genes,
                **options,
            )
        assert [str(warning.message) for warning in told if "genes" in str(warning.message)] == [LEFT_OUT]
        of["mask"] = adata.var["chosen"].to_numpy()
        expected = GinsengDataset.create(
            tmp_path / "y.zarr",
            adata,
            "cell_type",
            genes=of.get(genes, genes) if isinstance(genes, str) else genes,
            **options,
        )
        assert found.gene_names == expected.gene_names
        np.testing.assert_array_equal(streamed(found), streamed(expected))

    @pytest.mark.parametrize("kind", ["h5ad", "zarr", "dask", "csc", "raw", "view"])
    def test_whatever_the_storage(self, adata, tmp_path, kind):
        data, options = cite(adata), {}
        if kind == "h5ad":
            data.write_h5ad(tmp_path / "x.h5ad")
            data = tmp_path / "x.h5ad"
        elif kind == "zarr":
            data.write_zarr(tmp_path / "x")
            data = tmp_path / "x"
        elif kind == "dask":
            data.X = dask.array.from_array(data.X.toarray(), chunks=(50, 7))
        elif kind == "csc":
            data.X = data.X.tocsc()
        elif kind == "raw":
            data.raw, options = data, {"layer": "raw"}
            data = data[:, :2].copy()
        else:
            data = data[:, :]
        with pytest.warns(UserWarning, match=LEFT_OUT):
            dataset = GinsengDataset.create(tmp_path / "c.zarr", data, "cell_type", silent=True, **options)
        assert dataset.gene_names == list(adata.var_names)
        np.testing.assert_array_equal(streamed(dataset), adata.X.toarray())

    @pytest.mark.parametrize(
        ("column", "gene"), [("feature_type", "gene_expression"), ("feature_biotype", "gene"), ("modality", "RNA")]
    )
    def test_other_spellings(self, adata, column, gene):
        for select in (select_hvgs, lambda data, **how: select_markers(data, "cell_type", **how)):
            with pytest.warns(UserWarning, match=LEFT_OUT):
                marked = select(cite(adata, column, gene), n_top_genes=4, silent=True, copy=True)
            alone = select(adata, n_top_genes=4, silent=True, copy=True)
            assert not marked.var["ginseng_genes"].iloc[:5].any()
            assert list(marked.var["ginseng_genes"].iloc[5:]) == list(alone.var["ginseng_genes"])

    def test_another_vocabulary_is_left_to_the_reader(self, adata, tmp_path):
        adata.var["feature_type"] = ["protein_coding", "lncRNA"] * 15
        adata.var["feature_types"] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True).n_genes == 30


class TestNamesOfGenes:
    def test_numbers_are_told_and_the_column_is_taken(self, adata, tmp_path):
        adata.var["features"], adata.var_names = adata.var_names, [str(i) for i in range(30)]
        del adata.var["symbol"]
        with pytest.warns(
            UserWarning, match="numbers such as '0', but adata.var\\['features'\\] has names: pass gene_key="
        ):
            dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        assert dataset.gene_names[0] == "0"
        with pytest.warns(UserWarning, match="has names, which were taken"):
            fixed = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", fix=True, silent=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            named = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", gene_key="features", silent=True)
        assert named.gene_names == fixed.gene_names == [f"GENE{i}" for i in range(30)]
        with pytest.raises(ValueError, match="gene column 'feature' is not in adata.var; did you mean 'features'"):
            GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", gene_key="feature", silent=True)

    @pytest.mark.parametrize("genes", [None, 9])
    def test_genes_without_a_name_are_no_input(self, adata, tmp_path, genes):
        adata.var["symbol"] = adata.var["symbol"].where(adata.var["symbol"] != "SYM2")
        options = {"gene_key": "symbol", "genes": genes, "other_genes": True, "silent": True}
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", **options)
        assert {"", "nan", "SYM2"}.isdisjoint(dataset.gene_names)
        np.testing.assert_array_equal(streamed(dataset).sum(axis=1), adata.X.sum(axis=1).A1)
        adata.var["symbol"] = np.array([None] * 30, dtype=object)
        with pytest.raises(ValueError, match=r"No gene has a name in adata.var\['symbol'\]"):
            GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", **options)

    def test_inputs_may_differ_in_versions_and_prefixes(self, tmp_path):
        inputs = [simulate(40, seed=1), simulate(30, seed=2), simulate(20, seed=3)]
        ids = [f"ENSG{i:011}" for i in range(30)]
        for adata, way in zip(inputs, ("{}.3", "{}.12", "GRCh38_{}"), strict=True):
            adata.var_names = [way.format(name) for name in ids]
        x = np.vstack([adata.X.toarray() for adata in inputs])
        inputs[1] = inputs[1][:, ::-1].copy()
        dataset = GinsengDataset.create(tmp_path / "c.zarr", inputs, "cell_type", silent=True)
        assert dataset.gene_names == [f"{name}.3" for name in ids]
        np.testing.assert_array_equal(streamed(dataset), x)

    def test_summed_genes_of_several_identifiers_have_no_second_name(self, adata, tmp_path):
        adata.var["gene_ids"] = [f"ENSG{i:011}" for i in range(30)]
        adata.var_names = ["GENE1", *adata.var_names[1:]]
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        assert dataset.second_names == ["", *adata.var["gene_ids"][2:]]


class TestNumbersOfGenes:
    @pytest.mark.parametrize("n", [30, 31])
    def test_all_are_kept_where_there_are_no_more(self, adata, tmp_path, n):
        adata.X[:, 4] = 0
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", genes=n, silent=True)
        assert dataset.gene_names == list(adata.var_names)
        expected = ["31 genes were to be chosen, but there are 30: all of them are kept."] if n == 31 else []
        assert [str(warning.message) for warning in told if "genes" in str(warning.message)] == expected

    @pytest.mark.parametrize(
        ("genes", "message"),
        [
            (0, "number of `genes` must be at least 1, but got 0; None keeps all"),
            (np.int32(-3), "at least 1, but got -3"),
            (True, "must be a column of adata.var, names, a mask, a number or None, but got True"),
        ],
    )
    def test_what_is_no_number_of_genes(self, adata, tmp_path, genes, message):
        with pytest.raises(ValueError, match=message):
            GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", genes=genes, silent=True)
        assert not list(tmp_path.iterdir())

    def test_counts_that_cannot_be_normalised_or_are_not_there(self, adata, tmp_path):
        adata.X.data[5] = -1
        with pytest.raises(ValueError, match="counts to normalise must not be negative"):
            GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", genes=5, silent=True)
        adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
        with pytest.raises(ValueError, match="No gene differs between the types"):
            GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", genes=5, silent=True)


STORAGES = ["zarr csr", "zarr csc", "zarr dense", "zarr raw", "zarr layer", "dataset", "dask"]


@pytest.mark.parametrize("storage", [*STORAGES, "h5ad csr", "h5ad csc", "h5ad dense", "h5ad raw", "h5ad layer"])
def test_counts_stay_on_disk(storage, tmp_path, monkeypatch):
    """Nothing but blocks of rows is read of counts on disk."""
    adata = simulate(60)
    expected = adata.X.toarray()
    layer = None
    if storage.endswith("csc"):
        adata.X = sparse.csc_matrix(adata.X)
    elif storage.endswith("dense"):
        adata.X = expected
    elif storage.endswith("raw"):
        adata.raw, layer = adata.copy(), "raw"
    elif storage.endswith("layer"):
        adata.layers["counts"], layer = adata.X, "counts"
        adata.X = None
    source = tmp_path / ("source.h5ad" if storage.startswith("h5ad") else "source.zarr")
    if storage == "dask":
        adata.X = dask.array.from_array(expected, chunks=(13, -1)).map_blocks(sparse.csr_matrix)
        source = adata
    elif storage == "dataset":
        GinsengDataset.create(source, adata, "cell_type", silent=True)
    elif source.suffix == ".zarr":
        adata.write_zarr(source)
    else:
        adata.write_h5ad(source)
    monkeypatch.setattr("ginseng.utils.counts.by_rows", functools.partial(by_rows, memory=4096))
    for reader in ("read_zarr", "read_h5ad"):
        monkeypatch.setattr(ad, reader, None)
    for kind in (ad.abc.CSRDataset, ad.abc.CSCDataset):
        monkeypatch.setattr(kind, "to_memory", None)
    dataset = GinsengDataset.create(
        tmp_path / "x.zarr", source, "cell_type", layer=layer, genes=["GENE9", "GENE2"], chunk_size=7, silent=True
    )
    np.testing.assert_array_equal(streamed(dataset), expected[:, [9, 2]])


def test_files_are_closed_after_reading(tmp_path):
    adata = simulate(30)
    adata.write_h5ad(tmp_path / "source.h5ad")
    GinsengDataset.create(tmp_path / "x.zarr", tmp_path / "source.h5ad", "cell_type", silent=True)
    adata.write_h5ad(tmp_path / "source.h5ad")


def test_inputs_from_a_generator_and_one_column_for_labels_and_groups(tmp_path):
    dataset = GinsengDataset.create(
        tmp_path / "x.zarr", (simulate(20, seed=k) for k in range(2)), "cell_type", group_key="cell_type", silent=True
    )
    assert dataset.n_cells == 40
    np.testing.assert_array_equal(dataset.groups, dataset.labels)


@pytest.mark.filterwarnings("ignore:.*have no label")
def test_first_cells_without_a_label_do_not_shatter_the_store(tmp_path):
    adata = simulate(1600, 600)
    adata.obs.loc[adata.obs_names[:400], "cell_type"] = np.nan
    dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", chunk_size=400, silent=True)
    n_chunks = -(-dataset.root["X/data"].shape[0] // 2**16)
    assert n_chunks >= 5
    assert len(list((dataset.path / "X" / "data" / "c").iterdir())) <= 3
    np.testing.assert_array_equal(streamed(dataset), adata.X.toarray()[400:])


def test_explicit_zeros_are_not_stored_and_the_source_keeps_them(tmp_path):
    x = sparse.csr_matrix(np.eye(6, 40, dtype=np.float32))
    x.data[2] = 0
    adata = ad.AnnData(x, obs=pd.DataFrame({"label": list("ababab")}, index=list("uvwxyz")))
    dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "label", silent=True)
    assert dataset.root["X/data"].shape == (5,)
    assert adata.X.nnz == 6
    np.testing.assert_array_equal(streamed(dataset), adata.X.toarray())


class TestFeaturesThatAreNoGenesBesideUnknownOnes:
    @pytest.mark.parametrize("kind", ["Antibody Capture", "AbSeq", "Proteins", "ADT", "CRISPR_Guide_Capture", "Custom"])
    @pytest.mark.parametrize("beside", [np.nan, "", "mRNA", "protein_coding"])
    def test_they_are_left_out(self, tmp_path, kind, beside):
        adata = simulate(40)
        adata.var["feature_types"] = pd.Series([kind] * 3 + [beside] * 27, adata.var_names, dtype=object)
        with pytest.warns(UserWarning, match=f"Left out features that are not genes: 3 {kind}"):
            dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True)
        assert dataset.gene_names == list(adata.var_names[3:])

    def test_nothing_is_left_out_where_nothing_is_known(self, tmp_path):
        adata = simulate(40)
        adata.var["feature_types"] = ["protein_coding", "lncRNA"] * 15
        assert GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True).n_genes == 30

    def test_data_without_a_gene_are_refused(self, tmp_path):
        adata = simulate(40)
        adata.var["feature_types"] = "Antibody Capture"
        with pytest.raises(ValueError, match="this is the modality of Antibody Capture. Pass the one of gene expr"):
            GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True)


class TestOutputOverAnInput:
    @pytest.mark.parametrize("overwrite", [True, False])
    def test_no_input_is_replaced(self, tmp_path, overwrite):
        path, link = tmp_path / "d" / "d.zarr", tmp_path / "link"
        path.parent.mkdir()
        GinsengDataset.create(path, simulate(40), "cell_type", silent=True)
        link.symlink_to(path)
        for output, inputs in (
            (path, str(path)),
            (link, [path]),
            (path, [simulate(40), link]),
            (path / "inside.zarr", path),
            (path.parent, path),
        ):
            with pytest.raises(ValueError, match=r"is the input .*, holds it, or lies in it.*another path"):
                GinsengDataset.create(output, inputs, "cell_type", genes=10, overwrite=overwrite, silent=True)
        assert GinsengDataset(path).n_genes == 30

    def test_beside_it_is_fine(self, tmp_path):
        GinsengDataset.create(tmp_path / "d.zarr", simulate(40), "cell_type", silent=True)
        made = GinsengDataset.create(tmp_path / "d.zarr2", tmp_path / "d.zarr", "cell_type", genes=10, silent=True)
        assert made.n_genes == 10


class TestGenesCalledByNumbers:
    def test_they_are_told_where_no_column_has_names(self, tmp_path):
        adata = simulate(40)
        adata.var = pd.DataFrame(index=[str(i) for i in range(30)])
        with pytest.warns(UserWarning, match="called by numbers such as '0': a model of these finds .*gene_key"):
            GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True)

    @pytest.mark.parametrize("column", [np.arange(30), np.linspace(0, 1, 30)])
    def test_a_column_of_numbers_is_no_names(self, tmp_path, column):
        adata = simulate(40)
        adata.var["mean"] = column
        with pytest.raises(ValueError, match=r"adata.var\['mean'\] holds (int|float)64, where `gene_key` is a"):
            GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", gene_key="mean", silent=True)


def test_cells_and_genes_that_are_swapped_are_told(tmp_path):
    adata = simulate(40)
    message = "label column 'cell_type' is not in adata.obs.*adata.var has it: are cells and genes swapped.*adata.T"
    with pytest.raises(ValueError, match=message):
        GinsengDataset.create(tmp_path / "x.zarr", adata.T, "cell_type", silent=True)
