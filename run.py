"""Runs a config: `python run.py --config=configs/demo.py --workdir=DIR [--config.key=value ...]`.

Light to import: the processes that read data import it again.
"""

import argparse
import os
import sys
import traceback

EPILOG = """\
examples:
  python run.py --config=configs/demo.py --workdir=runs/demo
  python run.py --config=configs/ntu60.py --workdir=runs/ntu60 --config.data.dir=/data/ntu60 --config.seed=1
  python run.py --config=configs/folder.py --workdir=runs/mine --config.data.dir=/data/mine --config.total_steps=2000

The same command goes on from the newest checkpoint in the workdir. Keys and their reasons: configs/pretrain_base.py.
exit codes: 0 done; 143 stopped by SIGTERM, saved, to be started again; 2 the command, the config, the data, the devices
or the disk do not fit, or the loss is not finite; 1 else.
"""


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a file of configs/; --config.KEY=VALUE sets a key")
    parser.add_argument("--workdir", required=True, help="where checkpoints, metrics and pictures go")
    parser.add_argument(
        "--allow_changes", default="", metavar="KEY,KEY", help="going on, let these keys differ from the checkpoint's"
    )
    processes = parser.add_argument_group("several processes (found out under Slurm and Open MPI)")
    processes.add_argument("--distributed", action="store_true", help="ask the cluster for the others, as on a TPU pod")
    processes.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0, where JAX cannot find out")
    processes.add_argument("--num_processes", type=int, help="of the whole run")
    processes.add_argument("--process_id", type=int, help="of this process, from 0")
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    return parser.parse_args([a for a in argv if not a.startswith("--config.")]), overrides


def main(argv: list[str]) -> None:
    arguments, overrides = parse_arguments(argv)
    try:
        run(arguments, overrides)
    except (ValueError, OSError, FloatingPointError) as error:
        if not _raised_here(error):
            raise
        print(f"run.py: {error}", file=sys.stderr)
        sys.exit(2)


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    # Mistakes show in a moment: what can be checked without JAX comes before its import, and the fit of the batch to
    # the devices before the import of everything else.
    from mv2mae_jax import config as configs

    config = configs.load(arguments.config, overrides)
    configs.validate(config)
    dataset = open_dataset(config)
    try:
        os.makedirs(arguments.workdir, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={arguments.workdir} cannot be made: {error}") from error

    from mv2mae_jax import processes

    processes.start(
        distributed=arguments.distributed,
        coordinator_address=arguments.coordinator_address,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
    )
    processes.check()
    from mv2mae_jax import continuation, sharding

    mesh = sharding.make_mesh(**config.mesh)
    if config.task == "probe":
        sharding.check_batch(mesh, config.global_batch_size)
        from mv2mae_jax.tasks import probe

        with continuation.locked(arguments.workdir):
            probe.run(config, dataset, mesh, arguments.workdir)
            write_report(config, arguments.workdir)
        return
    sharding.check_batch(mesh, config.global_batch_size, config.optimizer.accumulation_steps)
    sharding.check_batch(mesh, config.eval.batch_size or config.global_batch_size)
    if config.task == "pretrain" and dataset.prepared.codec == "dct":
        sharding.check_decoding(mesh, config.global_batch_size, config.data.repeats)
    from mv2mae_jax.preemption import EXIT_CODE, Preempted
    from mv2mae_jax.train import train

    allow_changes = [key for key in arguments.allow_changes.split(",") if key]
    try:
        with continuation.locked(arguments.workdir):
            train(config, dataset, mesh, arguments.workdir, allow_changes)
            write_report(config, arguments.workdir)
    except Preempted as preempted:
        print(f"{preempted} The same command goes on from there.", flush=True)
        sys.exit(EXIT_CODE)


def open_dataset(config):
    """The data set in the form that the task reads."""
    from data.dataset import Dataset
    from data.labelled import LabelledDataset

    return (Dataset if config.task == "pretrain" else LabelledDataset).from_config(config)


def write_report(config, workdir: str) -> None:
    """WORKDIR/report.html; a failure to write it is said and no more."""
    import jax

    if config.log.report and jax.process_index() == 0:
        from mv2mae_jax import report

        report.write_at_end(workdir)


def _raised_here(error: Exception) -> bool:
    """Whether this project refused something, with a message for the user; others' errors keep their traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    root = os.path.dirname(os.path.abspath(__file__))
    return any(last.startswith(os.path.join(root, part)) for part in ("run.py", "data", "mv2mae_jax", "configs"))


if __name__ == "__main__":
    main(sys.argv[1:])
