"""A process that opens one damaged file after the other, and tells what came of each.

It is given its work on standard input, a case a line, and answers each by a line of JSON. What it does is bounded: the
memory that may be mapped beyond what it has when it begins, and, by whoever started it, the time. Files of a second
corpus, the canary, are not to be opened, by whichever library; nothing is to be unpickled, no process started,
no address connected to, no text executed.
"""

import ctypes
import faulthandler
import gc
import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import corpus, mutations, reading

MEMORY = 2**33  # bytes beyond what the worker had
LONGEST_MESSAGE = 2000
_FORBIDDEN = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
)
_IN_OPEN, _IN_NONBLOCK = 0x20, 0x800


class Watch:
    """What is noted while a case runs: forbidden events of the interpreter, and files of the canary that are opened.

    Libraries open files without the interpreter: Linux is asked (inotify) which files were opened.
    """

    def __init__(self, canary: Path):
        self.seen: list[str] = []
        self._canary = str(canary)
        sys.addaudithook(self._audit)
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._file = -1 if self._libc is None else self._libc.inotify_init1(_IN_NONBLOCK)
        for path in (canary, *canary.rglob("*")):
            if self._libc is not None:
                self._libc.inotify_add_watch(self._file, str(path).encode(), _IN_OPEN)

    def _audit(self, event: str, args: tuple) -> None:
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {args[:2]!r:.200}")
        elif event == "open" and str(args[0]).startswith(self._canary):
            self.seen.append(f"open {args[0]}")
        elif event == "exec" and getattr(args[0], "co_filename", "") == "<fuzz>":
            self.seen.append("text of the file executed")

    def noted(self) -> list[str]:
        """What was noted since the last call."""
        try:
            if self._file >= 0 and os.read(self._file, 2**16):
                self.seen.append("a file of the canary was opened")
        except BlockingIOError:
            pass
        seen, self.seen = self.seen, []
        return seen


class Worker:
    """Runs cases.

    Parameters
    ----------
    folder : Path
        Holds ``corpus``; cases are made beside it.
    seed : int
        Of the mutations.
    """

    def __init__(self, folder: Path, seed: int):
        self._folder, self._seed = folder, seed
        self._scratch = folder / f"worker{os.getpid()}"
        self._others = [file for kind in corpus.OTHERS for file in mutations.files_in(folder / "corpus" / kind)]
        self._whole: dict[str, tuple[dict[str, str], set[str]]] = {}
        shutil.copytree(folder / "corpus", self._scratch / "canary")
        self.watch = Watch(self._scratch / "canary")

    def run(self, case: int, tell: Callable[[str], None]) -> dict[str, Any]:
        """Damage a file, tell how, read it, and judge."""
        kind = kind_of(case)
        rng = random.Random(f"{self._seed}-{case}")
        self.prepare(kind)
        path = self._copy(kind)
        canary = self._scratch / "canary" / kind / path.name
        done, is_signed = mutations.mutate(path, canary, self._others, rng)
        tell(done)
        self.watch.noted()
        started = time.perf_counter()
        has_digests = reading.READERS[kind].has_digests and not is_signed
        verdict, told = self._read(kind, path, has_digests)
        seconds = time.perf_counter() - started
        if seen := self.watch.noted():
            verdict, told = "outside", "; ".join(seen)
        return {"case": case, "kind": kind, "mutation": done, "verdict": verdict, "told": told, "seconds": seconds}

    def prepare(self, kind: str) -> None:
        """Read the untouched file, once, by which whatever is needed is imported and compiled."""
        if kind not in self._whole:
            found, warned = reading.read(kind, self._copy(kind), self._places())
            self._whole[kind] = found, set(warned)

    def _places(self) -> reading.Places:
        return reading.Places(self._scratch / "case" / "made", self._folder / "corpus")

    def _copy(self, kind: str) -> Path:
        """A fresh copy of a kind of the corpus."""
        case = self._scratch / "case"
        shutil.rmtree(case, ignore_errors=True)
        (case / "made").mkdir(parents=True)
        name, _ = corpus.WRITERS[kind]
        source, path = self._folder / "corpus" / kind / name, case / name
        if source.is_dir():
            shutil.copytree(source, path)
        else:
            shutil.copyfile(source, path)
        return path

    def _read(self, kind: str, path: Path, has_digests: bool) -> tuple[str, str]:
        """Verdict, and what there is to tell of it."""
        untouched, usual = self._whole[kind]
        try:
            found, warned = reading.read(kind, path, self._places())
        except reading.Inconsistent as error:
            return "wrong", str(error)
        except MemoryError as error:
            return "memory", _shown(error)
        except (ValueError, OSError) as error:
            if len(str(error)) > LONGEST_MESSAGE:
                return "long message", f"{len(str(error)):,} characters: {_shown(error)}"
            return ("refused" if _names(error, path) else "unnamed"), _shown(error)
        except Exception as error:
            return "other type", _shown(error)
        differing = [name for name in {**untouched, **found} if untouched.get(name) != found.get(name)]
        if not differing:
            return "same", ""
        told = f"differs: {', '.join(differing[:5])}"
        if set(warned) - usual:
            return "warned", told
        return ("wrong" if has_digests else "allowed"), told


def kind_of(case: int) -> str:
    """Cases take the kinds in turn."""
    kinds = list(corpus.WRITERS)
    return kinds[case % len(kinds)]


def _names(error: Exception, path: Path) -> bool:
    """Whether an error names the file, or was raised here, by the name of the argument or the column."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    is_ours = trace is not None and f"{os.sep}ginseng{os.sep}" in trace.tb_frame.f_code.co_filename
    return is_ours or path.name in str(error)


def _shown(error: Exception) -> str:
    where, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if f"{os.sep}ginseng{os.sep}" in code.co_filename:
            where = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {where}: {error}"[:400]


def _memory(name: str) -> int:
    """Bytes of this process, as Linux tells them; 0 elsewhere."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{name}:")), 0)


def main(folder: str, seed: str, seconds: str) -> None:
    """Answer cases until standard input ends."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed
    worker = Worker(Path(folder), int(seed))
    limited = False
    for line in sys.stdin:
        case = int(line)
        worker.prepare(kind_of(case))
        if not limited:
            limit = _memory("VmSize") + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            limited = True
        faulthandler.dump_traceback_later(0.8 * float(seconds))  # what a hang is in
        print(json.dumps(worker.run(case, lambda told: print(json.dumps(told), file=answers))), file=answers)
        faulthandler.cancel_dump_traceback_later()
        if case % 64 == 0:
            gc.collect()
    shutil.rmtree(worker._scratch, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
