"""Several classifiers under one loss: a module with an output for the labels, and one for each of further columns."""

import shutil

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import ginseng
from ginseng import AttentionClassifier, GinsengDataset, Trainer
from ginseng.model.annotator import Annotator
from ginseng.model.ensemble import Ensemble
from ginseng.train import Recipe, Sampling
from tests.conftest import simulate
from tests.train.models import assert_same_weights

SAMPLING = Sampling(batch_size=32)
FAST = Recipe(optimizer=optax.adam(1e-2))


class TwoHeads(eqx.Module):
    """Types and tissues from the same features, as in the guides."""

    trunk: AttentionClassifier
    tissue: eqx.nn.Linear

    def __init__(self, n_genes, n_types, n_tissues, key, dropout_rate=0.1):
        trunk_key, tissue_key = jr.split(key)
        self.trunk = AttentionClassifier(n_genes, n_types, 8, dropout_rate=dropout_rate, key=trunk_key)
        self.tissue = eqx.nn.Linear(n_genes, n_tissues, key=tissue_key)

    def __call__(self, x, *, key=None):
        features = self.trunk.features(x, key=key)
        return self.trunk.head(features), self.tissue(features)


def two_heads(n_tissues=2, seed=0, **options):
    return TwoHeads(30, 3, n_tissues, jr.key(seed), **options)


@pytest.fixture
def adata():
    """Cells of three types and two tissues, which ten genes tell apart; of some the tissue is not known."""
    adata = simulate(n_cells=240)
    rng = np.random.default_rng(1)
    tissue = rng.choice(["blood", "skin"], 240).astype(object)
    counts = adata.X.toarray()
    counts[:, 20:] = rng.poisson(np.where(tissue == "skin", 8.0, 1.0)[:, None], (240, 10))
    adata.X = counts.astype(np.float32)
    adata.obs["truth"] = tissue
    tissue[:60] = [None, ""] * 30
    adata.obs["tissue"] = tissue
    return adata


@pytest.fixture
def dataset(adata, tmp_path):
    made = GinsengDataset.create(
        tmp_path / "cells.zarr", adata, "cell_type", group_key="donor", further=["tissue"], silent=True
    )
    made.make_split(0.25)
    return made


class TestColumns:
    def test_a_further_column_is_kept_with_what_it_lacks(self, adata, dataset):
        names, codes = GinsengDataset(dataset.path).column("tissue")
        assert names == ["blood", "skin"]
        assert (codes[:60] == -1).all()
        assert [names[code] for code in codes[60:]] == adata.obs["truth"].iloc[60:].tolist()

    def test_groups_and_labels_are_columns_too(self, dataset):
        for name, names, codes in (
            ("donor", dataset.group_names, dataset.groups),
            ("cell_type", dataset.label_names, dataset.labels),
        ):
            assert dataset.column(name)[0] == names
            np.testing.assert_array_equal(dataset.column(name)[1], codes)

    def test_an_unknown_column_is_named(self, dataset, adata, tmp_path):
        with pytest.raises(ValueError, match="column 'tisue' is not in the dataset.*did you mean 'tissue'"):
            Trainer(two_heads(), dataset, further=["tisue"])
        with pytest.raises(ValueError, match="further column 'tisue' is not in adata.obs.*did you mean 'tissue'"):
            GinsengDataset.create(tmp_path / "other.zarr", adata, "cell_type", further=["tisue"], silent=True)

    def test_a_column_that_says_nothing_is_refused(self, adata, tmp_path):
        adata.obs["empty"] = None
        with pytest.raises(ValueError, match="'empty'.*says nothing"):
            GinsengDataset.create(tmp_path / "other.zarr", adata, "cell_type", further=["empty"], silent=True)

    def test_values_that_have_gone_are_noticed(self, dataset):
        shutil.rmtree(dataset.path / "obs" / "tissue" / "codes" / "c")
        with pytest.raises(ValueError, match="damaged dataset.*'tissue'"):
            dataset.column("tissue")


class TestTraining:
    def test_both_outputs_are_learnt(self, dataset):
        trainer = Trainer(two_heads(), dataset, FAST, SAMPLING, further=["tissue"])
        trainer.fit(15, silent=True)
        scores = trainer.holdout_scores
        assert scores.accuracy > 0.8
        assert scores.further["tissue"].accuracy > 0.8
        codes = dataset.column("tissue")[1][dataset.test_idx]
        confusion = scores.further["tissue"].confusion
        assert list(confusion.index) == ["blood", "skin"]
        np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(codes[codes >= 0]))
        logits, labels = trainer.answers("test")
        np.testing.assert_array_equal(labels, dataset.labels[dataset.test_idx])
        assert (logits.argmax(axis=1) == labels).mean() == scores.accuracy

    def test_an_ensemble_of_them(self, dataset):
        trainer = Trainer(Ensemble([two_heads(), two_heads(seed=1)]), dataset, FAST, SAMPLING, further=["tissue"])
        trainer.fit(15, silent=True)
        assert trainer.holdout_scores.further["tissue"].accuracy > 0.8

    def test_the_loss_is_the_sum_over_what_is_known(self, dataset):
        model = two_heads(dropout_rate=0.0)
        trainer = Trainer(model, dataset, Recipe(optimizer=optax.sgd(0.0)), SAMPLING, further=["tissue"])
        trainer.fit(1, silent=True)
        codes = dataset.column("tissue")[1]
        for cells, part, found in (
            (dataset.train_idx, "train", trainer.logger.train_loss[0]),
            (dataset.test_idx, "test", trainer.logger.holdout_loss[0]),
        ):
            x, y = next(dataset.stream(1000, part, shuffle=False))
            types, tissues = eqx.filter_vmap(model)(jnp.asarray(x))
            known = codes[cells] >= 0
            loss = optax.softmax_cross_entropy_with_integer_labels
            total = loss(types, y).sum() + loss(tissues[known], codes[cells][known]).sum()
            assert found == pytest.approx(float(total) / len(cells), rel=1e-4)

    def test_cells_of_which_nothing_is_known_leave_a_head_as_it_is(self, adata, tmp_path):
        adata.obs.loc[adata.obs_names[:-1], "tissue"] = None
        one = GinsengDataset.create(tmp_path / "one.zarr", adata, "cell_type", further=["tissue"], silent=True)
        one = one.divided(np.arange(239), np.array([239]))
        before = two_heads(n_tissues=1)
        after = Trainer(before, one, FAST, SAMPLING, further=["tissue"]).fit(1, silent=True)
        assert_same_weights(before.tissue, after.tissue)
        assert_same_weights(before.trunk, after.trunk, same=False)

    def test_a_view_with_cells_left_out(self, dataset):
        view = dataset.renamed({"T cell": None})
        model = TwoHeads(30, 2, 4, jr.key(0))
        trainer = Trainer(model, view, FAST, SAMPLING, further=["donor"])
        trainer.fit(1, silent=True)
        assert trainer.holdout_scores.further["donor"].table["cells"].sum() == len(view.test_idx)

    def test_after_a_kill_it_ends_with_the_same_weights_bit_by_bit(self, dataset, tmp_path, monkeypatch):
        def trainer():
            return Trainer(two_heads(), dataset, FAST, SAMPLING, further=["tissue"], patience=3)

        whole = trainer()
        whole.fit(4, silent=True)
        killed, validate, calls = trainer(), Trainer._validate, []

        def dying(self):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return validate(self)

        monkeypatch.setattr(Trainer, "_validate", dying)
        with pytest.raises(KeyboardInterrupt):
            killed.fit(4, silent=True, checkpoint=tmp_path / "run")
        again = trainer()
        again.fit(4, silent=True, checkpoint=tmp_path / "run")
        assert_same_weights(whole.model, again.model)
        ended = trainer()
        ended.fit(4, silent=True, checkpoint=tmp_path / "run")  # reads scores as they were saved
        for name in ("confusion", "table"):
            of_whole, of_ended = (getattr(one.holdout_scores.further["tissue"], name) for one in (whole, ended))
            assert of_whole.equals(of_ended)

    def test_a_checkpoint_of_other_columns_is_refused(self, dataset, tmp_path):
        Trainer(two_heads(4), dataset, FAST, SAMPLING, further=["donor"]).fit(1, silent=True, checkpoint=tmp_path)
        with pytest.raises(ValueError, match="another run.*further"):
            Trainer(two_heads(2), dataset, FAST, SAMPLING, further=["tissue"]).fit(1, True, checkpoint=tmp_path)

    @pytest.mark.parametrize(
        ("model", "further", "message"),
        [
            (two_heads(5), ["tissue"], r"tuple of logits of shapes \[\(3,\), \(2,\)\].*has shape \(5,\)"),
            (two_heads(), ["tissue", "donor"], r"shapes \[\(3,\), \(2,\), \(4,\)\].*it has 2 outputs"),
            (two_heads().trunk, ["tissue"], "its output is not a tuple"),
            (two_heads(), [], r"logits of shape \(3,\).*its output is a tuple"),
            (two_heads(), "tissue", r"must be a list of columns, such as \['tissue'\]"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, dataset, model, further, message):
        with pytest.raises(ValueError, match=message):
            Trainer(model, dataset, FAST, SAMPLING, further=further)

    def test_old_data_are_for_labels_alone(self, dataset):
        with pytest.raises(ValueError, match="leave out `old`, or `further`"):
            Trainer(two_heads(), dataset, FAST, SAMPLING, further=["tissue"], old=dataset)


def test_each_output_annotates_by_composition(adata, dataset, tmp_path):
    trained = Trainer(two_heads(), dataset, FAST, SAMPLING, further=["tissue"]).fit(15, silent=True)
    for nth, labels, truth in ((0, dataset.label_names, "cell_type"), (1, dataset.column("tissue")[0], "truth")):
        one = eqx.nn.Sequential([trained, eqx.nn.Lambda(lambda outputs, nth=nth: outputs[nth])])
        table = ginseng.classify(Annotator(one, dataset.gene_names, labels), adata, return_table=True, silent=True)
        assert (table["ginseng_cell_type"].to_numpy() == adata.obs[truth].to_numpy()).mean() > 0.8
