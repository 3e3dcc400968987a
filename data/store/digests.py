"""SHA256SUMS: the digests of all files of a folder, in the form that coreutils' `sha256sum --check` reads."""

import concurrent.futures
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from console import progress
from console.errors import UserError

NAME = "SHA256SUMS"
_THREADS = 8  # [ours] hashing releases Python's lock, so threads run at once


def sha256_of(path: Path) -> tuple[str, int]:
    """The digest of a file's bytes in hexadecimal, and their number."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


class Unchanged:
    """A file whose content must stay what it was. It may be written anew with the same content."""

    def __init__(self, path: Path, sha256: str | None):
        """`sha256` of the content; None if it is unknown, so that nothing can be checked."""
        self._path, self._sha256 = path, sha256
        self._state = state_of(path) if sha256 else None

    def check(self) -> None:
        """Reads the file if it was written to since it was last seen. Raises ValueError if it has other content."""
        if not self._sha256 or (state := state_of(self._path)) == self._state:
            return
        if sha256_of(self._path)[0] != self._sha256:
            raise UserError(f"{self._path} has changed since it was opened: start again")
        self._state = state


def state_of(file: Path | int) -> tuple[int, int]:
    """A value that changes when a file, given by its path or descriptor, is written to."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def table(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """The text of SHA256SUMS for the files below `folder`, without hidden files and SHA256SUMS itself.

    `known` are digests that need not be computed, by the file's path in the folder.
    """
    digests = dict(known or {})
    digests |= _compute(folder, _files(folder) - digests.keys())
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def check(folder: Path, part: str = "", *, show_progress: bool = False) -> dict[str, str]:
    """Compares the files below `folder`, or only those in the folder `part` of it, with SHA256SUMS.

    Returns:
      What is wrong with a file ('missing', 'damaged', 'not listed in SHA256SUMS'), by its path in the folder; empty
      where every byte is as it was written.

    Raises:
      OSError: a file cannot be read.
    """
    try:
        listed = read(folder)
    except FileNotFoundError:
        return {NAME: "missing"}
    except ValueError:
        return {NAME: "damaged"}
    # Without the files that are there, a SHA256SUMS that has lost lines would vouch for those that it does not name.
    names = sorted(name for name in listed.keys() | _files(folder) if not part or name.startswith(f"{part}/"))
    return check_some(folder, names, listed, show_progress=show_progress)


def check_some(
    folder: Path, names: Sequence[str], listed: Mapping[str, str], *, show_progress: bool = False
) -> dict[str, str]:
    """As `check`, for some of the files, against digests from `read`."""
    there = [name for name in names if name in listed and os.path.isfile(folder / name)]
    found = _compute(folder, there, show_progress)
    wrong = {}
    for name in names:
        if name not in listed:
            wrong[name] = f"not listed in {NAME}"
        elif name not in found:
            wrong[name] = "missing"
        elif found[name] != listed[name]:
            wrong[name] = "damaged"
    return wrong


def read(folder: Path) -> dict[str, str]:
    """The digests in SHA256SUMS by the file's path. Raises FileNotFoundError, or ValueError where it is damaged."""
    text = (folder / NAME).read_text()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}
    if not listed or not text.endswith("\n"):
        raise UserError(f"{folder / NAME} has lost its end")
    return listed


def _files(folder: Path) -> set[str]:
    found = set()
    for directory, subdirectories, names in os.walk(folder):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        found |= {Path(directory, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")}
    return found - {NAME}


def _compute(folder: Path, names: Collection[str], show_progress: bool = False) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        digests = threads.map(lambda name: sha256_of(folder / name)[0], names)
        if show_progress:
            digests = progress.track(digests, "checking", "files", total=len(names))
        return dict(zip(names, digests, strict=True))
