"""Exports a trained run to PyTorch: `python -m mv2mae_jax.torch_export --workdir=RUN --format=hf --output=DIR`."""

import argparse
import pathlib
import sys

from console import progress
from console.command import ExitCode, Parser, execute

PROG = "python -m mv2mae_jax.torch_export"
EXAMPLES = """
python -m mv2mae_jax.torch_export --workdir=runs/demo --format=hf --output=exported/hf
python -m mv2mae_jax.torch_export --workdir=runs/demo --format=videomae --output=exported/videomae --step=1000
python -m mv2mae_jax.torch_export --workdir=runs/demo --format=port --output=exported/port
"""
NOTES = """\
formats:
  videomae  a .pth file that MCG-NJU/VideoMAE's scripts load
  hf        a folder for transformers' VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification
  port      the weights with a PyTorch module in one file: encoder, both decoders, classifier, motion-weighted loss

What was written is read back and compared with JAX, layer by layer, where torch (and transformers, for hf) is
installed: pip install -r requirements-torch.txt.
"""


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Exports a trained run to PyTorch.",
        examples=EXAMPLES,
        notes=NOTES,
        exit_codes={
            ExitCode.DONE: "written",
            ExitCode.FAILED: "the comparison found a difference; or a fault of this program, with a traceback",
        },
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the folder that run.py wrote to")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--format", required=True, choices=("videomae", "hf", "port"), help="see below")
    parser.add_argument("--output", required=True, metavar="DIR", help="to make")
    parser.add_progress()
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    progress.configure(arguments.progress)
    return execute(PROG, lambda: export(arguments))


def export(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code. Raises ValueError where something does not fit."""
    from mv2mae_jax.runs import resume
    from mv2mae_jax.torch_export import exporter, trained_run

    with (
        resume.locked_output(pathlib.Path(arguments.output), "export"),
        progress.Bar(3, "reading the run", "stages", leave=False) as bar,
    ):
        run = trained_run.read_run(arguments.workdir, arguments.step)
        bar.advance()
        try:
            verdict = exporter.export(run, arguments.format, arguments.output, bar)
        except trained_run.Mismatch as error:
            print(f"{PROG}: {error}\nWhat was written is in {arguments.output}.rejected.", file=sys.stderr)
            return ExitCode.FAILED
    print(f"Step {run.step} of {arguments.workdir} -> {arguments.output} ({arguments.format}).\n{verdict}")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
