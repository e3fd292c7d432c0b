"""Genes that new data lack: their mean over training cells stands in for them."""

import dataclasses
import warnings

import anndata as ad
import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
import pytest

from ginseng import (
    AttentionClassifier,
    Ensemble,
    GinsengClassifierTrainer,
    GinsengDataset,
    classify,
    finetune,
    load_annotator,
    load_model,
    save_annotator,
    save_model,
    state_from_classifier_trainer,
)
from ginseng.metrics import score
from ginseng.model.annotator import Annotator
from ginseng.model.background import Background, background_of, lacking
from ginseng.utils.genes import OTHER_GENES
from tests.conftest import simulate
from tests.train.models import QUICK

RNG = np.random.default_rng(0)
NETWORK = AttentionClassifier(30, 3, 8, dropout_rate=0.0, target_sum=500.0, key=jr.key(0))
BACKGROUND = Background(RNG.random(30).astype(np.float32), RNG.dirichlet(np.ones(30)).astype(np.float32))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    dataset = GinsengDataset.create(folder / "cells.zarr", simulate(), "cell_type", silent=True)
    trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, members=2))
    trainer.fit(6, silent=True)
    save_model(state_from_classifier_trainer(trainer), folder / "m.h5")
    return folder / "m.h5"


def expected_logits(network, counts, is_lacking, kept):
    """Of inputs that are filled with the mean where genes lack, worked out gene by gene."""
    scaled = kept * network.target_sum * counts / counts.sum(axis=1, keepdims=True)
    inputs = np.where(is_lacking, BACKGROUND.expression, np.log1p(scaled))
    return jax.vmap(network.normalizing(normalize=False))(jnp.asarray(inputs, jnp.float32))


@pytest.mark.parametrize("n_lacking", [1, 9, 25])
def test_the_mean_stands_in(n_lacking):
    is_lacking = np.arange(30) < n_lacking
    counts = np.random.default_rng(1).poisson(3.0, (7, 30)) * ~is_lacking
    kept = max(0.5, 1 - BACKGROUND.share[is_lacking].sum())
    found = jax.vmap(lacking(NETWORK, BACKGROUND, is_lacking))(jnp.asarray(counts, jnp.float32))
    expected = expected_logits(NETWORK, counts, is_lacking, kept)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    both = lacking(Ensemble([NETWORK, NETWORK]), BACKGROUND, is_lacking)
    np.testing.assert_allclose(
        jax.vmap(both)(jnp.asarray(counts, jnp.float32)), jax.nn.log_softmax(expected), rtol=1e-3, atol=1e-4
    )


def test_means_over_cells():
    counts = np.random.default_rng(0).poisson(2.0, (50, 30))
    counts[3] = 0
    found = background_of(NETWORK, counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(found.share, shares.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.expression, np.log1p(500 * shares).mean(axis=0), rtol=1e-5)


def test_a_trained_model_knows_it_and_annotates_with_it(model_file):
    state, adata = load_model(model_file), simulate(n_cells=300, seed=0)
    some = adata[:, np.random.default_rng(5).permutation(30)[:15]].copy()
    with pytest.warns(UserWarning, match="15 of the 30 genes of the model .* take their mean over the training cells"):
        filled = classify(state, some, return_table=True)
    with pytest.warns(UserWarning, match="15 of the 30 genes of the model .* count as zero"):
        zeros = classify(dataclasses.replace(state, background=None), some, return_table=True)
    truth = adata.obs["cell_type"].astype(str)
    accuracy = [score(truth, table["ginseng_cell_type"].astype(str)).accuracy for table in (filled, zeros)]
    assert accuracy[0] > 0.9
    assert accuracy[0] >= accuracy[1]
    whole = classify(state, adata, return_table=True, silent=True)
    assert whole.equals(classify(dataclasses.replace(state, background=None), adata, return_table=True, silent=True))


def test_files_keep_it(model_file, tmp_path):
    state = load_model(model_file)
    some = simulate()[:, 5:].copy()
    expected = classify(state, some, return_table=True, silent=True)
    annotator = Annotator.of(state)
    save_annotator(annotator, tmp_path / "a.eqx")
    again = load_annotator(tmp_path / "a.eqx", like=annotator.module)
    assert classify(again, some, return_table=True, silent=True).equals(expected)
    with h5py.File(model_file) as old, h5py.File(tmp_path / "m.h5", "w") as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
        new["background/share"][3] += 0.1
    with pytest.raises(ValueError, match=r"m.h5.*have changed since they were written"):
        load_model(tmp_path / "m.h5")


def test_another_normalisation_does_without(model_file):
    some = simulate()[:, 5:].copy()
    state = load_model(model_file)
    without = dataclasses.replace(state, background=None)
    tables = [classify(each, some, target_sum=100.0, return_table=True, silent=True) for each in (state, without)]
    assert tables[0].equals(tables[1])


def test_fine_tuning_keeps_it(model_file, tmp_path):
    state = load_model(model_file)
    dataset = GinsengDataset.create(tmp_path / "new.zarr", simulate(seed=1), "cell_type", silent=True)
    trainer = GinsengClassifierTrainer(dataset, QUICK, start=state)
    for means, expected in zip(trainer.background, state.background, strict=True):
        np.testing.assert_array_equal(means, expected)


def test_genes_that_are_0_in_fine_tuning_are_0_afterwards(model_file, tmp_path):
    some = simulate(seed=1)[:, 5:].copy()
    dataset = GinsengDataset.create(tmp_path / "new.zarr", some, "cell_type", silent=True)
    with pytest.warns(UserWarning, match="5 of the 30 genes of the model .* count as zero"):
        trainer = GinsengClassifierTrainer(dataset, QUICK, start=model_file)
    for means, before in zip(trainer.background, load_model(model_file).background, strict=True):
        np.testing.assert_array_equal(means, np.where(np.arange(30) < 5, 0, before))


def test_one_of_other_genes_is_refused(model_file):
    state = load_model(model_file)
    with pytest.raises(ValueError, match="`background` must have a finite mean for each of the 30 genes"):
        dataclasses.replace(state, background=Background(np.zeros(29), np.zeros(29)))
    names = state.genes.tolist(), state.label_keys.tolist()
    with pytest.raises(ValueError, match="`background` must have a finite mean for each of the 30 genes"):
        Annotator(NETWORK, *names, background=Background(np.full(30, np.nan), np.zeros(30)))
    with pytest.raises(ValueError, match="`background` is of an AttentionClassifier"):
        Annotator(eqx.nn.Linear(30, 3, key=jr.key(0)), *names, background=BACKGROUND)


def test_members_that_disagree_have_a_spread(model_file):
    state, adata = load_model(model_file), simulate(n_cells=50)
    state.members[0]["head"]["b"] = state.members[0]["head"]["b"] + np.array([3.0, 0.0, 0.0], np.float32)
    table = classify(state, adata, return_table=True, silent=True)
    alone = [
        classify(dataclasses.replace(state, params=params, members=[]), adata, return_table=True, silent=True)
        for params in (state.params, *state.members)
    ]
    assert "ginseng_spread" not in alone[0]
    best = np.asarray(table["ginseng_cell_type"].cat.codes)
    of_best = [each[state.output_labels].to_numpy()[np.arange(50), best] for each in alone]
    np.testing.assert_allclose(table["ginseng_spread"], np.std(of_best, axis=0), rtol=1e-3, atol=1e-5)
    classify(state, adata, silent=True)
    np.testing.assert_array_equal(adata.obs["ginseng_spread"], table["ginseng_spread"])
    classify(dataclasses.replace(state, members=[]), adata, silent=True)
    assert "ginseng_spread" not in adata.obs
    rounded = classify(state, adata, precision="bfloat16", return_table=True, silent=True)
    np.testing.assert_allclose(rounded[state.output_labels], table[state.output_labels], atol=0.05)


class TestTheSumOfOtherGenes:
    """An input of a model that data lack which were cut to its genes."""

    @pytest.fixture(scope="class")
    def state(self, tmp_path_factory):
        how = {"genes": 20, "other_genes": True, "silent": True}
        dataset = GinsengDataset.create(tmp_path_factory.mktemp("rest") / "c.zarr", simulate(), "cell_type", **how)
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        trainer.fit(6, silent=True)
        return state_from_classifier_trainer(trainer)

    def asked(self, state, adata):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            table = classify(state, adata, return_table=True)
        return table, " ".join(str(warning.message) for warning in told)

    def test_it_takes_its_mean_where_there_are_none_or_too_few(self, state):
        adata, is_rest = simulate(seed=3), state.genes == OTHER_GENES
        others = [name for name in adata.var_names if name not in state.genes]
        cut = adata[:, [name for name in adata.var_names if name in state.genes]].copy()
        table, told = self.asked(state, cut)
        assert "The data have no genes beside the model's: the sum of these" in told
        assert "takes its mean over the training cells" in told
        assert "are not in the data" not in told  # it is no gene
        x = np.hstack([cut[:, state.genes[~is_rest]].X.toarray(), np.zeros((cut.n_obs, 1))])
        share = float(state.background.share[is_rest][0])
        network = state.networks[0].normalizing(target_sum=state.target_sum * (1 - share))
        inputs = jax.vmap(network.normalized)(jnp.asarray(x, jnp.float32)) + is_rest * state.background.expression
        logits = jax.vmap(eqx.nn.inference_mode(network.normalizing(normalize=False)))(inputs)
        expected = state.output_labels[np.asarray(logits).argmax(axis=1)]
        assert (table["ginseng_cell_type"].astype(str) == expected).mean() > 0.98

        sums = np.asarray(adata[:, others].X.sum(axis=0)).ravel()
        few = adata[:, [*cut.var_names, others[int(sums.argmin())]]].copy()
        with_few, told = self.asked(state, few)
        assert f"few genes beside the model's, with 1% of the counts where they had {share:.0%} in training" in told
        pd.testing.assert_frame_equal(with_few, table)

    def test_nothing_is_said_where_it_is_known(self, state, tmp_path):
        adata = simulate(seed=3)
        table, told = self.asked(state, adata)
        assert "beside the model's" not in told
        how = {"genes": [*state.genes[:-1]], "other_genes": True, "silent": True}
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", **how)
        assert dataset.gene_names == [*state.genes]
        given, told = self.asked(state, ad.read_zarr(dataset.path))
        assert "beside the model's" not in told
        np.testing.assert_allclose(given["ginseng_confidence"], table["ginseng_confidence"], rtol=1e-4)

    def test_the_matrix_that_has_them_is_named(self, state):
        adata = simulate(seed=3)
        adata.raw = adata
        cut = adata[:, adata.var_names.isin(state.genes)].copy()
        assert "adata.X 20 of the model's 20 genes and no others: pass layer=" in self.asked(state, cut)[1]

    def test_fine_tuning_on_data_without_them_fills_it(self, state, tmp_path):
        cut = simulate(seed=4)[:, simulate().var_names.isin(state.genes)].copy()
        dataset = GinsengDataset.create(tmp_path / "c.zarr", cut, "cell_type", silent=True)
        with pytest.warns(UserWarning, match="1 of the 21 genes of the model are not in the data and take their mean"):
            tuned = finetune(state, dataset, epochs=1, silent=True)
        assert tuned.state.genes.tolist() == state.genes.tolist()
