"""One HTML page on a run, or on several to compare: `python -m mv2mae_jax.report --workdir=RUN`."""

import argparse
import os
import shlex
import sys
import time

from console import progress
from console.command import ExitCode, Parser, execute
from data.store.whole_files import write_whole
from mv2mae_jax.report import end_with_parent

PROG = "python -m mv2mae_jax.report"
EXAMPLES = """
python -m mv2mae_jax.report --workdir=demo_output/run
python -m mv2mae_jax.report --workdir=runs/a --workdir=runs/b --output=comparison.html
python -m mv2mae_jax.report --workdir=runs/a --data_dir=/mnt/ntu60           # the data set has moved
python -m mv2mae_jax.report --workdir=runs/a --samples=0 --max_clips=0       # the files alone
"""
NOTES = """\
Reconstructions, attention and neighbours are computed from the newest checkpoint and the data set, on the CPU unless
JAX_PLATFORMS says otherwise; where one of them is gone, the page says so. The page needs no network and runs no script.
"""


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Writes one HTML page on a run, or on several to compare.",
        examples=EXAMPLES,
        notes=NOTES,
        exit_codes={
            ExitCode.DONE: "written",
            ExitCode.REFUSED: "the arguments do not fit, a workdir is no run, or the page cannot be written",
        },
    )
    parser.add_argument(
        "--workdir",
        action="append",
        required=True,
        metavar="RUN",
        help="the folder that run.py wrote to; repeat it to compare",
    )
    parser.add_argument("--output", metavar="FILE", help="the page; by default report.html in the workdir")
    parser.add_argument("--data_dir", metavar="DIR", help="of the prepared data set, if not where the run read it")
    parser.add_argument(
        "--samples", type=int, default=2, metavar="N", help="reconstructions of each run; 0 for none (2)"
    )
    parser.add_argument(
        "--max_clips", type=int, default=160, metavar="N", help="clips to compute features of; 0 for none (160)"
    )
    parser.add_progress()
    return parser


def main(argv: list[str]) -> int:
    end_with_parent()
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.output is None and len(arguments.workdir) > 1:
        parser.error("with several --workdir, say where the page goes: --output=comparison.html")
    if min(arguments.samples, arguments.max_clips) < 0:
        parser.error("--samples and --max_clips are 0 or more")
    progress.configure(arguments.progress)
    return execute(PROG, lambda: write(arguments, argv))


def write(arguments: argparse.Namespace, argv: list[str]) -> None:
    """Runs the command. Raises ValueError where a workdir is no run, OSError where the page cannot be written."""
    # Data set and checkpoint are read and computed on the CPU, because a run may be using the device.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from mv2mae_jax.report import REPORT_FILE, collect, examine, page, poses

    output, started = arguments.output or os.path.join(arguments.workdir[0], REPORT_FILE), time.perf_counter()
    runs = collect.read_all(arguments.workdir)
    for run in runs:
        run.config.data.dir = arguments.data_dir or run.config.data.dir
    seen = [
        examine.examine(run, num_samples=arguments.samples, max_clips=arguments.max_clips, key=f"map-{index}")
        for index, run in enumerate(progress.track(runs, "looking at", "runs"))
    ]
    text = page.render(runs, seen, shlex.join(["python", "-m", "mv2mae_jax.report", *argv]))
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    write_whole(output, text)
    size, seconds = os.path.getsize(output), time.perf_counter() - started
    said = [
        (f"{run.name}: " if len(runs) > 1 else "") + poses.write(one.poses, run.workdir)
        for run, one in zip(runs, seen, strict=True)
        if one.poses
    ]
    print(" ".join([f"Report: {output} ({size / 1e6:.1f} MB, {seconds:.0f} s).", *said]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
