"""The contact sheet: every class from every camera, a few frames over time."""

import pathlib

import av
import cv2
import numpy as np

from console.errors import UnusableFile
from data.catalog.synthetic import CLASS_NAMES
from data.synthetic.design import Take
from data.synthetic.rooms import CAMERA_DEGREES

SHEET = "contact_sheet.png"
FRAMES_PER_CAMERA = 3
CELL, LABEL_WIDTH, HEADER_HEIGHT, GAP = 96, 190, 28, 3  # pixels; a cell is the square in the middle of a frame


def write_sheet(directory: pathlib.Path, takes: list[Take]) -> pathlib.Path:
    """Writes DIRECTORY/contact_sheet.png from the videos there, one row per class that has a take; returns its path."""
    picked = (_pick(takes, action) for action in range(1, len(CLASS_NAMES) + 1))
    rows = [_row(directory, take) for take in picked if take]
    header = np.full((HEADER_HEIGHT, rows[0].shape[1], 3), 255, np.uint8)
    for column, camera in enumerate(CAMERA_DEGREES):
        left = LABEL_WIDTH + column * (FRAMES_PER_CAMERA * (CELL + GAP) + 2 * GAP)
        _label(header, f"camera C{camera:03}", (left, 19), 0.5)
    path = directory / SHEET
    if not cv2.imwrite(str(path), np.concatenate([header, *rows])[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise UnusableFile(f"could not write {path}")
    return path


def _row(directory: pathlib.Path, take: Take) -> np.ndarray:
    """The class name, then each camera's frames: uint8[CELL + GAP, W, 3]."""
    label = np.full((CELL + GAP, LABEL_WIDTH, 3), 255, np.uint8)
    _label(label, CLASS_NAMES[take.action - 1], (6, CELL // 2 - 4), 0.42)
    _label(label, take.file_name(1).replace("C001", "C...")[:20], (6, CELL // 2 + 16), 0.36)
    blocks = [label]
    for camera in CAMERA_DEGREES:
        for image in _read(directory / take.file_name(camera), FRAMES_PER_CAMERA):
            side = min(image.shape[:2])
            top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
            cell = cv2.resize(image[top : top + side, left : left + side], (CELL, CELL), interpolation=cv2.INTER_AREA)
            blocks.append(cv2.copyMakeBorder(cell, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
        blocks.append(np.full((CELL + GAP, 2 * GAP, 3), 255, np.uint8))
    return np.concatenate(blocks, axis=1)


def _pick(takes: list[Take], action: int) -> Take | None:
    """A take of the class, in another setup from row to row as far as there is one."""
    setups = max(take.setup for take in takes)
    candidates = [take for take in takes if take.action == action]
    return min(candidates, key=lambda take: (take.setup - action) % setups, default=None)


def _read(path: pathlib.Path, count: int) -> np.ndarray:
    """`count` evenly spaced frames, uint8[count, H, W, 3] RGB."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[int(share * len(frames))] for share in np.linspace(0.08, 0.92, count)])


def _label(image: np.ndarray, text: str, corner: tuple[int, int], size: float) -> None:
    cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, (40, 40, 40), 1, cv2.LINE_AA)
