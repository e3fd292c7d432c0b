"""Files as writers that cannot be run here lay them out, by h5py: SeuratDisk, BPCells, anndata-rs, Muon.jl and others.

python emulate.py OUT
"""

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
from cells import GENES, TYPES, cells
from scipy import sparse

COUNTS, LABELS, DONORS, NAMES = cells()
OUT = Path(sys.argv[1])
UTF8 = h5py.string_dtype("utf-8")
ASCII = h5py.string_dtype("ascii")


def fixed(values, padding=h5py.h5t.STR_NULLPAD):
    """A type of text of fixed length, as R's packages write it."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(max(len(str(value).encode()) for value in values) + 1)
    kind.set_strpad(padding)
    return kind


def texts(group, name, values, **attributes):
    """Text of fixed length, padded by NULL."""
    kind = fixed(values)
    space = h5py.h5s.create_simple((len(values),))
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space))
    dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([v.encode() for v in values], f"S{kind.get_size()}"), kind)
    dataset.attrs.update(attributes)
    return dataset


def encoded(node, kind, version="0.2.0", **attributes):
    node.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
    return node


def csr(parent, name, matrix, indices="i4", indptr="i4", legacy=False, by_columns=False):
    matrix = sparse.csc_matrix(matrix) if by_columns else sparse.csr_matrix(matrix)
    group = parent.create_group(name)
    group.create_dataset("data", data=matrix.data, compression="gzip", maxshape=(None,))
    group["indices"], group["indptr"] = matrix.indices.astype(indices), matrix.indptr.astype(indptr)
    shape = np.array(matrix.shape, "i8")
    if legacy:
        group.attrs.update({"h5sparse_format": matrix.format, "h5sparse_shape": shape})
    else:
        encoded(group, f"{matrix.format}_matrix", "0.1.0", shape=shape)
    return group


def table(parent, name, index, version="0.2.0", **columns):
    """A data frame as anndata 0.8 and newer write it; categories are (codes, names)."""
    group = encoded(parent.create_group(name), "dataframe", version, _index="_index")
    group.attrs["column-order"] = np.array(list(columns), dtype=object) if columns else np.array([], "f8")
    encoded(group.create_dataset("_index", data=list(index), dtype=UTF8), "string-array")
    for column, values in columns.items():
        if isinstance(values, tuple):
            of = encoded(group.create_group(column), "categorical", ordered=False)
            encoded(of.create_dataset("codes", data=values[0]), "array")
            encoded(of.create_dataset("categories", data=values[1], dtype=UTF8), "string-array")
        elif np.asarray(values).dtype.kind in "US":
            encoded(group.create_dataset(column, data=list(values), dtype=UTF8), "string-array")
        else:
            encoded(group.create_dataset(column, data=values), "array")
    return group


def coded(values):
    names, codes = np.unique(values, return_inverse=True)
    return codes.astype("i1"), list(names)


def whole(file, x=True):
    """The least of a sound file of today, for what is changed of it."""
    encoded(file, "anndata", "0.1.0")
    if x:
        csr(file, "X", COUNTS.astype("f4"))
    table(file, "obs", NAMES, cell_type=coded(LABELS), donor=coded(DONORS))
    table(file, "var", GENES)
    for name in ("obsm", "obsp", "varm", "varp", "layers", "uns"):
        encoded(file.create_group(name), "dict", "0.1.0")
    return file


def seuratdisk(file, scaled=False):
    """`SeuratDisk::Convert(dest = "h5ad")`: categories by references in `__categories`, no var in raw but its index."""
    normal = np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e4)
    if scaled:
        file.create_dataset("X", data=(normal - normal.mean(axis=0)) / (normal.std(axis=0) + 1e-9))
    else:
        csr(file, "X", normal)
    raw = file.create_group("raw")
    csr(raw, "X", COUNTS.astype("f8"))
    for parent in (file, raw):
        var = encoded(parent.create_group("var"), "dataframe", "0.1.0", _index="_index")
        var.create_dataset("_index", data=GENES, dtype=UTF8)
        var.create_dataset("features", data=GENES, dtype=UTF8)
        var.attrs.create("column-order", ["features"], dtype=UTF8)
    obs = encoded(file.create_group("obs"), "dataframe", "0.1.0", _index="_index")
    obs.create_dataset("_index", data=list(NAMES), dtype=UTF8)
    categories = obs.create_group("__categories")
    for column, values in (("cell_type", LABELS), ("orig.ident", DONORS)):
        codes, names = coded(values)
        obs[column] = codes.astype("i4")
        stored = categories.create_dataset(column, data=names, dtype=UTF8)
        stored.attrs["ordered"] = False
        obs[column].attrs["categories"] = stored.ref
    obs["nCount_RNA"] = COUNTS.sum(axis=1).astype("f8")
    obs["nFeature_RNA"] = (COUNTS > 0).sum(axis=1).astype("i4")
    obs.attrs.create("column-order", ["orig.ident", "nCount_RNA", "nFeature_RNA", "cell_type"], dtype=UTF8)
    obsm = file.create_group("obsm")
    obsm["X_pca"], obsm["X_umap"] = np.zeros((60, 5)), np.zeros((60, 2))
    file.create_group("varm")["PCs"] = np.zeros((len(GENES), 5))
    layers = file.create_group("layers")
    csr(layers, "counts", COUNTS.astype("f8"))
    neighbors = file.create_group("uns").create_group("neighbors")
    csr(neighbors, "distances", np.eye(60))
    params = neighbors.create_group("params")
    params.create_dataset("method", data="SNN", dtype=UTF8)
    params.create_dataset("n_neighbors", data=np.array([20], "i4"))


def factors_as_numbers(file):
    """The same where labels are text and logicals are H5T enums of TRUE, FALSE and NA, as hdf5r writes them."""
    seuratdisk(file)
    obs = file["obs"]
    for name in ("cell_type", "orig.ident"):
        del obs[name], obs["__categories"][name]
    obs.create_dataset("cell_type", data=list(LABELS), dtype=UTF8)
    obs.create_dataset("orig.ident", data=list(DONORS), dtype=UTF8)
    logical = h5py.enum_dtype({"FALSE": 0, "TRUE": 1, "NA": 2}, basetype="u1")
    obs.create_dataset("is_doublet", data=np.arange(60) % 2, dtype=logical)
    obs.attrs.create("column-order", ["orig.ident", "cell_type", "is_doublet"], dtype=UTF8)


def records(file):
    """anndata 0.6: obs and var as records, sparse by `h5sparse_format`, categories in uns."""
    csr(file, "X", COUNTS.astype("f4"), legacy=True)
    codes, names = coded(LABELS)
    obs = [(n.encode(), c, d.encode()) for n, c, d in zip(NAMES, codes, DONORS, strict=True)]
    file["obs"] = np.array(obs, dtype=[("index", "S16"), ("cell_type", "i1"), ("donor", "S4")])
    file["var"] = np.array([(gene.encode(), 1.5) for gene in GENES], dtype=[("index", "S16"), ("mean", "f4")])
    file["obsm"] = np.array([((0.0, 1.0),)] * 60, dtype=[("X_umap", "f4", 2)])
    uns = file.create_group("uns")
    uns["cell_type_categories"] = np.array([name.encode() for name in names])
    uns["cell_type_colors"] = np.array([b"#1f77b4", b"#ff7f0e", b"#2ca02c"])
    file["raw.X"] = COUNTS.astype("f4")
    file["raw.var"] = file["var"][:]


def rhdf5(file):
    """anndataR and other writers by rhdf5: text of fixed length, attributes and scalars as arrays of one, NA.OK."""
    whole(file)
    for node in (file, file["X"], file["obs"], file["var"], file["uns"]):
        for name in ("encoding-type", "encoding-version"):
            value = str(node.attrs[name])
            del node.attrs[name]
            node.attrs.create(name, value, dtype=h5py.string_dtype("utf-8"))
    for name, values in (("obs", NAMES), ("var", GENES)):
        del file[name]["_index"]
        texts(file[name], "_index", list(values), **{"encoding-type": "string-array", "encoding-version": "0.2.0"})
    numbers = file["obs"].create_dataset("nFeature", data=(COUNTS > 0).sum(axis=1).astype("i4"))
    encoded(numbers, "array").attrs["rhdf5-NA.OK"] = np.array([1], "i4")
    logical = h5py.enum_dtype({"FALSE": 0, "TRUE": 1}, basetype="i1")
    encoded(file["obs"].create_dataset("logical", data=np.arange(60) % 2, dtype=logical), "array")
    file["obs"].attrs["column-order"] = np.array(["cell_type", "donor", "nFeature", "logical"], dtype=object)
    encoded(texts(file["uns"], "X_name", ["counts"]), "string-array")
    file["uns"].create_dataset("n", data=np.array([3], "i4")).attrs["rhdf5-NA.OK"] = np.array([1], "i4")


def bpcells(file):
    """`BPCells::write_matrix_anndata_hdf5`: unsigned indices, obs and var of names alone."""
    encoded(file, "anndata", "0.1.0")
    csr(file, "X", COUNTS.astype("u4"), indices="u4", indptr="u8")
    for name, values in (("obs", NAMES), ("var", GENES)):
        columns = {"cell_type": coded(LABELS)} if name == "obs" else {}
        group = table(file, name, values, **columns)
        group.move("_index", "bpcells_name")
        group.attrs["_index"] = "bpcells_name"


def rust(file):
    """anndata-rs (SnapATAC2): 64-bit unsigned indices, codes of 32 bits, a bool as an enum, empty mappings left out."""
    encoded(file, "anndata", "0.1.0")
    csr(file, "X", COUNTS.astype("u4"), indices="u8", indptr="u8")
    codes, names = coded(LABELS)
    table(file, "obs", NAMES, cell_type=(codes.astype("u4"), names), donor=DONORS)
    table(file, "var", GENES)
    uns = encoded(file.create_group("uns"), "dict", "0.1.0")
    uns["reference_sequences"] = np.arange(4)


def julia(file):
    """Muon.jl: no encoding of the root, an index of another name, nothing empty."""
    csr(file, "X", COUNTS.astype("i8"), by_columns=True, indices="i8", indptr="i8")
    table(file, "obs", NAMES, cell_type=LABELS)
    table(file, "var", GENES)
    for name in ("obs", "var"):
        file[name].move("_index", "rownames")
        file[name].attrs["_index"] = "rownames"


def netcdf(file):
    """Dimension scales, whose attributes are references to other members."""
    whole(file)
    del file["X"]
    x = encoded(file.create_dataset("X", data=COUNTS.astype("f4"), chunks=(20, 20), compression="gzip"), "array")
    scale = file["uns"].create_dataset("genes", data=np.arange(len(GENES)))
    scale.make_scale("gene")
    x.dims[1].attach_scale(scale)
    x.dims[1].label = "gene"


def hard_links(file):
    """A layer that is X itself, by a hard link."""
    whole(file)
    file["layers/counts"] = file["X"]


def nulls(file):
    """Null dataspaces, with and without encoding, of values and of attributes."""
    whole(file)
    encoded(file["uns"].create_dataset("none", data=h5py.Empty("f4")), "null", "0.1.0")
    encoded(file["uns"].create_dataset("text", data=h5py.Empty(UTF8)), "null", "0.1.0")
    encoded(
        encoded(file["uns"].create_group("log1p"), "dict", "0.1.0").create_dataset("base", data=h5py.Empty("f4")),
        "null",
        "0.1.0",
    )  # noqa: E501
    file["obs"].attrs["note"] = h5py.Empty("S10")
    file.attrs["note"] = h5py.Empty("f4")


def empty_tables(file):
    """A table without columns, whose column-order is an empty array of text, of numbers, or a null dataspace."""
    whole(file)
    for name, order in (("text", np.array([], dtype=ASCII)), ("numbers", np.array([]))):
        group = table(file["uns"], name, ["a", "b"])
        group.attrs["column-order"] = order


def no_uns(file):
    """obs, var and X alone, as hand-written exporters leave them, with encodings."""
    encoded(file, "anndata", "0.1.0")
    encoded(file.create_dataset("X", data=COUNTS.astype("f4")), "array")
    table(file, "obs", NAMES, cell_type=LABELS)
    table(file, "var", GENES)


def legacy(file):
    """anndata 0.7: only the tables have an encoding, categories by references in `__categories`."""
    csr(file, "X", COUNTS.astype("f4"))
    for name, index in (("obs", NAMES), ("var", GENES)):
        group = file.create_group(name)
        group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "index"})
        group.create_dataset("index", data=list(index), dtype=UTF8)
        group.attrs["column-order"] = np.array(["cell_type"] if name == "obs" else [], dtype=UTF8)
    codes, names = coded(LABELS)
    file["obs"].create_dataset("cell_type", data=codes)
    categories = file["obs"].create_group("__categories").create_dataset("cell_type", data=names, dtype=UTF8)
    categories.attrs["ordered"] = np.bool_(False)
    file["obs/cell_type"].attrs["categories"] = categories.ref


def compound(file):
    """uns with compounds of nested compounds, variable-length sequences, opaque values, times and references."""
    whole(file)
    uns = file["uns"]
    inner = np.dtype([("low", "f4"), ("high", "f4")])
    uns["nested"] = np.zeros(3, np.dtype([("range", inner), ("n", "i4")]))
    uns.create_dataset("texts", data=np.array([("a", 1)], np.dtype([("name", UTF8), ("n", "i4")])))
    uns["enum"] = np.array(1, h5py.enum_dtype({"no": 0, "yes": 1}, basetype="i1"))


def odd_uns(file):
    """uns with what anndata itself does not read: sequences of unequal length, references, opaque bytes."""
    whole(file)
    uns = file["uns"]
    ragged = uns.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype(np.int32))
    ragged[0], ragged[1] = [1, 2], [3]
    uns["opaque"] = np.void(b"\x00\x01\x02")
    uns["references"] = np.array([file["X"].ref], dtype=h5py.ref_dtype)


def newer_encoding(file):
    """An encoding of tomorrow in uns, which the installed anndata does not know."""
    whole(file)
    encoded(file["uns"].create_dataset("new", data=np.arange(3)), "hyperarray", "1.0.0")


def big_chunks(file):
    """Chunks larger than the data, extensible, filtered by shuffle, gzip and fletcher32."""
    whole(file)
    del file["X"]
    x = file.create_dataset(
        "X",
        data=COUNTS.astype("f4"),
        chunks=(512, 1024),
        maxshape=(None, None),
        compression=9,
        shuffle=True,
        fletcher32=True,
    )  # noqa: E501
    encoded(x, "array")


def unwritten(file):
    """A dense layer whose chunks were never written, which read as its fill value."""
    whole(file)
    encoded(file["layers"].create_dataset("later", COUNTS.shape, "f4", chunks=(10, 10), fillvalue=0), "array")


WRITERS = {
    "seuratdisk": (seuratdisk, ["--layer", "raw"], {}),
    "seuratdisk_scaled": (lambda file: seuratdisk(file, scaled=True), ["--layer", "raw"], {}),
    "seuratdisk_text": (factors_as_numbers, ["--layer", "counts"], {}),
    "records": (records, [], {}),
    "rhdf5": (rhdf5, [], {}),
    "bpcells": (bpcells, [], {}),
    "rust": (rust, [], {}),
    "julia": (julia, [], {}),
    "netcdf": (netcdf, [], {}),
    "hard_links": (hard_links, [], {}),
    "nulls": (nulls, [], {}),
    "empty_tables": (empty_tables, [], {}),
    "no_uns": (no_uns, [], {}),
    "legacy": (legacy, [], {}),
    "compound": (compound, [], {}),
    "odd_uns": (odd_uns, [], {}),
    "newer_encoding": (newer_encoding, [], {}),
    "big_chunks": (big_chunks, [], {}),
    "unwritten": (unwritten, [], {}),
    "latest": (whole, [], {"libver": "latest"}),
    "user_block": (whole, [], {"userblock_size": 512}),
    "ordered": (whole, [], {"track_order": True}),
    "paged": (whole, [], {"fs_strategy": "page", "fs_page_size": 4096}),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    assert len(TYPES) == 3
    with (OUT / "files.jsonl").open("w") as told:
        for name, (write, options, how) in WRITERS.items():
            with h5py.File(OUT / f"{name}.h5ad", "w", **how) as file:
                write(file)
            what = write.__doc__.splitlines()[0] if write.__doc__ else name
            told.write(json.dumps({"file": f"{name}.h5ad", "what": what, "options": options}) + "\n")


if __name__ == "__main__":
    main()
