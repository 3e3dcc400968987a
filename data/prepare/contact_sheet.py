"""The contact sheet of a prepared set: frames of every camera, with the boxes that were cut out of them."""

import collections
import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from console.errors import UnusableFile
from data.catalog import Video
from data.prepare import archives, raw_video
from data.prepare.boxes import MANIFEST_COLUMNS

NAME = "contact_sheet.png"
TAKES = 6  # of a camera, evenly spread over the set
CAMERAS = 24  # at most; the first by name
SHORT_SIDE, LABEL_HEIGHT, GAP = 120, 16, 4  # pixels
COLOUR = (255, 220, 0)  # of the boxes, RGB


def write(
    accounts: Sequence[dict],
    videos: Sequence[Video],
    input_dir: Path,
    output_dir: Path,
    frames_fps: float | None = None,
) -> Path:
    """Writes OUTPUT/contact_sheet.png, one row per camera; returns its path.

    Args:
      accounts: of the shards, as of `shards.account_of`.
      videos: that were prepared.
      input_dir: with the raw videos.
      output_dir: of the prepared set.
      frames_fps: frames per second of series of images.

    Raises:
      ValueError: the picture cannot be written.
    """
    video = {(video.take, video.view): video for video in videos}
    of_view: dict[str, list[dict]] = {}
    for row in (row for account in accounts for row in account["records"]):
        of_view.setdefault(row["view"], []).append(row)
    picked = []
    for _, rows in sorted(of_view.items())[:CAMERAS]:
        numbers = np.unique(np.linspace(0, len(rows) - 1, TAKES).round().astype(int))
        picked.append([rows[number] for number in numbers])
    paths = [video[row["take"], row["view"]].path for rows in picked for row in rows]
    with archives.Reader(input_dir, paths, frames_fps=frames_fps) as files:
        lines = [[_cell(video[row["take"], row["view"]], row, files) for row in rows] for rows in picked]
    path = output_dir / NAME
    if not cv2.imwrite(str(path), _joined(lines)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise UnusableFile(f"could not write {path}")
    return path


def _cell(video: Video, row: dict, files: archives.Reader) -> np.ndarray:
    """The frame in the middle of a view with its box and names, uint8[h, w, 3]."""
    middle = (video.interval or (0,))[0] + row["num_frames"] // 2
    with files.open(video.path) as file:
        begin = itertools.islice(raw_video.read(file, SHORT_SIDE)[1], middle + 1)
        cell = collections.deque(begin, maxlen=1)[0]  # the last: a clock may show one frame of the file several times
    if MANIFEST_COLUMNS[0] in row:
        left, top, right, bottom, width, height = (row[name] for name in MANIFEST_COLUMNS)
        x, y = cell.shape[1] / width, cell.shape[0] / height
        corners = (round(left * x), round(top * y)), (round(right * x) - 1, round(bottom * y) - 1)
        cv2.rectangle(cell, *corners, COLOUR, 1)
    label = np.full((LABEL_HEIGHT, cell.shape[1], 3), 255, np.uint8)
    cv2.putText(label, f"{video.view} {video.take}", (2, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.34, (40, 40, 40), 1)
    return np.concatenate([label, cell])


def _joined(lines: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """A row of cells below the other on white, uint8[H, W, 3]."""
    sizes = [(max(cell.shape[0] for cell in cells), sum(cell.shape[1] + GAP for cell in cells)) for cells in lines]
    height, width = sum(h + GAP for h, _ in sizes), max((w for _, w in sizes), default=1)
    image = np.full((max(height, 1), width, 3), 255, np.uint8)
    top = 0
    for cells, (line_height, _) in zip(lines, sizes, strict=True):
        left = 0
        for cell in cells:
            image[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
            left += cell.shape[1] + GAP
        top += line_height + GAP
    return image
