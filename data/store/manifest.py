"""The manifest of a prepared set, by columns: those of a file, and the same with the labels of some classes."""

import abc
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from console.errors import UserError
from data.store import digests

MANIFEST = "manifest.parquet"
# Without these a set cannot be used. Sets that lack newer ones are used without them.
COLUMNS = ("take", "view", "record", "num_frames", "fps", "height", "width")
COLUMNS += ("label", "subject", "setup", "camera", "performance", "listed_split", "checksum")
# [ours] of `fps`, relative: at rates this close, a frame stride spans nearly the same time, and few frames are stored
# twice when one is put on the clock of the other.
SPAN_TOLERANCE = 0.05


class Columns(Mapping[str, np.ndarray]):
    """Columns by name. Each is made when it is first used; pickling leaves them out."""

    def __init__(self, names: Iterable[str]):
        self._names, self._made = tuple(names), {}

    @abc.abstractmethod
    def _make(self, name: str) -> np.ndarray: ...

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._made:
            if name not in self._names:
                raise KeyError(name)
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_made": {}}


class FileColumns(Columns):
    """The columns of a manifest."""

    def __init__(self, path: Path, sha256: str | None = None):
        """`sha256` of the file, None if unknown. The file may be written anew, but must keep its content."""
        with pq.ParquetFile(path) as manifest:
            super().__init__(manifest.schema_arrow.names)
        self._path, self._sha256, self._state = path, sha256, _state(path)

    def _make(self, name: str) -> np.ndarray:
        if self._sha256 and _state(self._path) != self._state:
            self._state = _state(self._path)
            if digests.sha256_of(self._path)[0] != self._sha256:
                raise UserError(f"{self._path} has changed since it was opened: start again")
        with pq.ParquetFile(self._path) as manifest:
            return _column(manifest, name)


class Relabelled(Columns):
    """Columns whose labels are renumbered to some of the classes."""

    def __init__(self, whole: Mapping[str, np.ndarray], labels: tuple[int, ...]):
        """`labels`: the old number of each new one; all others become -1."""
        super().__init__(whole)
        self._whole, self._labels = whole, labels

    def _make(self, name: str) -> np.ndarray:
        old = self._whole[name]
        if name != "label":
            return old
        place = np.searchsorted(self._labels, old).clip(max=len(self._labels) - 1)
        return np.where(np.array(self._labels)[place] == old, place, -1).astype(old.dtype)


def _state(path: Path) -> tuple[int, int]:
    """A value that changes when the file is written to."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _column(manifest: pq.ParquetFile, name: str) -> np.ndarray:
    """Reads in parts and makes no Python object for a text, because a manifest may have millions of rows."""
    parts = [_values(batch[0]) for batch in manifest.iter_batches(2**16, columns=[name], use_threads=False)]
    column = np.concatenate(parts)
    pa.default_memory_pool().release_unused()
    return column.astype(np.str_) if column.dtype.kind == "S" else column


def _values(part: pa.Array) -> np.ndarray:
    if not pa.types.is_string(part.type):
        return part.to_numpy(zero_copy_only=False)
    if not pc.all(pc.string_is_ascii(part)).as_py():
        return np.array(part.to_pylist(), np.str_)
    width = pc.max(pc.binary_length(part)).as_py() or 1
    fixed = pc.utf8_rpad(part, width, "\0").cast(pa.binary()).cast(pa.binary(width))
    return np.frombuffer(fixed.buffers()[1], f"S{width}", len(part)).copy()
