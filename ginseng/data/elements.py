"""AnnData as it is stored, element by element: what cannot be read, and need not be, is left out and told."""

import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData

from ginseng.data.typed import folder_of
from ginseng.utils.files import Unreadable
from ginseng.utils.hdf5 import ends_the_interpreter
from ginseng.utils.messages import in_short, shorten, warn
from ginseng.utils.soundness import require_sound

EVERYTHING = ("X", "var", "raw", "layers", "obsm", "varm", "obsp", "varp", "uns")
_ON_DISK = ("layers", "obsp", "varp")  # unless all is read
_OF_ZARR = ("zarr.json", ".zarray", ".zgroup")
_SPEC = re.compile(r"encoding_type='(.*?)', encoding_version='(.*?)'")
_TABLES = ("0.1.0", "0.2.0")  # encodings of tables whose columns are read one by one
_N_TOLD, _CHARACTERS_TOLD = 8, 160


def read_element(item: Any) -> Any:
    """An element as anndata reads it.

    Raises
    ------
    Unreadable
        If its encoding, or that of a part, is none that the installed anndata knows.

    Examples
    --------
    >>> read_element(zarr.group().create_array("labels", data=np.arange(3)))
    array([0, 1, 2])
    """
    if isinstance(item, h5py.Group | h5py.Dataset) and ends_the_interpreter(item):
        raise Unreadable("it has texts in 32 dimensions, on which HDF5 ends the interpreter")
    try:
        return ad.io.read_elem(item)
    except Exception as error:
        if type(error).__name__ != "IORegistryError":  # which anndata does not export
            raise
        found = _SPEC.search(str(error))
        encoding = "'{}' {}".format(*found.groups()) if found else in_short(error)
        raise Unreadable(
            f"its {str(item.name).strip('/')} was written by a newer anndata: it has the encoding {encoding}, which "
            f"anndata {version('anndata')} does not know; upgrade anndata"
        ) from error


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error is no fault of what is read: memory is short, or the system cannot read.

    Examples
    --------
    >>> is_of_the_machine(OSError(5, "Input/output error")), is_of_the_machine(OSError("bad checksum"))
    (True, False)
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def on_disk(matrix: Any) -> Any:
    """Matrix that is read when it is sliced; of a group a sparse one, and None of what AnnData writes for None."""
    if hasattr(matrix, "keys"):
        return ad.io.sparse_dataset(matrix)
    return None if matrix is None or matrix.attrs.get("encoding-type") == "null" else matrix


def member_names(group: Any) -> list[str]:
    """Names of the members of a group, of which zarr tells none where it cannot open one; none of what is no group.

    Examples
    --------
    >>> group = zarr.group()
    >>> _ = group.create_array("labels", data=np.arange(3))
    >>> member_names(group), member_names(group["labels"])
    (['labels'], [])
    """
    if not hasattr(group, "keys"):
        return []
    folder = folder_of(group) if isinstance(group, zarr.Group) else None
    if folder is None:
        return sorted(group)
    return sorted(entry.name for entry in folder.iterdir() if any((entry / name).is_file() for name in _OF_ZARR))


def assembled(
    root: Any, path: str | Path, parts: tuple[str, ...] = EVERYTHING, *, in_memory: bool, file: Any = None
) -> AnnData:
    """AnnData of what is stored, less what cannot be read, of which a warning tells.

    Parameters
    ----------
    root : h5py.File or zarr.Group
        What is open.
    path : str or Path
        What it is called.
    parts : tuple of str
        What is wanted beside ``obs``.
    in_memory : bool
        Read matrices, rather than leave them where they are.
    file : h5py.File, optional
        Where ``X`` stays, of backed AnnData.

    Raises
    ------
    Exception
        Whatever anndata raises if X, or the names of cells or genes, cannot be read.
    MemoryError, OSError
        If the machine, and not what is stored, is why something cannot be read.

    Examples
    --------
    >>> root = zarr.group()
    >>> ad.io.write_elem(root, "/", AnnData(np.eye(3)))
    >>> assembled(root, "cells.zarr", in_memory=True).shape
    (3, 3)
    """
    elements = _Elements(root, _read_matrix if in_memory else on_disk)
    tables: dict[str, Any] = {name: elements.table(name) for name in ("obs", "var") if name in (*parts, "obs")}
    how: dict[str, Any] = {"X": elements.matrix(root["X"])} if "X" in parts and "X" in root and file is None else {}
    how |= {} if file is None else {"filename": file}
    if "raw" in parts and (raw := elements.raw(len(tables["obs"]), without_x=file is not None)) is not None:
        how["raw"] = raw
    adata = AnnData(**how, **tables)
    for name in parts:
        if name in EVERYTHING[3:]:
            read = elements.matrix if in_memory or name in _ON_DISK else _read_matrix
            elements.put(adata, name, read_element if name == "uns" else read)
    if not hasattr(root["obs"], "keys"):
        _name_categories(adata)
    if elements.left_out:
        told = [f"{place} ({in_short(error, _CHARACTERS_TOLD)})" for place, error in elements.left_out.items()]
        warn(f"{path}: left out what cannot be read: {shorten(told, _N_TOLD)}.")
    return adata


class _Elements:
    """Elements of an open file or store, and why some of them are left out."""

    def __init__(self, root: Any, matrix: Callable[[Any], Any]):
        self._root, self.matrix = root, matrix
        self.left_out: dict[str, Exception] = {}

    def _leave_out(self, place: str, error: Exception) -> None:
        if is_of_the_machine(error):
            raise error
        self.left_out[place] = error

    def table(self, place: str) -> pd.DataFrame:
        """A table; column by column, if it cannot be read at once."""
        item = self._root[place]
        if not hasattr(item, "keys"):
            return _structured_table(item)
        try:
            found = read_element(item)
        except Exception as error:
            is_by_columns = item.attrs.get("encoding-type") == "dataframe" and item.attrs["encoding-version"] in _TABLES
            if is_of_the_machine(error) or not is_by_columns:
                raise
            found = self._by_columns(item, place)
        if isinstance(found, pd.DataFrame):
            return found
        axis = re.split(r"[./]", place)[-1]
        return getattr(AnnData(**{axis: found}), axis)  # a dictionary, as of old

    def _by_columns(self, group: Any, place: str) -> pd.DataFrame:
        index_name = group.attrs["_index"]
        index = pd.Index(read_element(group[index_name]))
        index.name = None if index_name == "_index" else index_name
        columns = {}
        for name in group.attrs["column-order"]:
            try:
                values = _read_column(group, name)
                if len(values) != len(index):
                    raise ValueError(f"it has {len(values):,} values, where there are {len(index):,} names")
                columns[name] = values
            except Exception as error:
                self._leave_out(f"{place}/{name}", error)
        return pd.DataFrame(columns, index=index)

    def raw(self, n_cells: int, *, without_x: bool) -> dict[str, Any] | None:
        """What was kept as ``raw``, under today's names or the flat ones of old."""
        flat = "raw.X" in self._root
        if not flat and not hasattr(self._root.get("raw"), "keys"):
            return None
        place = "raw." if flat else "raw/"
        try:
            raw: dict[str, Any] = {"var": self.table(f"{place}var")}
            if not without_x:
                raw["X"] = self.matrix(self._root[f"{place}X"])
                if raw["X"].shape != (n_cells, len(raw["var"])):
                    raise ValueError(f"its shape is {raw['X'].shape}, not {(n_cells, len(raw['var']))}")
        except Exception as error:
            self._leave_out("raw", error)
            return None
        if f"{place}varm" in self._root:
            raw["varm"] = dict(self._read(self._root[f"{place}varm"], _read_matrix))
        return raw

    def put(self, adata: AnnData, name: str, read: Callable[[Any], Any]) -> None:
        """Put what is stored under a name into `adata`, as far as it fits."""
        if name not in self._root:
            return
        stored, target = self._root[name], getattr(adata, name)
        if not hasattr(stored, "keys"):  # as of old
            fields = read_element(stored)
            members = [(key, fields[key]) for key in fields.dtype.names or ()]
        else:
            members = self._read(stored, read, is_nested=name == "uns")
        for key, value in members:
            try:
                target[key] = value
            except Exception as error:  # of another shape
                self._leave_out(f"{name}/{key}", error)

    def _read(self, group: Any, read: Callable[[Any], Any], *, is_nested: bool = False) -> Iterator[tuple[str, Any]]:
        """Members of a group; of nested groups only what cannot be read is left out."""
        for name in member_names(group):
            try:
                yield name, read(group[name])
            except Exception as error:
                is_inside = is_nested and not isinstance(error, RecursionError) and not is_of_the_machine(error)
                inner = _plain_group(group, name) if is_inside else None
                if inner is None:
                    self._leave_out(f"{group.name.strip('/')}/{name}", error)
                else:
                    yield name, dict(self._read(inner, read, is_nested=True))


def _plain_group(group: Any, name: str) -> Any:
    """A group that is a dictionary, or None."""
    try:
        inner = group[name]
        is_plain = hasattr(inner, "keys") and inner.attrs.get("encoding-type", "dict") == "dict"
        return inner if is_plain and "h5sparse_format" not in inner.attrs else None
    except Exception as error:
        if is_of_the_machine(error):
            raise
        return None


def _read_matrix(item: Any) -> Any:
    """A matrix that is sound; of a sparse one anndata reads the arrays as they are, and only slicing trusts them."""
    if hasattr(item, "keys") and "indptr" in item:
        require_sound(on_disk(item))  # its lengths and row ends, before the rest is read
    matrix = read_element(item)
    require_sound(matrix)
    return matrix


def _read_column(table: Any, name: str) -> Any:
    """A column of a table, whose categories, of old, are elsewhere."""
    item = table[name]
    values = read_element(item)
    if "categories" not in item.attrs:
        return values
    categories = table[item.attrs["categories"]]
    is_ordered = bool(categories.attrs.get("ordered", False))
    return pd.Categorical.from_codes(values, read_element(categories), ordered=is_ordered)


def _structured_table(item: Any) -> pd.DataFrame:
    """A table as anndata wrote it before version 0.7: an array of records, of which the first field is the index."""
    table = pd.DataFrame(read_element(item))
    table = table.map(lambda value: value.decode() if isinstance(value, bytes) else value)
    return table.set_index(table.columns[0])


def _name_categories(adata: AnnData) -> None:
    """Put categories that were kept in ``uns`` before version 0.7 in place of their codes."""
    for key in [key for key in adata.uns if key.endswith("_categories")]:
        name, categories = key.removesuffix("_categories"), np.atleast_1d(adata.uns[key])
        for axis in ("obs", "var"):
            table = getattr(adata, axis)
            if name in table and table[name].dtype.kind in "iu" and (table[name] < len(categories)).all():
                table[name] = pd.Categorical.from_codes(table[name], categories)
                adata.uns.pop(key, None)
