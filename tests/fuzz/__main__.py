"""Open damaged files of every kind, and tell what came of it.

    python -m tests.fuzz --cases 10000 --workers 2 --seed 0
    python -m tests.fuzz --seed 0 --only 4711
    python -m tests.fuzz --cases 1000 --kind h5ad-csr

Each case takes a file of the corpus, damages it as (seed, number of the case) decide, and reads it by the public
interface in a process of its own kind (see `worker`). It must be refused by a ValueError or an OSError that names it
in at most 2,000 characters, or read as before. Formats with digests, those of ginseng itself, must read exactly as
before, or draw a warning. AnnData and 10x files and tables have none: there a flipped bit may be read as another count,
and what is read must only not contradict itself.

Prints a table of what came of the cases of each kind, and each failure with a command that repeats it:

- other type: neither ValueError nor OSError; unnamed, long message: one that does not name the file, or tells megabytes
- wrong: another result of a format with digests without a word, or one that contradicts itself
- dead: the interpreter has ended
- memory: more was asked for than the worker may have, and the error does not name the file
- outside: a file beside the one that was named was opened, something was unpickled or started, an address connected to

Exits with 1 if there is any. No answer in time ("hang") is told, and is no failure: time and memory are not promised.
"""

import argparse
import collections
import itertools
import json
import os
import queue
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

REPOSITORY = Path(__file__).parents[2]
GOOD = ("refused", "same", "warned", "allowed", "hang")
BAD = ("other type", "unnamed", "long message", "wrong", "dead", "memory", "outside")
CASES_PER_WORKER = 1500  # what is compiled for one shape or another stays in memory
SECONDS_TO_BEGIN = 600  # in which a worker imports and compiles


class Process:
    """A worker that is started when it is needed, and anew when it has died."""

    def __init__(self, folder: Path, seed: int, seconds: float):
        self._command = [sys.executable, "-m", "tests.fuzz.worker", str(folder), str(seed), str(seconds)]
        self._errors = folder / f"errors{id(self)}.txt"
        self._seconds, self._process = seconds, None
        self._n_run = 0

    def run(self, case: int, kind: str) -> dict[str, Any]:
        """What came of a case."""
        if self._process is None or self._n_run >= CASES_PER_WORKER:
            self.end()
            self._start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._n_run += 1
        failed = {"case": case, "kind": kind, "mutation": "", "seconds": 0.0}
        try:
            self._process.stdin.write(f"{case}\n".encode())
            self._process.stdin.flush()
            if line := self._answer(SECONDS_TO_BEGIN):
                failed["mutation"] = json.loads(line)
                line = self._answer(self._seconds)
        except BrokenPipeError:
            line = b""
        if line:
            return json.loads(line)
        if line is None:
            self._process.kill()
        code = self._process.wait()
        self._process = None
        told = [line.strip() for line in self._errors.read_text(errors="replace").splitlines() if "ginseng" in line]
        return {
            **failed,
            "verdict": "hang" if line is None else "dead",
            "told": f"exit {code}: {' | '.join(told[:12])[-1500:]}",
        }

    def _answer(self, seconds: float) -> bytes | None:
        """A line of the process: empty if it has ended, None if there is none in time."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return self._process.stdout.readline() if selector.select(seconds) else None

    def _start(self) -> None:
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "JAX_PLATFORMS": "cpu",
            "TQDM_DISABLE": "1",
        }
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=REPOSITORY,
                bufsize=0,  # so that what waits in the pipe is all there is
            )
        self._n_run = 0

    def end(self) -> None:
        """Let it end."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def run(cases: list[int], kinds: list[str], folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What came of all cases, with a bar."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def work() -> None:
        process = Process(folder, args.seed, args.seconds)
        with_more = True
        while with_more:
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                with_more = False
            else:
                results.put(process.run(case, kinds[case % len(kinds)]))
        process.end()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(args.workers)]
    for thread in threads:
        thread.start()
    found = []
    for _ in tqdm(cases, unit="case"):
        found.append(results.get())
        if found[-1]["verdict"] in BAD:
            tqdm.write(told_of(found[-1], args.seed))
    for thread in threads:
        thread.join()
    return found


def told_of(result: dict[str, Any], seed: int) -> str:
    """A failure, and how to have it again."""
    return (
        f"\n{result['verdict'].upper()}: {result['kind']}: {result['mutation']}\n  {result['told']}\n"
        f"  python -m tests.fuzz --seed {seed} --only {result['case']}"
    )


def table_of(results: list[dict[str, Any]]) -> str:
    """What came of the cases of each kind."""
    counts = collections.Counter((result["kind"], result["verdict"]) for result in results)
    kinds = list(dict.fromkeys(result["kind"] for result in sorted(results, key=lambda result: result["case"])))
    verdicts = [verdict for verdict in (*GOOD, *BAD) if any(counts[kind, verdict] for kind in kinds) or verdict in GOOD]
    rows = [["kind", "cases", *verdicts]]
    rows += [[kind, *_row([counts[kind, verdict] for verdict in verdicts])] for kind in kinds]
    rows += [["all", *_row([sum(counts[kind, verdict] for kind in kinds) for verdict in verdicts])]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(numbers: list[int]) -> list[str]:
    return [f"{number:,}" for number in (sum(numbers), *numbers)]


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="cases of this kind of the corpus only; several may be named")
    parser.add_argument("--only", type=int, help="one case")
    parser.add_argument("--seconds", type=float, default=120.0, help="after which a case is a hang")
    parser.add_argument("--json", type=Path, help="file for what came of each case, a line each")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    from tests.fuzz import corpus

    kinds = list(corpus.WRITERS)
    if unknown := set(args.kind or ()) - set(kinds):
        parser.error(f"there is no kind {', '.join(unknown)}, but: {', '.join(kinds)}")
    numbers = (n for n in itertools.count(args.first) if not args.kind or kinds[n % len(kinds)] in args.kind)
    cases = [args.only] if args.only is not None else list(itertools.islice(numbers, args.cases))
    folder = Path(tempfile.mkdtemp(prefix="ginseng-fuzz-"))
    try:
        corpus.make(folder / "corpus", {kinds[case % len(kinds)] for case in cases})
        started = time.perf_counter()
        results = run(cases, kinds, folder, args)
        seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.only is not None:
        print(json.dumps(results[0], indent=1))
    if args.json is not None:
        args.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    print(table_of(results))
    print(f"{len(results):,} cases in {seconds:.0f} s: {len(results) / seconds:.1f} cases/s")
    return int(any(result["verdict"] in BAD for result in results))


if __name__ == "__main__":
    sys.exit(main())
