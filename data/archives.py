"""Files in a folder and in the zip and tar archives in it, read without unpacking anything to disk.

A path goes through an archive as through a folder: 'nturgb+d_rgb_s001.zip/nturgb+d_rgb/S001C001P001R001A001_rgb.avi'.
"""

import contextlib
import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from console.errors import UnusableFile

EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz")
# [ours] One file of an archive is held in memory while it is read, so its size is bounded, whatever the archive claims.
MAX_MEMBER_BYTES = 2**30
# [ours] A tar archive has no index and is read from its start: all files of a shard at once, held in memory.
MAX_TAR_BYTES_PER_SHARD = 4 * 2**30


class BadArchive(Exception):
    """An archive, or a file in one, that cannot be read; the message is the reason."""


def files(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every regular file below a folder, those in archives included.

    Links to folders are followed, each folder once. Paths are relative, with forward slashes.

    Raises:
      BadArchive: an archive is damaged, or is none.
    """
    seen = set()
    for directory, subdirectories, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(directory))
        subdirectories[:] = [
            name for name in subdirectories if os.path.realpath(os.path.join(directory, name)) not in seen
        ]
        for name in names:
            path = Path(directory, name)
            status = path.stat() if path.exists() else None  # not so for a link into nowhere
            if status is None or not stat.S_ISREG(status.st_mode):  # nor a pipe, which would never end
                continue
            relative = path.relative_to(folder).as_posix()
            if name.lower().endswith(EXTENSIONS):
                yield from ((f"{relative}/{member}", size) for member, size in _members(path))
            else:
                yield relative, status.st_size


class Reader(contextlib.ExitStack):
    """Opens files below a folder; a context.

    Archives stay open. Of a tar archive, the files wanted are read in one pass when the first is opened.
    """

    def __init__(self, folder: Path, wanted: Sequence[str]):
        """`wanted`: the paths that will be opened, each once, as `files` gives them."""
        super().__init__()
        self._folder = folder
        self._wanted = wanted
        self._zips: dict[Path, zipfile.ZipFile] = {}
        self._from_tar: dict[str, bytes] = {}

    def open(self, path: str) -> BinaryIO:
        """The file, seekable; the caller closes it.

        Raises:
          BadArchive: the file is damaged, or larger than MAX_MEMBER_BYTES.
          OSError: as of `open`; a tar archive has changed, or holds too much to be read at once.
        """
        archive, member = _split(self._folder, path)
        if archive is None:
            return open(self._folder / path, "rb")
        if archive.name.lower().endswith(".zip"):
            return io.BytesIO(self._read_zip(archive, member))
        if path not in self._from_tar:
            self._read_tar(archive)
        return io.BytesIO(self._from_tar.pop(path))

    def _read_zip(self, archive: Path, member: str) -> bytes:
        with _reasons(archive):
            if archive not in self._zips:
                self._zips[archive] = self.enter_context(zipfile.ZipFile(archive))
            with self._zips[archive].open(member) as file:
                content = file.read(MAX_MEMBER_BYTES + 1)
        if len(content) > MAX_MEMBER_BYTES:
            raise BadArchive(f"larger than {MAX_MEMBER_BYTES} bytes, in an archive: unpack {archive}")
        return content

    def _read_tar(self, archive: Path) -> None:
        prefix = archive.relative_to(self._folder).as_posix() + "/"
        members = {path.removeprefix(prefix) for path in self._wanted if path.startswith(prefix)}
        num_bytes = 0
        with _reasons(archive), tarfile.open(archive) as tar:
            for entry in tar:
                if entry.isfile() and entry.name in members:
                    num_bytes += entry.size
                    if entry.size > MAX_MEMBER_BYTES or num_bytes > MAX_TAR_BYTES_PER_SHARD:
                        raise UnusableFile("it is larger than what is read from a tar archive in one pass: unpack this")
                    self._from_tar[prefix + entry.name] = tar.extractfile(entry).read()
                    members.discard(entry.name)
                if not members:
                    return
        raise UnusableFile(f"{archive} has changed since it was listed: {min(members)} is missing")


def _split(folder: Path, path: str) -> tuple[Path | None, str]:
    """(archive, path in it), or (None, path) of a file that is in none."""
    parts = PurePosixPath(path).parts
    for depth, part in enumerate(parts[:-1], start=1):
        if part.lower().endswith(EXTENSIONS) and folder.joinpath(*parts[:depth]).is_file():
            return folder.joinpath(*parts[:depth]), path.removeprefix("/".join(parts[:depth]) + "/")
    return None, path


def _members(archive: Path) -> list[tuple[str, int]]:
    with _reasons(archive):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                return [(entry.filename, entry.file_size) for entry in opened.infolist() if not entry.is_dir()]
        with tarfile.open(archive) as opened:
            return [(entry.name, entry.size) for entry in opened if entry.isfile()]


@contextlib.contextmanager
def _reasons(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, KeyError, RuntimeError) as error:
        # A RuntimeError is zipfile's for a password or a compression that it lacks.
        raise BadArchive(f"the archive {archive} cannot be read: {error}") from error
