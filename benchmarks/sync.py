"""How far `data.sync` is from the truth on generated takes whose views begin at known times, with a clap and without.

    python -m benchmarks.sync
    python -m benchmarks.sync --takes=20 --seed=7

Every view of a generated take loses up to half a second at its beginning and becomes an H.264 file whose times start at
zero. For the estimates from sound it has a clap, in noise of its own. Results: docs/your_videos.md.
"""

import io
import itertools
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.experiment import OUTPUT
from console.command import Parser, execute
from data import sync
from data.synthetic import rooms
from data.synthetic.generate import CATALOG, generate

FPS = 30
SOUND_RATE = 16_000
MAX_LATE_FRAMES = 15
CLAP_SAMPLES = 800  # 0.05 s


def late(source: Path, num_lost: int, clap_seconds: float | None, rng: np.random.Generator) -> io.BytesIO:
    """A generated video without its first `num_lost` frames, and with a clap at a time of the original if asked for."""
    target = io.BytesIO()
    with av.open(str(source)) as original, av.open(target, "w", format="mp4") as output:
        given = original.streams.video[0]
        stream = output.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = given.width, given.height, "yuv420p"
        sound = None if clap_seconds is None else output.add_stream("aac", rate=SOUND_RATE, layout="mono")
        num_frames = 0
        for frame in itertools.islice(original.decode(given), num_lost, None):
            frame.pts, frame.time_base = num_frames, Fraction(1, FPS)
            output.mux(stream.encode(frame))
            num_frames += 1
        output.mux(stream.encode())
        if sound is not None:
            heard = 0.01 * rng.standard_normal(round(num_frames / FPS * SOUND_RATE))
            begin = round((clap_seconds - num_lost / FPS) * SOUND_RATE)
            clap = np.exp(-np.arange(CLAP_SAMPLES) / 160) * rng.standard_normal(CLAP_SAMPLES)
            heard[begin : begin + CLAP_SAMPLES] += clap[: len(heard) - begin]
            for first in range(0, len(heard) - 1023, 1024):
                part = heard[None, first : first + 1024].astype(np.float32)
                heard_frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                heard_frame.sample_rate, heard_frame.pts = SOUND_RATE, first
                heard_frame.time_base = Fraction(1, SOUND_RATE)
                output.mux(sound.encode(heard_frame))
            output.mux(sound.encode())
    target.seek(0)
    return target


def errors(takes: Sequence[dict[str, Path]], method: str, seed: int) -> list[float]:
    """Of each pair of views with an estimate: by how many frames it is wrong."""
    found = []
    for number, views in enumerate(takes):
        rng = np.random.default_rng((seed, number))
        num_lost = {view: int(rng.integers(0, MAX_LATE_FRAMES + 1)) for view in views}
        clap_seconds = float(rng.uniform(0.7, 1.5)) if method == "sound" else None
        files = {view: late(path, num_lost[view], clap_seconds, rng) for view, path in views.items()}
        estimate = sync.estimate(files, method, sync.MAX_OFFSET_SECONDS, sync.MIN_CONFIDENCE)
        sure = [view for view in views if estimate.confidence.get(view, 0.0) >= sync.MIN_CONFIDENCE]
        for one, other in itertools.combinations(sure, 2):
            apart = (estimate.seconds[other] - estimate.seconds[one]) * FPS
            found.append(abs(apart - (num_lost[other] - num_lost[one])))
    return found


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.sync", __doc__)
    parser.add_argument("--takes", type=int, default=100, metavar="N", help="of three views (100)")
    parser.add_argument("--seed", type=int, default=1, help="of the generated takes and of their offsets (1)")
    parser.add_argument("--folder", type=Path, default=OUTPUT / "sync", help="for the generated videos (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    raw = options.folder / f"raw_{options.takes}_seed{options.seed}"
    generate(raw, options.takes, options.seed, workers=1, style=rooms.Style(width=160, height=90))
    takes: dict[str, dict[str, Path]] = {}
    for path in sorted(raw.glob("*.avi")):
        video = CATALOG.parse(path.name)
        takes.setdefault(video.take, {})[video.view] = path
    for method in ("sound", "motion"):
        found = np.array(errors(list(takes.values()), method, options.seed))
        pairs = sum(len(views) * (len(views) - 1) // 2 for views in takes.values())
        figures = {"from": method, "pairs": pairs, "with_an_estimate": len(found)}
        if len(found):
            figures |= {
                "median_error_frames": round(float(np.median(found)), 3),
                "95_percent": round(float(np.quantile(found, 0.95)), 3),
                "largest": round(float(found.max()), 3),
            }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.sync", main))
