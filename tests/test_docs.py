"""Every block of the guides runs as it stands: Python, commands in this process, shell scripts by `bash -n`."""

import gzip
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pandas as pd
import pytest
import typer
import yaml
from scipy.io import mmwrite

from ginseng import __all__ as public_names
from ginseng import load_model
from ginseng.commands import app
from tests.conftest import QUICK, REPOSITORY, simulate
from tests.conftest import ginseng as run
from tests.test_specification import DOCUMENTED

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
MORE_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
MORE_PAGES += ("benchmarks/README.md", "benchmarks/recipes.md", "benchmarks/results.md")
_BLOCK = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
MAKING_THEIR_OWN = ("index.md", "guides/train.md")  # dataset and model


def blocks(page):
    """Language, title and text of each block of code."""
    for _, language, title, text in _BLOCK.findall((DOCS / page).read_text()):
        yield language, title.strip(), textwrap.dedent(text)


def commands(text):
    """Arguments of each `ginseng` command of a script."""
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.strip().startswith("ginseng ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the guides are at home: simulated data of the names that they use, and a model."""
    home = tmp_path_factory.mktemp("guides")
    simulate(n_cells=600).write_h5ad(home / "reference.h5ad")
    new, cells = simulate(n_cells=120), simulate(n_cells=700)
    new.obs["leiden"] = new.obs["cell_type"].cat.codes.astype(str)
    new.write_h5ad(home / "new_cells.h5ad")
    cells.write_h5ad(home / "cells.h5ad")
    cells.write_zarr(home / "cells.zarr")
    simulate(n_types=4, n_cells=300).write_h5ad(home / "new_labelled_cells.h5ad")
    (home / "in").mkdir()
    for number in (1, 2):
        simulate(n_cells=200).write_h5ad(home / f"donors{number}.h5ad")
        simulate(n_cells=40).write_h5ad(home / "in" / f"{number}.h5ad")
    other = simulate(n_cells=300)
    other.obs["type"] = other.obs["cell_type"].cat.rename_categories({"T cell": "CD3+"})
    other.write_h5ad(home / "other.h5ad")
    (home / "orthologs.tsv").write_text("GENE1\tGENE1\n")
    ten_x(new, home / "counts")
    new.obs[["cell_type", "donor"]].to_csv(home / "labels.csv")
    create = ["--label", "cell_type", "--genes", "0", "-q"]
    run("create", home / "reference.h5ad", *create, "--group", "donor", "-o", home / "reference.zarr")
    run("fit", home / "reference.zarr", "-o", home / "model.h5", "-q", *QUICK)
    run("fit", home / "other.h5ad", "--label", "type", "-o", home / "other.h5", "-q", *QUICK)
    return home


def ten_x(adata, path):
    """A folder as Cell Ranger and write10xCounts make it."""
    path.mkdir()
    with gzip.open(path / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, adata.X.T.astype(int))
    genes = pd.DataFrame({"id": adata.var_names, "name": adata.var_names, "kind": "Gene Expression"})
    genes.to_csv(path / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(adata.obs_names).to_csv(path / "barcodes.tsv.gz", header=False, index=False)


@pytest.fixture
def names_of(folder, tmp_path, monkeypatch):
    """Run the blocks of a page one after the other, in a folder of its own; give the names that its Python leaves."""
    home = tmp_path / "home"
    shutil.copytree(folder, home)
    monkeypatch.chdir(home)
    monkeypatch.setattr(jax.distributed, "initialize", lambda: None)  # see tests/train/test_devices.py

    def run_page(page):
        if page in MAKING_THEIR_OWN:
            shutil.rmtree("reference.zarr")
            Path("model.h5").unlink()
        names = {}
        for language, title, text in blocks(page):
            if language == "python":
                exec(compile(text, f"{page} {title}", "exec"), names)
            elif language == "bash":
                lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
                assert len(commands(text)) == len(lines), f"{page} has bash that is not `ginseng`"
                for arguments in commands(text):
                    run(*arguments)
        return names

    return run_page


def test_train(names_of):
    names = names_of("guides/train.md")
    assert names["trainer"].holdout_scores.table["f1"].mean() > 0.9
    assert len(pd.read_csv("run.csv")) == len(names["trainer"].logger.epoch)
    assert load_model("model.h5").metadata["settings"]["patience"] == 3


def test_trust(names_of):
    names = names_of("guides/trust.md")
    assert set(names["adata"].obs["ginseng_status"]) <= {"assigned", "ambiguous", "novel"}
    assert "<script" not in Path("report.html").read_text()


def test_large(names_of):
    names = names_of("guides/large.md")
    assert names["adata"].shape == (names["dataset"].n_cells, names["dataset"].n_genes)
    assert names["merged"].label_names == ["B cell", "T cell"]
    assert {path.name for path in Path("annotated").iterdir()} == {".ginseng", "donors1.csv", "donors2.csv"}


def test_finetune(names_of):
    names = names_of("guides/finetune.md")
    assert names["tuned"].added == ["γδ T cell"]
    assert names["together"].label_names == ["B cell", "NK cell", "T cell"]
    assert "CD3+,T cell" in Path("names.csv").read_text()


def test_compose(names_of):
    names = names_of("guides/compose.md")
    assert set(names["donor_table"]["ginseng_cell_type"]) <= {"d1", "d2", "d3", "d4"}


def test_devices(names_of):
    assert names_of("guides/devices.md")["trainer"].logger.epoch == [0, 1]
    assert load_model("hosts.h5").n_classes == 3


def test_atlas(names_of):
    names = names_of("guides/atlas.md")
    assert {path.name for path in Path("out").iterdir()} == {".ginseng", "1.csv", "2.csv"}
    run("annotate", "model.h5", "cells.h5ad", "-o", "at_once.csv", "-q")
    at_once = Path("at_once.csv").read_text()
    assert Path("cells.csv").read_text() == at_once
    assert names["table"].index.tolist() == pd.read_csv("at_once.csv", index_col=0).index.tolist()
    array, merge = (text for _, title, text in blocks("guides/atlas.md") if ".sbatch" in title)
    for number in range(1, 11):
        run(*commands(array.replace("${SLURM_ARRAY_TASK_ID}", str(number)))[0])
    shards = [f"shard_{number}.csv" for number in range(1, 11)]
    run(*commands(merge.replace("shard_*.csv", " ".join(shards)).replace("cells.csv", "merged.csv"))[0])
    assert Path("merged.csv").read_text() == at_once


def test_seurat(names_of):
    names = names_of("guides/seurat.md")
    assert names["dataset"].group_names == ["d1", "d2", "d3", "d4"]
    assert pd.read_csv("cells.csv", index_col="cell").columns[0] == "ginseng_cell_type"


def test_celltypist(names_of):
    names = names_of("guides/celltypist.md")
    assert {"predicted_labels", "majority_voting"} <= set(names["adata"].obs)


def test_differences(names_of):
    assert "ginseng_status" not in names_of("guides/differences.md")["table"]


def test_the_start_page(names_of):
    assert set(names_of("index.md")["table"]["ginseng_cell_type"]) == {"B cell", "NK cell", "T cell"}


def test_each_page_with_code_is_run_here():
    with_code = {page for page in PAGES if any(language in ("python", "bash") for language, *_ in blocks(page))}
    text = (REPOSITORY / "tests" / "test_docs.py").read_text()
    assert with_code == set(re.findall(r'names_of\("(.*?)"\)', text))


@pytest.mark.parametrize("page", PAGES)
def test_scripts_can_be_read_and_name_options_that_exist(page):
    known = typer.main.get_command(app).commands
    for language, _, text in blocks(page):
        assert language in {"python", "bash", "sh", "r", "groovy", "text"}
        if language in ("bash", "sh"):
            assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0, text
        if language != "python":
            for arguments in commands(text):
                options = {option for parameter in known[arguments[0]].params for option in parameter.opts}
                assert {word for word in arguments if re.match("--?[a-z]", word)} <= options, arguments


def dead_links(page):
    """Links of a Markdown file to what is not there, as it is read in the repository."""
    dead = []
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        if not target.startswith("http") and not (path.exists() and (not anchor or anchor in anchors_of(path))):
            dead.append(f"{target}#{anchor}")
    return dead


def anchors_of(page):
    """What a link may lead to within a Markdown file."""
    text = page.read_text()
    headings = re.findall("^#+ (.*)$", text, flags=re.MULTILINE)
    named = [re.sub("[^a-z0-9 _-]", "", line.lower()).replace(" ", "-") for line in headings]
    return {*named, *re.findall('<a id="(.*?)"></a>', text)}


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), *MORE_PAGES])
def test_links_lead_somewhere_in_the_repository_too(page):
    assert not dead_links(REPOSITORY / page)


def test_scaling_on_paper_is_what_the_script_computes():
    printed = subprocess.check_output([sys.executable, REPOSITORY / "benchmarks" / "scaling.py"], text=True)
    assert printed in (DOCS / "how" / "scaling.md").read_text()


def public_in(module):
    """Names that a module lists, or defines, for others."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return [name for name in getattr(module, "__all__", defined) if not name.startswith("_")]


class TestSite:
    @pytest.fixture(scope="class")
    def nav(self):
        config = (REPOSITORY / "mkdocs.yml").read_text()
        return re.findall(r"[\w/]+\.md", str(yaml.safe_load(config)["nav"]))

    def test_every_page_is_in_the_navigation_once(self, nav):
        of_benchmarks = {f"benchmarks/{name}.md" for name in ("README", "recipes", "results")}
        generated = {"reference/cli.md", "changelog.md", *of_benchmarks}
        assert sorted(nav) == sorted({*PAGES, *generated})

    def test_every_public_name_is_in_the_reference(self):
        pages = "".join((DOCS / page).read_text() for page in PAGES)
        documented = re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)
        assert len(documented) == len(set(documented))
        assert {f"ginseng.{name}" for name in public_names} <= set(documented)
        for path in documented:
            module, _, name = path.rpartition(".")
            assert getattr(importlib.import_module(module), name).__doc__
        names = {path.rpartition(".")[2] for path in documented}
        for module in ("cluster", "metrics", "plot", "train", "data.io"):
            assert set(public_in(importlib.import_module(f"ginseng.{module}"))) <= names, module
        in_reference = {
            name for of_module in DOCUMENTED.values() for name in of_module if re.fullmatch("[a-z]\\w+", name)
        }
        assert in_reference <= names

    def test_nothing_is_loaded_from_elsewhere(self):
        config = (REPOSITORY / "mkdocs.yml").read_text()
        assert "font: false" in config and "http" not in config
        assert not re.findall(r"!\[.*?\]\(http", "".join((DOCS / page).read_text() for page in PAGES))
