import anndata as ad
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
import pytest

from ginseng import (
    Annotator,
    AttentionClassifier,
    Ensemble,
    GinsengClassifierTrainer,
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    classify,
    explain,
    state_from_classifier_trainer,
)
from ginseng.model.background import background_of
from tests.conftest import simulate

LABELS = ["B", "NK", "T"]


def trained(adata, path, genes=None, n_epochs=15, **settings):
    dataset = GinsengDataset.create(path / "x.zarr", adata, "cell_type", genes=genes, silent=True)
    trainer = GinsengClassifierTrainer(dataset, GinsengClassifierTrainerSettings(holdout_fraction=0.0, **settings))
    trainer.fit(n_epochs, silent=True)
    return state_from_classifier_trainer(trainer)


def annotator_of(adata, n_members=1, with_background=True):
    keys = jr.split(jr.key(0), n_members)
    members = [AttentionClassifier(adata.n_vars, 3, 8, key=key) for key in keys]
    background = background_of(members[0], adata.X.toarray()) if with_background else None
    module = members[0] if n_members == 1 else Ensemble(members)
    return Annotator(module, list(adata.var_names), LABELS, background=background)


def margin(members, inputs, target):
    """Mean over members of a logit minus the mean of the others, for cells that are normalised."""
    plain = [eqx.nn.inference_mode(member.normalizing(normalize=False)) for member in members]
    logits = jnp.stack([jax.vmap(member)(inputs) for member in plain]).mean(axis=0)
    return np.asarray(logits[:, target] - logits[:, [n for n in range(3) if n != target]].mean(axis=1))


@pytest.mark.parametrize(("n_members", "with_background"), [(1, True), (3, True), (1, False)])
def test_contributions_add_up_to_the_difference_of_scores(adata, n_members, with_background):
    annotator = annotator_of(adata, n_members, with_background)
    adata.obs["group"] = np.where(adata.obs["donor"] == "d1", "one", "rest")
    table = explain(annotator, adata, "group", n_genes=None, batch_size=50, silent=True)
    members = annotator.module.members if n_members > 1 else [annotator.module]
    inputs = jax.vmap(members[0].normalized)(adata.X.toarray())
    baseline = annotator.background.expression if with_background else inputs.mean(axis=0)
    for group, of_group in table.groupby("group"):
        target = LABELS.index(of_group["type"].iloc[0])
        is_in = (adata.obs["group"] == group).to_numpy()
        expected = (margin(members, inputs, target) - margin(members, baseline[None], target))[is_in]
        tolerance = 0.03 * float(np.abs(expected).mean())
        assert of_group["contribution"].sum() == pytest.approx(expected.mean(), abs=tolerance)
        by_gene = of_group.set_index("gene").loc[list(adata.var_names)]
        np.testing.assert_allclose(by_gene["mean_expression"], inputs[is_in].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(by_gene["share"], (adata.X.toarray()[is_in] > 0).mean(axis=0), atol=1e-6)


def test_of_a_linear_module_they_are_weight_times_difference(adata):
    module = eqx.nn.Linear(30, 3, key=jr.key(0))
    table = explain(Annotator(module, list(adata.var_names), LABELS), adata, n_genes=None, silent=True)
    counts = adata.X.toarray()
    types = classify(Annotator(module, list(adata.var_names), LABELS), adata, return_table=True, silent=True)
    for group, of_group in table.groupby("group"):
        target = LABELS.index(group)
        weight = np.asarray(module.weight)
        weight = weight[target] - np.delete(weight, target, axis=0).mean(axis=0)
        is_in = (types["ginseng_cell_type"] == group).to_numpy()
        expected = weight * (counts[is_in] - counts.mean(axis=0)).mean(axis=0)
        found = of_group.set_index("gene").loc[list(adata.var_names), "contribution"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_first_genes_of_every_group_are_told_of_all_groups_and_kept(adata, tmp_path):
    annotator = annotator_of(adata)
    whole = explain(annotator, adata.copy(), "cell_type", n_genes=None, silent=True)
    table = explain(annotator, adata, "cell_type", n_genes=2, key_added="why", silent=True)
    first = whole.groupby("group").head(2)
    assert set(table["gene"]) == set(first["gene"])
    pd.testing.assert_frame_equal(table.groupby("group").head(2).reset_index(drop=True), first.reset_index(drop=True))
    assert (table.groupby("group").size() == table["gene"].nunique()).all()
    adata.write_h5ad(tmp_path / "a.h5ad")
    kept = ad.read_h5ad(tmp_path / "a.h5ad").uns["why_contributions"]
    pd.testing.assert_frame_equal(kept, table, check_index_type=False)
    from_file = explain(annotator, tmp_path / "a.h5ad", "cell_type", n_genes=2, silent=True)
    pd.testing.assert_frame_equal(from_file, table)


def test_genes_that_the_data_lack_contribute_nothing(adata):
    annotator = annotator_of(adata)
    table = explain(annotator, adata[:, 5:].copy(), n_genes=None, silent=True)
    lacking = table["gene"].isin(adata.var_names[:5])
    assert (table.loc[lacking, "contribution"] == 0).all()
    assert (table.loc[~lacking, "contribution"] != 0).any()


def test_cells_without_counts_or_group_are_left_out(adata):
    annotator = annotator_of(adata)
    adata.obs["group"] = pd.Categorical(["a"] * 100 + [None] * 20, categories=["a", "unused"])
    of_some = explain(annotator, adata[:100].copy(), "group", silent=True)
    counts = adata.X.toarray()
    empty = ad.AnnData(np.zeros((7, 30), np.float32), obs=pd.DataFrame({"group": "a"}, index=list("abcdefg")))
    empty.var_names = adata.var_names
    both = ad.concat([ad.AnnData(counts, obs=adata.obs, var=adata.var), empty])
    table = explain(annotator, both, "group", silent=True)
    pd.testing.assert_frame_equal(table, of_some, rtol=1e-4)
    with pytest.raises(ValueError, match="no cell to explain"):
        explain(annotator, empty, silent=True)


def test_what_cannot_be_used_is_named(adata):
    with pytest.raises(ValueError, match="column 'celltype' is not in adata.obs; did you mean 'cell_type'"):
        explain(annotator_of(adata), adata, "celltype", silent=True)
    with pytest.raises(ValueError, match="`n_genes` must be"):
        explain(annotator_of(adata), adata, n_genes=0, silent=True)


def test_genes_that_make_the_types_come_first(tmp_path):
    adata = simulate(n_cells=300)
    counts = np.random.default_rng(0).poisson(2.0, adata.shape).astype(np.float32)
    for nth, name in enumerate(["B cell", "NK cell", "T cell"]):
        counts[adata.obs["cell_type"] == name, nth] += 15
    adata.X = counts
    table = explain(trained(adata, tmp_path, lr=0.005, batch_size=32), adata, silent=True)
    assert dict(table.groupby("group").head(1)[["group", "gene"]].to_numpy()) == {
        "B cell": "GENE0",
        "NK cell": "GENE1",
        "T cell": "GENE2",
    }


@pytest.mark.parametrize(
    ("name", "markers"),
    [
        (
            "pbmc3k.h5ad",
            {"B": ["MS4A1", "CD79A"], "NK": ["GNLY", "NKG7"], "CD14+ Mono": ["LYZ"], "Platelet": ["PPBP"]},
        ),
        (
            "pancreas_baron_human_sub.h5ad",
            {"beta": ["INS"], "alpha": ["GCG"], "delta": ["SST"], "acinar": ["PRSS1"]},
        ),
    ],
)
def test_known_markers_are_among_the_first_ten(real_data, name, markers, tmp_path):
    adata = ad.read_h5ad(real_data(name))
    state = trained(adata, tmp_path, genes=500, n_epochs=10, hidden_dim=64)
    table = explain(state, adata, silent=True)
    first = table.groupby("group").head(10)
    for group, expected in markers.items():
        assert set(expected) <= set(first.loc[first["group"] == group, "gene"])


def test_groups_are_read_by_the_rule_of_labels(adata):
    annotator, numbers = annotator_of(adata), np.repeat([0.0, 1.0, 2.0], 40)
    adata.obs["group"] = numbers
    adata.X[0] = 0  # a cell without counts is in no group, and no reason to call the others by floats
    of_floats = explain(annotator, adata, "group", silent=True)
    assert of_floats["group"].unique().tolist() == ["0", "1", "2"]
    adata.obs["group"] = np.array(["0", "1", "nan"])[numbers.astype(int)]
    with pytest.warns(UserWarning, match=r"Some cells are in no group of column 'group' .*\(40 say 'nan'\)"):
        of_texts = explain(annotator, adata, "group", silent=True)
    assert of_texts["group"].unique().tolist() == ["0", "1"]
    adata.obs["group"] = numbers / 4
    with pytest.raises(ValueError, match="column 'group' of adata.obs holds measurements"):
        explain(annotator, adata, "group", silent=True)
