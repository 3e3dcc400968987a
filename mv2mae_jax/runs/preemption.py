"""SIGTERM: a scheduler sends it before it takes the machine away, and then waits some seconds.

SIGHUP, which a closed terminal sends to its processes, is handled alike unless it is ignored (nohup).

During training the signal is noticed after the present step. The run saves, stops, and exits with ExitCode.PREEMPTED.
Where nothing would be lost, a single process ends at once, and no compilation can delay it. This is the case at
start-up, during the compilation of the first step, and in an evaluation, because the state is saved before it. Several
processes must agree on the step: JAX's coordination service carries the news, and all stop after the same step.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was told to stop and has saved its state. The same command resumes it."""


class Watch:
    """Notices SIGTERM and SIGHUP while steps are taken; `noticed` is the name of the signal that came."""

    def __init__(self):
        self.noticed = "SIGTERM"
        self._requested = False
        self._calls = 0
        self._before: dict[signal.Signals, object] = {}

    def start(self) -> None:
        """From here on the signals do not end the process. May be called again."""
        if self._before or threading.current_thread() is not threading.main_thread():  # others cannot set handlers
            return
        # With several processes the handler of SIGTERM is JAX's: SIGHUP is passed on to it.
        if jax.process_count() == 1:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._notice)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._notice)

    def stop(self) -> None:
        """Restores the earlier handlers of the signals."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """A context in which nothing can be lost, so a single process may end at once. One of several must not."""
        if jax.process_count() == 1:
            self.stop()
        yield
        self.start()

    def reached(self) -> bool:
        """Whether to save and stop now. Every process calls it after every step, and all get the same answer."""
        if jax.process_count() == 1:
            return self._requested
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def _notice(self, number: int, frame: object) -> None:
        self._requested, self.noticed = True, signal.Signals(number).name
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
