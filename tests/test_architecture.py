"""The package imports in one direction, at the top of its modules, and keeps to what it declares."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ginseng
from tests.conftest import REPOSITORY, SUBPROCESS_ENVIRONMENT

PACKAGE = REPOSITORY / "ginseng"
# Each module may import from those before it only.
ORDER = [
    "interruption",
    "utils.values",
    "utils.messages",
    "utils.workspace",
    "utils.files",
    "utils.labels",
    "utils.bounds",
    "utils.memory",
    "utils.ahead",
    "utils.devices",
    "utils.precision",
    "utils.digest",
    "utils.kinds",
    "utils.hdf5",
    "utils.soundness",
    "utils.transpose",
    "utils.partitions",
    "utils.forms",
    "utils.genes",
    "utils.counts",
    "utils.tables",
    "utils.pairs",
    "utils.names",
    "utils.hvg",
    "utils.markers",
    "utils",
    "cluster",
    "metrics",
    "model.hierarchy",
    "model.choice",
    "model.consensus",
    "model.modules",
    "model.nn",
    "model.attention",
    "model.ensemble",
    "model.background",
    "model.calibration",
    "model.functional",
    "model.instance",
    "model.state",
    "model.adapting",
    "model.relabelling",
    "model.annotator",
    "model",
    "data.slabs",
    "data.typed",
    "data.tenx",
    "data.elements",
    "data.presence",
    "data.downloads",
    "data.readers",
    "data.inputs",
    "data.outputs",
    "data.parts",
    "data.models",
    "data.io",
    "data.sampling",
    "data.annotation",
    "data.matching",
    "data.preflight",
    "data.selection",
    "data.sources",
    "data.shards",
    "data.store",
    "data.splits",
    "data.reading",
    "data.streaming",
    "data.creation",
    "data.views",
    "data.dataset",
    "data",
    "model.forward",
    "model.judgement",
    "model.results",
    "model.predict",
    "model.harmony",
    "model.explain",
    "train.augment",
    "train.opt",
    "train.schedule",
    "train.recipe",
    "train.step",
    "train.failures",
    "train.feed",
    "train.frozen",
    "train.logger",
    "train.run",
    "train.checkpoint",
    "train.settings",
    "train.calibrating",
    "train.card",
    "train.loop",
    "train.starting",
    "train.trainer",
    "train.tuned",
    "train.finetuning",
    "train",
    "plot",
    "demo",
    "describe",
    "page",
    "multiqc",
    "reporting",
    "arguments",
    "commands.registry",
    "commands.runs",
    "commands.paths",
    "commands.training",
    "commands.tuning",
    "commands.annotating",
    "commands.checking",
    "commands.harmonizing",
    "commands.reporting",
    "commands",
    "cli",
    "__main__",
]
LAZY = {"", "cli"}  # the faces of the package and of its commands: each imports what is asked for
EXTRAS = {
    "utils.hdf5": {"hdf5plugin"},
    "cluster": {"igraph", "scanpy", "sklearn"},
    "plot": {"matplotlib"},
    "demo": {"scanpy"},
}


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


def test_the_names_people_type():
    assert ginseng.__all__ == sorted(ginseng.__all__)
    names = {}
    exec("from ginseng import *", names)
    assert set(ginseng.__all__) <= set(names)
    for name in ("cluster", "data", "demo", "metrics", "model", "plot", "train", "utils"):
        assert getattr(ginseng, name).__name__ == f"ginseng.{name}"
    assert {*ginseng.__all__, "plot"} <= set(dir(ginseng))
    with pytest.raises(AttributeError, match="module 'ginseng' has no attribute 'fit'"):
        ginseng.fit  # noqa: B018


def test_what_is_imported_lazily_is_what_pyright_sees():
    seen = {target.removeprefix("ginseng.") for target in imported(MODULES[""]) if target.startswith("ginseng.")}
    assert seen == {*ginseng._MODULES, *ginseng._NAMES_OF}
    named = {
        (node.module.removeprefix("ginseng."), alias.name)
        for node in ast.walk(MODULES[""])
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ginseng.")
        for alias in node.names
    }
    assert named == {(module, name) for name, module in ginseng._MODULE_OF.items()}
    assert set(ginseng._MODULE_OF) == set(ginseng.__all__)


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=SUBPROCESS_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = "{'jax', 'anndata', 'matplotlib', 'pandas', 'numpy', 'scipy'}"


def test_the_package_is_cheap_to_import_and_its_rooms_are_attributes():
    printed = in_a_fresh_process(
        f"import ginseng, sys; print({HEAVY} & set(sys.modules)); print(ginseng.plot.embedding.__name__)"
    )
    assert printed.split("\n")[:2] == ["set()", "embedding"]


@pytest.mark.parametrize(("option", "shown"), [("--help", "annotate"), ("--version", "ginseng 0.")])
def test_the_command_line_answers_without_importing_what_commands_need(option, shown):
    printed = in_a_fresh_process(
        f"""if True:
        import sys
        from ginseng.cli import main
        sys.argv = ["ginseng", "{option}"]
        try:
            main()
        except SystemExit as ended:
            assert not ended.code
        print({HEAVY} & set(sys.modules))"""
    )
    assert shown in printed
    assert printed.endswith("set()\n")


@pytest.mark.parametrize(("name", "package"), [("plot", "matplotlib"), ("demo", "scanpy"), ("cluster", "scanpy")])
def test_a_missing_extra_is_named(name, package):
    printed = in_a_fresh_process(
        f"""if True:
        import sys
        sys.modules["{package}"] = None
        import ginseng
        for code in ("ginseng.{name}", "from ginseng import {name}", "import ginseng.{name}"):
            try:
                exec(code)
            except ImportError as error:
                print(error)"""
    )
    assert printed.count(f"{package}: pip install 'ginseng-eqx[{name}]'.") == 3
