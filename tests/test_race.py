"""The race: JSON lines, the page made of them, and contestants that fail or cannot be installed."""

import json
import re
import sys

import anndata as ad
import numpy as np
import pytest

from benchmarks.contestants import CHECKOUT, Contestant, Failed
from benchmarks.race import environments, judging, measuring
from benchmarks.race.__main__ import make_environments
from benchmarks.race.asking import ASKED, Inputs, Scale
from benchmarks.race.measuring import Race
from benchmarks.race.page import compared, latest, read, write_page
from benchmarks.race.questions import BY_NAME, OURS, QUESTIONS, REFERENCE
from benchmarks.race.splits import labelled, split
from tests.conftest import simulate

RUN = {"run": "2026-11-28T10:00:00+00:00", "machine": "2 cores (Xeon), 24 GiB, Linux", "load": 0.5}
RUN |= {
    "versions": {"jax": "1.2.3"},
    "command": "python -m benchmarks.race --data DIR",
    "date": "2026-11-28T10:01:00+00:00",
}


@pytest.fixture
def race(tmp_path, monkeypatch):
    """A race of ours alone, in the environment of the tests."""
    monkeypatch.setattr(measuring, "versions", lambda contestant: {"jax": "1.2.3"})
    race = Race(tmp_path / "results.jsonl", "make bench", timeout=120)
    race.enter(Contestant(OURS, sys.executable, CHECKOUT))
    return race


def lines(race):
    return [json.loads(line) for line in race._results.read_text().splitlines()]


def line(by, value, nth=0, question="step", figure="cells/s", case="500 genes", **more):
    return {**RUN, "question": question, "case": case, "by": by, "round": nth, "figures": {figure: value}, **more}


def recorded(path, *found):
    path.write_text("".join(json.dumps(each) + "\n" for each in found))
    return path


def test_a_question_ends_in_json_lines(race, tmp_path):
    inputs = Inputs(race, Scale(sizes=(120,), rounds=1), tmp_path, None)
    simulate().write_h5ad(tmp_path / "120.h5ad")
    ASKED["create"](inputs)
    (found,) = lines(race)
    assert found["question"], found["case"] == ("create", "120 cells")
    assert (found["by"], found["round"], found["cells"]) == (OURS, 0, 120)
    assert set(found["figures"]) == {"cells/s", "MiB on disk", "peak MiB"}
    assert found["figures"]["peak MiB"] > 50
    assert found["versions"] == {"jax": "1.2.3"}
    assert found["command"] == "make bench"
    assert {"run", "machine", "load", "date"} <= set(found)
    assert set(found["figures"]) >= {BY_NAME["create"].figure, *BY_NAME["create"].others}


def test_every_question_is_asked_or_shows_what_others_measured():
    assert {name for question in QUESTIONS for name in question.measured} == set(ASKED)


class TestFailures:
    def test_one_that_fails_is_told_and_the_rest_is_kept(self, race, tmp_path, capsys):
        simulate().write_h5ad(tmp_path / "cells.h5ad")
        race.enter(Contestant("CellTypist", "/no/such/python"))
        for nth in range(2):
            for of in (OURS, "CellTypist"):
                race.measure("whole", "cells", of, nth, "stream_scipy", tmp_path / "cells.h5ad")
        kept = [(each["by"], each["round"]) for each in lines(race) if "figures" in each]
        failed = [each for each in lines(race) if "failed" in each]
        assert kept == [(OURS, 0), (OURS, 1)]
        assert [each["by"] for each in failed] == ["CellTypist"]  # not tried again
        assert "/no/such/python" in failed[0]["failed"]
        assert "CellTypist: failed" in capsys.readouterr().out

    def test_what_a_process_says_last_is_told(self, race, tmp_path):
        race.measure("whole", "cells", OURS, 0, "stream_scipy", tmp_path / "missing.h5ad")
        (found,) = lines(race)
        assert "missing.h5ad" in found["failed"]
        assert "\n" not in found["failed"]

    def test_one_that_cannot_be_installed_is_left_out(self, race, monkeypatch, capsys):
        monkeypatch.setattr(environments, "UV", (sys.executable, "-c", "import sys; sys.exit('no network')"))
        monkeypatch.setattr(environments, "ENVIRONMENTS", {"x": environments.Environment(("x",), (9, 0))})
        monkeypatch.setattr("benchmarks.race.__main__.CHECKOUT", race._results.parent)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        make_environments(race, ["x"], "3.12", None)
        (found,) = lines(race)
        assert (found["by"], found["left out"]) == ("x", "no network")
        assert list(race.contestants) == [OURS]
        assert "x is left out: no network" in capsys.readouterr().out

    def test_without_uv_the_way_out_is_named(self, race, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(Failed, match="pip install uv"):
            make_environments(race, [OURS], "3.12", None)

    def test_results_of_earlier_and_killed_runs_stay(self, race, tmp_path):
        path = recorded(tmp_path / "earlier.jsonl", line(OURS, 5.0))
        with path.open("a") as file:
            file.write('{"run": "2026-11-29", "quest')
        Race(path, "make bench").leave_out("x", Failed("no Python 3.12"))
        table = read(path)
        assert table["cells/s"].tolist() == [5.0]
        assert json.loads(path.read_text().splitlines()[-1])["left out"] == "no Python 3.12"


class TestPage:
    def test_ratios_are_of_the_same_round(self, tmp_path):
        found = [line(OURS, value, nth) for nth, value in enumerate((10.0, 30.0, 60.0))]
        found += [line(REFERENCE, value, nth) for nth, value in enumerate((10.0, 10.0, 30.0, 1.0))]
        table = read(recorded(tmp_path / "results.jsonl", *found))
        (row,) = compared(table, BY_NAME["step"]).to_dict("records")
        assert row == {"case": "500 genes", "by": REFERENCE, "average": 2.0, "least": 1.0, "most": 3.0, "rounds": 3}

    def test_shares_are_compared_in_points_by_their_means(self, tmp_path):
        shares = {
            "pbmc": {OURS: (0.9, 0.8, 0.9), "x": (0.85, 0.8, 0.88), "z": (0.9,)},
            "gut": {OURS: (0.5,), "x": (0.6,)},
        }
        found = [
            line(by, share, nth, "accuracy", "accuracy", case)
            for case, of_case in shares.items()
            for by, of_rounds in of_case.items()
            for nth, share in enumerate(of_rounds)
        ]
        path = recorded(tmp_path / "results.jsonl", *found)
        assert compared(read(path), BY_NAME["accuracy"])["average"].tolist() == pytest.approx([7 / 3, -10.0, 0.0])
        page = write_page(path).read_text()
        assert "- beside x: **-3.8** over all; **+2.3** (+0.0 to +5.0) pbmc; **-10.0** (one round) gut" in page
        assert "- beside z: **+0.0** (one round) pbmc\n" in page  # not of all cases, and so without their mean
        assert "| pbmc | ginseng-eqx | 0.867 | 3 |" in page

    def test_only_the_last_run_of_a_question_is_shown(self, tmp_path):
        later = {"run": "2026-11-30T10:00:00+00:00"}
        found = [line(OURS, 1.0), line(OURS, 2.0) | later, line(OURS, 3.0, question="epoch")]
        assert latest(read(recorded(tmp_path / "results.jsonl", *found)))["cells/s"].tolist() == [2.0, 3.0]

    def test_a_section_has_ratio_spread_picture_table_machine_and_command(self, tmp_path):
        found = [line(OURS, value, nth) for nth, value in enumerate((10.0, 30.0, 60.0))]
        found += [line(REFERENCE, value, nth) for nth, value in enumerate((10.0, 10.0, 30.0))]
        found += [{**RUN, "question": "step", "case": "500 genes", "by": "x", "round": 0, "failed": "no <memory>"}]
        found += [{**RUN, "by": "annbatch", "left out": "no Python 3.12"}]
        page = write_page(recorded(tmp_path / "results.jsonl", *found)).read_text()
        assert '<a id="step"></a>' in page
        assert f"- beside {REFERENCE}: **2** (1 to 3) 500 genes" in page
        assert "| 500 genes | ginseng-eqx | 30 | 3 |" in page
        assert "2 cores (Xeon), 24 GiB, Linux; 2026-11-28" in page
        assert "jax 1.2.3" in page
        assert "python -m benchmarks.race --data DIR" in page
        assert "x, 500 genes: failed in 1 of its rounds: no memory" in page
        assert "annbatch was left out: no Python 3.12" in page
        (picture,) = re.findall(r"!\[.*\]\((.*\.svg)\)", page)
        assert (tmp_path / picture).read_text().startswith("<?xml")
        assert page.index("**2**") < page.index(picture) < page.index("| 500 genes |") < page.index("2 cores")

    def test_types_left_out_are_named(self, tmp_path):
        seen = line(OURS, 0.9, 0, "novelty", "AUROC", "pbmc", details={"training cells": 90, "withheld": "B cell"})
        page = write_page(recorded(tmp_path / "results.jsonl", seen, line(OURS, 0.9, 1, "novelty", "AUROC", "pbmc")))
        assert "Left out by each seed, and our AUROC: B cell 0.9 (pbmc)." in page.read_text()
        assert page.read_text().count("Left out") == 1

    def test_memory_is_shown_by_what_was_done(self, tmp_path):
        found = [line(by, mib, 0, question, "peak MiB", "9 cells") for by, mib in ((OURS, 300), (REFERENCE, 600))
                 for question in ("create", "epoch")]  # fmt: skip
        table = read(recorded(tmp_path / "results.jsonl", *found))
        comparison = compared(table, BY_NAME["memory"])
        assert comparison["case"].tolist() == ["create, 9 cells", "epoch, 9 cells"]
        assert comparison["average"].tolist() == [0.5, 0.5]


class TestSplits:
    def test_donors_are_held_out_whole_and_a_type_withheld(self, tmp_path):
        adata = simulate(n_cells=300)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        told = split(str(tmp_path / "cells.h5ad"), str(tmp_path / "split"), "0", "withhold")
        train, test = (ad.read_h5ad(tmp_path / "split" / f"{part}.h5ad") for part in ("train", "test"))
        assert told["withheld"] not in set(train.obs["cell_type"])
        assert (test.obs["cell_type"] == told["withheld"]).sum() == (adata.obs["cell_type"] == told["withheld"]).sum()
        assert (told["training cells"], told["test cells"]) == (train.n_obs, test.n_obs)
        donors = {x.tobytes(): donor for x, donor in zip(adata.X.toarray(), adata.obs["donor"], strict=True)}
        trained_on = {donors[x.tobytes()] for x in train.X.toarray()}
        seen = test[test.obs["cell_type"] != told["withheld"]]
        assert not trained_on & {donors[x.tobytes()] for x in seen.X.toarray()}

    def test_files_without_labels_are_passed_over(self, tmp_path):
        for name, adata in (("a", simulate()), ("b", simulate(n_genes=40)), ("c", simulate(n_genes=50))):
            if name == "c":
                del adata.obs["cell_type"]
            adata.write_h5ad(tmp_path / f"{name}.h5ad")
        found = labelled([str(tmp_path / f"{name}.h5ad") for name in "abc"])
        assert found == {
            "files": [str(tmp_path / f"{name}.h5ad") for name in "ab"],
            "largest": str(tmp_path / "b.h5ad"),
        }


def test_labels_are_judged_on_types_that_were_trained_on(tmp_path):
    for name, adata in (("train", simulate(60, n_types=2)), ("test", simulate(90))):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    truth = simulate(90).obs["cell_type"].astype(str).to_numpy()
    known = np.isin(truth, simulate(60, n_types=2).obs["cell_type"].unique())
    rows = [
        f"{label if is_known else 'B cell'},0.5,{0 if is_known else 1}"
        for label, is_known in zip(truth, known, strict=True)
    ]
    (tmp_path / "predicted.csv").write_text("\n".join(["type,confidence,novelty", *rows]))
    assert judging.labels(tmp_path) == {"accuracy": 1.0, "macro-F1": 1.0, "ECE": 0.5}
    (withheld,) = set(truth[~known])
    assert judging.labels(tmp_path, withheld) == {"AUROC": 1.0}
