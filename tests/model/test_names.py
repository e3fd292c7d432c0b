"""Symbols and identifiers: a dataset and a model keep both, and annotation matches by whichever fits."""

import re

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from ginseng import (
    GinsengClassifierTrainer,
    GinsengDataset,
    classify,
    load_annotator,
    load_model,
    read_adata,
    save_annotator,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.describe import describe_model
from ginseng.model.annotator import Annotator
from tests.conftest import simulate
from tests.train.models import QUICK

IDS = [f"ENSG{i:011d}" for i in range(30)]
GENES = [f"GENE{i}" for i in range(24, 4, -1)]


def with_ids(adata):
    adata.var = pd.DataFrame({"gene_ids": IDS}, adata.var_names)
    return adata


def by(adata, names):
    """The same cells with genes that have these names, and no others."""
    return ad.AnnData(adata.X, adata.obs, pd.DataFrame(index=np.asarray(names, dtype=object)))


def create(folder, adata, **options):
    return GinsengDataset.create(folder / "cells.zarr", adata, "cell_type", silent=True, **options)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    dataset = create(folder, with_ids(simulate()), genes=GENES, other_genes=True)
    trainer = GinsengClassifierTrainer(dataset, QUICK)
    trainer.fit(1, silent=True)
    save_model(state_from_classifier_trainer(trainer), folder / "m.h5")
    return folder / "m.h5"


class TestDataset:
    def test_identifiers_are_kept_with_the_genes_that_are_chosen(self, tmp_path):
        dataset = create(tmp_path, with_ids(simulate()), genes=GENES, other_genes=True)
        kept = [*(IDS[int(name.removeprefix("GENE"))] for name in GENES), ""]
        assert dataset.second_names == GinsengDataset(dataset.path).second_names == kept
        assert ad.read_zarr(dataset.path).var["gene_ids"].tolist() == kept

    def test_symbols_are_kept_where_identifiers_are_the_names(self, tmp_path):
        adata = with_ids(simulate())
        adata.var = pd.DataFrame({"feature_name": adata.var_names}, IDS)
        dataset = create(tmp_path, adata)
        assert dataset.second_names == [f"GENE{i}" for i in range(30)]
        assert ad.read_zarr(dataset.path).var["gene_symbols"].tolist() == dataset.second_names

    def test_without_other_names_there_are_none(self, dataset):
        assert dataset.second_names is None
        assert not len(ad.read_zarr(dataset.path).var.columns)

    def test_of_several_inputs_those_that_agree(self, tmp_path):
        first, second, third = with_ids(simulate(seed=1)), with_ids(simulate(seed=2))[:, ::-1].copy(), simulate(seed=3)
        second.var.loc["GENE7", "gene_ids"] = "ENSG00000999999"
        first.var.loc["GENE8", "gene_ids"] = np.nan
        dataset = create(tmp_path, [first, second, third])
        assert dataset.second_names == [*IDS[:7], "", *IDS[8:]]

    def test_names_that_have_changed_are_refused(self, tmp_path):
        dataset = create(tmp_path, with_ids(simulate()))
        for changed, message in (
            (IDS[::-1], "names, labels, groups or row ends have changed"),
            (IDS[1:], "`second_names` has 29 names, for 30 genes"),
            ([IDS[0]] * 30, "`second_names` must not name two genes the same"),
        ):
            dataset.root.attrs["second_names"] = changed
            with pytest.raises(ValueError, match=rf"cells.zarr.*is a damaged dataset: {message}"):
                GinsengDataset(dataset.path)


class TestModel:
    def test_files_keep_them(self, model_file, tmp_path):
        state = load_model(model_file)
        assert state.second_names.tolist() == [*(IDS[int(name.removeprefix("GENE"))] for name in GENES), ""]
        assert f"also named: {IDS[24]}, {IDS[23]}" in describe_model(state)
        annotator = Annotator.of(state)
        save_annotator(annotator, tmp_path / "a.eqx")
        assert load_annotator(tmp_path / "a.eqx", like=annotator.module).second_names == state.second_names.tolist()

    def test_names_that_have_changed_are_refused(self, model_file, tmp_path):
        with h5py.File(model_file) as old, h5py.File(tmp_path / "m.h5", "w") as new:
            for name in old:
                old.copy(name, new)
            new.attrs.update(old.attrs)
            new["names/second"][3] = IDS[0].encode()
        with pytest.raises(ValueError, match=r"m.h5.*have changed since they were written"):
            load_model(tmp_path / "m.h5")

    def test_fine_tuning_matches_by_them_and_keeps_them(self, model_file, tmp_path):
        dataset = create(tmp_path, by(simulate(seed=1), IDS))
        state = load_model(model_file)
        with pytest.warns(UserWarning, match=r"by dataset.gene_names with the second names .* finds 20 of 21"):
            trainer = GinsengClassifierTrainer(dataset, QUICK, start=state)
        assert trainer.second_names == state.second_names.tolist()
        trainer.fit(1, silent=True)
        expected = GinsengClassifierTrainer(create(tmp_path, simulate(seed=1)), QUICK, start=state)
        expected.fit(1, silent=True)
        assert trainer.logger.train_loss == expected.logger.train_loss


class TestClassify:
    def test_the_same_cells_with_symbols_and_with_identifiers(self, model_file, recwarn):
        adata = simulate(seed=1)
        expected = classify(model_file, adata, return_table=True, calibrate=False)
        assert not [each for each in recwarn if each.category is UserWarning]
        with pytest.warns(UserWarning) as warned:
            table = classify(model_file, by(adata, [f"{name}.3" for name in IDS]), return_table=True, calibrate=False)
        assert [str(each.message) for each in warned if each.category is UserWarning] == [
            "Genes are matched by adata.var_names with the second names of the model, which finds 20 of 21; "
            "adata.var_names with its names finds 0.",
            "20 genes are found without the version of their identifier, or the prefix of a genome: "
            f"'{IDS[5]}.3' is read as '{IDS[5]}'.",
        ]
        assert table.equals(expected)
        assert classify(model_file, by(adata, IDS), return_table=True, silent=True, target_sum=1e4).equals(expected)

    def test_second_names_of_the_data(self, model_file):
        adata = simulate(seed=1)
        expected = classify(model_file, adata, return_table=True)
        adata.var = pd.DataFrame({"gene_ids": IDS}, [f"old{i}" for i in range(30)])
        with pytest.warns(UserWarning, match=r"by adata.var\['gene_ids'\] with the second names .* finds 20 of 21"):
            assert classify(model_file, adata, return_table=True).equals(expected)

    def test_a_column_that_is_given_is_not_overruled(self, model_file):
        adata = with_ids(simulate())
        adata.var["wrong"] = [f"old{i}" for i in range(30)]
        with pytest.raises(ValueError, match="No gene in common.*gene_key=None would match 20 of them"):
            classify(model_file, adata, gene_key="wrong", silent=True)

    def test_orthologs_and_case(self, model_file, tmp_path):
        adata = simulate(seed=1)
        expected = classify(model_file, adata, return_table=True)
        mouse = by(adata, [f"Gene{i}" if i % 2 else f"m{i}" for i in range(30)])
        table = pd.DataFrame(
            {"mouse": [f"m{i}" for i in range(0, 30, 2)], "human": [f"GENE{i}" for i in range(0, 30, 2)]}
        )
        table.to_csv(tmp_path / "orthologs.tsv", sep="\t", index=False)
        for given in (table, tmp_path / "orthologs.tsv", dict(table.to_numpy())):
            found = classify(model_file, mouse, return_table=True, gene_map=given, ignore_case=True)
            assert found.equals(expected)
        with pytest.warns(UserWarning, match="10 of the 20 genes of the model are not in the data"):
            classify(model_file, mouse, return_table=True, gene_map=table)
        with pytest.raises(ValueError, match="No gene of the data is in `gene_map`, which maps GENE0 to m0"):
            classify(model_file, mouse, gene_map=table[["human", "mouse"]], silent=True)

    def test_several_orthologs_are_summed(self, model_file):
        adata = simulate(seed=1)
        expected = classify(model_file, adata, return_table=True)
        halves = np.random.default_rng(0).binomial(adata.X.toarray().astype(int), 0.5)
        both = np.hstack([halves, adata.X.toarray() - halves]).astype(np.float32)
        twice = ad.AnnData(both, adata.obs, pd.DataFrame(index=[*adata.var_names, *(f"b{i}" for i in range(30))]))
        with pytest.warns(UserWarning, match="20 genes occur more than once in the data; their counts are summed"):
            found = classify(model_file, twice, return_table=True, gene_map={f"b{i}": f"GENE{i}" for i in range(30)})
        np.testing.assert_allclose(found.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*are not in the data")
def test_real_cells_with_symbols_and_with_identifiers(real_data, tmp_path):
    adata = read_adata(real_data("10x/v3/filtered_feature_bc_matrix.h5"), backed=False)
    adata.obs["cell_type"] = np.where(np.asarray(adata.X.sum(axis=1)).ravel() > 100, "many", "few")
    trainer = GinsengClassifierTrainer(create(tmp_path, adata, genes=100), QUICK)
    trainer.fit(1, silent=True)
    state = state_from_classifier_trainer(trainer)
    assert all(re.fullmatch(r"ENSG\d{11}", name) for name in state.second_names)
    folder = real_data("10x/v3/filtered_feature_bc_matrix")
    both = classify(state, folder, return_table=True, silent=True)
    for names in (adata.var_names, adata.var["gene_ids"]):
        assert classify(state, by(adata, names), return_table=True, silent=True).equals(both)
