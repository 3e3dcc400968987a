"""A disk that is full, hangs or has gone neither delays nor ends a run that writes reports to it."""

import builtins
import contextlib
import json
import os
import pathlib
import subprocess
import threading

import pytest

from mv2mae_jax.monitoring import log_files, metrics
from tests import faults

RECORDS = [b"%07d\n" % i for i in range(400)]  # of 8 bytes


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, kilobytes: int):
    """A file system of this size. Skips the test where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def writer_that(monkeypatch, path, act) -> None:
    """Calls `act(number of the call)` before each write to this path. It returns how many bytes fit; None means all."""
    real, calls = builtins.open, []

    def opened(name, *args, **kwargs):
        file = real(name, *args, **kwargs)
        if str(name) != str(path) or args != ("ab",):
            return file
        write = file.write

        class Writer:
            def __getattr__(self, attribute):
                return getattr(file, attribute)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, data):
                calls.append(0)
                fits = act(len(calls))
                if fits is None:
                    return write(data)
                if fits:
                    return write(data[:fits])
                raise OSError(28, "No space left on device", str(path))

        return Writer()

    monkeypatch.setattr(builtins, "open", opened)


def test_records_are_appended_in_order(tmp_path, capsys):
    (tmp_path / "log").write_bytes(b"before\n")
    log = log_files.LogFile(tmp_path / "log")
    for record in RECORDS:
        log.add(record)
    log.close()
    assert (tmp_path / "log").read_bytes() == b"before\n" + b"".join(RECORDS)
    assert capsys.readouterr().out == ""


def test_a_full_disk_is_told_once_and_nothing_is_missing_when_there_is_room(tmp_path, capsys):
    with small_disk(tmp_path / "disk", 16) as disk:
        log = log_files.LogFile(disk / "log")
        (disk / "other").write_bytes(bytes(12 * 1024))  # leaves a page
        for record in RECORDS:
            log.add(record)
        log.add(b"x" * 4096)
        log.flush()
        written = (disk / "log").read_bytes()
        assert b"".join(RECORDS).startswith(written) and len(written) % 8 == 0, "no record is cut"
        log.flush()
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and f"{disk}/log cannot be written: " in said and "No space left" in said
        (disk / "other").unlink()
        log.add(b"last\n")
        log.close()
        assert (disk / "log").read_bytes() == b"".join(RECORDS) + b"x" * 4096 + b"last\n"
        assert capsys.readouterr().out == f"{disk}/log is written again.\n"


def test_a_record_that_fits_in_part_is_taken_back(tmp_path, monkeypatch, capsys):
    path = tmp_path / "log"
    writer_that(monkeypatch, path, lambda number: {2: 3, 3: 0}.get(number))
    log = log_files.LogFile(path)
    log.add(RECORDS[0])
    log.flush()
    log.add(RECORDS[1])
    log.flush()
    assert path.read_bytes() == RECORDS[0] and "No space left" in capsys.readouterr().out
    log.add(RECORDS[2])
    log.close()
    assert path.read_bytes() == b"".join(RECORDS[:3])


def test_a_disk_that_hangs_holds_nothing_up(tmp_path, monkeypatch, capsys):
    """Records beyond the bound are lost and counted."""
    path, release = tmp_path / "log", threading.Event()
    monkeypatch.setattr(log_files, "SECONDS", 0.1)
    monkeypatch.setattr(log_files, "MOST_BYTES", 8 * 100)
    writer_that(monkeypatch, path, lambda number: release.wait() and None)
    log = log_files.LogFile(path)
    for record in RECORDS:
        log.add(record)
    log.flush()
    log.close()
    said = capsys.readouterr().out
    assert "the disk does not answer" in said and f"{path} lacks 400 report(s)" in said
    release.set()


def test_what_is_gone_is_told(tmp_path, capsys):
    log = log_files.LogFile(tmp_path / "gone" / "log")
    log.add(RECORDS[0])
    log.close()
    assert "No such file" in (said := capsys.readouterr().out) and "lacks 1 report(s)" in said
    with log_files.optional("The picture"):
        (tmp_path / "gone" / "picture").write_bytes(b"")
    assert capsys.readouterr().out.startswith("The picture could not be written: ")


def test_the_history_is_read_while_it_is_written(tmp_path):
    reporter = metrics.Reporter(str(tmp_path), first_step=0, total_steps=4)
    for step in (1, 2):
        reporter.scalars(step, {"train/loss": 0.5})
        assert json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])["step"] == step
    reporter.close()


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes", [(40, 100), pytest.param((150, 200, 240, 300, 400, 600, 900, 2000), marks=pytest.mark.slow)]
)
def test_a_run_on_a_full_disk_ends_with_a_message_or_goes_on(synthetic_set, tmp_path, sizes):
    for kilobytes in sizes:
        with small_disk(tmp_path / f"{kilobytes}k", kilobytes) as disk:
            done = faults.finish(
                faults.start("run.py", *faults.arguments(disk / "run", synthetic_set, "log.every_steps=1")), timeout=120
            )
            assert done.returncode in (0, 2), (kilobytes, done.stderr)
            told = done.stderr.rpartition("run.py: ")[2]  # TensorStore prints a trace of its own before the message
            assert "Traceback" not in told, (kilobytes, done.stderr)
            if done.returncode:
                assert "no space is left" in told or "could not be written" in told, done.stderr
