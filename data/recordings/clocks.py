"""One clock for the views of a take: which of its frames a view shows at each tick, and where it has none.

Times are seconds. A view's stamps are the presentation times of its frames, increasing; with its offset added they are
times on the take's clock.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

from console.errors import UserError
from data.recordings import raw_video
from data.store.manifest import SPAN_TOLERANCE

# How the clocks of a take's files are related. None in place of a `Clock` pairs frames by their numbers.
BY_START = "start"  # the recordings begin together, so first frames are aligned
BY_TIMESTAMPS = "timestamps"  # all files have stamps of the same clock
BY_FILE = "file"  # as BY_TIMESTAMPS, after the seconds of a table were added
IF_ALIKE = "alike"  # first frames are aligned if their stamps agree; otherwise the take is refused

RATE_TOLERANCE = 0.01  # [ours] relative: 29.97 and 30 are the same rate, 25 and 30 are not
# [ours] Matroska and FLV round stamps to milliseconds, which changes the distance of two stamps by up to this much.
ROUNDING_SECONDS = 0.001
MAX_GAP_SHARE = 0.25  # [ours] of a view's ticks
MAX_GAP_SECONDS = 0.5  # [ours] a quarter of the 2 s that 16 frames of stride 4 span at 30 frames per second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """How the views of a take are put on one clock."""

    by: str  # one of the above
    fps: float | None  # ticks per second; None for the rate most views of a take have
    max_gap_share: float  # of a view's ticks, that may have no frame of their own
    max_gap_seconds: float  # of one gap


def rate(stamps: np.ndarray, stated: float) -> float:
    """Frames per second of a file: what its header states if the stamps agree with it, else the stamps' own rate.

    Lost frames do not change it: steps of more than one and a half of the usual ones are left out.
    """
    steps = np.diff(stamps)
    steps = steps[steps > 0]
    if not len(steps):
        return _tidied(stated, 1.0)
    usual = steps[steps <= 1.5 * np.median(steps)]
    measured = 1 / usual.mean()
    agree = abs(stated - measured) <= (RATE_TOLERANCE + ROUNDING_SECONDS / usual.sum()) * measured
    return _tidied(stated if agree else measured, usual.sum())


def _tidied(fps: float, seconds: float) -> float:
    """The nearest whole or NTSC rate, if a rate measured over `seconds` of rounded stamps may mean it."""
    whole = max(1, round(fps))
    nearest = min((whole, round(fps * 1.001) * 1000 / 1001), key=lambda known: abs(known - fps))
    return float(nearest if abs(nearest - fps) <= (2e-4 + ROUNDING_SECONDS / seconds) * fps else fps)


def common_rate(rates: Sequence[float]) -> float:
    """The rate that most views have. Of two equally common rates it is the lower, which needs no frame twice."""
    groups = [[rate for rate in rates if low <= rate <= low * (1 + RATE_TOLERANCE)] for low in sorted(rates)]
    return statistics.mode(sorted(max(groups, key=len)))


def begin_together(begins: Sequence[float], rates: Sequence[float], fps: float | None = None) -> bool:
    """Whether the first frames of files, by their stamps in seconds, are half a frame apart at most.

    `rates` are the files' frames per second, `fps` as of Clock.
    """
    return max(begins) - min(begins) <= 0.5 / (fps or common_rate(rates)) + ROUNDING_SECONDS


def remarks(views: Sequence[tuple[str, float, float | None]], fps: float | None, synchronised: bool) -> list[str]:
    """What a user should know of the rates of prepared views.

    Args:
      views: of each its take, and the frames per second of the record and of the file (None where it is not known).
      fps: as of Clock.
      synchronised: whether views of the data set may be put on one clock.
    """
    takes_at: dict[float, set[str]] = {}
    for rate, take in sorted({(rate, take) for take, rate, _ in views}):
        low = next(reversed(takes_at), 0.0)
        takes_at.setdefault(low if rate <= low * (1 + SPAN_TOLERANCE) else rate, set()).add(take)
    lines = []
    if len(takes_at) > 1:
        rates = ", ".join(f"{rate:.4g} ({len(takes)} take{'s' * (len(takes) > 1)})" for rate, takes in takes_at.items())
        advice = ". --fps=RATE prepares all at one rate, with any --sync but frames" if synchronised else ""
        lines.append(f"frames per second differ: {rates}, so a frame stride spans another time in each{advice}")
    slower = [source for *_, source in views if source is not None and fps and fps > source * (1 + SPAN_TOLERANCE)]
    if slower:
        times = math.ceil(fps / min(slower) - SPAN_TOLERANCE)
        lines.append(
            f"--fps={fps:g} is above the rate of {len(slower)} of {len(views)} files, {min(slower):.4g} at least: "
            f"their frames are stored up to {times} times in a row, as if nothing moved"
        )
    return lines


def disorder(stamps: np.ndarray) -> str:
    """Why a file's stamps cannot be used as times; '' if they can."""
    if not np.isfinite(stamps).all():
        return f"frame {int(np.argmin(np.isfinite(stamps)))} has no time"
    backwards = np.flatnonzero(np.diff(stamps) < 0)
    if not len(backwards):
        return ""
    at = int(backwards[0])
    return f"its time goes backwards: frame {at} is stamped {stamps[at]:.3f} s, and the next one {stamps[at + 1]:.3f} s"


def ticks(stamps: Sequence[Sequence[float]], rates: Sequence[float], fps: float) -> np.ndarray:
    """The ticks that all views span: from the last to begin to the first to end.

    Args:
      stamps: of each view, on the take's clock; the first and the last are looked at.
      rates: frames per second of each; a view ends half a frame after its last stamp.
      fps: ticks per second.

    Returns:
      float[T], seconds; none where the views have no time in common.

    Raises:
      ValueError: more than `raw_video.MAX_FRAMES`.
    """
    begin = max(float(view[0]) for view in stamps)
    end = min(float(view[-1]) + 0.5 / rate for view, rate in zip(stamps, rates, strict=True)) + ROUNDING_SECONDS / 2
    span = (end - begin) * fps
    if span >= raw_video.MAX_FRAMES:
        raise UserError(f"{span:.0f} frames at {fps:g} per second, above the limit of {raw_video.MAX_FRAMES}")
    return begin + np.arange(max(0, int(np.floor(span)) + 1)) / fps  # (T,)


def shown(stamps: np.ndarray, rate: float, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frame that a view shows at each tick: the nearest in time, or in a gap the one before.

    Args:
      stamps: float[N], of the view, on the take's clock.
      rate: of the view, frames per second.
      ticks: float[T].

    Returns:
      int[T], numbers of frames, and bool[T], whether the tick is in a gap: farther than half a frame from any.
    """
    after = np.searchsorted(stamps, ticks)
    before, after = np.maximum(after - 1, 0), np.minimum(after, len(stamps) - 1)
    # At half way between two frames, rounding errors must not decide: one frame would be repeated and the next skipped.
    later = stamps[after] - ticks < ticks - stamps[before] - 1.5 * ROUNDING_SECONDS
    later |= stamps[before] > ticks
    nearest = np.where(later, after, before)
    gap = np.abs(stamps[nearest] - ticks) > 0.5 / rate + ROUNDING_SECONDS
    held = np.maximum(np.searchsorted(stamps, ticks, side="right") - 1, 0)
    return np.where(gap, held, nearest), gap


def shown_by_period(stamps: np.ndarray, rate: float, num_after: int = 0) -> np.ndarray:
    """The frame that a player shows in each frame period of a file without times: the last that there was.

    `stamps` float[N] are seconds, `rate` is periods per second, and `num_after` periods follow the last frame. The
    result is int[T], numbers of frames.
    """
    periods = np.round((stamps - stamps[0]) * rate).astype(int)
    return np.searchsorted(periods, np.arange(periods[-1] + 1 + num_after), side="right") - 1


def gap_problem(gap: np.ndarray, ticks: np.ndarray, fps: float, clock: Clock) -> str:
    """Why a view's gaps are too many or too long for the clock, with the place of the longest; '' if they are not.

    `gap` bool[T] is that of `shown`; `ticks` float[T] are in the time of the view's file, `fps` per second.
    """
    if not gap.any():
        return ""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], gap, [False]])))
    begin, end = edges[::2], edges[1::2]
    longest = int(np.argmax(end - begin))
    seconds = (end - begin)[longest] / fps
    place = f"gap of {seconds:.2f} s at {ticks[begin[longest]]:.2f} s"
    if seconds > clock.max_gap_seconds + 1e-9:
        return f"{place}, longer than --max_gap_seconds={clock.max_gap_seconds:g}"
    if gap.mean() > clock.max_gap_share + 1e-9:
        return (
            f"no frame of its own for {gap.sum()} of {len(gap)} ticks, more than the part that "
            f"--max_gap_share={clock.max_gap_share:g} allows; the longest: {place}"
        )
    return ""
