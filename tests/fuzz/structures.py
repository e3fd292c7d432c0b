"""Damage that is well formed: what a hostile or a faulty writer would have written."""

import functools
import gzip
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr

from ginseng.utils.digest import digest
from ginseng.utils.hdf5 import contents_digest

_CHUNK_OF_BOMB = 2**26
_BOMB_CHUNKS = 24  # 1.5 GiB, of 1.5 MiB
_DTYPES = ["float64", "float32", "float16", "int8", "uint8", "int64", "uint64", "bool", "complex64", "S3", ">i4"]
_ENCODINGS = [
    ("csr_matrix", "0.1.0"),
    ("csc_matrix", "0.1.0"),
    ("array", "0.2.0"),
    ("categorical", "0.2.0"),
    ("nullable-integer", "0.1.0"),
    ("nullable-boolean", "0.1.0"),
    ("string-array", "0.2.0"),
    ("string", "0.2.0"),
    ("numeric-scalar", "0.2.0"),
    ("rec-array", "0.2.0"),
    ("awkward-array", "0.1.0"),
    ("dataframe", "0.2.0"),
    ("dict", "0.1.0"),
    ("null", "0.1.0"),
    ("raw", "0.1.0"),
    ("anndata", "0.1.0"),
    ("csr_matrix", "9.9.9"),
    ("", ""),
]
_TEXT = ["", "x", "é", "\0", "../../canary", "\ud800", "a" * 100_000, "__import__('os').system('true')", "NaN", "-1"]


def odd(rng: random.Random) -> Any:
    """A value that is not expected, of those that JSON has."""
    numbers = [0, 1, -1, 2, 255, 10**6, 10**9, 10**12, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308]
    others = [None, True, False, [], {}, [1], ["a"], [[1, 2], [3]], {"a": 1}, [None], float("nan"), float("inf")]
    return rng.choice([rng.choice(numbers), rng.choice(others), rng.choice(_TEXT)])


def extremes(values: np.ndarray, rng: random.Random) -> np.ndarray:
    """Values of which some are at the ends of their type, or of what is expected."""
    values = np.array(values)
    if not values.size:
        return values
    flat = values.reshape(-1)
    how = rng.choice(["one", "one", "one", "all", "reversed", "shuffled", "few"])
    if how == "reversed":
        flat[:] = flat[::-1].copy()
    elif how == "shuffled":
        flat[:] = flat[np.random.default_rng(rng.getrandbits(32)).permutation(len(flat))]
    else:
        where = slice(None) if how == "all" else [rng.randrange(len(flat)) for _ in range(1 if how == "one" else 5)]
        flat[where] = _extreme(values.dtype, rng)
    return values


def _extreme(dtype: np.dtype, rng: random.Random) -> Any:
    if dtype.kind == "f":
        return rng.choice([np.nan, np.inf, -np.inf, -1.0, np.finfo(dtype).max, np.finfo(dtype).tiny, 0.5])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.choice([info.min, info.max, max(info.min, -1), 0, 11, 12, 13, 24, 100, min(info.max, 10**9)])
    if dtype.kind == "b":
        return rng.random() < 0.5
    return rng.choice([b"", b"\xff\xfe", b"A" * 300]) if dtype.kind == "S" else rng.choice(["", "x", "a\nb"])


def resized(values: np.ndarray, rng: random.Random) -> np.ndarray:
    """The same of another shape."""
    shapes: list[Callable[[], np.ndarray]] = [
        lambda: values[:-1],
        lambda: np.concatenate([values, values[:1]]),
        lambda: values[:0],
        lambda: np.concatenate([values, values]),
        lambda: values[None],
        lambda: values.T.copy(),
        lambda: np.asarray(values.reshape(-1)[0]),
        lambda: values.reshape(-1),
    ]
    return rng.choice(shapes)() if values.ndim else rng.choice([values[None], values[None, None]])


# HDF5


def hdf5(path: Path, canary: Path, rng: random.Random) -> str:
    """Change an HDF5 file in one or two places."""
    told = []
    with h5py.File(path, "r+") as file:
        for _ in range(rng.choice([1, 1, 1, 2])):
            names: list[str] = []
            file.visit(names.append)
            name = rng.choice(sorted(names))
            change = rng.choice(_OF_HDF5)
            told.append(f"{name}: {change.__name__.strip('_')} {change(file, name, canary, rng)}")
    return "; ".join(told)


def _put(file: h5py.File, name: str, values: Any, **options: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=values, **options)
    file[name].attrs.update(attributes)


def _a_dataset(file: h5py.File, name: str, rng: random.Random) -> str:
    """The name itself, or that of a dataset within the group."""
    if isinstance(file[name], h5py.Dataset):
        return name
    inner: list[str] = []
    file[name].visititems(lambda n, item: inner.append(n) if isinstance(item, h5py.Dataset) else None)
    return f"{name}/{rng.choice(sorted(inner))}"


def _h5_values(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    name = _a_dataset(file, name, rng)
    item = file[name]
    values = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
    item[...] = extremes(np.asarray(values), rng)
    return name


def _h5_shape(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    name = _a_dataset(file, name, rng)
    values = resized(np.asarray(file[name][()]), rng)
    _put(file, name, values, dtype=file[name].dtype)
    return f"{name} {values.shape}"


def _h5_dtype(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    name, dtype = _a_dataset(file, name, rng), rng.choice([*_DTYPES, "str", "compound", "reference", "opaque"])
    values = np.asarray(file[name][()])
    if dtype == "str":
        _put(file, name, values.astype(str).astype(object), dtype=h5py.string_dtype())
    elif dtype == "compound":
        _put(file, name, np.zeros(values.shape, [("a", "<i4"), ("b", "<f4")]))
    elif dtype == "reference":
        _put(file, name, np.full(values.shape, file.ref, h5py.ref_dtype), dtype=h5py.ref_dtype)
    elif dtype == "opaque":
        _put(file, name, np.zeros(values.shape, "V4"))
    else:
        _put(file, name, np.zeros(values.shape, dtype) if values.dtype.kind == "O" else values.astype(dtype))
    return f"{name} {dtype}"


def _h5_attribute(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    item = rng.choice([file, file[name]])
    known = sorted(item.attrs)
    attribute = rng.choice([*known, "encoding-type", "shape", "digest", "_index", "column-order"])
    how = rng.choice(["deleted", "bytes", "odd", "list"])
    if how == "deleted":
        item.attrs.pop(rng.choice(known), None)
    elif how == "bytes":
        item.attrs[attribute] = np.bytes_(b"\xff\xfe\x80")
    else:
        value = odd(rng)
        item.attrs[attribute] = h5py.Empty("f4") if value is None else [value] * 3 if how == "list" else value
    return f"{attribute} {how}"


def _h5_encoding(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    encoding = rng.choice(_ENCODINGS)
    file[name].attrs.update(dict(zip(("encoding-type", "encoding-version"), encoding, strict=True)))
    return str(encoding)


def _h5_absurd(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    """Declared sizes of which nothing is stored: HDF5 reads fill values."""
    name = _a_dataset(file, name, rng)
    item, size = file[name], rng.choice([2**31, 2**33, 2**40, 2**62])
    attributes, dtype = dict(item.attrs), item.dtype
    shape = (size, *item.shape[1:]) if item.ndim else (size,)
    del file[name]
    file.create_dataset(name, shape=shape, dtype=dtype, chunks=tuple(min(n, 64) or 1 for n in shape))
    file[name].attrs.update(attributes)
    return f"{name} {shape}"


def _h5_bomb(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    """Gigabytes of zeros in kilobytes."""
    name = _a_dataset(file, name, rng)
    dtype = file[name].dtype
    dtype = dtype if dtype.kind in "iuf" else np.dtype("S1")
    attributes, per_chunk = dict(file[name].attrs), _CHUNK_OF_BOMB // dtype.itemsize
    del file[name]
    options = {"chunks": (per_chunk,), "compression": "gzip"}
    bomb = file.create_dataset(name, shape=(_BOMB_CHUNKS * per_chunk,), dtype=dtype, **options)
    for number in range(_BOMB_CHUNKS):
        bomb.id.write_direct_chunk((number * per_chunk,), _compressed_zeros())
    bomb.attrs.update(attributes)
    return name


@functools.cache
def _compressed_zeros() -> bytes:
    return zlib.compress(bytes(_CHUNK_OF_BOMB))


def _h5_external(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    del file[name]
    file[name] = h5py.ExternalLink(str(canary), f"/{name}")
    return "link"


def _h5_virtual(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    name = _a_dataset(file, name, rng)
    attributes, item = dict(file[name].attrs), file[name]
    layout = h5py.VirtualLayout(item.shape, item.dtype)
    layout[...] = h5py.VirtualSource(str(canary), name, item.shape, item.dtype)
    del file[name]
    file.create_virtual_dataset(name, layout)
    file[name].attrs.update(attributes)
    return name


def _h5_external_storage(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    name = _a_dataset(file, name, rng)
    item, attributes = file[name], dict(file[name].attrs)
    n_bytes, shape, dtype = item.size * item.dtype.itemsize, item.shape, item.dtype
    del file[name]
    file.create_dataset(name, shape=shape, dtype=dtype, external=[(str(canary), 0, n_bytes)])
    file[name].attrs.update(attributes)
    return name


def _h5_link(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    how = rng.choice(["to itself", "to the root", "hard, to the root", "dangling", "to another"])
    others: list[str] = []
    file.visit(others.append)
    other = rng.choice(sorted(others))
    target = file["/"] if how.startswith("hard") else None
    del file[name]
    path = {"to itself": f"/{name}", "to the root": "/", "dangling": "/nowhere", "to another": f"/{other}"}
    file[name] = target if target is not None else h5py.SoftLink(path[how])
    return f"{how} {other if how == 'to another' else ''}"


def _h5_kind(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    attributes, is_group = dict(file[name].attrs), isinstance(file[name], h5py.Group)
    del file[name]
    if is_group:
        file[name] = np.zeros(3)
    else:
        file.create_group(name)["data"] = np.zeros(3)
    file[name].attrs.update(attributes)
    return "group and dataset changed"


def _h5_delete(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    del file[name]
    return ""


def _h5_rename(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    parent, _, last = name.rpartition("/")
    new = rng.choice([b"\xff\xfe", last.upper().encode(), b"x" * 2000, b" ", last.encode() + b"\n", b"\xed\xa0\x80"])
    group = file[parent or "/"]
    group.id.links.move(last.encode(), new)
    return repr(new)[:40]


def _h5_further(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    group = file[name] if isinstance(file[name], h5py.Group) else file
    new = rng.choice([b"\xff\xfe", b"10", b"-1", b"x" * 2000, b"W", b"shape", b"categories", b"matrix", b"params"])
    h5py.h5g.create(group.id, new)
    return repr(new)[:40]


def _h5_deep(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    del file[name]
    group = file.create_group(name)
    for _ in range(1500):
        group = group.create_group("a")
    return "nested"


def _h5_swap(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    others: list[str] = []
    file.visit(others.append)
    other = rng.choice([o for o in sorted(others) if not o.startswith(name) and not name.startswith(o)])
    file.move(name, "swapped")
    file.move(other, name)
    file.move("swapped", other)
    return other


def _h5_text(file: h5py.File, name: str, canary: Path, rng: random.Random) -> str:
    """JSON of the wrong kind, where text is stored; names that are none elsewhere."""
    name = _a_dataset(file, name, rng)
    item = file[name]
    if item.shape == () and h5py.check_string_dtype(item.dtype):
        _put(file, name, changed_json(str(item.asstr()[()]), rng))
        return f"{name}: JSON"
    _put(file, name, np.array([rng.choice([b"\xff\xfe", b"", b"a"])] * max(1, item.size), "S2").reshape(item.shape))
    return name


_OF_HDF5 = [
    *[_h5_values, _h5_values, _h5_values, _h5_shape, _h5_shape, _h5_dtype, _h5_dtype, _h5_attribute, _h5_attribute],
    *[_h5_encoding, _h5_absurd, _h5_bomb, _h5_external, _h5_virtual, _h5_external_storage, _h5_link, _h5_kind],
    *[_h5_delete, _h5_rename, _h5_further, _h5_deep, _h5_swap, _h5_text],
]


# zarr


def store(path: Path, canary: Path, rng: random.Random) -> str:
    """Change a zarr store in one or two places."""
    changes = [rng.choice(_OF_STORES) for _ in range(rng.choice([1, 1, 1, 2]))]
    changes = [change for change in changes if change not in _NO_FILES] or changes[:1]
    return "; ".join(f"{change.__name__.strip('_')} {change(path, canary, rng)}" for change in changes)


def _metadata(path: Path, canary: Path, rng: random.Random) -> str:
    names = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
    files = sorted(file for file in path.rglob("*") if file.name in names)
    file = path / files[0].name if rng.random() < 0.3 else rng.choice(files)
    file.write_text(changed_json(file.read_text(), rng))
    return str(file.relative_to(path))


def changed_json(text: str, rng: random.Random) -> str:
    """A text of JSON in which one value is another, has gone, is there twice, or is nested deeply."""
    how = rng.choice(["value", "value", "value", "value", "gone", "list", "deep", "other", "number"])
    if how == "deep":
        return "[" * 100_000 + "]" * 100_000
    if how == "other":
        return rng.choice(["", "[]", "{}", "5", "null", "NaN", '"x"', "{", "[1, 2", '{"a": 1}', "true"])
    tree = json.loads(text)
    places = _places(tree)
    if not places:
        return json.dumps(odd(rng))
    parent, key = rng.choice(places)
    if how == "list":
        lists = [place for place in places if isinstance(place[0][place[1]], list)]
        parent, key = rng.choice(lists or places)
    value = parent[key]
    if how == "gone":
        del parent[key]
    elif isinstance(value, list) and how == "list":
        parent[key] = rng.choice(
            [value[:-1], [*value, *value[:1]], value[::-1], value * 2, [value], dict(enumerate(value))]
        )
    elif how == "number" and isinstance(value, int | float):
        parent[key] = rng.choice([value + 1, value - 1, -value, value * 10**6, value * 10**12, 0, str(value)])
    else:
        parent[key] = odd(rng)
    return json.dumps(tree)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """All places in a tree: container and key."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in entries for place in ((tree, key), *_places(value))]


def _arrays(path: Path) -> list[Path]:
    return sorted(
        file.parent
        for file in path.rglob("*")
        if file.name == ".zarray" or (file.name == "zarr.json" and '"node_type": "array"' in file.read_text())
    )


def _array_values(path: Path, canary: Path, rng: random.Random) -> str:
    where = rng.choice(_arrays(path))
    array: Any = zarr.open_array(where, mode="r+")
    array[...] = extremes(np.asarray(array[...]), rng)
    return str(where.relative_to(path))


def _array_anew(path: Path, canary: Path, rng: random.Random) -> str:
    """Another shape or type, with the attributes that the array had."""
    where = rng.choice(_arrays(path))
    array: Any = zarr.open_array(where, mode="r")
    values, attributes = np.asarray(array[...]), dict(array.attrs)
    if rng.random() < 0.5:
        values = resized(values, rng)
    elif values.dtype.kind in "iufb":
        values = values.astype(rng.choice(_DTYPES[:-1]))
    else:
        values = np.arange(values.size, dtype=rng.choice(["int64", "float32"])).reshape(values.shape)
    shutil.rmtree(where)
    zarr.create_array(where, data=values, attributes=attributes, zarr_format=array.metadata.zarr_format)
    return f"{where.relative_to(path)} {values.dtype} {values.shape}"


def _symbolic_link(path: Path, canary: Path, rng: random.Random) -> str:
    """In place of a file or folder: to the same of another store, to what never ends, to itself."""
    inside = sorted(path.rglob("*"))
    item = rng.choice(inside)
    target = rng.choice([canary / item.relative_to(path)] * 4 + [Path("/dev/zero"), item, path])
    if item.is_dir():
        shutil.rmtree(item)
    else:
        item.unlink()
    item.symlink_to(target)
    return f"{item.relative_to(path)} to {'the canary' if canary in target.parents else target.name}"


def _no_file(path: Path, canary: Path, rng: random.Random) -> str:
    """A pipe, or a folder, in place of a file."""
    item = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    item.unlink()
    kind = rng.choice(["pipe", "folder"])
    item.mkdir() if kind == "folder" else os.mkfifo(item)
    return f"{item.relative_to(path)} is a {kind}"


def _absurd_shape(path: Path, canary: Path, rng: random.Random) -> str:
    """Sizes, of an array or of its chunks, of which nothing is stored."""
    where = rng.choice(_arrays(path))
    file = where / (".zarray" if (where / ".zarray").exists() else "zarr.json")
    told, size = json.loads(file.read_text()), rng.choice([2**31, 2**33, 2**40, 2**62])
    if rng.random() < 0.6:
        told["shape"] = [size, *told["shape"][1:]]
    if rng.random() < 0.6:
        if "chunks" in told:
            told["chunks"] = [size, *told["chunks"][1:]]
        else:
            told["chunk_grid"]["configuration"]["chunk_shape"] = [size, *told["shape"][1:]]
    file.write_text(json.dumps(told))
    return f"{where.relative_to(path)} {size}"


def _moved(path: Path, canary: Path, rng: random.Random) -> str:
    """Two members of the store have changed places."""
    folders = sorted(item for item in path.rglob("*") if item.is_dir() and (item.parent / "zarr.json").exists())
    folders = folders or sorted(item for item in path.rglob("*") if item.is_dir())
    first, second = rng.sample(folders, 2)
    if first in second.parents or second in first.parents:
        return "none"
    first.rename(path / "swapped")
    second.rename(first)
    (path / "swapped").rename(second)
    return f"{first.relative_to(path)} and {second.relative_to(path)}"


_OF_STORES = [
    *[
        _metadata,
        _metadata,
        _metadata,
        _metadata,
        _array_values,
        _array_values,
        _array_values,
        _array_anew,
        _array_anew,
    ],
    *[_symbolic_link, _symbolic_link, _no_file, _absurd_shape, _moved],
]


_NO_FILES = [_symbolic_link, _no_file]  # alone, since the next change would wait for them


# Text, and what is compressed


def text(path: Path, canary: Path, rng: random.Random) -> str:
    """Change lines and fields of a text, plain or compressed; or what is in place of it."""
    is_compressed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if is_compressed else path.read_bytes()
    change = rng.choice(_OF_TEXTS)
    content = change(content, rng)
    if is_compressed and rng.random() < 0.1:
        line = content[-20:] or b"0\n"
        member = gzip.compress(line * (_CHUNK_OF_BOMB // len(line)), mtime=0)
        path.write_bytes(gzip.compress(content, mtime=0) + member * _BOMB_CHUNKS)
        return "goes on for gigabytes"
    path.write_bytes(gzip.compress(content, mtime=0) if is_compressed else content)
    return f"{path.name}: {change.__name__.strip('_')}"


def _field(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = 0 if rng.random() < 0.3 else rng.randrange(len(lines))
    separator = next((sep for sep in (b"\t", b",", b" ") if sep in lines[number]), b" ")
    fields = lines[number].split(separator)
    value = odd(rng)
    new = (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "surrogatepass")
    fields[rng.randrange(len(fields))] = rng.choice([new, b"", b"\xff\xfe", b'"', b"1" * 400, b"99999999999"])
    lines[number] = separator.join(fields)
    return b"\n".join(lines)


def _lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    changes = [
        lambda: lines[:number] + lines[number + 1 :],
        lambda: [*lines[:number], lines[number], *lines[number:]],
        lambda: lines[::-1],
        lambda: [*lines[:number], b"", *lines[number:]],
        lambda: [*lines, *lines],
        lambda: [*lines[:number], b"a,b\tc d" * 3, *lines[number:]],
        lambda: [line + b"\r" for line in lines],
        lambda: [b"\xef\xbb\xbf" + lines[0], *lines[1:]],
    ]
    return b"\n".join(rng.choice(changes)())


def _numbers(content: bytes, rng: random.Random) -> bytes:
    """One number of the text is another."""
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    if not places:
        return content
    place = rng.choice(places)
    return content[:place] + rng.choice([b"-", b"9" * 12, b"1e300", b"nan", b"0", b"."]) + content[place + 1 :]


def _json_line(content: bytes, rng: random.Random) -> bytes:
    """JSON within a line is another."""
    lines = content.split(b"\n")
    for number, line in enumerate(lines):
        start = line.find(b"{")
        if start >= 0 and line.rstrip().endswith(b"}"):
            lines[number] = line[:start] + changed_json(line[start:].decode(), rng).encode("utf-8", "surrogatepass")
            return b"\n".join(lines)
    return _field(content, rng)


_OF_TEXTS = [_field, _field, _lines, _numbers, _json_line, _json_line]


def parquet(path: Path, canary: Path, rng: random.Random) -> str:
    """Another table in place of one."""
    table = pd.read_parquet(path)
    how = rng.choice(["mark", "column", "types", "index", "twice", "wide"])
    if how == "mark":
        table.attrs = json.loads(changed_json(json.dumps(table.attrs), rng)) or {}
    elif how == "column":
        table = table.drop(columns=rng.choice(list(table)))
    elif how == "types":
        table = table.astype(str)
    elif how == "index":
        table = table.reset_index(drop=True)
    elif how == "twice":
        table = pd.concat([table, table])
    else:
        table = table.assign(**{f"column {i}": [[1, 2]] * len(table) for i in range(3)})
    table.to_parquet(path)
    return how


def unsigned(path: Path) -> None:
    """Make the digests those of what is there now, or leave them out where that is allowed, as another writer might."""
    if any(not (item.is_file() or item.is_dir()) or item.is_symlink() for item in path.rglob("*")):
        raise ValueError("what is read would not end")
    if path.suffix == ".eqx":
        _, first, leaves = path.read_bytes().split(b"\n", 2)
        signed = digest(np.frombuffer(first, np.uint8), np.frombuffer(leaves, np.uint8)).encode()
        path.write_bytes(b"\n".join([signed, first, leaves]))
    elif path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            for name in ("metadata", "calibration"):
                if name in file:
                    file[name].attrs.pop("digest", None)
    elif path.name == "run":
        with h5py.File(path / "checkpoint.h5", "r+") as file:
            file.attrs["digest"] = contents_digest(file, ("description", "records", "leaves"))
    else:
        for name in ("", "split"):
            group = zarr.open_group(path / name, mode="r+", use_consolidated=False)
            for key in ("digest", "columns"):
                if key in group.attrs:
                    del group.attrs[key]
