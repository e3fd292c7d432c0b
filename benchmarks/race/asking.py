"""How each question is asked: which processes, in which order. Contestants take turns, round by round."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

from benchmarks.contestants import Failed
from benchmarks.race import judging
from benchmarks.race.measuring import Race
from benchmarks.race.questions import BEFORE, OURS, REFERENCE

SIDES = (OURS, BEFORE, REFERENCE)
LABELLING = {
    OURS: "label_ginseng",
    BEFORE: "label_ginseng",
    REFERENCE: "label_reference",
    "logistic regression": "label_logistic",
    "CellTypist": "label_celltypist",
    "scANVI": "label_scanvi",
    "SingleR": "label_singler",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is asked."""

    sizes: tuple[int, ...] = (20_000, 200_000)
    genes: int = 2_000
    rounds: int = 3
    seeds: int = 3
    steps: int = 100
    reference_steps: int = 20  # of an epoch, which takes it ever longer the more cells there are
    left_out: tuple[str, ...] = ()  # questions, unless they are asked for by name


# Of so few cells all fit in memory, and one type of few is no measure of novelty.
QUICK = Scale(sizes=(4_000,), genes=500, rounds=1, seeds=1, steps=30, left_out=("stream-budget", "novelty"))


class Inputs:
    """Data that questions share, each made when it is first needed, in a folder that ends with the race."""

    def __init__(self, race: Race, scale: Scale, folder: Path, data: Path | None):
        self.race, self.scale, self.folder = race, scale, folder
        self._data, self._splits = data, {}

    @cached_property
    def _found(self) -> dict:
        if self._data is None:
            files = [self.folder / "pbmc68k_reduced.h5ad"]
            self.race.ask(OURS, "shipped", *files)
        else:
            files = sorted(self._data.absolute().glob("*.h5ad"))
        found = self._prepare("labelled", *files)
        if not found["files"]:
            raise Failed(f"{self._data} has no .h5ad with `cell_type` in obs.")
        return found

    @property
    def files(self) -> list[Path]:
        """Labelled cells."""
        return [Path(path) for path in self._found["files"]]

    def counts(self, n_cells: int) -> Path:
        """Counts of so many cells, drawn from real ones and thinned to 8 % non-zero."""
        path = self.folder / f"{n_cells}.h5ad"
        if not path.exists():
            command = ["-m", "benchmarks.simulate", "--data", self._found["largest"], "--cells", n_cells]
            self.race.contestants[OURS].run(*command, "--genes", self.scale.genes, "--out", path)
        return path

    def store(self, of: str, n_cells: int) -> Path:
        """A dataset of them, made by a contestant."""
        path = self.folder / f"{of.replace(' ', '-')}-{n_cells}.zarr"
        if not path.exists():
            self.race.ask(of, "create", self.counts(n_cells), "cell_type", path)
        return path

    def anndata_store(self, n_cells: int) -> Path:
        """An AnnData .zarr of them."""
        path = self.folder / f"counts-{n_cells}.zarr"
        if not path.exists():
            self.race.ask(OURS, "store", self.counts(n_cells), path)
        return path

    def model(self) -> Path:
        """A model file of ours, which all annotate with."""
        path = self.folder / "model.h5"
        if not path.exists():
            self.race.ask(OURS, "fit", self.store(OURS, min(self.scale.sizes)), path)
        return path

    def split(self, file: Path, seed: int, *withhold: str) -> tuple[Path, dict]:
        """Folder of training and test cells, and what was withheld."""
        folder = self.folder / "-".join([file.stem, str(seed), *withhold])
        if folder not in self._splits:
            told = self._prepare("split", file, folder, seed, *withhold)
            self._splits[folder] = told
        return folder, self._splits[folder]

    def _prepare(self, what: str, *args: object) -> dict:
        output = self.race.contestants[OURS].run("-m", "benchmarks.race.splits", what, *args)
        return json.loads(output.strip().splitlines()[-1])

    def turns(self, *names: str) -> list[str]:
        """Those contestants that take part."""
        return [name for name in names if name in self.race.contestants]

    def rounds(self) -> Iterator[tuple[int, int, str]]:
        """Each size of simulated data in each round: number of the round, of cells, and the case."""
        for nth in range(self.scale.rounds):
            for n_cells in self.scale.sizes:
                yield nth, n_cells, case_of(n_cells)


def case_of(n_cells: int) -> str:
    """The case of so many simulated cells."""
    return f"{n_cells:,} cells"


def create(inputs: Inputs) -> None:
    for nth, n_cells, case in inputs.rounds():
        for of in inputs.turns(*SIDES):
            with tempfile.TemporaryDirectory(dir=inputs.folder) as folder:
                arguments = inputs.counts(n_cells), "cell_type", f"{folder}/made.zarr"
                inputs.race.measure("create", case, of, nth, "create", *arguments)


def stream_memory(inputs: Inputs) -> None:
    question = "stream-memory"
    for nth, n_cells, case in inputs.rounds():
        for of in inputs.turns(*SIDES):
            store, n_batches = partial(inputs.store, of, n_cells), 10 if of == REFERENCE else 0
            inputs.race.measure(question, case, of, nth, "stream", store, n_batches, 0)
        inputs.race.measure(question, case, OURS, nth, "stream_scipy", inputs.counts(n_cells), by="bare scipy")


def stream_budget(inputs: Inputs) -> None:
    n_cells = max(inputs.scale.sizes)
    store = inputs.store(OURS, n_cells)
    limits = inputs.race.ask(OURS, "beyond", store)
    case = f"{case_of(n_cells)} within {limits['budget'] / 2**20:.3g} MiB"
    for nth in range(inputs.scale.rounds):
        inputs.race.measure("stream-budget", case, OURS, nth, "stream", store, 0, limits["budget"])
        for n_blocks in (32, 384):
            arguments = store, limits["block size"], n_blocks
            by = f"annbatch, {n_blocks} blocks"
            inputs.race.measure("stream-budget", case, "annbatch", nth, "stream_annbatch", *arguments, by=by)


def step(inputs: Inputs) -> None:
    n_cells, scale = min(inputs.scale.sizes), inputs.scale
    for nth in range(scale.rounds):
        case = f"{scale.genes:,} genes"
        for of in inputs.turns(*SIDES):
            store = partial(inputs.store, of, n_cells)
            inputs.race.measure("step", case, of, nth, "train", "step", store, scale.steps)
        inputs.race.measure("step", case, OURS, nth, "roofline", 128, scale.genes, 9, by="roofline")


def epoch(inputs: Inputs) -> None:
    for nth, n_cells, case in inputs.rounds():
        for of in inputs.turns(*SIDES):
            n_steps = inputs.scale.reference_steps if of == REFERENCE else inputs.scale.steps
            arguments = "epoch", partial(inputs.store, of, n_cells), n_steps
            inputs.race.measure("epoch", case, of, nth, "train", *arguments)


def annotate_memory(inputs: Inputs) -> None:
    question, model = "annotate-memory", inputs.model()
    for nth, n_cells, case in inputs.rounds():
        for of in inputs.turns(*SIDES):
            inputs.race.measure(question, case, of, nth, "annotate", model, inputs.counts(n_cells), "memory")
        inputs.race.measure(question, case, OURS, nth, "products", model, by="bare products")


def annotate_disk(inputs: Inputs) -> None:
    question, model = "annotate-disk", inputs.model()
    for nth, n_cells, case in inputs.rounds():
        for of in inputs.turns(*SIDES):
            inputs.race.measure(question, case, of, nth, "annotate", model, inputs.counts(n_cells), "disk")
        arguments = model, inputs.anndata_store(n_cells), "disk"
        inputs.race.measure(question, case, OURS, nth, "annotate", *arguments, by=f"{OURS}, .zarr")


def whole(inputs: Inputs) -> None:
    for seed in range(inputs.scale.seeds):
        for file in inputs.files:
            folder, told = inputs.split(file, seed)
            how = {"judge": partial(judging.written, folder), "details": told}
            cache = {"XDG_CACHE_HOME": inputs.folder / f"cache-{file.stem}-{seed}"}
            for by in (OURS, f"{OURS}, warm cache"):
                inputs.race.measure(
                    "whole", file.stem, OURS, seed, "whole", "ginseng", folder, by=by, variables=cache, **how
                )
            inputs.race.measure("whole", file.stem, "CellTypist", seed, "whole", "celltypist", folder, **how)


def accuracy(inputs: Inputs) -> None:
    label(inputs, "accuracy")


def novelty(inputs: Inputs) -> None:
    label(inputs, "novelty", "withhold")


def label(inputs: Inputs, question: str, *withhold: str) -> None:
    """Training cells to labels of test cells, for each file and seed."""
    for seed in range(inputs.scale.seeds):
        for file in inputs.files:
            folder, told = inputs.split(file, seed, *withhold)
            how = {"judge": partial(judging.labels, folder, told.get("withheld", "")), "details": told}
            for of in inputs.turns(*LABELLING):
                inputs.race.measure(question, file.stem, of, seed, LABELLING[of], folder, seed, **how)


def model_file(inputs: Inputs) -> None:
    race = inputs.race
    for file in inputs.files if REFERENCE in race.contestants else ():
        for writer in (OURS, REFERENCE):
            with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
                model, *read = (Path(name, each) for each in ("model.h5", "theirs.csv", "ours.csv"))
                race.ask(writer, "model_file", "write", file, model, name)
                race.ask(REFERENCE, "model_file", "read", model, file, read[0])
                case, judge = f"{file.stem}, written by {writer}", partial(judging.tables, *read)
                race.measure("model-file", case, OURS, 0, "model_file", "read", model, file, read[1], judge=judge)


def trajectory(inputs: Inputs) -> None:
    n_cells = min(inputs.scale.sizes)
    losses = {of: inputs.folder / f"losses-{of.replace(' ', '-')}.json" for of in (OURS, REFERENCE)}
    for of in inputs.turns(REFERENCE, OURS):
        arguments = partial(inputs.store, of, n_cells), inputs.counts(n_cells), inputs.scale.steps, losses[of]
        judge = partial(judging.losses, losses[OURS], losses[REFERENCE]) if of == OURS else dict
        inputs.race.measure("trajectory", case_of(n_cells), of, 0, "trajectory", *arguments, judge=judge)


ASKED: dict[str, Callable[[Inputs], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        create,
        stream_memory,
        stream_budget,
        step,
        epoch,
        annotate_memory,
        annotate_disk,
        whole,
        accuracy,
        novelty,
        model_file,
        trajectory,
    )
}
