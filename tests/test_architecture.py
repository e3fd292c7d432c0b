"""The package imports in one direction, at the top of its modules, and keeps to what it declares."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import ginseng
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "ginseng"
# Each module may import from those before it only.
ORDER = [
    "utils.messages",
    "utils.files",
    "utils.memory",
    "utils.ahead",
    "utils.digest",
    "utils.transpose",
    "utils.counts",
    "utils.genes",
    "utils.hvg",
    "utils",
    "metrics",
    "model.nn",
    "model.attention",
    "model.functional",
    "model.instance",
    "model.state",
    "model",
    "data.tenx",
    "data.io",
    "data.sampling",
    "data.annotation",
    "data.sources",
    "data.shards",
    "data.store",
    "data.reading",
    "data.streaming",
    "data.dataset",
    "data",
    "model.predict",
    "train.augment",
    "train.opt",
    "train.schedule",
    "train.recipe",
    "train.precision",
    "train.devices",
    "train.step",
    "train.feed",
    "train.logger",
    "train.run",
    "train.checkpoint",
    "train.settings",
    "train.loop",
    "train.trainer",
    "train",
    "plot",
    "demo",
    "describe",
    "cli",
    "__main__",
]
LAZY = {"cli"}  # imports the demo, whose dependencies are an extra, when it is asked for
EXTRAS = {"plot": {"matplotlib"}, "demo": {"scanpy"}}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        yield name, ast.parse(path.read_text())


MODULES = dict(modules())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            is_package = node.module and (PACKAGE.parent / Path(*node.module.split("."))).is_dir()
            yield from named if is_package else [node.module]


def test_every_module_has_its_place():
    assert sorted(name for name in MODULES if name) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name):
    for target in imported(MODULES[name]):
        if target.startswith("ginseng."):
            module = target.removeprefix("ginseng.")
            module = module if module in ORDER else module.rpartition(".")[0]
            assert ORDER.index(module) < ORDER.index(name), f"{name} imports {target}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_are_at_the_top(name):
    inside = [
        node
        for function in ast.walk(MODULES[name])
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not inside
    assert name in LAZY or "import_module" not in ast.dump(MODULES[name])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_declared_dependencies(name):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {requirement.split(">")[0].split("[")[0] for requirement in project["dependencies"]}
    for target in imported(MODULES[name]):
        package = target.split(".")[0]
        if package not in sys.stdlib_module_names and package != "ginseng":
            assert package in declared | EXTRAS.get(name, set()), f"{name} imports {package}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_public_functions_are_documented(name):
    tree = MODULES[name]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"


def test_modules_stay_small():
    lines = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert max(lines.values()) <= 400, max(lines.items(), key=lambda item: item[1])


def test_the_names_people_type():
    assert ginseng.__all__ == sorted(ginseng.__all__)
    assert all(hasattr(ginseng, name) for name in ginseng.__all__)
