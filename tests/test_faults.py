"""A run that is killed or told to stop, and started again by the same command, ends where an undisturbed one does."""

import os
import pathlib
import re
import shutil
import signal
import socket
import time

import pytest

from console.command import ExitCode
from mv2mae_jax.runs import preemption, starts_file
from tests import faults, tiny

# Checkpoints fall into the middle of a log interval, and there is an evaluation before the end.
OPTIONS = ("log.every_steps=3", "eval.every_steps=4", "optimizer.ema_decay=0.9")


@pytest.fixture(scope="module")
def undisturbed(synthetic_set, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = faults.run(workdir, synthetic_set, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return workdir


def steps_saved(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.mark.long
def test_killed_and_told_to_stop_at_every_kind_of_moment(undisturbed, synthetic_set, tmp_path):
    killed, stopped_at_once = -signal.SIGKILL, -signal.SIGTERM
    for name, moment, step, code, saved in (
        ("SIGKILL", "save", 2, killed, []),  # before the digests are written
        ("SIGHUP", "step", 3, ExitCode.PREEMPTED, [2, 3]),  # in the middle of a log interval
        ("SIGKILL", "eval", 4, killed, [2, 3, 4]),
        ("SIGTERM", "eval", 4, stopped_at_once, [2, 3, 4]),  # the next start repeats the evaluation
        ("SIGKILL", "step", 5, killed, [2, 3, 4]),
        ("SIGTERM", "save", 6, ExitCode.PREEMPTED, [3, 4, 6]),  # no evaluation begins; the newest three are kept
    ):
        struck = faults.finish(faults.start_struck(name, moment, step, tmp_path, synthetic_set, *OPTIONS))
        assert struck.returncode == code, (name, moment, step, struck.stderr)
        assert steps_saved(tmp_path) == saved, (name, moment, step)
        if code == ExitCode.PREEMPTED:
            assert f"Stopped by {name} after step {step}, which is saved" in struck.stdout
    done = faults.run(tmp_path, synthetic_set, *OPTIONS)
    assert done.returncode == 0 and "Continuing from step 6" in done.stdout, done.stderr
    faults.assert_same_end(undisturbed, tmp_path)
    assert faults.events(tmp_path) == faults.events(undisturbed)
    assert len(set(faults.events(tmp_path))) == len(faults.events(tmp_path)) > 20
    assert not list((tmp_path / "checkpoints").glob("*tmp*")) and not list((tmp_path / "checkpoints").glob("*damaged*"))


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_and_one_goes_on(synthetic_set, tmp_path):
    """Only one process receives the signal. Both save and stop."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        flags = [f"--coordinator_address=localhost:{listener.getsockname()[1]}", "--num_processes=2"]
    options = ("checkpoint.every_steps=5000", "log.every_steps=1000", "optimizer.ema_decay=0.9")
    started = [
        faults.start_struck(
            name, "step", 2, tmp_path, synthetic_set, *options, "total_steps=5000", flags=[*flags, f"--process_id={i}"]
        )
        for i, name in enumerate(("SIGCONT", "SIGHUP"))  # SIGCONT does nothing
    ]
    ended = [faults.finish(process) for process in started]
    assert [process.returncode for process in ended] == [ExitCode.PREEMPTED] * 2, ended
    told = [re.findall(r"Stopped by SIG\w+ after step (\d+)", process.stdout) for process in ended]
    assert told[0] == told[1] == [str(step) for step in steps_saved(tmp_path)] and len(told[0]) == 1
    last = f"total_steps={int(told[0][0]) + 1}"
    done = faults.run(tmp_path, synthetic_set, *options, last, flags=["--allow_changes=total_steps"])
    assert done.returncode == 0 and f"Continuing from step {told[0][0]} " in done.stdout, done.stderr


@pytest.mark.slow
def test_another_machine_goes_on(undisturbed, synthetic_set, tmp_path):
    """The second machine has other devices, another mesh, reading processes and accumulation. Losses agree closely."""
    struck = faults.start_struck("SIGTERM", "step", 3, tmp_path, synthetic_set, *OPTIONS)
    assert faults.finish(struck).returncode == ExitCode.PREEMPTED
    other = ("mesh.data=2", "mesh.fsdp=2", "data.num_workers=2", "optimizer.accumulation_steps=2")
    devices = f"{tiny.QUICK_FLAGS} --xla_force_host_platform_device_count=4"
    done = faults.run(tmp_path, synthetic_set, *OPTIONS, *other, XLA_FLAGS=devices)
    assert done.returncode == 0 and "Continuing from step 3" in done.stdout, done.stderr
    assert "4 x cpu" in done.stdout and "data 2, fsdp 2" in done.stdout
    assert_close_history(tmp_path, undisturbed)


def assert_close_history(first, second):
    for one, other in zip(faults.history(first), faults.history(second), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_sighup_is_ignored_under_nohup_and_noticed_otherwise():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        watch = preemption.Watch()
        watch.start()
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and not watch.reached()
        watch.stop()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        watch.start()
        signal.raise_signal(signal.SIGHUP)
        assert watch.reached() and watch.noticed == "SIGHUP"
        watch.stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.long
def test_a_finished_run_has_nothing_left_to_do(undisturbed, synthetic_set):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    again = faults.run(undisturbed, synthetic_set, *OPTIONS)
    assert again.returncode == 0 and "Nothing is left to do" in again.stdout
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before
    # More steps would change the schedule, so they are refused by name.
    refused = faults.run(undisturbed, synthetic_set, *OPTIONS, "total_steps=7", "data.num_workers=1")
    assert refused.returncode == 2
    assert "total_steps was 6, now 7\nSet them back" in refused.stderr and "num_workers" not in refused.stderr
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before
    # A run at step 6 cannot end at step 5.
    refused = faults.run(undisturbed, synthetic_set, *OPTIONS, "total_steps=5", flags=["--allow_changes=total_steps"])
    assert refused.returncode == 2
    assert "holds step 6, beyond the 5 steps" in refused.stderr and "Done." not in refused.stdout
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_damaged_side_files_are_set_aside_and_the_run_goes_on(undisturbed, synthetic_set, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    rows = (tmp_path / "history.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "history.jsonl").write_bytes(b"".join([rows[0].replace(b'"step"', b"'step\xff"), *rows[1:]]))
    (tmp_path / "metrics.json").write_bytes(b"")
    starts = (tmp_path / "starts.jsonl").read_bytes()
    (tmp_path / "starts.jsonl").write_bytes(starts[:-40])
    done = faults.run(tmp_path, synthetic_set, *OPTIONS)
    assert done.returncode == 0, done.stderr
    for name in ("history.jsonl", "metrics.json", "starts.jsonl"):
        assert re.search(rf"{name} is damaged.*renamed to {name}.damaged, not deleted", done.stdout), done.stdout
    assert (tmp_path / "starts.jsonl.damaged").read_bytes() == starts[:-40]
    assert faults.results(tmp_path) == faults.results(undisturbed)
    assert faults.history(tmp_path) == faults.history(undisturbed)[1:]
    assert [start["first_step"] for start in starts_file.read_starts(tmp_path)] == [6]


@pytest.mark.long
def test_results_of_a_step_that_is_trained_again_do_not_stand_for_the_new_ones(undisturbed, synthetic_set, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    struck = faults.finish(faults.start_struck("SIGKILL", "eval", 4, tmp_path, synthetic_set, *OPTIONS))
    assert struck.returncode == -signal.SIGKILL and not (tmp_path / "metrics.json").exists(), struck.stdout
    assert (tmp_path / "metrics.json.earlier").read_bytes() == (undisturbed / "metrics.json").read_bytes()


@pytest.mark.long
def test_one_run_at_a_time(synthetic_set, tmp_path):
    holder = "import fcntl, sys, time; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX); "
    holder += "lock.write('process 7 on elsewhere'); lock.flush(); print('locked', flush=True); time.sleep(600)"
    first = faults.start("-c", holder, tmp_path / "run.lock")
    assert first.stdout.readline() == "locked\n"
    refused = faults.run(tmp_path, synthetic_set)
    assert refused.returncode == 2
    assert "is in use by another run (process 7 on elsewhere)" in refused.stderr
    assert os.listdir(tmp_path) == ["run.lock"]
    # The lock ends with its holder, even if that is killed.
    first.kill()
    first.wait()
    assert faults.run(tmp_path, synthetic_set, "total_steps=1").returncode == 0


@pytest.mark.long
def test_a_run_whose_workdir_another_one_has_taken_ends_before_it_saves(synthetic_set, tmp_path):
    first = faults.start_struck("SIGSTOP", "step", 2, tmp_path, synthetic_set, *OPTIONS)
    while not faults.is_stopped(first.pid):
        time.sleep(0.1)
        assert first.poll() is None, first.stderr.read()
    (tmp_path / "run.lock").write_text("process 7 on elsewhere, started today\n")
    first.send_signal(signal.SIGCONT)
    ended = faults.finish(first)
    assert ended.returncode == 2 and f"--workdir={tmp_path} was taken by another run" in ended.stderr, ended.stderr
    assert steps_saved(tmp_path) == [] and "elsewhere" in (tmp_path / "run.lock").read_text()


@pytest.mark.long
def test_a_workdir_that_vanishes_is_told_and_one_that_cannot_be_written_refused(synthetic_set, tmp_path):
    lost = faults.start_struck("SIGSTOP", "eval", 4, tmp_path / "run", synthetic_set, *OPTIONS)
    while not faults.is_stopped(lost.pid):
        time.sleep(0.1)
        assert lost.poll() is None, lost.stderr.read()
    (tmp_path / "run").rename(tmp_path / "moved")
    lost.send_signal(signal.SIGCONT)
    ended = faults.finish(lost)
    assert ended.returncode == 2 and str(tmp_path / "run") in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr.partition("run.py: ")[2]
    assert steps_saved(tmp_path / "moved") == [2, 4], "the moved folder stays as it was"
    for workdir in ("/proc/run", "/proc"):
        refused = faults.run(workdir, synthetic_set)
        assert refused.returncode == 2 and workdir in refused.stderr and "Traceback" not in refused.stderr
