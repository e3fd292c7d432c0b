import functools
import re
import warnings

import anndata as ad
import dask.array
import equinox as eqx
import jax.random as jr
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from ginseng import (
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    save_model,
    select_markers,
    state_from_classifier_trainer,
)
from ginseng.cli import app
from ginseng.data.matching import matched_genes
from ginseng.data.preflight import checked_counts, forms_of, preflight
from ginseng.data.readers import opened_counts, read_adata
from ginseng.model.annotator import Annotator
from ginseng.utils.forms import form_of
from ginseng.utils.genes import OTHER_GENES
from ginseng.utils.names import GeneNames
from tests.conftest import simulate

SUBSET = "normalised counts whose totals differ, as of a subset of genes"
PROBABILITIES = ["B cell", "NK cell", "T cell"]


def normalised(x, total):
    totals = x.sum(axis=1, keepdims=True)
    return np.divide(total * x, totals, out=np.zeros_like(x), where=totals > 0)


def wrong_forms(x):
    """Names of forms, and values of some counts in them."""
    to_1e4, third = normalised(x, 1e4), slice(0, x.shape[1] // 2)
    logarithms = np.log1p(to_1e4)
    return {
        "counts normalised to 10,000 per cell": to_1e4,
        "log1p of counts normalised to 10,000 per cell": logarithms,
        "log1p of counts normalised to 37 per cell": np.log1p(normalised(x, 37.0)),
        "log2(x + 1) of counts normalised to 10,000 per cell": np.log2(to_1e4 + 1),
        "log10(x + 1) of counts normalised to 1 per cell": np.log10(normalised(x, 1.0) + 1),
        "sqrt of counts normalised to 10,000 per cell": np.sqrt(to_1e4),
        "log1p of raw counts": np.log1p(x),
        "log2(x + 1) of raw counts": np.log2(x + 1),
        "sqrt of raw counts": np.sqrt(x),
        SUBSET: to_1e4[:, third],
        f"log1p of {SUBSET}": logarithms[:, third],
        "scaled or centred values": np.clip((logarithms - logarithms.mean(0)) / (logarithms.std(0) + 1e-8), -10, 10),
        "only 0 and 1": np.sign(x),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    dataset = GinsengDataset.create(folder / "c.zarr", simulate(), "cell_type", silent=True)
    settings = GinsengClassifierTrainerSettings(hidden_dim=8, batch_size=32, lr=0.005)
    trainer = GinsengClassifierTrainer(dataset, settings)
    trainer.fit(6, silent=True)
    save_model(state_from_classifier_trainer(trainer), folder / "m.h5")
    return folder / "m.h5"


class TestForms:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_each_is_named(self, dtype):
        x = simulate().X.toarray().astype(np.float64)
        named = {name: form_of(sparse.csr_matrix(form.astype(dtype))).name for name, form in wrong_forms(x).items()}
        assert named == {name: name for name in named}

    @pytest.mark.parametrize("name", ["pbmc3k.h5ad", "pbmc_kang_ctrl_8donors.h5ad", "pancreas_baron_human_sub.h5ad"])
    def test_each_is_named_in_real_data(self, real_data, name):
        adata = read_adata(real_data(name), backed=False)[::50]
        x = adata.X.toarray().astype(np.float64)
        assert form_of(sparse.csr_matrix(x)).name == "raw counts"
        named = {
            name: form_of(sparse.csr_matrix(form.astype(np.float32))).name for name, form in wrong_forms(x).items()
        }
        assert named == {name: name for name in named}

    @pytest.mark.parametrize(
        "counts",
        [
            np.eye(5, 3),
            np.eye(300, 300),
            np.zeros((4, 3)),
            np.ones((1, 1)),
            np.full((40, 3), 7.0),
            np.random.default_rng(0).poisson(0.01, (100, 200)),
            np.random.default_rng(0).poisson(50.0, (20, 4)),
            np.random.default_rng(0).multinomial(1000, np.ones(30) / 30, 50),
        ],
    )
    @pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
    def test_whole_numbers_draw_no_alarm(self, counts, dtype):
        checked, found = checked_counts(ad.AnnData(sparse.csr_matrix(counts.astype(dtype))))
        assert not found.problems
        assert not found.warnings
        np.testing.assert_array_equal(checked.rows(0, len(counts)).toarray(), counts)

    def test_10x_files_draw_no_alarm(self, real_data):
        for path in ("10x/v3/filtered_feature_bc_matrix.h5", "10x/v1.2/filtered_gene_bc_matrices_h5.h5"):
            found = checked_counts(read_adata(real_data(path)))[1]
            assert (found.forms["X"].kind, found.warnings, found.problems) == ("raw counts", (), ())

    def test_corrected_counts_are_used_with_a_warning_whatever_else_there_is(self):
        x = np.random.default_rng(0).poisson(3.0, (60, 80)) * np.random.default_rng(1).lognormal(0, 2, 80)
        adata = ad.AnnData(x, layers={"counts": np.rint(x)})
        counts, found = checked_counts(adata, fix=True)
        assert (found.used, found.forms["X"].kind, found.problems) == ("X", "corrected counts", ())
        assert "as of counts that were corrected" in found.warnings[0]
        np.testing.assert_allclose(counts.rows(0, 60).toarray(), x)

    @pytest.mark.parametrize("storage", ["csc", "dense", "dask", "backed", "zarr"])
    def test_all_matrices_of_any_storage(self, tmp_path, storage):
        adata = simulate(600)
        x = adata.X.toarray()
        make = {"csc": sparse.csc_matrix, "dask": lambda x: dask.array.from_array(x, chunks=(70, 30))}.get(
            storage, np.asarray
        )
        adata.raw = ad.AnnData(make(normalised(x, 1e4)), var=adata.var)
        adata.layers["counts"], adata.layers["text"] = make(x), np.full(x.shape, "a", dtype=object)
        adata.X = make(np.log1p(x))
        if storage in ("backed", "zarr"):
            del adata.layers["text"]
            path = tmp_path / f"x.{storage}"
            adata.write_zarr(path) if storage == "zarr" else adata.write_h5ad(path)
            with opened_counts(path) as stored:
                found = forms_of(stored)
        else:
            found = forms_of(adata)
        assert {layer: form.name for layer, form in found.items()} == {
            None: "log1p of raw counts",
            "counts": "raw counts",
            "raw": "counts normalised to 10,000 per cell",
        }

    def test_cells_far_from_the_first_are_looked_at(self):
        x = simulate(1000).X.toarray()
        x[300:] = np.log1p(x[300:])
        checked, found = checked_counts(ad.AnnData(x))
        assert checked.sample()[1].max() >= 900
        assert found.forms["X"].kind == "mixed"

    @pytest.mark.parametrize("order", ["joined", "shuffled"])
    @pytest.mark.parametrize("form", ["log1p of counts normalised to 10,000 per cell", "sqrt of raw counts"])
    @pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
    def test_cells_of_several_forms_are_told_apart(self, order, form, share):
        adata = simulate(400, n_genes=60)
        x = adata.X.toarray().astype(np.float64)
        is_raw = np.arange(400) < share * 400
        if order == "shuffled":
            is_raw = np.random.default_rng(0).permutation(is_raw)
        mixed = np.where(is_raw[:, None], x, wrong_forms(x)[form])
        for fix in (False, True):
            found = checked_counts(ad.AnnData(mixed, obs=adata.obs), fix=fix)[1]
            (problem,) = found.problems
            n_raw, first, n_other, other = re.search(
                r"adata.X holds raw counts in (\d+) of the 250 cells that were looked at, such as 'cell(\d+)', and "
                + re.escape(form)
                + r" in (\d+), such as 'cell(\d+)'",
                problem,
            ).groups()
            assert abs(int(n_raw) / 250 - share) < 0.1
            assert int(n_raw) + int(n_other) == 250
            assert is_raw[int(first)]
            assert not is_raw[int(other)]
            assert "bring all cells into one form" in problem
        whole = ad.AnnData(mixed, obs=adata.obs, layers={"counts": x})
        assert 'pass layer="counts"' in checked_counts(whole)[1].problems[0]
        assert checked_counts(whole, fix=True)[1].used == "layer counts"

    @pytest.mark.parametrize("n_parts", [3, 7, 10])
    def test_one_of_several_joined_data_sets_is_seen(self, n_parts):
        x = simulate(1000).X.toarray()
        for part in range(n_parts):
            mixed = [np.log1p(rows) if nth == part else rows for nth, rows in enumerate(np.array_split(x, n_parts))]
            assert checked_counts(ad.AnnData(np.vstack(mixed)))[1].forms["X"].kind == "mixed"

    def test_cells_that_are_whole_by_chance_are_no_form_of_their_own(self):
        x = np.random.default_rng(0).poisson(0.02, (300, 400)).astype(float)
        for name, values in (("sqrt of raw counts", np.sqrt(x)), ("log2(x + 1) of raw counts", np.log2(x + 1))):
            assert (values == np.rint(values)).all(axis=1).sum() > 200
            assert checked_counts(ad.AnnData(values))[1].forms["X"].kind != "mixed", name
        x[::3, :40] += np.random.default_rng(1).poisson(2.0, (100, 40))
        for name, values in (("sqrt of raw counts", np.sqrt(x)), ("log2(x + 1) of raw counts", np.log2(x + 1))):
            assert checked_counts(ad.AnnData(values))[1].forms["X"].name == name
        to_1e4 = normalised(np.random.default_rng(0).poisson(1.0, (300, 40)).astype(float), 1e4)
        assert checked_counts(ad.AnnData(to_1e4))[1].forms["X"].name == "counts normalised to 10,000 per cell"

    def test_values_that_no_logarithm_has_are_refused_where_they_are_undone(self):
        x = np.log1p(simulate(2000, n_genes=60).X.toarray())
        x[101, 5] = 64.0
        checked, found = checked_counts(ad.AnnData(x), fix=True)
        assert "this is undone" in found.fixed[0]
        with pytest.raises(ValueError, match="holds 64.0 for gene '5' in cell '101': that is no value of log1p of raw"):
            list(checked.blocks(100))


class TestClassify:
    def refused(self, model, adata, message, **options):
        before = adata.copy()
        with pytest.raises(ValueError, match=message):
            classify(model, adata, silent=True, **options)
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        assert dict(adata.uns) == dict(before.uns)

    @pytest.mark.parametrize("place", ["counts", "umis", "raw"])
    def test_the_layer_that_holds_counts_is_named_and_taken(self, model, place):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        if place == "raw":
            adata.raw = adata
        else:
            adata.layers[place] = adata.X.copy()
        x = adata.X.toarray()
        adata.layers["spliced"] = x // 2
        adata.X = x - x.mean(axis=0)
        self.refused(model, adata, f'holds scaled.*pass layer="{place}"')
        with pytest.warns(UserWarning, match="adata.*was taken instead"):
            classify(model, adata, fix=True, store_probs=True)
        np.testing.assert_allclose(adata.obsm["ginseng_probs"], expected[PROBABILITIES], rtol=1e-5)
        kept = adata.uns["ginseng"]["preflight"]
        assert kept["used"] == kept["counts"] == ("raw" if place == "raw" else f"layer {place}")
        assert "was taken instead" in kept["fixed"][0]

    def test_x_is_named_where_a_layer_is_wrong(self, model):
        adata = simulate()
        adata.layers["log"] = np.log1p(adata.X)
        self.refused(model, adata, "leave `layer` out: adata.X holds", layer="log")

    @pytest.mark.parametrize("suffix", ["", "h5ad", "zarr"])
    def test_logarithms_are_undone(self, model, tmp_path, suffix):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        x = adata.X.toarray()
        for name, values in wrong_forms(x).items():
            if values.shape != x.shape or not name.startswith(("log", "sqrt")):
                continue
            adata.X = sparse.csr_matrix(values)
            self.refused(model, adata, "raw counts are expected: pass fix=True, .*normalize=False")
            data = adata
            if suffix:
                data = tmp_path / f"{name[:4]}{len(name)}.{suffix}"
                adata.write_zarr(data) if suffix == "zarr" else adata.write_h5ad(data)
            found = classify(model, data, fix=True, return_table=True, silent=True)
            pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(adata.X.toarray(), values)

    def test_normalised_counts_give_the_same_with_a_warning(self, model):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        adata.X = normalised(adata.X.toarray(), 1e6)
        with pytest.warns(UserWarning, match="of counts normalised to 1,000,000 per cell: to normalise them once more"):
            found = classify(model, adata, return_table=True)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)

    def test_scaled_values_alone_cannot_be_put_right(self, model):
        adata = simulate()
        adata.X = adata.X.toarray() - 1
        for fix in (True, False):
            self.refused(model, adata, "must not be negative, and no layer has them", fix=fix)

    def test_anything_goes_where_nothing_is_normalised(self, model):
        adata = simulate()
        adata.X = np.log1p(adata.X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            classify(model, adata, normalize=False, calibrate=False)

    def test_binary_values_are_refused_only_where_counts_are_at_hand(self, model):
        adata = simulate()
        adata.layers["counts"], adata.X = adata.X.copy(), adata.X.sign()
        self.refused(model, adata, 'only 0 and 1.*layer="counts"')
        del adata.layers["counts"]
        with pytest.warns(UserWarning, match="only 0 and 1"):
            classify(model, adata)

    def test_genes_by_case_or_another_column(self, model):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        named, adata.var_names = adata.var_names, [name.title() for name in adata.var_names]
        self.refused(model, adata, "ignore_case=True would match 30")
        pd.testing.assert_frame_equal(classify(model, adata, fix=True, return_table=True, silent=True), expected)
        adata.var["name"], adata.var_names = named, [f"x{i}" for i in range(30)]
        self.refused(model, adata, "gene_key='name' would match 30")
        pd.testing.assert_frame_equal(classify(model, adata, fix=True, return_table=True, silent=True), expected)
        adata.var_names = [*named[:8], *adata.var_names[8:]]
        with pytest.warns(UserWarning, match="finds 8 of the 30 genes of the model, gene_key='name' would find 30"):
            classify(model, adata)

    def test_another_species_is_named(self):
        names = [[f"{prefix}{i:011d}" for i in range(9)] for prefix in ("ENSG", "ENSMUSG")]
        module = eqx.nn.Linear(9, 2, key=jr.key(0))
        adata = ad.AnnData(np.eye(4, 9), var=pd.DataFrame(index=names[1]))
        found = preflight(Annotator(module, names[0], ["a", "b"]), adata)[2]
        assert "the data are of mouse, the model is of human: pass gene_map=" in found.problems[0]

    @pytest.mark.parametrize(
        "way", ["{}_ENSG00000167286", "ENSG00000167286.7_{}", "{}|12", "gene:{}", "{} ", "SYMBOL;{}", "human-{}"]
    )
    def test_names_with_something_around_them(self, model, way):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        adata.var_names = [way.format(name) for name in adata.var_names]
        said = f"fix=True, by which '{way.format('GENE0')}' is read as 'GENE0', would match 30 of them"
        self.refused(model, adata, re.escape(said))
        with pytest.warns(UserWarning, match="finds 0 of the 30 genes of the model, where .* which was taken, 30"):
            found = classify(model, adata, fix=True, return_table=True)
        pd.testing.assert_frame_equal(found, expected)

    @pytest.mark.parametrize("way", ["GRCh38_{}", "mm10___{}", "hg19_{}"])
    def test_prefixes_of_genomes_are_left_out_with_a_word(self, model, way):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        adata.var_names = [way.format(name) for name in adata.var_names]
        with pytest.warns(
            UserWarning, match=f"30 genes are found without .*: '{way.format('GENE0')}' is read as 'GENE0'"
        ):
            pd.testing.assert_frame_equal(classify(model, adata, return_table=True), expected)

    def test_of_two_genomes_the_one_that_is_the_models(self, model):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        other = simulate(seed=5)
        both = ad.AnnData(sparse.hstack([other.X, adata.X]).tocsr(), obs=adata.obs)
        names = [name.title() for name in adata.var_names]
        names[:4] = adata.var_names[:4]  # as H19 is of both species
        both.var_names = [f"mm10___{name}" for name in names] + [f"GRCh38_{name}" for name in adata.var_names]
        found = classify(model, both, ignore_case=True, return_table=True, silent=True)
        pd.testing.assert_frame_equal(found, expected)

    def test_cells_and_genes_that_are_swapped(self, model):
        adata = simulate()
        for fix in (False, True):
            message = "adata.obs_names would match 30 of them: cells and genes are swapped, pass adata.T"
            self.refused(model, adata.T.copy(), message, fix=fix)

    def test_a_gene_map_the_other_way_round(self, model):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        adata.var_names = [f"m{name}" for name in adata.var_names]
        table = {name[1:]: name for name in adata.var_names}
        self.refused(model, adata, "Its columns are swapped", gene_map=table)
        adata.var_names = ["GENE0", *adata.var_names[1:]]
        self.refused(model, adata, "gene_map with its columns swapped .* would match 30 of them", gene_map=table)
        with pytest.warns(UserWarning, match="gene_map with its columns swapped, which was taken, 30"):
            found = classify(model, adata, gene_map=table, fix=True, return_table=True)
        pd.testing.assert_frame_equal(found, expected)

    def test_antibodies_are_left_out_with_a_word(self, model):
        adata = simulate()
        expected = classify(model, adata, return_table=True)
        protein = np.random.default_rng(0).integers(500, 900, (adata.n_obs, 3))
        var = pd.DataFrame({"feature_types": ["Antibody Capture"] * 3 + ["Gene Expression"] * 30})
        both = ad.AnnData(
            sparse.hstack([protein, adata.X]).tocsr(),
            adata.obs,
            var.set_axis(["GENE3", "CD4", "CD8", *adata.var_names]),
        )
        with pytest.warns(UserWarning, match="Left out features that are not genes: 3 Antibody Capture"):
            pd.testing.assert_frame_equal(classify(model, both, return_table=True), expected)
        both.X = np.hstack([protein - 700.5, adata.X.toarray()])  # as proteins are that were normalised on their own
        pd.testing.assert_frame_equal(classify(model, both, return_table=True, silent=True), expected)

    def test_the_weight_of_genes_that_lack(self, model):
        adata = simulate()
        annotated = adata[:, :20].copy()
        classify(model, annotated, silent=True)
        share = annotated.uns["ginseng"]["preflight"]["genes"]["missing_weight"]
        rest = adata[:, 20:].copy()
        classify(model, rest, silent=True)
        assert 0 < share < 1
        assert share + rest.uns["ginseng"]["preflight"]["genes"]["missing_weight"] == pytest.approx(1, abs=1e-4)

    def test_what_is_kept_can_be_written(self, model, tmp_path):
        adata = simulate()
        adata.layers["a/b"] = np.log1p(adata.X)
        classify(model, adata, layer="a/b", fix=True, silent=True)
        kept = adata.uns["ginseng"]["preflight"]
        ad.AnnData(np.eye(2), uns={"ginseng": {"preflight": kept}}).write_h5ad(tmp_path / "x.h5ad")
        assert ad.read_h5ad(tmp_path / "x.h5ad").uns["ginseng"]["preflight"]["used"] == kept["used"] == "X"


class TestFloor:
    """A few names that are equal by chance are no match; those of a panel are."""

    @staticmethod
    def look(names, genes, weights=None, **options):
        found = matched_genes(pd.DataFrame(index=names), GeneNames(genes), weights=weights, **options)
        return found.problems

    def test_few_of_all_names_are_another_species(self):
        human, mouse = [f"GENE{i}" for i in range(1000)], [f"Gene{i}" for i in range(5000)]
        mouse[:12] = human[:12]
        (said,) = self.look(mouse, human)
        assert "Only 12 of 1,000 genes in common, where 50 are needed" in said
        assert "ignore_case=True would match 1,000 of them" in said
        assert not self.look(mouse, human, min_overlap=0.01)

    def test_panels_pass(self):
        genes = [f"GENE{i}" for i in range(1000)]
        assert not self.look(genes[:12] + [f"OTHER{i}" for i in range(200)], genes)
        assert not self.look(genes[:12], genes)
        assert self.look(genes[:9], genes)
        assert not self.look(genes[:9], genes, min_overlap=0.001)

    def test_few_genes_of_much_weight_pass(self):
        genes = [f"GENE{i}" for i in range(1000)]
        names = genes[:12] + [f"OTHER{i}" for i in range(5000)]
        weights = np.where(np.arange(1000) < 12, 100.0, 1.0)
        assert not self.look(names, genes, weights=lambda: weights)
        assert self.look(names, genes, weights=lambda: weights[::-1])

    def test_the_sum_of_other_genes_is_no_gene(self):
        genes = [*(f"GENE{i}" for i in range(1000)), OTHER_GENES]
        names = genes[:12] + [f"OTHER{i}" for i in range(5000)]
        assert self.look(names, genes, weights=lambda: np.append(np.ones(1000), 1e6))

    @pytest.mark.parametrize("n_panel", [50, 100, 300])
    def test_real_symbols(self, real_data, n_panel):
        human = read_adata(real_data("pancreas_baron_human_sub.h5ad"), backed=False)
        mouse = read_adata(real_data("pancreas_baron_mouse.h5ad"))
        select_markers(human, "cell_type", 1000, silent=True)
        genes = list(human.var_names[human.var["ginseng_genes"]])
        assert "ignore_case=True would match" in self.look(mouse.var_names, genes)[0]
        pbmc = read_adata(real_data("pbmc3k.h5ad"), backed=False)
        assert not self.look(pbmc.var_names, genes)
        select_markers(human, "cell_type", n_panel, silent=True)
        assert not self.look(human.var_names[human.var["ginseng_genes"]], genes)


class TestWhichMatrix:
    """Of X, layers and raw: what can be undone, and has most of the genes."""

    @pytest.fixture
    def whole(self, model):
        adata = simulate()
        return adata, classify(model, adata, return_table=True)

    def asked(self, model, adata, **options):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            table = classify(model, adata, return_table=True, **options)
        return table, " ".join(str(warning.message) for warning in told)

    def with_raw(self, adata, raw, n_genes, x):
        adata = ad.AnnData(raw, obs=adata.obs, var=adata.var)
        adata.raw = adata
        adata = adata[:, :n_genes].copy()
        adata.X = x[:, :n_genes]
        return adata

    @pytest.mark.parametrize("n_genes", [12, 30])
    @pytest.mark.parametrize("in_raw", ["log1p", "counts"])
    def test_x_is_scaled(self, model, whole, n_genes, in_raw):
        adata, expected = whole
        x = adata.X.toarray().astype(np.float64)
        logarithms = np.log1p(normalised(x, 1e4))
        raw = logarithms if in_raw == "log1p" else x
        scaled = self.with_raw(adata, raw, n_genes, logarithms - logarithms.mean(0))
        with pytest.raises(ValueError, match="holds scaled") as refused:
            classify(model, scaled, silent=True)
        way_out = {
            "log1p": 'pass layer="raw", fix=True',
            "counts": 'pass layer="raw"',
        }
        assert way_out[in_raw] in str(refused.value)
        assert "no layer has them" not in str(refused.value)
        for options in ({"fix": True}, {"layer": "raw", "fix": in_raw == "log1p"}):  # the advice is true
            found, told = self.asked(model, scaled, **options)
            pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
            assert "layer" in options or "adata.raw was taken instead" in told

    @pytest.mark.parametrize("form", ["counts", "log1p"])
    def test_raw_has_more_genes(self, model, whole, form, tmp_path):
        adata, expected = whole
        x = adata.X.toarray().astype(np.float64)
        raw = x if form == "counts" else np.log1p(normalised(x, 1e4))
        few = self.with_raw(adata, raw, 12, raw)
        if form == "counts":
            assert (
                "adata.raw has 30 of the model's 30 genes, adata.X 12 of the model's 30 genes: pass layer=\"raw\""
                in (self.asked(model, few)[1])
            )
        else:
            with pytest.raises(ValueError, match='pass layer="raw", fix=True'):
                classify(model, few)
        found, told = self.asked(model, few, fix=True)
        assert "adata.raw has 30 of the model's 30 genes, adata.X 12" in told
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
        few.write_h5ad(tmp_path / "x.h5ad")
        result = CliRunner().invoke(app, ["doctor", str(model), str(tmp_path / "x.h5ad")])
        assert result.exit_code == (0 if form == "counts" else 3)
        assert "adata.raw has 30 of the model's 30 genes" in result.output

    def test_counts_of_few_genes_beside_logarithms_of_all(self, model, whole):
        adata, expected = whole
        x = adata.X.toarray().astype(np.float64)
        few = self.with_raw(adata, np.log1p(normalised(x, 1e4)), 12, x)
        assert 'pass layer="raw", fix=True' in self.asked(model, few)[1]
        found, _ = self.asked(model, few, fix=True)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)

    def test_nothing_is_said_of_a_matrix_that_is_no_better(self, model, whole):
        adata, _ = whole
        x = adata.X.toarray().astype(np.float64)
        for raw, n_genes in ((x, 29), (x - x.mean(0), 12), (x[:, :12], 30)):
            var = adata.var.iloc[: raw.shape[1]]
            data = adata[:, :n_genes].copy()
            data.raw = ad.AnnData(raw, obs=adata.obs, var=var)
            for fix in (False, True):
                assert "adata.raw" not in self.asked(model, data, fix=fix)[1]

    @pytest.mark.parametrize("x", ["none", "zeros"])
    def test_an_empty_x_beside_a_layer_of_counts(self, model, whole, x):
        adata, expected = whole
        layers = {"counts": adata.X}
        empty = ad.AnnData(None if x == "none" else sparse.csr_matrix((120, 30)), adata.obs, adata.var, layers=layers)
        with pytest.raises(ValueError, match=r'adata.X has no count: pass layer="counts"'):
            classify(model, empty)
        found, told = self.asked(model, empty, fix=True)
        assert "adata.layers['counts'] was taken instead" in told
        pd.testing.assert_frame_equal(found, expected)

    def test_in_training_by_the_number_of_genes_that_are_asked_for(self, tmp_path):
        adata = simulate()
        few = self.with_raw(adata, adata.X.toarray(), 12, adata.X.toarray())
        how = {"label_key": "cell_type", "overwrite": True, "silent": True}
        create = functools.partial(GinsengDataset.create, tmp_path / "x.zarr", **how)
        with pytest.warns(UserWarning, match='adata.raw has 30 genes, adata.X 12 genes: pass layer="raw"'):
            assert create(few).n_genes == 12
        with pytest.warns(UserWarning, match="adata.raw was taken instead"):
            assert create(few, fix=True).n_genes == 30
        few.var["chosen"] = True
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", ".*have no count of the genes that are kept")
            assert create(few, genes=["GENE1", "GENE2"], fix=True).n_genes == 2
            assert create(few, genes="chosen", fix=True).n_genes == 12
        assert create(few, genes=["GENE1", "GENE20"], fix=True).gene_names == ["GENE1", "GENE20"]


class TestCreate:
    def test_counts_that_are_all_zero_are_refused_and_cells_without_any_told(self, tmp_path):
        adata = simulate()
        x = adata.X.toarray()
        x[:7] = 0
        adata.X = x
        with pytest.warns(UserWarning, match="7 of 120 cells have no count of the genes that are kept"):
            dataset = GinsengDataset.create(tmp_path / "x.zarr", adata, "cell_type", silent=True)
        assert dataset.n_cells == 120
        adata.X[:, :5] = 0
        for genes in (None, [f"GENE{i}" for i in range(5)]):
            adata.X = x if genes else sparse.csr_matrix(x.shape)
            if genes:
                adata.X[:, :5] = 0
            with pytest.raises(ValueError, match="has a count in any cell: there is nothing to train on"):
                GinsengDataset.create(tmp_path / "y.zarr", adata, "cell_type", genes=genes, silent=True)
            assert not (tmp_path / "y.zarr").exists()

    def test_counts_are_recovered(self, tmp_path):
        adata = simulate()
        x = adata.X.toarray()
        for values in (np.log1p(normalised(x, 1e4)), normalised(x, 1.0), np.sqrt(x)):
            adata.X = sparse.csr_matrix(values)
            dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", fix=True, silent=True)
            np.testing.assert_array_equal(next(dataset.stream(120, "all", shuffle=False))[0], x)
        assert "counts are recovered" in dataset.root.attrs["preflight"][0]["fixed"][0]

    def test_the_wrong_input_of_several_is_named_and_nothing_is_written(self, tmp_path):
        first, second = simulate(seed=1), simulate(seed=2)
        second.X = np.log1p(second.X)
        with pytest.raises(ValueError, match="In input 2 of 2: adata.X holds log1p of raw counts.*fix=True"):
            GinsengDataset.create(tmp_path / "c.zarr", [first, second], "cell_type", silent=True)
        assert not list(tmp_path.iterdir())
        second.layers["counts"] = simulate(seed=2).X
        dataset = GinsengDataset.create(tmp_path / "c.zarr", second, "cell_type", fix=True, silent=True)
        assert dataset.root.attrs["layer_used"] == "counts"


class TestDoctor:
    def ask(self, *args):
        result = CliRunner().invoke(app, ["doctor", *map(str, args)])
        return result.exit_code, result.output

    def test_it_tells_what_would_be_done(self, model, tmp_path):
        adata = simulate()
        adata.layers["counts"], adata.X = adata.X.copy(), np.log1p(adata.X)
        adata.write_h5ad(tmp_path / "x.h5ad")
        code, output = self.ask(model, tmp_path / "x.h5ad")
        assert code == 3
        assert "X (used): log1p of raw counts\nlayer counts: raw counts\ngenes: 30 of the model's 30" in output
        assert "pass --layer counts, which has raw counts; --fix does so" in output
        code, output = self.ask(model, tmp_path / "x.h5ad", "--fix")
        assert code == 0
        assert "put right: adata.X holds log1p of raw counts" in output
        assert self.ask(model, tmp_path / "x.h5ad", "--layer", "counts")[0] == 0
        assert self.ask(tmp_path / "x.h5ad")[0] == 3

    def test_it_looks_at_names_to_train_on(self, tmp_path):
        adata = simulate()
        adata.var = pd.DataFrame({"features": adata.var_names, "feature_types": "Gene Expression"}, map(str, range(30)))
        adata.var.iloc[0, 1], adata.var.iloc[2, 0] = "Peaks", "GENE3"
        adata.write_h5ad(tmp_path / "x.h5ad")
        code, output = self.ask(tmp_path / "x.h5ad")
        assert code == 0
        assert "warning: Left out features that are not genes: 1 Peaks." in output
        assert "adata.var['features'] has names: pass --gene-key features.\n" in output
        code, output = self.ask(tmp_path / "x.h5ad", "--gene-key", "features")
        assert code == 0
        assert "numbers" not in output
        assert "warning: 1 genes occur more than once in the data; their counts are summed." in output
        assert "which were taken" in self.ask(tmp_path / "x.h5ad", "--fix")[1]
        assert self.ask(tmp_path / "x.h5ad", "--gene-key", "none")[0] == 3

    @pytest.mark.parametrize(
        ("adata", "what"),
        [
            (ad.AnnData(np.zeros((0, 5), "f4")), "cell"),
            (ad.AnnData(np.zeros((5, 0), "f4")), "gene"),
            (ad.AnnData(sparse.csr_matrix((500, 30), dtype="f4"), var=simulate().var), "count"),
            (ad.AnnData(shape=(5, 30), var=simulate().var), "count"),
        ],
    )
    def test_nothing_to_annotate(self, model, tmp_path, adata, what):
        adata.write_h5ad(tmp_path / "x.h5ad")
        for args in ([model, tmp_path / "x.h5ad"], [tmp_path / "x.h5ad"]):
            code, output = self.ask(*args)
            assert code == 3
            assert f"has no {what}: there is nothing to annotate" in output
        counts = np.zeros((500, 30))
        counts[3] = 1
        ad.AnnData(counts, var=simulate().var).write_h5ad(tmp_path / "y.h5ad")
        assert self.ask(tmp_path / "y.h5ad")[0] == 0

    def test_labels_and_groups_that_are_named(self, tmp_path):
        adata = simulate()
        adata.obs["types"] = adata.obs["cell_type"].astype(str).replace({"NK cell": "Unknown", "T cell": "nan"})
        adata.obs["batch"] = np.where(np.arange(120) < 3, "NA", "b1")
        adata.obs["total"] = np.arange(120) / 8
        adata.write_h5ad(tmp_path / "x.h5ad")
        ask = functools.partial(self.ask, tmp_path / "x.h5ad", "--label")
        code, output = ask("types", "--group", "donor")
        n_without, n_unknown = ((adata.obs["types"] == name).sum() for name in ("nan", "Unknown"))
        assert code == 0
        assert f"labels: 2, of {120 - n_without} cells: B cell, Unknown\ngroups: 4: d1, d2, d3, d4\nX" in output
        assert f"warning: {n_without} of 120 cells have no label in adata.obs['types']" in output
        assert f"warning: {n_unknown} of {120 - n_without} cells are called 'Unknown'" in output
        code, output = ask("types", "--unlabeled", "Unknown")
        assert (code, "labels: 1" in output) == (0, True)
        for options, problem in (
            (["total"], "refused: adata.obs['total'] holds measurements"),
            (["cell_type", "--group", "batch"], "refused: 3 cells have no group in adata.obs['batch'] (3 say 'NA')"),
            (["celltype"], "refused: label column 'celltype' is not in adata.obs; did you mean 'cell_type'?"),
        ):
            code, output = ask(*options)
            assert code == 3
            assert problem in output

    def test_what_it_cannot_look_at(self, model, tmp_path):
        code, output = self.ask(tmp_path, model)
        assert code == 3
        assert "is a folder, where a model file is expected; were model and data swapped?" in output
        assert self.ask(model, tmp_path / "none.h5ad")[0] == 1
        assert self.ask(model, model, model)[0] == 2

    def test_fit_and_annotate_take_fix(self, tmp_path):
        adata = simulate()
        adata.X = np.log1p(adata.X)
        adata.write_h5ad(tmp_path / "x.h5ad")
        fit = ["fit", "x.h5ad", "--label", "cell_type", "-o", "m.h5", "--hidden-dim", "4", "--epochs", "1"]
        annotate = ["annotate", "m.h5", "x.h5ad", "-o", "x.csv"]
        for command in (fit, annotate):
            args = [str(tmp_path / arg) if "." in arg else arg for arg in command]
            refused = CliRunner().invoke(app, args)
            assert refused.exit_code == 3
            assert "pass --fix, by which this is undone" in refused.output
            assert not (tmp_path / command[command.index("-o") + 1]).exists()
            done = CliRunner().invoke(app, [*args, "--fix"])
            assert done.exit_code == 0, done.output
