"""Finds the raw videos of a data set in a folder."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data import catalog


class PreparationError(Exception):
    """Stops the preparation; the message says what to do. What is done so far stays and is not done again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The input folder, as the catalogue reads it."""

    videos: tuple[catalog.Video, ...]  # sorted by take and view
    num_bytes: tuple[int, ...]  # of each video
    unmatched: tuple[str, ...]  # why a file of the right extension is none of the data set


def list_videos(names: catalog.Catalog, input_dir: Path) -> tuple[catalog.Catalog, Listing]:
    """The videos below `input_dir`, and the catalogue completed with names that only the listing tells.

    Raises:
      PreparationError: no such folder, nothing in it, or two files that are the same view of the same take.
    """
    if not input_dir.is_dir():
        raise PreparationError(f"--input={input_dir} is not a folder")
    paths = sorted(_files(input_dir, names.extensions))
    names = names.with_names_from(paths)
    found: dict[tuple[str, str], catalog.Video] = {}
    unmatched = []
    for path in paths:
        try:
            video = names.parse(path)
        except ValueError as error:
            unmatched.append(str(error))
            continue
        other = found.setdefault((video.take, video.view), video)
        if other is not video:
            raise PreparationError(
                f"two files are view {video.view} of take {video.take}: {other.path} and {path}. "
                "Move one of them out of the input folder, or tell them apart by --pattern"
            )
    if not found:
        example = f", for example: {unmatched[0]}" if unmatched else ""
        raise PreparationError(
            f"no video of {names.name} in {input_dir}: {len(unmatched)} files end in {' '.join(names.extensions)} but "
            f"have other names{example}"
        )
    videos = tuple(found[key] for key in sorted(found))
    num_bytes = tuple((input_dir / video.path).stat().st_size for video in videos)
    return names, Listing(videos=videos, num_bytes=num_bytes, unmatched=tuple(unmatched))


def _files(input_dir: Path, extensions: Sequence[str]) -> Iterator[str]:
    """Paths relative to the folder; links to folders are followed, each folder once."""
    seen = set()
    for directory, subdirectories, names in os.walk(input_dir, followlinks=True):
        seen.add(os.path.realpath(directory))
        subdirectories[:] = [
            name for name in subdirectories if os.path.realpath(os.path.join(directory, name)) not in seen
        ]
        for name in names:
            if name.lower().endswith(tuple(extensions)):
                yield Path(directory, name).relative_to(input_dir).as_posix()
