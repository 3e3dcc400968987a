"""The box around the person: one for each view of a take, found, read, and fitted into the picture.

Boxes count pixels of the upright raw video from its upper left corner; right and bottom are the first pixels outside.
"""

import dataclasses
import filecmp
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from console.errors import UserError
from data.catalog import Video, composed, ntu
from data.prepare.preparation_report import some_views

COLUMNS = ("take", "view", "left", "top", "right", "bottom")
MANIFEST_COLUMNS = ("crop_left", "crop_top", "crop_right", "crop_bottom", "raw_width", "raw_height")
WITH_SKELETONS = ("ntu60", "ntu120", "synthetic")  # data sets whose files are named as .skeleton files are
SKELETON_SIZE = (1920, 1080)  # pixels, width and height of the picture that a .skeleton file counts in

# How the box of what moves is found. [ours]
MOTION_SHORT_SIDE = 90  # pixels of the pictures that are compared
MOTION_SIGMA = 1.0  # such pixels: of the Gaussian that smooths these pictures against noise, and the energy map
MOTION_FLOOR = 0.5  # grey levels; the noise of codecs changes frames by less on average
CAMERA_MOVES = 3.0  # grey levels; if the median of the mean differences is higher, everything moves
MOTION_FACTOR = 4.0  # of the picture's median energy: what moves stands out from it
MIN_ENERGY_SHARE = 0.01  # of all energy above the threshold; a smaller connected region is a flicker
# Of a table's boxes, which may count in something else than pixels of the raw video. [ours]
MIN_SIDE = 8  # raw pixels; nobody is seen in fewer
SHARES_END = 1.5  # if no box ends beyond this, edges are shares of width and height
SUSPECT_SHARE = 0.5  # of width and height; if no box reaches beyond it, a smaller copy may have been measured
SUSPECT_BOXES = 10  # so many at least
MIN_BODY_SHARE = 0.1  # [ours] of the frames of a .skeleton file; a body in fewer frames is a mistake of Kinect

# What a crop adds to the box that was found, where the user does not say.
FOUND_MARGIN = 0.1  # [ours] of the longer side, on every side: joints lie inside the body, and motion misses limbs
FOUND_ASPECT = 1.0  # [ours] width / height; training crops are squares


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, x: float, y: float) -> "Box":
        """The same place where a pixel is x wide and y high."""
        return Box(self.left * x, self.top * y, self.right * x, self.bottom * y)

    def __str__(self) -> str:
        return f"({', '.join(f'{edge:g}' for edge in self)})"


class NoBox(Exception):
    """A view without a box that can be used; the message is the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
    """How views are cut."""

    by: str  # motion | table | skeletons: where the boxes come from
    margin: float  # share of the box's longer side that is added on every side
    aspect: float | None  # width / height that a box is extended to; None leaves it


def make_crop(crop: str, margin: float | None, aspect: float | None) -> Crop | None:
    """The settings of `--crop`, None for `full`; what is not given gets the default of its kind.

    Args:
      crop: full | motion | skeletons, or the path of a table.
      margin: as of Crop; None for FOUND_MARGIN, and 0 for a table's boxes, which are taken as they are.
      aspect: as of Crop; None for FOUND_ASPECT, and for a table the aspect of its boxes; 0 for that in any case.
    """
    if crop == "full":
        return None
    table = crop not in ("motion", "skeletons")
    margin = (0.0 if table else FOUND_MARGIN) if margin is None else margin
    aspect = (0.0 if table else FOUND_ASPECT) if aspect is None else aspect
    return Crop(by="table" if table else crop, margin=margin, aspect=aspect or None)


def fit(box: Box, size: tuple[int, int], margin: float = 0.0, aspect: float | None = None) -> Box:
    """A box with its margin and aspect, in whole pixels inside of the picture.

    A box that would leave the picture is moved into it. A box larger than the picture is cut, which changes its aspect.

    Args:
      size: width and height of the picture, pixels.
      margin, aspect: as of Crop.

    Raises:
      NoBox: it is empty, or less than half of it lies in the picture.
    """
    picture = f"the picture of {size[0]}x{size[1]} pixels"
    if not all(map(math.isfinite, box)) or box.right <= box.left or box.bottom <= box.top:
        raise NoBox(f"its box {box} (left, top, right, bottom) is empty")
    inside = [max(0.0, min(box[i + 2], size[i]) - max(box[i], 0.0)) / (box[i + 2] - box[i]) for i in (0, 1)]
    if inside[0] * inside[1] < 0.5:
        raise NoBox(f"its box {box} (left, top, right, bottom) lies outside of {picture}")
    pad = margin * max(box.right - box.left, box.bottom - box.top)
    first = [math.floor(box[i] - pad) if pad else math.floor(box[i]) for i in (0, 1)]
    length = [math.ceil(box[i + 2] + pad) - first[i] for i in (0, 1)]
    if aspect is not None:
        wanted = [max(length[0], round(length[1] * aspect)), max(length[1], round(length[0] / aspect))]
        first = [first[i] - (wanted[i] - length[i]) // 2 for i in (0, 1)]
        length = wanted
    length = [min(length[i], size[i]) for i in (0, 1)]
    first = [min(max(first[i], 0), size[i] - length[i]) for i in (0, 1)]
    return Box(first[0], first[1], first[0] + length[0], first[1] + length[1])


class Found(NamedTuple):
    """A box before it is fitted, and the size (width, height) of the picture that it counts in; None: raw pixels."""

    box: Box
    counted_in: tuple[int, int] | None


def place(found: Found, size: tuple[int, int], crop: Crop) -> Box:
    """A found box in the upright raw picture of (width, height) `size`, with margin and aspect.

    Raises:
      NoBox: as of `fit`; also where a box that was given in raw pixels leaves the picture, or is too small for a
        person: it was made for another size, or for the picture before it was turned.
    """
    box = found.box
    if found.counted_in is not None:
        box = box.scaled(size[0] / found.counted_in[0], size[1] / found.counted_in[1])
    elif min(box.left, box.top) < -1 or box.right > size[0] + 1 or box.bottom > size[1] + 1:
        raise NoBox(
            f"its box {box} (left, top, right, bottom) lies outside of the picture, which has {size[0]}x{size[1]} "
            "pixels upright: correct the table, or cut its boxes to the picture"
        )
    elif min(box.right - box.left, box.bottom - box.top) < MIN_SIDE:
        raise NoBox(
            f"its box {box} (left, top, right, bottom) is narrower than {MIN_SIDE} pixels, too small for a person: "
            f"boxes count pixels of the raw video, {size[0]}x{size[1]} upright, not shares of it or pixels of a copy"
        )
    return fit(box, size, crop.margin, crop.aspect)


class Motion:
    """The energy of the differences between neighbouring frames, summed over a take; memory of two small frames."""

    def __init__(self):
        self._before: np.ndarray | None = None
        self._sum: np.ndarray | None = None
        self._count = 0

    def add(self, frame: np.ndarray) -> None:
        """Takes the next frame, uint8[h, w, 3] with a short side of MOTION_SHORT_SIDE or less."""
        grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), MOTION_SIGMA)
        if self._before is None:
            self._sum = np.zeros(grey.shape, np.float64)
        else:
            cv2.accumulate(cv2.absdiff(grey, self._before), self._sum)
            self._count += 1
        self._before = grey

    def box(self) -> Box:
        """The region that moves, as shares of width and height. Raises NoBox where nothing does.

        If most of the picture moves, the camera moves, and the region is the whole picture.
        """
        if not self._count:
            raise NoBox("it has one frame, in which nothing can move: crop it by a table, or not at all")
        energy = moving_energy(self._sum / self._count)
        if np.median(energy) > CAMERA_MOVES:
            return Box(0.0, 0.0, 1.0, 1.0)
        rows, columns = np.nonzero(moving_region(energy))
        if not len(rows):
            raise NoBox(
                f"nothing moves in it (the mean difference between frames is {energy.max():.2g} grey levels at most): "
                "crop it by a table, or not at all"
            )
        height, width = energy.shape
        return Box(columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)


def moving_energy(mean_difference: np.ndarray) -> np.ndarray:
    """Smooths an energy map, float[h, w] in grey levels."""
    return cv2.GaussianBlur(mean_difference, (0, 0), MOTION_SIGMA, borderType=cv2.BORDER_REFLECT)


def moving_region(energy: np.ndarray) -> np.ndarray:
    """bool[h, w]: what moves in a smoothed energy map, without flickers."""
    above = energy > max(MOTION_FLOOR, MOTION_FACTOR * float(np.median(energy)))
    _, region = cv2.connectedComponents(above.astype(np.uint8))
    share = np.bincount(region[above], weights=energy[above], minlength=1) / max(energy[above].sum(), 1e-9)
    return above & (share >= MIN_ENERGY_SHARE)[region]


def read_table(path: Path) -> dict[tuple[str, str], Box]:
    """The boxes by (take, view) of a .csv file in UTF-8 or a .parquet file, with COLUMNS and perhaps more.

    Raises:
      ValueError: it cannot be read, lacks a column, has an empty box or a view twice, or counts in shares of the
        picture; the message says where.
    """
    called = f"--crop={path}"
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{called}: give full, motion, skeletons or a table that ends in .csv or .parquet")
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".csv":
            text = pa.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False)
            table = pa.csv.read_csv(io.BytesIO(content), convert_options=text)
        else:
            table = pq.read_table(io.BytesIO(content))
    except OSError as error:
        raise UserError(f"{called} cannot be read: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise UserError(f"{called} is no such table: {error}") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise UserError(
            f"{called} lacks the columns {', '.join(missing)}: it is to have {', '.join(COLUMNS)} (pixels of the "
            f"upright raw video), and has {', '.join(table.column_names)}"
        )
    if twice := [name for name in COLUMNS if table.column_names.count(name) > 1]:
        raise UserError(f"{called} has the column {', '.join(twice)} more than once: keep one")
    boxes: dict[tuple[str, str], Box] = {}
    for number, (take, view, *edges) in enumerate(zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)):
        take, view = composed(str(take)), composed(str(view))
        where = f"{called}, row {number + 1}, view {view} of take {take}"
        try:
            box = Box(*map(float, edges))
        except (ValueError, TypeError):
            raise UserError(f"{where}: {edges} are to be four numbers of pixels") from None
        if not all(map(math.isfinite, box)) or box.right <= box.left or box.bottom <= box.top:
            raise UserError(f"{where}: the box {box} is empty: left < right and top < bottom are needed")
        if (take, view) in boxes:
            raise UserError(f"{where} is there twice: a view of a take has one box")
        boxes[take, view] = box
    if boxes and max(max(box) for box in boxes.values()) <= SHARES_END:
        (take, view), box = next(iter(boxes.items()))
        raise UserError(
            f"{called}: no box ends beyond {SHARES_END:g} pixels, e.g. {box} of view {view} of take {take}. If these "
            "are shares of the picture, multiply them by width and height of the upright raw video"
        )
    return boxes


def in_one_corner(boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> str:
    """A remark if no box reaches beyond SUSPECT_SHARE of its picture, as if a smaller copy was measured; else ''.

    Args:
      boxes: SUSPECT_BOXES or more, else there is none.
      sizes: width and height of the picture of each.
    """
    if len(boxes) < SUSPECT_BOXES:
        return ""
    x = max(box.right / width for box, (width, _) in zip(boxes, sizes, strict=True))
    y = max(box.bottom / height for box, (_, height) in zip(boxes, sizes, strict=True))
    if max(x, y) > SUSPECT_SHARE:
        return ""
    return (
        f"all {len(boxes)} boxes lie in the upper left, within {x:.2f} of the width and {y:.2f} of the height: if they "
        "count pixels of smaller copies, scale them; --sheet shows them"
    )


def skeleton_files(folder: Path) -> dict[str, Path]:
    """The .skeleton files below a folder by name. Raises ValueError where there are none, or two differ."""
    if not folder.is_dir():
        raise UserError(f"--skeletons={folder}: there is no such folder")
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*.skeleton") if path.name[0] != "."):
        first = files.setdefault(path.name, path)
        if first != path and not filecmp.cmp(first, path, shallow=False):
            raise UserError(f"--skeletons={folder}: {first} and {path} have different content: move one of them away")
    if not files:
        raise UserError(f"--skeletons={folder}: there is no .skeleton file in it; unpack the official archives there")
    return files


def skeleton_name(video: Video) -> str:
    """Of the .skeleton file that belongs to a video named as NTU's are."""
    return f"{ntu.NamedAsNTU().format(video).removesuffix('_rgb.avi')}.skeleton"


def read_skeleton(path: Path) -> Box:
    """The box around all bodies of a .skeleton file of NTU RGB+D, in pixels of SKELETON_SIZE.

    The form: the number of frames; for each frame the number of bodies; for each body a line about it, the number of
    joints, and a line of 12 numbers per joint, of which the sixth and seventh are its place in the colour image.
    A body that is there for less than MIN_BODY_SHARE of the longest is left out.

    Raises:
      NoBox: the file is missing, is damaged, or holds no body.
    """
    places: dict[str, list[np.ndarray]] = {}
    try:
        lines = iter(path.read_text(encoding="ascii").splitlines())
        for _ in range(int(next(lines))):
            for _ in range(int(next(lines))):
                body = next(lines).split()[0]
                joints = [next(lines).split() for _ in range(int(next(lines)))]
                place = np.array([[float(joint[5]), float(joint[6])] for joint in joints]).reshape(-1, 2)
                places.setdefault(body, []).append(place[np.isfinite(place).all(axis=1)])
    except OSError as error:
        raise NoBox(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, StopIteration) as error:
        reason = "it ends early" if isinstance(error, StopIteration) else str(error)
        raise NoBox(f"{path.name} is damaged: {reason}") from error
    longest = max(map(len, places.values()), default=0)
    kept = [place for frames in places.values() if len(frames) >= MIN_BODY_SHARE * longest for place in frames]
    points = np.concatenate(kept) if kept else np.empty((0, 2))
    if not len(points):
        raise NoBox(f"{path.name} holds no body in the picture")
    left, top = points.min(axis=0).tolist()
    right, bottom = (points.max(axis=0) + 1).tolist()
    return Box(left, top, right, bottom)


def uncovered(found: Mapping[tuple[str, str], object], videos: Sequence[Video], called: str) -> list[str]:
    """Remarks on boxes before the videos are decoded: how many there are, and which are missing or unused.

    `found` are the boxes by (take, view), `called` is what they come from. Raises ValueError if no video has a box.
    """
    wanted = {(video.take, video.view) for video in videos}
    lacking, unused = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    if len(lacking) == len(wanted):
        raise UserError(
            f"{called} has no box of any of the {len(wanted)} views, e.g. {some_views(lacking)}. It names "
            f"{some_views(unused) or 'none'}"
        )
    lines = [f"boxes: of {len(wanted) - len(lacking)} of {len(wanted)} views: {called}"]
    if lacking:
        lines.append(f"warning: {len(lacking)} views have no box and go to the quarantine, e.g. {some_views(lacking)}")
    if unused:
        lines.append(f"warning: {len(unused)} boxes of {called} are of no video here, e.g. {some_views(unused)}")
    return lines
