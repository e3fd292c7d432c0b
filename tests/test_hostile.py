"""Files made to harm: each is refused by name, or read rightly, less what cannot be read."""

import gzip
import json
import os
import pickle
import shutil
import warnings

import anndata as ad
import h5py
import jax.random as jr
import numpy as np
import pytest
import zarr
from equinox.nn import Linear
from scipy import sparse

from ginseng import (
    Annotator,
    GinsengDataset,
    classify,
    load_annotator,
    load_model,
    read_adata,
    save_annotator,
    save_model,
)
from ginseng.data.outputs import write_annotated
from ginseng.data.parts import merge_shards
from ginseng.data.readers import opened_counts, read_annotation
from ginseng.utils.bounds import read_json
from ginseng.utils.digest import digest
from ginseng.utils.files import naming
from ginseng.utils.pairs import read_mapping
from tests.conftest import simulate, untrained

N_GENES = 30
TEXT = h5py.string_dtype()


@pytest.fixture(scope="module")
def state():
    return untrained()


@pytest.fixture(scope="module")
def sources(tmp_path_factory, state):
    """One whole file of each kind."""
    folder = tmp_path_factory.mktemp("sources")
    adata = simulate()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"], adata.obsm["sparse"] = np.zeros((120, 2), np.float32), sparse.csr_matrix(np.eye(120, 5))
    adata.obsp["near"] = sparse.csr_matrix(np.eye(120))
    adata.uns["note"] = {"by": "us"}
    adata.raw = adata.copy()
    adata.write_h5ad(folder / "c.h5ad")
    for version in (2, 3):
        with ad.settings.override(zarr_write_format=version):
            adata.write_zarr(folder / f"c{version}.zarr")
    GinsengDataset.create(folder / "d.zarr", adata, "cell_type", silent=True).make_split(0.2)
    save_model(state, folder / "m.h5")
    return folder


def readings(path, state):
    """What is done with a file of counts."""

    def on_disk():
        with opened_counts(path, annotation=True) as adata:
            assert adata.n_obs

    yield lambda: read_adata(path, backed=False)
    yield lambda: read_annotation(path)
    yield lambda: classify(state, path, return_table=True, silent=True)
    yield on_disk


def refused(path, action, match):
    with pytest.raises((ValueError, OSError), match=match) as caught:
        action()
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 1500


def replaced(file, name, **how):
    attributes = dict(file[name].attrs) if name in file else {}
    file.pop(name, None)
    file.create_dataset(name, **how).attrs.update(attributes)


def link_out(file):
    file["uns/x"] = h5py.ExternalLink("c.h5ad", "X")


def stored_outside(file):
    file["uns"].create_dataset("x", shape=(10,), dtype="u1", external=[("/etc/passwd", 0, 10)])


def virtual(file):
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource("c.h5ad", "X/data", (10,))
    file["uns"].create_virtual_dataset("x", layout)


def holding_itself(file):
    file["uns/x"] = file["uns"]


def by_soft_link(file):
    file["uns/x"] = h5py.SoftLink("/uns")


def nested(file):
    group = file["uns"]
    for _ in range(1500):
        group = group.create_group("x")


H5AD = {
    "link out": (link_out, "cannot be read: its x is a link to another file"),
    "external": (stored_outside, "cannot be read: its x is stored elsewhere"),
    "virtual": (virtual, "cannot be read: its x is stored elsewhere"),
    "cycle": (holding_itself, "hold one another without an end"),
    "soft cycle": (by_soft_link, "hold one another without an end"),
    "nested": (nested, "hold one another without an end"),
    "opaque names": (lambda f: replaced(f, "obs/_index", data=np.zeros(120, "V8")), "damaged"),
    "compound names": (lambda f: replaced(f, "obs/_index", data=np.zeros(120, [("a", "i4"), ("b", "S4")])), "damaged"),
    "ragged names": (lambda f: replaced(f, "obs/_index", shape=(120,), dtype=h5py.vlen_dtype("i4")), "damaged"),
    "not UTF-8": (
        lambda f: replaced(f, "obs/_index", data=np.array([b"\xff%d" % i for i in range(120)], object), dtype=TEXT),
        "damaged",
    ),
    "no index": (lambda f: f["obs"].attrs.__setitem__("_index", "nope"), "damaged"),
    "encoding": (
        lambda f: f["obs"].attrs.__setitem__("encoding-type", "evil"),
        r"cannot be read: its obs was written by a newer anndata: it has the encoding 'evil' 0\.2\.0",
    ),
    "a long name": (lambda f: f["obs"].attrs.__setitem__("encoding-type", "x" * 60_000), r"cannot be read.*xxx"),
}


def harmed(source, folder, harm):
    """A copy of an HDF5 file that is changed."""
    path = folder / f"evil{source.suffix}"
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        harm(file)
    return path


@pytest.mark.parametrize("case", H5AD)
def test_h5ad(sources, tmp_path, state, case):
    harm, match = H5AD[case]
    path = harmed(sources / "c.h5ad", tmp_path, harm)
    for action in readings(path, state):
        refused(path, action, match)


# What need not be read: each is left out, with a warning that names it.
LEFT_OUT = {
    "link to nothing": (lambda f: f["uns"].__setitem__("x", h5py.SoftLink("/nothing")), "uns/x"),
    "codes beyond": (lambda f: f["obs/cell_type/codes"].__setitem__(0, 99), "obs/cell_type"),
    "codes below": (lambda f: f["obs/cell_type/codes"].__setitem__(0, -7), "obs/cell_type"),
    "columns": (lambda f: f["obs"].attrs.__setitem__("column-order", ["nope", "donor"]), "obs/nope"),
    "column of others": (lambda f: replaced(f, "obs/donor/codes", data=np.zeros(7, "i1")), "obs/donor .*7 values"),
    "encoding of a column": (lambda f: f["obs/donor"].attrs.__setitem__("encoding-version", "9"), "obs/donor .*newer"),
    "encoding in uns": (
        lambda f: f["uns/note/by"].attrs.__setitem__("encoding-type", "new"),
        "uns/note/by .*'new' 0.2.0",
    ),
    "shape of a layer": (lambda f: f["layers/counts"].attrs.__setitem__("shape", [120, 20]), "layers/counts"),
    "index of a layer": (lambda f: f["layers/counts/indices"].__setitem__(0, 10**6), "layers/counts .*of 1,000,000"),
    "index of raw": (lambda f: f["raw/X/indices"].__setitem__(0, 10**6), "raw .*index of 1,000,000"),
    "index in obsm": (lambda f: f["obsm/sparse/indices"].__setitem__(0, 10**6), "obsm/sparse .*index of 1,000,000"),
    "index in obsp": (lambda f: f["obsp/near/indices"].__setitem__(0, 10**6), "obsp/near .*index of 1,000,000"),
    "row ends in obsp": (lambda f: f["obsp/near/indptr"].__setitem__(5, 10**6), "obsp/near .*row ends do not rise"),
    "texts in 32 dimensions": (
        lambda f: f["uns"].create_dataset("deep", (2, *[1] * 31), h5py.string_dtype(), fillvalue="a"),
        "uns/deep .*HDF5 ends the interpreter",
    ),
    "rows of obsm": (lambda f: replaced(f, "obsm/X_pca", data=np.zeros((7, 2))), "obsm/X_pca"),
}


@pytest.mark.parametrize(
    ("case", "backed"),
    [(case, backed) for case in LEFT_OUT for backed in (False, True) if case != "index of raw" or not backed],
)
def test_what_cannot_be_read_is_left_out(sources, tmp_path, state, case, backed):
    harm, match = LEFT_OUT[case]
    expected = classify(state, sources / "c.h5ad", return_table=True, silent=True)
    path = harmed(sources / "c.h5ad", tmp_path, harm)
    place = match.split()[0]
    with pytest.warns(UserWarning, match=f"evil.h5ad: left out what cannot be read: {match}"):
        adata = read_adata(path, backed=backed)
    assert classify(state, adata, return_table=True, silent=True).equals(expected)
    assert classify(state, path, return_table=True, silent=True).equals(expected)
    part, _, name = place.partition("/")
    assert adata.raw is None if part == "raw" else name not in getattr(adata, part)
    assert set(adata.obsm) | {"X_pca", "sparse"} == {"X_pca", "sparse"}
    assert (adata.uns.get("note") == {"by": "us"}) == (case != "encoding in uns")


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no memory")])
@pytest.mark.parametrize("place", ["uns/note/by", "obsm/X_pca", "layers/counts", "obs/donor/codes", "raw/X/data"])
def test_errors_of_the_machine_leave_nothing_out(sources, monkeypatch, place, error, backed):
    """Such as of a network file system: what could not be read now can be read the next time."""
    if backed and place == "raw/X/data":  # stays on disk
        return
    read = h5py.Dataset.__getitem__

    def failing(item, *args, **how):
        if item.name == f"/{place}" or item.name.startswith(f"/{place}/"):
            raise error
        return read(item, *args, **how)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", failing)
    monkeypatch.setattr(h5py.Dataset, "read_direct", lambda item, target, *_: target.__setitem__(..., item[()]))
    with pytest.raises(OSError, match="c.h5ad|Input/output") as caught:
        read_adata(sources / "c.h5ad", backed=backed)
    assert caught.value.errno is not None


def test_a_backed_file_that_is_unsound_is_closed(sources, tmp_path):
    path = harmed(sources / "c.h5ad", tmp_path, LEFT_OUT["index in obsm"][0])
    with pytest.warns(UserWarning, match="left out"):
        read_adata(path).file.close()
    with h5py.File(path, "r+") as file:
        assert file["X"]


def edited(store, place, **changes):
    """Change the metadata of an array or of a group, of zarr v2 or v3."""
    path = next(store / place / n for n in ("zarr.json", ".zarray", ".zattrs") if (store / place / n).exists())
    found = json.loads(path.read_text())
    if path.name == "zarr.json":
        found.pop("consolidated_metadata", None)
        changes = {"codecs" if key == "filters" else key: value for key, value in changes.items()}
        if "chunks" in changes:
            changes["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": changes.pop("chunks")}}
        if "dtype" in changes:
            changes["data_type"] = changes.pop("dtype")
    path.write_text(json.dumps(found | changes))


def emptied(store, place):
    for entry in (store / place).iterdir():
        if entry.name not in ("zarr.json", ".zarray", ".zattrs"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def moved_out(store):
    shutil.move(store / "obsm", store.parent / "away")
    (store / "obsm").symlink_to(store.parent / "away")


def enlarged(store):
    (store / "uns" / ".zattrs").write_text(f'{{"a": "{"x" * 2**27}"}}')


ZARR = {
    "no chunk": (lambda s: edited(s, "X/data", chunks=[0]), "damaged"),
    "negative": (lambda s: edited(s, "X/data", shape=[-5]), "damaged"),
    "shape of text": (lambda s: edited(s, "X/data", shape="abc"), "damaged"),
    "unknown type": (lambda s: edited(s, "X/data", dtype="foo"), "damaged"),
    "fill value": (lambda s: edited(s, "X/data", fill_value="xx"), "damaged"),
    "codec": (lambda s: edited(s, "X/data", filters=[{"id": "evil", "name": "evil"}]), "damaged"),
    "no JSON": (lambda s: [path.write_text("{") for path in (s / "X/data").iterdir() if path.is_file()], "damaged"),
    "large JSON": (enlarged, "134,217,7.. bytes"),
    "link out": (moved_out, "its obsm is a symbolic link out of the folder"),
    "link up": (lambda s: (s / "uns/x").symlink_to(".."), "its x is a symbolic link to a folder around it"),
    "pipe": (lambda s: os.mkfifo(s / "uns/x"), "x is neither a file nor a folder"),
}


@pytest.mark.parametrize("case", ZARR)
@pytest.mark.parametrize("version", [2, 3])
def test_anndata_zarr(sources, tmp_path, state, case, version):
    path = tmp_path / "evil.zarr"
    shutil.copytree(sources / f"c{version}.zarr", path)
    (path / ".zmetadata").unlink(missing_ok=True)
    if version == 3:
        edited(path, ".")
    harm, match = ZARR[case]
    harm(path)
    for action in readings(path, state):
        if match == "damaged":  # of X, which need not be right where it is not read
            continue
        refused(path, action, match)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("dtype", ["|O", "<f4"])
def test_nothing_is_unpickled(sources, tmp_path, state, dtype):
    path = tmp_path / "evil.zarr"
    shutil.copytree(sources / "c2.zarr", path)
    (path / ".zmetadata").unlink()
    edited(path, "X/data", dtype=dtype, compressor=None, filters=[{"id": "pickle", "protocol": 5}], fill_value=None)
    for chunk in (path / "X/data").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(np.array([Harm(tmp_path / "run")], object)))
    for action in readings(path, state):
        refused(path, action, "cannot be read: its data is pickled")
    (tmp_path / "p.h5ad").write_bytes(pickle.dumps(Harm(tmp_path / "run")))
    for action in readings(tmp_path / "p.h5ad", state):
        refused(tmp_path / "p.h5ad", action, "p.h5ad")
    assert not (tmp_path / "run").exists()


DATASET = {
    "labels": (lambda s: (edited(s, "labels", shape=[10**9]), emptied(s, "labels")), "damaged"),
    "row ends": (lambda s: edited(s, "X/indptr", shape=[10**12]), "row ends"),
    "shard": (lambda s: edited(s, "X/data", chunks=[2**40]), "damaged"),
    "codec": (lambda s: edited(s, "X/data", filters=[{"name": "evil"}]), "damaged"),
    "root elsewhere": (
        lambda s: ((s / "zarr.json").rename(s.parent / "away"), (s / "zarr.json").symlink_to(s.parent / "away")),
        "symbolic link out of the folder",
    ),
    "root is a pipe": (lambda s: ((s / "zarr.json").unlink(), os.mkfifo(s / "zarr.json")), "neither a file nor"),
    "nested JSON": (lambda s: (s / "zarr.json").write_text("[" * 100_000), "not a ginseng dataset"),
}


@pytest.mark.parametrize("case", DATASET)
def test_datasets(sources, tmp_path, case):
    path = tmp_path / "evil.zarr"
    shutil.copytree(sources / "d.zarr", path)
    harm, match = DATASET[case]
    harm(path)
    refused(path, lambda: list(GinsengDataset(path).stream(32, "train")), match)


HEADER = b"%%MatrixMarket matrix coordinate integer general\n"
TENX = {
    "entries": (
        "matrix.mtx.gz",
        HEADER + b"2 3 1000000000000\n1 1 5\n",
        "1 lines of 3 numbers, where 1,000,000",
    ),
    "rows": ("matrix.mtx.gz", HEADER + b"1000000000000 3 2\n1 1 5\n", "the tables beside it name"),
    "dense": ("matrix.mtx.gz", HEADER.replace(b"coordinate", b"array") + b"9999999 9999999\n5\n", "does not begin as"),
    "beyond": ("matrix.mtx.gz", HEADER + b"2 3 2\n1 1 5\n9 9 7\n", "damaged"),
    "zero": ("matrix.mtx.gz", HEADER + b"2 3 2\n0 1 5\n1 1 7\n", "damaged"),
    "negative": ("matrix.mtx.gz", HEADER + b"2 3 -2\n1 1 5\n", "damaged"),
    "overflow": ("matrix.mtx.gz", HEADER + b"2 3 " + b"9" * 50 + b"\n1 1 5\n", "damaged"),
    "more": ("matrix.mtx.gz", HEADER + b"2 3 1\n1 1 5\n2 2 5\n", "damaged"),
    "comment": ("matrix.mtx.gz", HEADER + b"%" * 2**27, "unpacks to more than the 67,108,864 bytes"),
    "lines": ("barcodes.tsv.gz", b"a\n" * 2**26, "unpacks to more than the 67,108,864 bytes"),
    "a line": ("barcodes.tsv.gz", b"a" * 2**27, "unpacks to more than the 67,108,864 bytes|field larger"),
    "columns": ("features.tsv.gz", b"a" + b"\t" * 2**20, "it has 1,048,577 columns"),
    "empty": ("barcodes.tsv.gz", b"", "damaged"),
    "binary": ("barcodes.tsv.gz", b"\xff\xfe\x00\n", "damaged"),
}
WHOLE = {
    "matrix.mtx.gz": HEADER + b"2 3 2\n1 1 5\n2 3 7\n",
    "features.tsv.gz": b"E1\tA\nE2\tB\n",
    "barcodes.tsv.gz": b"x\ny\nz\n",
}


@pytest.mark.parametrize("case", TENX)
def test_10x_folders(tmp_path, case):
    name, content, match = TENX[case]
    for file, text in (WHOLE | {name: content}).items():
        (tmp_path / file).write_bytes(gzip.compress(text, 1 if len(text) < 2**20 else 9))
    refused(tmp_path / name, lambda: read_adata(tmp_path), match)


@pytest.mark.parametrize("name", WHOLE)
def test_links_of_10x_folders_are_followed(tmp_path, caplog, name):
    """Workflow systems stage files so; of what leads out of the folder the log tells."""
    folder = tmp_path / "10x"
    folder.mkdir()
    for file, text in WHOLE.items():
        (folder / file).write_bytes(gzip.compress(text))
    (tmp_path / "link").symlink_to(folder)
    (folder / name).rename(folder / "moved")
    (folder / name).symlink_to("moved")
    with caplog.at_level("INFO", "ginseng"):
        assert read_adata(tmp_path / "link").shape == (3, 2)
        assert not caplog.messages
        (folder / "moved").rename(tmp_path / "away")
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "away")
        assert read_adata(folder).shape == (3, 2)
    assert caplog.messages == [f"{tmp_path / 'away'} is read, to which {folder / name} is a link."]
    (tmp_path / "away").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is a link to .*away, where there is nothing"):
        read_adata(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder / name, lambda: read_adata(folder), "neither a file nor a folder")


TENX_H5 = {
    "cells": (lambda f: replaced(f, "matrix/shape", data=[30, 10**9]), "damaged"),
    "genes": (lambda f: replaced(f, "matrix/shape", data=[10**15, 12]), "damaged"),
    "negative": (lambda f: replaced(f, "matrix/shape", data=[-30, 12]), "damaged"),
    "text": (lambda f: replaced(f, "matrix/shape", data="x"), "damaged"),
    "fractions": (lambda f: replaced(f, "matrix/indices", data=f["matrix/indices"][:] + 0.5), "are float64, float64"),
    "a number": (lambda f: replaced(f, "matrix/data", data=3), "damaged"),
    "no group": (lambda f: replaced(f, "matrix", data=3), "neither an AnnData nor a 10x file"),
}


@pytest.mark.parametrize("case", TENX_H5)
def test_10x_h5(tmp_path, state, case):
    path, counts = tmp_path / "evil.h5", sparse.random(30, 12, 0.3, "csc", random_state=0)
    harm, match = TENX_H5[case]
    with h5py.File(path, "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(counts, name)
        file["matrix/shape"], file["matrix/barcodes"] = [30, 12], np.array([f"b{i}" for i in range(12)], "S")
        for name in ("id", "name"):
            file[f"matrix/features/{name}"] = np.array([f"GENE{i}" for i in range(30)], "S")
        harm(file)
    refused(path, lambda: read_adata(path), match)
    refused(path, lambda: classify(state, path, return_table=True, silent=True), match)


MODELS = {
    "genes": (lambda f: f.attrs.__setitem__("n_genes", 10**9), "no whole"),
    "negative": (lambda f: f.attrs.__setitem__("n_genes", -1), "no whole"),
    "text": (lambda f: f.attrs.__setitem__("n_genes", "x"), "no whole"),
    "normalize": (lambda f: f.attrs.__setitem__("normalize", 7), "`normalize` is 7"),
    "values": (lambda f: replaced(f, "label_values", data=[0, 0, 10**9]), "no whole"),
    "weights of text": (lambda f: replaced(f, "params/head/W", data=np.array(["a"] * 3, "S2")), "no whole"),
    "cycle": (lambda f: f["params"].__setitem__("x", f["params"]), "without an end"),
    "link out": (lambda f: f["params"].__setitem__("x", h5py.ExternalLink("m.h5", "genes")), "link to another file"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(sources, tmp_path, case):
    path = tmp_path / "evil.h5"
    shutil.copy(sources / "m.h5", path)
    harm, match = MODELS[case]
    with h5py.File(path, "r+") as file:
        harm(file)
        file["metadata"].attrs.pop("digest", None)
    refused(path, lambda: load_model(path), match)


def test_metadata_of_models_that_are_no_json_are_left_out(sources, tmp_path, state):
    shutil.copy(sources / "m.h5", tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        replaced(file, "metadata/versions", data="[" * 100_000)
    with pytest.warns(UserWarning, match="metadata of the model cannot be read"):
        assert load_model(tmp_path / "m.h5").label_keys.tolist() == list("ABC")


@pytest.mark.parametrize("shape", ["(10, 2)", "(99999999999999,)"])
def test_weights_of_an_annotator_of_another_shape_take_no_memory(tmp_path, shape):
    path = tmp_path / "evil.eqx"
    save_annotator(Annotator(Linear(2, 2, key=jr.key(0)), ["A", "B"], ["x", "y"]), path)
    _, names, leaves = path.read_bytes().split(b"\n", 2)
    length = leaves.index(b"(2, 2)")
    assert leaves[length + len("(2, 2)") :].startswith(b", }" + b" " * len(shape))
    leaves = leaves.replace(b"(2, 2), }" + b" " * (len(shape) - 6), f"{shape}, }}".encode(), 1)
    kept = digest(*(np.frombuffer(part, np.uint8) for part in (names, leaves)))
    path.write_bytes(b"\n".join([kept.encode(), names, leaves]))
    refused(path, lambda: load_annotator(path, Linear(2, 2, key=jr.key(1))), "Error at leaf.*weight")


def test_tables(tmp_path):
    path = tmp_path / "names.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" * 2**25))
    refused(path, lambda: read_mapping(path, "mapping", ("label", "new name")), "unpacks to more than")
    path = tmp_path / "names.csv"
    path.write_bytes(b"," * 2**20)
    refused(path, lambda: read_mapping(path, "mapping", ("label", "new name")), "it has 1,048,577 columns")
    path.write_bytes(b"a,b\n\xff,c\n")
    refused(path, lambda: read_mapping(path, "mapping", ("label", "new name")), "no table of names")


@pytest.mark.parametrize(
    ("mark", "match"),
    [
        ('{"number": 1, "of": 1000000000000}', "no whole shard: it is number 1 of 1000000000000"),
        ('{"number": 0, "of": 1}', "no whole shard"),
        ('{"number": "1", "of": 1}', "no whole shard"),
        ("[1]", "no record"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_marks_of_shards(tmp_path, mark, match):
    path = tmp_path / "evil.csv"
    path.write_text(f"# ginseng shard {mark}\ncell,type\na,B\n")
    refused(path, lambda: merge_shards([path], tmp_path / "all.csv"), match)


def test_what_ends_never_is_not_waited_for(tmp_path, state):
    for name in ("x.h5ad", "x.h5", "x.zarr"):
        path = tmp_path / name
        os.mkfifo(path)
        for action in (*readings(path, state), lambda p=path: load_model(p), lambda p=path: GinsengDataset(p)):
            refused(path, action, name)


class TestWhatIsRightIsRead:
    @pytest.mark.parametrize("backed", [True, False])
    def test_everything_that_hdf5_has(self, sources, tmp_path, state, backed):
        """As other writers than anndata use it, in places that nobody asks for."""
        expected = classify(state, sources / "c.h5ad", return_table=True, silent=True)
        path = tmp_path / "x.h5ad"
        shutil.copy(sources / "c.h5ad", path)
        with h5py.File(path, "r+") as file:
            uns = file["uns"]
            uns.create_dataset("null", data=h5py.Empty("f4")).attrs.update(
                {"encoding-type": "null", "encoding-version": "0.1.0"}
            )
            uns["empty"] = h5py.Empty("f4")
            uns["references"] = np.array([file["X"].ref], h5py.ref_dtype)
            uns["regions"] = np.array([file["X/data"].regionref[:3]], h5py.regionref_dtype)
            uns["kind"] = np.dtype([("a", "f4"), ("b", h5py.string_dtype())])
            uns["records"] = np.array([(1.0, "x")], uns["kind"].dtype)
            uns["yes"] = np.array([True, False])
            uns["opaque"] = np.zeros(3, "V8")
            uns.create_dataset("lists", (2,), h5py.vlen_dtype("i4"))[0] = [1, 2]
            uns["cells"] = np.arange(3)
            uns["cells"].make_scale("cells")
            uns["with_scale"] = np.arange(3)
            uns["with_scale"].dims[0].attach_scale(uns["cells"])
            uns["soft"] = h5py.SoftLink("/obs")
            uns.attrs["reference"] = file["X"].ref
            uns["fixed"] = np.bytes_("text")
        assert read_adata(path, backed=backed).uns["null"] is None
        assert classify(state, path, return_table=True, silent=True, backed=backed).equals(expected)
        with opened_counts(path, annotation=True) as adata:
            assert adata.uns["yes"].tolist() == [True, False]

    @pytest.mark.parametrize("odd", [False, True])
    def test_stores_of_old(self, tmp_path, odd):
        """Of tables as records, without encodings, as anndata wrote before 0.7; and with what zarr does not know."""
        path = tmp_path / "old.zarr"
        root = zarr.open_group(path, mode="w", zarr_format=2)
        for name, names in (("obs", [f"c{i}" for i in range(8)]), ("var", ["CD3D", "CD4", "LYZ"])):
            records = np.array([(entry.encode(), 1) for entry in names], [("index", "S8"), ("kind", "i4")])
            root.create_array(name, data=records)
        root.create_array("X", data=np.random.default_rng(0).poisson(2.0, (8, 3)).astype("f4"))
        root.create_array("uns/kind_categories", data=np.array([b"T", b"B"]))
        if odd:
            root.create_array("uns/odd", data=np.arange(3))
            edited(path, "uns/odd", dtype="foo")
        with warnings.catch_warnings(record=True) as drawn:
            warnings.simplefilter("always")
            with opened_counts(path) as adata:
                assert adata.obs_names[0] == "c0" and adata.var_names.tolist() == ["CD3D", "CD4", "LYZ"]
                assert adata.obs["kind"].tolist() == ["B"] * 8
                assert adata.X.sum() == root["X"][:].sum()
            GinsengDataset.create(tmp_path / "d.zarr", path, "kind", silent=True)
        told = [str(warning.message) for warning in drawn if "left out what cannot be read" in str(warning.message)]
        assert all("old.zarr: left out what cannot be read: uns/odd" in text for text in told)
        assert bool(told) == odd

    @pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
    def test_what_is_written_has_only_what_can_be_read(self, sources, tmp_path, suffix):
        source, path = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
        adata = read_adata(sources / "c.h5ad", backed=False)
        adata.write_h5ad(source) if suffix == ".h5ad" else adata.write_zarr(source)
        root = h5py.File(source, "r+") if suffix == ".h5ad" else zarr.open_group(source, mode="r+")
        for place in ("uns/note/by", "layers/counts", "obs/donor", "obsm/X_pca"):
            root[place].attrs["encoding-type"] = "new"
        if suffix == ".h5ad":
            root.close()
        told = pytest.warns(UserWarning, match=r"left out .*obs/donor .*obsm/X_pca .*uns/note/by")
        with told, opened_counts(source, annotation=True) as adata:
            write_annotated(adata, path, source)
        found = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
        assert (found.X != read_adata(sources / "c.h5ad", backed=False).X).nnz == 0
        assert "donor" not in found.obs and list(found.obsm) == ["sparse"] and found.uns == {"note": {}}

    @pytest.mark.parametrize("place", ["varm/loadings", "raw/X/data", "obsm/X_pca", "uns/numbers"])
    def test_what_is_damaged_or_packed_otherwise_stays_in_the_copy(self, sources, tmp_path, place):
        """It is left out of what is read here, and its bytes may be read elsewhere."""
        source, path = tmp_path / "x.h5ad", tmp_path / "y.h5ad"
        adata = read_adata(sources / "c.h5ad", backed=False)
        adata.varm["loadings"] = np.arange(90.0).reshape(30, 3)
        adata.uns |= {"numbers": np.arange(9), "mine": 1}
        adata.write_h5ad(source)
        with h5py.File(source, "r+") as file:
            values = file[place][:]
            attributes = dict(file[place].attrs)
            del file[place]
            file.create_dataset(place, data=values, chunks=values.shape, fletcher32=True).attrs.update(attributes)
            chunk = file[place].id.get_chunk_info(0)
        with source.open("r+b") as file:
            file.seek(chunk.byte_offset)
            file.write(b"\x01" * 8)
        with pytest.warns(UserWarning, match=f"left out .*{place.partition('/')[0]}"):
            adata = read_adata(source, backed=False)
        adata.obs["new"] = adata.uns["new"] = 1
        del adata.uns["mine"]
        write_annotated(adata, path, source)
        with h5py.File(path) as file, h5py.File(source) as before:
            stored, expected = (of[place].id.read_direct_chunk((0,) * values.ndim) for of in (file, before))
            assert stored == expected
            assert "new" in file["obs"]
            assert set(file["uns"]) - {"numbers"} == {"note", "new"}

    def test_constant_layers(self, tmp_path, state):
        """Zeros compress without limit, and zarr leaves them out."""
        adata = simulate(n_cells=2000)
        adata.obsm["zeros"] = np.zeros((2000, 2000), np.float32)
        adata.layers["zeros"] = np.zeros(adata.shape, np.float32)
        adata.write_h5ad(tmp_path / "x.h5ad", compression="gzip")
        adata.write_zarr(tmp_path / "x.zarr")
        for name in ("x.h5ad", "x.zarr"):
            assert not read_adata(tmp_path / name, backed=False).layers["zeros"].any()

    def test_links_within_and_user_blocks(self, sources, tmp_path, state):
        expected = classify(state, sources / "c.h5ad", return_table=True, silent=True)
        with h5py.File(sources / "c.h5ad") as source, h5py.File(tmp_path / "x.h5ad", "w", userblock_size=512) as file:
            for name in source:
                source.copy(name, file)
            file.attrs.update(source.attrs)
            file["layers/same"], file["layers/soft"] = file["X"], h5py.SoftLink("/X")
        assert classify(state, tmp_path / "x.h5ad", return_table=True, silent=True).equals(expected)
        shutil.copytree(sources / "c3.zarr", tmp_path / "x.zarr")
        shutil.rmtree(tmp_path / "x.zarr/layers/counts")
        (tmp_path / "x.zarr/layers/counts").symlink_to("../X")
        (tmp_path / "link.zarr").symlink_to("x.zarr")
        found = classify(state, tmp_path / "link.zarr", layer="counts", return_table=True, silent=True)
        assert found.equals(expected)


def test_long_messages_of_others_are_cut():
    with pytest.raises(ValueError, match=r"^x.h5 is damaged, .*RuntimeError: y{400}\.$"), naming("x.h5"):
        raise RuntimeError("y" * 10**7)


def test_json_has_a_bound():
    with pytest.raises(ValueError, match="134,217,729 bytes, where 134,217,728"):
        read_json(" " * (2**27 + 1))
