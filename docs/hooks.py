"""What the site has beside its pages: help of the commands, notebooks, benchmarks, formulas, links of names.

MkDocs calls these functions as it builds (see ``hooks`` in mkdocs.yml).
"""

import ast
import html
import json
import re
from pathlib import Path

import typer
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import ginseng
from ginseng.cli import app as face
from ginseng.commands import app

_REPOSITORY = Path(__file__).parents[1]
_COPIED = {
    "changelog.md": "CHANGELOG.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "benchmarks/recipes.md": "benchmarks/recipes.md",
    "benchmarks/results.md": "benchmarks/results.md",
}
_BESIDE = [_REPOSITORY / "benchmarks/results.jsonl", *(_REPOSITORY / "benchmarks").rglob("*.svg")]
_NOTEBOOKS = sorted(
    (_REPOSITORY / "notebooks").glob("*.ipynb"), key=lambda path: (path.stem != "quickstart", path.stem)
)
_STYLE_OF_PANDAS = re.compile(r'<style.*?</style>\n?| border="1" class="dataframe"| style="[^"]*"', re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_NAME = re.compile(r"<(?P<kept>h[1-6]|a|pre|autoref)\b.*?</(?P=kept)>|<code>(?P<name>[\w.]+)</code>", re.DOTALL)
_OUT_OF_DOCS = re.compile(r"(?<=\]\()((?:\.\./)*)\.\./(?=(?:benchmarks|notebooks)/)")
_ABOUT_COMMANDS = """# Command line

What `ginseng COMMAND --help` prints. Exit codes are 0 done, 1 failed, 2 wrong use; of `annotate`, `merge` and `doctor`
also 3 input refused, and 4 a limit of `--strict` exceeded."""
_ORDER_OF_MODULES = "<!-- order of modules -->"


def on_config(config):
    """List the notebooks, whichever there are, after the guides: the quickstart, then the others."""
    config.nav.insert(2, {"Notebooks": [f"notebooks/{path.stem}.md" for path in _NOTEBOOKS]})
    return config


def on_files(files: Files, config) -> Files:
    """Add the pages that are not written by hand."""
    pages = {name: (_REPOSITORY / source).read_text() for name, source in _COPIED.items()}
    pages |= {f"notebooks/{path.stem}.md": notebook(json.loads(path.read_text())) for path in _NOTEBOOKS}
    for name, text in {**pages, "reference/cli.md": command_line()}.items():
        files.append(File.generated(config, name, content=text))
    for path in _BESIDE:
        name = path.relative_to(_REPOSITORY).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def notebook(contents: dict) -> str:
    """An executed notebook, its tables and pictures with it, as Markdown."""
    parts = []
    for cell in contents["cells"]:
        source = "".join(cell["source"])
        is_text = cell["cell_type"] == "markdown"
        parts.append(_within_site(source) if is_text else f"```python\n{source}\n```")
        parts += [_shown(output, cell["metadata"].get("alt", "")) for output in cell.get("outputs", [])]
    return "\n\n".join(parts)


def _within_site(markdown: str) -> str:
    """Links to notebooks as links to the pages that are made of them."""
    return markdown.replace(".ipynb)", ".md)")


def _shown(output: dict, alt: str) -> str:
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/png" in data:
        return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/html" in data:
        return _STYLE_OF_PANDAS.sub("", data["text/html"])
    return f"```text\n{data.get('text/plain', ''.join(output.get('text', ''))).rstrip()}\n```"


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Put in the modules in the order in which they may import each other; let search find guides before records.

    Benchmarks and notebooks, which lie beside docs/ in the repository, are within the site.
    """
    if page.file.src_uri in _COPIED:
        page.meta["search"] = {"boost": 0.5}
    elif not page.file.src_uri.startswith("notebooks/"):
        markdown = _within_site(_OUT_OF_DOCS.sub(r"\1", markdown))
    return markdown.replace(_ORDER_OF_MODULES, modules()) if _ORDER_OF_MODULES in markdown else markdown


def modules() -> str:
    """A table of the modules in the order of tests/test_architecture.py, and what each says of itself."""
    tests = ast.parse((_REPOSITORY / "tests" / "test_architecture.py").read_text())
    named = {ast.unparse(node.targets[0]): node.value for node in tests.body if isinstance(node, ast.Assign)}
    rows = [f"| `{name}` | {_cell(_summary(name))} |" for name in ast.literal_eval(named["ORDER"])]
    return "\n".join(["| module | what it is for |", "|---|---|", *rows])


def _summary(name: str) -> str:
    path = _REPOSITORY.joinpath("ginseng", *name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(source.read_text())).split("\n\n")[0].replace("\n", " ")


def on_page_content(page_html: str, **_) -> str:
    """Formulas as MathML, which browsers draw by themselves, and names of the interface as links to what they are."""
    drawn = _FORMULA.sub(lambda found: _drawn(html.unescape(found[2]), found[1] == "div"), page_html)
    return _NAME.sub(_linked, drawn)


def _drawn(formula: str, on_its_own: bool) -> str:
    return convert(formula.strip(), display="block" if on_its_own else "inline")


def _linked(found: re.Match) -> str:
    name = found["name"] or ""
    if name.split(".")[0] in ginseng.__all__:
        name = f"ginseng.{name}"
    if not name.startswith("ginseng."):
        return found[0]
    return f'<autoref identifier="{name}" optional>{found[0]}</autoref>'


def command_line() -> str:
    """The reference of the commands, of their own help, as Markdown."""
    commands = typer.main.get_command(app).commands
    return "\n\n".join([_ABOUT_COMMANDS, *(_command(name, commands[name]) for name in names_of_commands())])


def names_of_commands() -> list[str]:
    """The commands in the order of `ginseng --help`."""
    return [command.name for command in face.registered_commands]


def _command(name: str, command) -> str:
    context = typer.Context(command, info_name=f"ginseng {name}")
    usage = " ".join([f"ginseng {name}", *command.collect_usage_pieces(context)])
    example = "".join(re.findall(r"Example: (.*)", command.help, re.DOTALL))
    about = command.help.replace(f"Example: {example}", "").strip()
    rows = [parameter.get_help_record(context) for parameter in command.params]
    table = [f"| `{option}` | {_cell(meaning)} |" for option, meaning in rows]
    lines = [f"## ginseng {name}", "", about, "", "```text", usage, *example.split("\n"), "```", ""]
    return "\n".join([*lines, "| option | meaning |", "|---|---|", *table])


def _cell(text: str) -> str:
    return re.sub(r"([|<*_$\[\]{}])", r"\\\1", text)
