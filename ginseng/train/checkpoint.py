"""Training saved as it goes on, so that a run that was killed ends as one that was not."""

import dataclasses
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
from jax.tree_util import keystr
from jaxtyping import PyTree

from ginseng.metrics import Scores, scores_of
from ginseng.train.logger import GinsengLogger
from ginseng.train.run import Best, Run
from ginseng.utils.bounds import read_json
from ginseng.utils.digest import require_digest
from ginseng.utils.files import local_path, naming, require_writable_path
from ginseng.utils.hdf5 import contents_digest, new_hdf5, opened_hdf5
from ginseng.utils.workspace import remove_leftovers

TRACED = "model, optimizer and loss"  # in a description: the step as JAX traces it
FILE = "checkpoint.h5"  # in its folder
_FAULT = "is not a checkpoint that can be read"
_MEMBERS = ("description", "records", "leaves")
_SECONDS_BETWEEN = 60.0  # what a kill costs at most; saving takes about a second
_VERSIONS = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "equinox", "optax")}
_PLACES = ("first", "last", "epoch", "memory", "rng")  # of a run, kept as they are

Contents = tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]


class Checkpoint:
    """A directory that holds what was last saved of one training run.

    Parameters
    ----------
    folder : str or Path
        Made where it does not exist.
    description : dict
        What the run is: data, settings, epochs.

    Raises
    ------
    ValueError
        If the directory cannot be written to.
    """

    def __init__(self, folder: str | Path, description: dict[str, Any]):
        self._path = local_path(folder) / FILE
        self._description = json.loads(_as_json({**description, "versions": _VERSIONS}))
        self._saved_at = time.monotonic()
        require_writable_path(self._path)
        remove_leftovers(self._path.parent)

    @property
    def exists(self) -> bool:
        """Whether something is saved."""
        return self._path.exists()

    @property
    def is_due(self) -> bool:
        """Whether the last time is long ago."""
        return time.monotonic() - self._saved_at > _SECONDS_BETWEEN

    def save(self, run: Run) -> None:
        """Replace what is saved, in one step."""
        records = {
            **{name: getattr(run, name) for name in _PLACES},
            "totals": run.totals,
            "logger": dataclasses.asdict(run.logger),
            "scores": _confusion_of(run.scores),
            "best": None if run.best is None else [run.best.epoch, run.best.loss, _confusion_of(run.best.scores)],
        }
        leaves = {name: _storable(leaf) for name, leaf in _named(run).items()}
        _write(self._path, (self._description, records, leaves))
        self._saved_at = time.monotonic()

    def load(self, like: Run) -> Run:
        """Read what is saved.

        Parameters
        ----------
        like : Run
            With leaves of the shapes and types of those that were saved.

        Raises
        ------
        ValueError
            If the file cannot be read, or holds another run, or one of another version of JAX.
        """
        description, records, leaves = _read(self._path)
        with naming(self._path, _FAULT):
            self._require_same(description)
            np.random.default_rng().bit_generator.state = records["rng"]  # which it refuses if it is none
            best = None
            if records["best"] is not None:
                epoch, loss, confusion = records["best"]
                best = Best(epoch, loss, like.state.shown, _scores_of(confusion))
            like = dataclasses.replace(like, best=best)
            expected = _named(like)
            if _shapes(leaves) != _shapes({name: _storable(leaf) for name, leaf in expected.items()}):
                raise ValueError(f"{self._path} is of another model or optimiser; name another directory.")
            restored = [_restored(leaves[name], leaf) for name, leaf in expected.items()]
            state, best_params = jax.tree.unflatten(jax.tree.structure(_weights(like)), restored)
            return dataclasses.replace(
                like,
                **{name: records[name] for name in _PLACES},
                totals=tuple(records["totals"]),
                state=state,
                logger=GinsengLogger(**records["logger"]),
                scores=_scores_of(records["scores"]),
                best=None if best is None else best._replace(params=best_params),
            )

    def _require_same(self, saved: dict[str, Any]) -> None:
        names = [name for name in {**saved, **self._description} if name != "versions"]
        differing = [name for name in names if saved.get(name) != self._description.get(name)]
        versions = saved.get("versions", {})
        if differing == [TRACED] and versions != _VERSIONS:
            was, now = (", ".join(f"{name} {each.get(name)}" for name in _VERSIONS) for each in (versions, _VERSIONS))
            raise ValueError(
                f"{self._path} was saved with {was}. This is {now}, which computes a step in another way, if it is the "
                "same step: install those versions to go on, or name another directory to begin anew."
            )
        if differing:
            told = "; ".join(f"{name} was {saved.get(name)}, now {self._description.get(name)}" for name in differing)
            raise ValueError(
                f"{self._path} holds another run ({told}). To go on with that one, make its trainer anew and repeat "
                "the call; for this one, name another directory."
            )


def _write(path: Path, contents: Contents) -> None:
    description, records, leaves = contents
    with new_hdf5(path) as file:
        file["description"], file["records"] = _as_json(description), _as_json(records)
        group = file.create_group("leaves")
        for name, leaf in leaves.items():
            group[name] = leaf
        file.attrs["digest"] = contents_digest(file, _MEMBERS)


def _read(path: Path) -> Contents:
    leaves = {}

    def take(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            leaves[name] = np.asarray(found)

    with naming(path, _FAULT), opened_hdf5(path) as file:
        require_digest(str(file.attrs["digest"]), contents_digest(file, _MEMBERS), "its contents")
        texts: Any = file["description"], file["records"]
        description, records = (read_json(text[()]) for text in texts)
        group: Any = file["leaves"]
        group.visititems(take)
    return description, records, leaves


def _weights(run: Run) -> PyTree:
    return run.state, None if run.best is None else run.best.params


def _named(run: Run) -> dict[str, Any]:
    """Leaves by their path, such as ``[0].params.head.weight``."""
    return {keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(_weights(run))}


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


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
    if scores is None:
        return None
    further = {name: _confusion_of(of_output) for name, of_output in scores.further.items()}
    return {**scores.confusion.to_dict("split"), "further": further}


def _scores_of(confusion: dict[str, Any] | None) -> Scores | None:
    if confusion is None:
        return None
    further = {name: _scores_of(of_output) for name, of_output in confusion.pop("further", {}).items()}
    return dataclasses.replace(scores_of(pd.DataFrame(**confusion)), further=further)
