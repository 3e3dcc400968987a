"""Processes that work for a command. They end with it, however it ends."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

from console.errors import UserError


@contextlib.contextmanager
def pool(num_workers: int) -> Iterator[concurrent.futures.Executor]:
    """Processes for functions that are submitted. An error or Ctrl-C drops those that have not begun.

    A second Ctrl-C drops all of them.

    Raises:
      ValueError: a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, perhaps for memory: give fewer --workers") from error
    finally:
        try:
            executor.shutdown(cancel_futures=True)
        except KeyboardInterrupt:  # else Python waits for the processes when it ends, and they for their next work
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """A context in which to start processes, or threads that do, which Ctrl-C never reaches: the main one handles it.

    If the processes ignored it themselves, one that is still importing would end. Where the context is in the main
    thread, the signal is obeyed when the context ends.
    """
    resource_tracker.ensure_running()  # by which Python unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    end_with_parent()


def end_with_parent() -> None:
    """Called in a worker: ends it when the process that started it has ended, for example by SIGKILL."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
