import re
import shlex
from pathlib import Path

import anndata as ad

from ginseng import load_model
from tests.conftest import REPOSITORY, simulate
from tests.conftest import ginseng as run

README = (REPOSITORY / "README.md").read_text()


def block(language):
    (text,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return text


def test_the_code_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate(n_cells=600).write_h5ad("reference.h5ad")
    simulate(seed=0, n_cells=60).write_h5ad("new_cells.h5ad")
    truth = simulate(n_cells=60).obs["cell_type"].astype(str)
    names = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    assert (names["table"]["ginseng_cell_type"].astype(str) == truth).mean() > 0.9
    assert load_model("model.h5").n_classes == 3
    Path("model.h5").unlink()  # the commands are the other way to make it
    for line in block("bash").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "ginseng"
        run(*arguments)
    assert load_model("model.h5").calibration.source == "groups"
    assert set(ad.read_h5ad("annotated.h5ad").obs["ginseng_status"]) <= {"assigned", "ambiguous", "novel"}
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_it_is_of_two_screens():
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 10
    assert len(block("bash").splitlines()) == 4
    assert len(README.splitlines()) <= 110


def test_each_figure_links_to_its_row():
    """No claim of speed or accuracy without where it is measured."""
    (table,) = re.findall(r"\| question.*?\n\|[-|: ]+\n(.*?)\n\n", README, flags=re.DOTALL)
    for row in table.splitlines():
        assert re.search(r"\]\(benchmarks/\w+\.md#[\w-]+\)", row), row
