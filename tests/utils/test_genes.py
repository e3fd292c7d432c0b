import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from ginseng.utils.genes import OTHER_GENES, GeneMap, least_genes, match_genes

NAMES = st.lists(st.sampled_from("ABCDEFGH"), min_size=1, max_size=12)


@given(names=NAMES, model=NAMES.map(lambda names: sorted(set(names), reverse=True)), seed=st.integers(0, 99))
def test_alignment_sums_by_name(names, model, seed):
    x = np.random.default_rng(seed).integers(0, 9, (3, len(names)))
    aligned = GeneMap.matching(np.array(names), np.array(model)).of(sparse.csr_matrix(x))
    expected = [x[:, [i for i, name in enumerate(names) if name == gene]].sum(axis=1) for gene in model]
    np.testing.assert_array_equal(aligned.toarray(), np.transpose(expected))


@given(names=NAMES, n_known=st.integers(1, 8), seed=st.integers(0, 99))
def test_genes_that_are_no_input_may_be_summed(names, n_known, seed):
    model = [*"HGFEDCBA"[:n_known], OTHER_GENES]
    x = np.random.default_rng(seed).integers(0, 200, (3, len(names))).astype(np.uint8)
    x[1, [name in model for name in names]] = 0
    gene_map = GeneMap.matching(np.array(names), np.array(model))
    aligned = gene_map.of(sparse.csr_matrix(x))
    wide = x.astype(int)
    expected = [wide[:, [i for i, name in enumerate(names) if name == gene]].sum(axis=1) for gene in model[:-1]]
    expected.append(wide.sum(axis=1) - np.sum(expected, axis=0))
    np.testing.assert_array_equal(aligned.toarray(), np.transpose(expected))
    np.testing.assert_array_equal(gene_map.has_counts(aligned), np.any(expected[:-1], axis=0))
    assert gene_map.n_found == len(set(names) & set(model))
    has_others = bool(set(names) - set(model))
    assert gene_map.is_lacking.sum() == n_known - gene_map.n_found + (not has_others)
    assert gene_map.is_lacking[-1] == gene_map.lacks_rest == (not has_others)


def test_versions_of_identifiers_are_ignored_but_suffixes_of_symbols_are_not():
    model = np.array(["ENSG00000187608", "ENSMUSG00000051951.6", "CH507-9B2.2"])
    names = np.array(["ENSG00000187608.10", "ENSMUSG00000051951", "CH507-9B2.1", "CH507-9B2.2"])
    assert match_genes(names, model).tolist() == [0, 1, -1, 2]


def test_versions_count_where_the_model_tells_two_apart():
    model = np.array(["ENSG00000187608.1", "ENSG00000187608.2"])
    assert match_genes(model[::-1], model).tolist() == [1, 0]


def test_repeated_genes_of_a_model_are_refused():
    with pytest.raises(ValueError, match=r"unique.*'A'"):
        match_genes(np.array(["A"]), np.array(["A", "B", "A"]))


@given(
    dtype=st.sampled_from(
        ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32"]
    ),
    names=NAMES,
    n_known=st.integers(1, 8),
    has_rest=st.booleans(),
    twice=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sums_do_not_wrap_in_any_type(dtype, names, n_known, has_rest, twice, seed):
    model = [*"HGFEDCBA"[:n_known], *[OTHER_GENES] * has_rest]
    largest = 1 if dtype == "bool" else 127
    x = np.full((2, len(names)), largest) * np.random.default_rng(seed).integers(0, 2, (2, len(names)))
    counts = sparse.csr_matrix(x.astype(dtype))
    if twice:
        ends, x = 2 * counts.indptr, 2 * x
        counts = sparse.csr_matrix((counts.data.repeat(2), counts.indices.repeat(2), ends), shape=x.shape)
    expected = [x[:, np.array(names) == gene].sum(axis=1) for gene in model]
    if has_rest:
        expected[-1] = x.sum(axis=1) - np.sum(expected[:-1], axis=0)
    aligned = GeneMap.matching(np.array(names), np.array(model)).of(counts)
    np.testing.assert_array_equal(aligned.astype(float).toarray(), np.transpose(expected))


def test_sums_may_be_larger_than_the_type_of_the_counts():
    counts = sparse.csr_matrix(np.array([[200, 100, 7]], np.uint8))
    assert GeneMap.matching(np.array(["A", "A", "B"]), np.array(["B", "A"])).of(counts).toarray().tolist() == [[7, 300]]


def test_too_few_genes_in_common_are_refused():
    model = np.array([f"G{i}" for i in range(40)])
    names = np.array(["G3", "G5", "X"])
    GeneMap.matching(names, model).require(2, names, model, lambda: "way out")
    message = "Only 1 of 40 genes in common, where 2 are needed: the model knows G0, .*; the data have G3; way out"
    with pytest.raises(ValueError, match=message):
        GeneMap.matching(names[:1], model).require(2, names[:1], model, lambda: "way out")


@pytest.mark.parametrize(
    ("n_genes", "share", "least"),
    [
        (1, None, 1),
        (3, None, 3),
        (100, None, 5),
        (501, None, 6),
        (20_000, None, 200),
        (100, 0.01, 1),
        (100, 0.07, 7),
        (100, 0.0, 1),
    ],
)
def test_chance_names_few_genes_only(n_genes, share, least):
    assert least_genes(n_genes, share) == least


def test_aligned_counts_are_sorted_whatever_the_order():
    x = sparse.random(50, 8, 0.5, format="csr", random_state=0)
    for model in ("ABCDEFGH", "BDFH", "HGFEDCBA", "CAZ"):
        aligned = GeneMap.matching(np.array([*"ABCDEFGH"]), np.array([*model])).of(x)
        again = sparse.csr_matrix((aligned.data, aligned.indices, aligned.indptr), aligned.shape)
        assert again.has_canonical_format
        found = [x.toarray()[:, "ABCDEFGH".index(gene)] if gene != "Z" else np.zeros(50) for gene in model]
        np.testing.assert_array_equal(aligned.toarray(), np.transpose(found))
    backwards = sparse.csr_matrix((x.data[::-1], 7 - x.indices[::-1], np.arange(0, x.nnz + 1, x.nnz)), (1, 8))
    rising = GeneMap.matching(np.array([*"ABCDEFGH"]), np.array([*"ACEGH"])).of(backwards)
    assert rising.has_canonical_format
    np.testing.assert_array_equal(rising.toarray(), backwards.toarray()[:, [0, 2, 4, 6, 7]])
