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
    state_from_classifier_trainer,
)
from ginseng.cli import app
from ginseng.data.preflight import checked_counts, forms_of, preflight
from ginseng.data.readers import opened_counts, read_adata
from ginseng.model.annotator import Annotator
from ginseng.utils.forms import form_of
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
        assert form_of(checked_counts(ad.AnnData(x))[0].sample()).kind != "raw counts"


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
            self.refused(model, adata, "raw counts are expected: pass fix=True .*normalize=False")
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
            classify(model, adata, normalize=False)

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


class TestCreate:
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

    def test_what_it_cannot_look_at(self, model, tmp_path):
        code, output = self.ask(tmp_path, model)
        assert code == 2
        assert "is no model" in output
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
