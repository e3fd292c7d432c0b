"""What every command is made with: its registration, one-line errors, exit codes, what is said and what is not."""

import ast
import functools
import os
import re
import select
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import jax
import typer
from typer.models import ArgumentInfo, OptionInfo

from ginseng.arguments import Called
from ginseng.data.downloads import cache_folder
from ginseng.interruption import leave_if_asked
from ginseng.utils.files import local_path, require_writable_place
from ginseng.utils.messages import printable
from ginseng.utils.values import WrongValue
from ginseng.utils.workspace import temporary_folder

_NUMBA = "NUMBA_CACHE_DIR"
_ROOM = 2**27  # bytes: on a full disk JAX leaves entries that are cut short, and are never replaced
_NOT_READ = 128 + 13  # what a shell reports of a program whose output nobody reads (SIGPIPE)
_LITERAL = (
    r"""None|True|False|-?\d[\d.]*(?:e-?\d+)?|'[^']*'|"[^"]*"|\{[^{}]*\}|\[(?:[^][{}'"]|'[^']*'|"[^"]*")+\]"""
    r"""|(?=[,;.\s]|$)"""
)
_ARGUMENT = re.compile(rf"`(?P<named>\w+)`|(?<![\w.'\"(\[-])(?P<given>\w+)=(?P<value>{_LITERAL})")
_OF_PYTHON = (  # ways out that no option is
    (re.compile(r",? or (pass |train with )?normalize=False( for a network that takes such values)?"), ""),
    (re.compile(r"\bpass adata\.T\b"), "transpose the file (in Python: adata.T)"),
)
_UNREADABLE = (PermissionError, BlockingIOError, IsADirectoryError, NotADirectoryError)
_EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong use, 3 input refused"


class WrongUse(ValueError):
    """Arguments that cannot be meant."""

    exit_code = 2


class InputRefused(ValueError):
    """Data that cannot be used."""

    exit_code = 3


class LimitExceeded(ValueError):
    """Results that are written, and not as they were asked to be."""

    exit_code = 4


class _Option(NamedTuple):
    """How a parameter is typed: its option, and that which switches a flag off."""

    name: str
    off: str | None
    is_flag: bool


app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
_options: dict[str, _Option] = {}  # of the command that runs, by the names of Python


@contextmanager
def _keeping_what_is_compiled() -> Iterator[None]:
    """Let JAX keep compiled code in the user's cache folder, unless it has another or that cannot be written to.

    What another process is just writing there cannot be read, and is compiled once more, of which JAX warns in vain.
    Numba, beneath scanpy, must keep it somewhere: there, for as long as the command takes.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
        try:
            folder = cache_folder() / "jax"
            require_writable_place(folder / "code")
            has_room = shutil.disk_usage(next(path for path in folder.parents if path.exists())).free > _ROOM
        except (OSError, ValueError):
            if _NUMBA not in os.environ:
                with suppress(OSError):
                    os.environ[_NUMBA] = str(stack.enter_context(temporary_folder()))
                    stack.callback(os.environ.pop, _NUMBA)
        else:
            has_another = jax.config.jax_compilation_cache_dir is not None  # pyright: ignore[reportAttributeAccessIssue]
            if has_room and not has_another:
                jax.config.update("jax_compilation_cache_dir", str(folder))
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield


def _has_device() -> bool:
    """Whether JAX has a device to work on, of the platforms that it was told to use."""
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):  # as told of an unknown platform, and of one without a device
        return False


def command(function: Callable) -> Callable:
    """Register a command whose expected errors are one line, without a traceback, and an exit code of their kind."""
    options = dict(_options_of(function))

    @functools.wraps(function)
    def run(*args, **kwargs):
        kwargs = {name: _local(value) for name, value in kwargs.items()}
        _options.clear()
        _options.update(options)
        try:
            leave_if_asked()
            with _keeping_what_is_compiled():
                return function(*args, **kwargs)
        except (ValueError, OSError, MemoryError, ImportError) as error:
            if isinstance(error, BrokenPipeError) and _is_unread():
                raise typer.Exit(_NOT_READ) from error
            tell_error(error)
            code = WrongUse.exit_code if isinstance(error, WrongValue) else getattr(error, "exit_code", 1)
            raise typer.Exit(code) from error
        except (RuntimeError, AssertionError) as error:
            if _has_device():
                raise
            tell_error(
                f"JAX_PLATFORMS is '{os.environ.get('JAX_PLATFORMS', '')}', and JAX finds no such device here: unset "
                "it, set it to cpu, or install JAX for that device (docs.jax.dev/en/latest/installation.html)."
            )
            raise typer.Exit(1) from error

    limit = ", 4 a limit of --strict exceeded" if "strict" in options else ""
    run.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n    {_EXIT_CODES}{limit}."
    return app.command()(run)


def _local(value: Any) -> Any:
    """An option, with ~ expanded in a path: shells do not expand it after ``--name=``."""
    return local_path(value) if isinstance(value, Path) else value


def _options_of(function: Callable) -> Iterator[tuple[str, _Option]]:
    """How each parameter of a command is typed, by its name in Python."""
    for name, hint in get_type_hints(function, include_extras=True).items():
        told = getattr(hint, "__metadata__", ())
        names = [name, *(name for one in told if isinstance(one, Called) for name in one.names)]
        for info in told:
            if isinstance(info, ArgumentInfo):
                option = _Option(name.upper(), None, is_flag=False)
            elif isinstance(info, OptionInfo):
                is_flag = hint.__origin__ in (bool, bool | None)
                dashed = name.replace("_", "-")
                usual = f"--{dashed}/--no-{dashed}" if is_flag else f"--{dashed}"
                typed = [info.default, *(info.param_decls or ())]  # the first is a default outside of `Annotated`
                on, _, off = next((one for one in typed if str(one).startswith("--")), usual).partition("/")
                option = _Option(on, off or None, is_flag)
            else:
                continue
            yield from ((each, option) for each in names)


def as_typed(text: str, kept: str = "") -> str:
    """A message with the options of the command that runs in place of the arguments that they stand for in Python.

    What does not print is escaped, but for characters that are kept.

    Examples
    --------
    >>> as_typed("`lr` must be positive: pass lr=0.1.")
    '`lr` must be positive: pass lr=0.1.'
    """
    if _options:
        for way_out, instead in _OF_PYTHON:
            text = way_out.sub(instead, text)
    typed = _ARGUMENT.sub(lambda found: _typed(found) or found.group(), text)
    return printable(typed, kept)


def _typed(found: re.Match[str]) -> str | None:
    option, value = _options.get(found["named"] or found["given"]), found["value"]
    if option is None:
        return None
    if not value or (value == "True" and option.is_flag):
        return option.name
    if value in ("None", "False"):
        return option.off or f"no {option.name}"
    with suppress(ValueError, SyntaxError):
        given: Any = ast.literal_eval(value)
        if isinstance(given, dict):
            lines = " and ".join(f"'{old},{'' if new is None else new}'" for old, new in given.items())
            return f"{option.name} with a table that has the line {lines}"
        return " ".join(
            f"{option.name} {shlex.quote(str(one))}" for one in (given if isinstance(given, list) else [given])
        )
    return None


def _is_unread() -> bool:
    """Whether nobody reads standard output or messages any more (``| head``); they then go nowhere."""
    is_unread = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # of what is no file, and of systems without `poll`
            number, reader = stream.fileno(), select.poll()
            reader.register(number, select.POLLERR)
            if any(event & select.POLLERR for _, event in reader.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
                is_unread = True
    return is_unread


def tell_error(error: Exception | str) -> None:
    """Print an error in one line."""
    typer.echo(f"error: {as_typed(str(error))}", err=True)


def say(quiet: bool, text: str) -> None:
    """Print lines, unless asked to be quiet."""
    if not quiet:
        typer.echo(as_typed(text, kept="\n"))


def warnings_unless(quiet: bool) -> warnings.catch_warnings:
    """Warnings as they come, or none if asked to be quiet."""
    return warnings.catch_warnings(action="ignore") if quiet else warnings.catch_warnings()


@contextmanager
def refusing(kind: type[ValueError]) -> Iterator[None]:
    """Raise what is refused with a ValueError as an error of a kind that has an exit code of its own.

    Of data, so is what cannot be read: no right to it, another holds it, a folder in place of a file. Arguments that
    no data make right, and failures that are no fault of the data, remain what they are.
    """
    told = (ValueError, *(_UNREADABLE if kind is InputRefused else (FileExistsError,)))
    try:
        yield
    except (WrongValue, ArithmeticError):
        raise
    except told as error:
        if hasattr(error, "exit_code"):
            raise
        raise kind(str(error)) from error
