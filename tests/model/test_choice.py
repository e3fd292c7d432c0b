"""Choosing among labels, and the types above them: nothing is lost, and parents never contradict children."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ginseng.model.choice import chosen_labels, probabilities_over
from ginseng.model.hierarchy import Hierarchy, read_hierarchy

LABELS = ["B", "CD4 T", "CD8 T", "NK", "mono"]
PARENT = {"CD4 T": "T", "CD8 T": "T", "T": "lymphocyte", "NK": "lymphocyte", "B": "lymphocyte"}
ABOVE = read_hierarchy(PARENT, LABELS)
OBO = """format-version: 1.2
ontology: cl

[Term]
id: CL:0000542
name: lymphocyte

[Term]
id: CL:0000084
name: T cell
is_a: CL:0000542 ! lymphocyte

[Term]
id: CL:0000624
name: CD4-positive, alpha-beta T cell
is_a: CL:0000084 {is_inferred="true"} ! T cell
is_a: CL:0000999 ! imported from elsewhere

[Term]
id: CL:0000625
name: CD8-positive, alpha-beta T cell
is_a: CL:0000084 ! T cell
is_a: CL:0000910 ! cytotoxic

[Term]
id: CL:0000910
name: cytotoxic cell

[Term]
id: CL:0000623
name: natural killer cell
is_a: CL:0000910
is_a: CL:0000542

[Term]
id: CL:0000000
name: NK
is_obsolete: true
is_a: CL:0000542

[Typedef]
id: part_of
name: part of
"""

shares = hnp.arrays(np.float32, (6, 5), elements=st.floats(0.0078125, 1, width=32)).map(
    lambda raw: raw / raw.sum(axis=1, keepdims=True)
)


class TestChosenLabels:
    @given(hnp.arrays(np.float32, (4, 5), elements=st.integers(-1000, 1000)), hnp.arrays(bool, 5))
    def test_probabilities_over_what_can_be_there(self, logits, is_named):
        names = np.asarray(LABELS)[is_named].tolist()
        if not names:
            return
        is_chosen = chosen_labels(LABELS, only=names)
        assert is_chosen.tolist() == is_named.tolist()
        probabilities = probabilities_over(logits, is_chosen)
        assert probabilities.dtype == np.float32
        assert (probabilities[:, ~is_chosen] == 0).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        likeliest = logits[np.arange(4), probabilities.argmax(axis=1)]
        np.testing.assert_array_equal(likeliest, logits[:, is_chosen].max(axis=1))

    def test_ratios_among_them_stay(self):
        logits = np.array([[1.0, 2.0, 0.0, 3.0, 1.0]])
        all_of_them = probabilities_over(logits, chosen_labels(LABELS))
        chosen = probabilities_over(logits, chosen_labels(LABELS, exclude=["NK", "mono"]))
        np.testing.assert_allclose(chosen[0, :3], all_of_them[0, :3] / all_of_them[0, :3].sum())

    def test_a_parent_stands_for_what_is_below_it(self):
        assert chosen_labels(LABELS, only="T", hierarchy=ABOVE).tolist() == [False, True, True, False, False]
        assert chosen_labels(LABELS, exclude=["lymphocyte"], hierarchy=ABOVE).tolist() == [False] * 4 + [True]

    @pytest.mark.parametrize(
        ("choice", "told"),
        [
            ({"only": ["CD4"]}, "label 'CD4' is not in the model; did you mean 'CD4 T'\\? It has: B, CD4 T"),
            ({"exclude": "T"}, "label 'T' is not in the model"),
            ({"exclude": "Tcell", "hierarchy": ABOVE}, "'Tcell' is not in model and hierarchy"),
            ({"only": "B", "exclude": "NK"}, "`only` and `exclude` say the same .* pass one"),
            ({"exclude": LABELS}, "`exclude` names every label of the model: at least one must be left"),
            ({"only": []}, "`only` names no label"),
        ],
    )
    def test_what_is_refused(self, choice, told):
        with pytest.raises(ValueError, match=told):
            chosen_labels(LABELS, **choice)


@st.composite
def hierarchies(draw):
    """Types above the labels, on several levels, sometimes with two parents, as ontologies have them."""
    nodes = [*LABELS, *(f"n{place}" for place in range(draw(st.integers(0, 5))))]
    parents = {
        node: set(draw(st.lists(st.sampled_from(wider), max_size=2)))
        for place, node in enumerate(nodes)
        if (wider := nodes[max(place + 1, len(LABELS)) :])
    }
    return Hierarchy.of(parents, LABELS), parents


def above(parents, node):
    return {node}.union(*(above(parents, parent) for parent in parents.get(node, ())))


class TestHierarchy:
    @given(hierarchies(), shares)
    def test_parents_never_contradict_children(self, given, probabilities):
        hierarchy, parents = given
        of_node = dict(zip(hierarchy.nodes, hierarchy.probabilities(probabilities).T, strict=True))
        for child in hierarchy.nodes:
            for parent in parents.get(child, ()):
                assert (of_node[parent] >= of_node[child] - 1e-6).all()
        for place, label in enumerate(LABELS):
            np.testing.assert_array_equal(of_node[label], probabilities[:, place])

    @given(hierarchies(), shares, st.floats(0.05, 0.95))
    def test_what_is_backed_off_to_is_the_narrowest_type_above_the_label_that_is_sure(self, given, shares, least):
        hierarchy, parents = given
        of_node = dict(zip(hierarchy.nodes, hierarchy.probabilities(shares).T, strict=True))
        n_below = dict(zip(hierarchy.nodes, hierarchy.below.sum(axis=1), strict=True))
        for cell, found in enumerate(hierarchy.backed_off(shares, least)):
            sure = {
                node: n_below[node]
                for node in above(parents, LABELS[shares[cell].argmax()])
                if of_node[node][cell] >= least
            }
            assert (found in sure and sure[found] == min(sure.values())) if sure else pd.isna(found)

    @given(hierarchies(), hnp.arrays(bool, (6, 5)))
    def test_the_common_parent_is_above_every_candidate_and_none_is_narrower(self, given, is_candidate):
        hierarchy, parents = given
        n_below = dict(zip(hierarchy.nodes, hierarchy.below.sum(axis=1), strict=True))
        for candidates, found in zip(is_candidate, hierarchy.common_parent(is_candidate), strict=True):
            of_each = [above(parents, label) for label in np.asarray(LABELS)[candidates].tolist()]
            common = set.intersection(*of_each) if of_each else set()
            assert (found in common and n_below[found] == min(map(n_below.get, common))) if common else pd.isna(found)

    def test_levels(self):
        unsure = np.array(
            [[0.02, 0.9, 0.05, 0.02, 0.01], [0, 0.5, 0.4, 0.1, 0], [0.3, 0.3, 0.1, 0.2, 0.1], [0.45, 0, 0, 0, 0.55]]
        )
        assert ABOVE.backed_off(unsure, 0.8).tolist() == ["CD4 T", "T", "lymphocyte", np.nan]
        candidates = unsure >= 0.3
        assert ABOVE.common_parent(candidates).tolist() == ["CD4 T", "T", "lymphocyte", np.nan]

    def test_a_label_may_be_above_others(self):
        hierarchy = read_hierarchy({"CD4 T": "T", "CD8 T": "T"}, ["CD4 T", "CD8 T", "T"])
        assert hierarchy.probabilities(np.array([[0.25, 0.25, 0.5]]))[0].tolist() == [0.25, 0.25, 1.0]
        assert hierarchy.common_parent(np.array([[True, False, True]])).tolist() == ["T"]
        assert hierarchy.backed_off(np.array([[0.4, 0.35, 0.25]]), 0.5).tolist() == ["T"]

    def test_categories_do_not_depend_on_the_cells(self):
        shares = np.eye(5, dtype=np.float32)
        assert ABOVE.backed_off(shares[:1]).categories.equals(ABOVE.backed_off(shares[1:]).categories)

    @pytest.mark.parametrize("least", [0.0, 1.0, np.nan])
    def test_least_is_a_share(self, least):
        with pytest.raises(ValueError, match=r"`least` must lie in \(0, 1\)"):
            ABOVE.backed_off(np.eye(5), least)


class TestReadHierarchy:
    @pytest.mark.parametrize(("name", "separator"), [("h.csv", ","), ("h.tsv", "\t"), ("h.tsv.gz", "\t")])
    @pytest.mark.parametrize("header", [[], [("child", "parent")], [("Child", "Parent")]])
    def test_files_say_what_mappings_and_tables_say(self, tmp_path, name, separator, header):
        table = pd.DataFrame([*header, *PARENT.items(), ("lymphocyte", ""), ("CD4 T", "T")])
        table.to_csv(tmp_path / name, sep=separator, header=False, index=False)
        for same in (tmp_path / name, str(tmp_path / name), pd.DataFrame(PARENT.items()), ABOVE):
            found = read_hierarchy(same, LABELS)
            assert found.nodes == ABOVE.nodes
            np.testing.assert_array_equal(found.below, ABOVE.below)

    @pytest.mark.parametrize(
        ("parent", "told"),
        [
            ({"CD4": "T"}, "child 'CD4' is not in the labels .*; did you mean 'CD4 T'"),
            ({"B": "T", "T": "L", "L": "T"}, "has a type above itself: (T -> L -> T|L -> T -> L)"),
            ({"B": "B"}, "has a type above itself: B -> B"),
            (pd.DataFrame([("B", "L"), ("B", "M")]), "has two parents of 'B', 'L' and 'M': leave one"),
            (pd.DataFrame([("B", "L", "M")]), "`hierarchy` must have two columns, child and parent, but has 3"),
            ("h.xlsx", "must be a .csv or .tsv file"),
        ],
    )
    def test_what_is_refused(self, parent, told):
        with pytest.raises(ValueError, match=told):
            read_hierarchy(parent, LABELS)

    @pytest.mark.parametrize("name", ["none.csv", "none.obo"])
    def test_a_missing_file_is_named(self, name):
        with pytest.raises(FileNotFoundError, match=f"There is no file {name}, which `hierarchy` names"):
            read_hierarchy(name, LABELS)


class TestOntology:
    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "cl.obo").write_text(OBO)
        return tmp_path / "cl.obo"

    def test_labels_by_name(self, path):
        labels = ["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "natural killer cell"]
        found = read_hierarchy(path, labels)
        assert found.common_parent(
            np.array([[True, True, False], [False, True, True], [True, False, True]])
        ).tolist() == [
            "T cell",
            "cytotoxic cell",
            "lymphocyte",
        ]

    def test_labels_by_identifier_get_parents_by_identifier(self, path):
        found = read_hierarchy(str(path), ["CL:0000624", "CL:0000625"])
        assert found.common_parent(np.ones((1, 2), bool)).tolist() == ["CL:0000084"]

    def test_what_it_lacks_is_told(self, path, tmp_path):
        with pytest.warns(UserWarning, match="does not have these labels, which get no parent: NK"):
            found = read_hierarchy(path, ["T cell", "NK"])
        assert found.common_parent(np.array([[False, True]])).tolist() == ["NK"]
        with pytest.raises(ValueError, match="cl.obo has none of the labels as an identifier or a name: B, CD4 T"):
            read_hierarchy(path, LABELS)
        (tmp_path / "bad.obo").write_text("format\n[Term]\nname: no id\n")
        with pytest.raises(ValueError, match="bad.obo is no ontology in OBO format"):
            read_hierarchy(tmp_path / "bad.obo", LABELS)
