"""The contact sheet of a prepared set: one moment of some takes in every camera, with the boxes that were cut out."""

import collections
import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from console.errors import UnusableFile
from data.catalog import Video
from data.prepare.boxes import MANIFEST_COLUMNS
from data.recordings import archives, raw_video

NAME = "contact_sheet.png"
TAKES = 6  # of a camera, evenly spread over the set
CAMERAS = 24  # at most; the first by name
SHORT_SIDE, LABEL_HEIGHT, GAP = 120, 16, 4  # pixels
COLOUR = (255, 220, 0)  # of the boxes, RGB
NO_CELL = np.zeros((0, 0, 3), np.uint8)  # where a take lacks a camera


def write(
    accounts: Sequence[dict],
    videos: Sequence[Video],
    input_dir: Path,
    output_dir: Path,
    frames_fps: float | None = None,
) -> Path:
    """Writes OUTPUT/contact_sheet.png; returns its path. Raises ValueError if the picture cannot be written.

    A row is a camera and a column a take. Takes are spread evenly over those with the most cameras. A camera that none
    of them has shows takes of its own. `accounts` are those of the shards, as of `shards.read_account`.
    """
    video = {(video.take, video.view): video for video in videos}
    of_view: dict[str, dict[str, dict]] = {}
    for row in (row for account in accounts for row in account["records"]):
        of_view.setdefault(row["view"], {})[row["take"]] = row
    num_views = collections.Counter(take for rows in of_view.values() for take in rows)
    most = max(num_views.values(), default=0)
    chosen = _spread([take for take, number in num_views.items() if number == most])
    picked = []
    for _, rows in sorted(of_view.items())[:CAMERAS]:
        takes = chosen if rows.keys() & set(chosen) else _spread(list(rows))
        picked.append([rows.get(take) for take in takes])
    paths = [video[row["take"], row["view"]].path for rows in picked for row in rows if row]
    with archives.Reader(input_dir, paths, frames_fps=frames_fps) as files:
        lines = [
            [_cell(video[row["take"], row["view"]], row, files) if row else NO_CELL for row in rows] for rows in picked
        ]
    path = output_dir / NAME
    if not cv2.imwrite(str(path), _joined(lines)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise UnusableFile(f"could not write {path}")
    return path


def _spread(takes: Sequence[str]) -> list[str]:
    """TAKES of them at most, evenly spread."""
    numbers = np.unique(np.linspace(0, max(0, len(takes) - 1), min(TAKES, len(takes))).round().astype(int))
    return [takes[number] for number in numbers]


def _cell(video: Video, row: dict, files: archives.Reader) -> np.ndarray:
    """The frame of the file that the middle of a record shows, with its box and names: uint8[h, w, 3]."""
    with files.open(video.path) as file:
        frames = raw_video.frames(raw_video.open_source(file), SHORT_SIDE)
        cell = next(itertools.islice(frames, row["middle_frame"], None))
    if MANIFEST_COLUMNS[0] in row:
        left, top, right, bottom, width, height = (row[name] for name in MANIFEST_COLUMNS)
        x, y = cell.shape[1] / width, cell.shape[0] / height
        corners = (round(left * x), round(top * y)), (round(right * x) - 1, round(bottom * y) - 1)
        cv2.rectangle(cell, *corners, COLOUR, 1)
    label = np.full((LABEL_HEIGHT, cell.shape[1], 3), 255, np.uint8)
    cv2.putText(label, f"{video.view} {video.take}", (2, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.34, (40, 40, 40), 1)
    return np.concatenate([label, cell])


def _joined(lines: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Cells in rows and columns on white, uint8[H, W, 3]."""
    columns = itertools.zip_longest(*lines, fillvalue=NO_CELL)
    bottoms = np.cumsum([max(cell.shape[0] for cell in cells) + GAP for cells in lines])
    rights = np.cumsum([max(cell.shape[1] for cell in cells) + GAP for cells in columns])
    image = np.full((max(bottoms, default=1), max(rights, default=1), 3), 255, np.uint8)
    for top, cells in zip([0, *bottoms], lines, strict=False):
        for left, cell in zip([0, *rights], cells, strict=False):
            image[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return image
