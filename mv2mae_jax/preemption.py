"""SIGTERM: schedulers announce with it that they take the machine away, and give some seconds of grace.

While steps are taken, the signal is noticed after the step at hand: the run saves, stops, and exits with EXIT_CODE.
Where nothing would be lost (at start-up, while the first step is compiled, in an evaluation, before which the state was
saved) one process ends at once, which no compilation can delay. Several processes must agree on the step; JAX's
coordination service carries the news, and all of them stop after the same step.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from console.command import ExitCode

# 128 + SIGTERM: what a shell or a scheduler sees of a process that the signal ended. [ours] Schedulers that tell
# failures by their codes (Kubeflow, for one) take 128 and above for those that are worth another start.
EXIT_CODE = ExitCode.PREEMPTED


class Preempted(Exception):
    """The run was told to stop, has saved, and goes on with the same command."""


class Watch:
    """Notices SIGTERM while steps are taken."""

    def __init__(self):
        self._requested = False
        self._calls = 0
        self._before: object = None

    def start(self) -> None:
        """From here on the signal does not end the process; nothing happens where that is already so."""
        # With several processes the handler is JAX's. Outside of the main thread Python allows none.
        alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if alone and self._before is None:
            self._before = signal.signal(signal.SIGTERM, self._notice)

    def stop(self) -> None:
        """Back to what the signal did before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """A context in which there is nothing to lose."""
        self.stop()
        yield
        self.start()

    def reached(self) -> bool:
        """Whether to save and stop now; every process calls it after every step and all get the same answer."""
        if jax.process_count() == 1:
            return self._requested
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def _notice(self, number: int, frame: object) -> None:
        self._requested = True
