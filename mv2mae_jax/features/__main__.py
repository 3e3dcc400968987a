"""Extracts features of videos: `python -m mv2mae_jax.features --workdir=RUN --input=DIR --output=F.npz`."""

import argparse
import concurrent.futures
import functools
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from console import progress
from console.command import ExitCode, Parser, execute
from console.errors import UserError
from data import catalog, clips
from data.dataset import split_of_run
from data.store import takes
from mv2mae_jax import features, inference
from mv2mae_jax.distributed import sharding
from mv2mae_jax.features import sources
from mv2mae_jax.features.store import Store
from mv2mae_jax.runs import run_record

Source = sources.PreparedSource | sources.VideoSource
BATCHES_PER_PART = 8  # [ours] an interruption loses at most this much work
POOLINGS = (*features.POOLINGS, "tokens")
# Columns that say where in its video a clip lies; see `times`.
TIMES = {"start_seconds": np.float32, "end_seconds": np.float32, "frame_stride": np.int32, "repeated_frames": np.int32}

PROG = "python -m mv2mae_jax.features"
EXAMPLES = """
python -m mv2mae_jax.features --workdir=runs/demo --input=demo_output/prepared --output=features.npz
python -m mv2mae_jax.features --workdir=runs/demo --input=my_videos --output=features.parquet --pooling=motion
python -m mv2mae_jax.features --workdir=runs/demo --input=take.mp4 --output=take.npz --pooling=tokens
"""
NOTES = """\
--input is a prepared data set, a folder of videos (.avi, .mp4, ... at any depth) or one video. A clip has the run's
number of frames, at the run's frame stride, from the middle of the video; its crop is central and as large as can be.

pooling:
  mean    the mean token                                  float32[D]
  slices  the mean token of each temporal slice           float32[nt * D]
  motion  the same, weighted by motion energies           float32[nt * D]
  tokens  every token, in the order (time, row, column)   float16[N, D]

The output has one row per clip: `features`; `clip` (0, 1, ... within a video); `start_seconds` and `end_seconds`, the
times of its first and last frame; `frame_stride`, which a short video makes smaller; `repeated_frames`, how often a
still shorter one's last frame stands in for a missing one; and `path`, or for a prepared set `take`, `view`, `label`,
`class_name`, `subject` and `split` ('train', 'held_out', 'test' or neither). `about` tells the rest, as JSON. An .npz
holds arrays; a .parquet holds lists, with the shape of a row in its metadata. The same command continues where it was
interrupted. A video that cannot be read is named with the reason and left out.
"""


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Extracts features of videos with the encoder of a run.",
        examples=EXAMPLES,
        notes=NOTES,
        exit_codes={ExitCode.DONE: "written", ExitCode.PARTLY: "written, but videos were left out"},
    )
    parser.add_argument(
        "--workdir", required=True, help="the run: the folder that run.py wrote to; or an exported one (port, hf)"
    )
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--input", required=True, help="a prepared data set, a folder of videos, or a video")
    parser.add_argument("--output", required=True, help="the file to write, .npz or .parquet")
    parser.add_argument("--pooling", default="mean", choices=POOLINGS)
    parser.add_argument("--clips_per_video", type=int, default=1, help="evenly from the first to the last; default 1")
    parser.add_argument("--frame_stride", type=int, help="frames from one to the next of a clip; the run's by default")
    parser.add_argument(
        "--short_side", type=int, default=170, help="short side of decoded videos, as in data.prepare; default 170"
    )
    parser.add_argument("--protocol", help="of a prepared set, for `split`; the run's own split by default")
    parser.add_argument("--batch_size", type=int, default=16, help="clips computed at once; default 16")
    parser.add_progress()
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    progress.configure(arguments.progress)
    return execute(PROG, lambda: extract_to_file(arguments), goes_on=True)


def extract_to_file(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code. Raises ValueError where something does not fit."""
    for name in ("clips_per_video", "batch_size", "short_side", "frame_stride"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name}={value}: at least 1.")
    mesh = sharding.make_mesh()
    batch_size = -(-arguments.batch_size // mesh.size) * mesh.size  # as many clips on every device
    encoder = inference.load_encoder(arguments.workdir, arguments.step, mesh=mesh)
    source = open_source(arguments, encoder)
    about = {
        "workdir": os.path.abspath(arguments.workdir),
        "step": encoder.step,
        "pooling": arguments.pooling,
        "clip_size": encoder.model.clip_size,
        "frame_stride": source.spec.frame_stride,
        "clips_per_video": arguments.clips_per_video,
        "class_names": source.class_names,
        "protocol": arguments.protocol or (encoder.config.data.protocol if encoder.config is not None else None),
        **source.facts(),
        "batch_size": batch_size,
        "parameters": features.digest_of(encoder.params),
        "columns": [*source.columns, *TIMES],  # parts written by another version of this program have other columns
        "dtype": encoder.model.compute.dtype.name,  # `auto` depends on the devices
        "code": features.code_digest(),
    }
    store = Store(output=Path(arguments.output), facts=about)
    with store.locked():
        if (left_out := store.begin()) is not None:
            print(f"{arguments.output} is whole: an earlier start wrote it.")
            return told(left_out)
        num_videos = len(next(iter(source.columns.values())))
        per_part = max(1, BATCHES_PER_PART * batch_size // arguments.clips_per_video)
        parts = np.split(np.arange(num_videos), np.arange(per_part, num_videos, per_part))
        missing = [part for part in range(len(parts)) if not store.has(part)]
        if len(missing) < len(parts):
            print(f"Continuing: {len(parts) - len(missing)} of {len(parts)} parts are there.", file=sys.stderr)
        num_before = sum(len(rows) for part, rows in enumerate(parts) if part not in missing)
        with (
            progress.Bar(num_videos, "extracting", "videos", initial=num_before) as bar,
            concurrent.futures.ThreadPoolExecutor(1) as reader,  # reads the next part while this one is computed
        ):
            coming, told_span = None, ""
            for part, following in itertools.pairwise([*missing, None]):
                coming = coming or reader.submit(source.read, parts[part], batch_size)
                num_clips, batches, left_out, seconds = coming.result()
                coming = None if following is None else reader.submit(source.read, parts[following], batch_size)
                if not told_span and (told_span := other_span(encoder, source, seconds)):
                    progress.say(told_span)
                row, columns = compute(encoder, batches, num_clips, mesh, arguments.pooling)
                columns |= times(source, row, columns["clip"], seconds)
                store.add(part, {name: column[row] for name, column in source.columns.items()} | columns, left_out)
                bar.advance(len(parts[part]))
        if any(store.facts[name] != fact for name, fact in source.facts().items()):
            raise UserError(
                f"--input={arguments.input} has changed while features were extracted, so they are not all of the same "
                f"videos: delete {store.folder} and give the command again."
            )
        spec, count = source.spec, functools.partial(store.count, len(parts))
        short = {
            "have a smaller stride (`frame_stride`)": count("frame_stride", lambda x: x < spec.frame_stride),
            f"repeat the last frame of a video with fewer than {spec.num_frames} (`repeated_frames`)": count(
                "repeated_frames", lambda x: x > 0
            ),
        }
        num_rows, left_out = store.finish(len(parts))
    print(f"{num_rows} clips of {num_videos - len(left_out)} videos -> {arguments.output}")
    exit_code = told(left_out)
    for what, num_short in short.items():
        if num_short:
            print(f"short videos: {num_short} of {num_rows} clips {what}.", file=sys.stderr)
    return exit_code


def told(left_out: dict[str, str]) -> ExitCode:
    """Prints the videos that are left out, and returns the exit code."""
    for video, reason in left_out.items():
        print(f"left out: {video}: {reason}", file=sys.stderr)
    return ExitCode.PARTLY if left_out else ExitCode.DONE


def open_source(arguments: argparse.Namespace, encoder: inference.Encoder) -> Source:
    """Opens --input. Raises ValueError if features cannot be extracted from it."""
    model, frame_stride = encoder.model, arguments.frame_stride or encoder.frame_stride
    if frame_stride is None:
        raise UserError(f"{encoder.workdir} does not say the frame stride that it was trained at: pass --frame_stride.")
    spec = clips.ClipSpec(
        num_frames=model.clip_size[0],
        frame_stride=frame_stride,
        crop_size=model.clip_size[1:],
        tubelet_size=model.tubelet_size,
    )
    settings = {"spec": spec, "clips_per_video": arguments.clips_per_video}
    if not os.path.exists(arguments.input):
        raise UserError(f"--input={arguments.input}: there is no such file or folder.")
    if any(os.path.exists(os.path.join(arguments.input, name)) for name in ("prepared.json", "plan.json")):
        prepared = takes.open_prepared(arguments.input)
        return sources.PreparedSource(prepared=prepared, split=split_of(prepared, arguments, encoder), **settings)
    if arguments.protocol:
        raise UserError(
            f"--protocol={arguments.protocol}: only a prepared set has protocols, {arguments.input} has none."
        )
    return sources.VideoSource.find(arguments.input, short_side=arguments.short_side, **settings)


def split_of(prepared: takes.Prepared, arguments: argparse.Namespace, encoder: inference.Encoder) -> np.ndarray:
    """'train', 'held_out', 'test' or '' of each row: by --protocol, or as the run splits a set; str[rows].

    Raises:
      ValueError: the set has no such protocol.
    """
    if arguments.protocol:
        return prepared.split_of(arguments.protocol)
    if encoder.config is not None:
        data = encoder.config.data
        try:
            if data.protocol not in ("all", *catalog.get(prepared.name).protocols):
                raise UserError(f"{prepared.name} has no protocol {data.protocol!r}; see --protocol.")
            split = split_of_run(prepared, data)
        except UserError as error:
            print(f"`split` is empty: {error}", file=sys.stderr)
        else:
            if encoder.data_digest not in (None, prepared.content_digest()):
                print(
                    f"{encoder.workdir} was trained on another set, or on this one before it was changed: `split` is "
                    "how it would split this set, and what it calls held_out may have been trained on.",
                    file=sys.stderr,
                )
            return split
    return np.zeros(len(prepared.views["take"]), "U8")


def other_span(encoder: inference.Encoder, source: Source, seconds: sources.Seconds) -> str:
    """A line on the first video whose clips span another time than in training; '' if none does, or none can tell."""
    spec = source.spec
    if encoder.frame_rates is None or encoder.frame_stride is None or spec.num_frames == 1:
        return ""
    low, high = encoder.frame_rates
    for row, (_, fps) in seconds.items():
        of_run = min(max(low, fps * encoder.frame_stride / spec.frame_stride), high)  # the rate that is most alike
        here, trained = spec.frame_stride / fps, encoder.frame_stride / of_run
        if max(here, trained) <= run_record.ALIKE * min(here, trained):
            continue
        video = ", ".join(str(source.columns[name][row]) for name in ("path", "take", "view") if name in source.columns)
        nearest, between = max(1, round(trained * fps)), spec.num_frames - 1
        advice = f": --frame_stride={nearest} is nearest to that" if nearest != spec.frame_stride else ""
        return (
            f"{video} has {fps:.4g} frames per second, the data of {encoder.workdir} has {of_run:.4g}. At stride "
            f"{spec.frame_stride} a clip spans {between * here:.2g} s, in training {between * trained:.2g} s{advice}."
        )
    return ""


def times(source: Source, row: np.ndarray, clip: np.ndarray, seconds: sources.Seconds) -> dict[str, np.ndarray]:
    """The columns TIMES of clips: where in its video each one lies.

    Args:
      row, clip: int[M], the video of each clip, and its number among that video's.
      seconds: the times of the videos' frames.
    """
    spec, positions, found = source.spec, clips.spread_positions(source.clips_per_video), []
    for video, number in zip(row.tolist(), clip.tolist(), strict=True):
        of_frame, _ = seconds[video]
        num_frames = len(of_frame)
        frames = clips.frame_indices(num_frames, spec.num_frames, spec.frame_stride, positions[number])
        stride = clips.effective_stride(num_frames, spec.num_frames, spec.frame_stride)
        found.append((of_frame[frames[0]], of_frame[frames[-1]], stride, max(0, spec.num_frames - num_frames)))
    columns = zip(*found, strict=True) if found else [()] * len(TIMES)
    return {name: np.array(column, kind) for (name, kind), column in zip(TIMES.items(), columns, strict=True)}


def compute(
    encoder: inference.Encoder,
    batches: Iterator[dict[str, np.ndarray]],
    num_clips: int,
    mesh: jax.sharding.Mesh,
    pooling: str,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows of a part: the video of each clip; the number of the clip in it, and its features."""
    model = encoder.model
    tokens = np.zeros((num_clips, model.num_tokens, model.width), np.float16) if pooling == "tokens" else None
    if num_clips == 0:
        row, wanted = np.zeros(0, np.int64), tokens
        if wanted is None:
            wanted = np.zeros((0, model.width * (1 if pooling == "mean" else model.grid[0])), np.float32)
    else:
        found = features.extract(model, encoder.params, batches, mesh, tokens=tokens)
        features.check_finite(found, f"the encoder of {encoder.workdir}")
        row, wanted = found.row, tokens if pooling == "tokens" else found.pooled(pooling)
    # The clips of a video are neighbours: the number of a clip is its distance to the first one of its row.
    clip = (np.arange(num_clips) - np.searchsorted(row, row)).astype(np.int32)
    return row, {"clip": clip, "features": wanted}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
