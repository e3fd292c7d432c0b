"""Consensus over clusters: who has a voice, what it is called, and what stays as it was."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ginseng.cluster import leiden
from ginseng.metrics import score
from ginseng.model.consensus import (
    celltypist_columns,
    clusters_in,
    consensus,
    novel_by_cluster,
    require_way,
)

OBS = pd.DataFrame({"leiden": ["0", "0", "1"], "total": [3.5, 4.0, 1.0]}, index=["a", "b", "c"])


@st.composite
def cells(draw):
    n_cells, n_labels = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    raw = draw(hnp.arrays(np.float32, (n_cells, n_labels), elements=st.floats(0.0078125, 1, width=32)))
    clusters = draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=n_cells, max_size=n_cells))
    is_empty = draw(hnp.arrays(bool, n_cells))
    return raw / raw.sum(axis=1, keepdims=True), pd.Categorical(clusters, categories=["a", "b", "c"]), is_empty


@given(cells(), st.sampled_from(["soft", "majority"]))
def test_label_and_share_are_those_worked_out_cell_by_cell(given, way):
    probabilities, clusters, is_empty = given
    codes, share = consensus(probabilities, clusters, way, is_empty=is_empty)
    own = probabilities.argmax(axis=1)
    for cell in range(len(own)):
        if is_empty[cell]:
            assert codes[cell] == -1
            assert np.isnan(share[cell])
        elif clusters.codes[cell] < 0:
            assert codes[cell] == own[cell]
            assert np.isnan(share[cell])
        else:
            fellows = (clusters.codes == clusters.codes[cell]) & ~is_empty
            assert share[cell] == np.float32((own[fellows] == codes[cell]).mean())
            mean = probabilities[fellows].mean(axis=0)
            votes = np.bincount(own[fellows], minlength=probabilities.shape[1])
            if way == "majority":
                assert votes[codes[cell]] == votes.max()
                assert mean[codes[cell]] >= mean[votes == votes.max()].max() - 1e-6
            else:
                both = 0.75 * probabilities[cell] + 0.25 * mean
                assert both[codes[cell]] >= both.max() - 1e-6


def test_a_sure_rare_cell_keeps_its_name_in_the_soft_consensus_only():
    probabilities = np.array([[0.9, 0.1]] * 9 + [[0.02, 0.98]] + [[0.47, 0.53]], np.float32)
    clusters = pd.Categorical(["0"] * 11)
    soft, share = consensus(probabilities, clusters)
    assert soft.tolist() == [0] * 9 + [1, 0]
    np.testing.assert_allclose(share, [9 / 11] * 9 + [2 / 11, 9 / 11])
    assert consensus(probabilities, clusters, "majority").codes.tolist() == [0] * 11


def test_a_cluster_of_one_and_a_weight_of_nothing_change_nothing():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 20).astype(np.float32)
    own = probabilities.argmax(axis=1)
    alone = pd.Categorical([str(cell) for cell in range(20)])
    for way in ("soft", "majority"):
        codes, share = consensus(probabilities, alone, way)
        assert codes.tolist() == own.tolist()
        assert share.tolist() == [1.0] * 20
    assert consensus(probabilities, pd.Categorical(["0"] * 20), weight=0.0).codes.tolist() == own.tolist()


def test_cells_of_no_clusters_at_all():
    clusters = pd.Categorical([None, None])
    assert consensus(np.array([[0.4, 0.6], [0.9, 0.1]]), clusters).codes.tolist() == [1, 0]
    assert consensus(np.zeros((0, 2)), clusters[:0]).codes.tolist() == []


class TestClustersIn:
    @pytest.mark.parametrize(
        "over",
        ["leiden", ["0", "0", "1"], np.array([0, 0, 1]), np.array([0.0, 0.0, 1.0]), OBS["leiden"].astype("category")],
    )
    def test_columns_and_arrays(self, over):
        assert clusters_in(OBS, over).codes.tolist() == [0, 0, 1]

    @pytest.mark.parametrize("over", [["0", None, "1"], np.array([0, np.nan, 1]), pd.array([0, None, 1], "Int64")])
    def test_cells_without_one(self, over):
        assert clusters_in(OBS, over).codes.tolist() == [0, -1, 1]

    def test_a_text_that_says_none_is_no_cluster(self):
        with pytest.warns(UserWarning, match=r"no cluster in `over` \(1 says 'nan'\) and keep their own label"):
            assert clusters_in(OBS, ["0", "nan", "1"]).codes.tolist() == [0, -1, 1]

    def test_their_order_and_names(self):
        assert list(clusters_in(OBS, np.array([10.0, 2.0, 2.0])).categories) == ["2", "10"]

    @pytest.mark.parametrize(
        ("over", "told"),
        [
            (np.array([0, 1, np.inf]), "`over` holds measurements, such as inf"),
            (pd.Categorical([0.0, 0.5, np.nan]), "`over` holds measurements, such as 0.5"),
            ("louvain", "column 'louvain' is not in adata.obs.* It has: leiden, total"),
            ("total", "column 'total' of adata.obs holds measurements, such as 3.5"),
            (["0", "1"], "one cluster for each of the 3 cells, but has the shape \\(2,\\)"),
            (5, "one cluster for each of the 3 cells, but has the shape \\(\\)"),
            (OBS["leiden"].set_axis(["c", "b", "a"]), "index is not adata.obs_names: pass over=series.reindex"),
        ],
    )
    def test_what_is_refused(self, over, told):
        with pytest.raises(ValueError, match=told):
            clusters_in(OBS, over)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="`consensus` must be 'soft' or 'majority', but got 'hard'"):
        require_way("hard")
    with pytest.raises(ValueError, match="`consensus` must be"):
        consensus(np.ones((1, 1)), pd.Categorical(["0"]), "hard")


class TestNovelByCluster:
    def test_the_cluster_of_a_new_type_is_named(self):
        rng = np.random.default_rng(0)
        clusters = pd.Categorical(np.repeat(["known", "new", "few"], [500, 40, 2]))
        novelty = rng.random(542) ** np.repeat([1.0, 0.2, 0.01], [500, 40, 2])
        table = novel_by_cluster(novelty, clusters)
        assert table["is_novel"].to_dict() == {"few": False, "known": False, "new": True}
        assert table["n_cells"].to_dict() == {"few": 2, "known": 500, "new": 40}
        assert table.loc["known", "novel_share"] == pytest.approx(0.05, abs=0.03)

    def test_known_types_alone_are_seldom_named(self):
        rng = np.random.default_rng(0)
        clusters = pd.Categorical(np.arange(4000) % 40)
        n_named = [novel_by_cluster(rng.random(4000), clusters)["is_novel"].any() for _ in range(50)]
        assert np.mean(n_named) < 0.05

    def test_cells_without_counts_or_cluster_are_not_counted(self):
        clusters = pd.Categorical(["0", "0", None, "1"])
        table = novel_by_cluster(np.ones(4), clusters, is_empty=np.array([False, True, False, True]))
        assert table["n_cells"].tolist() == [1, 0]
        assert table["novelty"].tolist() == [1.0, 0.0]
        assert novel_by_cluster(np.ones(1), pd.Categorical([None])).empty

    def test_the_error_is_a_share(self):
        with pytest.raises(ValueError, match=r"`novel_error` must lie in \(0, 1\), but got 5.0"):
            novel_by_cluster(np.ones(1), pd.Categorical(["0"]), 5.0)


def test_columns_of_celltypist():
    cell_type, clusters = pd.Categorical(["B", "T"]), pd.Categorical(["0", "0"])
    columns = celltypist_columns(cell_type, np.array([0.9, 0.6]), clusters, pd.Categorical(["T", "T"]))
    assert list(columns) == ["predicted_labels", "over_clustering", "majority_voting", "conf_score"]
    assert columns["over_clustering"].tolist() == ["0", "0"]


class TestLeiden:
    points = np.repeat(np.eye(3) * 20, 40, axis=0) + np.random.default_rng(0).normal(size=(120, 3))

    def test_groups_far_apart_share_no_cluster(self):
        group = np.repeat([0, 1, 2], 40)
        clusters = leiden(self.points)
        assert (pd.crosstab(clusters, group) > 0).sum(axis=1).max() == 1
        assert len(clusters.categories) > len(leiden(self.points, 0.01).categories) == 3

    def test_equal_seeds_give_equal_clusters(self):
        assert leiden(self.points, seed=3).tolist() == leiden(self.points, seed=3).tolist()

    @pytest.mark.parametrize("n_cells", [0, 1, 3, 4, 10])
    def test_few_cells(self, n_cells):
        assert len(leiden(self.points[:n_cells])) == n_cells

    def test_many_cells(self):
        points = np.repeat(np.eye(3) * 20, 1500, axis=0) + np.random.default_rng(0).normal(size=(4500, 3))
        assert (pd.crosstab(leiden(points), np.arange(4500) // 1500) > 0).sum(axis=1).max() == 1

    def test_what_is_refused(self):
        with pytest.raises(ValueError, match="must be finite"):
            leiden(np.array([[np.nan]]))
        with pytest.raises(ValueError, match="`resolution` must lie in"):
            leiden(self.points, 0.0)


def test_flickering_labels_are_put_right_by_clusters_that_are_made():
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1, 2], 100)
    points = 12 * np.eye(3)[group] + rng.normal(size=(300, 3))
    probabilities = rng.dirichlet(np.ones(3), 300).astype(np.float32) + 0.5 * np.eye(3, dtype=np.float32)[group]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    agreed = consensus(probabilities, leiden(points)).codes
    alone = score(group.astype(str), probabilities.argmax(axis=1).astype(str)).accuracy
    assert score(group.astype(str), agreed.astype(str)).accuracy > alone + 0.03
