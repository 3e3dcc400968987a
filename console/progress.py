"""Progress of long commands: a bar on a terminal, lines every few seconds, or nothing.

A command chooses the mode once (`configure`). Until then no bar is shown, and so none in worker processes and where
this is used as a library. Bars go to stderr.
"""

import contextlib
import operator
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

MODES = ("auto", "plain", "none")
SECONDS_BETWEEN_LINES = 10.0  # [ours]
SECONDS_OF_PATIENCE = 60.0  # [ours] of waiting without a line

# What matters stands in front: a narrow terminal cuts off the end.
_BAR = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt}{unit}, {remaining} left {bar} {elapsed} gone, {rate_fmt}"
_LINE = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt}{unit}, {remaining} left, {elapsed} gone, {rate_fmt}"
_mode: str | None = None  # "bar", "plain", "none", or None: no bars, but a run's own lines
Item = TypeVar("Item")


def configure(mode: str) -> None:
    """Sets how this process shows progress from now on.

    Args:
      mode: one of MODES. 'auto' shows bars if stderr is a terminal, else none; 'plain' prints a line every ten seconds,
        wherever stderr goes; 'none' silences a run's own lines too.
    """
    assert mode in MODES, mode
    global _mode
    _mode = ("bar" if sys.stderr.isatty() else None) if mode == "auto" else mode


def silenced() -> bool:
    """Whether a command was told to show no progress, not even its own lines."""
    return _mode == "none"


class Bar:
    """Shows how much of a long command is done, and the time that is left. Leaving the context ends the bar.

    Args:
      total: parts to do; None if unknown.
      title: 'generating'.
      unit: what is counted, in the plural: 'takes'.
      initial: parts done before.
      leave: whether the bar stays when all is done.
      lines: whether 'plain' prints lines; False for a command that prints lines of its own.
    """

    def __init__(
        self, total: int | None, title: str, unit: str, *, initial: int = 0, leave: bool = True, lines: bool = True
    ):
        options = {"bar_format": _BAR, "dynamic_ncols": True, "leave": leave}
        if _mode == "plain":
            interval = dict.fromkeys(("mininterval", "maxinterval", "delay"), SECONDS_BETWEEN_LINES)
            options = {"bar_format": _LINE, "file": _Lines(), "miniters": 1, **interval}
        shown = _mode == "bar" or (_mode == "plain" and lines)
        self._tqdm = tqdm(total=total, desc=title, unit=f" {unit}", initial=initial, disable=not shown, **options)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._tqdm.close()

    def advance(self, parts: int = 1) -> None:
        """Counts more parts as done. Cheap enough for every step: the bar is drawn at most ten times a second."""
        self._tqdm.update(parts)

    def describe(self, title: str) -> None:
        """Changes the title."""
        self._tqdm.set_description(title)

    def advance_to(self, parts: int) -> None:
        """Sets the number of parts that are done in all."""
        self._tqdm.update(parts - self._tqdm.n)

    def resume(self) -> None:
        """Leaves out the time since the last part, which was spent on something else: compilation, an evaluation."""
        if not self._tqdm.disable:
            self._tqdm.unpause()


def track(
    items: Iterable[Item], title: str, unit: str, *, total: int | None = None, leave: bool = False
) -> Iterator[Item]:
    """Yields `items` and counts them in a bar. Without `total`, the bar asks `items` for their number."""
    with Bar(total or operator.length_hint(items) or None, title, unit, leave=leave) as bar:
        for item in items:
            yield item
            bar.advance()


def say(text: str) -> None:
    """Prints a line to stdout, above the bars if there are any."""
    with (
        contextlib.suppress(OSError),  # a full disk, or a reader that is gone, must not end a run
        tqdm.external_write_mode() if _mode == "bar" else contextlib.nullcontext(),
    ):
        print(text, flush=True)


def patient(items: Iterator[Item], what: str) -> Iterator[Item]:
    """Yields `items`. A line says if one has not come for SECONDS_OF_PATIENCE, another at twice that time, and so on.

    `what` is the end of the line: what has not come, and why that may be.
    """
    since, ended = None, threading.Event()  # when the wait for the next item began; None between waits

    def watch() -> None:
        seen, told_at = None, SECONDS_OF_PATIENCE
        while not ended.wait(SECONDS_OF_PATIENCE / 10):
            if since != seen:
                seen, told_at = since, SECONDS_OF_PATIENCE
            if seen is not None and (waited := time.monotonic() - seen) >= told_at:
                say(f"Waiting for {waited:.0f} s for {what}")
                told_at *= 2

    threading.Thread(target=watch, daemon=True).start()
    try:
        while True:
            since = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            since = None
            yield item
    finally:
        ended.set()


class _Lines:
    """Takes what tqdm draws and prints it as lines."""

    def write(self, text: str) -> None:
        if line := text.strip():
            with contextlib.suppress(OSError):  # as in `say`
                print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass
