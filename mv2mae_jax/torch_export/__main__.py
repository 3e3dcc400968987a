"""Exports a trained run to PyTorch: `python -m mv2mae_jax.torch_export --workdir=RUN --format=hf --output=DIR`."""

import argparse
import sys

EPILOG = """\
formats:
  videomae  a .pth file that MCG-NJU/VideoMAE's scripts load
  hf        a folder for transformers' VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification
  port      the weights with a PyTorch module in one file: encoder, both decoders, classifier, motion-weighted loss

What was written is read back and compared with JAX, layer by layer, where torch (and transformers, for hf) is
installed: pip install -r requirements-torch.txt.
exit codes: 0 written, 1 the comparison found a difference, 2 the command or the run do not fit.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mv2mae_jax.torch_export",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="the run: the folder that run.py wrote to")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--format", required=True, choices=("videomae", "hf", "port"))
    parser.add_argument("--output", required=True, help="the folder to make")
    arguments = parser.parse_args(argv)

    from mv2mae_jax.torch_export import exporter

    try:
        run = exporter.read_run(arguments.workdir, arguments.step)
        verdict = exporter.export(run, arguments.format, arguments.output)
    except ValueError as error:
        print(f"torch_export: {error}", file=sys.stderr)
        return 2
    except exporter.Mismatch as error:
        print(f"torch_export: {error}\nWhat was written is in {arguments.output}.rejected.", file=sys.stderr)
        return 1
    print(f"Step {run.step} of {arguments.workdir} -> {arguments.output} ({arguments.format}).\n{verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
