"""What a preparation would do: times as headers state them; size and duration to expect, from a few of the videos."""

import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import tqdm

from data import catalog
from data.prepare import carry_truth, encoding, preparation_report, shards
from data.prepare.options import Options, Settings
from data.prepare.preparation_report import count
from data.recordings import archives, clocks, raw_video
from data.recordings.listing import Listing, list_videos

SAMPLED_TAKES = 50  # [ours] at most, spread evenly over the set; a header takes a few milliseconds on a local disk
SAMPLED_FILES = 8  # decoded: at most so many, and at most one in so many


def dry_run(names: catalog.Catalog, inputs: Path | Sequence[Path], output_dir: Path, options: Options) -> str:
    """What `preparation.prepare` would do, with the size and time to expect; writes nothing."""
    names, listing = list_videos(names, inputs, options.frames_fps)
    views_of_take = Counter(video.take for video in listing.videos)
    takes_with = Counter(views_of_take.values())
    given, told = options.read_boxes(listing)
    settings = options.settings(names, clock=None)
    jobs = shards.plan(listing, boxes=given)
    lines = [
        f"{names.name}: {count(len(listing.videos), 'video')} of {count(len(views_of_take), 'take')} in "
        f"{count(len(listing.num_bytes), 'file')}, {sum(listing.num_bytes.values()) / 1e6:.1f} MB, into "
        f"{count(len(jobs), 'shard')}",
        *(f"  {count(takes_with[views], 'take')} with {count(views, 'view')}" for views in sorted(takes_with)),
        *([f"  {_classes(names.class_names)}"] if names.classes_from_files and names.class_names else []),
        *times(listing),
        *preparation_report.found_wrong(names, listing),
        *preparation_report.unmatched(listing.unmatched),
        *preparation_report.left(len(listing.files.duplicates), listing.files.passed_over),
        *(carry_truth.check(options.truth_dir, listing.videos) if options.truth_dir else []),
        *told,
        *expected(jobs, settings, listing.files.root, output_dir, options.workers),
    ]
    return "\n".join(lines)


def _classes(names: Sequence[str]) -> str:
    """'3 classes: run, sit, walk', of many the first."""
    shown = ", ".join(names[: preparation_report.SHOWN])
    more = ", ..." * (len(names) > preparation_report.SHOWN)
    return f"{len(names)} class{'es' * (len(names) > 1)}: {shown}{more}"


def expected(
    jobs: Sequence[shards.Job], settings: Settings, input_dir: Path, output_dir: Path, num_workers: int
) -> list[str]:
    """Size and time, from a few files; grows with their bytes."""
    cv2.setNumThreads(1)  # as in a worker
    sizes = {v.path: size for job in jobs for v, size in zip(job.videos, job.num_bytes, strict=True)}
    wanted = min(SAMPLED_FILES, math.ceil(len(sizes) / SAMPLED_FILES))
    drawn = random.Random(0).sample(range(len(sizes)), wanted)  # at equal distances all can be of one camera
    sample = [path for place, path in enumerate(sizes) if place in drawn]
    given = {video: box for job in jobs for video, box in job.boxes_given.items()}
    videos_in = {path: [video for job in jobs for video in job.videos if video.path == path] for path in sample}
    bytes_in, bytes_out, seconds, bad, ratios = 0, 0, 0.0, [], []
    with archives.Reader(input_dir, sample, frames_fps=settings.frames_fps) as files:
        for path in sample:
            began = time.monotonic()
            try:
                with files.open(path) as file:
                    _, shown = encoding.encode_file(videos_in[path], file, settings, given)
                without = [why for why in shown.values() if isinstance(why, str)]
                bad += [f"  {path}: {why}" for why in without[:1]]
                if len(without) == len(shown):
                    continue
                stored = {id(frames): frames for frames in shown.values() if not isinstance(frames, str)}
                num_bytes = sum(sum(map(len, frames.frames)) for frames in stored.values())
                ratios.append(num_bytes / sizes[path])
                bytes_out += num_bytes
                bytes_in += sizes[path]
                seconds += time.monotonic() - began
            except (raw_video.BadVideo, archives.BadArchive) as error:
                bad.append(f"  {path}: {error}")
    if not bytes_in:
        return ["none of the videos tried can be read:", *bad]
    ratio = sum(sizes.values()) / bytes_in
    low, high = (extreme(ratios) * sum(sizes.values()) / 1e6 for extreme in (min, max))
    free = shutil.disk_usage(next(path for path in [output_dir, *output_dir.absolute().parents] if path.exists())).free
    return [
        f"expected, from {count(len(sample) - len(bad), 'file')} of {len(sizes)}: {ratio * bytes_out / 1e6:.1f} MB "
        f"({low:.1f} to {high:.1f} if all were like one of these), "
        f"{tqdm.tqdm.format_interval(ratio * seconds / num_workers)} with {count(num_workers, 'worker')}",
        *bad,
        *[f"warning: only {free / 1e6:.0f} MB are free where {output_dir} lies"] * (ratio * bytes_out > free),
    ]


def times(listing: Listing) -> list[str]:
    """A table of rates, beginnings and lengths by view, and how many takes have files whose times begin differently.

    Only headers are read, in a large set those of some takes.
    """
    takes = sorted({video.take for video in listing.videos})
    sampled = set(takes[:: math.ceil(len(takes) / SAMPLED_TAKES)])
    videos = [video for video in listing.videos if video.take in sampled]
    of_path: dict[str, tuple[float, float, float]] = {}
    with archives.Reader(listing.files.root, [video.path for video in videos], frames_fps=listing.frames_fps) as files:
        for path in dict.fromkeys(video.path for video in videos):
            try:
                with files.open(path) as file:
                    of_path[path] = _times(raw_video.open_source(file))
            except (raw_video.BadVideo, archives.BadArchive, OSError):
                continue  # preparation reports it
    rows, begins = {}, {}
    for video in videos:
        if video.path in of_path:
            fps, begin, length = of_path[video.path]
            rows.setdefault(video.view, []).append((fps, begin, length))
            begins.setdefault(video.take, []).append((begin, fps))
    if not rows:
        return []
    cells = [("view", "files", "frames/s", "first frame at s", "length s")]
    cells += [(view, str(len(found)), *map(_range, zip(*found, strict=True))) for view, found in sorted(rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    apart = [take for take, found in begins.items() if not clocks.begin_together(*zip(*found, strict=True))]
    if apart:
        lines.append(
            f"  {len(apart)} of {len(begins)} takes do not begin at one time, e.g. {apart[0]}: say with --sync "
            "which times belong together"
        )
    return [f"times of {len(of_path)} files, as their headers say:", *lines]


def _times(source: raw_video.Source) -> tuple[float, float, float]:
    """Frames per second, seconds of the first frame, seconds in all (NaN where the header does not say)."""
    with source.container as container:
        stream = source.stream
        begin = float((stream.start_time or 0) * stream.time_base) + source.begin
        if stream.duration:
            return source.fps, begin, float(stream.duration * stream.time_base)
        if container.duration is None:
            return source.fps, begin, math.nan
        until = container.duration / av.time_base
        return source.fps, begin, until - begin if "matroska" in container.format.name else until


def _range(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    ends = [f"{end(known):.2f}" for end in (min, max)] if known else ["?"]
    return " to ".join(dict.fromkeys(ends))
