"""What the project is distributed by agrees with it: versions, dependencies, release, image, Nextflow module."""

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import anndata as ad
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import pytest
import yaml

from ginseng import AttentionClassifier
from tests.conftest import REPOSITORY, simulate

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
RECIPE = yaml.safe_load((REPOSITORY / "recipe" / "recipe.yaml").read_text())
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
MODULE = REPOSITORY / "nextflow" / "modules" / "ginseng" / "annotate"
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
GITHUB = REPOSITORY / ".github"


def test_every_file_names_the_version():
    assert RECIPE["context"]["version"] == VERSION
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == VERSION
    environment = yaml.safe_load((MODULE / "environment.yml").read_text())
    assert environment["dependencies"] == [f"conda-forge::ginseng-eqx={VERSION}"]
    named = re.findall(r"ginseng-eqx:(\S+?)[\s\"]", DOCKERFILE + (MODULE / "main.nf").read_text())
    assert named == [VERSION] * 3


def test_the_recipe_needs_what_the_wheel_needs():
    declared = [re.sub(r"\[.*\]", "", requirement).replace(">=", " >=") for requirement in PROJECT["dependencies"]]
    assert sorted(RECIPE["requirements"]["run"]) == sorted(["python >=${{ python_min }}", *declared])
    assert PROJECT["requires-python"] == f">={RECIPE['context']['python_min']}"
    scripts = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert RECIPE["build"]["python"]["entry_points"] == scripts


@pytest.mark.parametrize(
    ("tag", "heading", "refusal"),
    [
        ("v1.2.3", "1.2.3 (2026-01-31)", ""),
        ("v1.2.4", "1.2.4 (2026-01-31)", "pyproject.toml has another version than 1.2.4."),
        ("v1.2.3", "1.2.3 (unreleased)", "CHANGELOG.md lacks '## 1.2.3 (date)'."),
        ("v1.2.3", "1x2.3 (2026-01-31)", "CHANGELOG.md lacks '## 1.2.3 (date)'."),
    ],
)
def test_a_release_needs_its_version_and_its_changes(tmp_path, tag, heading, refusal):
    workflow = yaml.safe_load((GITHUB / "workflows" / "release.yml").read_text())
    (check,) = (step["run"] for step in workflow["jobs"]["build"]["steps"] if step.get("name", "").startswith("check"))
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ginseng-eqx"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n\nSomething.\n")
    command = ["bash", "-eo", "pipefail", "-c", check]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "GITHUB_REF_NAME": tag}, capture_output=True, text=True
    )
    assert (done.returncode != 0, done.stdout.strip()) == (bool(refusal), refusal)


def test_the_image_is_made_of_what_is_there():
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    kept = [pattern.removeprefix("!") for pattern in ignored if pattern.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for source in " ".join(copied).split():
        assert (REPOSITORY / source).exists()
        assert any(fnmatch(source, pattern) for pattern in kept), f".dockerignore leaves {source} out"
    extras = re.search(r"/source\[(.+?)\]", DOCKERFILE).group(1)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert PROJECT["readme"] in kept
    assert set(PROJECT["license-files"]) <= set(kept)


@pytest.fixture
def image(tmp_path):
    """The environment of a container without a home that could be written to."""
    variables = dict(re.findall(r"^ENV (\w+)=(\S+)$", DOCKERFILE, flags=re.MULTILINE))
    caches = {name: value.replace("/tmp", str(tmp_path), 1) for name, value in variables.items() if name != "PATH"}
    assert len(caches) == 3
    assert all(value.startswith(str(tmp_path)) for value in caches.values())
    path = [str(Path(sys.executable).parent), *variables["PATH"].split(":")[1:]]
    return {**caches, "PATH": ":".join(path), "PYTHONPATH": str(REPOSITORY), "HOME": "/dev/null"}


def bash(commands, env, folder):
    command = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def block(name, **values):
    """What Nextflow would give to bash for a block of the process."""
    process = (MODULE / "main.nf").read_text()
    text = re.search(rf'^    {name}:\n.*?"""\n(.*?)    """', process, flags=re.DOTALL | re.MULTILINE).group(1)
    text = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda found: str(values[found.group(1)]), textwrap.dedent(text))
    return text.replace("\\$", "$")


def test_the_nextflow_module_in_the_image(tmp_path, model, image):
    simulate(seed=3).write_h5ad(tmp_path / "cells.h5ad")
    options = "--probabilities --report report.html"  # with pictures, for which Matplotlib keeps its fonts
    values = {"model": model, "h5ad": "cells.h5ad", "prefix": "out", "args": options, "task.process": "FLOW:ANNOTATE"}
    stderr = bash(block("script", **values), image, tmp_path)
    assert "warning" not in stderr
    assert yaml.safe_load((tmp_path / "versions.yml").read_text()) == {"FLOW:ANNOTATE": {"ginseng": VERSION}}
    annotated = ad.read_h5ad(tmp_path / "out.h5ad")
    assert annotated.obsm["ginseng_probs"].shape == (120, 3)
    assert annotated.obs["ginseng_confidence"].between(0, 1).all()
    assert list((tmp_path / "cache" / "ginseng" / "jax").iterdir())
    assert json.loads(re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, flags=re.MULTILINE).group(1)) == ["ginseng"]


def test_the_stub_of_the_nextflow_module(tmp_path, image):
    bash(block("stub", prefix="out", **{"task.process": "FLOW:ANNOTATE"}), image, tmp_path)
    assert yaml.safe_load((tmp_path / "versions.yml").read_text()) == {"FLOW:ANNOTATE": {"ginseng": VERSION}}
    assert (tmp_path / "out.h5ad").stat().st_size == 0


def test_the_nextflow_module_is_described():
    process, described = (MODULE / "main.nf").read_text(), yaml.safe_load((MODULE / "meta.yml").read_text())
    emitted = re.findall(r"emit: (\w+)", process)
    assert list(described["output"]) == emitted == ["h5ad", "versions"]
    of_cells, model = described["input"]
    assert [*(name for given in of_cells for name in given), *model] == re.findall(
        r"\b(?:val\(|path\(|path )(\w+)", re.search(r"input:(.*?)output:", process, flags=re.DOTALL).group(1)
    )
    assert described["name"].upper() == re.search(r"^process (\w+)", process).group(1)


def test_the_forms_of_issues():
    forms = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["annotation", "bug", "feature"]
    for form in forms:
        asked = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= set(asked)
        fields = [field for field in asked["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)


def test_types_are_seen_by_those_who_import_it():
    assert (REPOSITORY / "ginseng" / "py.typed").read_text() == ""


def test_the_style_that_is_asked_for_runs(dataset):
    asked = re.findall(r"```python\n# not this\n.*?# but this\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    composed, network, error = asked
    model = AttentionClassifier(dataset.n_genes, len(dataset.label_names), 8, key=jr.key(0))
    names = {"dataset": dataset, "model": model}
    exec(composed, names)
    assert eqx.nn.inference_mode(names["trained"])(jnp.ones(dataset.n_genes)).shape == (3,)
    names = {"x": jnp.ones((5, 30))}
    exec(network, names)
    assert names["logits"].shape == (5, 3)
    names = {}
    exec(error, names)
    assert names["parse"]("3/10") == (3, 10)
    with pytest.raises(ValueError, match="but got 'three'"):
        names["parse"]("three")


def test_every_file_that_is_linked_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", CONTRIBUTING):
        assert (REPOSITORY / target).exists(), target
    assert set(re.findall(r"^make ([\w-]+)", CONTRIBUTING, flags=re.MULTILINE)) <= set(
        re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    )
