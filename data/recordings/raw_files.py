"""Raw files by their bytes: whether they are still those that a set was made of, and which of them are the same."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from console import progress
from data.recordings import archives

BLOCK_BYTES = 2**16
# [ours] Blocks of a file that are looked at, spread evenly from its first to its last bytes: 1 MiB, whatever its size.
NUM_BLOCKS = 16
COMPARED_TOGETHER = 200  # [ours] files; those in a tar archive are read in one pass over it


def digest(file: BinaryIO, num_blocks: int = NUM_BLOCKS) -> str:
    """SHA-256 of a file's size and of `num_blocks`, 2 or more, of BLOCK_BYTES, in hexadecimal digits.

    A small file is read whole, and the file is left at its start.
    """
    size = file.seek(0, 2)
    last = max(0, size - BLOCK_BYTES)
    found = hashlib.sha256(b"%d" % size)
    for start in sorted({last * number // (num_blocks - 1) for number in range(num_blocks)}):
        file.seek(start)
        found.update(file.read(BLOCK_BYTES))
    file.seek(0)
    return found.hexdigest()


def changed(
    kept: Mapping[str, Mapping], num_bytes: Mapping[str, int], root: Path, frames_fps: float | None
) -> list[str]:
    """The files that are not those that a set was made of. Only those with another time of change are read.

    Args:
      kept: by path, of a shard's account: `bytes`, `modified` (see `archives.modified`) and `digest`, None for a file
        that could not be opened.
      num_bytes: of the files now, by path.
      root: where paths start.
      frames_fps: of series of images, as they were prepared.
    """
    found = [path for path, before in kept.items() if num_bytes[path] != before["bytes"]]
    alike = kept.keys() - set(found)
    touched = sorted(path for path in alike if archives.modified(root, path) != kept[path]["modified"])
    for first in progress.track(range(0, len(touched), COMPARED_TOGETHER), "comparing", "parts"):
        part = touched[first : first + COMPARED_TOGETHER]
        with archives.Reader(root, part, frames_fps=frames_fps) as reader:
            found += [path for path in part if digest_of(reader, path) != kept[path]["digest"]]
    return sorted(found)


def alike(num_bytes: Mapping[str, int], root: Path, frames_fps: float | None) -> list[list[str]]:
    """Groups of files with the same bytes, as far as a glance tells: of equal size, with equal first and last blocks.

    Of files in zip archives it compares the stated checksums. Those in tar archives are left out, because an archive
    would have to be read from its start. Arguments are as of `changed`.
    """
    of_size: dict[int, list[str]] = {}
    for path, size in num_bytes.items():
        if size and not any(f"{ending}/" in path.lower() for ending in archives.EXTENSIONS if ending != ".zip"):
            of_size.setdefault(size, []).append(path)
    candidates = {path: size for size, paths in of_size.items() if len(paths) > 1 for path in paths}
    groups: dict[tuple, list[str]] = {}
    with archives.Reader(root, list(candidates), frames_fps=frames_fps) as reader:
        for path, size in progress.track(candidates.items(), "comparing", "files"):
            try:
                seen = reader.stated_checksum(path)
                if seen is None:
                    with reader.open(path) as file:
                        seen = digest(file, num_blocks=2)
            except (archives.BadArchive, OSError):
                continue  # preparation reports it
            groups.setdefault((size, seen), []).append(path)
    return sorted(sorted(paths) for paths in groups.values() if len(paths) > 1)


def digest_of(reader: archives.Reader, path: str) -> str | None:
    """As `digest`, of a path; None if it cannot be read."""
    try:
        with reader.open(path) as file:
            return digest(file)
    except (archives.BadArchive, OSError):  # preparation reports it
        return None
