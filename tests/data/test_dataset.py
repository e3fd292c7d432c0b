import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from ginseng import GinsengDataset
from tests.conftest import GOLDEN, simulate

SHAPES = st.tuples(st.integers(2, 20), st.integers(1, 6))


def streamed(dataset, *args, **kwargs):
    batches = list(dataset.stream(*args, **kwargs))
    return np.vstack([x for x, _ in batches]), np.concatenate([y for _, y in batches])


class TestCreate:
    def test_what_is_stored(self, adata, dataset):
        assert (dataset.n_cells, dataset.n_genes) == adata.shape
        assert dataset.label_names == ["B cell", "NK cell", "T cell"]
        assert dataset.group_names == ["d1", "d2", "d3", "d4"]
        assert dataset.gene_names == list(adata.var_names)
        assert dataset.labels.dtype == np.int32
        assert [dataset.label_names[i] for i in dataset.labels] == list(adata.obs["cell_type"])
        assert [dataset.group_names[i] for i in dataset.groups] == list(adata.obs["donor"])
        assert dataset.train_idx is None
        assert dataset.test_idx is None
        assert dataset.root.attrs["layer_used"] == "X"
        assert "120 cells x 30 genes, 3 labels (B cell, NK cell, T cell), 4 groups" in repr(dataset)

    def test_order_without_shuffle_is_the_source_s(self, adata, dataset):
        x, y = streamed(dataset, 50, "all", shuffle=False)
        np.testing.assert_array_equal(x, adata.X.toarray())
        np.testing.assert_array_equal(y, dataset.labels)
        assert x.dtype == np.float32

    def test_anndata_reads_it(self, adata, dataset):
        dataset.make_split(0.2)
        again = ad.read_zarr(dataset.path)
        np.testing.assert_array_equal(again.X.toarray(), adata.X.toarray())
        assert list(again.obs["cell_type"]) == list(adata.obs["cell_type"])
        assert list(again.obs_names) == list(adata.obs_names)
        assert list(again.var_names) == list(adata.var_names)

    @pytest.mark.parametrize("storage", ["dense", "csc", "backed", "path", "view"])
    def test_from_any_storage(self, adata, tmp_path, storage):
        expected = adata.X.toarray()
        if storage == "dense":
            adata.X = expected
        elif storage == "csc":
            adata.X = sparse.csc_matrix(adata.X)
        elif storage in ("backed", "path"):
            adata.write_h5ad(tmp_path / "x.h5ad")
            adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r") if storage == "backed" else tmp_path / "x.h5ad"
        else:
            order = np.random.default_rng(0).permutation(adata.n_obs)
            adata, expected = adata[order], expected[order]
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", chunk_size=7, silent=True)
        np.testing.assert_array_equal(streamed(dataset, 64, "all", shuffle=False)[0], expected)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        x=st.one_of(
            hnp.arrays(np.float32, SHAPES, elements=st.floats(-4, 2**20, width=32) | st.just(0.0)),
            *(
                hnp.arrays(dtype, SHAPES, elements=st.just(0) | st.integers(low, high))
                for dtype, low, high in (("u1", 0, 255), ("i4", 0, 70_000), ("i8", 0, 2**24), ("f4", -300, 300))
            ),
        ),
        chunk_size=st.integers(1, 9),
    )
    def test_any_matrix_makes_the_round_trip(self, tmp_path_factory, x, chunk_size):
        assume(x.any())
        labels = ["a", "b"] * (len(x) // 2) + ["a"] * (len(x) % 2)
        obs = pd.DataFrame({"label": labels}, index=[f"c{i}" for i in range(len(x))])
        path = tmp_path_factory.mktemp("any") / "x.zarr"
        adata = ad.AnnData(sparse.csr_matrix(x), obs=obs)
        with no_warning():
            dataset = GinsengDataset.create(path, adata, "label", chunk_size=chunk_size, normalize=False, silent=True)
        np.testing.assert_array_equal(streamed(dataset, 4, "all", shuffle=False)[0], x)

    @pytest.mark.parametrize(
        ("genes", "expected"),
        [
            (["GENE7", "GENE2", "GENE11"], [7, 2, 11]),
            (np.array(["GENE29", "GENE0"]), [29, 0]),
            ("chosen", [0, 3, 6, 9]),
            (np.arange(30) > 26, [27, 28, 29]),
            (None, range(30)),
        ],
    )
    def test_choice_and_order_of_genes(self, adata, tmp_path, genes, expected):
        adata.var["chosen"] = [i % 3 == 0 and i < 12 for i in range(30)]
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", genes=genes, silent=True)
        assert dataset.gene_names == [f"GENE{i}" for i in expected]
        np.testing.assert_array_equal(
            streamed(dataset, 64, "all", shuffle=False)[0], adata.X.toarray()[:, list(expected)]
        )

    def test_layer_and_raw(self, adata, tmp_path):
        adata.layers["counts"] = adata.X * 2
        adata.raw = adata.copy()
        expected = adata.X.toarray()
        adata.X = np.zeros(adata.shape)
        for layer, factor in (("counts", 2), ("raw", 1)):
            dataset = GinsengDataset.create(tmp_path / layer, adata, "cell_type", layer=layer, silent=True)
            np.testing.assert_array_equal(streamed(dataset, 64, "all", shuffle=False)[0], factor * expected)
            assert dataset.root.attrs["layer_used"] == layer

    def test_cells_without_label_are_left_out_with_a_count_or_refused(self, adata, tmp_path):
        adata.obs.loc[adata.obs_names[[3, 50]], "cell_type"] = np.nan
        with pytest.warns(UserWarning, match="2 of 120 cells have no label"):
            dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", chunk_size=16, silent=True)
        assert dataset.n_cells == 118
        keep = np.delete(np.arange(120), [3, 50])
        np.testing.assert_array_equal(streamed(dataset, 64, "all", shuffle=False)[0], adata.X.toarray()[keep])
        with pytest.raises(ValueError, match="2 of 120 cells have no label"):
            GinsengDataset.create(tmp_path / "d.zarr", adata, "cell_type", missing_labels="error", silent=True)

    @pytest.mark.parametrize("unlabelled", [slice(0, 40), slice(40, 80), slice(80, 120)])
    @pytest.mark.filterwarnings("ignore:.*have no label")
    def test_whole_blocks_without_label(self, adata, tmp_path, unlabelled):
        adata.obs.loc[adata.obs_names[unlabelled], "cell_type"] = np.nan
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", chunk_size=10, silent=True)
        kept = np.delete(np.arange(120), np.arange(120)[unlabelled])
        np.testing.assert_array_equal(streamed(dataset, 64, "all", shuffle=False)[0], adata.X.toarray()[kept])

    def test_first_cells_without_counts_do_not_shatter_the_store(self, adata, tmp_path):
        adata.X = adata.X.toarray() * (np.arange(120) > 40)[:, None]
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", chunk_size=20, silent=True)
        np.testing.assert_array_equal(streamed(dataset, 64, "all", shuffle=False)[0], adata.X)
        assert len([path for path in (tmp_path / "c.zarr" / "X").rglob("*") if path.is_file()]) < 10

    def test_through_a_link(self, adata, dataset):
        link = dataset.path.parent / "link.zarr"
        link.symlink_to(dataset.path)
        assert GinsengDataset.create(link, simulate(n_cells=20), "cell_type", silent=True).n_cells == 20
        assert link.is_symlink()
        assert GinsengDataset(dataset.path).n_cells == 20
        assert sorted(path.name for path in link.parent.iterdir()) == sorted([link.name, dataset.path.name])

    def test_numbers_as_labels(self, adata, tmp_path):
        adata.obs["cluster"] = np.arange(120) % 3
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cluster", silent=True)
        assert dataset.label_names == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"label_key": "celltype"}, "label column 'celltype' is not in adata.obs; did you mean 'cell_type'"),
            ({"group_key": "doner"}, "group column 'doner'.*did you mean 'donor'.*It has: cell_type, donor"),
            ({"layer": "counts"}, "layer 'counts' is not in adata.layers"),
            ({"genes": "highly_variable"}, "gene column 'highly_variable' is not in adata.var"),
            ({"genes": "symbol"}, "boolean"),
            ({"genes": ["GENE1", "CD3D", "CD4"]}, "2 of 3 genes are not in the data: CD3D, CD4"),
            ({"genes": ["GENE1", "GENE1"]}, "unique.*GENE1"),
            ({"genes": []}, "No gene is chosen"),
            ({"genes": np.ones(7, bool)}, "a mask of 7 genes, but the data have 30"),
            ({"label_key": "none"}, "No cell has a label in adata.obs\\['none'\\]"),
            ({"mapping": {"T cells": "T"}}, "label 'T cells' is not in adata.obs.*did you mean 'T cell'"),
            ({"label_key": "one", "mapping": {"same": None}}, "leaves no label"),
            ({"label_key": "one", "genes": 5}, "Markers tell labels apart.*only one, 'same'"),
            ({"chunk_size": 0}, "chunk_size.*at least 1"),
            ({"group_key": "gaps"}, "1 cells have no group"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*have no label", "ignore:All cells have the same label")
    def test_a_failure_is_clear_and_leaves_the_old_dataset(self, adata, dataset, options, message):
        adata.obs["one"], adata.obs["none"], adata.obs["gaps"] = "same", None, adata.obs["donor"]
        adata.obs.loc["cell4", "gaps"] = None
        with pytest.raises(ValueError, match=message):
            GinsengDataset.create(dataset.path, adata, **{"label_key": "cell_type", "silent": True, **options})
        self.assert_untouched(dataset)

    def test_a_failure_half_way_leaves_the_old_dataset(self, adata, dataset):
        adata.X[100, 3] = np.nan
        with pytest.raises(ValueError, match="nan for gene 'GENE3' in cell 'cell100'"):
            GinsengDataset.create(dataset.path, adata, "cell_type", chunk_size=16, silent=True)
        self.assert_untouched(dataset)

    def assert_untouched(self, dataset):
        assert GinsengDataset(dataset.path).n_cells == 120
        assert [path.name for path in dataset.path.parent.iterdir()] == [dataset.path.name]

    def test_overwriting(self, dataset):
        smaller = simulate(n_cells=20)
        with pytest.raises(FileExistsError, match="overwrite=True"):
            GinsengDataset.create(dataset.path, smaller, "cell_type", overwrite=False, silent=True)
        assert GinsengDataset.create(dataset.path, smaller, "cell_type", silent=True).n_cells == 20
        assert [path.name for path in dataset.path.parent.iterdir()] == [dataset.path.name]

    def test_what_is_not_a_dataset_is_never_replaced(self, adata, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.txt").write_text("precious")
        with pytest.raises(FileExistsError, match="not a ginseng dataset"):
            GinsengDataset.create(tmp_path / "thesis", adata, "cell_type", silent=True)
        assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"

    @pytest.mark.parametrize("genes", [None, ["GENE5", "GENE0"], "mask", "column", 30])
    def test_repeated_gene_names_are_summed_with_a_warning(self, adata, tmp_path, genes):
        x = adata.X.toarray()
        adata.var_names = ["GENE0", "GENE0", *adata.var_names[2:]]
        adata.var["chosen"] = np.isin(np.arange(30), [1, 7])
        if isinstance(genes, str):
            genes = {"mask": adata.var["chosen"].to_numpy(), "column": "chosen"}[genes]
        with pytest.warns(UserWarning, match="1 genes occur more than once in the data; their counts are summed"):
            dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", genes=genes, silent=True)
        counts = next(dataset.stream(120, "all", shuffle=False))[0]
        assert len(set(dataset.gene_names)) == len(dataset.gene_names)
        np.testing.assert_array_equal(counts[:, dataset.gene_names.index("GENE0")], x[:, 0] + x[:, 1])
        for gene in set(dataset.gene_names) - {"GENE0"}:
            np.testing.assert_array_equal(counts[:, dataset.gene_names.index(gene)], x[:, int(gene[4:])])

    def test_opening_what_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no dataset"):
            GinsengDataset(tmp_path / "nothing.zarr")
        (tmp_path / "folder").mkdir()
        with pytest.raises(ValueError, match="not a ginseng dataset"):
            GinsengDataset(tmp_path / "folder")


class TestStorage:
    def create(self, x, path, **options):
        obs = pd.DataFrame({"label": ["a", "b"] * (len(x) // 2)}, index=[f"c{i}" for i in range(len(x))])
        return GinsengDataset.create(path / "x.zarr", ad.AnnData(x, obs=obs), "label", silent=True, **options)

    @pytest.mark.parametrize(
        ("largest", "dtype"),
        [(255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (2.5, "float32"), (-3, "int16")],
    )
    @pytest.mark.filterwarnings("ignore:.*fractions")
    def test_counts_are_stored_in_the_smallest_type(self, tmp_path, largest, dtype):
        x = np.eye(60, 50, dtype=np.float32)
        x[55, 3] = largest
        dataset = self.create(x, tmp_path, chunk_size=7)
        assert dataset.root["X/data"].dtype == dtype
        assert dataset.root["X/indices"].dtype == "uint8"
        np.testing.assert_array_equal(streamed(dataset, 9, "all", shuffle=False)[0], x)

    @pytest.mark.filterwarnings("ignore:.*fractions")
    def test_values_beyond_float32(self, tmp_path):
        x = np.eye(60, 50)
        x[1, 3], x[2, 4] = 1e-60, -1e-50
        dataset = self.create(x, tmp_path)
        np.testing.assert_array_equal(streamed(dataset, 9, "all", shuffle=False)[0], x.astype(np.float32))
        x[1, 3] = 1e39
        with pytest.raises(ValueError, match=r"1e\+39 for gene '3' in cell 'c1': .* fit in float32"):
            self.create(x, tmp_path)
        assert GinsengDataset(dataset.path).n_cells == 60

    def test_the_type_may_widen_when_shards_are_written(self, tmp_path):
        x = np.random.default_rng(0).poisson(0.4, (800, 1000)).astype(np.float32)
        x[400, 5], x[600, 6], x[790, 7] = 300, 70_000, 2.0**24
        dataset = self.create(x, tmp_path, chunk_size=1)
        assert dataset.root["X/data"].dtype == "uint32"
        assert len(list((tmp_path / "x.zarr" / "X" / "data" / "c").iterdir())) == 5
        np.testing.assert_array_equal(streamed(dataset, 9, "all", shuffle=False)[0], x)
        assert sorted(path.name for path in (tmp_path / "x.zarr" / "X").iterdir() if path.is_dir()) == [
            "data",
            "indices",
            "indptr",
        ]

    def test_mostly_nonzero_counts_are_stored_dense(self, tmp_path):
        x = np.random.default_rng(0).poisson(5.0, (80, 20)).astype(np.float32)
        dataset = self.create(x, tmp_path, chunk_size=16)
        assert dataset.root["X"].dtype == "uint8"
        assert dataset.root["X"].chunks == (16, 20)
        np.testing.assert_array_equal(streamed(dataset, 9, "all", shuffle=False)[0], x)
        np.testing.assert_array_equal(ad.read_zarr(dataset.path).X, x)

    def test_anndata_reads_rows_from_the_disk(self, adata, dataset):
        backed = ad.io.sparse_dataset(dataset.root["X"])
        np.testing.assert_array_equal(backed[5:17].toarray(), adata.X[5:17].toarray())


class no_warning:
    def __enter__(self): ...
    def __exit__(self, *_): ...


class TestReferenceStore:
    def test_it_opens(self, golden):
        dataset = GinsengDataset(GOLDEN / "dataset.zarr")
        x, y = streamed(dataset, 7, "all", shuffle=False)
        np.testing.assert_array_equal(x, golden["x"])
        np.testing.assert_array_equal(y, golden["y"])
        assert dataset.label_names == ["B cell", "NK cell", "T cell"]
        assert [dataset.group_names[i] for i in dataset.groups] == golden["donor"].tolist()
        np.testing.assert_array_equal(dataset.train_idx, golden["train_idx"])
        np.testing.assert_array_equal(dataset.test_idx, golden["test_idx"])

    def test_our_names_and_attributes_are_the_documented_ones(self, dataset):
        theirs = json.loads((GOLDEN / "dataset.zarr" / "zarr.json").read_text())["attributes"]
        assert set(theirs) <= set(dataset.root.attrs)
        dataset.make_split()
        for name in ("labels", "groups", "split/train", "split/test"):
            assert dataset.root[name].dtype == np.int32


class TestSplit:
    def test_cells_are_split_once_and_stored(self, dataset):
        dataset.make_split(0.25, seed=3)
        assert len(dataset.test_idx) == 30
        assert sorted([*dataset.train_idx, *dataset.test_idx]) == list(range(120))
        again = GinsengDataset(dataset.path)
        np.testing.assert_array_equal(again.test_idx, dataset.test_idx)
        again.make_split(0.25, seed=3)
        np.testing.assert_array_equal(again.test_idx, dataset.test_idx)
        again.make_split(0.25, seed=4)
        assert not np.array_equal(again.test_idx, dataset.test_idx)

    def test_groups_stay_together(self, dataset):
        dataset.make_split(0.5, stratify_group=True)
        train, test = set(dataset.groups[dataset.train_idx]), set(dataset.groups[dataset.test_idx])
        assert len(train) == len(test) == 2
        assert not train & test

    def test_every_label_is_split_on_its_own(self, tmp_path):
        labels = np.repeat(["a", "b", "c"], [100, 10, 2])
        adata = ad.AnnData(np.eye(112, dtype=np.float32), obs=pd.DataFrame({"label": labels}, map(str, range(112))))
        dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "label", silent=True)
        for seed in range(10):
            dataset.make_split(0.2, seed=seed, stratify_label=True)
            assert np.bincount(dataset.labels[dataset.test_idx]).tolist() == [20, 2, 1]
            assert sorted([*dataset.train_idx, *dataset.test_idx]) == list(range(112))
        with pytest.raises(ValueError, match="choose `stratify_group` or `stratify_label`"):
            dataset.make_split(0.2, stratify_group=True, stratify_label=True)

    def test_it_tells_whether_cells_are_held_out(self, dataset):
        assert not dataset.has_test
        dataset.make_split(0.0)
        assert not dataset.has_test
        dataset.make_split(0.1)
        assert dataset.has_test

    def test_nothing_held_out(self, dataset):
        dataset.make_split(0.0)
        assert len(dataset.train_idx) == 120
        assert list(dataset.stream(10, "test")) == []

    def test_a_small_share_holds_out_at_least_one(self, dataset):
        dataset.make_split(0.001)
        assert len(dataset.test_idx) == 1
        dataset.make_split(0.999, stratify_group=True)
        assert len(set(dataset.groups[dataset.train_idx])) == 1

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5])
    def test_bad_fractions_are_refused_and_the_old_split_stays(self, dataset, fraction):
        dataset.make_split(0.25)
        before = dataset.test_idx
        with pytest.raises(ValueError, match=rf"`fraction` must lie in \[0, 1\), but got {fraction}"):
            dataset.make_split(fraction)
        np.testing.assert_array_equal(GinsengDataset(dataset.path).test_idx, before)

    def test_an_interrupted_split_leaves_the_old_one(self, dataset, monkeypatch):
        dataset.make_split(0.25)
        before = dataset.test_idx
        create_array = zarr.Group.create_array

        def interrupted(group, name, **kwargs):
            if name == "test":
                raise KeyboardInterrupt
            return create_array(group, name, **kwargs)

        monkeypatch.setattr(zarr.Group, "create_array", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dataset.make_split(0.5, seed=9)
        np.testing.assert_array_equal(GinsengDataset(dataset.path).test_idx, before)
        assert not list(dataset.path.glob(".split*"))

    def test_groups_are_needed_to_split_by_them(self, adata, tmp_path):
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        with pytest.raises(ValueError, match="pass `group_key` to GinsengDataset.create"):
            dataset.make_split(stratify_group=True)
        adata.obs["all"] = "one"
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", group_key="all", silent=True)
        with pytest.raises(ValueError, match="needs two"):
            dataset.make_split(stratify_group=True)


class TestStream:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        batch_size=st.integers(1, 130),
        split=st.sampled_from(["train", "test", "all"]),
        fraction=st.floats(0.0, 0.99),
        shuffle=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_every_cell_of_the_part_exactly_once(self, numbered, batch_size, split, fraction, shuffle, seed):
        numbered.make_split(fraction, seed=seed)
        expected = {"train": numbered.train_idx, "test": numbered.test_idx, "all": np.arange(60)}[split]
        batches = list(numbered.stream(batch_size, split, shuffle=shuffle, rng=seed))
        cells = [int(cell) for x, _ in batches for cell in x[:, 0]]
        assert (sorted(cells) if shuffle else cells) == list(expected)
        assert all(len(y) == batch_size for _, y in batches[:-1])
        assert all(
            numbered.labels[int(cell)] == label for x, y in batches for cell, label in zip(x[:, 0], y, strict=True)
        )

    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.98])
    def test_a_sample_is_about_as_large_as_asked_and_spread(self, tmp_path, fraction):
        counts = np.arange(3000, dtype=np.float32)[:, None] + 1
        adata = ad.AnnData(counts, pd.DataFrame({"cell_type": ["a", "b"] * 1500}, map(str, range(3000))))
        dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True)
        dataset.make_split(fraction)
        cells = dataset.sample(300, "train")[:, 0]
        n_cells = len(dataset.train_idx)
        assert min(n_cells, 300) * 0.8 <= len(cells) <= max(n_cells if n_cells < 600 else 0, 300 * 1.2)
        np.testing.assert_allclose(cells.mean(), dataset.train_idx.mean(), rtol=0.1)

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(n_cells=st.integers(1, 90), split=st.sampled_from(["train", "test", "all"]), fraction=st.floats(0.02, 0.9))
    def test_a_sample_is_of_the_part(self, numbered, n_cells, split, fraction):
        numbered.make_split(fraction)
        expected = {"train": numbered.train_idx, "test": numbered.test_idx, "all": np.arange(60)}[split]
        cells = list(numbered.sample(n_cells, split)[:, 0].astype(int))
        assert len(set(cells)) == len(cells) > 0
        assert cells == list(expected) if n_cells >= 60 else set(cells) <= set(expected)

    @pytest.fixture(scope="class")
    def numbered(self, tmp_path_factory):
        """The first gene of a cell is its number."""
        x = np.arange(60, dtype=np.float32)[:, None] * [1, 0] + [0, 1]
        obs = pd.DataFrame({"label": ["a"] * 45 + ["b"] * 10 + ["c"] * 5}, index=[f"c{i}" for i in range(60)])
        path = tmp_path_factory.mktemp("numbered") / "x.zarr"
        return GinsengDataset.create(path, ad.AnnData(x.astype(np.float32), obs=obs), "label", silent=True)

    @pytest.mark.parametrize("batch_size", [7, 60, 61])
    def test_a_short_last_batch_can_be_dropped(self, numbered, batch_size):
        batches = list(numbered.stream(batch_size, "all", drop_last=True))
        assert [len(y) for _, y in batches] == [batch_size] * (60 // batch_size)

    def test_balanced_labels_are_equally_many_of_the_training_part_only(self, numbered):
        numbered.make_split(0.2, seed=1)
        rarest = np.bincount(numbered.labels[numbered.train_idx]).min()
        x, y = streamed(numbered, 8, balance_labels=True, rng=0)
        assert np.bincount(y).tolist() == [rarest] * 3
        assert set(x[:, 0].astype(int)) <= set(numbered.train_idx)
        assert len(np.unique(x[:, 0])) == len(x)
        other, _ = streamed(numbered, 8, balance_labels=True, rng=1)
        assert set(other[:, 0]) != set(x[:, 0])
        for split in ("test", "all"):
            expected = {"test": len(numbered.test_idx), "all": 60}[split]
            assert len(streamed(numbered, 8, split, balance_labels=True)[0]) == expected

    def test_equal_seeds_give_equal_batches_and_leave_numpy_s_generator_alone(self, numbered):
        numbered.make_split(0.2)
        np.random.seed(0)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        first, second = streamed(numbered, 7, rng=5), streamed(numbered, 7, rng=5)
        np.testing.assert_array_equal(first[0], second[0])
        assert not np.array_equal(first[0], streamed(numbered, 7, rng=6)[0])
        assert not np.array_equal(streamed(numbered, 7)[0], streamed(numbered, 7)[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
        assert (np.diff(numbered.train_idx) > 0).all()

    def test_bad_requests_are_refused_at_once(self, adata, tmp_path):
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        with pytest.raises(ValueError, match="call make_split first"):
            dataset.stream(10)
        for batch_size in (0, -1):
            with pytest.raises(
                ValueError, match=f"`batch_size` must be an integer of at least 1, but got {batch_size}"
            ):
                dataset.stream(batch_size, "all")


def test_real_counts_make_the_round_trip(real_data, tmp_path):
    source = ad.read_h5ad(real_data("pancreas_baron_human_sub.h5ad"))
    dataset = GinsengDataset.create(
        tmp_path / "baron.zarr", real_data("pancreas_baron_human_sub.h5ad"), "cell_type", group_key="donor", silent=True
    )
    assert dataset.label_names == sorted(source.obs["cell_type"].unique())
    for i, (x, y) in enumerate(dataset.stream(500, "all", shuffle=False)):
        rows = slice(500 * i, 500 * i + len(y))
        np.testing.assert_array_equal(x, source.X[rows].toarray())
        assert [dataset.label_names[label] for label in y] == list(source.obs["cell_type"].iloc[rows])
