"""Random access to a prepared set: take -> views -> frames. Written by `python -m data.prepare`."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from console.command import did_you_mean, nearest
from console.errors import UserError
from data import catalog
from data.store import codec, dct, digests, frame_index, truth
from data.store.frame_cache import FrameCache
from data.store.manifest import COLUMNS, MANIFEST, columns_of, relabelled
from data.store.truth import Truth

FORMAT_VERSION = 3  # of a prepared set
# [ours] Up to this size a file is compared with its digest on opening, which takes up to a quarter of a second. A
# frames.npy of this size has 16 million frames; NTU-120 has ten. In a longer one only frames' checksums show changes.
MAX_CHECKED_BYTES = 2**28
# [ours] A read that fails is tried again after these seconds, because a network file system may fail briefly.
RETRY_AFTER_SECONDS = (0.1, 1.0)
# [ours] After so many records of a folder in a row that could not be read even so, the rest is read without waiting,
# until one can be read again. Otherwise a run whose data are gone would wait for each record of a batch before it ends.
MOST_WAITED_FOR = 8


class DamagedRecord(UserError):
    """A record that cannot be read, or whose bytes are not those that were written; `record` is its number."""

    def __init__(self, message: str, record: int):
        super().__init__(message, record)
        self.record = record

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared set. Picklable: each process opens shards when it first reads them.

    Attributes:
      directory: where it lies.
      name: of the data set, as in `data.catalog`.
      codec: how frames are stored, as in `data.store.codec`.
      class_names: in the order of the labels.
      views: the manifest's columns, one entry per record, in the records' order: take, view (str), record, num_frames,
        fps, height, width, label, subject, setup, camera, performance (-1 where unknown), listed_split (str), checksum.
      not_synchronised: why the views of a take must not be paired frame by frame; '' where they may.
      stored: the frames in the shards, by the folder that these lie in.
      truth: 3D joints and cameras, or None where they are not known.
      pixels: decoded frames that are kept in memory, or None; see `in_memory`.
      coefficients: the same of frames stored as coefficients, unpacked; the mark of a frame is its quality.
      subject_names: in the order of the subjects' numbers, where file names tell them.
      parts: of several sets that are used as one, (directory, first record) of each; see data/store/joined.py.
      some_classes: the records of the other classes, and those without a label, are not to be used.
      whole: where only some of the classes are numbered, the set with all of them.
      failed_in_a_row: of each folder, how many records could not be read since one could.
    """

    directory: str
    name: str
    codec: str
    class_names: tuple[str, ...]
    views: Mapping[str, np.ndarray]
    not_synchronised: str
    stored: Mapping[str, frame_index.Frames]
    truth: Truth | None = None
    pixels: FrameCache | None = None
    coefficients: FrameCache | None = None
    subject_names: tuple[str, ...] = ()
    parts: tuple[tuple[str, int], ...] = ()
    some_classes: bool = False
    whole: "Prepared | None" = None
    failed_in_a_row: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter, compare=False)

    def in_memory(self, rows: np.ndarray, largest_gb: float, *, required: bool, also_pixels: bool) -> "Prepared":
        """The same set, but every frame of some rows is decoded once and kept in memory. Reads return the same values.

        Frames are kept whole, before any crop: as RGB, or as coefficients if the codec stores these.

        Args:
          rows: of the manifest, int[...], or bool[all rows], which takes less memory.
          largest_gb: GB (1e9 bytes) that they may take; if they would take more, nothing is kept.
          required: whether it is an error if nothing is kept.
          also_pixels: of a codec with coefficients, keep decoded frames as well, for callers that augment pixels.

        Raises:
          ValueError: they take more than `largest_gb`, and are required.
        """
        all_records, num_frames = self.views["record"], self.views["num_frames"]

        def frame_shapes(records: np.ndarray | slice) -> dict[str, np.ndarray]:
            height, width = (self.views[side][records] for side in ("height", "width"))
            pixels = {"pixels": np.stack([height, width, np.full_like(width, 3)], axis=1)}  # (records, 3)
            if self.codec != "dct":
                return pixels
            height, width = dct.padded_size(height, width)
            return {"coefficients": np.stack([3 * height // 2, width], axis=1)} | (pixels if also_pixels else {})

        gb = 0.0
        for first in range(0, len(rows), 2**16):  # in parts: a copy of millions of rows costs memory
            some = rows[first : first + 2**16]
            part = all_records[first + np.flatnonzero(some) if some.dtype == bool else some]
            for shapes in frame_shapes(part).values():
                gb += float(num_frames[part] @ np.prod(shapes, axis=1, dtype=np.float64)) / 1e9
        if gb > largest_gb:
            if required:
                raise UserError(
                    f"data.cache='memory' would keep {gb:.3g} GB of decoded frames of {self.directory}, but "
                    f"data.cache_gb={largest_gb:g}. Raise data.cache_gb if the machine has the memory, prepare a "
                    "smaller set, or set data.cache=auto, which keeps sets that fit."
                )
            return self
        dtypes = {"pixels": np.uint8, "coefficients": np.int8}
        caches = {
            form: FrameCache(shapes, num_frames, all_records[rows], dtypes[form])
            for form, shapes in frame_shapes(slice(None)).items()
        }
        return dataclasses.replace(self, **caches)

    def read(self, record: int, frames: np.ndarray) -> np.ndarray:
        """The wanted frames of one view. Only these are read and decoded; a frame that is wanted twice is decoded once.

        Args:
          record: its number, 0 to len(views['record']) - 1.
          frames: int[T], frame numbers from 0 to num_frames - 1, in any order.

        Returns:
          uint8[T, h, w, 3], RGB.

        Raises:
          ValueError: no such record or frame.
          DamagedRecord: the record is damaged, even when it is read again; the message names take and view.
        """
        numbers, place = np.unique(frames, return_inverse=True)
        decoded = list(self.read_frames(record, numbers))
        return np.stack([decoded[i] for i in place])  # (T, h, w, 3)

    def read_frames(
        self, record: int, frames: np.ndarray, window: tuple[int, int, int, int] | None = None
    ) -> Iterable[np.ndarray]:
        """As `read`, but yields T times uint8[h, w, 3], so that a frame is used while it is in the processor's cache.

        `window` is (top, left, height, width) in pixels, if only this part is wanted.
        """
        kept = self._kept_pixels(record, frames)
        if kept is None:
            return self._decode(record, frames, window)
        top, left, height, width = window or (0, 0, *kept.shape[1:3])
        return kept[:, top : top + height, left : left + width][frames]

    def _decode(
        self, record: int, frames: np.ndarray, window: tuple[int, int, int, int] | None = None
    ) -> Iterator[np.ndarray]:
        module, stored = codec.get(self.codec), self._stored(record, frames)
        runs = [(frame, len(list(same))) for frame, same in itertools.groupby(np.asarray(frames).tolist())]
        wanted = [stored[frame] for frame, _ in runs]
        decoded = module.decode_window(wanted, window) if window else map(module.decode, wanted)
        with self._naming_damage(record):
            for (_, times), pixels in zip(runs, decoded, strict=True):
                yield from itertools.repeat(pixels, times)

    def read_coefficients(self, record: int, frames: np.ndarray, into: np.ndarray) -> np.ndarray:
        """As `read`, but frames that are stored as coefficients are only unpacked, not decoded.

        `into`, int8[T, *coefficients_shape], receives the coefficients; see data/store/dct.py.

        Returns:
          uint8[2, 8, 8], the quantisation steps of luma and chroma.
        """
        kept = self._kept_coefficients(record, frames)
        if kept is not None:
            coefficients, quality = kept
            for frame, place in zip(np.asarray(frames).tolist(), into, strict=True):
                dct.put(coefficients[frame], place)
            return dct.steps(quality)
        stored = self._stored(record, frames)
        with self._naming_damage(record):
            for frame, place in zip(np.asarray(frames).tolist(), into, strict=True):
                coefficients, _, quality = dct.unpack(stored[frame])
                dct.put(coefficients, place)  # while the frame is in the processor's cache
        return dct.steps(quality)

    def _kept_pixels(self, record: int, frames: np.ndarray) -> np.ndarray | None:
        """uint8[num_frames, h, w, 3], in which the wanted frames are filled in; None if pixels are not kept."""
        found = self._kept(self.pixels, record, frames)
        if found is None:
            return None
        pixels, marks, missing = found
        if len(missing):
            for frame, decoded in zip(missing.tolist(), self._decode(record, missing), strict=True):
                pixels[frame] = decoded
                marks[frame] = 1
        return pixels

    def _kept_coefficients(self, record: int, frames: np.ndarray) -> tuple[np.ndarray, int] | None:
        """int8[num_frames, 3 * H / 2, W], in which the wanted frames are filled in, and their quality."""
        found = self._kept(self.coefficients, record, frames)
        if found is None:
            return None
        kept, marks, missing = found
        if len(missing):
            stored = self._stored(record, missing)
            with self._naming_damage(record):
                for frame, data in stored.items():
                    kept[frame], _, quality = dct.unpack(data)
                    marks[frame] = quality
        return kept, int(marks[frames[-1]])

    def _kept(
        self, cache: FrameCache | None, record: int, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The room of a record and its marks, as of `FrameCache.of`, and which of the wanted frames it lacks."""
        self._check(record, frames)
        room = cache and cache.of(record)
        if not room:
            return None
        with self._naming_damage(record):  # the manifest may claim more frames than there is room for
            return *room, np.asarray(frames)[room[1][frames] == 0]

    @functools.cached_property
    def coefficients_shape(self) -> tuple[int, int]:
        """The shape of the image that holds the coefficients of any frame of the set; see data/store/dct.py."""
        height, width = dct.padded_size(int(self.views["height"].max()), int(self.views["width"].max()))
        return 3 * height // 2, width

    def _check(self, record: int, frames: np.ndarray) -> None:
        if not 0 <= record < len(self.views["record"]):
            raise UserError(f"no record {record} in {self.directory}: there are {len(self.views['record'])}")
        num_frames, wanted = self.views["num_frames"][record], np.asarray(frames).tolist()
        if len(wanted) == 0 or min(wanted) < 0 or max(wanted) >= num_frames:
            raise UserError(f"{self._called(record)} has frames 0 to {num_frames - 1}, not {np.asarray(frames)}")

    def _stored(self, record: int, frames: np.ndarray) -> dict[int, bytes]:
        wanted = np.unique(frames).tolist()
        with self._naming_damage(record):
            return dict(zip(wanted, self._read_stored(record, wanted), strict=True))

    def _read_stored(self, record: int, wanted: list[int]) -> list[bytes]:
        folder, number = self.place_of(record)
        frames = self.stored[folder]
        waits = RETRY_AFTER_SECONDS if self.failed_in_a_row[folder] < MOST_WAITED_FOR else (0.0,)
        for seconds in (*waits, None):
            try:
                found = frames.read(number, wanted)
            except (ValueError, OSError):
                if seconds is None:
                    self.failed_in_a_row[folder] += 1
                    raise
                time.sleep(seconds)
                frames.reopen()
            else:
                self.failed_in_a_row[folder] = 0
                return found

    @contextlib.contextmanager
    def _naming_damage(self, record: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, IndexError) as error:
            raise DamagedRecord(
                f"{self._called(record)} is damaged ({error}); `python -m data.prepare --verify "
                f"--output={self.place_of(record)[0]}` tells what else is",
                record,
            ) from error

    def of_protocol(self, protocol: str) -> "Prepared":
        """The same set with only the classes of a protocol, numbered from 0; records of other classes get label -1."""
        labels = catalog.get(self.name).labels_of.get(protocol)
        return self if labels is None else self._of_labels(labels)

    def of_classes(self, wanted: Sequence[str | int]) -> "Prepared":
        """As this, with some classes alone: numbered from 0 in the set's order, and label -1 for all other records.

        `wanted` are names or numbers; none for all classes. Raises ValueError if there is no such class.
        """
        if not wanted:
            return self
        labels = {_class_number(name, self.class_names, self.directory) for name in wanted}
        return dataclasses.replace(self._of_labels(tuple(sorted(labels))), some_classes=True)

    def _of_labels(self, labels: tuple[int, ...]) -> "Prepared":
        names = tuple(self.class_names[label] for label in labels)
        views = relabelled(self.views, labels)
        return dataclasses.replace(self, class_names=names, views=views, whole=self.whole or self)

    def split_of(self, protocol: str) -> np.ndarray:
        """As `splits`. 'all' puts every record into 'train'; records of unused classes are in no split ('')."""
        split = np.full(len(self.views["take"]), "train") if protocol == "all" else self.splits(protocol)
        return np.where(self.views["label"] >= 0, split, "") if self.some_classes else split

    def splits(self, protocol: str) -> np.ndarray:
        """Per record 'train', 'test' or '' (in neither), by a protocol of the catalogue; ValueError if unknown."""
        names = catalog.get(self.name)
        views = (self.whole or self).views
        rows = map(catalog.Row, *(views[column].tolist() for column in catalog.Row._fields))
        return np.array([names.split(protocol, row) or "" for row in rows], dtype="U5")

    def place_of(self, record: int) -> tuple[str, int]:
        """The folder that a record lies in, and its number there."""
        parts = self.parts or ((self.directory, 0),)
        folder, first = max((part for part in parts if part[1] <= record), key=lambda part: part[1])
        return folder, record - first

    def content_digest(self) -> str:
        """SHA-256 of the manifest, in hexadecimal; of several sets' manifests together.

        The manifest has a checksum of every record, so equal digests mean equal frames. prepared.json does not tell:
        two preparations by different tables of --sync have the same one.
        """
        found = [digests.sha256_of(Path(folder, MANIFEST))[0] for folder, _ in self.parts or ((self.directory, 0),)]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    def frame_rates(self) -> tuple[float, float]:
        """(lowest, highest) frames per second of the views; a twentieth at either end is left out."""
        low, high = np.quantile(self.views["fps"], (0.05, 0.95), method="nearest").tolist()
        return low, high

    def _called(self, record: int) -> str:
        take, view = self.views["take"][record], self.views["view"][record]
        folder, number = self.place_of(record)
        return f"record {number} of {folder} (take {take}, view {view})"


def _class_number(wanted: str | int, class_names: Sequence[str], directory: str) -> int:
    """The number of the class that `data.classes` names. Raises ValueError where there is none (names near ones)."""
    called = [catalog.composed(name) for name in class_names]
    text = catalog.composed(str(wanted).strip())
    number = int(text) if text.isascii() and text.isdecimal() else None
    if text in called:
        if isinstance(wanted, int) and called.index(text) != wanted < len(called):
            raise UserError(
                f"data.classes = {wanted}: class {text!r} of {directory} has another number, {called.index(text)}. "
                f"Write the name in quotes if it is meant, else the name of class {wanted}, {called[wanted]!r}."
            )
        return called.index(text)
    if number is not None and number < len(called):
        return number
    if not called:
        raise UserError(f"data.classes = {wanted!r}: {directory} has no classes.")
    near = did_you_mean([repr(name) for name in nearest(text, called)])
    raise UserError(
        f"data.classes: there is no class {wanted!r} in {directory}; it has {len(called)}, numbered from 0 to "
        f"{len(called) - 1} ({', '.join(called[:5])}, ...).{near}"
    )


def open_prepared(directory: str | Path) -> Prepared:
    """Opens a prepared set; costs the manifest, not a scan of the shards.

    Args:
      directory: the --output of `python -m data.prepare`.

    Raises:
      ValueError: it is missing, not a prepared set, not complete or without a take, or its small files differ from
        those that were written (SHA256SUMS); the message names the command that prepares it.
    """
    directory = Path(directory)
    command = f"python -m data.prepare --dataset=... --input=... --output={directory}"
    if not directory.is_dir():
        raise UserError(f"no prepared data set in {directory}: there is no such folder. Make it with `{command}`")
    if not (directory / "prepared.json").exists():
        if (directory / "plan.json").exists():
            raise UserError(f"the preparation of {directory} is not finished: continue with `{command}`")
        raise UserError(f"{directory} is not a prepared data set (no prepared.json). Make one with `{command}`")
    listed, wrong = _check_digests(directory)
    damage = "; ".join(f"{directory / name} is {problem}" for name, problem in wrong.items())
    advice = (
        f"`python -m data.prepare --verify --output={directory}` tells what else is. `{command}`, as it was given at "
        "first, makes these files anew where the folder parts/ is intact; else delete what is damaged, or copy it again"
    )
    path = directory / "prepared.json"
    try:
        prepared = json.loads(path.read_bytes())
        version = prepared["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{damage or f'{path} is damaged'}: {advice}") from error
    if version != FORMAT_VERSION:
        or_damaged = f" ({damage}: {advice})" if wrong else ""
        raise UserError(
            f"{directory} was prepared by another version of this program: delete it and run `{command}`{or_damaged}"
        )
    if wrong:
        raise UserError(f"{damage}: {advice}")
    for shard in prepared["shards"]:
        path = directory / shard["file"]
        if not path.exists() or path.stat().st_size != shard["bytes"]:
            raise UserError(f"{path} is missing or has lost its end: make it anew with `{command}`")
    views = columns_of(directory / MANIFEST, listed.get(MANIFEST))
    if missing := [name for name in COLUMNS if name not in views]:
        raise UserError(
            f"{directory} was prepared by an older version of this program: {MANIFEST} lacks {', '.join(missing)}. "
            f"Delete the folder and run `{command}`"
        )
    if not any(shard["records"] for shard in prepared["shards"]):
        raise UserError(
            f"{directory} holds no takes: all videos were left out when it was prepared. "
            f"{directory / 'quarantine.csv'} says why of each"
        )
    shards = [(shard["file"], shard["records"]) for shard in prepared["shards"]]
    frames = frame_index.Frames(directory, shards, views["num_frames"], listed.get(frame_index.NAME))
    return Prepared(
        directory=str(directory),
        name=prepared["dataset"],
        codec=prepared["codec"],
        class_names=tuple(prepared["class_names"]),
        views=views,
        not_synchronised=prepared["not_synchronised"],
        stored={str(directory): frames},
        truth=Truth.open(directory / truth.FOLDER, views, listed),
        subject_names=tuple(prepared.get("subject_names", ())),
    )


def _check_digests(directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The digests in SHA256SUMS; and what is wrong, by name, with the small files that say what the records mean."""
    names = ["prepared.json", MANIFEST, frame_index.NAME]
    try:
        listed = digests.read(directory)
    except ValueError:
        return {}, {digests.NAME: "damaged"}
    except FileNotFoundError:
        warnings.warn(
            f"{directory}: {digests.NAME} is missing, so nothing tells whether {', '.join(names)} are as they were "
            "written. The preparing command, given again, writes it",
            stacklevel=3,
        )
        return {}, {}
    names += [name for name in listed if name.startswith(f"{truth.FOLDER}/")]
    paths = [directory / name for name in names]
    small = [not path.is_file() or path.stat().st_size <= MAX_CHECKED_BYTES for path in paths]
    names = list(itertools.compress(names, [True, True, *small[2:]]))
    return listed, digests.check_some(directory, names, listed)
