"""Generates a multi-view action data set with the names and meaning of NTU RGB+D. See --help."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from console import progress
from console.command import Parser, execute, sizes
from console.errors import UserError
from data.synthetic import rooms, sheet
from data.synthetic.design import plan_takes
from data.synthetic.generate import generate

PROG = "python -m data.synthetic"
EXAMPLES = """
python -m data.synthetic --output=raw --takes=160 --seed=0 --sheet
python -m data.synthetic --output=raw --takes=160 --seed=0 --resolution=128x72 --workers=2
python -m data.synthetic --output=plain --takes=640 --rooms=plain --actor_share=0.8 --resolution=40x40 --fps=10
"""
MIN_SIDE = 32  # pixels; in smaller pictures an actor is a few blobs
MOST_WITH_SEAT = 12.0  # degrees; an actor turned further would sit beside the seat


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Generates synchronised videos of acting people from three cameras, DIR/SsssCcccPpppRrrrAaaa_rgb.avi.",
        examples=EXAMPLES,
        notes="Stopped and started again with the same arguments, it continues where it was.",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--takes", type=int, required=True, metavar="N", help="number of takes, each three videos")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="another seed, other people, rooms and takes (%(default)s)"
    )
    parser.add_argument(
        "--setups", type=int, metavar="K", help="number of rooms (default: about the square root of N / 20)"
    )
    parser.add_argument("--subjects", type=int, metavar="P", help="number of people, who then all act in every room")
    parser.add_argument(
        "--rooms",
        choices=rooms.ROOMS,
        default=rooms.STANDARD.rooms,
        help="plain: walls and floor of one colour each, and nothing in the room (%(default)s)",
    )
    parser.add_argument(
        "--actor_share",
        type=float,
        metavar="SHARE",
        help="of the frame's height that a standing person takes; above 0.65, raised hands may leave the picture (0.6)",
    )
    parser.add_argument(
        "--facing_spread",
        type=float,
        default=rooms.STANDARD.facing_spread,
        metavar="DEGREES",
        help="people turn up to this far from the camera they face; in plain rooms, 45 leaves no gap between two side "
        "views, and 180 shows people from all around (%(default)g)",
    )
    parser.add_argument(
        "--fps", type=int, default=rooms.STANDARD.fps, metavar="F", help="frames per second (%(default)s)"
    )
    size = sizes("WIDTHxHEIGHT in pixels", "320x180")
    parser.add_argument("--resolution", type=size, default="320x180", metavar="WxH", help="pixels, even (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="K", help="processes (%(default)s)")
    parser.add_argument("--sheet", action="store_true", help="also write DIR/contact_sheet.png")
    parser.add_progress()
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    progress.configure(options.progress)

    def run() -> None:
        takes, seed, cast = options.takes, options.seed, (options.setups, options.subjects)
        generate(options.output, takes, seed, options.workers, *cast, parse_style(options))
        print(f"{takes} takes of three videos each: {options.output}")
        if options.sheet:
            print(sheet.write_sheet(options.output, plan_takes(takes, seed, *cast)))

    return execute(PROG, run, goes_on=True)


def parse_style(options: argparse.Namespace) -> rooms.Style:
    """What the videos look like. Raises ValueError where a value makes no sense."""
    width, height = options.resolution
    if width % 2 or height % 2 or min(width, height) < MIN_SIDE:
        raise UserError(
            f"--resolution={width}x{height}: both sides must be even (yuv420p) and at least {MIN_SIDE}, e.g. 320x180"
        )
    if options.actor_share is not None and not 0.2 <= options.actor_share <= 0.95:
        raise UserError(f"--actor_share={options.actor_share}: a share of the frame's height from 0.2 to 0.95")
    if not 0 <= options.facing_spread <= 180:
        raise UserError(f"--facing_spread={options.facing_spread}: degrees from 0 to 180")
    if options.facing_spread > MOST_WITH_SEAT and options.rooms != "plain":
        raise UserError(
            f"--facing_spread={options.facing_spread:g}: in a furnished room the seat stands behind the actor, so "
            f"{MOST_WITH_SEAT:g} degrees are the most; add --rooms=plain"
        )
    if not 5 <= options.fps <= 60:
        raise UserError(f"--fps={options.fps}: frames per second from 5 to 60")
    looks = {name: getattr(options, name) for name in ("rooms", "actor_share", "facing_spread", "fps")}
    return rooms.Style(width=width, height=height, **looks)


if __name__ == "__main__":
    sys.exit(main())
