"""Generates a multi-view action data set with the names and meaning of NTU RGB+D. See --help."""

import os
import pathlib
import sys
from collections.abc import Sequence

from console import progress
from console.command import Parser, execute
from data.synthetic import sheet
from data.synthetic.design import plan_takes
from data.synthetic.generate import generate

PROG = "python -m data.synthetic"
EXAMPLES = """
python -m data.synthetic --output=raw --takes=160 --seed=0 --sheet
python -m data.synthetic --output=raw --takes=160 --seed=0 --resolution=128x72 --workers=2
"""
MIN_SIDE = 32  # pixels; below, an actor is a few blobs


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Generates synchronised videos of acting people from three cameras, DIR/SsssCcccPpppRrrrAaaa_rgb.avi.",
        examples=EXAMPLES,
        notes="Stopped and started again with the same arguments, it goes on where it was.",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--takes", type=int, required=True, metavar="N", help="number of takes, each three videos")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="another seed, other people, rooms and takes (%(default)s)"
    )
    parser.add_argument(
        "--setups", type=int, metavar="K", help="number of rooms (default: about the square root of N / 20)"
    )
    parser.add_argument("--resolution", default="320x180", metavar="WxH", help="pixels, both even (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="K", help="processes (%(default)s)")
    parser.add_argument("--sheet", action="store_true", help="also write DIR/contact_sheet.png")
    parser.add_progress()
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    progress.configure(options.progress)

    def run() -> None:
        width, height = parse_resolution(options.resolution)
        generate(options.output, options.takes, options.seed, width, height, options.workers, options.setups)
        print(f"{options.takes} takes of three videos each: {options.output}")
        if options.sheet:
            print(sheet.write_sheet(options.output, plan_takes(options.takes, options.seed, options.setups)))

    return execute(PROG, run, goes_on=True)


def parse_resolution(text: str) -> tuple[int, int]:
    """'320x180' -> (320, 180). Raises ValueError unless both are even and at least MIN_SIDE."""
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--resolution is WIDTHxHEIGHT in pixels, e.g. 320x180, not {text!r}") from None
    if width % 2 or height % 2 or min(width, height) < MIN_SIDE:
        raise ValueError(
            f"--resolution={text}: both sides must be even (yuv420p) and at least {MIN_SIDE}, e.g. 320x180"
        )
    return width, height


if __name__ == "__main__":
    sys.exit(main())
