"""Training saved as it goes on, so that a run that was killed ends as one that was not."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
from jaxtyping import PyTree

from ginseng.metrics import Scores, scores_of
from ginseng.train.logger import GinsengLogger
from ginseng.train.step import State
from ginseng.utils.files import replacing, require_writable_path

_FILE = "checkpoint.h5"
_SECONDS_BETWEEN = 60.0  # what a kill costs at most; saving takes about a second


@dataclass
class Progress:
    """How far a call of ``fit`` has come.

    Attributes
    ----------
    first, last : int
        Epochs that it trains: from `first` up to but not including `last`.
    epoch : int
        The epoch that is next or under way.
    memory : int
        Bytes that counts may take, on which the order of the cells depends.
    rng : dict
        State of the random generator at the beginning of that epoch.
    totals : list of float
        Sums of the losses of the slabs of that epoch that are done.
    lowest : float
        Lowest holdout loss of the call.
    best_epoch : int
        Epoch with that loss.
    """

    first: int
    last: int
    epoch: int
    memory: int
    rng: dict[str, Any]
    totals: list[float] = field(default_factory=list)
    lowest: float = float("inf")
    best_epoch: int = -1


@dataclass
class Saved:
    """What a run needs to go on.

    Attributes
    ----------
    progress : Progress
        Where it is.
    logger : GinsengLogger
        Metrics of the epochs so far.
    state : State
        What the next step starts from.
    scores : Scores, optional
        Of the held-out cells after the last epoch.
    best : PyTree, optional
        The weights with the lowest holdout loss.
    best_scores : Scores, optional
        Their scores.
    """

    progress: Progress
    logger: GinsengLogger
    state: State
    scores: Scores | None
    best: PyTree | None
    best_scores: Scores | None


class Checkpoint:
    """A directory that holds what was last saved of one training run.

    Parameters
    ----------
    folder : str or Path
        Made where it does not exist.
    run : dict
        What the run is: data, settings, epochs. What another run has saved is refused.

    Raises
    ------
    ValueError
        If the directory holds another run, or a file that cannot be read.
    """

    def __init__(self, folder: str | Path, run: dict[str, Any]):
        self._path = Path(folder) / _FILE
        self._run = json.loads(_as_json(run))
        self._saved_at = time.monotonic()
        require_writable_path(self._path)
        if self.exists:
            self._require_same_run()

    @property
    def exists(self) -> bool:
        """Whether something is saved."""
        return self._path.exists()

    @property
    def is_due(self) -> bool:
        """Whether the last time is long ago."""
        return time.monotonic() - self._saved_at > _SECONDS_BETWEEN

    def save(self, saved: Saved) -> None:
        """Replace what is saved, in one step."""
        records = {
            "progress": dataclasses.asdict(saved.progress),
            "logger": dataclasses.asdict(saved.logger),
            "scores": _confusion_of(saved.scores),
            "best_scores": _confusion_of(saved.best_scores),
        }
        for left_behind in self._path.parent.glob(f".{self._path.stem}.*{self._path.suffix}"):  # by a kill while saving
            left_behind.unlink()
        with replacing(self._path) as fresh, h5py.File(fresh, "w") as file:
            file.attrs["run"] = json.dumps(self._run)
            file["records"] = _as_json(records)
            for name, tree in (("state", saved.state), ("best", saved.best)):
                for number, leaf in enumerate(jax.tree.leaves(tree)):
                    file[f"{name}/{number}"] = _storable(leaf)
        self._saved_at = time.monotonic()

    def load(self, state: State, params: PyTree) -> Saved:
        """Read what is saved.

        Parameters
        ----------
        state, params : PyTree
            Of the structure, shapes and types of the state and the weights that were saved.

        Raises
        ------
        ValueError
            If other ones were saved.
        """
        with h5py.File(self._path) as file:
            contents: Any = file
            records = json.loads(contents["records"][()])
            return Saved(
                Progress(**records["progress"]),
                GinsengLogger(**records["logger"]),
                self._read(contents["state"], state),
                _scores_of(records["scores"]),
                self._read(contents["best"], params) if "best" in contents else None,
                _scores_of(records["best_scores"]),
            )

    def _read(self, group: Any, like: PyTree) -> PyTree:
        leaves, expected = [np.asarray(group[str(number)]) for number in range(len(group))], jax.tree.leaves(like)
        shapes = [[(x.shape, x.dtype) for x in found] for found in (leaves, map(_storable, expected))]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{self._path} is of another model or optimiser; name another directory.")
        restored = [_restored(leaf, of) for leaf, of in zip(leaves, expected, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(like), restored)

    def _require_same_run(self) -> None:
        try:
            with h5py.File(self._path) as file:
                saved = json.loads(str(file.attrs["run"]))
        except (OSError, KeyError) as error:
            raise ValueError(f"{self._path} is not a checkpoint that can be read: {error}") from error
        differing = [
            f"{name} was {saved.get(name)}, now {self._run.get(name)}"
            for name in {**saved, **self._run}
            if saved.get(name) != self._run.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self._path} holds another run ({'; '.join(differing)}). To go on with that one, make its trainer "
                "anew and repeat the call; for this one, name another directory."
            )


def _as_json(records: dict[str, Any]) -> str:
    """JSON of settings and figures, which may be numbers of NumPy."""
    return json.dumps(records, default=lambda value: value.item() if isinstance(value, np.generic) else str(value))


def _storable(leaf: Any) -> np.ndarray:
    """Array that HDF5 has a type for: it has none for PRNG keys, and none for bfloat16."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jr.key_data(leaf)
    array = np.asarray(leaf)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _restored(stored: np.ndarray, like: Any) -> jax.Array:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jr.wrap_key_data(jnp.asarray(stored), impl=jr.key_impl(like))
    return jnp.asarray(stored.view(like.dtype) if like.dtype.kind == "V" else stored)


def _confusion_of(scores: Scores | None) -> dict[str, Any] | None:
    return None if scores is None else scores.confusion.to_dict("split")


def _scores_of(confusion: dict[str, Any] | None) -> Scores | None:
    return None if confusion is None else scores_of(pd.DataFrame(**confusion))
