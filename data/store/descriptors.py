"""Passes files without a name from one process of a run to another, as descriptors over a socket (SCM_RIGHTS)."""

import multiprocessing
import os
import secrets
import threading
import weakref
from multiprocessing import connection, reduction
from typing import Any


class Unreachable(OSError):
    """The memory of another process cannot be opened: it has ended, or does not answer."""


def offer(owner: Any) -> str:
    """Starts a thread that hands `owner.descriptor(number)` to other processes, for as long as the owner exists.

    Only processes with this process's key get an answer; its children have it. The socket is abstract, so a killed
    process leaves nothing behind.

    Returns:
      The name to ask for them by.
    """
    name, found = f"mv2mae-{os.getpid()}-{secrets.token_hex(8)}", weakref.ref(owner)
    listener = connection.Listener(f"\0{name}", "AF_UNIX", authkey=multiprocessing.current_process().authkey)

    def answer() -> None:
        while found() is not None:
            try:
                with listener.accept() as asking:
                    number, there = int(asking.recv_bytes()), found()
                    if there is not None:
                        reduction.send_handle(asking, there.descriptor(number), None)
                    del there
            except (OSError, EOFError, multiprocessing.AuthenticationError):  # it is gone, or lacks the key
                continue

    threading.Thread(target=answer, name=name, daemon=True).start()
    return name


def fetch(process: int, name: str, number: int) -> int:
    """A descriptor, for the caller to close, of a process's file; as of `offer`. Raises Unreachable if it has ended."""
    try:
        with connection.Client(f"\0{name}", "AF_UNIX", authkey=multiprocessing.current_process().authkey) as owner:
            owner.send_bytes(b"%d" % number)
            return reduction.recv_handle(owner)
    except (OSError, EOFError, RuntimeError, multiprocessing.AuthenticationError) as error:  # the last: recv_fds
        raise Unreachable(f"the memory of process {process} cannot be opened: {error}") from error
