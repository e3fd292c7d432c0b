import dataclasses

import anndata as ad
import equinox as eqx
import h5py
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginseng import Annotator, classify, load_annotator, load_model, save_annotator, save_model
from ginseng.metrics import ece
from ginseng.model.calibration import (
    LEAST_CELLS,
    Calibration,
    calibration_of,
    distances_in_parts,
    fitted_temperature,
    geometry_of,
)
from ginseng.model.forward import Answer
from ginseng.model.instance import GinsengClassifier
from ginseng.model.judgement import Judgement
from ginseng.model.state import GinsengClassifierState

TYPES = ["B", "T", "mono"]


def cells_of(n_cells=900, n_types=3, seed=0, scale=1.0, apart=5.0):
    """Logits of cells of known types, as a classifier might give them."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, n_types, n_cells))
    logits = rng.normal(size=(n_cells, n_types)) + apart * np.eye(n_types)[labels]
    return (scale * logits).astype(np.float32), labels


def calibrated(logits, labels, source="holdout"):
    geometry = geometry_of(logits, labels)
    found = calibration_of(source, geometry, logits, labels, distances_in_parts(geometry, logits))
    assert found is not None
    return found


class TestConfidence:
    def test_temperature_undoes_what_logits_are_stretched_by(self):
        logits, labels = cells_of(5000, apart=2.0)
        assert fitted_temperature(3 * logits, labels, labels * 0) == pytest.approx(
            3 * fitted_temperature(logits, labels, labels * 0), rel=0.01
        )

    def test_it_stays_finite_where_every_cell_is_right(self):
        logits, labels = cells_of(50, apart=50.0)
        assert 0.04 < fitted_temperature(logits, labels, labels * 0) < 1

    def test_a_donor_for_which_the_network_fails_does_not_sway_the_others(self):
        logits, labels = cells_of(3000, apart=3.0)
        donors = np.arange(3000) % 3
        failed = np.where(donors == 2, (labels + 1) % 3, labels)
        assert fitted_temperature(logits, failed, donors * 0) > 2 * fitted_temperature(logits, labels, donors)
        assert fitted_temperature(logits, failed, donors) == pytest.approx(
            fitted_temperature(logits, labels, donors), rel=0.15
        )

    def test_confidence_becomes_accuracy(self):
        logits, labels = cells_of(6000, apart=2.0, scale=4.0)
        calibration = calibrated(logits[::2], labels[::2])
        before = np.exp(logits - logits.max(axis=1, keepdims=True))
        before = (before / before.sum(axis=1, keepdims=True))[1::2]
        after = calibration.probabilities(logits[1::2])
        is_right = after.argmax(axis=1) == labels[1::2]
        np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
        assert ece(after.max(axis=1), is_right) < 0.03 < ece(before.max(axis=1), is_right)
        table = calibration.table()
        assert table.loc["after", "nll"] < table.loc["before", "nll"]

    @given(st.floats(0.05, 20), st.integers(0, 10))
    @settings(max_examples=25, deadline=None)
    def test_labels_never_change(self, temperature, seed):
        logits, labels = cells_of(60, seed=seed, apart=0.5)
        calibration = dataclasses.replace(calibrated(logits, labels), temperature=temperature)
        np.testing.assert_array_equal(calibration.probabilities(logits).argmax(axis=1), logits.argmax(axis=1))


class TestPromises:
    @pytest.mark.parametrize("error", [0.05, 0.1, 0.3])
    def test_the_true_type_is_left_out_for_few_cells_of_each_type(self, error):
        logits, labels = cells_of(18000, apart=1.0)
        calibration = calibrated(logits[::2], labels[::2])
        p_values, truth = calibration.p_values(logits[1::2]), labels[1::2]
        is_left_out = p_values[np.arange(len(truth)), truth] <= error
        assert all(is_left_out[truth == nth].mean() < error + 0.025 for nth in range(3))

    def test_types_of_few_cells_are_pooled(self):
        logits, labels = cells_of(400, apart=1.0)
        of_few = np.flatnonzero(labels == 2)[LEAST_CELLS - 1 :]
        kept = np.setdiff1d(np.arange(len(labels)), of_few)
        pooled = calibrated(logits[kept], labels[kept]).p_values(logits)
        own = calibrated(logits, labels).p_values(logits)
        assert pooled[:, 2].min() < 1 / LEAST_CELLS, "by all cells, since those of few are too few even together"
        assert not np.allclose(pooled[:, 2], own[:, 2])

    def test_known_cells_are_seldom_novel_and_strange_ones_are(self):
        logits, labels = cells_of(4000)
        calibration = calibrated(logits[::2], labels[::2])
        of_known = calibration.novelty(distances_in_parts(calibration.geometry, logits[1::2]))
        strange = np.array([[30, 30, -30], [-40, 0, 0]], np.float32)
        of_strange = calibration.novelty(distances_in_parts(calibration.geometry, strange))
        assert 0.03 < (of_known >= 0.95).mean() < 0.07
        assert (of_strange >= 0.999).all() and (of_known < 1).all()

    @pytest.mark.parametrize("target", [0.05, 0.1, 0.15])
    def test_the_error_among_confident_cells_is_below_the_target(self, target):
        logits, labels = cells_of(8000, apart=1.5)
        calibration = calibrated(logits[::2], labels[::2])
        probabilities = calibration.probabilities(logits[1::2])
        is_kept = probabilities.max(axis=1) >= calibration.least_confidence(target)
        is_wrong = probabilities.argmax(axis=1) != labels[1::2]
        assert is_wrong.mean() > target
        assert is_wrong[is_kept].mean() < target
        assert is_kept.mean() > 0.1

    def test_donors_that_err_together_make_it_more_careful(self):
        logits, labels = cells_of(4000, apart=2.0)
        alone = calibrated(logits, labels)
        donors = np.random.default_rng(0).integers(0, 6, len(labels))
        like_others = dataclasses.replace(alone, groups=donors)
        is_right = logits.argmax(axis=1) == labels
        of_the_bad = np.where(is_right, donors, 0)  # all errors in one donor
        with_a_bad_one = dataclasses.replace(alone, groups=of_the_bad)
        least = [each.least_confidence(0.1) for each in (alone, like_others, with_a_bad_one)]
        assert least[0] <= least[1] < least[2]

    def test_no_confidence_will_do_where_all_cells_are_wrong(self):
        logits, labels = cells_of(100)
        assert calibrated(logits, (labels + 1) % 3).least_confidence(0.05) == np.inf

    def test_every_confidence_will_do_where_nearly_all_are_right(self):
        logits, labels = cells_of(900, apart=20.0)
        calibration = calibrated(logits, labels)
        assert calibration.least_confidence(0.05) == calibration.confidence()[0].min()

    def test_types_without_held_out_cells_promise_nothing(self):
        logits, labels = cells_of(900)
        calibration = calibrated(logits[labels < 2], labels[labels < 2])
        judgement = Judgement(TYPES, np.array([False, False, True]), calibration)
        nothing = np.zeros(len(logits), np.float32)
        columns, probabilities = judgement(Answer(logits, nothing, logits, nothing, nothing > 0))
        assert "status" not in columns and (probabilities[:, 2] == 1).all()
        assert judgement.thresholds() == {"least_confidence": np.inf}

    def test_what_cannot_be_is_left_out_of_both_sides(self):
        logits, labels = cells_of(900, apart=1.0)
        restricted = calibrated(logits, labels).among(np.array([True, False, True]))
        assert set(restricted.labels) == {0, 2}
        np.testing.assert_array_equal(restricted.probabilities(restricted.logits)[:, 1], 0)
        assert len(restricted.distances) == len(restricted.labels) == len(restricted.logits)


class TestParts:
    def test_types_without_training_cells_have_no_place(self):
        logits, labels = cells_of(300)
        geometry = geometry_of(logits, np.where(labels == 2, 1, labels))
        distances = distances_in_parts(geometry, logits)
        assert np.isfinite(distances).all() and np.isnan(geometry.means[2]).all()

    def test_too_few_cells_tell_nothing(self):
        logits, labels = cells_of(LEAST_CELLS - 1)
        geometry = geometry_of(logits, labels)
        assert calibration_of("holdout", geometry, logits, labels, distances_in_parts(geometry, logits)) is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": np.full(900, 3)}, "labels among the outputs"),
            ({"temperature": 0.0}, "temperature"),
            ({"temperature": np.nan}, "temperature"),
            ({"distances": np.full(900, np.nan)}, "finite"),
            ({"logits": np.full((900, 3), np.nan, np.float32)}, "finite"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(calibrated(*cells_of(900)), **change)


@pytest.fixture
def state():
    model = GinsengClassifier(4, 3, 8)
    calibration = calibrated(*cells_of(300, scale=0.3))
    sizes = {"n_genes": 4, "n_classes": 3, "hidden_dim": 8}
    return GinsengClassifierState(
        model.params, list("abcd"), TYPES, [0, 1, 2], **sizes, normalize=True, target_sum=1e4, dropout_rate=0.2,
        calibration=calibration,
    )  # fmt: skip


@pytest.fixture
def adata():
    counts = np.random.default_rng(0).poisson(2.0, (40, 4)).astype("float32")
    counts[3] = 0
    cells = ad.AnnData(counts)
    cells.var_names = list("abcd")
    return cells


class TestFiles:
    def test_a_calibration_is_kept_with_the_model(self, state, adata, tmp_path):
        save_model(state, tmp_path / "m.h5")
        loaded = load_model(tmp_path / "m.h5")
        expected = classify(state, adata, return_table=True, silent=True)
        found = classify(loaded, adata, return_table=True, silent=True)
        assert found.equals(expected)
        assert isinstance(loaded.calibration, Calibration)
        assert loaded.calibration.source == "holdout"

    @pytest.mark.parametrize("name", ["temperature", "means", "logits", "labels"])
    def test_damage_is_noticed(self, state, tmp_path, name):
        save_model(state, tmp_path / "m.h5")
        with h5py.File(tmp_path / "m.h5", "a") as file:
            file[f"calibration/{name}"][...] = file[f"calibration/{name}"][()] * 0 + 1
        with pytest.raises(ValueError, match=r"m\.h5 is no whole ginseng model"):
            load_model(tmp_path / "m.h5")

    def test_one_of_another_model_is_refused(self, state):
        with pytest.raises(ValueError, match="of 2 types, but the model has 3"):
            dataclasses.replace(state, calibration=calibrated(*cells_of(60, n_types=2)))

    def test_it_goes_with_an_annotator(self, state, adata, tmp_path):
        module = eqx.nn.Linear(4, 3, key=jr.key(0))
        annotator = Annotator(module, list("abcd"), TYPES, calibration=state.calibration)
        save_annotator(annotator, tmp_path / "a.eqx")
        loaded = load_annotator(tmp_path / "a.eqx", like=module)
        expected = classify(annotator, adata, return_table=True, silent=True)
        assert classify(loaded, adata, return_table=True, silent=True).equals(expected)


class TestClassify:
    def test_what_is_told_of_each_cell(self, state, adata):
        classify(state, adata, silent=True)
        assert set(adata.obs["ginseng_status"].cat.categories) == {"assigned", "ambiguous", "novel"}
        assert not [name for name in adata.obs if set(name) & set("/(-")]
        empty = adata.obs.iloc[3]
        assert empty["ginseng_confidence"] == 0 and empty[["ginseng_cell_type", "ginseng_status"]].isna().all()
        known = adata.obs.drop(adata.obs_names[3])
        assert (known["ginseng_novelty"] >= 0.95).eq(known["ginseng_status"] == "novel").all()
        assert (known["ginseng_second"].astype(str) != known["ginseng_cell_type"].astype(str)).all()
        assert known["ginseng_margin"].between(0, known["ginseng_confidence"]).all()
        named = known["ginseng_candidates"][known["ginseng_candidates"] != ""]
        assert (known.loc[named.index, "ginseng_status"] == "ambiguous").all()
        assert len(named) == (known["ginseng_status"] == "ambiguous").sum()
        for types, best in zip(named, known.loc[named.index, "ginseng_cell_type"], strict=True):
            assert best in types.split("; ") and len(types.split("; ")) > 1

    def test_labels_are_those_of_the_network(self, state, adata):
        with_it, without = (
            classify(state, adata, return_table=True, silent=True, calibrate=calibrate) for calibrate in (True, False)
        )
        assert with_it["ginseng_cell_type"].equals(without["ginseng_cell_type"])
        assert not np.allclose(with_it["ginseng_confidence"], without["ginseng_confidence"])
        assert without.columns.tolist() == ["ginseng_cell_type", "ginseng_confidence", *TYPES]

    def test_a_data_set_that_differs_is_told(self, state, adata):
        distances = np.zeros_like(state.calibration.distances)
        state = dataclasses.replace(state, calibration=dataclasses.replace(state.calibration, distances=distances))
        with pytest.warns(UserWarning, match="this data set differs"):
            classify(state, adata, return_table=True)

    def test_a_looser_promise_leaves_fewer_cells_ambiguous(self):
        logits, labels = cells_of(900, apart=1.0)
        calibration, nothing = calibrated(logits, labels), np.zeros(len(logits), np.float32)

        def n_ambiguous(**promise):
            judgement = Judgement(TYPES, np.ones(3, bool), calibration, **promise)
            columns, _ = judgement(Answer(logits, nothing, logits, nothing, nothing > 0))
            assert (columns["candidates"] != "").tolist() == (columns["status"] == "ambiguous").tolist()
            return (columns["status"] == "ambiguous").sum()

        assert n_ambiguous(class_error=0.01) > n_ambiguous(class_error=0.6)
        assert n_ambiguous(target_error=0.05) > n_ambiguous(target_error=0.2) > n_ambiguous(target_error=0.9) == 0

    @pytest.mark.parametrize(
        ("promise", "message"),
        [
            ({"target_error": 0.05, "class_error": 0.05}, "choose one"),
            ({"target_error": 0.0}, "target_error"),
            ({"class_error": 1.5}, "class_error"),
            ({"novel_error": 1.0}, "novel_error"),
            ({"target_error": 0.05, "calibrate": False}, "needs a model that is calibrated"),
            ({"key_added": "my-key"}, "key_added"),
        ],
    )
    def test_promises_that_cannot_be_given_are_refused(self, state, adata, promise, message):
        before = adata.obs.copy()
        with pytest.raises(ValueError, match=message):
            classify(state, adata, silent=True, **promise)
        assert adata.obs.equals(before)

    def test_columns_of_another_model_do_not_stay(self, state, adata):
        classify(state, adata, silent=True, key_added="mine")
        classify(dataclasses.replace(state, calibration=None), adata, silent=True, key_added="mine")
        assert [name for name in adata.obs if name.startswith("mine")] == [
            *("mine_cell_type", "mine_confidence", "mine_second", "mine_margin")
        ]
