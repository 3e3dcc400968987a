"""Random access to a prepared set: take -> views -> frames. Written by `python -m data.prepare`."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import catalog, codec, dct
from data.frame_index import Frames

FORMAT_VERSION = 3  # of a prepared set
# [ours] A read that fails is tried again after so many seconds each: a network file system may have hiccups.
RETRY_AFTER_SECONDS = (0.1, 1.0)


class DamagedRecord(ValueError):
    """A record that cannot be read, or whose bytes are not those that were written; `record` is its number."""

    def __init__(self, message: str, record: int):
        super().__init__(message, record)
        self.record = record

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared set. Picklable; each process opens the shards it reads, when it reads them.

    Attributes:
      directory: where it lies.
      name: of the data set, as in `data.catalog`.
      codec: how frames are stored, as in `data.codec`.
      class_names: in the order of the labels.
      views: the manifest's columns, one entry per record, in the records' order: take, view (str), record, num_frames,
        fps, height, width, label, subject, setup, camera, performance (-1 where unknown), listed_split (str), checksum.
      not_synchronised: why the views of a take must not be paired frame by frame; '' where they may.
    """

    directory: str
    name: str
    codec: str
    class_names: tuple[str, ...]
    views: Mapping[str, np.ndarray]
    not_synchronised: str
    stored: Frames

    def read(self, record: int, frames: np.ndarray) -> np.ndarray:
        """The wanted frames of one view; only these are read and decoded, a repeated one once.

        Args:
          record: its number, 0 to len(views['record']) - 1.
          frames: int[T], frame numbers from 0 to num_frames - 1, in any order.

        Returns:
          uint8[T, h, w, 3], RGB.

        Raises:
          ValueError: no such record or frame.
          DamagedRecord: the record is damaged, also when it is read again; the message names take and view.
        """
        return np.stack(self.read_frames(record, frames))  # (T, h, w, 3)

    def read_frames(self, record: int, frames: np.ndarray) -> list[np.ndarray]:
        """As `read`, T times uint8[h, w, 3]: what is cropped next need not be joined before."""
        decode, stored = codec.get(self.codec).decode, self._stored(record, frames)
        with self._naming_damage(record):
            decoded = {frame: decode(data) for frame, data in stored.items()}
        return [decoded[frame] for frame in np.asarray(frames).tolist()]

    def read_coefficients(self, record: int, frames: np.ndarray, into: np.ndarray) -> np.ndarray:
        """As `read`, but of frames that are stored as coefficients, which are unpacked and no more.

        Args:
          record, frames: as in `read`.
          into: int8[T, *coefficients_shape], receives the coefficients; see data/dct.py.

        Returns:
          uint8[2, 8, 8], the quantisation steps of luma and chroma.
        """
        stored = self._stored(record, frames)
        with self._naming_damage(record):
            for frame, place in zip(np.asarray(frames).tolist(), into, strict=True):
                coefficients, _, quality = dct.unpack(stored[frame])
                dct.put(coefficients, place)  # while it is in the cache
        return dct.steps(quality)

    @property
    def coefficients_shape(self) -> tuple[int, int]:
        """Of the image that holds the coefficients of any frame of the set; see data/dct.py."""
        height, width = dct.padded_size(int(self.views["height"].max()), int(self.views["width"].max()))
        return 3 * height // 2, width

    def _stored(self, record: int, frames: np.ndarray) -> dict[int, bytes]:
        if not 0 <= record < len(self.views["record"]):
            raise ValueError(f"no record {record} in {self.directory}: there are {len(self.views['record'])}")
        num_frames = self.views["num_frames"][record]
        if len(frames) == 0 or np.min(frames) < 0 or np.max(frames) >= num_frames:
            raise ValueError(f"{self._called(record)} has frames 0 to {num_frames - 1}, not {np.asarray(frames)}")
        wanted = np.unique(frames).tolist()
        with self._naming_damage(record):
            return dict(zip(wanted, self._read_stored(record, wanted), strict=True))

    def _read_stored(self, record: int, wanted: list[int]) -> list[bytes]:
        for seconds in RETRY_AFTER_SECONDS:
            try:
                return self.stored.read(record, wanted)
            except (ValueError, OSError):
                time.sleep(seconds)
                self.stored.reopen()
        return self.stored.read(record, wanted)

    @contextlib.contextmanager
    def _naming_damage(self, record: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, IndexError) as error:
            raise DamagedRecord(
                f"{self._called(record)} is damaged ({error}); `python -m data.prepare --verify "
                f"--output={self.directory}` tells what else is",
                record,
            ) from error

    def splits(self, protocol: str) -> np.ndarray:
        """Per record 'train', 'test' or '' (in neither), by a protocol of the catalogue; ValueError if unknown."""
        names = catalog.get(self.name)
        columns = ("take", "label", "subject", "setup", "camera", "performance", "listed_split")
        rows = zip(*(self.views[column].tolist() for column in columns), strict=True)
        return np.array([names.split(protocol, _Row(*row)) or "" for row in rows], dtype="U5")

    def _called(self, record: int) -> str:
        take, view = self.views["take"][record], self.views["view"][record]
        return f"record {record} of {self.directory} (take {take}, view {view})"


@dataclasses.dataclass(frozen=True)
class _Row:
    take: str
    label: int
    subject: int
    setup: int
    camera: int
    performance: int
    listed_split: str


def open_prepared(directory: str | Path) -> Prepared:
    """Opens a prepared set; costs the manifest, not a scan of the shards.

    Args:
      directory: the --output of `python -m data.prepare`.

    Raises:
      ValueError: it is missing, not a prepared set, or not complete; the message says which command makes it so.
    """
    directory = Path(directory)
    command = f"python -m data.prepare --dataset=... --input=... --output={directory}"
    if not directory.is_dir():
        raise ValueError(f"no prepared data set in {directory}: there is no such folder. Make it with `{command}`")
    if not (directory / "prepared.json").exists():
        if (directory / "plan.json").exists():
            raise ValueError(f"the preparation of {directory} is not finished: go on with `{command}`")
        raise ValueError(f"{directory} is not a prepared data set (no prepared.json). Make one with `{command}`")
    prepared = json.loads((directory / "prepared.json").read_bytes())
    if prepared["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{directory} was prepared by another version of this program: delete it and run `{command}`")
    for shard in prepared["shards"]:
        path = directory / shard["file"]
        if not path.exists() or path.stat().st_size != shard["bytes"]:
            raise ValueError(f"{path} is missing or has lost its end: make it anew with `{command}`")
    with pq.ParquetFile(directory / "manifest.parquet") as manifest:
        views = {name: _column(manifest, name) for name in manifest.schema_arrow.names}
    return Prepared(
        directory=str(directory),
        name=prepared["dataset"],
        codec=prepared["codec"],
        class_names=tuple(prepared["class_names"]),
        views=views,
        not_synchronised=prepared["not_synchronised"],
        stored=Frames(
            directory, [(shard["file"], shard["records"]) for shard in prepared["shards"]], views["num_frames"]
        ),
    )


def _column(manifest: pq.ParquetFile, name: str) -> np.ndarray:
    """One by one, and text by its different values: a manifest of millions of rows is never in memory twice."""
    (column,) = manifest.read([name]).columns
    if not pa.types.is_string(column.type):
        return column.to_numpy()
    encoded = column.combine_chunks().dictionary_encode()
    return np.array(encoded.dictionary.to_pylist(), np.str_)[encoded.indices.to_numpy()]
