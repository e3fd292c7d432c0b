import re

import pandas as pd

from ginseng import load_model
from tests.conftest import REPOSITORY, simulate

README = (REPOSITORY / "README.md").read_text()


def test_the_code_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate(n_cells=600).write_h5ad("reference.h5ad")
    simulate(seed=0, n_cells=60).write_h5ad("new_cells.h5ad")
    simulate(n_types=4).write_h5ad("new_labelled_cells.h5ad")
    for number in (1, 2):
        simulate(n_cells=200, seed=0).write_h5ad(f"donors{number}.h5ad")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    results = []
    for block in blocks:
        names = {}
        exec(compile(block, "README.md", "exec"), names)
        results.append(names)
    train_and_annotate, trust, any_size, training, compose, heads, tune = results
    table = train_and_annotate["table"]
    assert (table["ginseng_cell_type"].astype(str) == simulate(n_cells=60).obs["cell_type"].astype(str)).mean() > 0.9
    assert set(trust["adata"].obs["ginseng_status"]) <= {"assigned", "ambiguous", "novel"}
    assert set(trust["genes"]["type"]) == {"B cell", "NK cell", "T cell"}
    assert "<script" not in (tmp_path / "report.html").read_text()
    assert any_size["dataset"].n_cells == 400
    assert len(training["trainer"].logger.epoch) == len(pd.read_csv("atlas.csv"))
    assert type(compose["trained"]).__name__ == "NewHead"
    assert set(heads["trainer"].holdout_scores.further["donor"].table.index) <= set(heads["donors"])
    assert list(tune["tuned"].state.output_labels) == ["B cell", "T cell", "γδ T cell"]
    assert load_model("tuned.h5").n_classes == 4
    assert load_model("model.h5").n_classes == 3


def test_ten_lines_are_ten_lines():
    first = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


def test_every_file_it_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target
