"""Files as the anndata and scanpy of this environment write them; run by `python -m benchmarks.zoo write`.

python write_anndata.py OUT FORMAT...  where a format is h5ad, zarr2 or zarr3; Python 3.8 and anndata 0.6 or newer.
"""

import json
import os
import shutil
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
from cells import GENES, cells, ensembl
from scipy import sparse

warnings.filterwarnings("ignore")
COUNTS, TYPES, DONORS, NAMES = cells()
OUT = sys.argv[1]
VERSION = tuple(int(part) for part in ad.__version__.split(".")[:2] if part.isdigit())
LAYER = ("--layer", "counts")


def obs(**columns):
    table = pd.DataFrame({"cell_type": pd.Categorical(TYPES), "donor": DONORS}, index=NAMES)
    for name, column in columns.items():
        table[name] = column
    return table


def plain(x=None, **further):
    var = pd.DataFrame({"n_cells": (COUNTS > 0).sum(axis=0)}, index=list(GENES))
    x = sparse.csr_matrix(COUNTS.astype("f4")) if x is None else x
    return ad.AnnData(x, **dict({"obs": obs(), "var": var}, **further))


def path_of(name, form):
    return os.path.join(OUT, name + (".h5ad" if form == "h5ad" else "." + form + ".zarr"))


def write(adata, path, form, **how):
    """Write it in a format; raises if this anndata cannot."""
    if form == "h5ad":
        (adata.write_h5ad if hasattr(adata, "write_h5ad") else adata.write)(path, **how)
        return
    if hasattr(getattr(ad, "settings", None), "zarr_write_format"):
        ad.settings.zarr_write_format = int(form[-1])
    elif form != "zarr2":
        raise ValueError("no zarr 3")
    adata.write_zarr(path, **dict({"chunks": None}, **how))


def read(path, form):
    return (ad.read_h5ad if form == "h5ad" else ad.read_zarr)(path)


def remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


def tell(path, what, options):
    with open(os.path.join(OUT, "files.jsonl"), "a") as file:
        file.write(json.dumps({"file": os.path.basename(path), "what": what, "options": list(options)}) + "\n")


def keep(name, make, what, options=(), forms=None, **how):
    """Write what `make` makes in each format, and keep what this anndata reads itself."""
    for form in forms or FORMS:
        path = path_of(name, form)
        remove(path)
        try:
            adata = make()
            write(adata, path, form, **how)
            read(path, form)
        except Exception as error:
            remove(path)
            print(name, form, type(error).__name__, str(error).replace("\n", " ")[:100])
        else:
            tell(path, what, options)


def gathered(name, kinds, put, what):
    """Write a file of all kinds that can be written, by format; of the h5ad of some writers also one for each kind."""
    for form in FORMS:
        able = []
        for kind in kinds:
            path = path_of(name + "=" + kind, form)
            try:
                adata = plain()
                put(adata, kind, kinds[kind]())
                write(adata, path, form)
                read(path, form)
                able.append(kind)
            except Exception as error:
                print(name, kind, form, type(error).__name__, str(error).replace("\n", " ")[:100])
            if kind in able and (kind in ALONE or SINGLY and form != "zarr2"):
                tell(path, what + ": " + kind, ())
            else:
                remove(path)
        able = [kind for kind in able if kind not in ALONE]

        def make(able=able):
            adata = plain()
            for kind in able:
                put(adata, kind, kinds[kind]())
            return adata

        keep(name, make, what + ": " + ", ".join(able), forms=[form])


def recarray(values):
    return np.rec.fromarrays([values, values], names=["B cell", "T cell"])


def deep():
    return {"a": {"b": {"c": {"d": {"e": np.arange(3), "none": None}}}}}


def table(**columns):
    return pd.DataFrame(dict({"n": [1, 2, 3]}, **columns), index=["x", "y", "z"])


def awkward():
    import awkward

    return awkward.Array([{"a": [1, 2][: i % 3], "b": "x"} for i in range(len(NAMES))])


UNS = {
    "none": lambda: None,
    "log1p": lambda: {"base": None},
    "true": lambda: True,
    "numpy_bool": lambda: np.bool_(False),
    "int": lambda: 3,
    "big_int": lambda: 2**40,
    "float": lambda: 1.5,
    "nan": lambda: float("nan"),
    "float32": lambda: np.float32(0.5),
    "int8": lambda: np.int8(-3),
    "uint64": lambda: np.uint64(2**63),
    "zero_d": lambda: np.array(5),
    "complex": lambda: np.complex128(1 + 2j),
    "text": lambda: "a word",
    "unicode": lambda: "γδ T – naïve 細胞",
    "no_text": lambda: "",
    "long_text": lambda: "what was done " * 6000,
    "numpy_text": lambda: np.str_("a word"),
    "list_of_text": lambda: ["a", "b", "γ"],
    "list_of_int": lambda: [1, 2, 3],
    "list_of_float": lambda: [0.1, float("nan")],
    "list_of_bool": lambda: [True, False],
    "tuple": lambda: (1, 2),
    "no_list": lambda: [],
    "no_array": lambda: np.array([]),
    "no_text_array": lambda: np.array([], dtype=str),
    "no_object_array": lambda: np.array([], dtype=object),
    "no_rows": lambda: np.zeros((0, 3)),
    "no_dict": dict,
    "deep": deep,
    "array_2d": lambda: np.arange(6.0).reshape(2, 3),
    "array_3d": lambda: np.arange(8, dtype="u1").reshape(2, 2, 2),
    "float16": lambda: np.arange(3, dtype="f2"),
    "big_endian": lambda: np.arange(3, dtype=">i4"),
    "fortran": lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "bool_array": lambda: np.array([True, False]),
    "complex_array": lambda: np.array([1j, 2]),
    "datetime_array": lambda: np.array(["2020-01-01"], dtype="M8[ns]"),
    "timedelta_array": lambda: np.array([5], dtype="m8[s]"),
    "text_array": lambda: np.array(["a", "bc"]),
    "object_array": lambda: np.array(["#1f77b4", "#ff7f0e"], dtype=object),
    "object_2d": lambda: np.array([["a", "b"], ["c", "d"]], dtype=object),
    "bytes_array": lambda: np.array([b"a", b"bc"]),
    "names": lambda: recarray(np.array(["CD3D", "GNLY"])),
    "object_names": lambda: recarray(np.array(["CD3D", "GNLY"], dtype=object)),
    "scores": lambda: recarray(np.array([1.5, 2.5], dtype="f4")),
    "mixed_records": lambda: np.array([(1, 0.5, "a")], dtype=[("i", "i4"), ("f", "f8"), ("s", "U3")]),
    "records_of_arrays": lambda: np.array([(1, [1, 2])], dtype=[("i", "i4"), ("a", "f4", 2)]),
    "table": lambda: table(),
    "table_of_text": lambda: table(s=["a", "b", "c"], m=["a", None, "c"]),
    "table_of_categories": lambda: table(c=pd.Categorical(["a", None, "b"]), i=pd.Categorical([1, 2, 1])),
    "table_of_nullables": lambda: table(i=pd.array([1, None, 3], dtype="Int64")),
    "no_columns": lambda: pd.DataFrame(index=["x", "y"]),
    "no_rows_table": lambda: pd.DataFrame({"a": np.array([], dtype="f8")}),
    "numbered_table": lambda: pd.DataFrame({"a": [1.0, 2.0]}),
    "named_index": lambda: table().rename_axis("gene"),
    "csr": lambda: sparse.csr_matrix(np.eye(3)),
    "csc": lambda: sparse.csc_matrix(np.eye(4, 3, dtype="i4")),
    "csr_array": lambda: sparse.csr_array(np.eye(3)),
    "bool_csr": lambda: sparse.csr_matrix(np.eye(3, dtype=bool)),
    "empty_csr": lambda: sparse.csr_matrix((3, 3)),
    "no_rows_csr": lambda: sparse.csr_matrix((0, 3)),
    "categories": lambda: pd.Categorical(["a", "b", None], ordered=True),
    "nullable_int": lambda: pd.array([1, None], dtype="Int32"),
    "nullable_bool": lambda: pd.array([True, None], dtype="boolean"),
    "nullable_text": lambda: pd.array(["a", None], dtype="string"),
    "cell_type_colors": lambda: np.array(["#1f77b4", "#ff7f0e", "#2ca02c"], dtype=object),
    "odd key, with a blank.and ünicode": lambda: 1,
    "numbers_as_keys": lambda: {"0": 1, "1": {"2": "x"}},
    "anndata": plain,
    "awkward": awkward,
    "neighbors": lambda: {
        "connectivities_key": "connectivities",
        "params": {"n_neighbors": 15, "method": "umap", "metric_kwds": {}, "use_rep": None},
    },
}

N = len(NAMES)
TEXT = np.array(["a", "b", "c"], dtype=object)[np.arange(N) % 3]
SOME = np.where(np.arange(N) % 4 == 0, None, TEXT)
OBS = {
    "categories": lambda: pd.Categorical(TEXT),
    "categories_missing": lambda: pd.Categorical(SOME),
    "categories_unused": lambda: pd.Categorical(TEXT, categories=list("dcbaé")),
    "categories_ordered": lambda: pd.Categorical(TEXT, categories=list("cba"), ordered=True),
    "categories_of_int": lambda: pd.Categorical(np.arange(N) % 3),
    "categories_of_float": lambda: pd.Categorical(np.arange(N) % 3 / 2),
    "categories_of_bool": lambda: pd.Categorical(np.arange(N) % 3 == 0),
    "categories_none": lambda: pd.Categorical([None] * N, categories=[]),
    "categories_all_missing": lambda: pd.Categorical([None] * N, categories=["a"]),
    "categories_many": lambda: pd.Categorical(["t%d" % i for i in range(N)]),  # noqa: UP031
    "categories_long": lambda: pd.Categorical(["x" * 300, "y"] * (N // 2)),
    "categories_nullable": lambda: pd.Series(pd.array(TEXT, dtype="string"), index=NAMES).astype("category"),
    "text": lambda: TEXT,
    "text_missing": lambda: SOME,
    "text_nan": lambda: pd.Series(SOME, index=NAMES).where(pd.notna(SOME), np.nan),
    "text_empty": lambda: np.where(TEXT == "a", "", TEXT),
    "text_barcode": lambda: ["bc%d" % i for i in range(N)],  # noqa: UP031
    "text_unicode": lambda: np.where(TEXT == "a", "γδ", TEXT),
    "bool": lambda: np.arange(N) % 3 == 0,
    "int8": lambda: np.arange(N, dtype="i1"),
    "uint16": lambda: np.arange(N, dtype="u2"),
    "int64": lambda: np.arange(N),
    "float32": lambda: np.arange(N, dtype="f4"),
    "float_nan": lambda: np.where(np.arange(N) % 2, np.nan, 1.0),
    "all_nan": lambda: np.full(N, np.nan),
    "nullable_int": lambda: pd.array([None, 1, 2] * (N // 3), dtype="Int64"),
    "nullable_uint": lambda: pd.array([0, 1, 2] * (N // 3), dtype="UInt8"),
    "nullable_float": lambda: pd.array([None, 1.5, 2] * (N // 3), dtype="Float64"),
    "nullable_bool": lambda: pd.array([None, True, False] * (N // 3), dtype="boolean"),
    "nullable_text": lambda: pd.array([None, "a", "b"] * (N // 3), dtype="string"),
    "datetime": lambda: pd.date_range("2020-01-01", periods=N),
    "with blank, %.ünicode": lambda: np.arange(N),
    "index": lambda: np.arange(N),
}


def aligned(n, m):
    many = np.random.RandomState(1).normal(size=(n, 5))  # noqa: NPY002
    near = sparse.random(n, n, 0.1, "csr", random_state=1)
    return {
        "m X_array": lambda: many,
        "m X_one": lambda: many[:, :1].astype("f4"),
        "m none": lambda: np.zeros((n, 0)),
        "m cube": lambda: np.zeros((n, 2, 2)),
        "m table": lambda: pd.DataFrame({"a": many[:, 0], "b": pd.Categorical(["x", "y"] * (n // 2))}, index=m),
        "m csr": lambda: sparse.csr_matrix(many > 1, dtype="f4"),
        "m csc": lambda: sparse.csc_matrix(many),
        "m ints": lambda: (many * 9).astype("i8"),
        "p csr": lambda: near,
        "p csc": lambda: near.tocsc(),
        "p dense": lambda: near.toarray(),
        "p bool": lambda: near > 0.5,
    }


def put_aligned(along):
    def put(adata, kind, value):
        getattr(adata, along + kind[0])[kind[2:]] = value

    return put


LAYERS = {
    "dense": lambda: COUNTS.astype("f4"),
    "fortran": lambda: np.asfortranarray(COUNTS.astype("f8")),
    "int": lambda: COUNTS,
    "csr": lambda: sparse.csr_matrix(COUNTS),
    "csc": lambda: sparse.csc_matrix(COUNTS.astype("u2")),
    "empty": lambda: sparse.csr_matrix(COUNTS.shape),
    "bool": lambda: COUNTS > 0,
}
MATRICES = {
    "dense_f4": lambda: COUNTS.astype("f4"),
    "dense_f8": lambda: COUNTS.astype("f8"),
    "dense_fortran": lambda: np.asfortranarray(COUNTS.astype("f4")),
    "dense_i8": lambda: COUNTS,
    "dense_u2": lambda: COUNTS.astype("u2"),
    "dense_u1": lambda: COUNTS.astype("u1"),
    "dense_big_endian": lambda: COUNTS.astype(">f4"),
    "csr_f4": lambda: sparse.csr_matrix(COUNTS.astype("f4")),
    "csr_f8": lambda: sparse.csr_matrix(COUNTS.astype("f8")),
    "csr_i4": lambda: sparse.csr_matrix(COUNTS.astype("i4")),
    "csr_u2": lambda: sparse.csr_matrix(COUNTS.astype("u2")),
    "csr_u1": lambda: sparse.csr_matrix(COUNTS.astype("u1")),
    "csc_f4": lambda: sparse.csc_matrix(COUNTS.astype("f4")),
    "csc_i8": lambda: sparse.csc_matrix(COUNTS),
    "csr_array": lambda: sparse.csr_array(COUNTS.astype("f4")),
    "csr_long": lambda: longer(sparse.csr_matrix(COUNTS.astype("f4"))),
    "csr_zeros": lambda: zeros(sparse.csr_matrix(COUNTS.astype("f4"))),
    "csr_unsorted": lambda: unsorted(sparse.csr_matrix(COUNTS.astype("f4"))),
}


def longer(matrix):
    matrix.indptr, matrix.indices = matrix.indptr.astype("i8"), matrix.indices.astype("i8")
    return matrix


def zeros(matrix):
    every = sparse.csr_matrix(np.ones(matrix.shape, "f4"))
    every.data[:] = COUNTS.ravel()
    return every


def unsorted(matrix):
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:]):  # noqa: B905
        matrix.indices[start:end] = matrix.indices[start:end][::-1].copy()
        matrix.data[start:end] = matrix.data[start:end][::-1].copy()
    matrix.has_sorted_indices = False
    return matrix


def with_raw():
    """The raw counts in raw, of all genes; X of half of them."""
    adata = plain()
    adata.raw = adata
    return adata[:, :20].copy()


def with_more():
    adata = with_raw()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.zeros((N, 2), "f4")
    return adata


def after_scanpy(*steps):
    """What the usual steps of this environment's scanpy leave."""
    import scanpy as sc

    adata = plain()
    adata.layers["counts"] = adata.X.copy()
    done = {
        "qc": lambda: sc.pp.calculate_qc_metrics(adata, percent_top=None, inplace=True),
        "filter": lambda: (sc.pp.filter_cells(adata, min_genes=1), sc.pp.filter_genes(adata, min_cells=1)),
        "normalize": lambda: sc.pp.normalize_total(adata, target_sum=1e4),
        "log1p": lambda: sc.pp.log1p(adata),
        "hvg": lambda: sc.pp.highly_variable_genes(adata, n_top_genes=20),
        "raw": lambda: setattr(adata, "raw", adata),
        "scale": lambda: sc.pp.scale(adata, max_value=10),
        "pca": lambda: sc.tl.pca(adata, n_comps=5),
        # the method "gauss" leaves what "umap" leaves, and compiles nothing
        "neighbors": lambda: sc.pp.neighbors(adata, n_neighbors=5, n_pcs=5, method="gauss"),
        "dendrogram": lambda: sc.tl.dendrogram(adata, "cell_type"),
        "rank": lambda: sc.tl.rank_genes_groups(adata, "cell_type", method="wilcoxon"),
        "ttest": lambda: sc.tl.rank_genes_groups(adata, "cell_type", key_added="ttest", pts=True),
        "score": lambda: sc.tl.score_genes(adata, ["CD3D", "CD3E"]),
        "without": lambda: adata.layers.pop("counts"),
    }
    for step in steps:
        try:
            done[step]()
        except Exception as error:
            print("scanpy", step, type(error).__name__, str(error)[:100])
    return adata


def concatenated():
    first, second = plain()[:30].copy(), plain()[30:].copy()
    if hasattr(ad, "concat"):
        return ad.concat({"one": first, "two": second}, label="batch", merge="same")
    return first.concatenate(second, index_unique=None)


def cellxgene():
    adata = plain()
    adata.var = pd.DataFrame(
        {
            "feature_name": pd.Categorical(list(GENES)),
            "feature_biotype": pd.Categorical(["gene"] * len(GENES)),
            "feature_is_filtered": False,
        },
        index=ensembl(),
    )
    adata.raw = adata
    adata.X = sparse.csr_matrix(np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e4).astype("f4"))
    adata.obs["tissue"] = pd.Categorical(["blood"] * N)
    adata.obs["is_primary_data"] = True
    adata.obsm["X_umap"] = np.zeros((N, 2), "f4")
    adata.uns.update({"schema_version": "5.2.0", "title": "A study", "default_embedding": "X_umap"})
    adata.uns["citation"] = "Publication: https://doi.org/ " * 3
    return adata


def no_columns():
    adata = plain()
    adata.var = pd.DataFrame(index=list(GENES))
    return adata


def named_index():
    adata = plain()
    adata.obs.index.name, adata.var.index.name = "barcode", "gene_symbols"
    return adata


def index_as_column():
    adata = named_index()
    adata.obs["barcode"] = adata.obs_names
    return adata


def numbered():
    adata = plain()
    adata.obs.index = pd.Index([str(i) for i in range(N)])
    return adata


def categorical_index():
    adata = plain()
    adata.var["symbol"] = list(GENES)
    adata.var.index = pd.CategoricalIndex(list(GENES))
    return adata


def no_x():
    adata = ad.AnnData(obs=obs(), var=plain().var)
    adata.layers["counts"] = sparse.csr_matrix(COUNTS.astype("f4"))
    return adata


def nullable_labels():
    adata = plain()
    adata.obs["cell_type"] = pd.array(TYPES, dtype="string")
    return adata


def missing_labels():
    adata = plain()
    adata.obs["cell_type"] = pd.Categorical(np.where(np.arange(N) % 5 == 0, None, TYPES))
    return adata


def text_labels():
    adata = plain()
    adata.strings_to_categoricals = lambda *a, **k: None
    adata.obs["cell_type"] = np.array(TYPES, dtype=object)
    return adata


def backed(name):
    """A file that was opened for writing and changed on disk."""
    path = path_of(name, "h5ad")
    remove(path)
    try:
        write(plain(), path, "h5ad")
        adata = ad.read_h5ad(path, backed="r+")
        adata.obs["changed"] = 1.5
        adata.uns["changed"] = {"by": "hand"}
        adata.write()
        adata.file.close()
        adata = ad.read_h5ad(path, backed="r+")
        adata.X[0, 0] = adata.X[0, 0]
        adata.file.close()
        read(path, "h5ad")
    except Exception as error:
        print(name, type(error).__name__, error)
    if os.path.exists(path):
        tell(path, "opened with backed='r+', changed and written again", ())


def muon():
    """MuData of RNA and ten antibodies."""
    path = os.path.join(OUT, "muon.h5mu")
    remove(path)
    try:
        import mudata

        antibodies = ad.AnnData(
            COUNTS[:, :10].astype("f4"), obs=obs(), var=pd.DataFrame(index=["AB%d" % i for i in range(10)])
        )  # noqa: E501, UP031
        whole = mudata.MuData({"rna": plain(), "prot": antibodies})
        whole.write(path)
    except Exception as error:
        remove(path)
        print("mudata", type(error).__name__, str(error)[:100])
    else:
        tell(path, "MuData of RNA and antibodies", ())


def nullable_strings(name):
    if not hasattr(getattr(ad, "settings", None), "allow_write_nullable_strings"):
        return
    before = ad.settings.allow_write_nullable_strings
    ad.settings.allow_write_nullable_strings = True
    try:
        keep(name, nullable_labels, "labels as pandas' nullable strings, allowed by a setting")
        gathered(name + "_obs", {"nullable_text": OBS["nullable_text"]}, put_obs, "columns")
    finally:
        ad.settings.allow_write_nullable_strings = before


def put_obs(adata, kind, value):
    adata.obs[kind] = value


def put_uns(adata, kind, value):
    adata.uns[kind] = value


def put_layer(adata, kind, value):
    adata.layers[kind] = value


def main():
    for kind, make in MATRICES.items():
        keep("x_" + kind, lambda make=make: plain(make()), "X: " + kind, forms=FORMS if kind in BOTH else FORMS[:1])
    gathered("uns", UNS, put_uns, "uns")
    gathered("obs", OBS, put_obs, "columns of obs")
    gathered("obs_aligned", aligned(N, list(NAMES)), put_aligned("obs"), "obsm and obsp")
    gathered("var_aligned", aligned(len(GENES), list(GENES)), put_aligned("var"), "varm and varp")
    gathered("layers", LAYERS, put_layer, "layers")
    keep("raw", with_raw, "raw with more genes than X", ["--layer", "raw"])
    keep("raw_and_more", with_more, "raw, a layer and obsm", ["--layer", "raw"])
    steps = ("qc", "filter", "normalize", "log1p")
    keep("scanpy_log1p", lambda: after_scanpy(*steps), "X log1p, counts in a layer", LAYER)
    keep("scanpy_log1p_only", lambda: after_scanpy(*steps, "without"), "X log1p, no counts", ["--fix"])
    more = ("hvg", "raw", "scale", "pca", "neighbors", "dendrogram", "rank", "ttest", "score")
    keep(
        "scanpy", lambda: after_scanpy(*steps, *more), "the usual steps, X scaled, raw log1p, counts in a layer", LAYER
    )
    keep("concat", concatenated, "two concatenated")
    keep("view", lambda: plain()[10:40, :30], "a view, written")
    options = ["--layer", "raw", "--gene-key", "feature_name"]
    keep("cellxgene", cellxgene, "as CELLxGENE has them: Ensembl identifiers, raw counts in raw", options)
    keep("no_columns", no_columns, "var without columns")
    keep("named_index", named_index, "names of both indices")
    keep("index_as_column", index_as_column, "the index is also a column")
    keep("numbered", numbered, "cells named 0 to 59")
    keep("categorical_index", categorical_index, "names of genes are categorical")
    keep("no_x", no_x, "no X, counts in a layer", LAYER)
    keep("text_labels", text_labels, "labels as text")
    keep("nullable_labels", nullable_labels, "labels as pandas' nullable strings")
    keep("missing_labels", missing_labels, "a fifth of the labels missing")
    keep("gzip", plain, "compressed by gzip", forms=["h5ad"], compression="gzip")
    keep("lzf", plain, "compressed by lzf", forms=["h5ad"], compression="lzf")
    keep(
        "chunked",
        lambda: plain(COUNTS.astype("f4")),
        "in chunks",
        forms=[f for f in FORMS if f != "h5ad"],
        chunks=(7, 40),
    )  # noqa: E501
    nullable_strings("nullable_strings")
    backed("backed")
    muon()


# awkward is read only where it is installed; anndata writes complex scalars of NumPy, but not those that it reads
ALONE = ("awkward", "complex")
BOTH = ("dense_f4", "dense_i8", "csr_f4", "csr_u2", "csc_f4", "csr_array")
SINGLY = "--singly" in sys.argv
FORMS = [form for form in sys.argv[2:] if not form.startswith("-")]

if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    main()
