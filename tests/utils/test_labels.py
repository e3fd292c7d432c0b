"""What columns of labels and groups say."""

import numpy as np
import pandas as pd
import pytest

from ginseng.utils.labels import beside, declared, in_terms_of, names_alike, names_in, says_unknown, without_none


@pytest.mark.parametrize(
    "column",
    [
        [1.0, None, 0.0],
        np.array([1.0, np.nan, 0.0], np.float32),
        pd.Series([1.0, np.nan, 0.0]).astype("category"),
        pd.array([1, None, 0], "Int64"),
        pd.array([1.0, None, 0.0], "Float64"),
        pd.Series([1, None, "0"], dtype=object),
        pd.Series(["1", pd.NA, "0"], dtype="string"),
        pd.Series([b"1", None, b"0"], dtype=object),
        pd.Series([1.0, np.nan, 0.0], dtype="Sparse[float]"),
    ],
)
def test_values_of_every_type_are_the_same_names(column):
    assert list(names_in(column, "the column")) == ["1", np.nan, "0"]


def test_clusters_keep_their_order_and_equal_names_are_one():
    assert list(names_in([10, 2, 1], "x").categories) == ["1", "2", "10"]
    assert list(names_in(pd.Categorical(["b", "a"], ["b", "a"]), "x").categories) == ["b", "a"]
    assert names_in(pd.Series([1.0, "1", 1], dtype=object), "x").codes.tolist() == [0, 0, 0]
    assert list(names_in([True, False], "x")) == ["True", "False"]


def test_categories_that_no_value_has_are_no_names():
    assert list(names_in(pd.Categorical(["b"], ["nan", "b"]), "x").categories) == ["b"]
    assert list(names_in(pd.Categorical([1.0], [1.0, 1.5]), "x")) == ["1"]
    assert without_none(names_in(pd.Categorical(["b"], ["nan", "b"]), "x"))[1] == ""
    assert list(names_in(pd.Categorical(["b"], ["nan", "b"]), "x", unused=True).categories) == ["nan", "b"]


def test_what_is_declared_and_not_there_is_warned_of(recwarn):
    assert declared(["B", "doublet "], ["Doublet", "nan", "Unknown"], "the column", ["unknown"]) == ["doublet "]
    assert not len(recwarn)
    with pytest.warns(UserWarning, match="Of `unlabeled`, label 'Dublet' is not in the column; did you mean 'Doublet'"):
        assert declared(["B", "Doublet"], ["Dublet"], "the column") == []


@pytest.mark.parametrize("value", [0.5, np.inf, np.float32(1e-3)])
def test_measurements_are_refused(value):
    for column in ([1.0, value], pd.Series([1.0, value]).astype("category"), pd.Series(["B", value], dtype=object)):
        with pytest.raises(ValueError, match="the column holds measurements, such as .*make these text"):
            names_in(column, "the column")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="the column cannot be told apart"):
        names_in(pd.Series([["B"], ["T"]]), "the column")


def test_texts_that_say_none_are_missing_unless_they_are_names():
    said = ["nan", "NaN", " NA ", "N/A", "None", "null", "", " \t", "<NA>"]
    found, told = without_none(names_in([*said, "NK", "Naive", "Unknown", "NA"], "x"), known=["NA"])
    assert found.codes.tolist()[:9] == [-1] * 9
    assert list(found[9:]) == ["NK", "Naive", "Unknown", "NA"]
    assert "1 says 'nan'" in told


@pytest.mark.parametrize(
    "name", ["Unknown", "unassigned", "UNLABELED", "not_available", " undetermined", "Not assigned", "-", "?"]
)
def test_what_is_not_known(name):
    assert says_unknown(name)
    assert not any(map(says_unknown, ["B", "unknown B cell", "nan", "other"]))


def test_names_that_differ_by_blanks_or_case():
    assert names_alike(["T cell", "t cell", "T  cell", "B", "B\u00a0", "CD4+", "CD4"]) == [
        ["T cell", "t cell", "T  cell"],
        ["B", "B\u00a0"],
    ]
    assert declared(["T cell", "t cell ", "B"], ["T CELL", "of another study"]) == ["T cell", "t cell "]


def test_integers_written_as_floats():
    assert in_terms_of(["0.0", "12.0", "3", "B"], ["0", "12", "3.0"]) == {"0.0": "0", "12.0": "12", "3": "3.0"}
    assert in_terms_of(["0", "0.0"], ["0"]) == {"0.0": "0"}
    assert in_terms_of(["1.0", "1.1"], ["1", "2"]) == {}
    assert in_terms_of(["1.0", "2"], ["1", "1.5"]) == {}


def test_a_name_beside_others():
    assert beside("cell", ["cell", "(cell)"]) == "((cell))"
