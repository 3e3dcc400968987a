"""The preparation: files per second by workers, peak memory at two sizes of the set, bytes per clip against the source.

    python -m benchmarks.prepare
    python -m benchmarks.prepare --input=my_videos --pattern='{take}_cam{view}.mp4' --workers 1 2 4

Prepares copies of a few 1080p videos under the names of NTU-60 (written here, of NTU's median length of 76 frames, or,
with --input, videos of yours, as `--dataset=folder`), at sizes that differ by a factor of four, with the command line's
defaults. Memory is that of the largest process; if it does not grow with the set, the videos stream through. The
listing is measured by itself, with all 114,480 names of NTU-120 in an archive. Processor time counts all processes; on
a machine with other work it is the most reliable figure. Results: docs/preparation.md.
"""

import json
import os
import resource
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from benchmarks.experiment import run_python
from console.command import Parser, execute
from data import catalog
from data.recordings.listing import list_videos

HEIGHT, WIDTH, NUM_FRAMES = 1080, 1920, 76
SMALL, FACTOR = 16, 4  # takes of the smaller set; how many times more the larger one has


def write_video(path: Path, seed: int) -> None:
    """A patterned ball over a patterned room, H.264 as in NTU."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (27, 48, 3), np.uint8)
    room = np.kron(coarse, np.ones((40, 40, 1), np.uint8)) + rng.integers(0, 8, (HEIGHT, WIDTH, 3), np.uint8)
    ball = rng.integers(0, 255, (240, 240, 3), np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(NUM_FRAMES):
            picture = room.copy()
            picture[400:640, 20 * index : 20 * index + 240] = ball
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())


def copies(folder: Path, num_takes: int) -> Path:
    """Takes of three views under the names of NTU-60; all are links to three written videos."""
    written = [folder / "written" / f"{camera}.avi" for camera in (1, 2, 3)]
    written[0].parent.mkdir(exist_ok=True)
    for camera, path in enumerate(written):
        if not path.exists():
            write_video(path, seed=camera)
    raw = folder / f"raw{num_takes}"
    raw.mkdir()
    names = [name for name, _ in zip(catalog.get("ntu60").names(), range(3 * num_takes), strict=False)]
    for index, name in enumerate(names):
        os.link(written[index % 3], raw / name)
    return raw


def prepare(arguments: list[str], num_workers: int) -> tuple[float, float, float, dict]:
    """Seconds, seconds of processor time, megabytes of the largest process so far, and prepared.json."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as output:
        began = time.perf_counter()
        run_python("-m", "data.prepare", *arguments, f"--output={output}", f"--workers={num_workers}", quiet=True)
        seconds = time.perf_counter() - began
        prepared = json.loads((Path(output) / "prepared.json").read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu_seconds, after.ru_maxrss / 1024, prepared


def listing(folder: Path) -> None:
    """Time and memory of the listing alone: what does grow with the set."""
    with zipfile.ZipFile(folder / "ntu120.zip", "w") as file:
        for name in catalog.get("ntu120").names():
            file.writestr(name, b"")
    began = time.perf_counter()
    list_videos(catalog.get("ntu120"), folder)
    seconds = time.perf_counter() - began
    tracemalloc.start()  # which slows it down
    _, found = list_videos(catalog.get("ntu120"), folder)
    kept, peak = (size / 2**20 for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    print(f"listing of {len(found.videos)} videos: {seconds:.1f} s, {kept:.0f} MB kept, {peak:.0f} MB at its peak")


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.prepare", __doc__)
    parser.add_argument("--input", type=Path, help="videos of yours, in place of written ones")
    parser.add_argument("--pattern", help="of their names; see python -m data.prepare --help")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers to try (1 2)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.input:
            pattern = [f"--pattern={options.pattern}"] if options.pattern else []
            sets = {"given": ["--dataset=folder", f"--input={options.input.absolute()}", *pattern]}
        else:
            sizes = (SMALL, FACTOR * SMALL)
            sets = {f"{size} takes": ["--dataset=ntu60", f"--input={copies(folder, size)}"] for size in sizes}
        print("set        workers  files       s  files/s  CPU ms/frame     MB  clip against source")
        for workers in options.workers:
            for name, arguments in sets.items():
                seconds, cpu_seconds, megabytes, prepared = prepare(arguments, workers)
                counts = prepared["counts"]
                files, frames = counts["files_in"], counts["frames"]
                sizes = [counts[key] / files / 1e6 for key in ("bytes", "bytes_in")]
                print(
                    f"{name:<10} {workers:>7} {files:>6} {seconds:>7.1f} {files / seconds:>8.2f} "
                    f"{1e3 * cpu_seconds / frames:>13.2f} {megabytes:>6.0f}  {sizes[0]:.2f} MB / {sizes[1]:.2f} MB"
                )
        (folder / "names").mkdir()
        listing(folder / "names")


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.prepare", main))
