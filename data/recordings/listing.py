"""Finds the raw videos of a data set in folders and archives."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from console import progress
from console.errors import UserError
from data import catalog
from data.catalog import composed
from data.recordings import archives, series
from data.recordings.raw_files import COMPARED_TOGETHER
from data.store import truth

# [ours] The longest of RoCoG's lists, the longest annotation files known here, has 3 MB.
MAX_ANNOTATION_BYTES = 32 * 2**20
# Endings of videos that are not read, and of files that are not all there. Told where the rest of the name fits.
# fmt: off
_OTHER_VIDEOS = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".av1", ".avs", ".divx", ".dv", ".f4v", ".flv", ".gif",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".mjpeg", ".mjpg", ".mk3d",
    ".mod", ".mp4v", ".mpe", ".mpv", ".mxf", ".nut", ".ogg", ".ogm", ".ogv", ".qt", ".rm", ".rmvb",
    ".tod", ".vob", ".wtv", ".xvid", ".y4m", ".yuv", ".crdownload", ".download", ".part", ".partial",
)
# fmt: on
# Archives that are not read, and archives in archives.
_PACKED = re.compile(r"\.(7z|rar|zip|tar|tgz|gz|bz2|tbz2?|xz|txz|zst|z\d\d|\d\d\d)$")


class PreparationError(UserError):
    """Stops the preparation; the message says what to do. What is done so far stays and is not done again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """The input, as the catalogue reads its names."""

    root: Path  # where the paths of the files start
    videos: Mapping[catalog.Video, int]  # raw files, with their bytes, sorted by take and view
    unmatched: tuple[tuple[str, str], ...]  # (path, reason): videos, archives and labels that are not used
    duplicates: tuple[tuple[str, str], ...]  # (path, path of the file with the same bytes, which is used)
    unreadable: tuple[tuple[str, str, str], ...]  # (path, take or '', reason): files, archives, folders
    passed_over: Mapping[str, int]  # ending, or 'hidden' -> files that are neither videos nor labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The input, and what is to be made of it."""

    files: Files
    videos: tuple[catalog.Video, ...]  # sorted by recording, take and view
    num_bytes: Mapping[str, int]  # size of the raw files, by path
    refused: tuple[tuple[str, str, str], ...]  # (path, take, reason): labels that cannot be used
    changed: tuple[str, ...]  # labels that are used, but not as they are written
    unmatched: tuple[tuple[str, str], ...]  # as of `files`, and labels without a video
    frames_fps: float | None = None  # frames per second of series of images


def list_videos(
    names: catalog.Catalog, inputs: Path | Sequence[Path], frames_fps: float | None = None
) -> tuple[catalog.Catalog, Listing]:
    """The videos below folders and in archives, and the catalogue completed with what only the listed files tell.

    Args:
      names: of the data set.
      inputs: the folders and archives.
      frames_fps: frames per second of folders of numbered images (data/recordings/series.py), if they are to be used.

    Raises:
      ValueError: no such folder, nothing in it, a damaged list, or two different files that are the same view of
        the same take.
    """
    names, files = matching_files(names, inputs, frames_fps)
    packed = [path for path, _ in files.unmatched if _PACKED.search(path.lower())]
    videos, refused, changed = [], [], []
    for video in files.videos:
        cut = names.cut(video)
        videos += cut.takes
        hint = f" ({packed[0]} is not read: unpack it)" if packed and not cut.takes else ""
        refused += [(video.path, take, reason + hint) for take, reason in cut.refused]
        changed += cut.changed
    if not videos:
        reasons = [reason for _, reason in files.unmatched] + [reason for *_, reason in refused]
        example = f", for example: {'; '.join(reasons[:3])}" if reasons else ""
        unreadable = "".join(f"; {path}: {reason}" for path, _, reason in files.unreadable)
        there = f"; {passed_over(files.passed_over)}" if files.passed_over else ""
        listed = ", ".join(map(str, [inputs] if isinstance(inputs, Path) else inputs))
        raise PreparationError(
            f"no video of {names.name} in {listed}: {len(reasons)} files or labels are not used{example}"
            f"{unreadable}{there}"
        )
    return names, Listing(
        files=files,
        videos=tuple(sorted(videos, key=lambda video: (video.recording, video.take, video.view))),
        num_bytes={video.path: size for video, size in files.videos.items()},
        refused=tuple(refused),
        changed=tuple(changed),
        unmatched=(*files.unmatched, *names.unused_annotations(files.videos)),
        frames_fps=frames_fps,
    )


def matching_files(
    names: catalog.Catalog, inputs: Path | Sequence[Path], frames_fps: float | None = None
) -> tuple[catalog.Catalog, Files]:
    """The completed catalogue, and the files that it knows by their names; arguments as of `list_videos`.

    Raises:
      ValueError: as `list_videos`, but for a folder without videos.
    """
    root, found, called, num_hidden = _found(inputs)
    if not names.whole_paths:
        called = {path: composed(path) for path in found}
    sizes = {path: size for path, size in found.items() if not isinstance(size, str)}
    wanted = (*names.extensions, *archives.EXTENSIONS, "/")  # other unreadable files do not matter
    unreadable = {
        path: reason
        for path, reason in found.items()
        if isinstance(reason, str) and (path.lower().endswith(wanted) or names.is_annotation(path))
    }
    annotations = [path for path in sizes if names.is_annotation(path)]
    names = names.with_annotations(_texts(root, annotations, unreadable))
    paths = [path for path in sizes if path.lower().endswith(names.extensions)]
    # Files in folders before those in archives: of two alike the first is kept.
    paths.sort(key=lambda path: (any(f"{ending}/" in path.lower() for ending in archives.EXTENSIONS), path))
    of_series, several = _series(sizes, called, names.extensions[0])
    if frames_fps is not None:
        paths += of_series
        sizes |= {path: sum(sizes[image] for image in images) for path, images in of_series.items()}
    names = names.with_names_from([called[path] for path in paths])
    images = {image for images in of_series.values() for image in images} if frames_fps is not None else set()
    others = sizes.keys() - set(paths) - set(annotations) - images
    packed = sorted(path for path in others if _PACKED.search(path.lower()))
    unmatched = [(path, f"{path!r} is an archive that is not read: unpack it") for path in packed]
    unread = _unread(names, sorted(others - set(packed)), called)
    unread |= _unread(names, [] if frames_fps is not None else of_series, called) | several
    unmatched += unread.items()
    videos: dict[tuple[str, str], catalog.Video] = {}
    again: list[tuple[catalog.Video, catalog.Video]] = []
    for path in paths:
        try:
            if ".." in path.split("/"):
                raise UserError(f"{path!r} leads out of its archive")
            video = names.parse(called[path])
        except ValueError as error:  # what `Catalog.parse` promises; a catalogue may be the user's own
            unmatched.append((path, str(error)))
            continue
        if video.path != path:
            video = dataclasses.replace(video, path=path)
        first = videos.setdefault((video.take, video.view), video)
        if first is not video:
            again.append((first, video))
    _check_equal(names, root, again, sizes, unreadable)
    return names, Files(
        root=root,
        videos={videos[key]: sizes[videos[key].path] for key in sorted(videos)},
        unmatched=tuple(unmatched),
        duplicates=tuple((video.path, first.path) for first, video in again if video.path not in unreadable),
        unreadable=tuple((path, _take(names, called.get(path, path)), why) for path, why in sorted(unreadable.items())),
        passed_over=endings_of(others - set(packed) - unread.keys()) | ({"hidden": num_hidden} if num_hidden else {}),
    )


def passed_over(endings: Mapping[str, int], what: str = "neither videos nor labels") -> str:
    """The files of other kinds, in words; `what` they are."""
    ranked = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{number} {ending}" for ending, number in ranked[:8]) + ", ..." * (len(ranked) > 8)
    return f"passed over, as {what}: {sum(endings.values())} files ({kinds})"


def _found(inputs: Path | Sequence[Path]) -> tuple[Path, dict[str, int | str], dict[str, str], int]:
    """Where paths start; path -> bytes, or why it cannot be read; path -> `composed` path below its own input.

    Paths start in the folder itself where there is one, else in the folder that holds all folders and archives. Hidden
    files and folders are left out; the last is their number.
    """
    inputs = [inputs] if isinstance(inputs, Path) else list(inputs)
    for path in inputs:
        if not (path.is_dir() or (path.is_file() and path.name.lower().endswith(archives.EXTENSIONS))):
            is_packed = path.is_file() and _PACKED.search(path.name.lower())
            hint = ": unpack it" if is_packed else f", and no archive ({', '.join(archives.EXTENSIONS)})"
            raise PreparationError(f"--input={path} is not a folder{hint}")
    if len(inputs) == 1 and inputs[0].is_dir():
        root, found = inputs[0], dict(archives.files(inputs[0]))
        called = {path: path for path in found}
    else:
        places = [Path(os.path.abspath(path)) for path in inputs]
        for place in places:
            if places.count(place) > 1 or set(place.parents) & set(places):
                raise PreparationError(f"--input={place} is given twice, or lies in another --input: leave it out")
        root = Path(os.path.commonpath([place.parent for place in places]))
        found, called = {}, {}
        for place in places:
            prefix, below = place.relative_to(root).as_posix(), archives.files(place)
            inside = archives.files_in(place) if place.is_file() else ((f"/{path}", size) for path, size in below)
            for path, size in inside:
                found[prefix + path], called[prefix + path] = size, path.removeprefix("/")
    shown = sorted(path for path, name in called.items() if not archives.is_hidden(name))
    names = {path: composed(called[path]) for path in shown}
    return root, {path: found[path] for path in shown}, names, len(found) - len(shown)


def _series(
    paths: Iterable[str], called: dict[str, str], extension: str
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Path of a series -> its images; and of folders with several, path -> reason. `called` receives their names."""
    found, several = {}, {}
    for folder, of_folder in series.in_folders(path for path in paths if path.lower().endswith(series.IMAGES)).items():
        for path, images in of_folder.items():
            called[path] = called[images[0]].rpartition("/")[0] + extension
        if len(of_folder) == 1:
            found |= of_folder
        else:
            listed = ", ".join(path.rpartition("/")[2] for path in of_folder)
            several[next(iter(of_folder))] = f"{folder!r} holds several series of images, {listed}: keep one of them"
    return {path: images for path, images in sorted(found.items()) if called[path] != extension}, several


def _unread(names: catalog.Catalog, paths: Sequence[str], called: Mapping[str, str]) -> dict[str, str]:
    """Path -> reason, of files that would be videos of the data set if their endings were others."""
    renamed = {}
    for path in paths:
        stem, ending = os.path.splitext(called[path])
        if series.is_series(path):
            renamed[path] = called[path]
        elif ending.lower() in (*catalog.EXTENSIONS, *_OTHER_VIDEOS):
            renamed[path] = stem + names.extensions[0]
    names, reasons = names.with_names_from(renamed.values()), {}
    for path, name in renamed.items():
        try:
            video = names.parse(name)
        except ValueError:  # what `Catalog.parse` promises
            continue
        ending = os.path.splitext(path)[1]
        if series.is_series(path):
            why = "a folder of images does not say how many are shown in a second: --frames_fps=RATE does"
        elif ending.lower() in catalog.EXTENSIONS:
            why = f"the pattern asks for {names.extensions[0]}: leave the ending out of it to take every video"
        else:
            known = ", ".join(catalog.EXTENSIONS)
            why = f"{ending} is none of the endings that are read ({known}): convert it, or finish its download"
        reasons[path] = f"{path!r} would be view {video.view} of take {video.take}, but {why}"
    return reasons


def _texts(root: Path, paths: Sequence[str], unreadable: dict[str, str]) -> dict[str, str]:
    """The text of the annotation files, by path; `unreadable` receives those that cannot be read."""
    texts = {}
    with archives.Reader(root, paths, MAX_ANNOTATION_BYTES) as reader:
        for path in paths:
            try:
                with reader.open(path) as file:
                    content = file.read(MAX_ANNOTATION_BYTES + 1)
            except archives.BadArchive as error:
                unreadable[path] = str(error)
                continue
            if len(content) > MAX_ANNOTATION_BYTES:
                unreadable[path] = f"larger than {MAX_ANNOTATION_BYTES} bytes: no list of this data set"
                continue
            texts[path] = composed(content.decode("utf-8-sig", errors="replace"))
    return texts


def _check_equal(
    names: catalog.Catalog,
    root: Path,
    again: Sequence[tuple[catalog.Video, catalog.Video]],
    sizes: Mapping[str, int],
    unreadable: dict[str, str],
) -> None:
    """Compares files that are the same view; `unreadable` receives those that cannot be compared.

    Raises:
      PreparationError: some have different bytes.
    """
    different = [(one, other) for one, other in again if sizes[one.path] != sizes[other.path]]
    if not different:
        for first in progress.track(range(0, len(again), COMPARED_TOGETHER), "comparing", "parts"):
            part = again[first : first + COMPARED_TOGETHER]
            with archives.Reader(root, [video.path for pair in part for video in pair]) as reader:
                for one, other in part:
                    try:
                        if not _equal_bytes(reader, one.path, other.path):
                            different.append((one, other))
                    except archives.BadArchive as error:
                        unreadable[other.path] = f"the same view as {one.path}, and they cannot be compared: {error}"
    if different:
        one, other = different[0]
        by_pattern = ", or tell them apart by --pattern" if hasattr(names, "pattern") else ""
        more = f" (so are {len(different) - 1} other pairs)" if len(different) > 1 else ""
        raise PreparationError(
            f"two files with different content are view {one.view} of take {one.take}: {one.path} and {other.path}"
            f"{more}. Move one of them out of the input folder{by_pattern}"
        )


def _equal_bytes(reader: archives.Reader, path: str, other: str) -> bool:
    with reader.open(path) as one, reader.open(other) as two:
        while True:
            content = one.read(2**20)
            if content != two.read(2**20):
                return False
            if not content:
                return True


def endings_of(paths: Iterable[str]) -> dict[str, int]:
    """Number of files by ending, without those of 3D joints and cameras."""
    of_truth = {f"{truth.FOLDER}/{name}" for name in (truth.SKELETON, truth.JOINTS, truth.CAMERAS)}
    names = [path.rpartition("/")[2] for path in paths if "/".join(path.split("/")[-2:]) not in of_truth]
    return dict(Counter(os.path.splitext(name)[1].lower() or "without ending" for name in names))


def _take(names: catalog.Catalog, path: str) -> str:
    """The take that a file would belong to, '' where its name does not say."""
    try:
        return names.parse(path).take
    except ValueError:  # what `Catalog.parse` promises
        return ""
