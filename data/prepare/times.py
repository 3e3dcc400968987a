"""Rates, beginnings and lengths by view, read from the headers of raw videos before anything is decoded."""

import math
from collections.abc import Sequence
from pathlib import Path

import av

from data.prepare import archives, clocks, raw_video
from data.prepare.listing import Listing

SAMPLED_TAKES = 50  # [ours] at most, spread evenly over the set; a header takes a few milliseconds on a local disk


def table(listing: Listing, input_dir: Path) -> list[str]:
    """Lines of text: a table with a row per view, and how many takes have files whose times begin differently.

    In a large set only some takes are looked at.
    """
    takes = sorted({video.take for video in listing.videos})
    sampled = set(takes[:: math.ceil(len(takes) / SAMPLED_TAKES)])
    videos = [video for video in listing.videos if video.take in sampled]
    of_path: dict[str, tuple[float, float, float]] = {}
    with archives.Reader(input_dir, [video.path for video in videos], frames_fps=listing.frames_fps) as files:
        for path in dict.fromkeys(video.path for video in videos):
            try:
                with files.open(path) as file:
                    of_path[path] = _times(raw_video.open_source(file))
            except (raw_video.BadVideo, archives.BadArchive, OSError):
                continue  # preparation reports it
    rows = {}
    begins: dict[str, list[tuple[float, float]]] = {}
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
    if not known:
        return "?"
    low, high = f"{min(known):.2f}", f"{max(known):.2f}"
    return low if low == high else f"{low} to {high}"
