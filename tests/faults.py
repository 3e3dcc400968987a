"""Starts runs that receive a signal at a chosen moment, and compares the files that they leave."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp

from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent

# `python -c STRUCK SIGNAL MOMENT STEP ARGUMENTS...` runs run.py with ARGUMENTS. The process receives SIGNAL at MOMENT.
STRUCK = """
import os, signal, sys

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
name, moment, step = sys.argv[1], sys.argv[2], int(sys.argv[3])

def strike_before(owner, attribute, is_it):
    original = getattr(owner, attribute)
    def struck(*args, **kwargs):
        if is_it(*args, **kwargs):
            os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **kwargs)
    setattr(owner, attribute, struck)

import run
from mv2mae_jax.runs import step_folders
from mv2mae_jax.monitoring import guards, metrics
from mv2mae_jax.evaluation import reconstruction
if moment == "batch":
    strike_before(guards.SkippedUpdates, "remember", lambda self, at, batch: at == step)
if moment == "step":
    strike_before(metrics.StepMetrics, "add", lambda self, at, values: at == step)
if moment == "save":
    strike_before(step_folders.digests, "table", lambda folder: folder.name.startswith(f"{step}."))
if moment == "eval":
    strike_before(reconstruction, "summarize", lambda objective, samples: True)
sys.exit(run.main(sys.argv[4:]))
"""


def arguments(workdir, data_dir, *overrides: str) -> list[str]:
    """The arguments of run.py for the tiny model."""
    values = tiny.overrides(f"data.dir={data_dir}", *tiny.OVERRIDES, *overrides)
    return ["--config=configs/pretrain_base.py", f"--workdir={workdir}", *values]


def start(*command: str, **environment: str) -> subprocess.Popen:
    """Starts Python in the project's folder; `finish` returns its output."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": tiny.QUICK_FLAGS} | environment
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> subprocess.CompletedProcess:
    """Waits until the process ends; kills it after `timeout` seconds."""
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(workdir, data_dir, *overrides: str, flags=(), **environment: str) -> subprocess.CompletedProcess:
    """Runs run.py for the tiny model, to its end."""
    return finish(start("run.py", *arguments(workdir, data_dir, *overrides), *flags, **environment))


def start_struck(signal: str, moment: str, step: int, workdir, data_dir, *overrides, flags=()) -> subprocess.Popen:
    """Starts run.py and sends it a signal before a step's `batch`, after its `step`, in its `save` or an `eval`."""
    return start("-c", STRUCK, signal, moment, str(step), *arguments(workdir, data_dir, *overrides), *flags)


def final_state(workdir: pathlib.Path) -> dict:
    """The state in the newest checkpoint on disk."""
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore((workdir / "checkpoints" / str(max(steps)) / "state").absolute())


def history(workdir: pathlib.Path) -> list[dict]:
    """The rows of history.jsonl, without the values that depend on time and machine."""
    rows = [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("perf/") and k != "data/wait_fraction"} for row in rows]


def assert_same_end(first: pathlib.Path, second: pathlib.Path) -> None:
    """Parameters, optimiser state, EMA, metrics history and results are equal bit for bit."""
    import jax

    jax.tree.map(np.testing.assert_array_equal, final_state(first), final_state(second))
    assert history(first) == history(second)
    assert results(first) == results(second)


def results(workdir: pathlib.Path) -> dict[str, float]:
    """The last evaluation."""
    return json.loads((workdir / "metrics.json").read_text())["metrics"]


def events(workdir: pathlib.Path) -> list[tuple[int, str]]:
    """The (step, name) of all values that TensorBoard shows. A new file discards later steps of earlier files."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown: list[tuple[int, str]] = []
    for path in sorted((workdir / "tensorboard").glob("events*")):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                shown = [(step, name) for step, name in shown if step < event.step]
            shown += [(event.step, value.tag) for value in event.summary.value]
    return shown


def _records(content: bytes) -> list[bytes]:
    """The records of a file in TFRecord's form: length (8 bytes), its checksum (4), data, their checksum (4)."""
    records, position = [], 0
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        records.append(content[position + 12 : position + 12 + length])
        position += length + 16
    return [record for record in records if position <= len(content) or record is not records[-1]]


def is_stopped(process: int) -> bool:
    """Whether a process stands still after SIGSTOP."""
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
