import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from ginseng.metrics import ece, reliability, score

PAIRS = st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from("ABCDE")), min_size=1, max_size=40)


@given(pairs=PAIRS)
def test_scores_are_scikit_learn_s(pairs):
    truth, predicted = map(list, zip(*pairs, strict=True))
    scores = score(truth, predicted)
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, zero_division=0)
    np.testing.assert_allclose(scores.table["precision"], precision)
    np.testing.assert_allclose(scores.table["recall"], recall)
    np.testing.assert_allclose(scores.table["f1"], f1)
    np.testing.assert_array_equal(scores.table["cells"], support)
    assert scores.macro_f1 == pytest.approx(f1.mean())
    assert scores.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert scores.confusion.to_numpy().sum() == len(pairs)


def test_cells_without_a_true_type_are_left_out():
    assert score(["A", None, np.nan, "B"], ["A", "A", "B", "A"]).accuracy == 0.5
    with pytest.raises(ValueError, match="No cell has a true type"):
        score([None, np.nan], ["A", "B"])


@pytest.mark.parametrize("predicted", [["0", "1", "1"], [0, 1, 1], ["0.0", "1.0", "1.0"]])
@pytest.mark.parametrize("truth", [[0.0, 1.0, 0.0], np.array([0, 1, 0]), pd.Series([0.0, 1.0, 0.0]).astype("category")])
def test_whole_floats_are_the_integers_that_they_were(truth, predicted):
    scores = score(truth, predicted)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.table.index.tolist() == list(dict.fromkeys(map(str, predicted)))


def test_true_types_that_say_none_are_missing_unless_they_are_types():
    truth = ["A", "nan", "NA", " ", "B"]
    assert score(truth, ["A", "A", "A", "A", "A"]).accuracy == 0.5
    of_a_model = pd.Categorical(["A", "A", "A", "A", "B"], categories=["A", "B", "NA"])
    scores = score(truth, of_a_model)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.table["cells"].to_dict() == {"A": 1, "B": 1, "NA": 1}


def test_a_type_called_as_cells_without_one():
    scores = score(["no type", "A", "A"], pd.Categorical(["no type", None, "A"]))
    assert scores.confusion.loc["A"].to_dict() == {"(no type)": 1, "A": 1, "no type": 0}
    assert score(["A", "A"], [None, "A"]).confusion.loc["A"].to_dict() == {"A": 1, "no type": 1}


def test_true_types_that_are_called_otherwise_are_told():
    with pytest.warns(UserWarning, match=r"differ by blanks or case alone count as different: \['T cell', 't cell'\]"):
        assert score(["t cell", "B"], ["T cell", "B"]).accuracy == 0.5
    with pytest.warns(UserWarning, match="Cells of the true type 'Unknown' count as wrong; leave them out"):
        assert score(["Unknown", "B"], ["T cell", "B"]).accuracy == 0.5
    with pytest.raises(ValueError, match="`truth` holds measurements, such as 0.5"):
        score([0.5, 1.0], ["A", "B"])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="3 cells, but `predicted` has 2"):
        score(["A", "A", "B"], ["A", "B"])


def test_the_last_line_of_the_report():
    report = score(["A", "A", "B"], ["A", "B", "B"]).report("held-out cells")
    assert report.splitlines()[-1] == "accuracy 0.667  macro-F1 0.667  on 3 held-out cells"


def test_bins_hold_equally_many_cells_and_their_means():
    confidence = np.linspace(0.3, 0.99, 45)
    is_right = np.arange(45) % 3 > 0
    table = reliability(confidence, is_right)
    assert table["cells"].tolist() == [3] * 15
    np.testing.assert_allclose(table["confidence"], confidence.reshape(15, 3).mean(axis=1))
    np.testing.assert_allclose(table["accuracy"], 2 / 3)
    expected = np.abs(confidence.reshape(15, 3).mean(axis=1) - 2 / 3).mean()
    assert ece(confidence, is_right) == pytest.approx(expected)


def test_the_order_of_cells_of_equal_confidence_does_not_matter():
    confidence = np.repeat([0.5, 1.0], [10, 90])
    is_right = np.arange(100) % 10 > 0
    shuffled = np.random.default_rng(0).permutation(100)
    assert reliability(confidence, is_right)["cells"].tolist() == [10, 90]
    assert ece(confidence, is_right) == pytest.approx(0.1 * 0.4 + 0.9 * 0.1)
    assert ece(confidence[shuffled], is_right[shuffled]) == pytest.approx(ece(confidence, is_right))


@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), n_bins=st.integers(1, 20))
def test_no_cell_is_lost_and_the_error_is_a_share(pairs, n_bins):
    confidence, is_right = map(list, zip(*pairs, strict=True))
    table = reliability(confidence, is_right, n_bins)
    assert table["cells"].sum() == len(pairs)
    assert len(table) <= n_bins
    assert table["confidence"].is_monotonic_increasing
    assert (table["cells"] * table["accuracy"]).sum() == pytest.approx(sum(is_right))
    assert 0 <= ece(confidence, is_right, n_bins) <= 1


@pytest.mark.parametrize(
    ("confidence", "is_right", "message"),
    [
        ([0.5], [True, False], "must be of the same cells"),
        ([], [], "no cell"),
        ([1.5], [True], "must lie in"),
        ([float("nan")], [True], "must lie in"),
        ([0.5], [2], "true or false"),
    ],
)
def test_what_cannot_be_compared_is_refused(confidence, is_right, message):
    with pytest.raises(ValueError, match=message):
        reliability(confidence, is_right)
