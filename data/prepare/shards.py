"""Writes one shard: a run of takes, from raw videos to a finished ArrayRecord file with its account beside it.

The record's form is that of TFDS (a tf.train.Example made by its feature connectors), so that `tfds.data_source` and
this project's `data.store.takes` read the same files. TensorFlow is not needed.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from data.catalog import Video
from data.prepare import encoding, pairing
from data.prepare.boxes import MANIFEST_COLUMNS, Box
from data.prepare.options import Settings
from data.prepare.pairing import EncodedVideo
from data.recordings import archives, clocks, raw_files, raw_video
from data.recordings.listing import Listing, PreparationError
from data.store import codec, digests, frame_index
from data.store.whole_files import whole_file, write_whole

SPLIT = "takes"  # the one TFDS split; the official splits are the catalogue's
PARTS = "parts"  # the folder of the shards' accounts
# With group_size:1 a record is read without its neighbours. Frames are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
# [ours] A shard of NTU is then about 250 MB (64 takes of 3 views of about 1.3 MB). An interruption costs the work on a
# shard, a few minutes.
RECORDS_PER_SHARD = 192
MIN_SHARDS = 16  # [ours] so that a small set, too, keeps several workers busy

FEATURES = tfds.features.FeaturesDict(
    {
        "take": tfds.features.Text(),
        "view": tfds.features.Text(),
        "frames": tfds.features.Sequence(tfds.features.Text()),  # bytes of data.store.codec, one per frame
    }
)
_SERIALIZER = example_serializer.ExampleSerializer(FEATURES.get_serialized_info())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to be made."""

    shard: int
    num_shards: int
    videos: tuple[Video, ...]  # whole takes, sorted by recording, take and view
    num_bytes: tuple[int, ...]  # of the raw files, in the same order
    offsets: tuple[float | None, ...] = ()  # seconds to add to their stamps, if a table gives them; in the same order
    boxes: tuple[Box | Path | None, ...] = ()  # to cut out, or .skeleton files to take them from; in the same order
    split: str = SPLIT

    @property
    def boxes_given(self) -> dict[Video, Box | Path | None]:
        """The boxes by video; empty if none are given."""
        return dict(zip(self.videos, self.boxes, strict=True)) if self.boxes else {}

    @property
    def sizes(self) -> dict[str, int]:
        """The raw files to be read, with their bytes."""
        return {video.path: size for video, size in zip(self.videos, self.num_bytes, strict=True)}

    @property
    def skeletons(self) -> dict[str, int]:
        """The .skeleton files to be read, with their bytes; -1 of one that cannot be read."""
        return {str(box.absolute()): _size(box) for box in self.boxes if isinstance(box, Path)}

    def file_name(self, dataset: str) -> str:
        """The shard's file name, in TFDS's form."""
        return f"{dataset}-{self.split}.array_record-{self.shard:05}-of-{self.num_shards:05}"

    def digest(self, settings: Settings) -> str:
        """A digest that changes with the settings, the list of videos and the videos' sizes."""
        videos = [[*dataclasses.astuple(video), size] for video, size in zip(self.videos, self.num_bytes, strict=True)]
        how = settings.as_dict()
        if settings.clock is None:
            del how["clock"]  # as in the accounts that exist
        given = [self.offsets] if self.offsets else []
        if self.boxes:
            given.append([[box.name, _size(box)] if isinstance(box, Path) else box for box in self.boxes])
        text = json.dumps([how, videos, *given])
        return hashlib.sha256(text.encode()).hexdigest()


def split_of(shard: str) -> str:
    """The TFDS split that the name of a shard's file tells."""
    return shard.partition(".array_record-")[0].rpartition("-")[2]


def account_path(output_dir: Path, shard: str, ending: str = ".json") -> Path:
    """Where the account of a shard lies, by its file's name."""
    split, number = split_of(shard), shard.partition(".array_record-")[2]
    return output_dir / PARTS / f"{number if split == SPLIT else f'{split}-{number}'}{ending}"


def index_path(output_dir: Path, shard: str) -> Path:
    """Where the frame index of a shard lies, by its file's name."""
    return account_path(output_dir, shard, ".frames.npy")


def _size(path: Path) -> int:
    """The size in bytes; -1 if the file cannot be read, which `boxes.read_skeleton` reports."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def plan(
    listing: Listing,
    offsets: Mapping[tuple[str, str], float] | None = None,
    boxes: Mapping[tuple[str, str], Box | Path] | None = None,
    split: str = SPLIT,
) -> list[Job]:
    """Cuts the recordings, in order of their names, into shards.

    Args:
      split: the TFDS split that they become.
      offsets: seconds to add to the stamps of a (take, view), where a table gives them.
      boxes: of a (take, view), or the .skeleton file to take it from, if they are given.
    """
    recordings = _group(listing.videos, _recording)
    by_size = round(RECORDS_PER_SHARD * len(recordings) / len(listing.videos))
    per_shard = max(1, min(by_size, math.ceil(len(recordings) / MIN_SHARDS)))
    groups = [recordings[first : first + per_shard] for first in range(0, len(recordings), per_shard)]
    return [
        Job(
            shard=shard,
            num_shards=len(groups),
            videos=videos,
            num_bytes=tuple(listing.num_bytes[video.path] for video in videos),
            offsets=() if offsets is None else tuple(offsets.get((video.take, video.view)) for video in videos),
            boxes=() if boxes is None else tuple(boxes.get((video.take, video.view)) for video in videos),
            split=split,
        )
        for shard, videos in enumerate(tuple(itertools.chain.from_iterable(group)) for group in groups)
    ]


def write(job: Job, settings: Settings, input_dir: Path, output_dir: Path, starting: Callable[[str], None]) -> None:
    """Makes a shard and its account; each appears whole or not at all.

    Args:
      input_dir: where the videos' paths start.
      output_dir: of the prepared set; its PARTS folder exists.
      starting: called with the path of each video before it is opened; if it raises `raw_video.BadVideo`, that is set
        aside.

    Raises:
      PreparationError: a video has vanished, or the file system refuses to read it.
      OSError: the disk is full, or the folder cannot be written to.
    """
    file_name = job.file_name(settings.dataset)
    rows, quarantined, static, static_views = [], [], [], []
    sources = {path: {"bytes": size} for path, size in job.sizes.items()}
    skeletons = {path: size for path, size in job.skeletons.items() if size >= 0}
    with archives.Reader(input_dir, list(skeletons)) as reader:
        for path, size in skeletons.items():
            modified, digest = archives.modified(input_dir, path), raw_files.digest_of(reader, path)
            sources[path] = {"bytes": size, "modified": modified, "digest": digest}
    decode = codec.get(settings.codec).decode
    with whole_file(output_dir / file_name, durable=True) as temporary:
        try:
            writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
            for views, aside in _encode_takes(job, settings, input_dir, starting, sources):
                quarantined += aside
                still = [view.video for view in views if encoding.is_still(view.frames, decode)]
                if still and len(still) == len(views):
                    static.append(still[0].take)
                else:
                    static_views += [(video.take, video.view) for video in still]
                for view in views:
                    record = _serialize(view)
                    writer.write(record)
                    rows.append(_row(view, record))
            writer.close()
        except RuntimeError as error:  # ArrayRecord raises it for every failure of the file system
            raise OSError(str(error)) from error
        sha256, num_bytes = digests.sha256_of(temporary)
        index = io.BytesIO()
        np.save(index, frame_index.of_shard(temporary))
        write_whole(index_path(output_dir, file_name), index.getvalue(), durable=True)
    account = {
        "file": file_name,
        "inputs": job.digest(settings),
        "bytes": num_bytes,
        "sha256": sha256,
        "index_sha256": hashlib.sha256(index.getvalue()).hexdigest(),
        "records": rows,
        "quarantined": quarantined,
        "static_takes": static,
        "static_views": static_views,
        "sources": sources,
    }
    account["account_sha256"] = _digest(account)
    write_whole(account_path(output_dir, file_name), json.dumps(account, indent=1), durable=True)


def read_account(shard: str, output_dir: Path) -> dict | None:
    """The account of a shard, by its file's name; None if that is not finished, or either is damaged.

    Returns:
      file, inputs (a digest), bytes, sha256, records (rows of the manifest), quarantined (path, take, reason),
      static_takes (names), static_views (take, view; of other takes), and sources (path -> as of `raw_files.changed`).

    Raises:
      PreparationError: another version of this program wrote it.
    """
    path = account_path(output_dir, shard)
    try:
        account = json.loads(path.read_bytes())
        sha256 = account.pop("account_sha256", None)
        intact = sha256 == _digest(account)
        of_other_version = "static_views" not in account and (intact or sha256 is None)
        finished = intact and not of_other_version and account["bytes"] == (output_dir / shard).stat().st_size
        finished = finished and account["index_sha256"] == digests.sha256_of(index_path(output_dir, shard))[0]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if of_other_version:
        raise PreparationError(
            f"{path} was written by another version of this program: choose another --output, or delete {output_dir} "
            "if it is no longer wanted"
        )
    return account if finished else None


def _digest(account: dict) -> str:
    return hashlib.sha256(json.dumps(account, sort_keys=True).encode()).hexdigest()


def _recording(video: Video) -> str:
    return video.recording or video.take


def _group(videos: Sequence[Video], key: Callable[[Video], str]) -> list[list[Video]]:
    groups: dict[str, list[Video]] = {}
    for video in videos:
        groups.setdefault(key(video), []).append(video)
    return list(groups.values())


def _encode_takes(
    job: Job, settings: Settings, input_dir: Path, starting: Callable[[str], None], sources: dict[str, dict]
) -> Iterator[tuple[list[EncodedVideo], list[dict]]]:
    """For each take, the views that go in, and the quarantine entries of those that do not.

    Holds the encoded frames of one recording at a time. Each file of a recording is decoded once, and all takes are cut
    from its frames. `sources` receives what is kept of the files.
    """
    offset = dict(zip(job.videos, job.offsets, strict=True)) if job.offsets else {}
    paths, given = [video.path for video in job.videos], job.boxes_given
    with archives.Reader(input_dir, paths, frames_fps=settings.frames_fps) as files:
        for recording in _group(job.videos, _recording):
            encoded = {}
            for videos in _group(recording, lambda video: video.path):
                encoded |= _encode_file(videos, settings, input_dir, files, starting, given, sources)
            for take in _group(recording, lambda video: video.take):
                views = {video: encoded[video] for video in take}
                yield pairing.choose_views(views, offset, settings)


def _encode_file(
    videos: Sequence[Video],
    settings: Settings,
    input_dir: Path,
    files: archives.Reader,
    starting: Callable[[str], None],
    boxes_given: Mapping[Video, Box | Path | None],
    sources: dict[str, dict],
) -> dict[Video, EncodedVideo | str]:
    """The videos cut from one file; for a video that cannot be cut, the reason."""
    path = videos[0].path
    try:
        sources[path] |= {"modified": archives.modified(input_dir, path), "digest": None}
        starting(path)
        with files.open(path) as file:
            sources[path]["digest"] = raw_files.digest(file)
            source, encoded = encoding.encode_file(videos, file, settings, boxes_given)
        if archives.modified(input_dir, path) != sources[path]["modified"]:
            sources[path]["digest"] = None  # so that the same command reads it again
            raise raw_video.BadVideo("was written to while it was read, perhaps still copied: give the command again")
    except (raw_video.BadVideo, archives.BadArchive) as error:
        return dict.fromkeys(videos, str(error))
    except FileNotFoundError as error:
        raise PreparationError(f"{input_dir / path} has vanished since the input folder was listed") from error
    except OSError as error:
        raise PreparationError(f"cannot read {input_dir / path}: {error.strerror or error}") from error
    rate, cut = clocks.rate(np.array(source.seconds), source.fps), {}
    for video, shown in encoded.items():
        if isinstance(shown, str):
            cut[video] = shown
            continue
        start, end = video.interval or (0, len(shown.frames))
        if end > len(shown.frames):
            cut[video] = f"the labelled interval [{start}, {end}) ends after the {len(shown.frames)} frames of the file"
            continue
        cut[video] = EncodedVideo(
            **vars(shown) | {"frames": shown.frames[start:end]},
            video=video,
            fps=source.fps,
            source_fps=rate,
            begin=source.seconds[0],
            stamps=np.array(source.seconds[start:end]),
            numbers=np.arange(start, end),
            repeats=source.repeats,
            step=source.step,
            num_empty_at_end=0 if video.interval else source.num_empty_at_end,
            num_tracks=source.num_tracks,
            marks=tuple(sorted(source.marks)),
        )
    return cut


def _serialize(view: EncodedVideo) -> bytes:
    example = {"take": view.video.take, "view": view.video.view, "frames": view.frames}
    # As FEATURES.serialize_example does, but with sorted features: its own order differs from process to process.
    return _SERIALIZER.get_tf_example(FEATURES.encode_example(example)).SerializeToString(deterministic=True)


_OF_VIDEO = ("label", "subject", "setup", "camera", "performance", "listed_split")


def _row(view: EncodedVideo, record: bytes) -> dict:
    video = view.video
    return {
        "take": video.take,
        "view": video.view,
        "path": video.path,
        "num_frames": len(view.frames),
        "fps": view.fps,
        "height": view.height,
        "width": view.width,
        **{name: getattr(video, name) for name in _OF_VIDEO},
        "checksum": zlib.crc32(record),
        "source_fps": view.source_fps,
        "offset_seconds": view.offset,
        "gap_frames": view.num_gaps,
        "resampled": view.resampled,
        "middle_frame": int(view.numbers[len(view.numbers) // 2]),  # for the contact sheet
        "video_tracks": view.num_tracks,
        **({"marks": view.marks} if view.marks else {}),
        **(dict(zip(MANIFEST_COLUMNS, (*view.box, *view.raw_size), strict=True)) if view.box else {}),
    }
