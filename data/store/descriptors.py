"""Files that have no name go from one process of a run to another, as descriptors over a socket (SCM_RIGHTS)."""

import multiprocessing
import os
import secrets
import threading
import weakref
from multiprocessing import connection, reduction
from typing import Protocol


class Unreachable(OSError):
    """The memory of another process cannot be opened: it has ended, or does not answer."""


class Owner(Protocol):
    """Has the files, under numbers."""

    def descriptor(self, number: int) -> int: ...


def offer(owner: Owner) -> str:
    """Hands the owner's descriptors to those who ask, from a thread, as long as there is the owner.

    Only processes that have the key of this one, as its children do, are answered. The socket is an abstract one: of a
    process that is killed nothing is left behind.

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
            except (OSError, EOFError, multiprocessing.AuthenticationError):  # who asked is gone, or a stranger
                continue

    threading.Thread(target=answer, name=name, daemon=True).start()
    return name


def fetch(process: int, name: str, number: int) -> int:
    """A descriptor of the file `number` of what process `process` offers as `name`; the caller closes it.

    Raises:
      Unreachable: that process has ended.
    """
    try:
        with connection.Client(f"\0{name}", "AF_UNIX", authkey=multiprocessing.current_process().authkey) as owner:
            owner.send_bytes(b"%d" % number)
            return reduction.recv_handle(owner)
    except (OSError, EOFError, RuntimeError, multiprocessing.AuthenticationError) as error:  # RuntimeError: of recv_fds
        raise Unreachable(f"the memory of process {process} cannot be opened: {error}") from error
