"""Training saved as it goes on, so that a run that was killed ends as one that was not."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ginseng.utils.files import replacing

_FILE = "checkpoint.h5"
_SECONDS_BETWEEN = 60.0  # what a kill costs at most; a file takes about a second


@dataclass
class Progress:
    """How far a call of ``fit`` has come.

    Attributes
    ----------
    first, last : int
        Epochs that it trains: from `first` up to but not including `last`.
    epoch : int
        The epoch that is next or under way.
    totals : list of float
        Sum of the losses of each slab of that epoch that is done.
    rng : dict
        State of the random generator at the beginning of that epoch.
    lowest : float
        Lowest holdout loss of the call.
    best_epoch : int
        Epoch with that loss.
    """

    first: int
    last: int
    epoch: int
    rng: dict[str, Any]
    totals: list[float] = field(default_factory=list)
    lowest: float = float("inf")
    best_epoch: int = -1


class Checkpoint:
    """A directory that holds the last saved state of one training run.

    Parameters
    ----------
    folder : str or Path
        Made where it does not exist.
    run : dict
        What the run is: settings, data, epochs. A saved state of another run is refused.

    Raises
    ------
    ValueError
        If the directory holds a state of another run, or one that cannot be read.
    """

    def __init__(self, folder: str | Path, run: dict[str, Any]):
        self._path = Path(folder) / _FILE
        self._run = json.loads(json.dumps(run, default=str))
        self._saved_at = time.monotonic()
        if self.exists:
            self._require_same_run()

    @property
    def exists(self) -> bool:
        """Whether there is a saved state."""
        return self._path.exists()

    @property
    def is_due(self) -> bool:
        """Whether the last state was saved long ago."""
        return time.monotonic() - self._saved_at > _SECONDS_BETWEEN

    def save(self, trees: dict[str, PyTree], records: dict[str, Any]) -> None:
        """Replace the saved state, in one step.

        Parameters
        ----------
        trees : dict of PyTree
            Arrays by name.
        records : dict
            Anything that JSON can hold, by name.
        """
        with replacing(self._path) as fresh, h5py.File(fresh, "w") as file:
            file.attrs["run"] = json.dumps(self._run)
            file["records"] = json.dumps(records)
            for name, tree in trees.items():
                for number, leaf in enumerate(jax.tree.leaves(tree)):
                    file[f"{name}/{number}"] = np.asarray(leaf)
        self._saved_at = time.monotonic()

    def load(self, trees: dict[str, PyTree]) -> tuple[dict[str, PyTree | None], dict[str, Any]]:
        """Read the saved state.

        Parameters
        ----------
        trees : dict of PyTree
            Arrays of the same structure, shapes and types as those that were saved.

        Returns
        -------
        tuple
            The trees, None for those that were not saved, and the records.
        """
        with h5py.File(self._path) as file:
            contents: Any = file
            records, found = json.loads(contents["records"][()]), {}
            for name, like in trees.items():
                stored = contents.get(name)
                leaves = [] if stored is None else [jnp.asarray(stored[str(n)][()]) for n in range(len(stored))]
                expected = jax.tree.leaves(like)
                if stored is not None and [(x.shape, x.dtype) for x in leaves] != [
                    (x.shape, x.dtype) for x in expected
                ]:
                    raise ValueError(f"{self._path} belongs to another model or optimiser; name another directory.")
                found[name] = None if stored is None else jax.tree.unflatten(jax.tree.structure(like), leaves)
        return found, records

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
                f"{self._path} holds another run ({'; '.join(differing)}). Repeat that call to go on with it, or name "
                "another directory."
            )
