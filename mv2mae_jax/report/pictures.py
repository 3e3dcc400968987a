"""Arrays -> images inside the page."""

import base64
import dataclasses

import cv2
import numpy as np

from console.errors import UserError

MOST_FRAMES = 16  # [ours] of an animation
MOST_PIXELS = 160  # [ours] height of a frame; larger ones are reduced
SMALL = 112  # [ours] pixels; below, the page enlarges pixels as squares
QUALITY = 80  # [ours] of WebP, 0 to 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """An image of the page; `frames` > 1 is an animation, whose frames lie side by side in the image.

    Attributes:
      uri: the image itself, as data:image/webp;base64,...
      alt: what it shows, in words.
      label: the text below it.
      frames, height, width: number and size of the frames, in pixels.
      mark: 'right' or 'wrong', or ''.
    """

    uri: str
    alt: str
    label: str
    height: int
    width: int
    frames: int = 1
    mark: str = ""

    @property
    def small(self) -> bool:
        return min(self.height, self.width) < SMALL


def film(video: np.ndarray, label: str, alt: str, *, most_frames: int = MOST_FRAMES, mark: str = "") -> Image:
    """uint8[T, H, W, 3] -> an animation of at most `most_frames` frames, evenly taken."""
    chosen = np.unique(np.linspace(0, len(video) - 1, min(most_frames, len(video))).round().astype(int))
    frames = [_reduced(video[index]) for index in chosen]
    height, width = frames[0].shape[:2]
    uri = encode(np.concatenate(frames, axis=1))
    return Image(uri=uri, alt=alt, label=label, height=height, width=width, frames=len(frames), mark=mark)


def still(image: np.ndarray, label: str, alt: str) -> Image:
    """uint8[H, W, 3] -> an image of the page, as it is."""
    return Image(uri=encode(image), alt=alt, label=label, height=image.shape[0], width=image.shape[1])


def encode(image: np.ndarray) -> str:
    """uint8[H, W, 3] RGB -> data:image/webp;base64,...

    Raises:
      ValueError: it cannot be encoded; WebP holds at most 16383 pixels along an axis.
    """
    written, data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    if not written:
        raise UserError(f"An image of {image.shape[0]} x {image.shape[1]} pixels cannot be encoded as WebP.")
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def decode(uri: str) -> np.ndarray:
    """Inverse of `encode`, up to compression: uint8[H, W, 3]."""
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def enlarged(frame: np.ndarray, side: int) -> np.ndarray:
    """uint8[H, W, 3], each pixel repeated so often that both sides reach `side` pixels."""
    factor = max(1, -(-side // min(frame.shape[:2])))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def boxed(frame: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3] with a white frame, edged in black, around a rectangle."""
    frame = np.ascontiguousarray(frame)
    for thickness, colour in ((5, (0, 0, 0)), (2, (255, 255, 255))):
        cv2.rectangle(frame, (left, top), (left + width - 1, top + height - 1), colour, thickness)
    return frame


def _reduced(frame: np.ndarray) -> np.ndarray:
    factor = MOST_PIXELS / min(frame.shape[:2])
    return cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else frame
