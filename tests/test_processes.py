"""Several processes train as one: equal losses, one set of files, and checkpoints for any number of processes."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest

from console.command import ExitCode
from mv2mae_jax.distributed import processes
from mv2mae_jax.monitoring import event_files
from mv2mae_jax.runs import heartbeats
from tests import faults, tiny

ROOT = pathlib.Path(__file__).parent.parent
# Training and evaluation report every two steps. The learning rate does not depend on the run's length.
OPTIONS = (
    "eval.every_steps=2",
    "optimizer.ema_decay=0.9",
    "warmup_epochs=0.0",
    "optimizer.base_learning_rate=0.03",
    "optimizer.final_base_learning_rate=0.03",
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run(workdir, data_dir, num_processes, *overrides) -> list[str]:
    """Trains with this number of processes, of one device each. Returns the output of every process."""
    overrides = tiny.overrides(f"data.dir={data_dir}", *tiny.OVERRIDES, *OPTIONS, *overrides)
    command = [sys.executable, "run.py", "--config=configs/pretrain_base.py", f"--workdir={workdir}"]
    command += overrides
    command += ["--allow_changes=total_steps"]  # the learning rate does not depend on it
    port = free_port()
    environment, started = os.environ | {"XLA_FLAGS": tiny.QUICK_FLAGS, "JAX_PLATFORMS": "cpu"}, []
    for index in range(num_processes):
        flags = [f"--coordinator_address=localhost:{port}", f"--num_processes={num_processes}", f"--process_id={index}"]
        flags = flags if num_processes > 1 else []
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, **output))
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * num_processes, outputs
    return outputs


def assert_same_history(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def alone(synthetic_set, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(workdir, synthetic_set, 1, "total_steps=4")
    return workdir


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_like_one_and_one_goes_on(alone, synthetic_set, tmp_path, num_processes):
    outputs = run(tmp_path, synthetic_set, num_processes, "total_steps=2")
    said = [bool(without_warnings(output).strip()) for output in outputs]
    assert said == [True] + [False] * (num_processes - 1)
    assert f"{num_processes} process(es)" in outputs[0]
    assert_same_history(faults.history(tmp_path), faults.history(alone)[: len(faults.history(tmp_path))])
    events = {path.name for path in (tmp_path / "tensorboard").iterdir()}
    assert event_files.CONFIG_FILE in events and len(events) == 2, "one process writes"
    assert {path.name for path in (tmp_path / "pictures").iterdir()}
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 2

    (output,) = run(tmp_path, synthetic_set, 1, "total_steps=4")
    assert "Continuing from step 2" in output
    assert_same_history(faults.history(tmp_path)[-2:], faults.history(alone)[-2:])


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one(alone, synthetic_set, tmp_path):
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "4")  # as if it had been stopped before
    outputs = run(tmp_path, synthetic_set, 2, "total_steps=4", "mesh.data=1", "mesh.fsdp=2")
    assert "Continuing from step 2" in outputs[0]
    assert_same_history(faults.history(tmp_path), faults.history(alone))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_is_named_by_the_other(synthetic_set, tmp_path, killed):
    flags = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
    options = ("total_steps=100000", "limits.heartbeat_timeout_seconds=5")
    started = [
        faults.start_struck(
            "SIGKILL" if index == killed else "SIGCONT",  # SIGCONT does nothing
            "step",
            5,
            tmp_path,
            synthetic_set,
            *options,
            flags=[*flags, f"--process_id={index}"],
        )
        for index in range(2)
    ]
    other = faults.finish(started[1 - killed])
    faults.finish(started[killed])
    told = other.stderr.strip().splitlines()[-1]
    assert told.startswith(f"Process {1 - killed} of 2: process {killed} ") and " is gone, " in told, other.stderr
    assert "start all processes together again by the same commands" in told
    if killed == 0:  # process 0 holds JAX's coordination service; without it, JAX ends the other process
        return
    assert other.returncode == ExitCode.PREEMPTED
    assert "not heard of for 5 s (limits.heartbeat_timeout_seconds)" in told
    assert len(other.stderr.strip().splitlines()) < 10 and "Traceback" not in other.stderr, (
        "more would hide the message"
    )


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_an_error_ends_is_named_by_the_other(synthetic_set, tmp_path, failing):
    """It does not wait for the other one, which waits for it. JAX alone would end both after six minutes, from C++."""
    damaged = shutil.copytree(synthetic_set, tmp_path / "damaged")
    for shard in damaged.glob("*.array_record-*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    flags = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
    options = ("total_steps=100000", "limits.heartbeat_timeout_seconds=30")
    sets = [damaged if index == failing else synthetic_set for index in range(2)]
    started = [
        faults.start(
            "run.py", *faults.arguments(tmp_path / "run", sets[index], *options), *flags, f"--process_id={index}"
        )
        for index in range(2)
    ]
    ended = [faults.finish(process, timeout=120) for process in started]
    assert ended[failing].returncode == ExitCode.REFUSED and " is damaged " in ended[failing].stderr, ended[failing]
    other = ended[1 - failing]
    assert other.returncode == ExitCode.PREEMPTED, other
    told = other.stderr.strip().splitlines()[-1]
    assert told.startswith(f"Process {1 - failing} of 2: process {failing} "), other.stderr
    assert " is gone, as an error ended it. " in told, other.stderr


@pytest.mark.long
def test_processes_that_were_not_started_alike_are_refused(synthetic_set, tmp_path):
    """They would initialise other parameters, and each would go on with its own."""
    flags = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
    started = [
        faults.start(
            "run.py",
            *faults.arguments(tmp_path, synthetic_set, f"seed={index}", f"data.num_workers={index}"),
            *flags,
            f"--process_id={index}",
        )
        for index in range(2)
    ]
    for ended in [faults.finish(process) for process in started]:
        assert ended.returncode == ExitCode.REFUSED, ended
        assert "not started alike:\n  seed: 1 in process 1, 0 in process 0\nGive every process" in ended.stderr


@pytest.mark.long
def test_a_process_that_does_not_see_the_workdir_says_so(synthetic_set, tmp_path):
    flags = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
    started = [
        faults.start("run.py", *faults.arguments(tmp_path / str(index), synthetic_set), *flags, f"--process_id={index}")
        for index in range(2)
    ]
    first, second = (faults.finish(process, timeout=120) for process in started)
    assert second.returncode == ExitCode.REFUSED and "a --workdir that all of them see" in second.stderr, second
    assert first.returncode == ExitCode.PREEMPTED and "process 1 " in first.stderr, first


def test_what_processes_differ_in_is_named():
    said = [{"seed": 0, "sizes": [1, 2]}, {"seed": 0, "sizes": [1, 2]}, {"seed": 3, "code": "a1"}]
    assert processes.differences(said) == ["seed: 3 in process 2, 0 in process 0"]


def test_silence_is_measured_by_the_clock_of_the_listener():
    silence = heartbeats.Silence([0, 2, 3], now=100.0)
    assert silence.over(10.0, {0: "1 a", 2: "1 b"}, now=105.0) == []
    assert silence.over(10.0, {0: "2 a", 2: "1 b"}, now=110.5) == [3], "process 3 was never heard of"
    assert silence.over(10.0, {0: "2 a", 2: "1 b", 3: "1 c"}, now=115.5) == [2]
    assert silence.over(10.0, {}, now=120.0) == [2], "only process 2 was silent for 10 s"
    assert silence.over(10.0, {0: "ended a", 2: "2 b", 3: "2 c"}, now=121.0) == []
    assert silence.over(10.0, {0: "ended a", 2: "3 b", 3: "3 c"}, now=140.0) == [], (
        "process 0 has ended, so may be silent"
    )


def test_the_name_of_a_host_says_nothing_of_its_process():
    """It follows the beat."""
    silence = heartbeats.Silence([1], now=0.0)
    assert silence.over(10.0, {1: "1 pid 7 on extended-pool"}, now=1.0) == []
    assert silence.over(10.0, {1: "1 pid 7 on extended-pool"}, now=12.0) == [1]


def without_warnings(output: str) -> str:
    """The output of the run itself, without the log lines of JAX's coordination service."""
    return "\n".join(line for line in output.splitlines() if not re.match(r"[IWE]\d{4} |\[Gloo\]|WARNING:", line))


# How processes find each other


@pytest.mark.parametrize(
    ("variables", "together"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1v-0,t1v-1"}, True),
    ],
)
def test_launchers_are_known_by_their_variables(monkeypatch, variables, together):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.launched_together() == together


def test_flags_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="--process_id missing"):
        processes.start(coordinator_address="localhost:1", num_processes=2)
    with pytest.raises(ValueError, match=r"--process_id=2 must lie between 0 and --num_processes - 1 = 1"):
        processes.start(coordinator_address="localhost:1", num_processes=2, process_id=2)


def test_processes_that_have_not_joined_are_refused(monkeypatch):
    processes.check()
    monkeypatch.setattr("jax.process_count", lambda: 4)
    with pytest.raises(ValueError, match="one of 4 processes: start each with --distributed"):
        processes.check()
