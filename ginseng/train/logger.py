"""Metrics of a training run, epoch by epoch."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from ginseng.utils.files import local_path, naming, replacing, require_writable_path
from ginseng.utils.values import require_flags


@dataclass
class GinsengLogger:
    """Training and holdout metrics of each epoch: the ``logger`` of a trainer.

    Scores of each type after the last epoch are its ``holdout_scores``; those of annotated cells come from
    `ginseng.metrics.score`.

    Attributes
    ----------
    epoch : list of int
        Epoch indices, from 0.
    train_loss : list of float
        Mean training loss over the cells of each epoch.
    holdout_loss : list of float
        Mean loss over the held-out cells, without dropout; NaN where no cells are held out.
    holdout_accuracy : list of float
        Fraction of the held-out cells that are classified correctly; NaN where no cells are held out.
    holdout_macro_f1 : list of float
        Mean F1 over the cell types of the held-out cells, each type counting the same; NaN where none are held out.

    Examples
    --------
    >>> logger = GinsengLogger()
    >>> logger.update(0, train_loss=1.25, holdout_loss=1.0, holdout_accuracy=0.5, holdout_macro_f1=0.4)
    >>> logger.report()
    epoch 1: train loss 1.2500, holdout loss 1.0000, holdout accuracy 0.500, macro-F1 0.400
    >>> logger.to_frame().columns.tolist()
    ['train_loss', 'holdout_loss', 'holdout_accuracy', 'holdout_macro_f1']
    """

    epoch: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    holdout_loss: list[float] = field(default_factory=list)
    holdout_accuracy: list[float] = field(default_factory=list)
    holdout_macro_f1: list[float] = field(default_factory=list)

    def update(
        self,
        epoch: int,
        train_loss: float,
        holdout_loss: float,
        holdout_accuracy: float,
        holdout_macro_f1: float = math.nan,
    ) -> None:
        """Add the metrics of one epoch.

        Parameters
        ----------
        epoch : int
            Epoch index, from 0.
        train_loss, holdout_loss, holdout_accuracy, holdout_macro_f1 : float
            See the attributes.
        """
        self.epoch.append(int(epoch))
        self.train_loss.append(float(train_loss))
        self.holdout_loss.append(float(holdout_loss))
        self.holdout_accuracy.append(float(holdout_accuracy))
        self.holdout_macro_f1.append(float(holdout_macro_f1))

    def to_frame(self) -> pd.DataFrame:
        """Give the metrics as a table with a row for each epoch, counted from 1 as on screen and in log files."""
        table = pd.DataFrame(asdict(self))
        return table.assign(epoch=table["epoch"] + 1).set_index("epoch")

    def report(self, silent: bool = False, flush: bool = True) -> None:
        """Print the most recent epoch to standard output.

        Parameters
        ----------
        silent : bool
            Print nothing.
        flush : bool
            Write at once.
        """
        require_flags(silent=silent, flush=flush)
        if silent or not self.epoch:
            return
        line = f"epoch {self.epoch[-1] + 1}: train loss {self.train_loss[-1]:.4f}"
        if not math.isnan(self.holdout_loss[-1]):
            line += f", holdout loss {self.holdout_loss[-1]:.4f}, holdout accuracy {self.holdout_accuracy[-1]:.3f}"
        if not math.isnan(self.holdout_macro_f1[-1]):
            line += f", macro-F1 {self.holdout_macro_f1[-1]:.3f}"
        print(line, flush=flush)


class LogFile:
    """A file to which the metrics of each epoch, counted from 1, are appended as it ends.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` table, with a header if it is new, or ``.jsonl``, a JSON object on each line.

    Attributes
    ----------
    goes_on : bool
        Whether the next epoch may be there already, of a run that was killed before it could save that epoch; it is
        then replaced.

    Raises
    ------
    ValueError
        If the suffix is another, or the file that is there is no text.
    """

    def __init__(self, path: str | Path):
        self._path = local_path(path)
        if self._path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"The log of a training run is a .csv or a .jsonl file, but got {path}.")
        require_writable_path(self._path)
        self._lines()
        self.goes_on = False

    def append(self, logger: GinsengLogger, seconds: float) -> None:
        """Write the most recent epoch, which took so many seconds."""
        row = {name: values[-1] for name, values in asdict(logger).items()} | {"seconds": round(seconds, 3)}
        row["epoch"] += 1
        if self._path.suffix == ".jsonl":
            known = {name: value if math.isfinite(value) else None for name, value in row.items()}
            header, line, start = "", json.dumps(known), f'{{"epoch": {row["epoch"]},'
        else:
            header, line, start = ",".join(row), ",".join(map(str, row.values())), f"{row['epoch']},"
        lines = self._lines() or [header] * bool(header)
        if self.goes_on and lines and lines[-1].startswith(start):
            lines.pop()
        self.goes_on = False
        with replacing(self._path) as fresh:
            fresh.write_text("\n".join([*lines, line]) + "\n", encoding="utf-8")

    def _lines(self) -> list[str]:
        with naming(self._path, "is no log of a training run"):
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
            if lines and not lines[0].startswith(("epoch,", '{"epoch":')):
                raise ValueError("its first line is of something else")
            return lines
