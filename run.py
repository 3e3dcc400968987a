"""Runs a config: `python run.py --config=configs/demo.py --workdir=DIR [--config.key=value ...]`.

Light to import: the processes that read data import it again.
"""

import argparse
import os
import sys

EPILOG = """\
examples:
  python run.py --config=configs/demo.py --workdir=runs/demo
  python run.py --config=configs/ntu60.py --workdir=runs/ntu60 --config.data.dir=/data/ntu60 --config.seed=1
  python run.py --config=configs/folder.py --workdir=runs/mine --config.data.dir=/data/mine --config.total_steps=2000

The same command goes on from the newest checkpoint in the workdir. Keys and their reasons: configs/pretrain_base.py.
exit codes: 0 done, 2 the command, the config or the data do not fit, 1 anything else.
"""


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a file of configs/; --config.KEY=VALUE sets a key")
    parser.add_argument("--workdir", required=True, help="where checkpoints, metrics and pictures go")
    parser.add_argument(
        "--distributed", action="store_true", help="several processes; found out on TPU pods and Slurm by JAX"
    )
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    return parser.parse_args([a for a in argv if not a.startswith("--config.")]), overrides


def main(argv: list[str]) -> None:
    arguments, overrides = parse_arguments(argv)
    # Everything that can be checked without JAX is checked before its import: mistakes show in a moment.
    from mv2mae_jax import config as configs

    try:
        config = configs.load(arguments.config, overrides)
        configs.validate(config)
        from data.dataset import Dataset

        dataset = Dataset.from_config(config)
        os.makedirs(arguments.workdir, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(_refusal(error))

    import jax

    from mv2mae_jax.train import train

    if arguments.distributed:
        jax.distributed.initialize()
    train(config, dataset, arguments.workdir)


def _refusal(error: Exception) -> int:
    print(f"run.py: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main(sys.argv[1:])
