"""10x Genomics matrices: Matrix Market folders and HDF5 files of every Cell Ranger version."""

import csv
import logging
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ginseng.utils.bounds import is_inside, opened_text, read_table
from ginseng.utils.files import local_path, naming
from ginseng.utils.genes import kinds_of_others, left_out
from ginseng.utils.hdf5 import opened_hdf5
from ginseng.utils.messages import shorten, unknown_name, warn
from ginseng.utils.soundness import require_indices, require_sound
from ginseng.utils.values import require_flags, texts

_MTX = (b"%%matrixmarket", b"matrix", b"coordinate")
_LINE = 2**16  # bytes of a line before the entries, at most
_log = logging.getLogger("ginseng")


def read_10x_mtx(
    path: str | Path, var_names: str = "gene_symbols", make_unique: bool = True, *, gex_only: bool = True
) -> AnnData:
    """Read a 10x Genomics Matrix Market folder.

    Parameters
    ----------
    path : str or Path
        Folder with ``matrix.mtx``, ``barcodes.tsv`` and ``genes.tsv`` or ``features.tsv``, each plain or gzipped.
    var_names : {"gene_symbols", "gene_ids"}
        Which of the two becomes the index of ``var``; the other becomes a column.
    make_unique : bool
        Append numbers to repeated names.
    gex_only : bool
        Leave out features that are not genes (antibodies, guides, ...), with a message.

    Returns
    -------
    AnnData
        Counts as CSR, cells x genes.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its three files does not exist.
    ValueError
        If the files do not fit together.

    Examples
    --------
    >>> adata = read_10x_mtx("filtered_feature_bc_matrix")  # doctest: +SKIP
    """
    require_flags(make_unique=make_unique, gex_only=gex_only)
    path = local_path(path)
    matrix_file = _find(path, "matrix.mtx")
    barcodes = _read_tsv(_find(path, "barcodes.tsv"))
    features = _read_tsv(_find(path, "features.tsv", "genes.tsv"))
    var = pd.DataFrame({"gene_ids": features[0], "gene_symbols": features[1 if features.shape[1] > 1 else 0]})
    if features.shape[1] > 2:
        var["feature_types"] = features[2]
    counts = _read_mtx(matrix_file, (len(barcodes), len(var)))
    return _assemble(counts, barcodes[0], var, var_names, make_unique, gex_only)


def read_10x_h5(
    path: str | Path,
    genome: str | None = None,
    var_names: str = "gene_symbols",
    make_unique: bool = True,
    *,
    gex_only: bool = True,
) -> AnnData:
    """Read a 10x Genomics HDF5 file, of Cell Ranger 3 and later or of the older layout with a group per genome.

    Parameters
    ----------
    path : str or Path
        The ``.h5`` file.
    genome : str, optional
        Genome to extract. If None: all genes of a file of the newer layout, the first genome of an older one.
    var_names : {"gene_symbols", "gene_ids"}
        Which of the two becomes the index of ``var``; the other becomes a column.
    make_unique : bool
        Append numbers to repeated names.
    gex_only : bool
        Leave out features that are not genes (antibodies, guides, ...), with a message.

    Returns
    -------
    AnnData
        Counts as CSR, cells x genes.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is not a 10x file or has no such genome.

    Examples
    --------
    >>> adata = read_10x_h5("filtered_feature_bc_matrix.h5")  # doctest: +SKIP
    """
    require_flags(make_unique=make_unique, gex_only=gex_only)
    path = local_path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    with naming(path), opened_hdf5(path) as opened:
        file: Any = opened
        if "matrix" in file and "features" in file["matrix"]:
            return _read_features_layout(file["matrix"], path, genome, var_names, make_unique, gex_only)
        genomes = [name for name, group in file.items() if isinstance(group, h5py.Group) and "gene_names" in group]
        if not genomes:
            raise ValueError(
                f"{path} is an HDF5 file, but not one of 10x Genomics; it has: {shorten(file) or 'nothing'}."
            )
        if genome is not None and genome not in genomes:
            raise unknown_name("genome", genome, str(path), genomes)
        if genome is None and len(genomes) > 1:
            warn(f"{path} has the genomes {shorten(genomes)}; reading {genomes[0]}.")
        group = file[genome or genomes[0]]
        var = pd.DataFrame({"gene_ids": _text(group["genes"]), "gene_symbols": _text(group["gene_names"])})
        return _assemble(_read_csc(group), _text(group["barcodes"]), var, var_names, make_unique, gex_only)


def is_10x_h5(file: h5py.File) -> bool:
    """Whether an open HDF5 file is in one of the two layouts of 10x Genomics."""
    groups = [group for group in file.values() if isinstance(group, h5py.Group)]
    return isinstance(file.get("matrix"), h5py.Group) or any("gene_names" in group for group in groups)


def _read_features_layout(
    group: Any, path: Path, genome: str | None, var_names: str, make_unique: bool, gex_only: bool
) -> AnnData:
    features = group["features"]
    var = pd.DataFrame({"gene_ids": _text(features["id"]), "gene_symbols": _text(features["name"])})
    for column, name in (("feature_types", "feature_type"), ("genome", "genome")):
        if name in features:
            var[column] = _text(features[name])
    adata = _assemble(_read_csc(group), _text(group["barcodes"]), var, var_names, make_unique, gex_only)
    if genome is None:
        return adata
    genomes = sorted(set(adata.var["genome"])) if "genome" in adata.var else []
    if genome not in genomes:
        raise unknown_name("genome", genome, str(path), genomes)
    return adata[:, adata.var["genome"] == genome].copy()


def _read_csc(group: Any) -> sparse.csr_matrix:
    """Read features x cells in CSC, which is cells x features in CSR."""
    n_features, n_cells = group["shape"][()]
    arrays = tuple(group[name][()] for name in ("data", "indices", "indptr"))
    if not all(array.dtype.kind in kinds for array, kinds in zip(arrays, ("biuf", "iu", "iu"), strict=True)):
        raise ValueError(f"its data, indices and indptr are {', '.join(str(array.dtype) for array in arrays)}")
    counts = sparse.csr_matrix(arrays, shape=(n_cells, n_features))
    require_sound(counts)
    return counts


def _assemble(
    counts: sparse.csr_matrix, barcodes: Any, var: pd.DataFrame, var_names: str, make_unique: bool, gex_only: bool
) -> AnnData:
    if var_names not in ("gene_symbols", "gene_ids"):
        raise ValueError(f"`var_names` must be 'gene_symbols' or 'gene_ids', but got '{var_names}'.")
    var = var.set_index(var_names)
    var.index = pd.Index(texts(var.index, "gene"))
    adata = AnnData(counts, obs=pd.DataFrame(index=pd.Index(np.asarray(barcodes), dtype=object).astype(str)), var=var)
    others = kinds_of_others(var)
    if gex_only and (others == "").any() and (told := left_out(others)):  # without a gene, who reads the counts says so
        warn(f"{told} read_10x_mtx and read_10x_h5 keep them with gex_only=False.")
        adata = adata[:, others == ""].copy()
    if make_unique:
        adata.var_names_make_unique()
    return adata


def _find(folder: Path, *names: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    for name in names:
        for candidate in (folder / f"{name}.gz", folder / name):
            if candidate.is_symlink() and not candidate.exists():
                raise FileNotFoundError(f"{candidate} is a link to {candidate.readlink()}, where there is nothing.")
            if candidate.exists():
                if not is_inside(candidate, folder):  # as workflow systems stage files: who named it meant that
                    _log.info("%s is read, to which %s is a link.", candidate.resolve(), candidate)
                return candidate
    inside = sorted(str(found.parent) for found in folder.glob(f"*/{names[0]}*"))
    hint = f" Did you mean {shorten(inside, 3)}?" if inside else ""
    present = shorten(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    raise FileNotFoundError(
        f"{folder} has no {' or '.join(names)}, plain or .gz, as a 10x folder has.{hint} It has: {present}."
    )


def _read_tsv(path: Path) -> pd.DataFrame:
    with naming(path):
        return read_table(path, "\t", csv.QUOTE_NONE)


def _read_mtx(path: Path, named: tuple[int, int]) -> sparse.csr_matrix:
    """Read features x cells in Matrix Market's coordinates as cells x features, of which the tables name so many.

    SciPy's reader ends the interpreter on what is packed and damaged.
    """
    with naming(path), opened_text(path) as file:
        kind = file.readline(_LINE).lower().split()
        if kind not in ([*_MTX, b"integer", b"general"], [*_MTX, b"real", b"general"]):
            raise ValueError(f"it does not begin as a matrix of 10x does, but with {kind[:5]}")
        lines = iter(lambda: file.readline(_LINE), b"")
        sizes = next((line for line in lines if line.strip() and not line.startswith(b"%")), b"")
        n_features, n_cells, n_entries = map(int, sizes.split())
        if (n_cells, n_features) != named:
            raise ValueError(
                f"{path} holds {(n_cells, n_features)} cells and features, but the tables beside it name {named}."
            )
        values = np.int64 if kind[3] == b"integer" else np.float64
        dtypes: Any = {0: np.int32, 1: np.int32, 2: values}
        try:
            how: Any = {"sep": r"\s+", "header": None, "dtype": dtypes, "float_precision": "round_trip"}
            entries = pd.read_csv(cast(Any, file), **how)
        except pd.errors.EmptyDataError:
            entries = pd.DataFrame({column: np.empty(0, dtype) for column, dtype in dtypes.items()})
        if entries.shape != (n_entries, 3):
            n_lines, n_columns = entries.shape
            raise ValueError(f"it has {n_lines:,} lines of {n_columns} numbers, where {n_entries:,} of 3 are told")
        features, cells = (entries[column].to_numpy() - 1 for column in (0, 1))
        require_indices(features, n_features)
        require_indices(cells, n_cells)
        return sparse.csr_matrix((entries[2].to_numpy(), (cells, features)), shape=named)


def _text(dataset: Any) -> np.ndarray:
    values = dataset.asstr()[()] if dataset.dtype.kind == "O" else dataset[()]
    return np.array([value.decode() if isinstance(value, bytes) else value for value in values], dtype=object)
