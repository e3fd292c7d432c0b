import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from ginseng.metrics import score

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


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="3 cells, but `predicted` has 2"):
        score(["A", "A", "B"], ["A", "B"])


def test_the_last_line_of_the_report():
    report = score(["A", "A", "B"], ["A", "B", "B"]).report("held-out cells")
    assert report.splitlines()[-1] == "accuracy 0.667  macro-F1 0.667  on 3 held-out cells"
