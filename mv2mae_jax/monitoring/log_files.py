"""Files that a run reports to. A disk that is full, slow or gone neither delays nor ends the run.

Records go through a bounded queue to the file's own thread. Records that cannot be written are kept and tried again
with the next ones, so that nothing is missing once there is room. A sentence reports the problem, another its end.
"""

import collections
import contextlib
import os
import threading
from collections.abc import Iterator

from console import progress

MOST_BYTES = 2**26  # [ours] of records that wait to be written; records beyond this are lost
SECONDS = 10.0  # [ours] a flush waits this long for the disk


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """A context for writing something that a run can do without: an OSError in it is only reported."""
    try:
        yield
    except OSError as error:
        progress.say(f"{what} could not be written: {error}. The run continues without it.")


class LogFile:
    """Appends whole records to a file, in order, in a thread of its own."""

    def __init__(self, path: str | os.PathLike):
        """The file is created or opened when the first record is written."""
        self._path = os.fspath(path)
        self._changed = threading.Condition()  # guards all attributes below
        self._waiting: collections.deque[bytes] = collections.deque()
        self._num_bytes, self._num_lost = 0, 0  # bytes that wait; records that were dropped
        self._asked, self._answered = 0, 0  # number of requests to write, and of those that were tried
        self._problem: OSError | None = None  # why the last one failed
        self._is_slow, self._ending = False, False
        self._cut_at: int | None = None  # start of a partly written record that could not be removed
        self._told = ""  # what was said last; used by the caller alone
        threading.Thread(target=self._work, name=self._path, daemon=True).start()

    def add(self, record: bytes) -> None:
        """Queues a record; never waits for the disk."""
        with self._changed:
            if self._num_bytes + len(record) > MOST_BYTES:
                self._num_lost += 1
            else:
                self._waiting.append(record)
                self._num_bytes += len(record)
            self._asked += 1
            self._changed.notify_all()
        self._tell()

    def flush(self) -> None:
        """Waits until all records are written or have failed, at most SECONDS.

        If the disk does not answer in that time, later calls do not wait until it answers again.
        """
        with self._changed:
            self._asked += 1
            asked = self._asked
            self._changed.notify_all()
            self._is_slow = not self._changed.wait_for(
                lambda: self._answered >= asked, timeout=0 if self._is_slow else SECONDS
            )
        self._tell()

    def close(self) -> None:
        """As `flush`, then ends the thread and says how many records are missing."""
        with self._changed:
            self._ending = True
        self.flush()
        with self._changed:
            if missing := len(self._waiting) + self._num_lost:
                progress.say(f"{self._path} lacks {missing} report(s) of this run.")

    def _tell(self) -> None:
        with self._changed:
            state = "the disk does not answer" if self._is_slow else str(self._problem or "")
            if self._num_lost and not state:
                state = "more was reported than the disk takes"
        if state and state != self._told:
            progress.say(
                f"{self._path} cannot be written: {state}. The run continues. What it reports is kept, "
                f"{MOST_BYTES >> 20} MiB at most, and written when that is possible."
            )
        elif self._told and not state:
            progress.say(f"{self._path} is written again.")
        self._told = state

    def _work(self) -> None:
        ending = False
        while not ending:
            with self._changed:
                self._changed.wait_for(lambda: self._answered < self._asked)
                asked, records, ending = self._asked, list(self._waiting), self._ending
            num_written, problem = self._append(records)
            with self._changed:
                for _ in range(num_written):
                    self._num_bytes -= len(self._waiting.popleft())
                self._answered, self._problem, self._is_slow = asked, problem, False
                self._changed.notify_all()

    def _append(self, records: list[bytes]) -> tuple[int, OSError | None]:
        """(number of records written, why not all). A record that does not fit leaves nothing in the file."""
        num_written = 0
        if not records:
            return 0, self._problem  # nothing was tried
        try:
            with open(self._path, "ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if self._cut_at is not None and self._cut_at < end:
                    file.truncate(end := self._cut_at)
                self._cut_at = end
                for record in records:
                    left = memoryview(record)
                    while left:
                        left = left[file.write(left) :]
                    self._cut_at += len(record)
                    num_written += 1
                self._cut_at = None
        except OSError as error:
            with contextlib.suppress(OSError):  # tried again with the next record
                if self._cut_at is not None:
                    os.truncate(self._path, self._cut_at)
                    self._cut_at = None
            return num_written, error
        return num_written, None
