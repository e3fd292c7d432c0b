"""The command line: what its help and its version need, and no more.

The commands, in `ginseng.commands`, import JAX and AnnData, which take seconds. They are imported once one is called,
so that ``ginseng --help`` answers at once.
"""

import importlib
import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ginseng.interruption import leaving_when_asked

_COMMANDS = {
    "create": "Make a dataset of labelled counts, to train on again and again.",
    "fit": "Train a classifier on labelled counts.",
    "finetune": "Train a saved classifier on, with new labelled cells.",
    "annotate": "Annotate new counts with a trained classifier.",
    "merge": "Put the shards of an annotation together.",
    "doctor": "Tell whether data can be annotated, or trained on, and what to pass if not.",
    "explain": "Tell what each gene contributes to the type of cells.",
    "harmonize": "Tell which cell types of two studies are the same, whatever they are called.",
    "report": "Write what an annotation says as a page for the browser.",
    "inspect": "Tell what is in a model, a dataset or a file of counts.",
    "demo": "Train on labelled cells, annotate others, draw the result.",
}

app = typer.Typer(
    help="Annotate cell types in single-cell RNA-seq: train a classifier on labelled counts, annotate new counts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class _Lazy(TyperCommand):
    """Stands for a command of `ginseng.commands` until it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        commands: Any = typer.main.get_command(importlib.import_module("ginseng.commands").app)
        return commands.commands[self.name].make_context(info_name, args, parent, **extra)


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"ginseng {version('ginseng-eqx')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Take the options before a command."""


for _name, _summary in _COMMANDS.items():
    app.command(_name, cls=_Lazy, help=_summary)(lambda: None)


def main() -> None:
    """Run the command line."""
    _open_what_is_closed()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.showwarning = _show_warning
    with leaving_when_asked():
        app()


def _open_what_is_closed() -> None:
    """Open standard streams that the caller has closed (``2>&-``): the next file would else get the messages."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    registry: Any = importlib.import_module("ginseng.commands.registry")
    typer.echo(f"warning: {registry.as_typed(str(message))}", err=True)
