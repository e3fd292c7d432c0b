import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import ginseng
from ginseng.data.io import write_adata
from ginseng.metrics import score
from tests.conftest import untrained

EVIL = "<script>alert('x')</script> & \"co\""


class Page(HTMLParser):
    """Elements, headings and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.headings = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        last = self.tags[-1] if self.tags else None
        if last == "h2":
            self.headings.append(data)
        if last != "style":
            self.text += data + " "


def annotated(n_cells=60):
    rng = np.random.default_rng(0)
    types = rng.choice(["B", EVIL], n_cells)
    obs = pd.DataFrame(
        {"ginseng_cell_type": pd.Categorical(types), "ginseng_confidence": rng.uniform(0.5, 1, n_cells)},
        index=[f"c{i}" for i in range(n_cells)],
    )
    return AnnData(obs=obs)


def with_everything():
    adata = annotated()
    rng, n_cells = np.random.default_rng(1), adata.n_obs
    adata.obs["truth"] = np.where(np.arange(n_cells) % 10 == 0, "B", adata.obs["ginseng_cell_type"].astype(str))
    adata.obs["sample"] = np.where(np.arange(n_cells) < 20, "s1", "s2")
    adata.obs["ginseng_novelty"] = rng.uniform(size=n_cells)
    status = np.repeat(["assigned", "ambiguous", "novel"], [40, 15, 5])
    adata.obs["ginseng_status"] = pd.Categorical(status)
    adata.obs["ginseng_candidates"] = np.where(status == "ambiguous", f"B; {EVIL}", "")
    adata.obs["ginseng_consensus"] = pd.Categorical(["B"] * 59 + [None])
    adata.obs["ginseng_consensus_share"] = 0.75
    adata.obsm["X_umap"] = rng.normal(size=(n_cells, 2))
    adata.uns["ginseng"] = {
        "labels": ["B", EVIL],
        "model": "3f2a9c",
        "parameters": {"layer": EVIL},
        "preflight": {"form": "raw counts"},
        "versions": {"ginseng": "0.1.0"},
    }
    adata.uns["ginseng_contributions"] = pd.DataFrame(
        {"group": [EVIL, "B"], "type": "B", "gene": ["CD79A", "LYZ"], "contribution": [1.0, -1.0], "share": [0.9, 0.2]}
    )
    adata.uns["rank_genes_groups"] = {
        "names": np.rec.fromarrays([["MS4A1", "CD74"], ["GNLY", "NKG7"]], names=["B", "NK"]),
        "params": {"groupby": "leiden"},
    }
    return adata


def test_a_page_tells_all_that_there_is(tmp_path):
    adata = with_everything()
    ginseng.report(adata, tmp_path / "r.html", truth="truth", title=EVIL)
    page = Page(tmp_path / "r.html")
    assert page.headings == [
        "Cell types",
        "Confidence and novelty",
        "UMAP",
        "Why",
        "Markers",
        "Consensus",
        "Agreement with true types",
        "How it was made",
    ]
    counts = adata.obs["ginseng_cell_type"].value_counts()
    accuracy = score(adata.obs["truth"], adata.obs["ginseng_cell_type"]).accuracy
    for expected in (
        f"B   {counts['B']}   {counts['B'] / 60:.1%}",
        f"Accuracy {accuracy:.3f}",
        "66.7%",
        f"B; {EVIL}   15",
        "GNLY, NKG7",
        "raw counts",
        "3f2a9c",
    ):
        assert re.sub(r"\s+", " ", expected) in re.sub(r"\s+", " ", page.text)


def test_text_is_escaped_and_nothing_is_fetched(tmp_path):
    ginseng.report(with_everything(), tmp_path / "r.html", truth="truth", title=EVIL)
    page = Page(tmp_path / "r.html")
    assert EVIL in page.text
    assert "<script" not in page.source
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert "default-src 'none'" in page.source


@pytest.mark.parametrize("as_table", [False, True])
def test_what_is_not_there_is_left_out(as_table, tmp_path):
    adata = annotated()
    ginseng.report(adata.obs if as_table else adata, tmp_path / "r.html")
    assert Page(tmp_path / "r.html").headings == ["Cell types", "Confidence"]


def test_types_alone_are_enough(tmp_path):
    with pytest.raises(ValueError, match=r"r\.pdf must end in \.html"):
        ginseng.report(annotated().obs, tmp_path / "r.pdf")
    ginseng.report(annotated().obs[["ginseng_cell_type"]], tmp_path / "r.html")
    assert Page(tmp_path / "r.html").headings == ["Cell types"]


def test_cells_without_a_type_are_counted(tmp_path):
    adata = annotated()
    adata.obs.loc[adata.obs_names[:7], "ginseng_cell_type"] = np.nan
    adata.obs.loc[adata.obs_names[:7], "ginseng_confidence"] = 0
    ginseng.report(adata, tmp_path / "r.html")
    text = re.sub(r"\s+", " ", Page(tmp_path / "r.html").text)
    assert "no type 7 11.7%" in text
    assert "Confidence of 53 cells" in text


def test_a_type_called_no_type_is_one_beside_the_cells_without(tmp_path):
    adata = annotated()
    types = np.array(["no type"] * 40 + ["NA"] * 13 + [None] * 7, dtype=object)
    adata.obs["ginseng_cell_type"] = adata.obs["ginseng_consensus"] = pd.Categorical(types)
    adata.obs["truth"] = np.where(np.arange(60) < 40, "no type", "NA")
    ginseng.report(adata, tmp_path / "r.html", truth="truth")
    text = re.sub(r"\s+", " ", Page(tmp_path / "r.html").text)
    assert "cells without counts" in text
    for row in ("no type 40 66.7%", "NA 13 21.7%", "(no type) 7 11.7%", "Accuracy 0.883"):
        assert row in text
    assert "100.0% of the cells have the same type by the consensus" in text
    ginseng.mqc(adata, tmp_path / "a_mqc.json")
    counts = json.loads((tmp_path / "a_mqc.json").read_text())["data"]["a"]
    assert counts == {"no type": 40, "NA": 13, "(no type)": 7}


def test_true_types_are_compared_by_the_rule_of_labels(tmp_path):
    adata = annotated()
    adata.obs["ginseng_cell_type"] = pd.Categorical(["0", "1"] * 30)
    adata.obs["truth"] = [0.0, 1.0] * 29 + [np.nan] * 2
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(60, 2))
    ginseng.report(adata, tmp_path / "r.html", truth="truth")
    assert "Accuracy 1.000, macro-F1 1.000, on 58 cells." in Page(tmp_path / "r.html").text
    adata.obs["truth"] = np.linspace(0, 1, 60)
    with pytest.raises(ValueError, match="`truth` holds measurements"):
        ginseng.report(adata, tmp_path / "other.html", truth="truth")
    assert not (tmp_path / "other.html").exists()


def test_data_that_differ_are_not_said_to_be_new_types(tmp_path):
    adata = with_everything()
    adata.obs["ginseng_status"] = pd.Categorical(["novel"] * 30 + ["assigned"] * 30)
    ginseng.report(adata, tmp_path / "r.html")
    assert "This data set differs from the training data" in Page(tmp_path / "r.html").text


def test_what_is_asked_for_and_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="annotation 'mine_cell_type' is not in"):
        ginseng.report(annotated(), tmp_path / "r.html", key="mine")
    with pytest.raises(ValueError, match="column of true cell types 'celltype' is not in"):
        ginseng.report(annotated(), tmp_path / "r.html", truth="celltype")
    with pytest.raises(ValueError, match="column of samples 'donor' is not in"):
        ginseng.mqc(annotated(), tmp_path / "a_mqc.json", sample="donor")
    with pytest.raises(ValueError, match="must end in _mqc.json"):
        ginseng.mqc(annotated(), tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_multiqc_gets_the_cells_of_each_type_by_sample(tmp_path):
    adata = with_everything()
    ginseng.mqc(adata, tmp_path / "run7_mqc.json", sample="sample")
    content = json.loads((tmp_path / "run7_mqc.json").read_text())
    assert content["plot_type"] == "bargraph"
    expected = pd.crosstab(adata.obs["sample"], adata.obs["ginseng_cell_type"].astype(str))
    assert content["data"] == expected.T.to_dict()
    ginseng.mqc(adata, tmp_path / "run7_mqc.json")
    counts = adata.obs["ginseng_cell_type"].value_counts().to_dict()
    assert json.loads((tmp_path / "run7_mqc.json").read_text())["data"] == {"run7": counts}


@pytest.mark.parametrize("none", [np.nan, None, "nan", " "])
def test_cells_without_a_sample_are_told(none, tmp_path):
    adata = annotated()
    adata.obs["sample"] = np.array(["s1"] * 50 + ["no sample"] * 4 + [none] * 6, dtype=object)
    with pytest.warns(UserWarning, match=r"6 cells have no sample in column 'sample' .* as '\(no sample\)'"):
        ginseng.mqc(adata, tmp_path / "a_mqc.json", sample="sample")
    samples = json.loads((tmp_path / "a_mqc.json").read_text())["data"]
    assert {name: sum(of.values()) for name, of in samples.items()} == {"s1": 50, "no sample": 4, "(no sample)": 6}
    adata.obs["sample"] = [1.0, 2.0] * 30
    ginseng.mqc(adata, tmp_path / "a_mqc.json", sample="sample")
    assert set(json.loads((tmp_path / "a_mqc.json").read_text())["data"]) == {"1", "2"}


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_annotation_is_read_without_counts(suffix, tmp_path):
    adata = with_everything()
    path = tmp_path / f"a{suffix}"
    if suffix == ".h5ad":
        write_adata(adata, path)
    else:
        adata.write_zarr(path)
    found = ginseng.data.readers.read_annotation(path)
    pd.testing.assert_frame_equal(found.obs, adata.obs, check_dtype=False)
    assert set(found.uns) == set(adata.uns)
    ginseng.report(found, tmp_path / "again.html", truth="truth")
    ginseng.report(adata, tmp_path / "r.html", truth="truth")
    again, before = (sorted(Page(tmp_path / f"{name}.html").text.split()) for name in ("again", "r"))
    assert again == before  # a store has its own order of members


def test_what_the_card_of_the_model_holds_is_told(model, tmp_path):
    state = ginseng.load_model(model)
    ginseng.report(annotated(), tmp_path / "r.html", model=model)
    page = Page(tmp_path / "r.html")
    told = re.sub(r"\s+", " ", page.text)
    for name, known in state.metadata["card"]["types"].items():
        assert f"{name} {known['cells']} {known['holdout_f1']:.3f}" in told
    assert "trained on cells held-out F1" in told
    assert "calibration none, so that new cells" in told
    assert page.tags.count("pre") == 1
    assert not re.search(r"<dd>none</dd>", page.source)


def test_no_name_of_a_card_takes_the_room_of_its_text(tmp_path):
    state = untrained()
    long = "a rather long name " * 5
    state.metadata["card"] = {"types": {EVIL: {"cells": 3, "groups": 2}}, long: "short"}
    ginseng.report(annotated(), tmp_path / "r.html", model=state)
    page = Page(tmp_path / "r.html")
    assert long.strip() in page.text
    assert EVIL in page.text
    assert "fit-content(14rem) minmax(0, 1fr)" in page.source


@pytest.mark.parametrize("value", [3, "text", [1, 2], {"a": 1}, np.array(2.5), np.arange(3)])
@pytest.mark.parametrize("name", ["ginseng", "ginseng_contributions", "rank_genes_groups"])
def test_uns_of_another_kind_is_no_end_of_a_page(tmp_path, name, value):
    adata = with_everything()
    adata.uns[name] = value
    with warnings.catch_warnings(record=True) as drawn:
        warnings.simplefilter("always", UserWarning)
        ginseng.report(adata, tmp_path / "r.html")
    assert "Cell types" in Page(tmp_path / "r.html").text
    told = [str(warning.message) for warning in drawn]
    assert (name == "ginseng") != any(f"adata.uns['{name}'] is of another kind" in text for text in told)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("confidence", ["high"] * 60, r"'high' \(.*\), where numbers are expected"),
        ("confidence", pd.Categorical(["0.9"] * 60), r"'0.9' \(category\), where numbers are expected"),
        ("confidence", [True] * 60, r"'True' \(bool\), where numbers"),
        ("novelty", ["0.5"] * 60, "where numbers are expected"),
        ("consensus_share", pd.Categorical([0.5] * 60), "where numbers are expected"),
        ("status", np.arange(60), r"'0' \(int64\), where only assigned, ambiguous, novel are expected"),
        ("status", ["sure"] * 60, "'sure' .*, where only assigned"),
    ],
)
def test_a_column_of_another_kind_is_named(tmp_path, name, values, expected):
    adata = with_everything()
    adata.obs[f"ginseng_{name}"] = values
    write_adata(adata, tmp_path / "a.h5ad")
    for found in (adata, adata.obs, ginseng.data.readers.read_annotation(tmp_path / "a.h5ad")):
        with pytest.raises(ValueError, match=f"column 'ginseng_{name}' of the annotated cells holds .*{expected}"):
            ginseng.report(found, tmp_path / "r.html", truth="truth")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("name", ["confidence", "novelty", "status", "consensus_share"])
@pytest.mark.parametrize("values", [[np.nan] * 60, [None] * 60])
def test_a_column_without_a_value_is_no_end_of_a_page(tmp_path, name, values):
    adata = with_everything()
    adata.obs[f"ginseng_{name}"] = values
    ginseng.report(adata, tmp_path / "r.html")
    adata.obs["ginseng_confidence"] = pd.array([0.9] * 59 + [None], dtype="Float64")
    ginseng.report(adata, tmp_path / "r.html")
