"""Files in a folder and in the zip and tar archives in it, read without unpacking them.

In a path an archive looks like a folder: 'nturgb+d_rgb_s001.zip/nturgb+d_rgb/S001C001P001R001A001_rgb.avi'.
A file or archive that cannot be read is reported with the reason; the others are read.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from console.errors import UnusableFile, UserError
from data.recordings import series

EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz")
# [ours] At most this much of one file in an archive is read, whatever the archive claims.
MAX_MEMBER_BYTES = 2**30
# [ours] A tar archive has no index and must be read from its start, so all files of a shard are read in one pass.
MAX_TAR_BYTES_PER_SHARD = 16 * 2**30
# [ours] Of images of series, which are kept in memory: those of a shard of NUCLA's frames have 0.2 GB.
MAX_TAR_SERIES_BYTES = 2 * 2**30
# [ours] More than this of an archive is kept in unnamed temporary files, not in memory. Ten times NTU's longest video.
MAX_BYTES_IN_MEMORY = 64 * 2**20
# [ours] In a tar archive a file's name and attributes may have any length.
MAX_TAR_HEADER_BYTES = 2**20
_TAR_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_COPIED_AT_ONCE = 2**20


class BadArchive(UnusableFile):
    """A file, an archive, or a file in one, that cannot be read; the message is the reason."""


def files(folder: Path, *, in_archives: bool = True) -> Iterator[tuple[str, int | str]]:
    """(path, bytes, or the reason why it cannot be read) of every file below a folder.

    An archive stands for the files in it, with `in_archives=False` for itself.

    Links to folders are followed, each folder once. Paths are relative, with forward slashes. The path of a folder that
    cannot be listed ends with one. Bytes of a name that is not UTF-8 are escaped as \\x... Hidden files and folders are
    named with 0 bytes, and nothing in them is looked at.
    """
    seen, unlisted = set(), []
    for directory, subdirectories, names in os.walk(folder, followlinks=True, onerror=unlisted.append):
        seen.add(os.path.realpath(directory))
        names += [name for name in subdirectories if is_hidden(name)]
        subdirectories[:] = [
            name
            for name in subdirectories
            if not is_hidden(name) and os.path.realpath(os.path.join(directory, name)) not in seen
        ]
        for name in names:
            path = Path(directory, name)
            relative = path.relative_to(folder).as_posix()
            if is_hidden(name):
                yield _escaped(relative), 0
                continue
            if _escaped(relative) != relative:
                yield _escaped(relative), "its name is not UTF-8: rename it"
                continue
            yield from ((relative + member, size) for member, size in files_in(path, in_archives=in_archives))
    for error in unlisted:
        relative = Path(error.filename).relative_to(folder).as_posix()
        yield f"{_escaped(relative)}/", f"the folder cannot be listed: {error.strerror}"


def modified(folder: Path, path: str) -> int:
    """When a file, the archive that holds it, or the latest image of a series was changed: nanoseconds since 1970."""
    archive, _ = _split(folder, path)
    place = folder / path if archive is None else archive
    if archive is None and series.is_series(path):
        matches = series.regex(path)
        with os.scandir(place.parent) as entries:
            return max((entry.stat().st_mtime_ns for entry in entries if matches.fullmatch(entry.name)), default=0)
    return place.stat().st_mtime_ns


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder above it, is one that file managers hide: what systems and programs keep there."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def files_in(path: Path, *, in_archives: bool = True) -> Iterator[tuple[str, int | str]]:
    """As `files`, of a file: ("/" and the path in it, ...) where that is an archive, else ("", ...) alone."""
    try:
        status = path.stat()  # not opened, which is an event for some devices
        _check_regular(status)
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        members = _members(path) if in_archives and path.name.lower().endswith(EXTENSIONS) else None
    except OSError as error:
        yield "", error.strerror or str(error)
        return
    if members is None:
        yield "", status.st_size
    else:
        yield from ((f"/{member}", size) for member, size in members)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """As `open(path, "rb")`, but never waits: a pipe, a socket or a device is refused.

    Raises:
      BadArchive: it is no regular file.
      OSError: as of `open`.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()))
    except BadArchive:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
        kind = next((kind for is_kind, kind in kinds.items() if is_kind(status.st_mode)), "a folder")
        raise BadArchive(f"is {kind}, not a file")


def _escaped(path: str) -> str:
    """The name in a form that can be printed and written; valid text stays as it is."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


class Reader(contextlib.ExitStack):
    """Opens files below a folder; a context.

    Archives stay open. Of a tar archive, the files wanted are read in one pass when the first is opened.
    """

    def __init__(
        self, folder: Path, wanted: Sequence[str], max_member_bytes: int | None = None, frames_fps: float | None = None
    ):
        """Opens nothing.

        Args:
          folder: where paths start.
          wanted: the paths that will be opened, each once, as `files` gives them.
          max_member_bytes: of a file in an archive (default: MAX_MEMBER_BYTES).
          frames_fps: frames per second of series of images, see data/recordings/series.py.
        """
        super().__init__()
        self._folder = folder
        self._wanted = wanted
        self._max_member_bytes = MAX_MEMBER_BYTES if max_member_bytes is None else max_member_bytes
        self._frames_fps = frames_fps
        self._zips: dict[Path, zipfile.ZipFile] = {}
        self._folders: dict[Path, dict[str, list[str]]] = {}  # of zip archives: folder -> names of files in it
        self._from_tar: dict[str, BinaryIO | BadArchive] = {}
        self._memory_left = MAX_BYTES_IN_MEMORY  # for the files of tar archives, which wait until they are opened

    def open(self, path: str) -> BinaryIO:
        """The file, or the video of a series of images, seekable; the caller closes it.

        Raises:
          BadArchive: the file is damaged, larger than the bound, or none; a tar archive holds too much for one pass.
          OSError: as of `open`; a tar archive has changed.
        """
        archive, member = _split(self._folder, path)
        if archive is None:
            return self._read_series(path) if series.is_series(path) else open_regular(self._folder / path)
        if archive.name.lower().endswith(".zip"):
            return self._read_zip(archive, member)
        if path not in self._from_tar:
            self._read_tar(archive)
        found = self._from_tar.pop(path)
        if isinstance(found, BadArchive):
            raise found
        return found

    def stated_checksum(self, path: str) -> int | None:
        """CRC-32 that a zip archive states of a file in it, without reading that; None of others. Raises BadArchive."""
        archive, member = _split(self._folder, path)
        if archive is None or not archive.name.lower().endswith(".zip") or series.is_series(member):
            return None
        with _reasons(archive):
            return self._opened(archive).getinfo(member).CRC

    def _read_zip(self, archive: Path, member: str) -> BinaryIO:
        with _reasons(archive):
            if series.is_series(member):
                return self._series_in_zip(archive, member)
            entry = self._opened(archive).getinfo(member)
            if entry.file_size > self._max_member_bytes:  # zipfile never reads more than the claimed size
                raise self._too_large(archive)
            with _open_zipped(self._opened(archive), entry) as file:
                return _copied(file, MAX_BYTES_IN_MEMORY)

    def _read_series(self, path: str) -> BinaryIO:
        folder, matches = (self._folder / path).parent, series.regex(path)
        images = {}
        for name in filter(matches.fullmatch, os.listdir(folder)):
            with open_regular(folder / name) as file:
                images[name] = file.read()
        return self._as_video(path, images)

    def _series_in_zip(self, archive: Path, member: str) -> BinaryIO:
        opened = self._opened(archive)
        if archive not in self._folders:
            self._folders[archive] = {}
            for name in opened.namelist():
                folder, _, image = name.rpartition("/")
                self._folders[archive].setdefault(folder, []).append(image)
        folder, matches = member.rpartition("/")[0], series.regex(member)
        images, left = {}, self._max_member_bytes
        for name in filter(matches.fullmatch, self._folders[archive].get(folder, ())):
            entry = opened.getinfo(f"{folder}/{name}")
            left -= entry.file_size
            if left < 0:
                raise self._too_large(archive)
            with _open_zipped(opened, entry) as file:
                images[name] = file.read(entry.file_size)
        return self._as_video(member, images)

    def _as_video(self, path: str, images: dict[str, bytes]) -> BinaryIO:
        try:
            return series.as_video(path, images, self._frames_fps or 1.0)
        except UserError as error:
            raise BadArchive(str(error)) from error

    def _opened(self, archive: Path) -> zipfile.ZipFile:
        if archive not in self._zips:
            self._zips[archive] = self.enter_context(zipfile.ZipFile(self.enter_context(open_regular(archive))))
        return self._zips[archive]

    def _too_large(self, archive: Path) -> BadArchive:
        return BadArchive(f"larger than {self._max_member_bytes} bytes, in an archive: unpack {archive}")

    def _read_tar(self, archive: Path) -> None:
        prefix = archive.relative_to(self._folder).as_posix() + "/"
        members = {path.removeprefix(prefix) for path in self._wanted if path.startswith(prefix)}
        num_bytes, wanted = 0, set(members)
        of_series = {(path.rpartition("/")[0], series.regex(path)): path for path in members if series.is_series(path)}
        folders = {folder for folder, _ in of_series}
        images: dict[str, dict[str, bytes]] = {path: {} for path in of_series.values()}
        members -= images.keys()
        with _reasons(archive), open_regular(archive) as file, tarfile.open(fileobj=file, tarinfo=_TarEntry) as tar:
            for entry in tar:
                if not entry.isfile():
                    continue
                folder, _, name = entry.name.rpartition("/")
                if folder in folders and (found := _series_of(folder, name, of_series)):
                    num_bytes += entry.size
                    if num_bytes > MAX_TAR_SERIES_BYTES:
                        raise BadArchive("it holds more images than are read in one pass: unpack it")
                    images[found][name] = tar.extractfile(entry).read()
                    continue
                if entry.name not in members:
                    continue
                members.discard(entry.name)
                if entry.size > self._max_member_bytes:
                    self._from_tar[prefix + entry.name] = self._too_large(archive)
                elif num_bytes + entry.size > MAX_TAR_BYTES_PER_SHARD:
                    too_much = f"{archive} holds more than is read from a tar archive in one pass: unpack this"
                    self._from_tar |= {prefix + name: BadArchive(too_much) for name in wanted}
                    return
                else:
                    num_bytes += entry.size
                    self._from_tar[prefix + entry.name] = _copied(tar.extractfile(entry), self._memory_left)
                    self._memory_left -= entry.size
                if not (members or images):
                    return
        for path, found in images.items():
            try:
                self._from_tar[prefix + path] = self._as_video(path, found)
            except BadArchive as error:
                self._from_tar[prefix + path] = error
        if not members:
            return
        raise UnusableFile(f"{archive} has changed since it was listed: {min(members)} is missing")


def _series_of(folder: str, name: str, of_series: dict[tuple[str, re.Pattern], str]) -> str | None:
    return next((path for (of, matches), path in of_series.items() if of == folder and matches.fullmatch(name)), None)


def _copied(file: BinaryIO, max_bytes_in_memory: int) -> BinaryIO:
    """A seekable copy of a file that does not depend on the archive."""
    copied = tempfile.SpooledTemporaryFile(max(1, max_bytes_in_memory))  # noqa: SIM115
    try:
        shutil.copyfileobj(file, copied, _COPIED_AT_ONCE)
    except BaseException:
        copied.close()
        raise
    copied.seek(0)
    return copied


def _split(folder: Path, path: str) -> tuple[Path | None, str]:
    """(archive, path in it), or (None, path) of a file that is in none."""
    parts = PurePosixPath(path).parts
    for depth, part in enumerate(parts[:-1], start=1):
        if part.lower().endswith(EXTENSIONS) and folder.joinpath(*parts[:depth]).is_file():
            return folder.joinpath(*parts[:depth]), path.removeprefix("/".join(parts[:depth]) + "/")
    return None, path


def _members(archive: Path) -> list[tuple[str, int | str]]:
    """(path in it, bytes, or the reason why it cannot be read)."""
    with _reasons(archive), open_regular(archive) as file:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(file) as opened:
                found = [(entry.filename, entry.file_size) for entry in opened.infolist() if not entry.is_dir()]
        else:
            with tarfile.open(fileobj=file, tarinfo=_TarEntry) as opened:
                found = [(entry.name, entry.size) for entry in opened if entry.isfile()]
    unreadable = "its name in the archive is not UTF-8: unpack this"
    return [(name, size) if _escaped(name) == name else (_escaped(name), unreadable) for name, size in found]


def _open_zipped(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> BinaryIO:
    """A file in a zip archive. Of bzip2 and LZMA, zipfile unpacks at once what it has read: 4 KiB may become 4 GB."""
    if entry.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        raise BadArchive(f"compressed with bzip2 or LZMA, which is not read in a zip archive: unpack {opened.filename}")
    return opened.open(entry)


class _TarEntry(tarfile.TarInfo):
    """Refuses long names and attributes, because tarfile reads them into memory whatever their size."""

    @classmethod
    def frombuf(cls, *arguments: object) -> "_TarEntry":
        entry = super().frombuf(*arguments)
        if entry.type in _TAR_HEADERS and entry.size > MAX_TAR_HEADER_BYTES:
            raise UserError(f"it claims a name or attributes of {entry.size} bytes")
        return entry


@contextlib.contextmanager
def _reasons(archive: Path) -> Iterator[None]:
    """Turns whatever an archive's content makes its reader raise into BadArchive."""
    try:
        yield
    except BadArchive:
        raise
    except Exception as error:
        # In a damaged archive Python's readers and decoders raise errors of many types. An OSError of the file system
        # has a number. EINVAL does not count: a damaged archive may ask for a position before the file's start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = error or type(error).__name__
        if isinstance(error, UnicodeDecodeError):
            reason = "a name in it is not UTF-8, though it says so: unpack it"
        raise BadArchive(f"the archive {archive} cannot be read: {reason}") from error
