"""What every command is made with: its registration, one-line errors, what is said and what is not."""

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import pooch
import typer


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


def _keep_what_is_compiled() -> None:
    """Let JAX keep compiled code in the user's cache folder, unless it has another or that cannot be written to."""
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    folder = Path(pooch.os_cache("ginseng")) / "jax"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def command(function: Callable) -> Callable:
    """Register a command whose expected errors are one line, without a traceback, and an exit code of their kind."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        _keep_what_is_compiled()
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError, MemoryError, ImportError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 1)) from error

    return app.command()(run)


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
