"""Files that appear whole or not at all, whatever ends the process that writes them."""

import contextlib
import errno
import fcntl
import glob
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from console.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; then the file appears at `path`.

    A write that fails leaves nothing behind. Several processes may write the same file: one of them is last.

    Args:
      path: of the file, in a folder that exists.
      durable: whether it is there for certain afterwards, also when the power fails; costs a wait for the disk.

    Raises:
      IsADirectoryError: `path` ends as a folder's does.
    """
    if os.fspath(path).endswith(os.sep):  # which Path leaves out
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _wait_for_disk(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        _wait_for_disk(path.parent, os.O_RDONLY)


def write_whole(path: str | os.PathLike, content: bytes | str, *, durable: bool = False) -> None:
    """Writes bytes, or text as UTF-8, by `whole_file`."""
    with whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def refuse_existing(output: str | os.PathLike) -> None:
    """Raises ValueError if what a command's --output names is there: nothing is replaced."""
    if os.path.exists(output):
        raise UserError(f"{output} exists already. Remove it or choose another --output.")


@contextlib.contextmanager
def only_one(path: Path, refusal: str) -> Iterator[None]:
    """Holds the file `path`; ValueError with the text `refusal` while another process does."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        yield


def reserve(file: IO, num_bytes: int) -> None:
    """Raises OSError if the disk does not take so many bytes, where the system can tell: before they are written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes the temporary files of processes that were killed, if their names begin with `name`.

    No process that writes such files to the folder may be at work.
    """
    for leftover in folder.glob(f".{glob.escape(name)}*.tmp"):
        leftover.unlink()


def _wait_for_disk(path: Path, how: int) -> None:
    descriptor = os.open(path, how)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
