"""Sharded zarr arrays on this machine: growing ones in the smallest integer type, and slices read fast.

zarr reads a slice of a shard in about a millisecond, mostly spent on waiting for its own threads; blosc decompresses
65,536 counts in a twentieth of that. `ShardReader` does just that, for the arrays that `GrowingArray` writes.
"""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]: an extension module
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore

_COMPRESSOR = BloscCodec(cname="lz4", shuffle="bitshuffle")
_EMPTY = 2**64 - 1  # offset of a chunk of zeros, which is not stored
_CHECKSUM_BYTES = 4


class GrowingArray:
    """A sharded array to which blocks are appended.

    Parameters
    ----------
    group : zarr.Group
        Where to create it, in a local store.
    name : str
        Its name.
    chunk, shard : tuple of int
        What is read at once, and what is a file: a multiple of the chunk.

    Examples
    --------
    >>> import tempfile
    >>> with GrowingArray(zarr.create_group(tempfile.mkdtemp()), "counts", (2,), (4,)) as growing:
    ...     for block in np.split(np.arange(297, 303), 3):
    ...         growing.append(block)
    >>> str(growing.array.dtype), growing.array[:].tolist()
    ('uint16', [297, 298, 299, 300, 301, 302])
    """

    def __init__(self, group: zarr.Group, name: str, chunk: tuple[int, ...], shard: tuple[int, ...]):
        self._group, self._name, self._chunk, self._shard = group, name, chunk, shard
        self.array = self._create(np.dtype(np.uint8))
        self._waiting: list[np.ndarray] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ginseng")
        self._written: Future | None = None

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._writer:  # leaves once its thread has ended
            if kind is None and self._waiting:
                self._write(np.concatenate(self._waiting))
            if kind is None:
                self._wait()

    def append(self, values: np.ndarray) -> None:
        """Add `values` at the end; whole shards are written in the background."""
        dtype = smallest_type(values.reshape(-1), self.array.dtype)
        if dtype != self.array.dtype:
            self._wait()
            self._retype(dtype)
        self._waiting.append(values)
        if sum(map(len, self._waiting)) >= self._shard[0]:
            joined = np.concatenate(self._waiting)
            n_whole = len(joined) // self._shard[0] * self._shard[0]
            self._write(joined[:n_whole])
            self._waiting = [joined[n_whole:]]

    def _write(self, values: np.ndarray) -> None:
        self._wait()
        self._written = self._writer.submit(self.array.append, values.astype(self.array.dtype))

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _create(self, dtype: np.dtype) -> zarr.Array:
        return self._group.create_array(
            self._name,
            shape=(0, *self._chunk[1:]),
            dtype=dtype,
            chunks=self._chunk,
            shards=self._shard,
            compressors=_COMPRESSOR,
        )

    def _retype(self, dtype: np.dtype) -> None:
        """Write what there is once more in a wider type: at most a few times, mostly before there is anything."""
        store: Any = self._group.store
        path = Path(store.root) / self._group.path / self._name
        narrow = path.rename(path.with_name(f"{self._name}.narrow"))
        old: Any = zarr.open_array(narrow, mode="r")
        self.array = self._create(dtype)
        for start in range(0, old.shape[0], self._shard[0]):
            self.array.append(old[start : start + self._shard[0]].astype(dtype))
        shutil.rmtree(narrow)


class ShardReader:
    """Slices of a sharded array of one dimension, compressed by blosc, in a local store.

    Parameters
    ----------
    array : zarr.Array
        One that `reads` accepts.

    Examples
    --------
    >>> import tempfile
    >>> with GrowingArray(zarr.create_group(tempfile.mkdtemp()), "counts", (2,), (4,)) as growing:
    ...     growing.append(np.arange(7))
    >>> ShardReader(growing.array)[1:6].tolist()
    [1, 2, 3, 4, 5]
    """

    def __init__(self, array: Any):
        self.dtype = array.dtype
        self._chunk = array.chunks[0]
        self._chunks_per_shard = array.shards[0] // self._chunk
        self._length = array.shape[0]
        self._folder = Path(array.store.root) / array.path / "c"
        self._indexes: dict[int, np.ndarray] = {}

    @staticmethod
    def reads(array: Any) -> bool:
        """Whether this is such an array."""
        codecs: Any = array.metadata.codecs if array.metadata.zarr_format == 3 else ()
        return (
            isinstance(array.store, LocalStore)
            and array.ndim == 1
            and [type(codec) for codec in codecs] == [ShardingCodec]
            and [type(codec) for codec in codecs[0].codecs] == [BytesCodec, BloscCodec]
            and [type(codec) for codec in codecs[0].index_codecs] == [BytesCodec, Crc32cCodec]
            and codecs[0].index_location.value == "end"
        )

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(self._length)
        values = np.empty(max(stop - start, 0), self.dtype)
        for number in range(start // self._chunk, -(-stop // self._chunk)):
            first = number * self._chunk
            here = slice(max(start, first), min(stop, first + self._chunk))
            target = values[here.start - start : here.stop - start]
            if len(target) == self._chunk:
                self._decompress(number, target)
            else:
                chunk = np.empty(self._chunk, self.dtype)
                self._decompress(number, chunk)
                target[:] = chunk[here.start - first : here.stop - first]
        return values

    def _decompress(self, number: int, target: np.ndarray) -> None:
        shard, position = divmod(number, self._chunks_per_shard)
        if shard not in self._indexes:
            self._indexes[shard] = self._read_index(shard)
        offset, length = map(int, self._indexes[shard][position])
        if offset == _EMPTY:
            target[:] = 0
            return
        with (self._folder / str(shard)).open("rb", buffering=0) as file:
            file.seek(offset)
            blosc.decompress(file.read(length), target)

    def _read_index(self, shard: int) -> np.ndarray:
        """Offset and length of each chunk of a shard."""
        size = 16 * self._chunks_per_shard
        try:
            with (self._folder / str(shard)).open("rb") as file:
                file.seek(-size - _CHECKSUM_BYTES, 2)
                return np.frombuffer(file.read(size), "<u8").reshape(-1, 2)
        except FileNotFoundError:  # a shard of zeros
            return np.full((self._chunks_per_shard, 2), _EMPTY, dtype=np.uint64)


def smallest_type(values: np.ndarray, at_least: np.dtype) -> np.dtype:
    """Smallest integer type that holds `values` and everything that `at_least` holds; float32 if there is none.

    Examples
    --------
    >>> smallest_type(np.array([3.0, 300.0]), np.dtype("uint8"))
    dtype('uint16')
    >>> smallest_type(np.array([-1, 200]), np.dtype("uint8"))
    dtype('int16')
    >>> smallest_type(np.array([0.5]), np.dtype("uint8"))
    dtype('float32')
    """
    if at_least.kind == "f" or not len(values):
        return at_least
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        return np.dtype(np.float32)
    low, high = np.min_scalar_type(int(values.min())), np.min_scalar_type(int(values.max()))
    needed = np.result_type(low, high, at_least)
    return needed if needed.kind in "ui" and needed.itemsize <= 4 else np.dtype(np.float32)
