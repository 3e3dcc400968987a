"""The contact sheet: every class from every camera, a few frames over time."""

import pathlib

import av
import cv2
import numpy as np

from data.synthetic.actions import CLASS_NAMES
from data.synthetic.design import Take
from data.synthetic.rooms import CAMERA_DEGREES

SHEET = "contact_sheet.png"
FRAMES_PER_CAMERA = 4
CELL_WIDTH, LABEL_WIDTH, HEADER_HEIGHT, GAP = 128, 190, 28, 3  # pixels


def write_sheet(directory: pathlib.Path, takes: list[Take]) -> pathlib.Path:
    """Writes DIRECTORY/contact_sheet.png from the videos there, one row per class that has a take; returns its path."""
    first = directory / takes[0].file_name(1)
    _, height, width, _ = _read(first, 1).shape
    cell = (CELL_WIDTH, round(CELL_WIDTH * height / width))
    group = FRAMES_PER_CAMERA * (CELL_WIDTH + GAP) + 3 * GAP
    chosen = [_pick(takes, action) for action in range(1, len(CLASS_NAMES) + 1)]
    chosen = [take for take in chosen if take]
    sheet = np.full(
        (HEADER_HEIGHT + len(chosen) * (cell[1] + GAP), LABEL_WIDTH + len(CAMERA_DEGREES) * group, 3), 255, np.uint8
    )
    for column, camera in enumerate(CAMERA_DEGREES):
        left = LABEL_WIDTH + column * group
        _write(sheet, f"camera C{camera:03}", (left, 19), 0.5)
        for row, take in enumerate(chosen):
            top = HEADER_HEIGHT + row * (cell[1] + GAP)
            for k, image in enumerate(_read(directory / take.file_name(camera), FRAMES_PER_CAMERA)):
                x = left + k * (CELL_WIDTH + GAP)
                sheet[top : top + cell[1], x : x + CELL_WIDTH] = cv2.resize(image, cell, interpolation=cv2.INTER_AREA)
    for row, take in enumerate(chosen):
        top = HEADER_HEIGHT + row * (cell[1] + GAP)
        _write(sheet, CLASS_NAMES[take.action - 1], (6, top + cell[1] // 2 - 4), 0.42)
        _write(sheet, take.file_name(1).replace("C001", "C...")[:20], (6, top + cell[1] // 2 + 16), 0.36)
    path = directory / SHEET
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise OSError(f"could not write {path}")
    return path


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


def _write(sheet: np.ndarray, text: str, corner: tuple[int, int], size: float) -> None:
    cv2.putText(sheet, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, (40, 40, 40), 1, cv2.LINE_AA)
