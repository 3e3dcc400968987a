"""SIGTERM: schedulers announce with it that they take the machine away, and give some seconds of grace.

SIGHUP, by which a terminal that is closed ends what runs in it, is taken for the same, unless it is ignored (nohup).

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
    """Notices SIGTERM and SIGHUP while steps are taken.

    Attributes:
      noticed: the name of the one that was noticed.
    """

    def __init__(self):
        self.noticed = "SIGTERM"
        self._requested = False
        self._calls = 0
        self._before: dict[signal.Signals, object] = {}

    def start(self) -> None:
        """From here on the signals do not end the process; nothing happens where that is already so."""
        if self._before or threading.current_thread() is not threading.main_thread():  # elsewhere Python allows none
            return
        # With several processes the handler of SIGTERM is JAX's: SIGHUP is passed on to it.
        if jax.process_count() == 1:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._notice)

    def stop(self) -> None:
        """Back to what the signals did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """A context in which there is nothing to lose; but none of several processes must end alone."""
        if jax.process_count() == 1:
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
        self._requested, self.noticed = True, signal.Signals(number).name
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
