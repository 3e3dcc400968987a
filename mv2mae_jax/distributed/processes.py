"""Starts the processes of a run as one program: a TPU pod, Slurm, Open MPI, or processes named by flags."""

import json
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from console.errors import UserError


def start(
    *,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = 100,
) -> None:
    """Joins the other processes of the run, if there are any. To be called before JAX is used.

    Args:
      distributed: join even if nothing shows that there are others; JAX then asks the cluster who they are.
      coordinator_address: 'HOST:PORT' of process 0; with the next two, for clusters that JAX does not know.
      num_processes: of the whole run.
      process_id: of this one, from 0.
      heartbeat_timeout_seconds: heartbeats.py ends the run if a process is silent for this long; JAX does after
        twice this time.

    Raises:
      ValueError: some of the three flags are missing, or neither flags nor launcher say who the other processes are.
    """
    flags = {"--coordinator_address": coordinator_address, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        if distributed or launched_together():
            try:
                jax.distributed.initialize(heartbeat_timeout_seconds=2 * heartbeat_timeout_seconds)
            except ValueError as error:
                raise UserError(
                    f"--distributed: JAX found no cluster that says who the other processes are ({error}). On a "
                    "machine that runs alone leave the flag out; elsewhere pass --coordinator_address=HOST:PORT, "
                    "--num_processes and --process_id."
                ) from error
        return
    if missing:
        raise UserError(f"{', '.join(missing)} missing: processes named by flags need {', '.join(flags)}.")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} must lie between 0 and --num_processes - 1 = {num_processes - 1}.")
    jax.distributed.initialize(
        coordinator_address, num_processes, process_id, heartbeat_timeout_seconds=2 * heartbeat_timeout_seconds
    )


def launched_together() -> bool:
    """Whether Slurm, Open MPI or a TPU pod has started several processes, by the variables that these set."""
    counts = (int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return max(counts) > 1 or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def check() -> None:
    """Raises ValueError if there are several processes that `start` was not asked to join, as on a TPU pod.

    They would compute together, but each would save alone.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(f"This is one of {jax.process_count()} processes: start each with --distributed.")


def check_alike(started: Mapping[str, object]) -> None:
    """Raises ValueError, in every process, if those of a run differ in what they were started with; names what differs.

    `started` holds what this process was started with, by name: values that JSON has.
    """
    text = json.dumps(started).encode()
    length = process_allgather(np.int32(len(text))).max()
    texts = process_allgather(np.frombuffer(text.ljust(length), np.uint8))  # (processes, length)
    if lines := differences([json.loads(bytes(row)) for row in texts]):
        raise UserError(
            "The processes of this run were not started alike:\n" + "".join(f"  {line}\n" for line in lines) + "Give "
            "every process the same command, code and data, and a --workdir that all of them see."
        )


def differences(said: Sequence[Mapping[str, object]]) -> list[str]:
    """In what the processes differ from the first; a line each. What one does not know is left out."""
    return [
        f"{name}: {value!r} in process {process}, {said[0][name]!r} in process 0"
        for process, values in enumerate(said)
        for name, value in values.items()
        if name in said[0] and value != said[0][name]
    ]
