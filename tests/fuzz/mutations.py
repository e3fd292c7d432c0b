"""Damage that a seed decides: bytes of files, files of stores, and, in `structures`, what is well formed."""

import random
import shutil
from pathlib import Path

from tests.fuzz import structures


def mutate(path: Path, canary: Path, others: list[Path], rng: random.Random) -> tuple[str, bool]:
    """Damage what is at `path`; tell how, and whether the format's digests are, lawfully, those of what is there now.

    Parameters
    ----------
    path : Path
        A copy of a file or folder of the corpus.
    canary : Path
        Another copy, which must not be opened.
    others : list of Path
        Files that may take the place of one.
    rng : random.Random
        Decides everything.
    """
    if rng.random() < 0.5:
        files = files_in(path)
        file = rng.choice(files)
        change = rng.choice(_OF_BYTES)
        told = change(file, files, others, rng)
        return f"{file.relative_to(path.parent)}: {told}", change is _replace and file == path
    told = ""
    for _ in range(100):
        try:
            told = told or _of_structure(path, canary, rng)
        except Exception:  # what cannot be made so: something else is
            continue
    # Digests of X are zarr's own, and those of a model are in its metadata, which ginseng 0.2.1 does not write.
    is_signed = rng.random() < 0.5 or any(of in told for of in ("array_values X", "array_anew X", "metadata: h5_"))
    if is_signed:
        try:
            structures.unsigned(path)
        except Exception:  # of what is no such file any more
            is_signed = False
    return f"{told or 'several attempts'}{', with digests of that' if is_signed else ''}", is_signed


def _of_structure(path: Path, canary: Path, rng: random.Random) -> str:
    if path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return structures.store(path, canary, rng)
    file = rng.choice(files_in(path))
    canary = canary / file.relative_to(path) if path.is_dir() else canary
    if file.suffix in (".h5", ".h5ad"):
        return structures.hdf5(file, canary, rng)
    return structures.parquet(file, canary, rng) if file.suffix == ".parquet" else structures.text(file, canary, rng)


def files_in(path: Path) -> list[Path]:
    """The file, or those in the folder, in an order that is always the same."""
    return sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]


def _flip(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    n_bits = rng.choice([1, 1, 1, 2, 8, 64]) if content else 0
    places = [rng.randrange(8 * len(content)) for _ in range(n_bits)]
    for place in places:
        content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)
    return f"bits {places[:3]} flipped"


def _overwrite(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    start, n = _block(content, rng)
    kind = rng.choice(["zeros", "ones", "noise"])
    content[start : start + n] = {"zeros": bytes(n), "ones": b"\xff" * n, "noise": rng.randbytes(n)}[kind]
    file.write_bytes(content)
    return f"{n} bytes at {start} are {kind}"


def _cut(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    content = file.read_bytes()
    n = rng.choice([0, len(content) - 1, rng.randrange(len(content) + 1)])
    file.write_bytes(content[: max(n, 0)])
    return f"cut to {n} of {len(content)} bytes"


def _remove(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    content = file.read_bytes()
    start, n = _block(content, rng)
    file.write_bytes(content[:start] + content[start + n :])
    return f"{n} bytes at {start} removed"


def _repeat(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    content = file.read_bytes()
    start, n = _block(content, rng)
    file.write_bytes(content[: start + n] + content[start:])
    return f"{n} bytes at {start} twice"


def _swap(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    (first, n), (second, _) = _block(content, rng), _block(content, rng)
    n = min(n, len(content) - second, abs(second - first))
    here, there = content[first : first + n], content[second : second + n]
    content[first : first + n], content[second : second + n] = there, here
    file.write_bytes(content)
    return f"{n} bytes at {first} and {second} swapped"


def _append(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    with file.open("ab") as opened:
        n = opened.write(rng.randbytes(rng.randrange(1, 200)))
    return f"{n} bytes appended"


def _replace(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    other = rng.choice([*files, *rng.sample(others, 1)])
    content = other.read_bytes()
    file.write_bytes(content)
    return f"replaced by {'/'.join(other.parts[-3:])}"


def _delete(file: Path, files: list[Path], others: list[Path], rng: random.Random) -> str:
    whole_folder = len(files) > 1 and rng.random() < 0.3
    if not whole_folder:
        file.unlink()
        return "deleted"
    shutil.rmtree(file.parent)
    return "deleted with its folder"


def _block(content: bytes | bytearray, rng: random.Random) -> tuple[int, int]:
    """Where a block starts, and how long it is: of a few bytes, or of a size on which file systems and HDF5 work."""
    start = rng.randrange(len(content)) if content else 0
    n = rng.choice([1, 4, 8, 64, 512, 4096])
    return start // n * n if rng.random() < 0.5 else start, min(n, len(content) - start)


_OF_BYTES = [
    _flip,
    _flip,
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _remove,
    _repeat,
    _swap,
    _append,
    _replace,
    _delete,
]
