import matplotlib.collections
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_hex
from scipy.spatial.distance import pdist

from ginseng import plot
from ginseng.metrics import ece, reliability, score
from ginseng.model.harmony import Harmony
from ginseng.train.logger import GinsengLogger


def texts(axes):
    return [text.get_text() for text in axes.texts]


def is_within(box, figure):
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height


def test_confusion_matrix_shows_the_numbers_of_cells(tmp_path):
    figure = plot.confusion_matrix(score(["A", "A", "A", "B"], ["A", "A", "B", "B"]))
    axes = figure.axes[0]
    assert sorted(texts(axes)) == ["1", "1", "2"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[2 / 3, 1 / 3], [0, 1]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B"]
    figure.savefig(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_training_curve_shows_every_epoch():
    figure = plot.training_curve(
        GinsengLogger([0, 1, 2], [3.0, 2.0, 1.0], [3.5, 3.0, 2.5], [0.2, 0.4, 0.6], [0.1, 0.2, 0.3])
    )
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines] == [[3.0, 2.0, 1.0], [3.5, 3.0, 2.5]]
    assert [list(line.get_ydata()) for line in right.lines] == [[0.2, 0.4, 0.6], [0.1, 0.2, 0.3]]
    assert list(right.lines[0].get_xdata()) == [1, 2, 3]


def test_embedding_gives_a_type_one_colour_in_all_panels(adata, tmp_path):
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(120, 2))
    adata.obs["predicted"] = adata.obs["cell_type"].astype(str).replace("B cell", "T cell").astype("category")
    adata.obs["confidence"] = np.linspace(0, 1, 120)
    figure = plot.embedding(adata, ["cell_type", "predicted", "confidence"])
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["cell type", "predicted", "confidence"]
    true, predicted = (
        next(c for c in axes.collections if isinstance(c, matplotlib.collections.PathCollection)) for axes in panels[:2]
    )
    same = (adata.obs["cell_type"].astype(str) == adata.obs["predicted"].astype(str)).to_numpy()
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_array_equal(true.get_facecolors()[same[order]], predicted.get_facecolors()[same[order]])
    assert not np.array_equal(true.get_facecolors(), predicted.get_facecolors())
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["B cell", "NK cell", "T cell"]
    figure.savefig(tmp_path / "e.png")


@pytest.mark.parametrize("n_types", [1, 10, 11, 25, 60, 300])
@pytest.mark.parametrize("length", [6, 60])
def test_every_type_has_a_colour_of_its_own_and_its_name_is_in_the_picture(n_types, length):
    names = [f"{i} ".ljust(length, "x") for i in range(n_types)]
    adata = AnnData(np.zeros((n_types, 1)), obs=pd.DataFrame({"type": names}, index=names))
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(n_types, 2))
    figure = plot.embedding(adata, ["type"])
    (cells,) = (drawn for drawn in figure.axes[0].collections if len(drawn.get_offsets()) == n_types)
    assert len({to_hex(colour) for colour in cells.get_facecolors()}) == n_types
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == sorted(names)
    for dpi in (50, 150):
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        texts = [text.get_window_extent() for text in figure.legends[0].get_texts()]
        assert min(text.x0 for text in texts) > figure.axes[0].bbox.x1
        assert all(is_within(text, figure) for text in texts)
        assert figure.axes[0].bbox.width > 2.5 * dpi


@pytest.mark.parametrize(("n_types", "length"), [(2, 6), (3, 60), (40, 60)])
def test_confusion_matrix_has_room_for_its_names(n_types, length):
    names = [f"{i} ".ljust(length, "x") for i in range(n_types)]
    figure = plot.confusion_matrix(score(names, names))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title):
        assert is_within(label.get_window_extent(), figure), label
    assert axes.bbox.width > 0.35 * n_types * figure.dpi


@pytest.mark.parametrize("length", [4, 60])
def test_harmony_marks_the_labels_that_are_related_and_has_room_for_their_names(length):
    a, b = [[name.ljust(length, "x") for name in names] for names in (["CD4", "P"], ["plat", "mem", "nai"])]
    a_to_b = pd.DataFrame([[0, 0.3, 0.7], [1.0, 0, 0]], a, b)
    b_to_a = pd.DataFrame([[0, 0.81], [1.0, 0], [1.0, 0]], b, a)
    figure = plot.harmony(Harmony.of(a_to_b, b_to_a, 0.25))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert texts(axes) == ["=", ">", ">"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.9, 0, 0], [0, 0.7**0.5, 0.3**0.5]])
    assert [label.get_text() for label in axes.get_yticklabels()] == [a[1], a[0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == [b[0], b[2], b[1]]
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        assert is_within(label.get_window_extent(), figure), label


@pytest.mark.parametrize("length", [4, 60])
def test_gained_shows_each_type_before_and_after_in_the_part_that_it_is_of(length):
    b, t = "B".ljust(length, "x"), "T".ljust(length, "x")
    types = pd.MultiIndex.from_tuples([("new", b), ("new", t), ("old", t)], names=["part", "type"])
    table = pd.DataFrame({"cells": [9, 1200, 20], "before": [0.0, 0.9, 1.0], "after": [0.8, 0.7, 0.6]}, types)
    figure = plot.gained(table)
    figure.draw_without_rendering()
    new, old = figure.axes
    assert [label.get_text() for label in new.get_yticklabels()] == [f"{b} (9)", f"{t} (1,200)"]
    assert [label.get_text() for label in old.get_yticklabels()] == [f"{t} (20)"]
    before, after = new.containers
    assert [[bar.get_width() for bar in bars] for bars in (before, after)] == [[0.0, 0.9], [0.8, 0.7]]
    assert all(above.get_y() < below.get_y() for above, below in zip(before, after, strict=True))
    for axes in (new, old):
        assert axes.bbox.width > 2 * figure.dpi
        for label in (*axes.get_yticklabels(), axes.title):
            assert is_within(label.get_window_extent(), figure), label


DICHROMACIES = {  # of red, green and blue as they are emitted: Machado, Oliveira & Fernandes 2009
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


@pytest.mark.parametrize("dichromacy", DICHROMACIES)
def test_the_colour_blind_tell_ten_types_apart(dichromacy):
    names = list("abcdefghij")
    adata = AnnData(np.zeros((10, 1)), obs=pd.DataFrame({"type": names}, index=names))
    adata.obsm["X_umap"] = np.zeros((10, 2))
    (cells,) = (c for c in plot.embedding(adata, ["type"]).axes[0].collections if len(c.get_offsets()) == 10)
    seen = np.clip(cells.get_facecolors()[:, :3] ** 2.2 @ np.transpose(DICHROMACIES[dichromacy]), 0, 1) ** (1 / 2.2)
    assert pdist(seen).min() > 0.15  # of matplotlib's first ten colours: 0.07


def test_gained_of_no_held_out_cells_tells_why():
    with pytest.raises(ValueError, match="No cell was held out"):
        plot.gained(pd.DataFrame({name: [] for name in ("cells", "before", "after", "change")}))


def test_missing_embedding_or_column_is_named(adata):
    with pytest.raises(ValueError, match="embedding 'X_umap' is not in adata.obsm"):
        plot.embedding(adata, ["cell_type"])
    adata.obsm["X_umap"] = np.zeros((120, 2))
    with pytest.raises(ValueError, match="column 'celltype' is not in adata.obs; did you mean 'cell_type'"):
        plot.embedding(adata, ["celltype"])


def test_reliability_shows_every_bin_and_the_error():
    confidence, is_right = np.linspace(0.4, 0.99, 90), np.arange(90) % 2 > 0
    figure = plot.reliability(confidence, is_right)
    axes = figure.axes[0]
    table = reliability(confidence, is_right)
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), table[["confidence", "accuracy"]])
    assert axes.get_title() == f"ECE {ece(confidence, is_right):.3f}"
    both = plot.reliability({"before": confidence, "after": np.full(90, 0.5)}, is_right).axes[0]
    assert both.get_title() == f"before ECE {ece(confidence, is_right):.3f}, after ECE 0.000"
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["before", "after"]


@pytest.mark.parametrize("length", [3, 60])
def test_contributions_are_dots_of_the_first_genes_of_each_group(length):
    groups = ["B".ljust(length, "x"), "T".ljust(length, "x")]
    table = pd.DataFrame(
        {
            "group": np.repeat(groups, 3),
            "gene": ["CD79A", "CD3D", "LYZ", "CD3D", "CD79A", "LYZ"],
            "contribution": [2.0, -0.5, -0.6, 1.0, -1.0, -1.5],
            "share": [0.9, 0.1, 0.0, 0.8, 0.1, 0.0],
        }
    )
    figure = plot.contributions(table, n_genes=1)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["CD79A", "CD3D"]
    assert [label.get_text() for label in axes.get_yticklabels()] == groups
    dots = axes.collections[0]
    np.testing.assert_array_equal(dots.get_offsets(), [[0, 0], [1, 0], [1, 1], [0, 1]])
    np.testing.assert_array_equal(dots.get_array(), [2.0, -0.5, 1.0, -1.0])
    np.testing.assert_allclose(dots.get_sizes(), 110 * np.array([0.9, 0.1, 0.8, 0.1]))
    assert dots.get_clim() == (-2.0, 2.0)
    figure.draw_without_rendering()
    assert all(is_within(label.get_window_extent(), figure) for label in axes.get_yticklabels())
    assert axes.bbox.width > 0.4 * figure.dpi
