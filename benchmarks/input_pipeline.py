"""The input pipeline: what a core delivers, by stage, codec, stored size, repeats and workers, beside H.264 by PyAV.

    python -m benchmarks.input_pipeline               # generated videos
    python -m benchmarks.input_pipeline --videos=my_videos --pattern='{take}_cam{view}.mp4' --workers 0 2
    python -m benchmarks.input_pipeline --memory      # reads the memory during a longer run, and nothing else
    python -m benchmarks.input_pipeline --manifest    # opens a set of a million takes, and nothing else

A view-clip is 16 frames at stride 4 of one view, cropped to 128x128 pixels: configs/pretrain_base.py. Rates are per
second of *processor time* of all threads and worker processes, so that other work on the machine has little influence.
Its remaining influence (caches, memory, a core's second thread) is the same for all variants, because they take turns
within each round. The figures are medians over the rounds, with their range; ratios are taken within a round. Files lie
in the page cache.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.experiment import run_python
from configs import pretrain_base
from console.command import Parser, execute
from data import catalog, pipeline, samples
from data.dataset import Dataset
from data.motion import motion_energy
from data.store import dct, digests, frame_index, jpeg, takes

BATCH = 16  # samples of two view-clips
ELEMENTS = 1000
MILLION = 10**6

Rates = dict[str, dict[str, list[float]]]  # variant -> stage -> a value for each round


def prepare(folder: Path, videos: Path | None, pattern: str | None, codec: str, short_side: int) -> Path:
    """A prepared set of the given videos, or of generated ones."""
    output = folder / f"{codec} {short_side}"
    if videos is None:
        videos, names = folder / "raw", ["--dataset=synthetic"]
        if not videos.exists():
            made = ("--takes=8", "--resolution=384x216", f"--output={videos}")
            run_python("-m", "data.synthetic", *made, quiet=True)
    else:
        names = ["--dataset=folder", *([f"--pattern={pattern}"] if pattern else [])]
    paths, form = (f"--input={videos}", f"--output={output}"), (f"--codec={codec}", f"--short_side={short_side}")
    run_python("-m", "data.prepare", *names, *paths, *form, "--workers=2", quiet=True)
    return output


def open_dataset(directory: Path, repeats: int = 1, motion_on: str = "host") -> Dataset:
    config = pretrain_base.get_config()
    config.data.update(dict(dir=str(directory), holdout_fraction=0.0, repeats=repeats, motion_on=motion_on))
    dataset = Dataset.from_config(config)
    # grain's shuffle takes 5 ms to find the next of four elements, but 0.03 ms for one of a thousand. So a few videos
    # are listed many times.
    elements = np.tile(dataset.train.elements, (-(-ELEMENTS // len(dataset.train.elements)), 1))
    return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, elements=elements))


def cpu_seconds() -> float:
    """Processor time of this process and of the grain workers that it has started."""
    total, tick = time.process_time(), os.sysconf("SC_CLK_TCK")
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def stages(dataset: Dataset) -> dict[str, float]:
    """Milliseconds of processor time per view-clip of each stage, one after the other in this thread."""
    prepared, spec = dataset.prepared, dataset.spec
    num_elements = len(dataset.train.elements)
    drawn = [samples.draw_sample(dataset, i % num_elements, np.random.default_rng(i)) for i in range(BATCH)]
    indices = [samples._frame_indices(prepared, spec, one["video"]) for one in drawn]
    wanted = [
        (int(prepared.views["record"][row]), frames)
        for one, frames in zip(drawn, indices, strict=True)
        for row in one["video"].rows
    ]
    spent = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        spent[stage] = 1e3 * (time.process_time() - began) / len(wanted)
        return result

    (shards,) = prepared.stored.values()
    stored = timed("read", lambda: [shards.read(record, frames) for record, frames in wanted])
    if prepared.codec == "dct":
        batch = np.zeros((len(wanted), spec.num_frames, *prepared.coefficients_shape), np.int8)

        def unpack() -> None:
            for frames, places in zip(stored, batch, strict=True):
                for frame, place in zip(frames, places, strict=True):
                    dct.put(dct.unpack(frame)[0], place)

        timed("decode", unpack)
    else:
        boxes = [box for one in drawn for (box,) in samples._boxes(prepared, spec, one["video"])]
        windows = zip(stored, boxes, strict=True)
        decoded = timed("decode", lambda: [list(jpeg.decode_window(frames, box)) for frames, box in windows])
        batch = np.ones((len(wanted), spec.num_frames, *spec.crop_size, 3), np.uint8)  # in memory already written to

        def crop() -> None:
            for frames, (_, _, *size), into in zip(decoded, boxes, batch, strict=True):
                samples.crop_frames(frames, [(0, 0, *size)], into[None])

        timed("crop", crop)
        timed("motion", lambda: [motion_energy(clip, spec.tubelet_size) for clip in batch])
    import jax

    timed("transfer", lambda: jax.block_until_ready(jax.device_put(batch)))
    clip = batch[0].nbytes
    return spent | {
        "bytes read": float(np.mean([sum(map(len, frames)) for frames in stored])),
        "bytes to the device": float(clip),
    }


def whole_pipeline(directory: Path, repeats: int, num_workers: int, num_batches: int, motion_on: str = "host") -> float:
    """Milliseconds of processor time per view-clip through grain."""
    dataset = open_dataset(directory, repeats, motion_on)
    batches = pipeline.train_batches(
        dataset, seed=0, start_step=0, global_batch_size=BATCH * repeats, num_workers=num_workers
    )
    next(batches)
    settle()  # so that reading ahead counts the same before and after
    began = cpu_seconds()
    for _ in range(num_batches):
        next(batches)
    settle()
    num_clips = num_batches * BATCH * repeats * (1 + dataset.spec.num_source_views)
    spent = 1e3 * (cpu_seconds() - began) / num_clips
    batches.close()
    return spent


def memory(directory: Path, num_workers: int, num_batches: int = 25, num_readings: int = 9) -> list[float]:
    """Megabytes of this process and its grain workers, from the start and after every `num_batches` batches."""
    batches = pipeline.train_batches(
        open_dataset(directory), seed=0, start_step=0, global_batch_size=BATCH, num_workers=num_workers
    )
    readings = []
    for _ in range(num_readings):
        readings.append(megabytes())
        for _ in range(num_batches):
            next(batches)
    batches.close()
    return readings


def megabytes() -> float:
    """Megabytes of this process and its grain workers. Shared memory counts once."""
    pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.search(r"^Pss: +(\d+)", rollup, re.MULTILINE)[1]) for rollup in rollups) * 1024 / 1e6


def settle() -> None:
    """Waits until the threads and processes that read ahead have nothing to do."""
    before = -1.0
    while cpu_seconds() - before > 0.01:
        before = cpu_seconds()
        time.sleep(0.3)


def pyav(videos: list[Path], seed: int) -> float:
    """Milliseconds of processor time to cut a clip of 128x128 pixels at a random place out of a video as it was filmed.

    Seeks to the key frame before the first frame, decodes to the last one, and converts those that are wanted.
    """
    rng = random.Random(seed)
    path, began = rng.choice(videos), time.process_time()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        num_frames = stream.frames or 100
        start = rng.randrange(max(1, num_frames - 61))
        seconds_per_frame = 1 / float(stream.average_rate)
        container.seek(int(start * seconds_per_frame / stream.time_base), stream=stream)
        wanted = set(range(start, start + 64, 4))
        for frame in container.decode(stream):
            number = round(float(frame.pts * stream.time_base) / seconds_per_frame)
            if number in wanted:
                frame.to_ndarray(width=128, height=128, format="rgb24")
            if number >= start + 60:
                break
    return 1e3 * (time.process_time() - began)


def measure(sets: dict[str, Path], videos: list[Path], rounds: int, workers: list[int]) -> Rates:
    found: Rates = {}

    def add(variant: str, values: dict[str, float]) -> None:
        for stage, value in values.items():
            found.setdefault(variant, {}).setdefault(stage, []).append(value)

    for number in range(rounds):
        for variant, directory in list(sets.items())[:: 1 if number % 2 else -1]:
            add(variant, stages(open_dataset(directory)))
            for repeats, num_workers in itertools.product((1, 4), workers):
                spent = whole_pipeline(directory, repeats, num_workers, num_batches=16 // repeats)
                add(variant, {f"pipeline, repeats={repeats}, workers={num_workers}": spent})
                if variant.startswith("jpeg"):
                    spent = whole_pipeline(directory, repeats, num_workers, 16 // repeats, motion_on="device")
                    add(variant, {f"pipeline, repeats={repeats}, workers={num_workers}, motion_on=device": spent})
        add("PyAV", {"decode": statistics.mean(pyav(videos, seed) for seed in range(4 * number, 4 * number + 4))})
        print(f"round {number + 1} of {rounds} done", flush=True)
    return found


def report(found: Rates) -> str:
    """Rates per core, and ratios to JPEG of the same size taken round by round: median (least to most)."""
    lines = []
    for variant, columns in found.items():
        lines.append(f"{variant}")
        for stage, values in columns.items():
            if stage.startswith("bytes"):
                lines.append(f"  {stage:<48} {values[0] / 1e3:9.0f} kB per view-clip")
                continue
            rates = [1e3 / value for value in values]
            line = f"  {stage:<48} {spread(values, '.3f')} ms  {spread(rates, '.0f')} clips/s"
            baseline = variant.replace("dct", "jpeg")
            if baseline != variant:
                ratios = [base / value for base, value in zip(found[baseline][stage], values, strict=True)]
                line += f"  {spread(ratios, '.2f')} x {baseline}"
            lines.append(line)
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


# --- the manifest of a million takes


def write_manifest(directory: Path) -> None:
    """What `open_prepared` reads of a set of a million takes of two views: empty shards, a manifest, digests."""
    per_shard, num_views = 2**14, 2 * MILLION
    numbers = np.arange(num_views)
    take = np.char.mod("S%07d", numbers // 2)
    columns = {
        "take": pa.array(take.astype(object)),
        "view": pa.array(np.where(numbers % 2, "C001", "C002").astype(object)),
        "record": pa.array(numbers),
        "num_frames": pa.array(np.full(num_views, 80, np.int32)),
        "fps": pa.array(np.full(num_views, 30, np.float32)),
        **{name: pa.array(np.full(num_views, 170, np.int32)) for name in ("height", "width")},
        "label": pa.array((numbers // 2 % 120).astype(np.int32)),
        **{name: pa.array(np.zeros(num_views, np.int32)) for name in ("subject", "setup", "camera", "performance")},
        "listed_split": pa.array([""] * num_views),
        "checksum": pa.array(numbers.astype(np.uint32)),
    }
    pq.write_table(pa.table(columns), directory / "manifest.parquet")
    shards = []
    for shard, first in enumerate(range(0, num_views, per_shard)):
        (directory / f"{shard}").touch()
        shards.append({"file": f"{shard}", "records": min(per_shard, num_views - first), "bytes": 0})
    np.save(directory / frame_index.NAME, np.empty(0, frame_index.ENTRY))
    prepared = {"format_version": takes.FORMAT_VERSION, "dataset": "synthetic", "codec": "dct", "shards": shards}
    prepared |= {"class_names": list(catalog.get("synthetic").class_names), "not_synchronised": ""}
    (directory / "prepared.json").write_text(json.dumps(prepared))
    (directory / digests.NAME).write_text(digests.table(directory))


def open_manifest(directory: Path, holdout_fraction: float) -> dict[str, float]:
    """Seconds and megabytes of opening it for training, in a process of its own."""
    config = pretrain_base.get_config()
    config.data.update(dict(dir=str(directory), holdout_fraction=holdout_fraction))
    before, began = peak_megabytes(), time.process_time()
    dataset = Dataset.from_config(config)
    for column in ("record", "num_frames", "height", "width", "label"):  # what the first batch asks for
        assert len(dataset.prepared.views[column]) == 2 * MILLION
    spent = time.process_time() - began
    assert len(dataset.train.elements) == round(2 * MILLION * (1 - holdout_fraction))
    return {"seconds": spent, "megabytes": peak_megabytes() - before}


def peak_megabytes() -> float:
    """Of this process. Its `ru_maxrss` would be that of the process that started it, if this was larger."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


def manifest(folder: Path) -> dict[str, dict[str, float]]:
    write_manifest(folder)
    context, found = multiprocessing.get_context("spawn"), {}
    for fraction in (0.0, 0.02):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
            found[f"holdout_fraction={fraction}"] = executor.submit(open_manifest, folder, fraction).result()
    return found


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.input_pipeline", __doc__)
    parser.add_argument("--videos", type=Path, help="videos of yours, in place of generated ones")
    parser.add_argument("--pattern", help="of their names; see python -m data.prepare --help")
    parser.add_argument("--short_sides", type=int, nargs="+", default=[170, 128], metavar="PIXELS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="grain's; 0 is threads")
    parser.add_argument("--memory", action="store_true", help="read the memory during a longer run, and nothing else")
    parser.add_argument("--manifest", action="store_true", help="open a set of a million takes, and nothing else")
    parser.add_argument("--output", type=Path, help="where the raw figures go, as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    cv2.setNumThreads(1)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as temporary:
        if options.manifest:
            found = manifest(Path(temporary))
            for name, values in found.items():
                print(name, ", ".join(f"{value:.2f} {unit}" for unit, value in values.items()))
        else:
            make = functools.partial(prepare, Path(temporary), options.videos, options.pattern)
            kinds = itertools.product(options.short_sides, ("jpeg", "dct"))
            sets = {f"{codec} {size}": make(codec, size) for size, codec in kinds}
            folder = options.videos or Path(temporary, "raw")
            videos = sorted(path for path in folder.rglob("*") if path.suffix in (".mp4", ".avi"))
            if options.memory:
                variants = itertools.product(sets, options.workers)
                found = {f"{name}, workers={workers}": memory(sets[name], workers) for name, workers in variants}
                for name, readings in found.items():
                    print(name, *(f"{reading:.0f}" for reading in readings), "MB")
            else:
                found = measure(sets, videos, options.rounds, options.workers)
                print(report(found))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"machine": machine, "figures": found}, indent=1))


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.input_pipeline", main))
