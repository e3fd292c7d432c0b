"""Sharded zarr arrays on this machine: growing ones in the smallest integer type, and slices read fast.

zarr reads a slice of a shard in about a millisecond, mostly spent on waiting for its own threads; blosc decompresses
65,536 counts in a twentieth of that. `ShardReader` does just that, for the arrays that `GrowingArray` writes.
"""

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]: an extension module
from numcodecs.checksum32 import CRC32C
from zarr.codecs import BloscCodec, Crc32cCodec

from ginseng.data.typed import folder_of

_SMALLEST = np.dtype(np.uint8)
_COMPRESSORS = (BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec())
_EMPTY = 2**64 - 1  # offset of a chunk that holds nothing but the fill value, and is not stored
_CHECKSUM, _CHECKSUM_BYTES = CRC32C(location="end"), 4


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
    dtype : numpy.dtype
        Type to begin with.
    fill_value : int
        What is read in place of a file that has gone.

    Examples
    --------
    >>> import tempfile
    >>> with GrowingArray(zarr.create_group(tempfile.mkdtemp()), "counts", (2,), (4,)) as growing:
    ...     for block in np.split(np.arange(297, 303), 3):
    ...         growing.append(block)
    >>> str(growing.array.dtype), growing.array[:].tolist()
    ('uint16', [297, 298, 299, 300, 301, 302])
    """

    def __init__(
        self,
        group: zarr.Group,
        name: str,
        chunk: tuple[int, ...],
        shard: tuple[int, ...],
        dtype: np.dtype = _SMALLEST,
        fill_value: int = 0,
    ):
        self._group, self._name, self._chunk, self._shard = group, name, chunk, shard
        self._fill_value = fill_value
        self.array = self._create(dtype)
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
            compressors=_COMPRESSORS,
            fill_value=self._fill_value,
            config={"write_empty_chunks": True},
        )

    def _retype(self, dtype: np.dtype) -> None:
        """Write what there is once more in a wider type: at most a few times, mostly before there is anything."""
        path = folder_of(self.array)
        assert path is not None, "arrays grow in local stores"
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
        self._fill_value = array.fill_value
        self._has_checksums = len(_codecs(array)["codecs"]) == 3
        self._is_whole = np.zeros(-(-array.shape[0] // array.chunks[0]), bool)  # chunks whose checksum was found right
        self._folder = f"{folder_of(array)}/c"
        self._indexes: dict[int, np.ndarray] = {}

    @staticmethod
    def reads(array: Any) -> bool:
        """Whether this is such an array."""
        if folder_of(array) is None or array.ndim != 1 or array.metadata.zarr_format != 3:
            return False
        sharding = _codecs(array)
        names = [[codec["name"] for codec in sharding.get(key, ())] for key in ("codecs", "index_codecs")]
        of_chunks = (["bytes", "blosc"], ["bytes", "blosc", "crc32c"])
        return names[0] in of_chunks and names[1] == ["bytes", "crc32c"] and sharding.get("index_location") == "end"

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(self._length)
        values = np.empty(max(stop - start, 0), self.dtype)
        self.read(start, values)
        return values

    def read(self, start: int, target: np.ndarray) -> None:
        """Read the values from `start` on into `target`, as many as it holds, in its type."""
        while len(target):
            shard, first = divmod(start, self._chunk * self._chunks_per_shard)
            n_values = min(len(target), self._chunk * self._chunks_per_shard - first)
            self._read_shard(shard, first, target[:n_values])
            start, target = start + n_values, target[n_values:]

    def _read_shard(self, shard: int, start: int, target: np.ndarray) -> None:
        try:
            if shard not in self._indexes:
                self._indexes[shard] = self._read_index(shard)
            numbers = range(start // self._chunk, -(-(start + len(target)) // self._chunk))
            places = self._indexes[shard][numbers.start : numbers.stop].tolist()
            stored = [(offset, offset + length) for offset, length in places if offset != _EMPTY]
            begin = min((offset for offset, _ in stored), default=0)  # in one piece: there is hardly a gap
            content = memoryview(self._read_bytes(shard, begin, max((end for _, end in stored), default=0) - begin))
            chunk = np.empty(self._chunk, self.dtype)
            for number, (offset, length) in zip(numbers, places, strict=True):
                first = number * self._chunk - start
                here = slice(max(first, 0), min(first + self._chunk, len(target)))
                if offset == _EMPTY:
                    target[here] = self._fill_value
                else:
                    stored_chunk = content[offset - begin : offset - begin + length]
                    self._decompress(stored_chunk, shard * self._chunks_per_shard + number, chunk)
                    target[here] = chunk[here.start - first : here.stop - first]
        except (OSError, RuntimeError, ValueError) as error:
            raise OSError(f"{self._file(shard)} is damaged ({error}). Create the dataset anew.") from error

    def _decompress(self, stored: memoryview, number: int, chunk: np.ndarray) -> None:
        """Decompress a chunk, which is compared with its checksum the first time."""
        if self._has_checksums and not self._is_whole[number]:
            _CHECKSUM.decode(stored)
            self._is_whole[number] = True
        blosc.decompress(stored[:-_CHECKSUM_BYTES] if self._has_checksums else stored, chunk)

    def _file(self, shard: int) -> str:
        return f"{self._folder}/{shard}"

    def _read_bytes(self, shard: int, offset: int, length: int) -> bytes:
        file = os.open(self._file(shard), os.O_RDONLY)
        try:
            return os.pread(file, length, offset)
        finally:
            os.close(file)

    def _read_index(self, shard: int) -> np.ndarray:
        """Offset and length of each chunk of a shard."""
        size = 16 * self._chunks_per_shard + _CHECKSUM_BYTES
        n_bytes = Path(self._file(shard)).stat().st_size
        if n_bytes < size:
            raise ValueError(f"{n_bytes} bytes are too few")
        index: Any = _CHECKSUM.decode(self._read_bytes(shard, n_bytes - size, size))
        return np.frombuffer(index, "<u8").reshape(-1, 2)


def _codecs(array: Any) -> dict[str, Any]:
    """Settings of the sharding of an array; none if it is not sharded."""
    (outermost, *_) = array.metadata.to_dict()["codecs"]
    return outermost.get("configuration", {})


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
