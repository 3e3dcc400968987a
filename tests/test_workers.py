"""The processes of a command end with it."""

import os
import signal
import time
from pathlib import Path

import pytest

from console import command, workers
from tests import faults


def test_a_process_that_is_killed_is_told():
    with pytest.raises(ValueError, match="a worker process was killed, perhaps for memory"), workers.pool(1) as pool:
        pool.submit(os._exit, 1).result()


def test_no_process_outlives_a_command_that_is_killed():
    code = """
import os, signal
from console import workers
if __name__ == "__main__":
    with workers.pool(2) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(9)}, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = faults.finish(faults.start("-c", code))
    assert killed.returncode == -signal.SIGKILL and killed.stdout.split(), killed.stderr
    for _ in range(600):
        if not any(Path(f"/proc/{process}").exists() for process in killed.stdout.split()):
            return
        time.sleep(0.1)
    pytest.fail("a process outlives its command")


def test_a_second_ctrl_c_ends_a_command_at_once():
    code = """
import os, signal, sys, threading, time
from console import command, workers

def work():
    with workers.pool(2) as pool:
        pool.submit(os.getpid).result()
        threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()
        threading.Timer(2, os.kill, [os.getpid(), signal.SIGINT]).start()
        pool.submit(time.sleep, 10**6).result()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background
    sys.exit(command.execute("python x", work))
"""
    ended = faults.finish(faults.start("-c", code), timeout=60)
    assert ended.returncode == command.ExitCode.INTERRUPTED and "python x: interrupted." in ended.stderr, ended.stderr
