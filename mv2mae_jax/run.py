"""Runs a config: pre-training, fine-tuning or probes.

Importing this module imports nothing heavy, because each process that reads data imports it again.
"""

import argparse
import os
import sys

from console import progress
from console.command import ExitCode, Parser, execute
from console.errors import UserError

PROG = "python -m mv2mae_jax.run"  # in a checkout also `python run.py`
EXAMPLES = """
{prog} --config=configs/demo.py --workdir=runs/demo  # data by `make demo`
{prog} --config=configs/ntu60.py --workdir=runs/ntu60 --config.data.dir=/data/ntu60
{prog} --config=configs/folder.py --workdir=mine --config.data.dir=my_set --config.total_steps=900
{prog} --config=configs/probe.py --workdir=runs/probe --config.init_from=runs/demo
"""
NOTES = """\
The same command continues from the newest checkpoint in the workdir. All keys and their reasons:
configs/pretrain_base.py, configs/finetune_base.py and configs/probe_base.py. A --config=configs/NAME.py that is not in
the current folder is the one that comes with this program."""


def make_parser(prog: str = PROG) -> Parser:
    parser = Parser(
        prog,
        "Pre-trains, fine-tunes or probes, as the config says, on the devices that JAX finds.",
        examples=EXAMPLES.format(prog=prog),
        notes=NOTES,
        exit_codes={
            ExitCode.REFUSED: "the arguments, the config, the data, the devices or the disk do not fit, or the loss is "
            "not finite",
            ExitCode.PREEMPTED: "stopped by SIGTERM or SIGHUP and saved, or another process is gone: to be started "
            "again by the same command",
        },
    )
    parser.add_config(_config_keys)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where checkpoints, metrics and pictures go")
    parser.add_argument(
        "--allow_changes", default="", metavar="KEY,KEY", help="keys that may differ from the checkpoint on resuming"
    )
    parser.add_progress("; a run's own lines are printed unless it is none")
    processes = parser.add_argument_group("several processes (detected under Slurm and Open MPI)")
    processes.add_argument("--distributed", action="store_true", help="ask the cluster for the others, as on a TPU pod")
    processes.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0, where JAX cannot find out")
    processes.add_argument("--num_processes", type=int, metavar="N", help="of the whole run")
    processes.add_argument("--process_id", type=int, metavar="I", help="of this process, from 0")
    return parser


def _config_keys() -> list[str]:
    from mv2mae_jax import config as configs

    return configs.known_keys()


def main(argv: list[str], prog: str = PROG) -> int:
    arguments = make_parser(prog).parse_args(argv)
    return execute(prog, lambda: run(arguments), goes_on=True)


def run(arguments: argparse.Namespace) -> int:
    # To report mistakes early, checks that need no JAX come before its import, and the check that the batch fits the
    # devices comes before the other imports.
    from mv2mae_jax import config as configs
    from mv2mae_jax import config_checks

    config = configs.load(arguments.config, arguments.overrides)
    config_checks.validate(config)
    dataset = open_dataset(config)
    try:
        os.makedirs(arguments.workdir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={arguments.workdir} cannot be made: {error}") from error

    import jax

    from mv2mae_jax.distributed import processes

    # Probes have no limits: they run in one process.
    heartbeat_timeout_seconds = config.get("limits", {}).get("heartbeat_timeout_seconds", 100)
    processes.start(
        distributed=arguments.distributed,
        coordinator_address=arguments.coordinator_address,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
    )
    processes.check()
    progress.configure(arguments.progress if jax.process_index() == 0 else "none")
    from mv2mae_jax.runs import heartbeats

    with heartbeats.watched(heartbeat_timeout_seconds):
        return run_task(config, dataset, arguments)


def run_task(config, dataset, arguments: argparse.Namespace) -> int:
    """Runs the config's task on the devices of all processes; returns the exit code."""
    from mv2mae_jax.distributed import sharding
    from mv2mae_jax.runs import resume

    mesh = sharding.make_mesh(**config.mesh)
    if config.task == "probe":
        sharding.check_batch(mesh, config.global_batch_size)
        from mv2mae_jax.evaluation import probe

        probe.check_workdir(config, arguments.workdir)
        with resume.locked(arguments.workdir):
            probe.run(config, dataset, mesh, arguments.workdir)
            write_report(config, arguments.workdir)
        return ExitCode.DONE
    sharding.check_batch(mesh, config.global_batch_size, config.optimizer.accumulation_steps)
    sharding.check_batch(mesh, config.eval.batch_size or config.global_batch_size)
    if config.task == "pretrain" and dataset.prepared.codec == "dct":
        sharding.check_decoding(mesh, config.global_batch_size, config.data.repeats)
    from mv2mae_jax.runs.preemption import Preempted
    from mv2mae_jax.train import train

    allow_changes = [key for key in arguments.allow_changes.split(",") if key]
    try:
        with resume.locked(arguments.workdir):
            train(config, dataset, mesh, arguments.workdir, allow_changes)
            write_report(config, arguments.workdir)
    except Preempted as preempted:
        progress.say(f"{preempted} The same command continues from there.")  # the terminal may be gone
        return ExitCode.PREEMPTED
    return ExitCode.DONE


def open_dataset(config):
    """The data set in the form that the task reads."""
    from data.dataset import Dataset
    from data.labelled import LabelledDataset

    return (Dataset if config.task == "pretrain" else LabelledDataset).from_config(config)


def write_report(config, workdir: str) -> None:
    """Writes WORKDIR/report.html; a failure is only reported."""
    import jax

    if config.log.report and jax.process_index() == 0:
        from mv2mae_jax import report

        report.write_at_end(workdir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
