"""Counts from files and URLs: .h5ad, 10x folders and files, .zarr."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd
import zarr
from anndata import AnnData

from ginseng.data.downloads import downloaded
from ginseng.data.elements import EVERYTHING, assembled, is_of_the_machine, member_names, read_element
from ginseng.data.presence import require_files
from ginseng.data.tenx import is_10x_h5, read_10x_h5, read_10x_mtx
from ginseng.data.typed import folder_of
from ginseng.utils.bounds import require_own_files
from ginseng.utils.counts import layer_names, x_of
from ginseng.utils.files import is_url, is_zarr_url, local_path, naming
from ginseng.utils.genes import kinds_of_others
from ginseng.utils.hdf5 import ends_the_interpreter, opened_hdf5
from ginseng.utils.messages import shorten, warn
from ginseng.utils.soundness import require_sound
from ginseng.utils.values import require_flags

_COUNTS = ("X", "var", "raw", "layers")
_ALIGNED = ("obsm", "varm", "obsp", "varp")
_GENE_EXPRESSION = ("rna", "gex", "gene expression")  # what MuData calls it


def read_adata(path: str | Path, backed: bool = True) -> AnnData:
    """Read counts from any supported file.

    Parameters
    ----------
    path : str or Path
        An .h5ad file, a 10x .h5 file, a 10x Matrix Market folder, an AnnData .zarr folder, or an http(s) URL of one of
        the files. A download is kept in the user's cache folder; an incomplete one never is. Of MuData (.h5mu, .zarr)
        the modality of gene expression is read, with a warning that names it.
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
    require_flags(backed=backed)
    if str(path).startswith(("http://", "https://")):
        path = downloaded(str(path))
    path = local_path(path)
    if not path.exists():
        beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no {path}. Beside it: {shorten(beside) or 'nothing'}.")
    with naming(path):
        if path.is_dir():
            return assembled(_open_zarr(path), path, in_memory=True) if is_zarr(path) else read_10x_mtx(path)
        with opened_hdf5(path) as file:
            kind = kind_of(file)
            found = shorten(file)
            if kind == "MuData":
                return assembled(_anndata_in(path, file), path, in_memory=True)
            if kind == "AnnData":
                return _whole_h5ad(path, file, backed)
        if kind == "10x":
            return read_10x_h5(path)
    if kind == "loom":
        raise ValueError(
            f"{path} is a loom file: convert it, e.g. anndata.io.read_loom({path.name!r}).write_h5ad('counts.h5ad')."
        )
    if kind == "h5Seurat":
        raise ValueError(f"{path} is an h5Seurat file: convert it in R, e.g. SeuratDisk::Convert(file, dest = 'h5ad').")
    if kind == "model":
        raise ValueError(f"{path} is a ginseng model, where a file of counts is expected; were the two swapped?")
    raise ValueError(f"{path} is neither an AnnData nor a 10x file; it has: {found or 'nothing'}.")


@contextmanager
def opened_counts(path: str | Path, annotation: bool = False) -> Iterator[AnnData]:
    """Open counts like `read_adata`, but leave layers, raw and those of .zarr stores on disk, too; URLs of these open.

    Parameters
    ----------
    path : str or Path
        As for `read_adata`.
    annotation : bool
        Have what else is annotated, too, and not only obs and var; pairs of cells or genes stay on disk.

    Examples
    --------
    >>> with opened_counts("cells.zarr") as adata:  # doctest: +SKIP
    ...     print(adata.X)
    CSRDataset: backend zarr, shape (2700, 13714), data_dtype uint16
    """
    path = path if is_url(path) else local_path(path)
    parts = EVERYTHING if annotation else _COUNTS
    if is_zarr_url(path) or (not is_url(path) and is_zarr(path)):
        root = _open_zarr(path)
        with naming(path):
            is_encoded = _is_encoded(root)  # of others, uns has names of categories
            adata = assembled(root, path, parts if is_encoded else EVERYTHING, in_memory=not is_encoded)
        yield adata
        return
    if _is_hdf5(path):
        with opened_hdf5(path) as file:
            with naming(path):
                is_encoded = kind_of(file) in ("AnnData", "MuData") and _is_encoded(file)
                adata = assembled(_anndata_in(path, file), path, parts, in_memory=False) if is_encoded else None
            if adata is not None:
                yield adata
                return
    adata = read_adata(path)
    try:
        yield adata
    finally:
        if adata.isbacked:
            adata.file.close()


def read_annotation(path: str | Path) -> AnnData:
    """Read ``obs``, ``obsm`` and ``uns`` of an .h5ad file or a .zarr store, and no counts.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is of another kind or damaged.

    Examples
    --------
    >>> read_annotation("annotated.h5ad").obs["ginseng_cell_type"]  # doctest: +SKIP
    """
    path = local_path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    with naming(path):
        if path.is_dir():
            return assembled(_open_zarr(path), path, ("obsm", "uns"), in_memory=True)
        with opened_hdf5(path) as file:
            if kind_of(file) != "AnnData":
                raise ValueError("it holds no annotated cells")
            return assembled(file, path, ("obsm", "uns"), in_memory=True)


def is_encoded_anndata(path: str | Path) -> bool:
    """Whether it is an .h5ad file or a .zarr store that tells the encodings of its members, as older ones do not.

    Examples
    --------
    >>> is_encoded_anndata("no such file")
    False
    """
    if is_zarr(path):
        root = zarr.open_group(local_path(path), mode="r", use_consolidated=False)
        return not _is_mudata(root) and _is_encoded(root)
    if not _is_hdf5(path):
        return False
    with opened_hdf5(path) as file:
        return kind_of(file) == "AnnData" and _is_encoded(file)


def _is_hdf5(path: str | Path) -> bool:
    return local_path(path).is_file() and h5py.is_hdf5(local_path(path))


def _is_encoded(root: Any) -> bool:
    """Whether AnnData tells the encodings of its members; some stores tell all but that of their root."""
    return "encoding-type" in (root if isinstance(root, h5py.File) else root["obs"]).attrs


def kind_of(file: h5py.File) -> str | None:
    """What an open HDF5 file is: "model", "AnnData", "MuData", "loom", "h5Seurat", "10x", or None.

    Examples
    --------
    >>> kind_of(h5py.File("empty.h5", "w", driver="core", backing_store=False))
    """
    if "params" in file and "genes" in file:
        return "model"
    if "row_attrs" in file and "col_attrs" in file:
        return "loom"
    if _is_mudata(file):
        return "MuData"
    if "assays" in file and "cell.names" in file:
        return "h5Seurat"
    if "obs" in file and "var" in file:
        return "AnnData"
    return "10x" if is_10x_h5(file) else None


def is_zarr(path: str | Path) -> bool:
    """Whether a folder is a zarr store.

    Examples
    --------
    >>> is_zarr("no such folder")
    False
    """
    return any((local_path(path) / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _open_zarr(path: str | Path) -> zarr.Group:
    """The root of an AnnData .zarr store, of which no file has gone and none is elsewhere."""
    with naming(path):
        if not is_url(path):
            require_own_files(path)
        root = zarr.open_group(path, mode="r", use_consolidated=None if is_url(path) else False)  # as it is on disk
        root = _anndata_in(path, root)
        if "obs" not in root or "var" not in root:
            raise ValueError(_of_another_kind(path, root))
        if folder_of(root) is not None:
            require_files(root, path)
    return root


def _of_another_kind(path: str | Path, root: zarr.Group) -> str:
    """What a zarr store is that is none of AnnData."""
    tables = [f"{name}/{table}" for name in ("tables", "table") if name in root for table in member_names(root[name])]
    if tables:
        return f"{path} is SpatialData: pass its table, {Path(path) / tables[0]}; it has: {shorten(tables)}."
    if "row_attrs" in root and "col_attrs" in root:
        return f"{path} is a loom store: convert it to .h5ad."
    return f"{path} is a zarr store, but not one of AnnData; as a dataset, train on it."


def _is_mudata(root: Any) -> bool:
    return root.attrs.get("encoding-type") == "MuData" or ("mod" in root and "X" not in root)


def _anndata_in(path: str | Path, root: Any) -> Any:
    """The root itself, or of MuData the modality of gene expression, which is told.

    It is the one called so, or the one whose features are genes, or the only one.
    """
    if not _is_mudata(root):
        return root
    modalities = member_names(root.get("mod"))
    candidates = [name for name in modalities if name.lower() in _GENE_EXPRESSION]
    candidates = candidates or [name for name in modalities if _holds_genes(root["mod"][name])]
    candidates = candidates or (modalities if len(modalities) == 1 else [])
    if len(candidates) != 1:
        raise ValueError(
            f"{path} is MuData, and which of its modalities holds the counts of genes is not known: "
            f"{shorten(modalities) or 'none'}. Write that one as .h5ad: mudata.read(...)[name].write_h5ad('x.h5ad')."
        )
    warn(f"{path} is MuData with the modalities {shorten(modalities)}: mod/{candidates[0]} is read.")
    return root["mod"][candidates[0]]


def _holds_genes(modality: Any) -> bool:
    if "var" not in modality or "feature_types" not in modality["var"]:
        return False
    kinds = pd.Series(read_element(modality["var/feature_types"]), dtype=object).dropna()
    told = pd.DataFrame({"feature_types": [*kinds, "gene"]})  # beside a gene, whatever is called otherwise is none
    return len(kinds) > 0 and bool((kinds_of_others(told) == "").all())


def _whole_h5ad(path: str | Path, file: h5py.File, backed: bool) -> AnnData:
    """As anndata reads it, unless something in it cannot be read, or is unsound."""
    backed = backed and "X" in file  # anndata 0.7 leaves out an X of None, and what is backed by it cannot be written
    if not ends_the_interpreter(file):
        adata = None
        try:
            adata = ad.read_h5ad(path, backed="r" if backed else None)
            return _sound(adata)
        except Exception as error:  # of the file: what is left out, and why, is told below
            if adata is not None and adata.isbacked:
                adata.file.close()
            if is_of_the_machine(error):
                raise
    kept_open = h5py.File(path) if backed else None
    try:
        return assembled(file, path, in_memory=True, file=kept_open)
    except BaseException:
        if kept_open is not None:
            kept_open.close()
        raise


def _sound(adata: AnnData) -> AnnData:
    """The same, unless a sparse matrix contradicts itself, by which slicing would end the interpreter."""
    raw: Any = adata.raw
    raws = () if raw is None else (raw.X, *raw.varm.values())
    further = (matrix for name in _ALIGNED for matrix in getattr(adata, name).values())
    for matrix in (*(adata.layers[name] for name in layer_names(adata)), *raws, *further, x_of(adata)):
        require_sound(matrix)
    return adata
