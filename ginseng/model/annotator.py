"""What annotates cells: any module of one cell, with the names of its inputs and outputs."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from ginseng.model.attention import AttentionClassifier
from ginseng.model.modules import require_shapes
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.digest import digest, require_digest
from ginseng.utils.files import naming, replacing

_FORMAT = "ginseng annotator 1"


@dataclass(frozen=True)
class Annotator:
    """A module that maps the counts of one cell to logits, with the names of its genes and cell types.

    Parameters
    ----------
    module : eqx.Module
        Called as ``module(x)``, or ``module(x, key=key)`` where its ``__call__`` takes a ``key``; what
        `ginseng.Trainer` trains.
    genes : sequence of str
        Names of its inputs, unique.
    labels : sequence of str
        Names of its outputs, unique.
    takes_counts : bool
        Whether it takes raw counts (and normalises them itself): negative ones are then refused, and fractions draw a
        warning.

    Raises
    ------
    ValueError
        If names repeat, or do not fit the module.

    Examples
    --------
    >>> import jax.random as jr
    >>> annotator = Annotator(eqx.nn.Linear(2, 3, key=jr.key(0)), ["CD3D", "MS4A1"], ["T", "B", "NK"])
    >>> ginseng.classify(annotator, "new_cells.h5ad", return_table=True)  # doctest: +SKIP
    """

    module: Any
    genes: Sequence[str]
    labels: Sequence[str]
    takes_counts: bool = True

    def __post_init__(self):
        for name in ("genes", "labels"):
            names = [str(entry) for entry in getattr(self, name)]
            if len(set(names)) != len(names):
                raise ValueError(f"`{name}` must not name anything twice.")
            object.__setattr__(self, name, names)
        require_shapes(self.module, len(self.genes), len(self.labels))

    @classmethod
    def of(cls, state: GinsengClassifierState) -> "Annotator":
        """The annotator of a classifier's state.

        Examples
        --------
        >>> Annotator.of(ginseng.load_model("model.h5")).labels  # doctest: +SKIP
        ['B', 'T']
        """
        return cls(state.module, np.asarray(state.genes).tolist(), state.output_labels.tolist(), bool(state.normalize))

    def normalizing(self, normalize: bool | None, target_sum: float | None) -> "Annotator":
        """The same with another normalisation, which an `AttentionClassifier` has.

        Raises
        ------
        ValueError
            If the module is another.
        """
        if normalize is None and target_sum is None:
            return self
        if not isinstance(self.module, AttentionClassifier):
            raise ValueError(
                "`normalize` and `target_sum` are settings of an AttentionClassifier; this is another module."
            )
        module = self.module.normalizing(normalize, target_sum)
        return Annotator(module, self.genes, self.labels, module.normalize)


def save_annotator(annotator: Annotator, path: str | Path) -> None:
    """Save any annotator: a line of JSON with its names, then the leaves of its module as Equinox writes them.

    The module's structure is not in the file: `load_annotator` is given a module of the same making. Classifiers of
    `GinsengClassifierTrainer` are saved by `save_model`, which needs none.

    Parameters
    ----------
    annotator : Annotator
        What to save.
    path : str or Path
        Output file, such as ``"annotator.eqx"``.

    Raises
    ------
    OSError
        If the file cannot be written; what was there is as it was.

    Examples
    --------
    >>> import jax.random as jr, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "linear.eqx"
    >>> save_annotator(Annotator(eqx.nn.Linear(2, 2, key=jr.key(0)), ["CD3D", "MS4A1"], ["T", "B"]), path)
    >>> load_annotator(path, eqx.nn.Linear(2, 2, key=jr.key(1))).labels
    ['T', 'B']
    """
    leaves = io.BytesIO()
    eqx.tree_serialise_leaves(leaves, annotator.module)
    header = {"format": _FORMAT, "genes": annotator.genes, "labels": annotator.labels}
    header |= {"takes_counts": annotator.takes_counts, "digest": _digest_of(leaves.getvalue())}
    with replacing(path) as fresh:
        fresh.write_bytes(json.dumps(header).encode() + b"\n" + leaves.getvalue())


def load_annotator(path: str | Path, like: eqx.Module) -> Annotator:
    """Load what `save_annotator` has saved.

    Parameters
    ----------
    path : str or Path
        The file.
    like : eqx.Module
        A module of the same structure, shapes and types; its weights do not matter.

    Returns
    -------
    Annotator
        Of the saved weights and names.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of another kind, or of another module.

    Examples
    --------
    See `save_annotator`.
    """
    with naming(path, "is no annotator, is damaged, or belongs to a module of another structure"):
        first, _, leaves = Path(path).read_bytes().partition(b"\n")
        header = json.loads(first)
        if header.pop("format") != _FORMAT:
            raise ValueError("its format is another")
        require_digest(header.pop("digest"), _digest_of(leaves), "its weights")
        return Annotator(eqx.tree_deserialise_leaves(io.BytesIO(leaves), like), **header)


def _digest_of(leaves: bytes) -> str:
    return digest(np.frombuffer(leaves, np.uint8))
