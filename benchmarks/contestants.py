"""Contestants of a benchmark: interpreters, with the checkout of this package that each imports, as processes.

Imports nothing heavy: Linux counts what a parent holds as peak memory of the processes that it starts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


class Failed(SystemExit):
    """A contestant's process failed: the message ends a script, unless that goes on without it."""


@dataclass(frozen=True)
class Contestant:
    """An interpreter, and the checkout whose `ginseng` it imports in place of what it has installed."""

    name: str
    python: str = sys.executable
    checkout: Path | None = None

    def run(self, *command: object, timeout: float | None = None, **variables: object) -> str:
        """Output of `python *command`, with environment variables; JAX's own, and Python's, are not handed on."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "PYTHON"))}
        if self.checkout is not None:
            kept["PYTHONPATH"] = str(self.checkout)
        try:
            done = subprocess.run(
                [self.python, *map(str, command)],
                cwd=tempfile.gettempdir(),
                env=kept | {name: str(value) for name, value in variables.items()},
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} had not ended after {timeout:g} seconds") from None
        if done.returncode:
            raise Failed(f"{self.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def ask(self, script: str, *args: object, **variables: object) -> dict:
        """What a script prints as JSON in its last line."""
        return json.loads(self.run("-c", script, *args, **variables).strip().splitlines()[-1])


def add_checkouts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", type=Path, help="another checkout of this package, to be measured beside this one")


def ours(before: Path | None) -> list[Contestant]:
    """The checkout of this file, and an older one, where that is given."""
    found = [Contestant("ginseng-eqx", checkout=CHECKOUT)]
    return found if before is None else [*found, Contestant("before", checkout=before.resolve())]


def tell(question: str, by: str, **result: object) -> None:
    """Print a result as a line of JSON, with the load of the machine, which others may share."""
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"question": question, "by": by, **result, "load": load}), flush=True)
