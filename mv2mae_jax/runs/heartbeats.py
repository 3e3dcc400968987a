"""Heartbeats between the processes of a run: if one is gone, or an error ends it, the others say which one and end.

JAX's coordination service notices this too, but late, and ends the process from C++ with a stack trace. So each process
counts upwards in the service's key-value store and watches the others' counts. Process 0 holds the service. If it is
gone, so is the store, and JAX ends the others at once from C++; a small witness process then prints the sentence.
"""

import atexit
import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax
from jax._src import distributed  # JAX has no public access to its key-value store; Orbax uses the same

from console.command import ExitCode, exit_code_of

_FOLDER = "mv2mae/heartbeats/"
# What a beat begins with in place of a count. The process's name follows.
_ENDED, _FAILED = "ended", "failed"
# Words in the errors that a peer's death causes in a collective or a barrier.
_LOST_CONNECTION = ("Gloo", "NCCL", "onnection", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "oordination", "arrier")


class Silence:
    """How long each of the other processes, by their numbers, has been silent: in seconds by this process's clock."""

    def __init__(self, peers: range | list[int], now: float):
        self._last = {peer: ("", now) for peer in peers}

    def over(self, limit: float, beats: Mapping[int, str], now: float) -> list[int]:
        """Notes the newest beats. Returns processes silent for more than `limit` seconds, without those that ended."""
        for peer, (beat, _) in self._last.items():
            if beats.get(peer, beat) != beat:
                self._last[peer] = (beats[peer], now)
        return [
            peer for peer, (beat, since) in self._last.items() if now - since > limit and not beat.startswith(_ENDED)
        ]


class _Watch(threading.Thread):
    """Sends heartbeats, and ends this process when another has been silent for too long."""

    def __init__(self, timeout_seconds: float):
        super().__init__(daemon=True)
        self._timeout, self._interval = timeout_seconds, min(5.0, timeout_seconds / 10)
        self._client, self._me = distributed.global_state.client, jax.process_index()
        self._name = f"pid {os.getpid()} on {socket.gethostname()}"
        self._hosts: dict[int, str] = {}
        self._stopped, self._last_word = threading.Event(), _ENDED
        self._witness = _start_witness() if self._me != 0 else None

    def run(self) -> None:
        peers = [index for index in range(jax.process_count()) if index != self._me]
        silence, count, failed_before = Silence(peers, time.monotonic()), 0, []
        while not self._stopped.wait(self._interval):
            count += 1
            beats = self._exchange(str(count))
            gone = silence.over(self._timeout, beats, time.monotonic())
            if gone:
                self._end(gone, f"not heard of for {self._timeout:g} s (limits.heartbeat_timeout_seconds)")
            failed = [peer for peer in peers if beats.get(peer, "").startswith(_FAILED)]
            if failed and failed_before:  # by now this process would have said what ends all of them alike
                self._end(failed, "as an error ended it")
            failed_before = failed
        self._exchange(self._last_word)

    def _exchange(self, beat: str) -> dict[int, str]:
        try:
            self._client.key_value_set(f"{_FOLDER}{self._me}", f"{beat} {self._name}", allow_overwrite=True)
            found = self._client.key_value_dir_get(_FOLDER)
        except jax.errors.JaxRuntimeError:  # process 0 is busy, or gone; in the latter case JAX ends this process
            return {}
        beats = {int(key.rpartition("/")[2]): value for key, value in found}
        self._hosts |= {index: value.partition(" ")[2] for index, value in beats.items()}
        return beats

    def stop(self) -> None:
        """Stops watching, because the work is done and silence means nothing any more."""
        self._stopped.set()
        self.join()

    def fail(self, code: int) -> None:
        """Tells the others that an error ends this process, which then does not wait for them, as JAX would."""
        self._last_word = _FAILED
        self._stopped.set()
        self.join(2 * self._interval)  # longer if process 0 is gone, which has to pass it on
        atexit.register(self._leave, code)

    def _leave(self, code: int) -> None:
        """Ends this process after its error was printed; process 0 first lets the others learn of it."""
        until = time.monotonic() + 4 * self._interval
        while self._me == 0 and time.monotonic() < until:
            beats = self._exchange(_FAILED)
            if all(beat.startswith((_FAILED, _ENDED)) for beat in beats.values()):
                time.sleep(1.0)  # they end by themselves; without this process's service JAX would end them from C++
                break
            time.sleep(0.2)
        _exit(code)

    def dismiss_witness(self) -> None:
        """Ends the witness, because this process reports its own end."""
        if self._witness:
            self._witness.kill()
            self._witness.wait()

    def wait_for_verdict(self) -> None:
        """Waits long enough to notice a silence that has just begun; noticing it ends the process."""
        self.join(self._timeout + 10 * self._interval)

    def _end(self, gone: list[int], why: str) -> None:
        named = [f"process {i}" + (f" ({self._hosts[i]})" if i in self._hosts else "") for i in gone]
        print(_sentence(f"{' and '.join(named)} {'is' if len(gone) == 1 else 'are'} gone, {why}"), file=sys.stderr)
        sys.stderr.flush()
        self.dismiss_witness()
        if self._me == 0:  # the others need this process's service to find out themselves
            time.sleep(3 * self._interval)
        _exit(ExitCode.PREEMPTED)


def _exit(code: int) -> None:
    """Ends this process at once: an orderly end of JAX would wait for the other ones."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# python -c _WITNESS HOST PORT SENTENCE: outlives the process that started it, and checks whether process 0 is there.
_WITNESS = """
import os, socket, sys, time
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(0.2)
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
except OSError:
    print(sys.argv[3], file=sys.stderr)
"""


def _start_witness() -> subprocess.Popen:
    host, _, port = distributed.global_state.coordinator_address.rpartition(":")
    sentence = _sentence(f"process 0 is gone, {host}:{port} cannot be reached, so JAX ended this process")
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", _WITNESS, host.strip("[]"), port, sentence])


def _sentence(what: str) -> str:
    return (
        f"Process {jax.process_index()} of {jax.process_count()}: {what}. Look at what the process that is gone wrote "
        "last. What was saved is kept: start all processes together again by the same commands, and they continue from "
        "the newest checkpoint."
    )


@contextlib.contextmanager
def watched(timeout_seconds: float) -> Iterator[None]:
    """A context that ends this process, with a sentence and ExitCode.PREEMPTED, if another one is silent for too long.

    The same if an error ends another one within its context. Does nothing in a run of one process.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(timeout_seconds)
    watch.start()
    try:
        yield
    except BaseException as error:
        if _is_lost_connection(error):
            watch.wait_for_verdict()
        else:
            watch.fail(exit_code_of(error))
        raise
    else:
        watch.stop()
    finally:
        watch.dismiss_witness()


def _is_lost_connection(error: BaseException | None) -> bool:
    """Whether an error, or its cause, may come from another process's end."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _LOST_CONNECTION):
            return True
        error = error.__cause__ or error.__context__
    return False
