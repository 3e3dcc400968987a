"""The manifest of a prepared set, by columns: those of a file, and the same with the labels of some classes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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

    def __init__(self, names: Iterable[str], make: Callable[[str], np.ndarray]):
        self._names, self._make, self._made = tuple(names), make, {}

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


def columns_of(path: Path, sha256: str | None = None) -> Columns:
    """The columns of a manifest.

    `sha256` of the file, None if unknown. The file may be written anew, but must keep its content.
    """
    with pq.ParquetFile(path) as manifest:
        names = manifest.schema_arrow.names
    return Columns(names, functools.partial(_read_column, path, digests.Unchanged(path, sha256)))


def _read_column(path: Path, unchanged: digests.Unchanged, name: str) -> np.ndarray:
    """Reads in parts and makes no Python object for a text, because a manifest may have millions of rows."""
    unchanged.check()
    with pq.ParquetFile(path) as manifest:
        batches = manifest.iter_batches(2**16, columns=[name], use_threads=False)
        column = np.concatenate([_values(batch[0]) for batch in batches])
    pa.default_memory_pool().release_unused()
    return column.astype(np.str_) if column.dtype.kind == "S" else column


def relabelled(whole: Mapping[str, np.ndarray], labels: tuple[int, ...]) -> Columns:
    """Columns whose labels are renumbered. `labels`: the old number of each new one; all others become -1."""
    return Columns(whole, functools.partial(_relabelled_column, whole, np.array(labels)))


def _relabelled_column(whole: Mapping[str, np.ndarray], labels: np.ndarray, name: str) -> np.ndarray:
    old = whole[name]
    if name != "label":
        return old
    place = np.searchsorted(labels, old).clip(max=len(labels) - 1)
    return np.where(labels[place] == old, place, -1).astype(old.dtype)


def _values(part: pa.Array) -> np.ndarray:
    if not pa.types.is_string(part.type):
        return part.to_numpy(zero_copy_only=False)
    if not pc.all(pc.string_is_ascii(part)).as_py():
        return np.array(part.to_pylist(), np.str_)
    width = pc.max(pc.binary_length(part)).as_py() or 1
    fixed = pc.utf8_rpad(part, width, "\0").cast(pa.binary()).cast(pa.binary(width))
    return np.frombuffer(fixed.buffers()[1], f"S{width}", len(part)).copy()
