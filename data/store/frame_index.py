"""Where every frame of a prepared set lies, so that reading a clip costs the bytes of its frames, not of whole records.

A shard is an ArrayRecord file of uncompressed records, so it holds the bytes of a frame as they are. ArrayRecord is
built on Riegeli (doc/riegeli_records_file_format.md), which puts a block header at the beginning of every 64 KiB.
Positions here do not count these headers.

The alternative, an ArrayRecord entry for each frame, takes 0.2 ms more of a core for the 16 frames of a clip [ours].
That is 6 % of reading and decoding a clip of JPEG frames, but a third of reading one of coefficients.
"""

import functools
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from console.errors import UserError
from data.store import digests

NAME = "frames.npy"
ENTRY = np.dtype([("start", "<i8"), ("num_bytes", "<u4"), ("checksum", "<u4")])  # CRC-32
BLOCK = 2**16
BLOCK_HEADER = 24
_PREFIX = 64  # bytes of a record that are looked for behind the header of its chunk, which is shorter than this
_MAX_OPEN = 256  # [ours] files of a process, well below the 1024 that Linux allows


class DamagedFrame(UserError):
    """The bytes in a shard are not those that were written."""


def of_shard(shard: Path) -> np.ndarray:
    """ENTRY[frames of all records, in their order]: where the frames of a finished shard lie."""
    reader = array_record_module.ArrayRecordReader(str(shard))
    entries, end = [], 0
    with open(shard, "rb", buffering=0) as file:
        for index in range(reader.num_records()):
            (record,) = reader.read([index])
            start = end + read(file.fileno(), end, 4 * _PREFIX).index(record[:_PREFIX])
            offset = 0
            for frame in tf_example_pb2.Example.FromString(record).features.feature["frames"].bytes_list.value:
                offset = record.index(frame, offset)
                entries.append((start + offset, len(frame), zlib.crc32(frame)))
                offset += len(frame)
            end = start + len(record)
        for start, num_bytes, checksum in entries:
            assert zlib.crc32(read(file.fileno(), start, num_bytes)) == checksum, (shard, start)
    return np.array(entries, ENTRY)


def read(file: int, start: int, num_bytes: int) -> bytes:
    """Bytes of an open file (its descriptor) without its block headers; fewer than asked for at its end.

    `start` and `num_bytes` do not count the headers.
    """
    first, last = _in_file(start), _in_file(start + num_bytes - 1)
    found = os.pread(file, last + 1 - first, first)
    next_block = -first % BLOCK
    if next_block >= len(found):
        return found
    parts = [found[:next_block]]
    parts += [found[i + BLOCK_HEADER : i + BLOCK] for i in range(next_block, len(found), BLOCK)]
    return b"".join(parts)


def _in_file(position: int) -> int:
    return position + BLOCK_HEADER * (position // (BLOCK - BLOCK_HEADER) + 1)


class Frames:
    """Reads stored frames. Picklable: every process opens its files when it first reads them."""

    def __init__(
        self, directory: Path, shards: Sequence[tuple[str, int]], num_frames: np.ndarray, sha256: str | None = None
    ):
        """Opens nothing.

        Args:
          directory: of the set.
          shards: (file name, records) in the order of the records.
          num_frames: int[records].
          sha256: of the file of entries. Its checksums vouch for the shards, so with it no other set is read that is
            put in the place of this one. None if it is unknown.
        """
        self._directory, self._shard_names = directory, [name for name, _ in shards]
        self._first_record = np.cumsum([0, *(records for _, records in shards)])
        self._first_frame = np.cumsum(num_frames, dtype=np.int64) - num_frames  # (records,)
        self._num_frames = int(np.sum(num_frames, dtype=np.int64))
        self._unchanged = digests.Unchanged(directory / NAME, sha256)
        self.reopen()

    def reopen(self) -> None:
        """Forgets the open files, which may have become stale."""
        # The cache holds files, not descriptors, so a file that falls out stays open for a thread that still reads it.
        self._file = functools.lru_cache(_MAX_OPEN)(lambda name: io.FileIO(self._directory / name))
        self._index = functools.cache(self._open_index)

    def _open_index(self) -> tuple[io.FileIO, int, tuple[int, int]]:
        """The file of entries, where they begin, and its state.

        Not mapped: if others shortened the file, this process would die.
        """
        path = self._directory / NAME
        file = io.FileIO(path)
        state = digests.state_of(file.fileno())
        self._unchanged.check()
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise UserError("its format is not that of version 1.0")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except OSError:
            raise
        except Exception as error:  # NumPy's own, or those of Python's parser, by which NumPy reads the header
            raise DamagedFrame(f"{path} has changed: {error}") from error
        start = file.tell()
        whole = dtype == ENTRY and os.fstat(file.fileno()).st_size == start + self._num_frames * ENTRY.itemsize
        if not whole or shape != (self._num_frames,):
            raise DamagedFrame(f"{path} has changed: it does not hold {self._num_frames} entries")
        return file, start, state

    def _entries(self, record: int, frames: Sequence[int]) -> list[tuple[int, int, int]]:
        numbers = np.asarray(frames)
        first = int(numbers.min())
        entries = np.zeros(int(numbers.max()) + 1 - first, ENTRY)
        file, start, state = self._index()
        if digests.state_of(file.fileno()) != state:
            raise DamagedFrame(f"{self._directory / NAME} has changed since it was opened")
        position = start + ENTRY.itemsize * (int(self._first_frame[record]) + first)
        if os.preadv(file.fileno(), [entries], position) != entries.nbytes:
            raise DamagedFrame(f"{self._directory / NAME} has changed: it has lost its end")
        return entries[numbers - first].tolist()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_index")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self.reopen()

    def read(self, record: int, frames: Sequence[int]) -> list[bytes]:
        """The stored bytes of frames of a record.

        Raises:
          DamagedFrame: they are not those that were written.
          OSError: the file system does not give them.
        """
        shard = int(np.searchsorted(self._first_record, record, side="right")) - 1
        file = self._file(self._shard_names[shard])
        entries = self._entries(record, frames)
        found, file_bytes = [], os.fstat(file.fileno()).st_size
        for frame, (start, num_bytes, checksum) in zip(frames, entries, strict=True):
            if not (num_bytes and 0 <= start <= file_bytes - num_bytes):  # before memory is taken for them
                raise DamagedFrame(f"{self._directory / NAME} has changed: frame {frame} lies outside of {file.name}")
            stored = read(file.fileno(), start, num_bytes)
            if zlib.crc32(stored) != checksum:
                raise DamagedFrame(f"frame {frame} has changed: {num_bytes} bytes at {start} of {file.name}")
            found.append(stored)
        return found
