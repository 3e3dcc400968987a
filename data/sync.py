"""Estimates when the files of a take began, from their sound or from movement, and writes a table of offsets.

`data.prepare --sync=FILE.csv` reads the table. Where all views of a take have sound, the onsets of their sounds are
compared (a clap is best). Otherwise it compares how strongly the picture changes over time, which rises and falls in
every view. An estimate has a confidence from 0 to 1. If that is too small, the seconds stay empty, and preparation sets
the view aside. Every take gets a plot to look at.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import matplotlib.figure
import numpy as np
import scipy.ndimage
import scipy.signal

from console import progress, workers
from console.command import ExitCode, Parser, execute
from console.errors import UserError
from data import catalog
from data.catalog import Video, folder
from data.recordings import archives, clocks, offsets, raw_video
from data.recordings.listing import list_videos
from data.store.whole_files import write_whole

PROG = "python -m data.sync"
EXAMPLES = """
python -m data.sync --input=videos --pattern='{take}_cam{view}.mp4' --output=offsets.csv
python -m data.sync --input=videos --output=offsets.csv --method=motion --max_offset=30
"""
METHODS = ("auto", "sound", "motion")
SOUND_RATE = 16_000  # [ours] samples per second
# [ours] Stamps of sound that are off by more than this from the samples before begin anew. Matroska rounds them to
# milliseconds.
SOUND_GAP_SECONDS = 0.02
RATE = {"sound": 200, "motion": 120}  # [ours] values per second of the curves that are compared
SMOOTHING_SECONDS = {"sound": 0.01, "motion": 0.035}  # [ours]
TREND_SECONDS = {"sound": 1.0, "motion": 0.2}  # [ours] slower changes come from light, compression and distance
SHORT_SIDE = 90  # [ours] pixels of the frames whose differences are taken
MOVING = 97  # [ours] percentile of a picture's differences; high, because what moves may be small
INDEPENDENT_SECONDS = 1 / 15  # [ours] values of a curve that are nearer than this do not count separately
MIN_OVERLAP = 0.6  # [ours] share of the shorter of two curves that must lie within the other
PEAK_SECONDS = 0.15  # [ours] offsets that are this near to the best one count as the same
# [ours] An offset whose log likelihood exceeds that of all others by this much has a confidence of 0.63.
SURE = {"sound": 8.0, "motion": 11.0}
MIN_CONFIDENCE = 0.7  # [ours] docs/your_videos.md has the errors that were measured with it
MAX_OFFSET_SECONDS = 10.0  # [ours]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """How much happens in a view, over the time of its file."""

    first: int  # time of the first value, in steps of 1 / RATE seconds
    values: np.ndarray  # float[N], of mean 0 and deviation 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is known of a take's views."""

    method: str  # 'sound', 'motion', or '' if fewer than two views have a curve
    seconds: Mapping[str, float]  # view -> to add to its stamps
    confidence: Mapping[str, float]  # view -> 0 to 1
    curves: Mapping[str, Curve]
    problems: Mapping[str, str]  # view -> why it has no curve


def motion_curve(file: BinaryIO) -> Curve:
    """How strongly the picture changes; `raw_video.BadVideo` if it cannot be read."""
    source = raw_video.open_source(file)
    greys, strengths = [], []
    for frame in raw_video.frames(source, SHORT_SIDE):
        greys.append(cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0))
        if len(greys) == 3:  # over two steps: a movement grows with time, the noise of compression does not
            strengths.append(np.percentile(np.abs(greys[2] - greys.pop(0)), MOVING))
    seconds = np.array(source.seconds)
    if problem := clocks.disorder(seconds):
        raise raw_video.BadVideo(problem)
    steps = seconds[2:] - seconds[:-2]
    lost = np.maximum(steps * source.fps / 2, 1)  # over a longer step the difference is larger
    return _curve(seconds[:-2] + steps / 2, np.log(np.array(strengths) / lost + 1), "motion")


def sound_curve(file: BinaryIO) -> Curve:
    """When sounds begin; `raw_video.BadVideo` if it cannot be read, or has no sound."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SOUND_RATE)
    sections: list[tuple[float, list[np.ndarray]]] = []  # between gaps: time of the first sample, and samples
    end = 0.0  # of the last of them, seconds
    with raw_video.open_source(file).container as container:
        if not container.streams.audio:
            raise raw_video.BadVideo("has no sound")
        try:
            for frame in container.decode(container.streams.audio[0]):
                time = end if frame.time is None else frame.time
                if not sections or time > end + SOUND_GAP_SECONDS:
                    sections.append((time, []))
                    end = time
                elif time < end - SOUND_GAP_SECONDS:
                    raise raw_video.BadVideo(f"the time of its sound goes back, from {end:.3f} s to {time:.3f} s")
                end += frame.samples / frame.sample_rate
                frame.pts = None  # otherwise the resampler would report a gap as an error
                sections[-1][1].extend(part.to_ndarray()[0] for part in resampler.resample(frame))
        except av.FFmpegError as error:
            raise raw_video.BadVideo(f"its sound cannot be decoded: {error.strerror or error}") from error
    hop, times, powers = SOUND_RATE // RATE["sound"], [], []
    for begin, samples in sections:
        sound = np.concatenate([*samples, np.zeros(0, np.float32)])
        powers.append(np.square(sound[: len(sound) // hop * hop].reshape(-1, hop)).mean(axis=1))
        times.append(begin + (1 + np.arange(max(0, len(powers[-1]) - 1))) / RATE["sound"])
    loudest = max((power.max(initial=0.0) for power in powers), default=0.0)
    if sum(map(len, powers)) < 3 or loudest < 1e-9:  # silence
        raise raw_video.BadVideo("has no sound")
    onsets = [np.maximum(np.diff(np.log(power + 1e-3 * loudest)), 0) for power in powers]
    return _curve(np.concatenate(times), np.concatenate(onsets), "sound")


def _curve(seconds: np.ndarray, values: np.ndarray, method: str) -> Curve:
    """Values at any times -> a curve at regular times, without its trend."""
    rate = RATE[method]
    if len(seconds) < 2 or seconds[-1] - seconds[0] < 2 * PEAK_SECONDS:
        raise raw_video.BadVideo("is too short to be compared")
    steps = np.arange(np.ceil(seconds[0] * rate), np.floor(seconds[-1] * rate) + 1)
    values = np.interp(steps / rate, seconds, values)
    values -= scipy.ndimage.gaussian_filter1d(values, TREND_SECONDS[method] * rate, mode="nearest")
    values = scipy.ndimage.gaussian_filter1d(values, SMOOTHING_SECONDS[method] * rate)
    return Curve(first=int(steps[0]), values=(values - values.mean()) / (values.std() + 1e-9))


def likelihood(a: Curve, b: Curve, rate: int, max_offset: float) -> tuple[np.ndarray, np.ndarray]:
    """How likely each offset of b from a is.

    Correlated Gaussian curves with correlation r are so much more likely than independent ones: -log(1 - r^2) / 2 for
    each independent value. A high correlation over a short overlap thus counts less.

    Args:
      a, b: the curves; a positive offset is added to the times of b.
      rate: steps per second.
      max_offset: seconds; K is as many steps.

    Returns:
      float[2 K + 1], log likelihoods for -K to K steps, -inf for impossible offsets; and the number of independent
      values that each rests on.
    """
    largest = round(max_offset * rate)
    sums = functools.partial(scipy.signal.correlate, mode="full", method="fft")
    x, y = a.values, b.values
    every_x, every_y = np.ones_like(x), np.ones_like(y)
    count = np.maximum(np.round(sums(every_x, every_y)), 1)
    mean_x, mean_y = sums(x, every_y) / count, sums(every_x, y) / count
    variance_x = np.maximum(sums(x * x, every_y) / count - mean_x**2, 1e-6)
    variance_y = np.maximum(sums(every_x, y * y) / count - mean_y**2, 1e-6)
    r = np.clip((sums(x, y) / count - mean_x * mean_y) / np.sqrt(variance_x * variance_y), 0, 0.999)
    independent = count / (rate * INDEPENDENT_SECONDS)
    found = -0.5 * np.log(1 - r**2) * independent
    found[count < MIN_OVERLAP * min(len(x), len(y))] = -np.inf
    steps = np.arange(len(found)) - (len(y) - 1) + a.first - b.first
    wanted, values = np.full(2 * largest + 1, -np.inf), np.zeros(2 * largest + 1)
    inside = np.abs(steps) <= largest
    wanted[steps[inside] + largest], values[steps[inside] + largest] = found[inside], independent[inside]
    return wanted, values


def place(curves: Mapping[str, Curve], method: str, max_offset: float) -> tuple[dict[str, float], dict[str, float]]:
    """The seconds and the confidence of each view. The surest is placed first, and each later one against all before.

    `curves` are those of two views or more; `max_offset` is in seconds, between any two.
    """
    rate, views = RATE[method], list(curves)
    pairs = {}
    for one, other in itertools.combinations(views, 2):
        pairs[one, other] = likelihood(curves[one], curves[other], rate, max_offset)
        pairs[other, one] = tuple(part[::-1] for part in pairs[one, other])
    largest = len(pairs[views[0], views[1]][0]) // 2

    def against(view: str, placed: Mapping[str, float]) -> tuple[float, float]:
        """The best offset of a view in steps, and how much its log likelihood exceeds that of any other."""
        grid = np.arange(-2 * largest, 2 * largest + 1)
        total, count = np.zeros(len(grid)), np.zeros(len(grid))
        for other in (other for other in placed if other != view):
            (found, values), at = pairs[other, view], placed[other]
            total += np.interp(grid - at, np.arange(-largest, largest + 1), found, -np.inf, -np.inf)
            count += np.interp(grid - at, np.arange(-largest, largest + 1), values, 0, 0)
        best = int(np.argmax(total))
        if not np.isfinite(total[best]):
            return 0.0, 0.0
        apart = (np.abs(grid - grid[best]) > PEAK_SECONDS * rate) & np.isfinite(total)
        # Compared by the number of values that both offsets have; otherwise a repeated movement would seem sure at its
        # longest overlap.
        each = total[best] / count[best] - total[apart] / count[apart]
        margin = (each * np.minimum(count[apart], count[best])).min(initial=total[best])
        left, middle, right = total[max(best - 1, 0)], total[best], total[min(best + 1, len(total) - 1)]
        bend = left - 2 * middle + right
        return grid[best] + (0.5 * (left - right) / bend if np.isfinite(bend) and bend < 0 else 0.0), margin

    first = max(views, key=lambda view: max(against(view, {other: 0.0})[1] for other in views if other != view))
    placed, margin = {first: 0.0}, {}
    while len(placed) < len(views):
        found = {view: against(view, placed) for view in views if view not in placed}
        surest = max(found, key=lambda view: found[view][1])
        placed[surest], margin[surest] = found[surest]
    for view in views:  # once more, now against all
        placed[view], margin[view] = against(view, placed)
    confidence = {view: float(1 - np.exp(-max(margin[view], 0.0) / SURE[method])) for view in views}
    return {view: float(placed[view] - placed[views[0]]) / rate for view in views}, confidence


def estimate(files: Mapping[str, BinaryIO], method: str, max_offset: float, min_confidence: float) -> Estimate:
    """When the views of a take began.

    Args:
      files: view -> what FFmpeg reads, seekable.
      method: one of METHODS; auto takes sound if all views have sound and it gives an estimate, else motion.
      max_offset: seconds between two views.
      min_confidence: below it an estimate from sound is not used.
    """
    found = Estimate(method="", seconds={}, confidence={}, curves={}, problems={})
    for name, curve_of in (("sound", sound_curve), ("motion", motion_curve)):
        if method not in ("auto", name):
            continue
        curves, problems = {}, {}
        for view, file in files.items():
            try:
                curves[view] = curve_of(file)
            except raw_video.BadVideo as error:
                problems[view] = str(error)
        if len(curves) < 2 or (name == "sound" and method == "auto" and problems):
            found = dataclasses.replace(found, problems=problems)
            continue
        seconds, confidence = place(curves, name, max_offset)
        found = Estimate(method=name, seconds=seconds, confidence=confidence, curves=curves, problems=problems)
        if min(confidence.values()) >= min_confidence:
            break
    return found


def plot(found: Estimate, title: str, min_confidence: float, path: Path) -> None:
    """The curves of a take's views, each where it was placed: they should rise and fall together."""
    rate = RATE[found.method]
    figure = matplotlib.figure.Figure((10, 1 + 1.2 * len(found.curves)), layout="constrained")
    axes = figure.subplots(len(found.curves), sharex=True)
    figure.suptitle(f"{title}, from {found.method}: do the curves rise and fall together?", parse_math=False)
    for axis, (view, curve) in zip(axes, found.curves.items(), strict=True):
        times = (curve.first + np.arange(len(curve.values))) / rate + found.seconds[view]
        refused = found.confidence[view] < min_confidence
        axis.plot(times, curve.values, color="tab:red" if refused else "tab:blue", linewidth=1)
        axis.set_ylabel(view, parse_math=False)  # names may hold $
        said = f"{found.seconds[view]:+z.3f} s, confidence {found.confidence[view]:.2f}"
        axis.set_title(said + ", not used" * refused, fontsize=9, loc="right")
        axis.grid(axis="x")
    axes[-1].set_xlabel("s, on the clock of the take")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _take(videos: Sequence[Video], options: argparse.Namespace) -> tuple[list[list[object]], list[str]]:
    """Rows of the table, and remarks for the user."""
    rows, said, files = [], [], {}
    cv2.setNumThreads(1)
    paths = [video.path for video in videos]
    with archives.Reader(options.input, paths, frames_fps=options.frames_fps) as reader:
        for video in videos:
            try:
                files[video.view] = reader.enter_context(reader.open(video.path))
            except archives.BadArchive as error:
                said.append(f"{video.path}: {error}")
        found = estimate(files, options.method, options.max_offset, options.min_confidence)
    take = videos[0].take
    if found.method:
        plot(found, take, options.min_confidence, plots_of(options.output) / f"{take}.png")
    for video in videos:
        confidence = found.confidence.get(video.view, 0.0)
        used = video.view in found.seconds and confidence >= options.min_confidence
        seconds = f"{found.seconds[video.view]:z.4f}" if used else ""
        rows.append([take, video.view, seconds, f"{confidence:.3f}", found.method])
        if video.view in found.problems:
            said.append(f"{video.path}: {found.problems[video.view]}")
        elif not used:
            said.append(f"{video.path}: confidence {confidence:.3f}, below {options.min_confidence:g}: not guessed")
    return rows, said


def plots_of(output: Path) -> Path:
    """The folder of the takes' plots."""
    return output.with_name(f"{output.stem}_plots")


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        __doc__,
        examples=EXAMPLES,
        exit_codes={
            ExitCode.DONE: "all views have their seconds",
            ExitCode.PARTLY: "some views were not guessed: the table has no seconds for them, and the end says which",
        },
    )
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="folder with the raw videos")
    parser.add_argument(
        "--pattern", help=f"of their names, as python -m data.prepare has it (default: '{folder.DEFAULT_PATTERN}')"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.csv", help="the table; plots lie beside it")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="what is compared: auto takes sound where all views have it and it tells, else motion (auto)",
    )
    parser.add_argument(
        "--max_offset",
        type=float,
        default=MAX_OFFSET_SECONDS,
        metavar="S",
        help=f"seconds that two views may be apart by the times of their files ({MAX_OFFSET_SECONDS:g})",
    )
    parser.add_argument(
        "--min_confidence",
        type=float,
        default=MIN_CONFIDENCE,
        metavar="C",
        help=f"0 to 1; below, nothing is guessed ({MIN_CONFIDENCE:g})",
    )
    parser.add_argument(
        "--frames_fps",
        type=float,
        metavar="RATE",
        help="of folders of numbered images, as for `python -m data.prepare`",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (all CPUs)")
    parser.add_argument("--overwrite", action="store_true", help="replace a table that is there")
    parser.add_progress()
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not 0 <= options.min_confidence <= 1 or not 0 < options.max_offset < np.inf or options.workers < 1:
        parser.error("--min_confidence is 0 to 1, --max_offset above 0 and finite, --workers 1 or more")
    if options.frames_fps is not None and not 0 < options.frames_fps <= 1000:
        parser.error(f"--frames_fps={options.frames_fps:g} is not above 0, and 1000 at most")
    progress.configure(options.progress)
    return execute(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.output.exists() and not options.overwrite:
        raise UserError(
            f"--output={options.output} exists, and may hold seconds that were set by hand. Choose another name, or "
            "replace it by --overwrite."
        )
    names = catalog.get("folder", pattern=options.pattern, num_classes=None)
    _, listing = list_videos(names, options.input, options.frames_fps)
    options.output.parent.mkdir(parents=True, exist_ok=True)  # else it is missed only after all is estimated
    takes = [list(videos) for _, videos in itertools.groupby(listing.videos, key=lambda video: video.take)]
    rows, said = [], []
    one_take = functools.partial(_take, options=options)
    with workers.pool(min(options.workers, max(1, len(takes)))) as processes:
        estimates = processes.map(one_take, takes)
        for of_take, remarks in progress.track(estimates, "estimating", "takes", total=len(takes), leave=True):
            rows += of_take
            said += remarks
    write_whole(options.output, offsets.text(rows, ("confidence", "method")), durable=True)
    of_takes = f"{len(takes)} take{'s' * (len(takes) > 1)} of {len(rows)} views"
    print(f"{of_takes}: {options.output}, plots to look at: {plots_of(options.output)}")
    for line in said:
        print(f"  {line}")
    return ExitCode.PARTLY if said else ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
