"""Finds the raw videos of a data set in a folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from console.errors import UserError
from data import archives, catalog

# [ours] The longest of RoCoG's lists, the longest annotation files known here, has 3 MB.
MAX_ANNOTATION_BYTES = 32 * 2**20


class PreparationError(UserError):
    """Stops the preparation; the message says what to do. What is done so far stays and is not done again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The input folder, as the catalogue reads it."""

    videos: tuple[catalog.Video, ...]  # sorted by recording, take and view
    num_bytes: Mapping[str, int]  # of the raw files, by path
    unmatched: tuple[tuple[str, str], ...]  # (path, reason): files of the right extension, or labels, not used
    unreadable: tuple[tuple[str, str, str], ...]  # (path, take or '', reason): files, archives, folders


def list_videos(names: catalog.Catalog, input_dir: Path) -> tuple[catalog.Catalog, Listing]:
    """The videos below `input_dir`, and the catalogue completed with what only the folder tells.

    Raises:
      PreparationError: no such folder, nothing in it, a damaged list, or two files that are the same view of the same
        take.
    """
    names, files, unmatched, unreadable = matching_files(names, input_dir)
    videos = []
    for video in files:
        cut, problems = names.cut(video)
        videos += cut
        unmatched += [(video.path, problem) for problem in problems]
    if not videos:
        example = f", for example: {unmatched[0][1]}" if unmatched else ""
        raise PreparationError(
            f"no video of {names.name} in {input_dir}: {len(unmatched)} files end in {' '.join(names.extensions)} but "
            f"are not used{example}" + "".join(f"; {path}: {reason}" for path, _, reason in unreadable)
        )
    return names, Listing(
        videos=tuple(sorted(videos, key=lambda video: (video.recording, video.take, video.view))),
        num_bytes={video.path: size for video, size in files.items()},
        unmatched=tuple(unmatched),
        unreadable=tuple(unreadable),
    )


def matching_files(
    names: catalog.Catalog, input_dir: Path
) -> tuple[catalog.Catalog, dict[catalog.Video, int], list[tuple[str, str]], list[tuple[str, str, str]]]:
    """The completed catalogue, the raw videos with their bytes, `Listing.unmatched` and `Listing.unreadable`.

    Raises:
      PreparationError: as `list_videos`, but for a folder without videos.
    """
    if not input_dir.is_dir():
        raise PreparationError(f"--input={input_dir} is not a folder")
    found = dict(sorted(archives.files(input_dir)))
    sizes = {path: size for path, size in found.items() if not isinstance(size, str)}
    wanted = (*names.extensions, *archives.EXTENSIONS, "/")  # what else cannot be read is of no interest
    unreadable = {
        path: reason
        for path, reason in found.items()
        if isinstance(reason, str) and (path.lower().endswith(wanted) or names.is_annotation(path))
    }
    texts = _annotations(names, input_dir, sizes, unreadable)
    try:
        names = names.with_annotations(texts)
    except UserError as error:
        raise PreparationError(str(error)) from error
    paths = [path for path in sizes if path.lower().endswith(names.extensions)]
    names = names.with_names_from(paths)
    videos: dict[tuple[str, str], catalog.Video] = {}
    unmatched = []
    for path in paths:
        try:
            if ".." in path.split("/"):
                raise UserError(f"{path!r} leads out of its archive")
            video = names.parse(path)
        except ValueError as error:
            unmatched.append((path, str(error)))
            continue
        other = videos.setdefault((video.take, video.view), video)
        if other is not video:
            raise PreparationError(
                f"two files are view {video.view} of take {video.take}: {other.path} and {path}. "
                "Move one of them out of the input folder, or tell them apart by --pattern"
            )
    aside = [(path, _take(names, path), reason) for path, reason in sorted(unreadable.items())]
    return names, {videos[key]: sizes[videos[key].path] for key in sorted(videos)}, unmatched, aside


def _annotations(
    names: catalog.Catalog, input_dir: Path, sizes: Mapping[str, int], unreadable: dict[str, str]
) -> dict[str, str]:
    """The text of the annotation files, by path; `unreadable` receives those that cannot be read."""
    paths = [path for path in sizes if names.is_annotation(path)]
    texts = {}
    with archives.Reader(input_dir, paths, MAX_ANNOTATION_BYTES) as reader:
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
            texts[path] = content.decode("utf-8", errors="replace")
    return texts


def _take(names: catalog.Catalog, path: str) -> str:
    """The take that a file would belong to, '' where its name does not say."""
    try:
        return names.parse(path).take
    except UserError:
        return ""
