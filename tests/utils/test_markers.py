import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ginseng import read_adata, select_markers
from ginseng.data.sources import Sources
from ginseng.utils.hvg import most_variable
from ginseng.utils.markers import effects_of, markers, moments_of, take_turns
from tests.conftest import simulate


def log_expression(adata):
    x = adata.X.toarray().astype(float)
    return np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))


def dense_effects(adata):
    """The documented formula, written with whole matrices."""
    x, types = log_expression(adata), adata.obs["cell_type"].astype(str).to_numpy()
    names = np.unique(types)
    residuals = x - np.stack([x[types == name].mean(axis=0) for name in types])
    deviation = np.sqrt((residuals**2).sum(axis=0) / (len(x) - len(names)) + 0.01)
    return names, np.stack([x[types == name].mean(axis=0) - x.mean(axis=0) for name in names]) / deviation


def dense_turns(effects, n_top_genes):
    effects, taken = effects.copy(), []
    while len(taken) < n_top_genes and (effects > 0).any():
        for of_type in effects:
            if len(taken) < n_top_genes and of_type.max() > 0:
                taken.append(int(of_type.argmax()))
                effects[:, taken[-1]] = -1.0
    return taken


def chosen(adata):
    return list(adata.var_names[adata.var["ginseng_genes"]])


def test_effects_and_choice_are_those_of_the_formula(adata):
    assert select_markers(adata, "cell_type", 10, variable_share=0.0, silent=True) is None
    names, effects = dense_effects(adata)
    taken = sorted(dense_turns(effects, 10))
    assert chosen(adata) == list(adata.var_names[taken])
    table = adata.uns["ginseng_markers"]
    assert list(table.columns) == ["type", "gene", "rank", "effect"]
    for name, of_type in zip(names, effects, strict=True):
        ordered = sorted((gene for gene in taken if of_type[gene] > 0), key=lambda gene: -of_type[gene])
        found = table[table["type"] == name]
        assert list(found["gene"]) == list(adata.var_names[ordered])
        assert list(found["rank"]) == list(range(1, len(ordered) + 1))
        np.testing.assert_allclose(found["effect"], of_type[ordered], rtol=1e-5)


def test_a_share_are_the_most_variable_genes_that_are_no_markers(adata):
    select_markers(adata, "cell_type", 10, variable_share=0.4, silent=True)
    _, effects = dense_effects(adata)
    of_types = dense_turns(effects, 6)
    variable = [gene for gene in most_variable([(120, adata.X)], adata.shape, 30, silent=True) if gene not in of_types]
    assert chosen(adata) == list(adata.var_names[sorted([*of_types, *variable[:4]])])


@settings(max_examples=15, deadline=None)
@given(chunk_size=st.integers(1, 130), seed=st.integers(0, 20), group_key=st.sampled_from([None, "donor"]))
def test_blocks_of_any_size_and_any_storage_give_equal_genes(chunk_size, seed, group_key):
    adata = simulate(seed=seed)
    whole = select_markers(adata, "cell_type", 8, group_key, silent=True, copy=True)
    for matrix in (adata.X.toarray(), sparse.csc_matrix(adata.X)):
        adata.X = matrix
        select_markers(adata, "cell_type", 8, group_key, chunk_size=chunk_size, silent=True)
        assert chosen(adata) == chosen(whole)
        pd.testing.assert_frame_equal(adata.uns["ginseng_markers"], whole.uns["ginseng_markers"], rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(n_top_genes=st.integers(1, 40), seed=st.integers(0, 100))
def test_types_take_turns(n_top_genes, seed):
    scores = np.random.default_rng(seed).normal(size=(4, 30))
    taken = list(take_turns(scores, n_top_genes))
    assert taken == dense_turns(scores, n_top_genes)


def test_a_rare_type_has_its_share():
    adata = simulate(n_cells=300)
    rare = np.flatnonzero(adata.obs["cell_type"] == "NK cell")
    adata = adata[np.setdiff1d(np.arange(300), rare[3:])].copy()
    select_markers(adata, "cell_type", 9, variable_share=0.0, silent=True)
    names, effects = dense_effects(adata)
    best = effects.argmax(axis=0)
    of_rare = [adata.var_names.get_loc(gene) for gene in chosen(adata)]
    assert (best[of_rare] == list(names).index("NK cell")).sum() >= 3


def test_effects_over_groups_are_medians_within_those_with_enough_cells():
    adata = simulate(n_cells=400, seed=3)
    types, donors = adata.obs["cell_type"].cat.codes.to_numpy(), adata.obs["donor"].astype("category").cat.codes
    donors = donors.to_numpy().copy()
    donors[(types == 0) & (donors == 1)] = 0
    of_one_type = np.flatnonzero(types == 1)[:30]
    donors[of_one_type] = 4
    x = log_expression(adata)
    moments = moments_of([(400, adata.X)], adata.shape, types, donors, silent=True)
    _, over_all = dense_effects(adata)
    mean = np.stack([x[types == name].mean(axis=0) - x.mean(axis=0) for name in range(3)])
    deviation = (mean / over_all)[0]
    for name, counted in enumerate([[0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]):
        within = [x[(types == name) & (donors == d)].mean(axis=0) - x[donors == d].mean(axis=0) for d in counted]
        np.testing.assert_allclose(effects_of(moments)[name], np.median(within, axis=0) / deviation, rtol=1e-6)


def test_groups_of_one_type_or_of_few_cells_leave_the_effects_over_all_cells(adata):
    for groups in (adata.obs["cell_type"], np.arange(adata.n_obs) // 9):
        adata.obs["group"] = np.asarray(groups).astype(str)
        by_group = select_markers(adata, "cell_type", 10, "group", silent=True, copy=True)
        over_all = select_markers(adata, "cell_type", 10, silent=True, copy=True)
        pd.testing.assert_frame_equal(by_group.uns["ginseng_markers"], over_all.uns["ginseng_markers"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_backed_equals_memory_and_the_marks_are_written_and_read(adata, tmp_path, suffix):
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"T cell": "T/NK cell"})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = read_adata(tmp_path / "cells.h5ad")
    copied = select_markers(backed, "cell_type", 9, chunk_size=50, silent=True, copy=True)
    assert "ginseng_genes" not in backed.var
    select_markers(adata, "cell_type", 9, silent=True)
    assert chosen(copied) == chosen(adata)
    written = tmp_path / f"marked.{suffix}"
    getattr(adata, f"write_{suffix}")(written)
    read = getattr(ad, f"read_{suffix}")(written)
    assert chosen(read) == chosen(adata)
    assert list(read.uns["ginseng_markers"]["gene"]) == list(adata.uns["ginseng_markers"]["gene"])
    assert set(read.uns["ginseng_markers"]["type"]) == {"B cell", "NK cell", "T/NK cell"}


def test_cells_without_a_label_are_left_out(adata):
    unlabelled = np.arange(adata.n_obs) % 3 == 0
    labelled = adata[~unlabelled].copy()
    adata.obs.loc[unlabelled, "cell_type"] = np.nan
    adata.X[unlabelled] *= 50
    with pytest.warns(
        UserWarning, match="40 of 120 cells have no label in adata.obs\\['cell_type'\\] and are left out"
    ):
        select_markers(adata, "cell_type", 9, "donor", chunk_size=7, silent=True)
    select_markers(labelled, "cell_type", 9, "donor", silent=True)
    pd.testing.assert_frame_equal(adata.uns["ginseng_markers"], labelled.uns["ginseng_markers"])


def test_inputs_of_a_dataset_give_the_genes_of_their_union(adata):
    whole = select_markers(adata, "cell_type", 9, "donor", silent=True, copy=True)
    with Sources([adata[:50].copy(), adata[50:].copy()], "cell_type", "donor") as sources:
        found = markers(
            sources.blocks(20),
            (sources.n_read, len(sources.gene_names)),
            9,
            sources.labels.codes,
            sources.groups.codes,
            silent=True,
        )
    assert [sources.gene_names[gene] for gene in sorted(found.genes)] == chosen(whole)


def test_layer_is_used_and_a_view_is_marked(adata):
    adata.layers["counts"] = adata.X
    expected = select_markers(adata, "cell_type", 9, silent=True, copy=True)
    adata.X = np.ones(adata.shape)
    view = adata[:]
    select_markers(view, "cell_type", 9, layer="counts", silent=True)
    assert chosen(view) == chosen(expected)


def test_normalised_values_are_taken_as_they_are(adata):
    expected = select_markers(adata, "cell_type", 9, silent=True, copy=True)
    adata.X = log_expression(adata)
    select_markers(adata, "cell_type", 9, target_sum=None, silent=True)
    assert chosen(adata) == chosen(expected)


def test_genes_that_no_cell_expresses_are_never_chosen(adata):
    counts = adata.X.toarray()
    counts[:, :5] = 0
    adata.X = counts
    select_markers(adata, "cell_type", 1000, silent=True)
    assert not adata.var["ginseng_genes"][:5].any()
    assert adata.var["ginseng_genes"][5:].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_key": "celltype"}, "'celltype' is not in adata.obs; did you mean 'cell_type'"),
        ({"group_key": "donors"}, "'donors' is not in adata.obs; did you mean 'donor'"),
        ({"group_key": "incomplete"}, "1 cells have no group in adata.obs\\['incomplete'\\]"),
        ({"label_key": "constant"}, "at least two labels"),
        ({"n_top_genes": 0}, "n_top_genes.*at least 1"),
        ({"variable_share": 1.0}, "variable_share.*\\[0, 1\\)"),
        ({"chunk_size": 0}, "at least one"),
        ({"layer": "count"}, "'count' is not in adata.layers; did you mean 'counts'"),
        ({"layer": "negative"}, "must not be negative"),
        ({"layer": "equal"}, "No gene differs between the types"),
    ],
)
def test_bad_parameters_are_refused_and_nothing_is_marked(adata, options, message):
    adata.obs["constant"] = "B"
    adata.obs["incomplete"] = ["d1"] * 119 + [None]
    adata.layers.update(counts=adata.X, negative=-adata.X, equal=np.ones(adata.shape))
    with pytest.raises(ValueError, match=message):
        select_markers(adata, **{"label_key": "cell_type", "silent": True, **options})
    assert "ginseng_genes" not in adata.var


def test_a_view_of_a_backed_file_and_raw_are_refused(adata, tmp_path):
    adata.raw = adata
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = read_adata(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="view of a backed AnnData; pass copy=True"):
        select_markers(backed[:100], "cell_type", silent=True)
    with pytest.raises(ValueError, match="adata.raw has genes of its own"):
        select_markers(adata, "cell_type", layer="raw", silent=True)


def test_known_markers_of_real_cells(real_data):
    adata = read_adata(real_data("pbmc_kang_ctrl_8donors.h5ad"))
    select_markers(adata, "cell_type", 100, silent=True)
    best = adata.uns["ginseng_markers"].query("rank <= 10").groupby("type", observed=True)["gene"].agg(set)
    assert "CD79A" in best["B cells"]
    assert {"GNLY", "NKG7"} <= best["NK cells"]
    assert {"TYROBP", "S100A8"} <= best["CD14+ Monocytes"]
