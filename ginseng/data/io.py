"""Reading counts from files and URLs; model files."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pooch
import zarr
from anndata import AnnData

from ginseng.data.tenx import is_10x_h5, read_10x_h5, read_10x_mtx
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.files import is_url, is_zarr_url, replacing
from ginseng.utils.messages import shorten

__all__ = ["load_model", "read_10x_h5", "read_10x_mtx", "read_adata", "save_model", "write_adata"]

MODEL_FORMAT = "1"
_ATTRIBUTES = ("n_genes", "n_classes", "hidden_dim", "normalize", "target_sum", "dropout_rate", "training")
_VERSIONED_PACKAGES = ("ginseng-eqx", "jax", "equinox", "optax", "anndata", "numpy")


def read_adata(path: str | Path, backed: bool = True) -> AnnData:
    """Read counts from any supported file.

    Parameters
    ----------
    path : str or Path
        An .h5ad file, a 10x .h5 file, a 10x Matrix Market folder, an AnnData .zarr folder, or an http(s) URL of one of
        the files. A download is kept in the user's cache folder; an incomplete one never is.
    backed : bool
        Leave the counts of an .h5ad file on disk, open for reading.

    Returns
    -------
    AnnData
        The counts.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If the file is of another kind or damaged.

    Examples
    --------
    >>> adata = read_adata("pbmc3k.h5ad", backed=False)  # doctest: +SKIP
    """
    if str(path).startswith(("http://", "https://")):
        path = _download(str(path))
    path = Path(path)
    if not path.exists():
        beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no {path}. Beside it: {shorten(beside) or 'nothing'}.")
    if path.is_dir():
        return _read_zarr(path) if _is_zarr(path) else read_10x_mtx(path)
    try:
        with h5py.File(path) as file:
            kind = _kind_of(file)
            found = shorten(file)
    except OSError as error:
        raise ValueError(
            f"{path} is not an HDF5 file, or it is truncated ({error}). Supported: .h5ad, 10x .h5, a 10x folder, .zarr."
        ) from error
    if kind == "AnnData":
        return ad.read_h5ad(path, backed="r" if backed else None)
    if kind == "10x":
        return read_10x_h5(path)
    if kind == "model":
        raise ValueError(f"{path} is a ginseng model, where a file of counts is expected; were the two swapped?")
    raise ValueError(f"{path} is neither an AnnData nor a 10x file; it has: {found or 'nothing'}.")


@contextmanager
def opened_counts(path: str | Path) -> Iterator[AnnData]:
    """Open counts like `read_adata`, but leave layers, raw and those of .zarr stores on disk, too; URLs of these open.

    Examples
    --------
    >>> with opened_counts("cells.zarr") as adata:  # doctest: +SKIP
    ...     print(adata.X)
    CSRDataset: backend zarr, shape (2700, 13714), data_dtype uint16
    """
    if is_zarr_url(path) or (not is_url(path) and _is_zarr(Path(path))):
        yield _left_on_disk(path, zarr.open_group(path, mode="r"))
    elif Path(path).is_file() and h5py.is_hdf5(path):
        with h5py.File(path) as file:
            is_anndata = _kind_of(file) == "AnnData" and "encoding-type" in file.attrs
            yield _left_on_disk(path, file) if is_anndata else read_adata(path)
    else:
        yield read_adata(path)


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _read_zarr(path: Path) -> AnnData:
    try:
        return ad.read_zarr(path)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is a zarr store, but not one of AnnData; as a dataset, train on it.") from error


def _left_on_disk(path: str | Path, root: Any) -> AnnData:
    """AnnData over what is stored: its annotation read, its matrices left where they are."""
    try:
        layers, raw = root.get("layers", {}), root.get("raw")
        return AnnData(
            _on_disk(root.get("X")),
            obs=ad.io.read_elem(root["obs"]),  # pyright: ignore[reportArgumentType]
            var=ad.io.read_elem(root["var"]),  # pyright: ignore[reportArgumentType]
            layers={name: _on_disk(layers[name]) for name in layers},
            raw={"X": _on_disk(raw["X"]), "var": ad.io.read_elem(raw["var"])} if hasattr(raw, "keys") else None,
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not hold counts in AnnData's layout ({error}).") from error


def _on_disk(matrix: Any) -> Any:
    """Matrix that is read when it is sliced; of a group a sparse one, and None of what AnnData writes for None."""
    if hasattr(matrix, "keys"):
        return ad.io.sparse_dataset(matrix)
    return matrix if matrix is not None and matrix.ndim == 2 else None


def write_adata(adata: AnnData, path: str | Path) -> None:
    """Write an .h5ad file beside `path` and rename it, so that a failure leaves an existing file as it was.

    Parameters
    ----------
    adata : AnnData
        In memory.
    path : str or Path
        Output file.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    >>> write_adata(AnnData(np.eye(2)), path)
    >>> read_adata(path, backed=False).shape
    (2, 2)
    """
    # Files with nullable strings are read without a word; to write them again, anndata wants to be asked.
    with replacing(path) as fresh, ad.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(fresh)


def save_model(state: GinsengClassifierState, path: str | Path) -> None:
    """Save a model to one HDF5 file, in the layout of ginseng 0.2.1.

    What that layout does not have (package versions, time, settings and history of the training) goes into a group
    ``metadata``, which ginseng 0.2.1 ignores. The file is written beside `path` and renamed, so that a failure leaves
    an existing file as it was.

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
    path = Path(path)
    if path.suffix != ".h5":
        path = path.with_name(f"{path.name}.h5")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file for the model.")
    with replacing(path) as fresh, h5py.File(fresh, "w") as file:
        for name in ("genes", "label_keys"):
            file.create_dataset(name, data=np.char.encode(getattr(state, name), "utf-8"), compression="gzip")
        file.create_dataset("label_values", data=np.asarray(state.label_values, np.int64), compression="gzip")
        for name in _ATTRIBUTES:
            file.attrs[name] = getattr(state, name)
        _save_pytree(file.create_group("params"), state.params)
        metadata = file.create_group("metadata")
        metadata.attrs["format"] = MODEL_FORMAT
        metadata.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        versions = {package: version(package) for package in _VERSIONED_PACKAGES}
        for name, value in {**state.metadata, "versions": versions}.items():
            if name != "created":
                metadata.create_dataset(name, data=json.dumps(value, default=_as_json))


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
    ValueError
        If the file is not a ginseng model, is damaged, or contradicts itself.

    Examples
    --------
    See `save_model`.
    """
    path = Path(path)
    if not path.is_file():
        with_suffix = path.with_name(f"{path.name}.h5")
        hint = f" Did you mean {with_suffix}?" if with_suffix.is_file() else ""
        raise FileNotFoundError(f"There is no model file {path}.{hint}")
    try:
        with h5py.File(path) as opened:
            file: Any = opened
            _require_model(file, path)
            arrays: dict[str, Any] = {name: file[name][()] for name in ("genes", "label_keys", "label_values")}
            attributes: dict[str, Any] = {name: file.attrs[name].item() for name in _ATTRIBUTES}
            params = _load_pytree(file["params"])
            metadata = _load_metadata(file["metadata"]) if "metadata" in file else {}
        for name in ("genes", "label_keys"):
            arrays[name] = np.char.decode(arrays[name].astype(bytes), "utf-8")
        state = GinsengClassifierState(params=params, **arrays, **attributes, metadata=metadata)
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or it is truncated ({error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is no whole ginseng model: {error}") from error
    for layer, leaves in params.items():
        if not all(np.isfinite(leaf).all() for leaf in leaves.values()):
            raise ValueError(f"{path} holds weights of layer '{layer}' that are not finite.")
    return state


def is_model(path: str | Path) -> bool:
    """Whether a file is a model, to be opened by `load_model`.

    Examples
    --------
    >>> is_model("no such file")
    False
    """
    path = Path(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return _kind_of(file) == "model"


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


def _kind_of(file: h5py.File) -> str | None:
    if "params" in file and "genes" in file:
        return "model"
    if "obs" in file and "var" in file:
        return "AnnData"
    return "10x" if is_10x_h5(file) else None


def _require_model(file: h5py.File, path: Path) -> None:
    kind = _kind_of(file)
    if kind in ("AnnData", "10x"):
        raise ValueError(f"{path} is a file of counts ({kind}), where a model is expected; were the two swapped?")
    lacking = [name for name in ("params", "genes", "label_keys", "label_values") if name not in file]
    lacking += [f"attribute {name}" for name in _ATTRIBUTES if name not in file.attrs]
    if lacking:
        raise ValueError(f"{path} is an HDF5 file, but not a ginseng model: it lacks {shorten(lacking)}.")


def _load_metadata(group: Any) -> dict[str, Any]:
    try:
        loaded = {name: json.loads(dataset.asstr()[()]) for name, dataset in group.items()}
    except (ValueError, AttributeError, TypeError) as error:
        warnings.warn(f"The metadata of the model cannot be read and are left out: {error}.", stacklevel=3)
        return {}
    return {**loaded, "created": group.attrs.get("created")}


def _download(url: str) -> Path:
    """Fetch a file into the cache, unless it is there; a broken transfer raises and leaves nothing behind."""
    cache = pooch.os_cache("ginseng")
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, known_hash=None, path=cache, progressbar=True))
    except OSError as error:
        raise ValueError(f"{url} could not be downloaded ({error}); nothing was kept.") from error
