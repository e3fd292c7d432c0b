"""What every command is made with: its registration, one-line errors, what is said and what is not."""

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import typer

from ginseng.data.downloads import cache_folder
from ginseng.utils.files import local_path, require_writable_place
from ginseng.utils.workspace import temporary_folder

_NUMBA = "NUMBA_CACHE_DIR"
_ROOM = 2**27  # bytes: on a full disk JAX leaves entries that are cut short, and are never replaced


class WrongUse(ValueError):
    """Arguments that cannot be meant."""

    exit_code = 2


class InputRefused(ValueError):
    """Data that cannot be used."""

    exit_code = 3


class LimitExceeded(ValueError):
    """Results that are written, and not as they were asked to be."""

    exit_code = 4


app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


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

    @functools.wraps(function)
    def run(*args, **kwargs):
        kwargs = {name: _local(value) for name, value in kwargs.items()}
        try:
            with _keeping_what_is_compiled():
                return function(*args, **kwargs)
        except (ValueError, OSError, MemoryError, ImportError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from error
        except (RuntimeError, AssertionError) as error:
            if _has_device():
                raise
            typer.echo(
                f"error: JAX_PLATFORMS is '{os.environ.get('JAX_PLATFORMS', '')}', and JAX finds no such device here: "
                "unset it, set it to cpu, or install JAX for that device (docs.jax.dev/en/latest/installation.html).",
                err=True,
            )
            raise typer.Exit(1) from error

    return app.command()(run)


def _local(value: Any) -> Any:
    """An option, with ~ expanded in a path: shells do not expand it after ``--name=``."""
    return local_path(value) if isinstance(value, Path) else value


def say(quiet: bool, text: str) -> None:
    """Print a line, unless asked to be quiet."""
    if not quiet:
        typer.echo(text)


def warnings_unless(quiet: bool) -> warnings.catch_warnings:
    """Warnings as they come, or none if asked to be quiet."""
    return warnings.catch_warnings(action="ignore") if quiet else warnings.catch_warnings()


@contextmanager
def refusing(kind: type[ValueError]) -> Iterator[None]:
    """Raise what is refused with a ValueError as an error of a kind that has an exit code of its own."""
    try:
        yield
    except ValueError as error:
        raise kind(str(error)) from error
