"""What annotates cells: any module of one cell, with the names of its inputs and outputs."""

import dataclasses
import functools
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ginseng.model.attention import AttentionClassifier
from ginseng.model.background import Background, lacking, require_background
from ginseng.model.calibration import Calibration, as_tree, from_tree
from ginseng.model.ensemble import joined, members_of
from ginseng.model.modules import require_shapes, weights_digest
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.bounds import read_json
from ginseng.utils.devices import require_not_forked
from ginseng.utils.digest import digest, require_digest
from ginseng.utils.files import local_path, naming, replacing
from ginseng.utils.genes import OTHER_GENES
from ginseng.utils.messages import warn
from ginseng.utils.names import require_second_names
from ginseng.utils.values import require_flags, texts

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
    background : Background, optional
        Of an `AttentionClassifier`, or an ensemble of these: means over training cells, which stand in for genes that
        the data lack. Without it they count as zero.
    second_names : sequence of str, optional
        Other names of its genes, unique, "" where there is none: see `ginseng.utils.names.second_names`.
    calibration : Calibration, optional
        What its answers are worth, learnt from cells that the module was not trained on.

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
    background: Background | None = None
    second_names: Sequence[str] | None = None
    calibration: Calibration | None = None

    def __post_init__(self):
        require_not_forked()
        for name in ("genes", "labels"):
            names = texts(getattr(self, name), name.removesuffix("s")).tolist()
            if len(set(names)) != len(names):
                raise ValueError(f"`{name}` must not name anything twice.")
            object.__setattr__(self, name, names)
        if self.second_names is not None:
            object.__setattr__(self, "second_names", require_second_names(self.second_names, len(self.genes)).tolist())
        require_flags(takes_counts=self.takes_counts)
        require_shapes(self.module, len(self.genes), len(self.labels))
        if self.background is not None:
            if not isinstance(members_of(self.module)[0], AttentionClassifier):
                raise ValueError("`background` is of an AttentionClassifier; this is another module.")
            require_background(self.background, len(self.genes))
        if self.calibration is not None:
            self.calibration.require_classes(len(self.labels))

    @classmethod
    def of(cls, state: GinsengClassifierState) -> "Annotator":
        """The annotator of a classifier's state.

        Examples
        --------
        >>> Annotator.of(ginseng.load_model("model.h5")).labels  # doctest: +SKIP
        ['B', 'T']
        """
        genes, labels = np.asarray(state.genes).tolist(), state.output_labels.tolist()
        second = None if state.second_names is None else np.asarray(state.second_names).tolist()
        return cls(state.module, genes, labels, bool(state.normalize), state.background, second, state.calibration)

    @property
    def id(self) -> str:
        """Short name of its weights and names, the same wherever it is loaded."""
        arrays = jax.tree.leaves(eqx.filter(self.module, eqx.is_array))
        return digest(*arrays, [*self.genes, *self.labels])

    def normalizing(self, normalize: bool | None, target_sum: float | None) -> "Annotator":
        """The same with another normalisation, which an `AttentionClassifier` has; genes that lack then count as zero.

        Raises
        ------
        ValueError
            If the module is another.
        """
        if normalize is None and target_sum is None:
            return self
        networks = members_of(self.module)
        if not isinstance(networks[0], AttentionClassifier):
            raise ValueError(
                "`normalize` and `target_sum` are settings of an AttentionClassifier; this is another module."
            )
        networks = [network.normalizing(normalize, target_sum) for network in networks]
        return dataclasses.replace(self, module=joined(networks), takes_counts=networks[0].normalize, background=None)

    @property
    def own_calibration(self) -> Calibration | None:
        """Its calibration, unless that was learnt for other weights, of which a warning tells."""
        if self.calibration is None or self.calibration.is_of(weights_digest(self.module)):
            return self.calibration
        warn("The calibration was learnt for other weights than the module has, and is not used.")
        return None

    def lacking(self, is_lacking: np.ndarray) -> "Annotator":
        """The same for data that lack some genes, of which it knows the means over training cells."""
        if self.background is None or not is_lacking.any():
            return self
        is_rest = np.array(self.genes) == OTHER_GENES
        return dataclasses.replace(self, module=lacking(self.module, self.background, is_lacking, is_rest))


def save_annotator(annotator: Annotator, path: str | Path) -> None:
    """Save any annotator: a line with a digest, one of JSON with its names, the leaves of its module as Equinox does.

    How the module is made is told by the file, but cannot be made from it: `load_annotator` is given a module of the
    same making. Classifiers of `GinsengClassifierTrainer` are saved by `save_model`, which needs none.

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
    if not isinstance(annotator, Annotator):
        raise ValueError(f"`annotator` must be an Annotator, but got a {type(annotator).__name__}: see Annotator.of.")
    leaves = io.BytesIO()
    eqx.tree_serialise_leaves(leaves, annotator.module)
    header = {"genes": annotator.genes, "labels": annotator.labels, "takes_counts": annotator.takes_counts}
    if annotator.background is not None:
        header["background"] = {name: means.tolist() for name, means in annotator.background._asdict().items()}
    if (calibration := annotator.own_calibration) is not None:
        tree = as_tree(calibration)
        header["calibration"] = {name: [part.dtype.str, part.tolist()] for name, part in tree.items()}
    if annotator.second_names is not None:
        header["second_names"] = annotator.second_names
    first = json.dumps({"format": _FORMAT, **header, "making": dict(_making(annotator.module))}).encode()
    with replacing(path) as fresh:
        fresh.write_bytes(b"\n".join([_digest_of(first, leaves.getvalue()).encode(), first, leaves.getvalue()]))


def load_annotator(path: str | Path, like: eqx.Module) -> Annotator:
    """Load what `save_annotator` has saved.

    Parameters
    ----------
    path : str or Path
        The file.
    like : eqx.Module
        A module of the same structure, shapes, types and settings; its weights do not matter. Functions in it are
        compared by their names.

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
    path = local_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a file of save_annotator is expected.")
    with naming(path, "is no annotator, is damaged, or belongs to a module of another making"):
        kept, first, leaves = path.read_bytes().split(b"\n", 2)
        require_digest(kept.decode(), _digest_of(first, leaves), "its names or weights")
        header = read_json(first)
        if header.pop("format") != _FORMAT:
            raise ValueError("its format is another")
        _require_equal(header.pop("making"), dict(_making(like)))
        if "background" in header:
            kept = {name: np.asarray(means, np.float32) for name, means in header["background"].items()}
            header["background"] = Background(**kept)
        if "calibration" in header:
            header["calibration"] = from_tree({n: _numbers(v, t) for n, (t, v) in header["calibration"].items()})
        annotator = Annotator(eqx.tree_deserialise_leaves(io.BytesIO(leaves), like, _leaf), **header)
        if annotator.calibration is None:
            return annotator
        calibration = dataclasses.replace(annotator.calibration, weights=weights_digest(annotator.module))
        return dataclasses.replace(annotator, calibration=calibration)


def _numbers(values: list[Any], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind not in "iuf":
        raise ValueError(f"a part of its calibration is {dtype}, where numbers are expected")
    return np.array(values, dtype)


def _leaf(file: Any, like: Any) -> Any:
    """What Equinox reads for a leaf, of which the shape is known before memory is taken for it."""
    if eqx.is_array_like(like) or isinstance(like, jax.ShapeDtypeStruct):
        begin = file.tell()
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("a weight is stored in another way than Equinox does")
        shape, *_ = np.lib.format.read_array_header_1_0(file)
        if shape != np.shape(like):
            raise ValueError(f"a weight has shape {shape}, where {np.shape(like)} is expected")
        file.seek(begin)
    return eqx.default_deserialise_filter_spec(file, like)


def _digest_of(*parts: bytes) -> str:
    return digest(*(np.frombuffer(part, np.uint8) for part in parts))


def _making(part: Any, path: str = "", is_static: bool = False) -> Iterator[tuple[str, str]]:
    """What a module is made of, by its place in it: all but the arrays and numbers that Equinox saves."""
    is_number = isinstance(part, bool | int | float | complex | np.generic)
    if isinstance(part, jax.Array | np.ndarray):
        yield path, f"{part.dtype} of shape {part.shape}"
    elif is_number and not is_static:
        yield path, type(part).__name__
    elif inner := _inner(part, is_static):
        yield path, type(part).__qualname__
        for name, value, inner_is_static in inner:
            yield from _making(value, f"{path}{name}", inner_is_static)
    elif isinstance(part, set | frozenset):
        yield path, str(sorted(map(repr, part)))
    elif is_number or isinstance(part, str | bytes | Enum | None):
        yield path, repr(part)
    else:
        named = part if hasattr(part, "__qualname__") else type(part)
        yield path, f"{named.__module__}.{named.__qualname__}"


def _inner(part: Any, is_static: bool) -> list[tuple[str, Any, bool]]:
    """Names and values of what a part consists of, and whether these are static."""
    if isinstance(part, functools.partial):
        return [(f".{name}", getattr(part, name), True) for name in ("func", "args", "keywords")]
    if dataclasses.is_dataclass(part):
        is_static |= jax.tree_util.all_leaves([part])  # one that JAX does not look into
        fields = dataclasses.fields(part)
        return [(f".{f.name}", getattr(part, f.name), is_static or f.metadata.get("static", False)) for f in fields]
    entries = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list | tuple) else ()
    return [(f"[{name!r}]", value, is_static) for name, value in entries]


def _require_equal(saved: dict[str, str], given: dict[str, str]) -> None:
    for path in saved | given:
        if saved.get(path) != given.get(path):
            is_of = [making.get(path, "not there") for making in (saved, given)]
            raise ValueError(f"`like{path}` is {is_of[1]}, but {is_of[0]} was saved")
