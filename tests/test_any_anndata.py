"""Any AnnData: each works as a plain one does or is refused in words, and the caller's object is never half changed."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import ginseng
from ginseng import (
    GinsengClassifierTrainer,
    GinsengDataset,
    classify,
    explain,
    finetune,
    harmonize,
    mqc,
    select_hvgs,
    select_markers,
)
from ginseng import state_from_classifier_trainer as state_of
from ginseng.data.outputs import write_annotated
from ginseng.describe import describe_counts
from ginseng.model.results import Results
from ginseng.train.finetuning import tuning_settings
from ginseng.utils.labels import says_none, text_of
from tests.conftest import simulate
from tests.train.models import QUICK, assert_same_weights

N_CELLS, N_GENES = 12, 30
TYPES = ["B cell", "NK cell", "T cell"]
FEW = settings(max_examples=8, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@pytest.fixture(scope="module")
def state(folder):
    dataset = GinsengDataset.create(folder / "training.zarr", simulate(600), "cell_type", silent=True)
    trainer = GinsengClassifierTrainer(dataset, QUICK.__class__(**{**vars(QUICK), "calibrate": "holdout"}))
    trainer.fit(3, silent=True)
    return state_of(trainer)


def cells(n=N_CELLS):
    return simulate(n, seed=1)


def with_counts(counts):
    plain = cells()
    plain.X = sparse.csr_matrix(counts.astype(np.float32))
    return plain


def snapshot(adata):
    """What the caller can see, by value."""
    table = pd.DataFrame(adata.obs)
    return {
        "obs": [(name, str(column.dtype), column.astype(str).tolist()) for name, column in table.items()],
        "var": [(name, column.astype(str).tolist()) for name, column in pd.DataFrame(adata.var).items()],
        "names": (table.index.name, table.index.tolist(), adata.var_names.tolist()),
        "obsm": {name: np.array(value).tolist() for name, value in adata.obsm.items()},
        "uns": {name: str(value) for name, value in adata.uns.items()},
        "X": None if adata.X is None else dense(adata.X).astype(str).tolist(),
    }


def dense(x):
    x = x[:] if hasattr(x, "group") or hasattr(x, "chunks") else x
    return np.asarray(x.toarray() if sparse.issparse(x) else x)


# Storage


def unsorted(counts):
    matrix = sparse.csr_matrix(counts)
    for start, stop in zip(matrix.indptr, matrix.indptr[1:], strict=False):
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
        matrix.data[start:stop] = matrix.data[start:stop][::-1].copy()
    matrix.has_sorted_indices = False
    return matrix


def repeated(counts):
    """Each count as two entries, one of them 0."""
    matrix = sparse.coo_matrix(counts)
    both = np.tile(matrix.row, 2), np.tile(matrix.col, 2)
    order = np.argsort(both[0], kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(both[0], minlength=len(counts)))])
    values = np.concatenate([matrix.data, np.zeros_like(matrix.data)])[order]
    return sparse.csr_matrix((values, both[1][order], ends), counts.shape)


def read_only(counts):
    matrix = sparse.csr_matrix(counts)
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.setflags(write=False)
    return matrix


STORED = {
    "dense": np.asarray,
    "Fortran": np.asfortranarray,
    "masked": np.ma.masked_array,
    "CSR": sparse.csr_matrix,
    "CSC": sparse.csc_matrix,
    "CSR array": sparse.csr_array,
    "CSC array": sparse.csc_array,
    "unsorted": unsorted,
    "repeated": repeated,
    "read-only": read_only,
}
DENSE = ("dense", "Fortran", "masked")
NUMBERS = ["float64", "float32", "longdouble", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "bool"]


@FEW
@given(
    seed=st.integers(0, 2**32 - 1),
    most=st.sampled_from([0, 1, 3, 100]),
    stored=st.sampled_from(sorted(STORED)),
    dtype=st.sampled_from([*NUMBERS, "float16", ">f4", ">i2", ">f8"]),
    is_view=st.booleans(),
)
def test_counts_of_every_storage_and_type_give_what_plain_ones_give(state, folder, seed, most, stored, dtype, is_view):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, (1 if dtype == "bool" else most) + 1, (N_CELLS, N_GENES)) * rng.integers(
        0, 2, (1, N_GENES)
    )
    counts[0, 0] = 1  # there is something to train on
    counts[3:5], counts[6] = 0, counts[7]  # cells without counts, and one that is there twice
    plain, adata = with_counts(counts), cells()
    is_known_to_scipy = np.dtype(dtype).isnative and dtype != "float16"
    adata.X = STORED[stored if is_known_to_scipy or stored in DENSE else "Fortran"](counts.astype(dtype))
    if is_view:
        order, genes = np.arange(N_CELLS)[::-1], np.arange(N_GENES)[::-1]
        adata, plain = adata[order, genes], plain[order, genes].copy()
    before = snapshot(adata)
    pd.testing.assert_frame_equal(
        classify(state, adata, return_table=True, silent=True), classify(state, plain, return_table=True, silent=True)
    )
    streamed = [
        next(
            GinsengDataset.create(folder / "any.zarr", each, "cell_type", silent=True).stream(
                N_CELLS, "all", shuffle=False
            )
        )
        for each in (adata, plain)
    ]
    np.testing.assert_array_equal(streamed[0][0], streamed[1][0])
    np.testing.assert_array_equal(streamed[0][1], streamed[1][1])
    np.testing.assert_array_equal(streamed[0][0], dense(plain.X))
    chosen = [select_hvgs(each, 5, silent=True, copy=True).var["ginseng_genes"] for each in (adata, plain)]
    np.testing.assert_array_equal(*chosen)
    assert snapshot(adata) == before


@pytest.mark.parametrize("storage", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_backed_counts_are_as_those_in_memory_and_stay_open(state, tmp_path, mode, storage):
    plain = cells()
    stored = cells()
    stored.X = storage(stored.X.toarray()) if storage is np.asarray else storage(stored.X)
    stored.write_h5ad(tmp_path / "cells.h5ad")
    content = (tmp_path / "cells.h5ad").read_bytes()
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed=mode)
    view = adata[2:9]
    expected = classify(state, plain, return_table=True, silent=True)
    for _ in range(2):  # anndata closes the file of what is copied
        copied = classify(state, view, copy=True, silent=True)
        assert copied.obs["ginseng_confidence"].tolist() == expected["ginseng_confidence"].tolist()[2:9]
        assert adata.file.is_open
    before = snapshot(view)
    for change in (
        lambda: classify(state, view, silent=True),
        lambda: explain(state, view, silent=True),
        lambda: select_hvgs(view, silent=True),
        lambda: select_markers(view, "cell_type", silent=True),
    ):
        with pytest.raises(ValueError, match="view of a backed AnnData; pass copy=True, or view.to_memory"):
            change()
    assert snapshot(view) == before
    assert adata.is_view is False and adata.isbacked
    classify(state, adata, silent=True)
    assert adata.obs["ginseng_confidence"].tolist() == expected["ginseng_confidence"].tolist()
    view.to_memory()  # closes the file, too
    assert len(classify(state, view, return_table=True, silent=True)) == 7
    adata.file.close()
    assert (tmp_path / "cells.h5ad").read_bytes() == content


def test_coo_is_left_to_anndata():
    with pytest.raises(ValueError, match="CSR and CSC"):
        ad.AnnData(sparse.coo_matrix(np.eye(2)))


@pytest.mark.parametrize(
    ("dtype", "said"), [("complex64", "holds complex64"), ("object", "holds object"), ("U1", "holds <U1")]
)
def test_what_is_no_number_is_refused(state, folder, dtype, said):
    adata = cells()
    adata.X = adata.X.toarray().astype(dtype)
    for use in every_use(state, folder):
        refused(use, adata, said)


def test_a_long_double_that_no_double_holds_is_refused(state):
    adata = cells()
    adata.X = adata.X.toarray().astype(np.longdouble)
    adata.X[1, 2] = np.finfo(np.float64).max * np.longdouble(4)
    if np.isfinite(adata.X[1, 2]):  # on other machines it is a double
        refused(
            lambda a: classify(state, a, silent=True), adata, "for gene 'GENE2' in cell 'cell1': counts must be finite"
        )


# Shapes


def every_use(state, folder):
    """All that takes an AnnData, as functions of it."""

    def annotate(adata):
        annotated = classify(state, adata, copy=True, silent=True, store_probs=True)
        write_annotated(annotated, folder / "annotated.h5ad")
        ginseng.report(annotated, folder / "report.html")
        mqc(annotated, folder / "cells_mqc.json")

    return [
        lambda adata: GinsengDataset.create(folder / "used.zarr", adata, "cell_type", silent=True),
        annotate,
        lambda adata: classify(state, adata, silent=True),
        lambda adata: classify(state, adata, silent=True, return_table=True),
        lambda adata: explain(state, adata, silent=True),
        lambda adata: harmonize(state, adata, state, cells(), label_a="cell_type", silent=True),
        lambda adata: select_hvgs(adata, 3, silent=True),
        lambda adata: select_markers(adata, "cell_type", 3, silent=True),
    ]


def refused(use, adata, said=""):
    before = snapshot(adata)
    with pytest.raises(ValueError, match=said) as caught:
        use(adata)
    assert "/ginseng/" in str(caught.traceback[-1].path), caught.value  # in words of ours
    assert snapshot(adata) == before


CREATE, ANNOTATE, IN_PLACE, TABLE, EXPLAIN, HARMONIZE, HVGS, MARKERS = range(8)
SHAPES = {
    "empty": (lambda a: a[:0].copy(), {ANNOTATE, IN_PLACE, TABLE}),
    "one cell": (lambda a: a[:1].copy(), {CREATE, ANNOTATE, IN_PLACE, TABLE, EXPLAIN, HARMONIZE}),
    "one gene": (lambda a: a[:, :1].copy(), {CREATE, HVGS, MARKERS}),
    "no gene": (lambda a: a[:, :0].copy(), set()),
    "no cell, no gene": (lambda a: a[:0, :0].copy(), set()),
    "no X": (lambda a: ad.AnnData(obs=a.obs, var=a.var), set()),
    "no counts": (
        lambda a: ad.AnnData(sparse.csr_matrix(a.shape, dtype=np.int8), a.obs, a.var),
        {ANNOTATE, IN_PLACE, TABLE, HARMONIZE, HVGS},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_works_or_is_refused(state, folder, shape):
    make, works = SHAPES[shape]
    for number, use in enumerate(every_use(state, folder)):
        if number in works:
            use(make(cells()))
        else:
            refused(use, make(cells()))


def test_one_gene_is_enough_if_the_model_says_so(state):
    cells_of_one = cells()[:, :1].copy()
    assert len(classify(state, cells_of_one, min_overlap=0.0, return_table=True, silent=True)) == N_CELLS


# Names


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
NAMES = TEXTS | st.sampled_from(["α" * 200, "a\nb\r\n\tc", "e\u0301", "\u00e9", "👩\u200d🔬", "NaN", "None", "/", ".."])


@st.composite
def labels(draw):
    """A column of labels, and what each of its values is called; None of those that are not labelled."""
    kind = draw(st.sampled_from(["object", "category", "string", "boolean", "bool", "Int64", "int8", "float64"]))
    if kind in ("object", "category", "string"):
        values = draw(st.lists(st.none() | NAMES, min_size=N_CELLS, max_size=N_CELLS))
        named = [None if value is None or says_none(value) else value for value in values]
        if kind == "category":
            present = sorted({value for value in values if value is not None})
            return pd.Categorical(values, [*present[::-1], "unused", "unused, too"][: len(present) + 2]), named
        return pd.array(values, dtype="string") if kind == "string" else np.array(values, object), named
    whole = draw(st.lists(st.integers(0, 1), min_size=N_CELLS, max_size=N_CELLS))
    has_none = kind in ("boolean", "Int64", "float64") and draw(st.booleans())
    values = pd.array([None if has_none and n == 2 else value for n, value in enumerate(whole)], dtype="Int64")
    column = values.astype("float64") if kind == "float64" and has_none else values.astype(kind)
    return column, [None if pd.isna(value) else text_of(value) for value in pd.Series(column)]


@FEW
@given(found=labels(), repeats=st.booleans())
def test_labels_of_every_type_come_back_by_name(state, folder, found, repeats):
    column, named = found
    if "unused" in {*filter(None, named)} or "unused, too" in {*filter(None, named)}:
        return
    adata = cells()
    adata.obs["cell_type"] = column
    if repeats:
        adata.obs_names = ["same"] * N_CELLS
    before = snapshot(adata)
    if not any(named):
        refused(lambda a: GinsengDataset.create(folder / "named.zarr", a, "cell_type", silent=True), adata, "No cell")
        return
    dataset = GinsengDataset.create(folder / "named.zarr", adata, "cell_type", silent=True, further=["cell_type"])
    assert dataset.label_names == sorted({*filter(None, named)})
    assert [dataset.label_names[label] for label in dataset.labels] == [*filter(None, named)]
    kept = ad.read_zarr(folder / "named.zarr").obs
    assert kept["cell_type"].astype(str).tolist() == [*filter(None, named)]
    dataset.make_split(0.3)
    assert sum(len(y) for part in ("train", "test") for _, y in dataset.stream(5, part)) == len(dataset.labels)
    assert snapshot(adata) == before


def test_a_report_shows_labels_of_any_length_and_lines(state, folder):
    adata = cells()
    adata.obs["cell_type"] = ["α" * 200, "a\nb", "<script>", "unused"] * 3
    ginseng.report(classify(state, adata, copy=True, silent=True), folder / "named.html", truth="cell_type")
    page = (folder / "named.html").read_text(encoding="utf-8")
    assert "α" * 200 in page and "&lt;script&gt;" in page and "<script>" not in page


@FEW
@given(names=st.lists(NAMES, min_size=4, max_size=4, unique=True))
def test_genes_and_cells_of_every_name(state, folder, names):
    adata = cells()
    adata.var_names = [*names, *adata.var_names[4:]]
    adata.obs_names = [*names, *names, *names]
    plain = cells()
    plain.var_names = [*"wxyz", *plain.var_names[4:]]
    table = classify(state, adata, return_table=True, silent=True)
    expected = classify(state, plain, return_table=True, silent=True)
    np.testing.assert_array_equal(table["ginseng_confidence"], expected["ginseng_confidence"])
    assert table.index.tolist() == adata.obs_names.tolist()
    dataset = GinsengDataset.create(folder / "genes.zarr", adata, "cell_type", silent=True)
    assert dataset.gene_names[:4] == names


def test_repeated_genes_are_summed(state, folder):
    adata, plain = cells(), cells()
    adata.var_names = ["GENE1", *adata.var_names[1:]]
    x = plain.X.toarray()
    x[:, 1] += x[:, 0]
    plain.X = sparse.csr_matrix(x)
    plain.var_names = ["other", *plain.var_names[1:]]
    pd.testing.assert_frame_equal(
        classify(state, adata, return_table=True, silent=True), classify(state, plain, return_table=True, silent=True)
    )
    dataset = GinsengDataset.create(folder / "g.zarr", adata, "cell_type", silent=True)
    np.testing.assert_array_equal(next(dataset.stream(len(x), "all", shuffle=False))[0], x[:, 1:])


@pytest.mark.parametrize("name", ["cell_type", "donor", "labels", "ginseng_cell_type"])
def test_an_index_may_be_named_as_a_column(state, folder, name):
    adata = cells()
    adata.obs.index.name = name
    GinsengDataset.create(folder / "index.zarr", adata, "cell_type", group_key="donor", silent=True)
    kept = ad.read_zarr(folder / "index.zarr").obs
    assert kept.index.tolist() == adata.obs_names.tolist()
    assert kept["cell_type"].astype(str).tolist() == adata.obs["cell_type"].astype(str).tolist()
    classify(state, adata, silent=True)
    assert len(adata.obs["ginseng_cell_type"]) == N_CELLS


@pytest.mark.parametrize(
    ("key", "said"),
    [("a/b", "kept.zarr cannot hold 'a/b' of obs"), ("_index", "annotation of the dataset cannot be written")],
)
def test_a_dataset_of_labels_that_cannot_be_stored_is_refused_and_the_old_one_kept(folder, key, said):
    adata = cells()
    path = folder / "kept.zarr"
    GinsengDataset.create(path, adata, "cell_type", silent=True)
    adata.obs[key] = adata.obs["donor"]
    refused(lambda a: GinsengDataset.create(path, a, key, silent=True), adata, said)
    assert GinsengDataset(path).label_names == TYPES


@pytest.mark.parametrize("where", ["obs", "var"])
def test_names_that_text_on_disk_would_cut_are_refused(folder, where):
    adata = cells()
    if where == "obs":
        adata.obs["cell_type"] = np.array(["B", "T\0"] * 6, object)
    else:
        adata.var_names = ["GENE\0", *adata.var_names[1:]]
    refused(lambda a: GinsengDataset.create(folder / "nul.zarr", a, "cell_type", silent=True), adata, "NUL character")


# Columns that are there


def doubled(adata, *names):
    adata.obs = pd.concat([adata.obs, adata.obs[list(names)]], axis=1)
    return adata


def test_a_column_that_is_there_twice_is_refused_where_it_is_asked_for(state, folder):
    twice = [
        lambda a: GinsengDataset.create(folder / "t.zarr", a, "cell_type", silent=True),
        lambda a: GinsengDataset.create(folder / "t.zarr", a, "other", group_key="donor", silent=True),
        lambda a: GinsengDataset.create(folder / "t.zarr", a, "other", further=["donor"], silent=True),
        lambda a: select_markers(a, "cell_type", silent=True),
        lambda a: select_markers(a, "other", 5, "donor", silent=True),
        lambda a: classify(state, a, over="donor", silent=True),
        lambda a: explain(state, a, "donor", silent=True),
        lambda a: harmonize(state, a, state, cells(), label_a="cell_type", silent=True),
        lambda a: ginseng.report(classify(state, a, copy=True, silent=True), folder / "t.html", truth="cell_type"),
        lambda a: mqc(classify(state, a, copy=True, silent=True), folder / "t_mqc.json", sample="donor"),
        lambda a: ginseng.plot.embedding(a, ["donor"], "X_umap"),
    ]
    for use in twice:
        adata = cells()
        adata.obs["other"] = adata.obs["cell_type"].astype(str)
        adata.obsm["X_umap"] = np.zeros((N_CELLS, 2))
        refused(use, doubled(adata, "cell_type", "donor"), "2 times: rename or drop the others")
    assert describe_counts(doubled(cells(), "donor")).count("donor: ") == 2


def test_genes_of_a_column_that_is_there_twice(state, folder):
    adata = cells()
    adata.var["chosen"] = np.arange(N_GENES) < 5
    adata.var = pd.concat([adata.var, adata.var], axis=1)
    for use in (
        lambda a: GinsengDataset.create(folder / "t.zarr", a, "cell_type", genes="chosen", silent=True),
        lambda a: classify(state, a, gene_key="symbol", silent=True),
    ):
        refused(use, adata, "is in adata.var 2 times")


@pytest.mark.parametrize("is_view", [False, True])
def test_columns_of_ours_are_replaced_however_often_they_are_there(state, folder, is_view):
    expected = classify(state, cells(), copy=True, silent=True)
    select_markers(expected, "cell_type", 5, silent=True)
    adata = cells()
    adata.obs["ginseng_cell_type"] = pd.array([1, None] * 6, dtype="Int64")
    adata.obs["ginseng_confidence"] = pd.Categorical(["a", "b"] * 6)
    adata.obs["ginseng_spread"] = True  # of several members
    adata.var["ginseng_genes"] = "x"
    adata.obsm["X_ginseng"] = np.zeros((N_CELLS, 7))
    adata.obsm["ginseng_probs"] = np.zeros((N_CELLS, 7))
    adata.uns["ginseng"] = "mine"
    if not is_view:  # anndata takes no view of such
        doubled(adata, "ginseng_cell_type", "ginseng_spread")
        adata.var = pd.concat([adata.var, adata.var[["ginseng_genes"]]], axis=1)
    parent, whole = snapshot(adata), adata
    if is_view:
        adata = adata[:]
    classify(state, adata, silent=True)
    select_markers(adata, "cell_type", 5, silent=True)
    pd.testing.assert_frame_equal(adata.obs[expected.obs.columns], expected.obs)
    assert set(adata.obs) == set(expected.obs) and adata.obs.columns.is_unique and adata.var.columns.is_unique
    np.testing.assert_array_equal(adata.var["ginseng_genes"], expected.var["ginseng_genes"])
    np.testing.assert_array_equal(adata.obsm["X_ginseng"], expected.obsm["X_ginseng"])
    assert "ginseng_probs" not in adata.obsm and adata.uns["ginseng"]["model"]
    write_annotated(adata, folder / "replaced.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(folder / "replaced.h5ad").obs, adata.obs, check_categorical=False)
    if is_view:
        assert snapshot(whole) == parent


# Nothing half-way


@pytest.mark.parametrize("is_view", [False, True])
def test_results_that_cannot_be_put_in_leave_all_as_it_was(is_view):
    adata = cells()
    adata.obs["ginseng_cell_type"], adata.obs["ginseng_spread"] = "mine", 1.0
    adata.obsm["X_ginseng"], adata.obsm["ginseng_probs"] = np.ones((N_CELLS, 3)), np.zeros((N_CELLS, 1))
    adata.uns["ginseng"] = {"mine": [1]}
    adata = adata[:] if is_view else adata
    before = snapshot(adata)
    few = N_CELLS - 1
    columns = {"cell_type": pd.Categorical(["B"] * N_CELLS), "confidence": np.ones(N_CELLS)}
    of_few = Results(["B"], columns, np.ones((few, 1)), np.zeros(few, bool), np.zeros((few, 2)), {"new": 1})
    whole = Results(["B"], columns, np.ones((N_CELLS, 1)), np.zeros(N_CELLS, bool), None, {"new": 1})
    short = dataclasses.replace(whole, columns={"cell_type": ["B"]})
    for results in (of_few, dataclasses.replace(of_few, embedding=None), short):
        with pytest.raises(ValueError, match="shape|length"):  # once obs is done, or on the way
            results.put_into(adata, "ginseng", None, store_probs=True)
        assert snapshot(adata) == before
    whole.put_into(adata, "ginseng", None, store_probs=True)
    assert adata.uns["ginseng"] == {"new": 1} and set(adata.obsm) == {"ginseng_probs"}


def test_what_classify_refuses_leaves_all_as_it_was(state):
    for wrong in (
        {"layer": "none"},
        {"over": "none"},
        {"over": ["a"]},
        {"key_added": "a b"},
        {"only": ["none"]},
        {"batch_size": 0},
        {"gene_key": "none"},
        {"compat": "none"},
    ):
        refused(lambda a, wrong=wrong: classify(state, a, silent=True, **wrong), cells())


def test_groups_that_cannot_be_told_apart_are_refused(state):
    adata = cells()
    adata.obs["lists"] = pd.Series([["a"]] * N_CELLS, adata.obs_names)
    refused(lambda a: classify(state, a, over="lists", silent=True), adata, "'lists' of adata.obs cannot be told apart")
    refused(lambda a: explain(state, a, "lists", silent=True), adata, "'lists' of adata.obs cannot be told apart")


# What is written


FOREIGN = {
    "lists": lambda a: a.obs.insert(0, "mine", pd.Series([["a"]] * N_CELLS, a.obs_names)),
    "an index": lambda a: a.obs.index.set_names("donor", inplace=True),
    "two of a name": lambda a: doubled(a, "donor"),
    "half a character": lambda a: a.obs.insert(0, "mine", ["\ud800"] * N_CELLS),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_column_that_cannot_be_written_is_left_out_by_name(state, tmp_path, foreign):
    adata = cells()
    FOREIGN[foreign](adata)
    annotated = classify(state, adata, copy=True, silent=True)
    column = "mine" if "mine" in adata.obs else "donor"
    with pytest.warns(UserWarning, match=rf"annotated\.h5ad: left out .*: obs/{column}"):
        write_annotated(annotated, tmp_path / "annotated.h5ad")
    written = ginseng.read_adata(tmp_path / "annotated.h5ad", backed=False)
    assert set(annotated.obs) - set(written.obs) == {column} & set(annotated.obs)
    assert written.obs["ginseng_cell_type"].tolist() == annotated.obs["ginseng_cell_type"].tolist()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_what_is_read_and_not_written_of_uns_is_left_out(tmp_path, suffix):
    """anndata writes a complex scalar of NumPy, reads it as one of Python, and does not write that."""
    adata, path = cells(), tmp_path / f"annotated{suffix}"
    adata.uns.update(mine={"deep": 1j, "kept": 3}, other=object())
    with pytest.warns(UserWarning, match="left out what anndata reads and does not write: uns/mine/deep, uns/other"):
        write_annotated(adata, path)
    assert ginseng.read_adata(path, backed=False).uns == {"mine": {"kept": 3}}


# All of it


def odd():
    """Cells that are plain by value only, and the plain ones."""
    plain = simulate(60, seed=3)
    counts, obs = plain.X.toarray(), plain.obs.copy()
    obs["cell_type"] = pd.Categorical(obs["cell_type"].astype(str), ["unused", *TYPES[::-1]], ordered=True)
    obs["donor"] = obs["donor"].astype("string")
    obs.index = pd.Index(["same"] * 60, name="cell_type")
    obs["ginseng_cell_type"] = 1
    wide = np.asfortranarray(np.repeat(counts, 2, axis=0).astype(np.longdouble))
    adata = ad.AnnData(wide, obs.loc[:, :].iloc[np.repeat(np.arange(60), 2)], plain.var)
    return adata[::2], plain


def test_fine_tuning_on_odd_data_is_fine_tuning_on_plain_ones(state, folder):
    tuned = []
    for adata in odd():
        dataset = GinsengDataset.create(
            folder / "tuned.zarr", adata, "cell_type", group_key="donor", split={"fraction": 0.2}, silent=True
        )
        tuned.append(finetune(state, dataset, tuning_settings(calibrate="none", batch_size=32), epochs=1, silent=True))
    assert_same_weights(tuned[0].state.params, tuned[1].state.params)
    assert_same_weights(tuned[0].state.params, state.params, same=False)


def test_explaining_and_comparing_odd_data_is_doing_so_with_plain_ones(state, folder):
    adata, plain = odd()
    before = snapshot(adata)
    found = [harmonize(state, each, state, cells(), label_a="cell_type", silent=True) for each in (adata, plain)]
    pd.testing.assert_frame_equal(found[0].table, found[1].table)
    assert snapshot(adata) == before
    tables = [explain(state, each, "donor", silent=True) for each in (adata, plain)]
    pd.testing.assert_frame_equal(*tables)
    assert not adata.is_view and set(adata.uns) == {"ginseng_contributions"}
