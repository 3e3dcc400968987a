"""Folders of numbered images, each read as the video whose frames they are.

A series is named after its folder and its images, with `*` for numbers: 'view_1/a01_s01_e00/frame_*_rgb.jpg'. Its
images are packed unchanged into an AVI file in memory, which all code that reads videos can read. A number that is
missing becomes an entry without a picture, which stands for the frame before.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np

from console.errors import UserError
from data.recordings.clocks import MAX_GAP_SHARE
from data.recordings.raw_video import MAX_FRAMES, ImageSeries

_CODECS = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}
IMAGES = tuple(_CODECS)
_COLOUR = re.compile(r"rgb|colou?r", re.IGNORECASE)  # of several series in a folder, beside depth and infrared


def is_series(path: str) -> bool:
    """Whether a path is that of a series, not of a file."""
    return "*" in path.rpartition("/")[2] and path.lower().endswith(IMAGES)


def regex(path: str) -> re.Pattern:
    """What the names of a series' images match, without their folder."""
    return re.compile(re.escape(path.rpartition("/")[2]).replace(r"\*", "([0-9]+)"))


def in_folders(images: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Folder -> path of a series -> its images; where some of a folder's say that they are in colour, these alone."""
    found: dict[str, dict[str, list[str]]] = {}
    for image in images:
        folder, _, name = image.rpartition("/")
        template = re.sub("[0-9]+", "*", name)
        if folder and "*" in template:
            found.setdefault(folder, {}).setdefault(f"{folder}/{template}", []).append(image)
    for folder, of_folder in found.items():
        colour = {path: images for path, images in of_folder.items() if _COLOUR.search(path.rpartition("/")[2])}
        found[folder] = colour or of_folder
    return found


def as_video(path: str, images: Mapping[str, bytes], fps: float) -> ImageSeries:
    """An AVI file of the images of a series, which are given by their names, without their folder.

    Raises:
      ValueError: no images, a number twice, too many or too many missing ones, or one that is damaged at its ends.
    """
    matches = regex(path)
    numbered = sorted((tuple(map(int, matches.fullmatch(name).groups())), name) for name in images)
    if not numbered:
        raise UserError("the folder holds no images any more")
    numbers, first_number, step = _frame_numbers([number for number, _ in numbered])
    first = images[numbered[0][1]]
    picture = cv2.imdecode(np.frombuffer(first, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise UserError(f"{numbered[0][1]} is not a readable image")
    rate, file = Fraction(fps).limit_denominator(100_000), ImageSeries()
    file.begin, file.step = float(first_number / step / rate), step
    # Without its own version in the file, FFmpeg makes the same bytes of the same images.
    with av.open(file, "w", format="avi", options={"fflags": "+bitexact"}) as output:
        codec = _CODECS["." + path.lower().rpartition(".")[2]]
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        for number, (_, name) in zip(numbers, numbered, strict=True):
            content = images[name]
            if not content:  # an empty entry would stand for the frame before
                raise UserError(f"{name} is empty")
            if codec == "mjpeg" and not (content[:2] == b"\xff\xd8" and b"\xff\xd9" in content[-64:]):
                raise UserError(f"{name} is damaged: it is no whole JPEG file")  # which decoders show in part
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, 1 / rate, True
            packet.pts = packet.dts = number
            output.mux(packet)
    file.seek(0)
    return file


def _frame_numbers(numbers: Sequence[tuple[int, ...]]) -> tuple[list[int], int, int]:
    """From 0, by the first number in the names that differs; a common step counts as one. Raises ValueError.

    Returns:
      The numbers; that of the first image, as it is written (0 of a single image), and the common step.
    """
    if len(numbers) == 1:
        return [0], 0, 1
    if len(set(numbers)) < len(numbers):
        raise UserError("two of its images have the same number")
    counted = next(column for column in map(list, zip(*numbers, strict=True)) if len(set(column)) > 1)
    steps = np.diff(counted)
    if steps.min() < 1:
        raise UserError(
            f"the first numbers of its images count nothing: {counted[int(np.argmin(steps))]} is there twice"
        )
    step = math.gcd(*steps.tolist())
    frames = [(number - counted[0]) // step for number in counted]
    total = frames[-1] + 1
    if total > MAX_FRAMES:
        raise UserError(f"its images are numbered over {total} frames, above the limit of {MAX_FRAMES}")
    if total - len(frames) > MAX_GAP_SHARE * total:
        at = int(np.argmax(steps))
        raise UserError(
            f"{total - len(frames)} of {total} images are missing, more than the part {MAX_GAP_SHARE:g}: after "
            f"{counted[at]} comes {counted[at + 1]}"
        )
    return frames, counted[0], step
