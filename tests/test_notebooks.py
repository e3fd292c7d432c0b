import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_the_pictures_it_is_committed_with(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    assert pictures(committed) >= 3
    executed = nbformat.from_dict(committed)
    NotebookClient(executed, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert pictures(executed) == pictures(committed)


def test_there_is_a_quickstart():
    assert "quickstart" in [path.stem for path in NOTEBOOKS]
