"""Race ours against the others, write what was measured as JSON lines, and from these a page.

    python -m benchmarks.race --quick --out .bench/quick        # make bench-quick
    python -m benchmarks.race --data DIR --out benchmarks       # make bench DATA=DIR
    python -m benchmarks.race --data DIR --out benchmarks --questions epoch accuracy --with SingleR
    python -m benchmarks.race --out benchmarks --page-only

DIR is any folder of .h5ad with raw counts and `cell_type` in obs; with `donor`, too, whole donors are held out. Large
counts are drawn from its file of most genes, and thinned. Contestants run in environments of their own, which uv makes
in .bench, once; one that cannot be made is left out. Each measurement is a process of its own; lines are appended to
OUT/results.jsonl as they end, and of each question the page shows the last run.
"""

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contestants import CHECKOUT, Failed
from benchmarks.race import environments
from benchmarks.race.asking import ASKED, QUICK, Inputs, Scale
from benchmarks.race.measuring import Race, last_line
from benchmarks.race.page import write_page
from benchmarks.race.questions import BEFORE, OURS


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.race", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of .h5ad; by default the blood cells that come with scanpy")
    parser.add_argument("--out", type=Path, default=CHECKOUT / ".bench" / "quick", help="folder of results and page")
    parser.add_argument("--quick", action="store_true", help="in small, what tells something there")
    parser.add_argument("--questions", nargs="+", choices=list(ASKED), metavar="QUESTION")
    on_request = [name for name in environments.ENVIRONMENTS if name not in environments.usual()]
    parser.add_argument("--with", nargs="+", default=[], choices=on_request, dest="more", help="further contestants")
    parser.add_argument("--before", type=Path, help="another checkout of this package, to be measured beside this one")
    parser.add_argument("--cells", type=int, nargs="+", help="sizes of simulated data")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--python", default="3.12", help="version or path, for the environments")
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a measurement is given up")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page anew")
    return parser.parse_args(words)


def scale_of(arguments: argparse.Namespace) -> Scale:
    """What is asked for by name, in place of what is usual."""
    changes = {
        "sizes": arguments.cells and tuple(arguments.cells),
        "rounds": arguments.rounds,
        "seeds": arguments.seeds,
    }
    usual = QUICK if arguments.quick else Scale()
    return dataclasses.replace(usual, **{name: value for name, value in changes.items() if value is not None})


def make_environments(race: Race, names: list[str], python: str, before: Path | None) -> None:
    """Make what is not there; ours must be, and an older checkout of ours runs in the same."""
    if importlib.util.find_spec("uv") is None:
        raise Failed("The race makes environments with uv: pip install uv, or use make bench.")
    for name in names:
        try:
            race.enter(environments.contestant(name, CHECKOUT / ".bench", python))
        except Failed as error:
            if name == OURS:
                raise
            race.leave_out(name, error)
    if before is not None:
        race.enter(dataclasses.replace(race.contestants[OURS], name=BEFORE, checkout=before.resolve()))


def run(race: Race, arguments: argparse.Namespace) -> None:
    """Ask; a question that fails as a whole, or is interrupted, leaves the results of the others."""
    with tempfile.TemporaryDirectory(prefix="race-") as folder:
        scale = scale_of(arguments)
        inputs = Inputs(race, scale, Path(folder), arguments.data)
        for question in arguments.questions or [name for name in ASKED if name not in scale.left_out]:
            try:
                ASKED[question](inputs)
            except (Failed, Exception) as error:  # of one question; the others go on
                print(f"{question} ended early: {last_line(error)}", flush=True)


def main() -> None:
    arguments = parsed(sys.argv[1:])
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    if not arguments.page_only:
        command = " ".join(["python -m benchmarks.race", *sys.argv[1:]])
        race = Race(results, command, arguments.timeout)
        start = time.perf_counter()
        make_environments(race, [*environments.usual(), *arguments.more], arguments.python, arguments.before)
        made = time.perf_counter()
        run(race, arguments)
        print(f"Environments took {made - start:.0f} s, the race {time.perf_counter() - made:.0f} s.", flush=True)
    print(write_page(results))


if __name__ == "__main__":
    main()
