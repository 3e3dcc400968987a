"""What a finished or running run says about itself, for those who read its checkpoints."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from console.errors import UserError
from mv2mae_jax import checkpoint, damage


def read_record(workdir: str, step: int | None = None) -> tuple[int, dict[str, Any], config_dict.ConfigDict]:
    """(step, its JSON record, its config) of a checkpoint, the newest by default.

    Raises:
      ValueError: there is no such run or step.
    """
    folder = os.path.join(workdir, "checkpoints")
    steps = damage.steps_in(Path(folder))
    if not steps or step not in (None, *steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        there = f"it has steps {', '.join(map(str, steps))}" if steps else f"{folder} is missing or empty"
        raise UserError(f"{workdir} holds {wanted}: {there}. A run is the --workdir of run.py.")
    step = steps[-1] if step is None else step
    checkpointer = checkpoint.Checkpointer(workdir)
    with contextlib.closing(checkpointer):
        record = checkpointer.read_run(step)
    return step, record, config_dict.ConfigDict(json.loads(record["config"]))
