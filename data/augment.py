"""Augmentation of labelled clips: drawn once per clip, applied to every frame.

The operations and their ranges are VideoMAE's for fine-tuning, `rand-m7-n4-mstd0.5-inc1` and random erasing, which come
from timm's auto_augment.py and random_erasing.py. VideoMAE's order is kept as well: RandAugment on the whole stored
frames, crop, flip, erasing. Colours are Pillow's work; geometry is OpenCV's, which takes a third of Pillow's time.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from console.errors import UserError

MAX_MAGNITUDE = 10.0  # timm's scale of magnitudes
OPERATION_PROBABILITY = 0.5  # timm's: a drawn operation is applied in half of the cases
FILL = (128, 128, 128)  # timm's: grey, where a geometric operation looks outside the frame
ERASED_AREA = (0.02, 1 / 3)  # VideoMAE's: share of the frame
ERASED_ASPECT = (0.3, 1 / 0.3)  # VideoMAE's: height by width, drawn evenly in its logarithm
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # RGB on [0, 1]; what the model normalises by
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training clip goes through besides its random crop; everything is off by default.

    Raises:
      ValueError: a value out of its range.
    """

    randaugment_num_ops: int = 0  # operations drawn per clip; each is carried out with probability 0.5
    randaugment_magnitude: float = 7.0  # their mean strength, 0 to 10
    randaugment_magnitude_std: float = 0.5  # its standard deviation from operation to operation
    random_erasing: float = 0.0  # probability that a box is overwritten by noise
    flip: float = 0.0  # probability of a mirror image

    def __post_init__(self):
        for name, largest in (("randaugment_magnitude", MAX_MAGNITUDE), ("random_erasing", 1.0), ("flip", 1.0)):
            if not 0 <= getattr(self, name) <= largest:
                raise UserError(f"augment.{name}={getattr(self, name)} must lie between 0 and {largest:g}.")
        for name in ("randaugment_num_ops", "randaugment_magnitude_std"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name}={getattr(self, name)} must not be negative.")


def _lighten_dark(frame: Image.Image, grey_levels: int) -> Image.Image:
    lookup = [min(255, level + grey_levels) if level < 128 else level for level in range(256)]
    return frame.point(lookup * 3)


# What an operation does at a strength (magnitude / 10). This is timm's increasing set: a stronger operation changes the
# picture more. Strength 0 changes nothing, except for the first three, which have no strength, and `posterize`, which
# starts at 4 bits.
_COLOUR: dict[str, Callable[[Image.Image, float], Image.Image]] = {  # strength in [0, 1]
    "auto_contrast": lambda frame, _: ImageOps.autocontrast(frame),
    "equalize": lambda frame, _: ImageOps.equalize(frame),
    "invert": lambda frame, _: ImageOps.invert(frame),
    "posterize": lambda frame, strength: ImageOps.posterize(frame, bits=4 - int(4 * strength)),
    "solarize": lambda frame, strength: ImageOps.solarize(frame, threshold=256 - int(256 * strength)),
    "solarize_add": lambda frame, strength: _lighten_dark(frame, int(110 * strength)),
}
_ENHANCEMENT = {  # strength in [-1, 1], either sign as likely
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
# Strength in [-1, 1], height, width -> float[2, 3], from (x, y, 1) of a pixel to where its content comes from.
_GEOMETRY: dict[str, Callable[[float, int, int], np.ndarray]] = {
    "rotate": lambda strength, h, w: cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), angle=-30 * strength, scale=1),
    "shear_x": lambda strength, h, w: np.array([[1, 0.3 * strength, 0], [0, 1, 0]]),
    "shear_y": lambda strength, h, w: np.array([[1, 0, 0], [0.3 * strength, 1, 0]]),
    "translate_x": lambda strength, h, w: np.array([[1, 0, 0.45 * strength * w], [0, 1, 0]]),
    "translate_y": lambda strength, h, w: np.array([[1, 0, 0], [0, 1, 0.45 * strength * h]]),
}
OPERATIONS = (*_COLOUR, *_ENHANCEMENT, *_GEOMETRY)


def rand_augment(video: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """RandAugment (Cubuk et al. 2020): a few operations in a row, drawn with replacement.

    `video` and the result are uint8[T, h, w, 3], RGB. Of `augmentation` the `randaugment_...` values are used.
    """
    for name in rng.choice(OPERATIONS, size=augmentation.randaugment_num_ops).tolist():
        if rng.random() >= OPERATION_PROBABILITY:
            continue
        magnitude = rng.normal(augmentation.randaugment_magnitude, augmentation.randaugment_magnitude_std)
        strength = float(np.clip(magnitude / MAX_MAGNITUDE, 0, 1))
        if name not in _COLOUR and rng.random() < 0.5:
            strength = -strength
        video = apply(name, video, strength)
    return video


def apply(name: str, video: np.ndarray, strength: float) -> np.ndarray:
    """One of OPERATIONS on every frame of uint8[T, h, w, 3]; `strength` in [-1, 1], or [0, 1] for one without sides.

    As in VideoMAE, statistics such as the histogram of `equalize` are those of the single frame.
    """
    if name in _GEOMETRY:
        height, width = video.shape[1:3]
        matrix = _GEOMETRY[name](strength, height, width)
        how = {"flags": cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, "borderValue": FILL}
        return np.stack([cv2.warpAffine(frame, matrix, (width, height), **how) for frame in video])
    frames = (Image.fromarray(frame) for frame in video)
    if name in _ENHANCEMENT:
        return np.stack([np.asarray(_ENHANCEMENT[name](frame).enhance(1 + 0.9 * strength)) for frame in frames])
    return np.stack([np.asarray(_COLOUR[name](frame, strength)) for frame in frames])


def random_flip(video: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """The mirror image (left for right) of uint8[T, H, W, 3], or the clip itself."""
    return video[:, :, ::-1] if rng.random() < probability else video


def random_erasing(video: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Overwrites one box, the same in all frames, by noise that differs from frame to frame (Zhong et al. 2020).

    The noise is standard normal after the model's normalisation, up to the limits of uint8 at about two deviations.
    `video`, uint8[T, H, W, 3] RGB, is left as it is; `probability` is that of erasing at all.
    """
    if rng.random() >= probability:
        return video
    num_frames, height, width, _ = video.shape
    while True:
        area = rng.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(rng.uniform(*np.log(ERASED_ASPECT)))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            break
    top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
    noise = rng.standard_normal((num_frames, box_height, box_width, 3), np.float32)
    erased = video.copy()
    pixels = np.rint(255 * (IMAGENET_MEAN + IMAGENET_STD * noise))
    erased[:, top : top + box_height, left : left + box_width] = np.clip(pixels, 0, 255).astype(np.uint8)
    return erased


_TURNED = {"left", "right", "leftward", "rightward", "leftwards", "rightwards"}
_TURNED |= {"clockwise", "anticlockwise", "counterclockwise"}


def has_left_right(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The class names that speak of a side or a sense of rotation, so that a mirror image belongs to another class.

    'TurnLeft', 'turn_left' and 'turn left' are the same two words.
    """
    words = {name: re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) for name in class_names}
    return tuple(name for name, found in words.items() if _TURNED & {word.lower() for word in found})
