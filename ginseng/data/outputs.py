"""The one place that writes annotated data: tables, and AnnData beside matrices that are copied as they are stored."""

import functools
import importlib.util
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData

from ginseng.data.elements import member_names, read_element
from ginseng.data.inputs import Identity, require_as_opened
from ginseng.data.readers import is_encoded_anndata, is_zarr, read_adata, read_annotation
from ginseng.utils.bounds import read_json, require_own_files
from ginseng.utils.counts import layer_names
from ginseng.utils.digest import digest, require_digest
from ginseng.utils.files import naming, replacing, require_writable_path, require_writable_place
from ginseng.utils.hdf5 import changed_hdf5, new_hdf5, opened_hdf5
from ginseng.utils.labels import beside
from ginseng.utils.messages import in_short, shorten, warn
from ginseng.utils.tables import write_table

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".parquet")
SUFFIXES = (".h5ad", ".zarr", *TABLES)
_MARK, _MARK_LINE = "ginseng_shard", "# ginseng shard "
_LINE = 2**20  # characters of a mark at most
_PLAIN = re.compile(r"[^\W_][\w .-]*")  # names that any kind of file can have


def require_output(path: Path) -> None:
    """Refuse an output that could not be written, before the work is done rather than after.

    Raises
    ------
    ValueError
        If its kind is another, what writes it is not installed, or its place cannot be written to.

    Examples
    --------
    >>> require_output(Path("cells.txt"))
    Traceback (most recent call last):
        ...
    ValueError: cells.txt must end in .h5ad, .zarr, .csv, .tsv, .parquet.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in {', '.join(SUFFIXES)}.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("Writing .parquet needs pyarrow: pip install 'ginseng-eqx[parquet]'.")
    if path.suffix != ".zarr":
        require_writable_path(path)
    elif path.exists() and not is_zarr(path):
        kind = "folder" if path.is_dir() else "file"
        raise ValueError(f"{path} is a {kind}, but no zarr store; name another output.")
    else:
        require_writable_place(path)


def write_annotated(
    annotated: AnnData | pd.DataFrame,
    path: Path,
    source: str | Path | None = None,
    mark: dict[str, Any] | None = None,
    *,
    identity: Identity | None = None,
) -> None:
    r"""Write annotated data beside `path` and rename it, so that a failure leaves what was there as it was.

    Parameters
    ----------
    annotated : AnnData or pandas.DataFrame
        A table for .csv, .tsv and .parquet; else AnnData, in memory or with matrices on disk.
    path : Path
        The output; its suffix is one of `SUFFIXES`.
    source : str or Path, optional
        File or folder of which `annotated` is, where no more than obs, obsm and uns have changed. Of the same kind as
        the output it is copied, and its matrices are not read.
    mark : dict, optional
        What to tell of a shard, see `read_mark`.
    identity : tuple, optional
        What `source` was when it was opened, see `identity_of`: another is not copied.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.csv"
    >>> write_annotated(pd.DataFrame({"type": ["B"]}, index=["cell1"]), path)
    >>> path.read_text()
    'cell,type\ncell1,B\n'
    """
    if isinstance(annotated, pd.DataFrame):
        _write_table(annotated, path, mark)
        return
    how = ad.settings.override(allow_write_nullable_strings=True, remove_unused_categories=False)
    with how, naming(path, "cannot be written"):
        if annotated.isbacked:
            annotated = annotated.to_memory()
        try:
            _write_anndata(annotated, path, source, mark, identity)
        except Exception as error:
            if isinstance(error, MemoryError | OSError):
                raise
            if not (left_out := _leave_out_unwritable(annotated, path.suffix)):
                raise
            warn(f"{path}: left out what anndata reads and does not write: {shorten(left_out)}.")
            _write_anndata(annotated, path, source, mark, identity)


def _write_anndata(
    annotated: AnnData, path: Path, source: str | Path | None, mark: dict[str, Any] | None, identity: Identity | None
) -> None:
    if source is not None and _is_copied(source, path):
        copy = _write_beside_copy if path.suffix == ".h5ad" else _write_into_copied_store
        copy(annotated, path, source, identity)
    elif path.suffix == ".h5ad":
        write_adata(annotated, path, mark)
    else:
        with replacing(path) as fresh, _writing_zarr():
            root: Any = zarr.open_group(fresh, mode="w", zarr_format=ad.settings.zarr_write_format)
            ad.io.write_elem(root, "/", annotated)  # pyright: ignore[reportArgumentType]
            _set_mark(root, mark)
            zarr.consolidate_metadata(fresh)


def _leave_out_unwritable(adata: AnnData, suffix: str) -> list[str]:
    """Take out of ``uns``, and of the columns, what cannot be written in a format; gives its names."""
    left_out: list[str] = []

    def writable(values: Mapping[str, Any], place: str, scratch: Any) -> dict[str, Any]:
        kept = {}
        for name, value in values.items():
            try:
                ad.io.write_elem(scratch, "x", value)
                kept[name] = value
            except Exception as error:
                if isinstance(error, MemoryError | OSError):
                    raise
                if isinstance(value, Mapping):
                    kept[name] = writable(value, f"{place}/{name}", scratch)
                else:
                    left_out.append(f"{place}/{name}")
        return kept

    with h5py.File(io.BytesIO(), "w") as file, _writing_zarr():
        root = zarr.open_group({}, mode="w", zarr_format=ad.settings.zarr_write_format) if suffix == ".zarr" else file
        adata.uns = writable(adata.uns, "uns", root)
        for part in ("obs", "var"):
            table = getattr(adata, part)
            kept = writable({name: table[[name]] for name in table}, part, root)
            setattr(adata, part, table[list(kept)])
    return left_out


def _is_copied(source: str | Path, path: Path) -> bool:
    """Whether an output begins as a copy of its source, being of the same kind."""
    is_alike = is_zarr(source) if path.suffix == ".zarr" else Path(source).is_file()
    return is_alike and is_encoded_anndata(source)


def require_keys(adata: AnnData, path: Path, source: str | Path | None = None) -> None:
    """Refuse names that an output of this kind cannot have, before the work is done rather than after.

    Parameters
    ----------
    adata : AnnData
        What is to be written.
    path, source : str or Path
        See `write_annotated`.

    Raises
    ------
    ValueError
        If there is such a name, as of a column "G1/S" in a zarr store.

    Examples
    --------
    >>> adata = AnnData(np.eye(2), obs=pd.DataFrame({"G1/S": [0, 1]}, index=["a", "b"]))
    >>> require_keys(adata, Path("cells.zarr"))
    Traceback (most recent call last):
        ...
    ValueError: cells.zarr cannot hold 'G1/S' of obs: anndata writes no such name to .zarr. Rename it, or write a \
table (.csv).
    """
    if path.suffix in TABLES:
        return
    names = [(part, name) for part in ("obs", "obsm") for name in getattr(adata, part)]
    names += [("uns", name) for name in _keys_in(adata.uns)]
    if source is None or not _is_copied(source, path):
        names += [(part, name) for part in ("var", "varm", "obsp", "varp") for name in getattr(adata, part)]
        names += [("layers", name) for name in layer_names(adata)]
        names += [] if adata.raw is None else [("raw.var", name) for name in adata.raw.var]
    for part, name in names:
        require_key(path, path.suffix, part, str(name))


def require_key(path: Path, kind: str, part: str, name: str) -> None:
    """Refuse one name, of a part such as "obs", which an output of this kind cannot have: see `require_keys`.

    Examples
    --------
    >>> require_key(Path("cells.zarr"), ".zarr", "obs", "cell type")
    """
    if name.startswith("/") or (_PLAIN.fullmatch(name) is None and not _is_written(name, kind)):
        raise ValueError(
            f"{path} cannot hold '{in_short(name)}' of {part}: anndata writes no such name to {kind}. Rename it, or "
            "write a table (.csv)."
        )


def _keys_in(mapping: Any) -> Iterator[Any]:
    for name, value in mapping.items():
        yield name
        if isinstance(value, Mapping):
            yield from _keys_in(value)


@functools.cache
def _is_written(name: str, kind: str) -> bool:
    """Whether the anndata that is installed writes a name, as newer ones do fewer: it is tried in memory."""
    with warnings.catch_warnings(action="ignore"), ExitStack() as files:
        root: Any = files.enter_context(h5py.File(io.BytesIO(), "w")) if kind == ".h5ad" else zarr.group()
        try:
            ad.io.write_elem(root.create_group("uns"), name, np.zeros(1))
        except (ValueError, TypeError, KeyError):
            return False
    return True


def write_adata(adata: AnnData, path: str | Path, mark: dict[str, Any] | None = None) -> None:
    """Write an .h5ad file beside `path` and rename it, so that a failure leaves an existing file as it was.

    Parameters
    ----------
    adata : AnnData
        In memory.
    path : str or Path
        Output file.
    mark : dict, optional
        What to tell of a shard, see `read_mark`.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    >>> write_adata(AnnData(np.eye(2)), path)
    >>> read_adata(path, backed=False).shape
    (2, 2)
    """
    # Files with nullable strings are read without a word; to write them again, anndata wants to be asked.
    with new_hdf5(path) as file, ad.settings.override(allow_write_nullable_strings=True):
        ad.io.write_elem(file, "/", adata)  # pyright: ignore[reportArgumentType]
        if adata.raw is None:  # it is written as a null, by which anndata cannot open the file backed
            file.pop("raw", None)
        _set_mark(file, mark)


def _write_table(table: pd.DataFrame, path: Path, mark: dict[str, Any] | None) -> None:
    table = table.set_axis(table.index.astype(object), axis=0)  # whatever type of text the names are, one in the file
    with replacing(path) as fresh:
        if path.suffix == ".parquet":
            table.attrs |= {} if mark is None else {_MARK: mark}
            table.to_parquet(fresh)
            return
        cells = beside("cell", table.columns)  # a type may be called so
        how: dict[str, Any] = {"index_label": cells, "sep": SEPARATORS[path.suffix]}
        with fresh.open("w", encoding="utf-8", newline="") as file:
            if mark is None:
                write_table(table, file, **how)
            else:
                text, header = io.StringIO(newline=""), io.StringIO(newline="")
                write_table(table, text, **how)
                write_table(table.iloc[:0], header, **how)
                text = text.getvalue()
                told = {**mark, "n_header": len(header.getvalue().encode())}
                told["digest"] = _digest_of_text(told, text.encode())
                file.write(f"{_MARK_LINE}{json.dumps(told)}\n{text}")


def _digest_of_text(mark: dict[str, Any], text: bytes) -> str:
    """Of a shard that is a text, which may be cut short after any line."""
    told = json.dumps({name: value for name, value in mark.items() if name != "digest"})
    return digest(np.frombuffer(told.encode(), np.uint8), np.frombuffer(text, np.uint8))


def _write_beside_copy(adata: AnnData, path: Path, source: str | Path, identity: Identity | None) -> None:
    """Copy an .h5ad file, and put the annotation into the copy."""
    with replacing(path) as fresh:
        shutil.copyfile(source, fresh)
        _require_as_opened(source, identity, path)
        with changed_hdf5(fresh) as file:
            _write_annotation(file, adata)


def _require_as_opened(source: str | Path, identity: Identity | None, path: Path) -> None:
    if identity is not None:
        require_as_opened(source, identity, f"{path} is not written")


def _write_into_copied_store(adata: AnnData, path: Path, source: str | Path, identity: Identity | None) -> None:
    """Copy an AnnData .zarr store, and write its annotation anew."""
    with replacing(path) as fresh, _writing_zarr():
        root = Path(source)
        for folder, inner, files in os.walk(root, onerror=_raised, followlinks=True):
            if Path(folder) == root:
                inner[:] = [name for name in inner if name != "obs"]
            copied = fresh / Path(folder).relative_to(root)
            copied.mkdir()
            for name in files:
                shutil.copyfile(Path(folder, name), copied / name)
        _require_as_opened(source, identity, path)
        _write_annotation(zarr.open_group(fresh, mode="r+", use_consolidated=False), adata)
        zarr.consolidate_metadata(fresh)


def _raised(error: OSError) -> None:
    raise error


def _write_annotation(root: Any, adata: AnnData) -> None:
    """Write what annotating changes, and take away what anndata could not read for what it is."""
    ad.io.write_elem(root, "obs", adata.obs)
    for name in ("obsm", "uns"):
        _write_members(root, name, dict(getattr(adata, name)))
    if set(root["var"].attrs.get("column-order", ())) != set(adata.var.columns):
        ad.io.write_elem(root, "var", adata.var)
    if adata.raw is None and "raw" in root and not _is_kept(root, "raw", adata.shape[:1]):
        del root["raw"]
    n_cells, n_genes = adata.shape
    shapes = {"layers": adata.shape, "varm": (n_genes,), "obsp": (n_cells, n_cells), "varp": (n_genes, n_genes)}
    for name, shape in shapes.items():
        for key in set(member_names(root[name]) if name in root else ()) - set(getattr(adata, name)):
            if not _is_kept(root[name], key, shape):
                del root[name][key]


def _write_members(root: Any, name: str, members: dict[str, Any]) -> None:
    """Write a dictionary in place of that in a copy, of which may stay what its reader left out."""
    before = member_names(root.get(name))
    kept = {key for key in set(before) - set(members) if _is_kept(root[name], key)}
    if not kept:
        ad.io.write_elem(root, name, members)
        return
    for key in set(before) - kept:
        del root[name][key]
    for key, value in members.items():
        ad.io.write_elem(root[name], key, value)


def _is_kept(group: Any, name: str, shape: tuple[int, ...] | None = None) -> bool:
    """Whether what was left out of a copy stays in it: its bytes are damaged, or packed by what is not installed.

    Not what has an unknown encoding or another shape, by which anndata could not read the copy anywhere. What can be
    read was left out as unsound if it has the `shape`, and without one was taken out by whoever annotated.
    """
    try:
        found: Any = read_element(group[name])
    except (MemoryError, OSError):
        return True
    except Exception:
        return False
    return shape is not None and getattr(found, "shape", ())[: len(shape)] == shape


@contextmanager
def _writing_zarr() -> Iterator[None]:
    """Write chunks of zeros, too, so that one that has no file has gone (see `ginseng.data.presence`).

    Without zarr's warning that others than zarr-python may not know of what it keeps beside the metadata.
    """
    with warnings.catch_warnings(), zarr.config.set({"array.write_empty_chunks": True}):
        warnings.filterwarnings("ignore", "Consolidated metadata")
        yield


def _set_mark(root: Any, mark: dict[str, Any] | None) -> None:
    if mark is not None:
        root.attrs[_MARK] = json.dumps(mark)


def read_mark(path: Path) -> dict[str, Any]:
    """What an output tells of the shard that it is; it stands where readers of the annotation do not see it.

    Raises
    ------
    ValueError
        If it is no shard.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.csv"
    >>> write_annotated(pd.DataFrame({"type": ["B"]}, index=["cell1"]), path, mark={"number": 2})
    >>> read_mark(path)
    {'number': 2, 'n_header': 10, 'digest': '...'}
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    mark: Any = None
    with naming(path):
        if path.suffix in SEPARATORS:
            with path.open(encoding="utf-8") as file:
                line = file.readline(_LINE)
            mark = line.removeprefix(_MARK_LINE) if line.startswith(_MARK_LINE) else None
        elif path.suffix == ".parquet":
            told = pd.read_parquet(path, columns=[]).attrs.get(_MARK)
            mark = None if told is None else json.dumps(told)
        elif path.suffix == ".zarr":
            require_own_files(path)
            mark = zarr.open_group(path, mode="r", use_consolidated=False).attrs.get(_MARK)
        elif path.suffix == ".h5ad":
            with opened_hdf5(path) as file:
                mark = file.attrs.get(_MARK)
        if mark is None:
            raise ValueError(f"{path} is no shard: it was not written by `ginseng annotate --shard`.")
        found = read_json(mark)
        if not isinstance(found, dict):
            raise ValueError("what it tells of a shard is no record")
    return found


def read_told(path: Path) -> pd.DataFrame:
    """What an output tells of each cell.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cells.csv"
    >>> write_annotated(pd.DataFrame({"type": ["B"]}, index=["cell1"]), path)
    >>> list(read_told(path))
    ['type']
    """
    with naming(path):
        if path.suffix in SEPARATORS:
            how: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # a type may be called NA
            return pd.read_csv(path, sep=SEPARATORS[path.suffix], index_col=0, **how)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
    return read_annotation(path).obs  # pyright: ignore[reportReturnType]


def write_joined(shards: list[Path], path: Path) -> None:
    r"""Write what the shards hold, one after the other, as it would have been written at once.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in "ab":
    ...     write_annotated(pd.DataFrame({"type": ["B"]}, index=[name]), folder / f"{name}.csv", mark={})
    >>> write_joined([folder / "a.csv", folder / "b.csv"], folder / "all.csv")
    >>> (folder / "all.csv").read_text()
    'cell,type\na,B\nb,B\n'
    """
    if path.suffix in SEPARATORS:
        _join_texts(shards, path)
    elif path.suffix == ".parquet":
        tables = {shard: _table_in(shard) for shard in shards}
        filled = {shard: table for shard, table in tables.items() if len(table)} or dict(list(tables.items())[:1])
        types = {shard: table.reset_index().dtypes.astype(str).to_dict() for shard, table in filled.items()}
        first, *others = filled
        for other in others:
            if types[other] != types[first]:
                raise ValueError(f"{other} and {first} have other columns, or such of other types.")
        joined = pd.concat(list(filled.values())) if others else filled[first]
        joined.attrs = {name: value for name, value in tables[shards[0]].attrs.items() if name != _MARK}
        write_annotated(joined, path)
    else:
        parts = [read_adata(shard, backed=False) for shard in shards]
        filled = [part for part in parts if part.n_obs] or parts[:1]
        with naming(shorten(map(str, shards)), "cannot be put together"):
            joined = _joined(filled) if len(filled) > 1 else filled[0]
        write_annotated(joined, path)


def _table_in(shard: Path) -> pd.DataFrame:
    with naming(shard):
        return pd.read_parquet(shard)


def _joined(parts: list[AnnData]) -> AnnData:
    joined = ad.concat(parts, join="outer", merge="first", uns_merge="first")
    if joined.raw is not None:  # of which anndata leaves out what is said of genes
        raw: Any = parts[0].raw
        joined.raw = AnnData(joined.raw.X, var=raw.var, varm=dict(raw.varm))
    return joined


def _join_texts(shards: list[Path], path: Path) -> None:
    header = b""
    with replacing(path) as fresh, fresh.open("wb") as output:
        for number, shard in enumerate(shards):
            with naming(shard, "is no whole shard"):
                mark = read_mark(shard)
                text = shard.read_bytes().partition(b"\n")[2]
                require_digest(mark["digest"], _digest_of_text(mark, text), "its cells")
                found = text[: mark["n_header"]]
                header = found if number == 0 else header
                if found != header:
                    raise ValueError(f"{shard} has other columns than {shards[0]}.")
                output.write(text if number == 0 else text[len(header) :])
