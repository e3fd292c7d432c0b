"""Notebooks are committed as they ran, and run still, with less of everything."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY, SUBPROCESS_ENVIRONMENT

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MOST_BYTES = 600_000

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def is_noise(output):
    return output.output_type == "error" or output.get("name") == "stderr" or "application/" in str(output.get("data"))


@each_notebook
def test_it_is_committed_as_it_ran(path):
    cells = code_of(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if is_noise(output)]
    assert sum(map(pictures, cells)) >= 3
    assert not [cell.source for cell in cells if pictures(cell) and not cell.metadata.get("alt")]
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_it_runs_and_shows_the_pictures_it_is_committed_with(path, tmp_path, monkeypatch):
    for name, value in SUBPROCESS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GINSENG_QUICK", "1")
    committed = nbformat.read(path, as_version=4)
    executed = nbformat.from_dict(committed)
    NotebookClient(executed, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert list(map(pictures, code_of(executed))) == list(map(pictures, code_of(committed)))


def test_there_is_a_quickstart():
    assert "quickstart" in [path.stem for path in NOTEBOOKS]
