"""Writes one shard: a run of takes, from raw videos to a finished ArrayRecord file with its account beside it.

The record's form is that of TFDS (a tf.train.Example made by its feature connectors), so that `tfds.data_source` and
this project's `data.takes` read the same files. TensorFlow is not needed.
"""

import dataclasses
import hashlib
import json
import math
import os
import statistics
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from data import codec, raw_video
from data.catalog import Video
from data.listing import Listing, PreparationError

SPLIT = "takes"  # the one TFDS split; the official splits are the catalogue's
PARTS = "parts"  # the folder of the shards' accounts
# group_size:1 reads one record without its neighbours; JPEG does not compress further.
WRITER_OPTIONS = "group_size:1,uncompressed"
# [ours] A shard of NTU is then about 250 MB (192 views of about 1.3 MB), and the work of a few minutes is what an
# interruption costs.
MAX_TAKES_PER_SHARD = 64
MIN_SHARDS = 16  # [ours] so that a small set keeps several workers busy, too
FPS_TOLERANCE = 0.01  # [ours] relative: 29.97 and 30 are the same rate, 25 and 30 are not

FEATURES = tfds.features.FeaturesDict(
    {
        "take": tfds.features.Text(),
        "view": tfds.features.Text(),
        "frames": tfds.features.Sequence(tfds.features.Text()),  # bytes of data.codec, one per frame
    }
)
_SERIALIZER = example_serializer.ExampleSerializer(FEATURES.get_serialized_info())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of a prepared set, beside the videos."""

    dataset: str
    pattern: str  # of the folder data set, else ''
    class_names: tuple[str, ...]
    codec: str
    short_side: int  # pixels
    quality: int
    max_length_difference: int  # frames
    needs_pairs: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to be made."""

    shard: int
    num_shards: int
    videos: tuple[Video, ...]  # whole takes, sorted by take and view
    num_bytes: tuple[int, ...]  # of the raw files, in the same order

    @property
    def part_name(self) -> str:
        """Of the account of this shard, in PARTS."""
        return f"{self.shard:05}-of-{self.num_shards:05}.json"

    def file_name(self, dataset: str) -> str:
        """Of the shard, as TFDS names it."""
        return f"{dataset}-{SPLIT}.array_record-{self.shard:05}-of-{self.num_shards:05}"

    def digest(self, settings: Settings) -> str:
        """Changes when the settings, the list of videos or a video's size change."""
        videos = [[*dataclasses.astuple(video), size] for video, size in zip(self.videos, self.num_bytes, strict=True)]
        text = json.dumps([dataclasses.asdict(settings), videos])
        return hashlib.sha256(text.encode()).hexdigest()


def plan(listing: Listing) -> list[Job]:
    """Cuts the takes, in order of their names, into shards; a function of the listing alone."""
    takes = sorted({video.take for video in listing.videos})
    takes_per_shard = min(MAX_TAKES_PER_SHARD, math.ceil(len(takes) / MIN_SHARDS))
    shard_of_take = {take: index // takes_per_shard for index, take in enumerate(takes)}
    num_shards = math.ceil(len(takes) / takes_per_shard)
    members: list[list[tuple[Video, int]]] = [[] for _ in range(num_shards)]
    for video, size in zip(listing.videos, listing.num_bytes, strict=True):
        members[shard_of_take[video.take]].append((video, size))
    return [
        Job(shard=shard, num_shards=num_shards, videos=videos, num_bytes=sizes)
        for shard, (videos, sizes) in enumerate(zip(*group, strict=True) for group in members)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedVideo:
    """A video on its way into a record."""

    video: Video
    frames: list[bytes]
    fps: float
    height: int
    width: int


def write(job: Job, settings: Settings, input_dir: Path, output_dir: Path, starting: Callable[[str], None]) -> None:
    """Makes a shard and its account; each appears whole or not at all.

    Args:
      job: what goes into the shard.
      settings: how.
      input_dir: where the videos' paths start.
      output_dir: of the prepared set; its PARTS folder exists.
      starting: called with the path of each video before it is opened.

    Raises:
      PreparationError: a video has vanished, or the file system refuses to read it.
      OSError: the disk is full, or the folder cannot be written to.
    """
    file_name = job.file_name(settings.dataset)
    temporary = output_dir / f".{file_name}.{os.getpid()}.tmp"
    rows, quarantined = [], []
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for videos in _group_by_take(job.videos):
            views, aside = _encode_take(videos, settings, input_dir, starting)
            quarantined += aside
            for view in views:
                record = _serialize(view)
                writer.write(record)
                rows.append(_row(view, record))
        writer.close()
    except RuntimeError as error:  # ArrayRecord's for every failure of the file system
        temporary.unlink(missing_ok=True)  # on a full disk, room for the rest
        raise OSError(str(error)) from error
    sha256, num_bytes = sha256_of(temporary)
    _commit(temporary, output_dir / file_name)
    account = {
        "file": file_name,
        "inputs": job.digest(settings),
        "bytes": num_bytes,
        "sha256": sha256,
        "records": rows,
        "quarantined": quarantined,
    }
    write_atomically(output_dir / PARTS / job.part_name, json.dumps(account, indent=1).encode())


def account_of(job: Job, settings: Settings, output_dir: Path) -> dict | None:
    """The account of a finished shard, None if it has to be made (anew, when the inputs have changed).

    Returns:
      file, inputs (a digest), bytes, sha256, records (rows of the manifest), quarantined (path, take, reason).
    """
    shard = output_dir / job.file_name(settings.dataset)
    try:
        account = json.loads((output_dir / PARTS / job.part_name).read_bytes())
        finished = account["inputs"] == job.digest(settings) and account["bytes"] == shard.stat().st_size
    except (FileNotFoundError, ValueError, KeyError):  # not made, not finished, or the account is damaged
        return None
    return account if finished else None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, also when the power fails."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.write_bytes(content)
    _commit(temporary, path)


def sha256_of(path: Path) -> tuple[str, int]:
    """The digest of a file's bytes in hexadecimal, and their number."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


def _commit(temporary: Path, path: Path) -> None:
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _group_by_take(videos: Sequence[Video]) -> list[list[Video]]:
    takes: dict[str, list[Video]] = {}
    for video in videos:
        takes.setdefault(video.take, []).append(video)
    return list(takes.values())


def _encode_take(
    videos: Sequence[Video], settings: Settings, input_dir: Path, starting: Callable[[str], None]
) -> tuple[list[EncodedVideo], list[dict]]:
    """The views of a take that go in, and the quarantine entries of those that do not."""
    encoded, reasons = [], {}
    for video in videos:
        starting(video.path)
        try:
            encoded.append(_encode(video, settings, input_dir))
        except raw_video.BadVideo as error:
            reasons[video] = str(error)
    if settings.needs_pairs:
        tolerance = settings.max_length_difference
        encoded = _keep_agreeing(encoded, reasons, lambda view: view.fps, lambda fps: fps * FPS_TOLERANCE, "fps")
        encoded = _keep_agreeing(encoded, reasons, lambda view: len(view.frames), lambda _: tolerance, "frames")
        if len(encoded) == 1:
            reasons[encoded[0].video] = (
                f"the only view of its take ({len(videos)} file{'s' * (len(videos) > 1)} found); a pair needs two"
            )
            encoded = []
    aside = [{"path": video.path, "take": video.take, "reason": reasons[video]} for video in videos if video in reasons]
    return encoded, aside


def _encode(video: Video, settings: Settings, input_dir: Path) -> EncodedVideo:
    try:
        fps, frames = raw_video.read(input_dir / video.path, settings.short_side)
    except FileNotFoundError as error:
        raise PreparationError(f"{input_dir / video.path} has vanished since the input folder was listed") from error
    except OSError as error:
        raise PreparationError(f"cannot read {input_dir / video.path}: {error.strerror}") from error
    stored = []
    for frame in frames:
        stored.append(codec.encode(frame, settings.quality))
    height, width = frame.shape[:2]
    return EncodedVideo(video=video, frames=stored, fps=fps, height=height, width=width)


def _serialize(view: EncodedVideo) -> bytes:
    example = {"take": view.video.take, "view": view.video.view, "frames": view.frames}
    # As FEATURES.serialize_example does, but for the order of the features, which is otherwise another in each process.
    return _SERIALIZER.get_tf_example(FEATURES.encode_example(example)).SerializeToString(deterministic=True)


def _keep_agreeing(
    encoded: list[EncodedVideo],
    reasons: dict[Video, str],
    measure: Callable[[EncodedVideo], float],
    tolerance: Callable[[float], float],
    unit: str,
) -> list[EncodedVideo]:
    """The largest group of views whose measures lie within the tolerance (of two such groups, the one with more).

    The others, or all when no two agree, get their reason.
    """
    if len(encoded) < 2:
        return encoded
    groups = []
    for first in encoded:
        low = measure(first)
        groups.append([view for view in encoded if low <= measure(view) <= low + tolerance(low)])
    best = max(groups, key=lambda group: (len(group), statistics.median(map(measure, group))))
    keep = best if len(best) > 1 else []
    for view in encoded:
        if view not in keep:
            siblings = ", ".join(f"{other.video.view} {measure(other):g}" for other in encoded if other is not view)
            allowed = f"{tolerance(measure(view)):g}"
            reasons[view.video] = f"{measure(view):g} {unit}, its siblings {siblings}: more than {allowed} apart"
    return keep


def _row(view: EncodedVideo, record: bytes) -> dict:
    video = view.video
    return {
        "take": video.take,
        "view": video.view,
        "num_frames": len(view.frames),
        "fps": view.fps,
        "height": view.height,
        "width": view.width,
        "label": video.label,
        "subject": video.subject,
        "setup": video.setup,
        "camera": video.camera,
        "performance": video.performance,
        "checksum": zlib.crc32(record),
    }
