"""A race: measurements as processes of their contestants, appended to the results as they end."""

import datetime
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contestants import Contestant, Failed
from benchmarks.race.environments import versions

SCRIPTS = Path(__file__).parent / "scripts"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> str:
    """Processor, cores and memory."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = models[0] if models else platform.machine()
    return f"{len(models) or os.cpu_count()} cores ({processor}), {memory:.0f} GiB, {platform.system()}"


def last_line(error: BaseException) -> str:
    """What a failed process said last, which of a traceback is the error."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or ["failed without a word"])[-1][:300]


class Race:
    """Contestants, and where measurements go."""

    def __init__(self, results: Path, command: str, timeout: float = 900):
        self.contestants: dict[str, Contestant] = {}
        self._results, self._timeout = results, timeout
        self._about = {"run": now(), "machine": machine(), "command": command}
        self._versions: dict[str, dict[str, str]] = {}
        self._given_up: set[tuple[str, str, str]] = set()
        if results.exists() and not results.read_bytes().endswith(b"\n"):  # of a run that was killed
            self._write("\n")

    def enter(self, contestant: Contestant) -> None:
        """Let a contestant take part, with the versions of what it runs on."""
        self._versions[contestant.name] = versions(contestant)
        self.contestants[contestant.name] = contestant

    def leave_out(self, name: str, error: BaseException) -> None:
        """Go on without a contestant."""
        print(f"{name} is left out: {last_line(error)}", flush=True)
        self._append({"by": name, "left out": last_line(error)})

    def measure(
        self,
        question: str,
        case: str,
        of: str,
        nth: int,
        script: str,
        *args: object,
        by: str | None = None,
        judge: Callable[[], dict[str, Any]] = dict,
        details: dict[str, Any] | None = None,
        variables: dict[str, object] | None = None,
    ) -> None:
        """Measure one process of the contestant `of`, told as that of `by`; not where it has failed before.

        An argument that must be made first may be a function that makes it: then a failure to is the contestant's.
        `judge` looks at what the process has written, and gives further figures.
        """
        about = {"question": question, "case": case, "by": by or of, "round": nth}
        key = question, case, by or of
        if of not in self.contestants or key in self._given_up:
            return
        try:
            found = self.ask(of, script, *(arg() if callable(arg) else arg for arg in args), **(variables or {}))
            found |= judge()
        except (Failed, Exception) as error:  # of one contestant; the others go on
            self._given_up.add(key)
            line, told = {"failed": last_line(error)}, f"failed: {last_line(error)}"
        else:
            details = {**(details or {}), **found.pop("details", {})}
            line = {"cells": found.pop("cells", None), "figures": found, **({"details": details} if details else {})}
            told = ", ".join(f"{name} {value:g}" for name, value in found.items())
        self._append({**about, **line, "versions": self._versions.get(of, {})})
        print(f"{question}, {case}, round {nth}: {by or of}: {told}", flush=True)

    def ask(self, of: str, script: str, *args: object, **variables: object) -> dict[str, Any]:
        """What one of the scripts, by name, prints as JSON in its last line."""
        output = self.contestants[of].run(SCRIPTS / f"{script}.py", *args, timeout=self._timeout, **variables)
        return json.loads(output.strip().splitlines()[-1])

    def _append(self, line: dict[str, Any]) -> None:
        now_here = {"load": round(os.getloadavg()[0], 1), "date": now()}
        self._write(json.dumps({**self._about, **line, **now_here}, ensure_ascii=False) + "\n")

    def _write(self, text: str) -> None:
        with self._results.open("a") as file:
            file.write(text)
