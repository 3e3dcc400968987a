"""The sources of features: a prepared set, or video files in a folder."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from console.errors import UserError
from data import clips, pipeline, samples
from data.catalog import folder
from data.recordings import archives, clocks, listing, raw_video
from data.store import jpeg, takes

Batch = dict[str, np.ndarray]
# Row -> (seconds from the video's first frame to each, float[frames]; frames per second).
Seconds = dict[int, tuple[np.ndarray, float]]
Part = tuple[int, Iterator[Batch], dict[str, str], Seconds]  # see PreparedSource.read
JPEG_QUALITY = 90  # of the frames held in memory; data.prepare's default, so that both ways give the same clips [ours]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSource:
    """The views of a prepared set."""

    prepared: takes.Prepared
    spec: clips.ClipSpec
    clips_per_video: int
    split: np.ndarray  # str[videos]

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Columns about the videos, with one entry per video."""
        columns = {name: self.prepared.views[name] for name in ("take", "view", "label", "subject")}
        names = np.array([*self.prepared.class_names, ""])  # the last one is that of label -1
        return columns | {"class_name": names[columns["label"]], "split": self.split}

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.prepared.class_names

    def facts(self) -> dict[str, str]:
        """Facts that identify the videos."""
        return {"input": os.path.abspath(self.prepared.directory), "data": self.prepared.content_digest()}

    def read(self, rows: np.ndarray, batch_size: int) -> Part:
        """Reads the videos of these rows.

        Returns:
          The number of clips; batches for `features.extract`; video -> why it cannot be read; the times of frames.
        """
        batches = pipeline.clip_batches(
            self.prepared, self.spec, rows, global_batch_size=batch_size, clips_per_view=self.clips_per_video
        )
        views = self.prepared.views
        rates = {row: float(views["fps"][row]) for row in rows.tolist()}
        seconds = {row: (np.arange(views["num_frames"][row]) / fps, fps) for row, fps in rates.items()}
        return len(rows) * self.clips_per_video, batches, {}, seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSource:
    """Video files below a folder, or one file."""

    root: str
    paths: tuple[str, ...]  # relative to root
    spec: clips.ClipSpec
    clips_per_video: int
    short_side: int
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)  # path -> reason, known when it was listed

    class_names = ()

    @classmethod
    def find(cls, root: str, **settings) -> "VideoSource":
        """Follows links to folders, says which files are passed over; raises ValueError where there is no video."""
        if os.path.isfile(root):
            return cls(root=os.path.dirname(root), paths=(os.path.basename(root),), **settings)
        found = dict(archives.files(Path(root), in_archives=False))
        found = {path: found[path] for path in sorted(found) if not archives.is_hidden(path)}
        paths = [path for path in found if path.lower().endswith((*folder.EXTENSIONS, "/"))]  # "/": a folder
        others = listing.endings_of(found.keys() - set(paths))
        passed_over = listing.passed_over(others, "no videos") if others else ""
        unreadable = {path: found[path] for path in paths if isinstance(found[path], str)}
        if not paths:
            raise UserError(
                f"--input={root} is no prepared set (it has no prepared.json), and no video is below it: nothing ends "
                f"in {', '.join(folder.EXTENSIONS)}{f'; {passed_over}' if others else ''}."
            )
        if others:
            print(passed_over, file=sys.stderr)
        return cls(root=root, paths=tuple(paths), unreadable=unreadable, **settings)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """As `PreparedSource.columns`."""
        return {"path": np.array(self.paths)}

    def facts(self) -> dict[str, str | int]:
        """As `PreparedSource.facts`. Videos are told by their names, sizes and times of change."""
        readable = [path for path in self.paths if path not in self.unreadable]
        found = [(path, os.stat(os.path.join(self.root, path))) for path in readable]
        text = json.dumps([(path, status.st_size, status.st_mtime_ns) for path, status in found])
        videos = hashlib.sha256(text.encode()).hexdigest()
        return {"input": os.path.abspath(self.root), "videos": videos, "short_side": self.short_side}

    def read(self, rows: np.ndarray, batch_size: int) -> Part:
        """As `PreparedSource.read`. Decodes all `rows`, several at once."""
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = dict(zip(rows.tolist(), pool.map(self._clips_or_reason, rows.tolist()), strict=True))
        unreadable = {self.paths[row]: reason for row, reason in found.items() if isinstance(reason, str)}
        readable = {row: read for row, read in found.items() if not isinstance(read, str)}
        usable = [(row, clip) for row, (clips, _) in readable.items() for clip in clips]
        seconds = {row: seconds for row, (_, seconds) in readable.items()}
        return len(usable), _batches(usable, batch_size), unreadable, seconds

    def _clips_or_reason(self, row: int) -> tuple[list[np.ndarray], tuple[np.ndarray, float]] | str:
        """(`clips_per_video` times uint8[T, H, W, 3]; (seconds, frames per second) as of `read`), or why none are."""
        if self.paths[row] in self.unreadable:
            return self.unreadable[self.paths[row]]
        try:
            with archives.open_regular(os.path.join(self.root, self.paths[row])) as file:
                source = raw_video.open_source(file)
                stored = [jpeg.encode(frame, JPEG_QUALITY) for frame in raw_video.frames(source, self.short_side)]
        except (raw_video.BadVideo, OSError) as error:
            return str(error)
        stamps = np.array(source.seconds)
        if source.repeats:  # as in preparation, what an entry without a picture shows is the frame before
            shown = clocks.shown_by_period(stamps, clocks.rate(stamps, source.fps), source.num_empty_at_end)
            stored = [stored[i] for i in shown.tolist()]
        as_stamped = len(stamps) == len(stored) and not clocks.disorder(stamps)
        seconds = stamps - stamps[0] if as_stamped else np.arange(len(stored)) / source.fps
        found = []
        for position in clips.spread_positions(self.clips_per_video):
            indices = clips.frame_indices(len(stored), self.spec.num_frames, self.spec.frame_stride, position)
            clip = np.stack([jpeg.decode(stored[i]) for i in indices.tolist()])  # (T, h, w, 3)
            found.append(samples.crop_clip(clip, clips.CropDraw(), self.spec.crop_size))
        return found, (seconds, source.fps)


def _batches(usable: list[tuple[int, np.ndarray]], batch_size: int) -> Iterator[Batch]:
    """Batches of (row, clip); the last one is filled up with its last clip."""
    for first in range(0, len(usable), batch_size):
        part = usable[first : first + batch_size]
        rows, video = zip(*part, *[part[-1]] * (batch_size - len(part)), strict=True)
        yield {
            "video": np.stack(video),  # (B, T, H, W, 3)
            "row": np.array(rows, np.int32),
            "label": np.full(batch_size, -1, np.int32),
            "valid": np.arange(batch_size) < len(part),
        }
