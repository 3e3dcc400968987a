"""How often each joint of the person lies inside the random crops of pre-training, in prepared sets with a truth.

    python -m benchmarks.crops --prepared full motion

Crop size and scales are those of configs/pretrain_base.py. Results, and how the sets are made: docs/preparation.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs import pretrain_base
from console.command import Parser, execute
from console.errors import UserError
from data import clips
from data.store import takes

CROPS = 50  # of a view
FRAMES = 16  # of a view, evenly spread


def inside(prepared: takes.Prepared, crop_scales: Sequence[float], crop_size: tuple[int, int]) -> np.ndarray:
    """Whether joints lie inside random crops: bool[views, CROPS, FRAMES, J]."""
    rng, rows = np.random.default_rng(0), np.arange(len(prepared.views["record"]))
    frames = np.stack([np.linspace(0, length - 1, FRAMES).astype(int) for length in prepared.views["num_frames"]])
    points = prepared.truth.in_pixels(rows, frames)  # (M, FRAMES, J, 2)
    hits = []
    for row in rows:
        size = int(prepared.views["height"][row]), int(prepared.views["width"][row])
        for _ in range(CROPS):
            top, left, height, width = clips.crop_box(clips.draw_crop(rng, crop_scales), size, crop_size)
            low, high = np.array([left, top]) - 0.5, np.array([left + width, top + height]) - 0.5
            hits.append(((points[row] >= low) & (points[row] < high)).all(axis=-1))
    return np.reshape(hits, (len(rows), CROPS, *points.shape[1:3]))


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.crops", __doc__)
    parser.add_argument("--prepared", type=Path, nargs="+", required=True, metavar="DIR", help="prepared sets")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    data = pretrain_base.get_config().data
    columns = {}
    for folder in options.prepared:
        prepared = takes.open_prepared(folder)
        if prepared.truth is None:
            raise UserError(f"{folder} carries no 3D joints and cameras: prepare it with --truth=DIR")
        hits = inside(prepared, tuple(data.crop_scales), tuple(data.crop_size))
        columns[str(folder)] = {
            "all joints, mean": hits.mean(),
            "crops with every joint in every frame": hits.all(axis=(2, 3)).mean(),
            "crops with less than half the joints": (hits.mean(axis=(2, 3)) < 0.5).mean(),
            **dict(zip(prepared.truth.joint_names, hits.mean(axis=(0, 1, 2)), strict=True)),
        }
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for name in names:
        print(f"| {name} | {' | '.join(f'{column.get(name, np.nan):.1%}' for column in columns.values())} |")


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.crops", main))
