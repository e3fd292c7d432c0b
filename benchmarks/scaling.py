"""How long, and in how much memory, would 1, 10 and 100 million cells take? On paper, from rates that were measured.

    python benchmarks/scaling.py

Prints the tables of docs/how/scaling.md. With a GPU, reading, moving and computing go on at once, and the slowest is
the pace; on processor cores alone they share these, and add up. Rates of this machine are from benchmarks/README.md;
those of a GPU are half the data sheet's (H100 SXM: 989 TFLOP/s in bfloat16, 3.35 TB/s, PCIe 5 at 64 GB/s), of what is
between eight of them a quarter (NVLink, 450 GB/s each way). Reading is the host's, taken not to grow with its cores.
"""

from dataclasses import dataclass

GENES, HIDDEN, TYPES = 1001, 64, 20  # `ginseng create` at its defaults
COUNTS_PER_CELL = 160  # that are not zero, of these genes
EPOCHS = 10
WEIGHTS = 2 * GENES**2 + 2 * GENES * HIDDEN + GENES * TYPES
FORWARD = 2 * WEIGHTS  # operations for a cell
STEP = 3 * FORWARD - 2 * GENES**2  # backward is twice forward, but nothing needs the gradient of the counts
ACTIVATIONS = 32 * 4 * GENES  # bytes for a cell: some 16 float32 arrays of all genes, written and read


@dataclass(frozen=True)
class Machine:
    """What does the work, in operations, bytes and cells per second."""

    name: str
    operations: float  # in training
    forward: float  # in annotation, whose batches are larger
    memory: float
    link: float | None
    batch: int
    n_devices: int = 1
    between: float = 0.0
    reading: float = 500_000  # beyond memory
    from_memory: float = 1_400_000
    annotating: float = 75_000  # reading, matching and judging, without the network
    creating: float = 150_000

    def seconds_of_step(self) -> dict[str, float]:
        """What each part of a training step of one batch takes."""
        share = self.batch / self.n_devices
        parts = {
            "products": share * STEP / self.operations,
            "memory": (7 * 4 * WEIGHTS + share * ACTIVATIONS) / self.memory,
        }
        if self.n_devices > 1:
            parts["between devices"] = 2 * 4 * WEIGHTS / self.between
        return parts

    def training(self, in_memory: bool) -> dict[str, float]:
        """Cells per second that each of what runs at once could do."""
        rates = {"compute": self.batch / sum(self.seconds_of_step().values())}
        rates["reading"] = self.from_memory if in_memory else self.reading
        if self.link is not None:
            rates["host to device"] = self.n_devices * self.link / GENES  # one byte a count
        return rates

    def annotation(self) -> dict[str, float]:
        """The same, for annotation."""
        return {"compute": self.n_devices * self.forward / FORWARD, "reading": self.annotating}


MACHINES = [
    Machine("two cores", operations=140e9, forward=280e9, memory=25e9, link=None, batch=128),
    Machine("one GPU", operations=495e12, forward=495e12, memory=1.7e12, link=32e9, batch=4096),
    Machine(
        "eight GPUs",
        operations=495e12,
        forward=495e12,
        memory=1.7e12,
        link=32e9,
        batch=32_768,
        n_devices=8,
        between=112e9,
    ),
]


def told(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def pace(machine: Machine, rates: dict[str, float]) -> tuple[str, float]:
    """What takes longest, and cells per second."""
    slowest = min(rates, key=lambda name: rates[name])
    shared = machine.link is None
    return slowest, 1 / sum(1 / rate for rate in rates.values()) if shared else rates[slowest]


def row(n_cells: int, machine: Machine) -> list[str]:
    """What is told of so many cells."""
    cells = []
    for in_memory in (True, False):
        by, rate = pace(machine, machine.training(in_memory))
        cells.append(f"{told(EPOCHS * n_cells / rate)} ({by})")
    by, rate = pace(machine, machine.annotation())
    return [f"{n_cells // 10**6} million", machine.name, *cells, f"{told(n_cells / rate)} ({by})"]


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def tables() -> str:
    """Time, and memory."""
    sizes = (10**6, 10**7, 10**8)
    times = [row(n_cells, machine) for machine in MACHINES for n_cells in sizes]
    header = ["cells", "on", f"{EPOCHS} epochs, counts in memory", "beyond memory", "annotation, one process"]
    stored = 1.6 * COUNTS_PER_CELL  # bytes on disk for each cell, measured
    memory = [
        [
            f"{n_cells // 10**6} million",
            told(n_cells / MACHINES[0].creating),
            f"{n_cells * stored / 1e9:.1f} GB",
            f"{n_cells * 6 * COUNTS_PER_CELL / 1e9:.0f} GB",
            f"{0.5 + n_cells * 84 / 1e9:.1f} GB",
            f"{0.6 + n_cells * 140 / 1e9:.1f} GB",
            told(n_cells * 0.9e-6),
        ]
        for n_cells in sizes
    ]
    of_memory = ["cells", "made in", "on disk", "all counts in memory", "without them", "annotation, peak", "opened in"]
    return f"{table(header, times)}\n\n{table(of_memory, memory)}"


if __name__ == "__main__":
    print(tables())
