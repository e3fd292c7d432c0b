"""Model files, in the HDF5 layout of ginseng 0.2.1. Nothing else knows it."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ginseng.data.readers import kind_of
from ginseng.model.annotator import Annotator
from ginseng.model.background import Background
from ginseng.model.calibration import as_tree, from_tree
from ginseng.model.state import WEIGHTS, GinsengClassifierState, of_its_weights, sealed
from ginseng.utils.bounds import read_json
from ginseng.utils.devices import require_not_forked
from ginseng.utils.digest import require_digest
from ginseng.utils.files import local_path, naming
from ginseng.utils.hdf5 import contents_digest, new_hdf5, opened_hdf5
from ginseng.utils.messages import in_short, shorten, warn

MODEL_FORMAT = "1"
_ARRAYS = ("genes", "label_keys", "label_values")
_ATTRIBUTES = ("n_genes", "n_classes", "hidden_dim", "normalize", "target_sum", "dropout_rate", "training")
_DOCUMENTED = ("params", *_ARRAYS)
_FURTHER, _BACKGROUND, _SECOND, _CALIBRATION = "members", "background", "names/second", "calibration"
_OURS = (_FURTHER, _BACKGROUND, _SECOND)  # which, and the calibration, ginseng 0.2.1 ignores
_OF_METADATA = "metadata_digest"
_VERSIONED_PACKAGES = ("ginseng-eqx", "jax", "equinox", "optax", "anndata", "numpy")


def save_model(state: GinsengClassifierState, path: str | Path) -> None:
    """Save a model to one HDF5 file, in the layout of ginseng 0.2.1.

    What that layout does not have goes into groups which ginseng 0.2.1 ignores: package versions, time, settings and
    history of the training into ``metadata``, weights of further networks into ``members``, means over training cells
    into ``background``, what the answers are worth into ``calibration``, and other names of the genes into ``names``.
    The file is written beside `path` and renamed, so that a failure leaves an existing file as it was.

    Parameters
    ----------
    state : GinsengClassifierState
        Complete model state.
    path : str or Path
        Output file; ``.h5`` is appended if it is not there.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from ginseng.model.instance import GinsengClassifier
    >>> model = GinsengClassifier(n_genes=2, n_classes=2, hidden_dim=4)
    >>> state = GinsengClassifierState(
    ...     model.params, ["CD3D", "MS4A1"], ["T", "B"], [0, 1], n_genes=2, n_classes=2, hidden_dim=4,
    ...     normalize=True, target_sum=1e4, dropout_rate=0.2,
    ... )
    >>> path = Path(tempfile.mkdtemp()) / "model.h5"
    >>> save_model(state, path)
    >>> load_model(path).genes.tolist()
    ['CD3D', 'MS4A1']
    """
    path, state = local_path(path), of_its_weights(state)
    if path.suffix != ".h5":
        path = path.with_name(f"{path.name}.h5")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file for the model.")
    with new_hdf5(path) as file:
        for name in ("genes", "label_keys"):
            file.create_dataset(name, data=_as_bytes(getattr(state, name)), compression="gzip")
        file.create_dataset("label_values", data=np.asarray(state.label_values, np.int64), compression="gzip")
        for name in _ATTRIBUTES:
            file.attrs[name] = getattr(state, name)
        _save_pytree(file.create_group("params"), state.params)
        for number, params in enumerate(state.members, start=1):
            _save_pytree(file.create_group(f"{_FURTHER}/{number}"), params)
        if state.background is not None:
            _save_pytree(file.create_group(_BACKGROUND), state.background._asdict())
        if state.calibration is not None:
            _save_pytree(file.create_group(_CALIBRATION), as_tree(state.calibration))
            file[_CALIBRATION].attrs["digest"] = contents_digest(file, [_CALIBRATION])  # of its own: others skip it
        if state.second_names is not None:
            file.create_dataset(_SECOND, data=_as_bytes(state.second_names), compression="gzip")
        metadata = file.create_group("metadata")
        metadata.attrs["format"] = MODEL_FORMAT
        metadata.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        versions = {package: version(package) for package in _VERSIONED_PACKAGES}
        for name, value in {**state.metadata, "versions": versions}.items():
            if name not in ("created", WEIGHTS):
                metadata.create_dataset(name, data=json.dumps(value, default=_as_json))
        metadata.attrs["digest"] = _digest_of(file)
        metadata.attrs[_OF_METADATA] = contents_digest(file, ["metadata"])


def _as_bytes(names: Any) -> np.ndarray:
    """Names of fixed width, as the layout has them."""
    return np.array([name.encode() for name in names], dtype=bytes)


def _as_json(value: Any) -> Any:
    """Stand-in for a value that JSON does not have: NumPy's scalars and arrays, and whatever else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def load_model(path: str | Path) -> GinsengClassifierState:
    """Load a model that was saved here or by ginseng 0.2.1.

    Parameters
    ----------
    path : str or Path
        The HDF5 file.

    Returns
    -------
    GinsengClassifierState
        Ready for inference or more training.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    IsADirectoryError
        If it is a folder, as a dataset is.
    ValueError
        If the file is not a ginseng model, is damaged, or contradicts itself.

    Examples
    --------
    See `save_model`.
    """
    path = local_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a model file is expected; were model and data swapped?")
    if not path.is_file():
        with_suffix = path.with_name(f"{path.name}.h5")
        hint = f" Did you mean {with_suffix}?" if with_suffix.is_file() else ""
        raise FileNotFoundError(f"There is no model file {path}.{hint}")
    with naming(path, "is no whole ginseng model"), opened_hdf5(path) as opened:
        file: Any = opened
        _require_model(file, path)
        arrays: dict[str, Any] = {name: file[name][()] for name in _ARRAYS}
        attributes: dict[str, Any] = {name: file.attrs[name].item() for name in _ATTRIBUTES}
        for name in ("normalize", "training"):
            if attributes[name] not in (0, 1):
                raise ValueError(f"`{name}` is {attributes[name]!r}")
            attributes[name] = bool(attributes[name])
        params = _load_pytree(file["params"])
        further = _load_pytree(file[_FURTHER]) if _FURTHER in file else {}
        members = [further[number] for number in sorted(further, key=int)]
        background = Background(**_load_pytree(file[_BACKGROUND])) if _BACKGROUND in file else None
        calibration = from_tree(_load_pytree(file[_CALIBRATION])) if _CALIBRATION in file else None
        metadata = _load_metadata(file) if "metadata" in file else {}
        arrays |= {"second_names": file[_SECOND][()]} if _SECOND in file else {}
        state = GinsengClassifierState(
            params=params,
            **arrays,
            **attributes,
            members=members,
            background=background,
            calibration=calibration,
            metadata=metadata,
        )
        for layer, leaves in [entry for tree in (params, *members) for entry in tree.items()]:
            if any(leaf.dtype.kind not in "fiu" for leaf in leaves.values()):
                raise ValueError(f"it holds weights of layer '{layer}' that are no real numbers")
            if not all(np.isfinite(leaf).all() for leaf in leaves.values()):
                raise ValueError(f"it holds weights of layer '{layer}' that are not finite")
        kept = file["metadata"].attrs.get("digest") if "metadata" in file else None
        require_digest(kept, _digest_of(file), "weights, names or settings")
        if _CALIBRATION in file:
            kept = file[_CALIBRATION].attrs.get("digest")
            require_digest(kept, contents_digest(file, [_CALIBRATION]), "its calibration")
    return sealed(state)


def annotator_of(given: GinsengClassifierState | Annotator | str | Path) -> Annotator:
    """What annotates: as it is, of a state, or of a model file.

    Raises
    ------
    ValueError
        If it is something else.

    Examples
    --------
    >>> annotator_of("model.h5").labels  # doctest: +SKIP
    ['B', 'T']
    """
    require_not_forked()
    if isinstance(given, Annotator):
        return given
    if not isinstance(given, GinsengClassifierState | str | Path):
        raise ValueError(
            f"`model_state` must be a state, an Annotator or a path, but got a {type(given).__name__}: a module is "
            "named by Annotator(module, genes, labels)."
        )
    if str(given).endswith(".eqx"):
        raise ValueError(f"{given} is of save_annotator: pass what load_annotator({str(given)!r}, like=...) returns.")
    return Annotator.of(given if isinstance(given, GinsengClassifierState) else load_model(given))


def is_model(path: str | Path) -> bool:
    """Whether a file is a model, to be opened by `load_model`.

    Examples
    --------
    >>> is_model("no such file")
    False
    """
    path = local_path(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with naming(path), opened_hdf5(path) as file:
        return kind_of(file) == "model"


def _digest_of(file: h5py.File) -> str:
    ours = [name for name in _OURS if name in file]
    return contents_digest(file, [*_DOCUMENTED, *ours], _ATTRIBUTES)


def _save_pytree(group: h5py.Group, pytree: dict[str, Any]) -> None:
    """Save a tree of dictionaries of arrays as HDF5 groups of gzipped datasets."""
    for name, value in pytree.items():
        if isinstance(value, dict):
            _save_pytree(group.create_group(name), value)
        else:
            group.create_dataset(name, data=np.asarray(value), compression="gzip")


def _load_pytree(group: h5py.Group) -> dict[str, Any]:
    """Load a tree of dictionaries of arrays from an HDF5 group."""
    return {name: _load_pytree(value) if isinstance(value, h5py.Group) else value[()] for name, value in group.items()}


def _require_model(file: h5py.File, path: Path) -> None:
    kind = kind_of(file)
    if kind in ("AnnData", "10x"):
        raise ValueError(f"{path} is a file of counts ({kind}), where a model is expected; were the two swapped?")
    lacking = [name for name in _DOCUMENTED if name not in file]
    lacking += [f"attribute {name}" for name in _ATTRIBUTES if name not in file.attrs]
    if lacking:
        raise ValueError(f"{path} is an HDF5 file, but not a ginseng model: it lacks {shorten(lacking)}.")


def _load_metadata(file: Any) -> dict[str, Any]:
    group = file["metadata"]
    try:
        require_digest(group.attrs.get(_OF_METADATA), contents_digest(file, ["metadata"]), "they")
    except (ValueError, AttributeError, TypeError) as error:
        warn(f"The metadata of the model cannot be read and are left out: {in_short(error)}.")
        return {}
    loaded = {}
    for name, dataset in group.items():
        try:
            loaded[name] = read_json(dataset.asstr()[()])
        except (ValueError, AttributeError, TypeError) as error:
            warn(f"The metadata of the model cannot be read as to '{name}', which is left out: {in_short(error)}.")
    return {**loaded, "created": group.attrs.get("created")}
