"""Which views of a take go in, and which of their frames belong together: by number, or on one clock."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from console.errors import UserError
from data.catalog import Video
from data.prepare.encoding import EncodedFrames
from data.prepare.options import Settings
from data.recordings import clocks
from data.recordings.clocks import Clock


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedVideo(EncodedFrames):
    """A video on its way into a record, with the frames of the file, or of its interval, that go in."""

    video: Video
    fps: float  # of the frames: the header's, until a clock gives them its own
    source_fps: float  # of the file, as of `clocks.rate`
    begin: float  # stamp of the file's first frame, seconds
    stamps: np.ndarray  # float[T], seconds, of the file's frames in `frames`
    numbers: np.ndarray  # int[T], of the same frames, counted in the file
    repeats: bool  # as of `raw_video.Source`
    num_empty_at_end: int = 0  # as of `raw_video.Source`
    step: int = 0  # as of `raw_video.Source`
    num_tracks: int  # video tracks in the file
    marks: tuple[str, ...] = ()  # sorted, of `raw_video.MARKS`
    offset: float = 0.0  # seconds that were added to the stamps
    num_gaps: int = 0  # frames repeated in place of frames that the file lacks

    @property
    def span(self) -> tuple[float, float]:
        """When its first frame is due, and the last that it has or lacks: seconds on the take's clock."""
        begin, end = float(self.stamps[0]), float(self.stamps[-1]) + self.num_empty_at_end / self.source_fps
        return begin + self.offset, end + self.offset

    @property
    def resampled(self) -> bool:
        """Whether frame k is not the k-th of the file, or of the interval that was cut."""
        start = self.video.interval[0] if self.video.interval else 0
        return not np.array_equal(self.numbers, start + np.arange(len(self.numbers)))


def choose_views(
    take: Mapping[Video, EncodedVideo | str], offset: Mapping[Video, float | None], settings: Settings
) -> tuple[list[EncodedVideo], list[dict]]:
    """The views of a take that go in, and the quarantine entries of those that do not.

    Args:
      take: its views: each as it was read, or the reason why it could not be.
      offset: seconds to add to the stamps, if the clock takes them from a table.
      settings: `min_frames` is that of a view's file, and of what all views span.
    """
    clock, max_length_difference = settings.clock, settings.max_length_difference
    views = [view for view in take.values() if isinstance(view, EncodedVideo)]
    reasons = {video: reason for video, reason in take.items() if isinstance(reason, str)}
    views = _keep_long(views, reasons, settings.min_frames, "")
    if clock is None:
        views = [_with_repeats(view) for view in views]
        if settings.synchronised:
            views = _keep_agreeing(
                views, reasons, lambda view: view.fps, lambda fps: fps * clocks.RATE_TOLERANCE, "fps"
            )
            views = _keep_agreeing(
                views, reasons, lambda view: len(view.frames), lambda _: max_length_difference, "frames"
            )
    else:
        views = _on_one_clock(views, reasons, offset, clock, max_length_difference)
        views = _keep_long(views, reasons, settings.min_frames, " in common with its take")
    if settings.synchronised and len(views) == 1:
        found = f"{len(take)} file{'s' * (len(take) > 1)} found"
        reasons[views[0].video] = f"the only view of its take ({found}); a pair needs two"
        views = []
    aside = [{"path": video.path, "take": video.take, "reason": reasons[video]} for video in take if video in reasons]
    return views, aside


def _keep_long(views: list[EncodedVideo], reasons: dict[Video, str], min_frames: int, which: str) -> list[EncodedVideo]:
    """The views that are not too short; the others get their reason."""
    for view in (view for view in views if len(view.frames) < min_frames):
        num_frames = f"{len(view.frames)} frame{'s' * (len(view.frames) != 1)}"
        reasons[view.video] = f"too short: {num_frames}{which}, fewer than --min_frames={min_frames}"
    return [view for view in views if view.video not in reasons]


def _with_repeats(view: EncodedVideo) -> EncodedVideo:
    """The view as players show it: an entry without a picture repeats the frame before."""
    if not view.repeats or view.video.interval is not None:  # an interval counts only frames that exist
        return view
    shown = clocks.shown_by_period(view.stamps, view.source_fps, view.num_empty_at_end)
    if len(shown) == len(view.frames):
        return view
    return _resampled(view, shown, np.concatenate([[False], np.diff(shown) == 0]))


def _resampled(view: EncodedVideo, shown: np.ndarray, gap: np.ndarray, **changes: float) -> EncodedVideo:
    return dataclasses.replace(
        view,
        frames=[view.frames[i] for i in shown.tolist()],
        stamps=view.stamps[shown],
        numbers=view.numbers[shown],
        num_gaps=int(gap.sum()),
        **changes,
    )


def _on_one_clock(
    views: list[EncodedVideo],
    reasons: dict[Video, str],
    offset: Mapping[Video, float | None],
    clock: Clock,
    max_length_difference: int,
) -> list[EncodedVideo]:
    """The views sampled at the ticks that all of them span. A view that cannot be sampled gets its reason instead."""
    placed = []
    for view in views:
        seconds = offset.get(view.video) if clock.by == clocks.BY_FILE else 0.0
        if clock.by in (clocks.BY_START, clocks.IF_ALIKE):
            seconds = 0.0 - view.begin
        if problem := clocks.disorder(view.stamps):
            reasons[view.video] = problem
        elif seconds is None:
            reasons[view.video] = "the table of --sync has no seconds for it"
        else:
            placed.append(dataclasses.replace(view, offset=seconds))
    placed = _keep_counted_alike(placed, reasons)
    if clock.by == clocks.IF_ALIKE:
        placed = _keep_alike_in_begin(placed, reasons, clock)
    while placed:
        rates = [view.source_fps for view in placed]
        fps = clock.fps or clocks.common_rate(rates)
        if clock.by == clocks.IF_ALIKE:  # very different lengths suggest that they did not begin together
            ticks = functools.partial(_num_ticks, fps=fps)
            alike = _keep_agreeing(placed, reasons, ticks, lambda _: max_length_difference, "frames")
            if len(alike) < len(placed):
                placed = alike
                continue
        meeting = _keep_meeting(placed, reasons)
        if len(meeting) < len(placed):
            placed = meeting
            continue
        times = [view.stamps + view.offset for view in placed]
        try:
            ticks = clocks.ticks([view.span for view in placed], rates, fps)
        except UserError as error:
            reasons |= {view.video: str(error) for view in placed}
            return []
        shown = [clocks.shown(time, rate, ticks) for time, rate in zip(times, rates, strict=True)]
        kept = []
        for view, (_, gap) in zip(placed, shown, strict=True):
            if problem := clocks.gap_problem(gap, ticks - view.offset, fps, clock):
                reasons[view.video] = problem
            else:
                kept.append(view)
        if len(kept) == len(placed):
            return [_resampled(view, *which, fps=fps) for view, which in zip(placed, shown, strict=True)]
        placed = kept  # without this view the others may span more
    return []


def _num_ticks(view: EncodedVideo, fps: float) -> int:
    begin, end = view.span
    return round((end - begin + 1 / view.source_fps) * fps)


def _keep_meeting(views: list[EncodedVideo], reasons: dict[Video, str]) -> list[EncodedVideo]:
    """The largest group of views with a time in common; empty if no two views have one."""
    spans = [view.span for view in views]
    groups = [
        [view for view, (begin, end) in zip(views, spans, strict=True) if begin <= time <= end] for time, _ in spans
    ]
    keep = max(groups, key=len)
    if len(keep) == 1 < len(views):
        keep = []
    told = ", ".join(
        f"{view.video.view} {begin:.2f} to {end:.2f} s" for view, (begin, end) in zip(views, spans, strict=True)
    )
    for view in views:
        if view not in keep:
            reasons[view.video] = f"no time in common with most of the take: {told}"
    return keep


def _keep_counted_alike(views: list[EncodedVideo], reasons: dict[Video, str]) -> list[EncodedVideo]:
    """All views; no series of images if one is numbered in other steps than another."""
    numbered = [view for view in views if view.step]
    if len({view.step for view in numbered}) < 2:
        return views
    for view in numbered:
        siblings = ", ".join(f"{other.video.view} {other.step}" for other in numbered if other is not view)
        reasons[view.video] = (
            f"its images are numbered in steps of {view.step}, its siblings' {siblings}: if one has fewer images per "
            "second, make videos of them, each of its own rate; if all have --frames_fps, number them alike, or pair "
            "them one by one (--sync=frames)"
        )
    return [view for view in views if not view.step]


def _keep_alike_in_begin(views: list[EncodedVideo], reasons: dict[Video, str], clock: Clock) -> list[EncodedVideo]:
    """All views; none if they do not begin together."""
    begins, rates = [view.begin for view in views], [view.source_fps for view in views]
    if len(views) < 2 or clocks.begin_together(begins, rates, clock.fps):
        return views
    for view in views:
        siblings = ", ".join(f"{other.video.view} {other.begin:.3f} s" for other in views if other is not view)
        reasons[view.video] = (
            f"its first frame is stamped {view.begin:.3f} s, its siblings' {siblings}: either they began at these "
            "times (--sync=timestamps), or all began at once and their clocks differ (--sync=start)"
        )
    return []


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
