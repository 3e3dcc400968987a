"""Decodes a raw video, once, frame by frame: upright, small, with every defect found on the way."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

# Limits [ours] on what a file may claim or hold, so that a hostile one costs neither the memory nor the day.
MAX_PIXELS = 8192 * 8192  # of one frame; four times 8K video
MAX_FRAMES = 18_000  # of one video, ten minutes at 30 fps; all its frames are one record
MISSING_FRAMES_TOLERANCE = 1  # [ours] containers may count a frame that holds no picture

_UPRIGHT = {0: None, 90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class BadVideo(Exception):
    """A video that cannot be used; the message is the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What the container says: frames per second, and the number of frames (0 where it does not say)."""

    fps: float
    num_frames: int


def read(path: Path, short_side: int) -> tuple[Header, Iterator[np.ndarray]]:
    """Opens a video; the frames are decoded while the iterator is consumed, in constant memory.

    Rotation metadata and the shape of pixels are honoured: what comes out is what a player shows.

    Args:
      path: of a file that FFmpeg reads.
      short_side: of the frames, in pixels; a video that is smaller stays as it is.

    Returns:
      The header, and an iterator of uint8[h, w, 3] frames, RGB, all of one size.

    Raises:
      BadVideo: with the reason; also from the iterator, up to its end (a truncated video tells only there).
      FileNotFoundError: the file has gone since it was listed.
    """
    if path.stat().st_size == 0:
        raise BadVideo("empty file")
    try:
        container = av.open(str(path), mode="r")
    except av.FFmpegError as error:
        raise BadVideo(f"not a readable video: {_reason(error)}") from error
    try:
        header = _check_header(container)
    except BadVideo:
        container.close()
        raise
    return header, _frames(container, header, short_side)


def _check_header(container: av.container.InputContainer) -> Header:
    if not container.streams.video:
        raise BadVideo("no video in the file")
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise BadVideo(f"claims frames of {width}x{height} pixels, above the limit of {MAX_PIXELS} pixels")
    if stream.frames > MAX_FRAMES:
        raise BadVideo(f"claims {stream.frames} frames, above the limit of {MAX_FRAMES}: cut it into shorter videos")
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise BadVideo("no frame rate in the file")
    return Header(fps=float(rate), num_frames=stream.frames)


def _frames(container: av.container.InputContainer, header: Header, short_side: int) -> Iterator[np.ndarray]:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the processes are the parallelism
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    shape = None
    num_frames = 0
    with container:
        try:
            for frame in container.decode(stream):
                num_frames += 1
                if num_frames > MAX_FRAMES:
                    raise BadVideo(f"more than {MAX_FRAMES} frames: cut it into shorter videos")
                if frame.is_corrupt:
                    raise BadVideo(f"frame {num_frames} is damaged")
                shape = shape or (frame.height, frame.width)
                if shape != (frame.height, frame.width):
                    before, now = f"{shape[1]}x{shape[0]}", f"{frame.width}x{frame.height}"
                    raise BadVideo(f"its size changes from {before} to {now} at frame {num_frames}")
                yield _upright_and_small(frame, stream.sample_aspect_ratio, short_side)
        except av.FFmpegError as error:
            raise BadVideo(f"cannot be decoded after frame {num_frames}: {_reason(error)}") from error
    if num_frames == 0:
        raise BadVideo("holds no frame")
    if header.num_frames - num_frames > MISSING_FRAMES_TOLERANCE:
        raise BadVideo(f"truncated: {num_frames} frames of the {header.num_frames} that its header claims")


def _upright_and_small(frame: av.VideoFrame, pixel_aspect: float | None, short_side: int) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")  # (h, w, 3)
    height, width = image.shape[:2]
    width *= float(pixel_aspect or 1)
    scale = min(1.0, short_side / min(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if frame.rotation % 360 not in _UPRIGHT:
        raise BadVideo(f"is to be shown rotated by {frame.rotation} degrees, which is no multiple of 90")
    turn = _UPRIGHT[frame.rotation % 360]
    return image if turn is None else cv2.rotate(image, turn)


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or str(error)
