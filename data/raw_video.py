"""Decodes a raw video, once, frame by frame: upright, small, with the defects found on the way.

What the decoder notices is found: H.264, HEVC and MPEG-4 notice nearly every changed byte, VP9 and MJPEG hardly any,
and FFV1 none where it was written without checksums (FFmpeg adds them from FFV1's version 3 on): there, changed bytes
are changed pictures.
"""

import time
from collections.abc import Iterator
from typing import BinaryIO

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

# Limits [ours] on what a file may claim or hold, so that a hostile one costs neither the memory nor the day.
MAX_PIXELS = 7680 * 4320  # of one frame: 8K video
MAX_FRAMES = 18_000  # of one video: ten minutes at 30 fps; all its frames may be one record
# Processor time of one video: ten minutes of 4K take about a quarter of it. Not the time on the clock, which would make
# it a matter of the machine's other work which videos are used.
MAX_CPU_SECONDS = 1800
# How much of what the container claims may be missing before the video counts as truncated.
MISSING_FRAMES_TOLERANCE = 1  # [ours] of a count of frames; an entry may hold no picture
MISSING_SECONDS_TOLERANCE = 0.5  # [ours] of a duration, which may be that of a longer audio track, and
MISSING_FRACTION_TOLERANCE = 0.1  # [ours] no more than this part of it

_LIMITS = {"max_pixels": str(MAX_PIXELS)}  # FFmpeg refuses larger frames before it allocates them
# Titles and the like may be in any encoding, or damaged; they are not used. PyAV decodes them only where they are asked
# for, but did so at once before its version 19, with an error unless told otherwise.
_METADATA = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
_UPRIGHT = {0: None, 90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


class BadVideo(Exception):
    """A video that cannot be used; the message is the reason."""


def read(file: BinaryIO, short_side: int) -> tuple[float, Iterator[np.ndarray]]:
    """Opens a video; the frames are decoded while the iterator is consumed, in constant memory.

    Rotation metadata and the shape of pixels are honoured: what comes out is what a player shows.

    Args:
      file: what FFmpeg reads, seekable; it stays open while the frames are read.
      short_side: of the frames, in pixels; a video that is smaller stays as it is.

    Returns:
      The rate in frames per second, and an iterator of uint8[h, w, 3] frames, RGB, all of one size.

    Raises:
      BadVideo: with the reason; also from the iterator, up to its end (a truncated video tells only there).
    """
    if file.seek(0, 2) == 0:
        raise BadVideo("empty file")
    file.seek(0)
    try:
        container = av.open(file, mode="r", options=_LIMITS, **_METADATA)
    except av.FFmpegError as error:
        raise BadVideo(f"not a readable video: {_reason(error)}") from error
    try:
        fps = _check_header(container)
    except BadVideo:
        container.close()
        raise
    return fps, _frames(container, fps, short_side)


def _check_header(container: av.container.InputContainer) -> float:
    """Frames per second, if what the header says is within the limits."""
    if not container.streams.video:
        raise BadVideo("no video in the file, or its index is lost, as at the end of a cut MP4 file")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise BadVideo("its codec is unknown")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height == 0:
        raise BadVideo(f"no frame size in the file, or one above the limit of {MAX_PIXELS} pixels")
    if width * height > MAX_PIXELS:
        raise BadVideo(f"claims frames of {width}x{height} pixels, above the limit of {MAX_PIXELS} pixels")
    if stream.frames > MAX_FRAMES:
        raise BadVideo(f"claims {stream.frames} frames, above the limit of {MAX_FRAMES}: cut it into shorter videos")
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise BadVideo("no frame rate in the file")
    return float(rate)


def _frames(container: av.container.InputContainer, fps: float, short_side: int) -> Iterator[np.ndarray]:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the processes are the parallelism
    stream.codec_context.options = _LIMITS
    reformatter = VideoReformatter()
    num_frames, shape, end = 0, None, 0.0
    began = time.process_time()
    with container:
        try:
            for frame in container.decode(stream):
                num_frames += 1
                if num_frames > MAX_FRAMES:
                    raise BadVideo(f"more than {MAX_FRAMES} frames: cut it into shorter videos")
                if time.process_time() - began > MAX_CPU_SECONDS:
                    raise BadVideo(f"frame {num_frames} is not reached in {MAX_CPU_SECONDS} s of processor time")
                if frame.is_corrupt:
                    raise BadVideo(f"frame {num_frames - 1} is damaged")
                shape = shape or (frame.height, frame.width)
                if shape != (frame.height, frame.width):
                    before, now = f"{shape[1]}x{shape[0]}", f"{frame.width}x{frame.height}"
                    raise BadVideo(f"its size changes from {before} to {now} at frame {num_frames - 1}")
                end = (frame.time or 0.0) + 1 / fps
                yield _upright_and_small(frame, reformatter, stream.sample_aspect_ratio, short_side)
        except av.FFmpegError as error:
            raise BadVideo(f"cannot be decoded after {num_frames} frames: {_reason(error)}") from error
        if num_frames == 0:
            raise BadVideo("holds no frame")
        _check_end(container, fps, num_frames, end)


def _check_end(container: av.container.InputContainer, fps: float, num_frames: int, end: float) -> None:
    """Raises BadVideo if the container claims more than the frames that were there, the last until `end` seconds."""
    stream = container.streams.video[0]
    if stream.frames:
        claimed = stream.frames
        if "mov" in container.format.name and stream.duration:
            # An edit list hides frames, as after trimming on a phone; the duration knows of it, the count does not.
            claimed = min(claimed, round(stream.duration * stream.time_base * fps))
        if claimed - num_frames > MISSING_FRAMES_TOLERANCE:
            raise BadVideo(f"truncated: {num_frames} frames of the {claimed} that the container claims")
    elif container.duration is not None:
        claimed_end = (container.start_time or 0) / av.time_base + container.duration / av.time_base
        if claimed_end - end > min(MISSING_SECONDS_TOLERANCE, MISSING_FRACTION_TOLERANCE * claimed_end):
            raise BadVideo(f"truncated: ends after {end:.2f} s of the {claimed_end:.2f} s that the container claims")


def _upright_and_small(
    frame: av.VideoFrame, reformatter: VideoReformatter, pixel_aspect: float | None, short_side: int
) -> np.ndarray:
    width = frame.width * float(pixel_aspect or 1)
    scale = min(1.0, short_side / min(frame.height, width))
    # Averaging over areas, straight from the decoder's planes: 0.9 ms per 1080p frame, against 9 ms for the conversion
    # to RGB and 7 ms for OpenCV's INTER_AREA. One thread, as the processes are the parallelism.
    small = reformatter.reformat(
        frame,
        width=max(1, round(width * scale)),
        height=max(1, round(frame.height * scale)),
        format="rgb24",
        interpolation="AREA",
        threads=1,
    )
    image = small.to_ndarray()  # (h, w, 3)
    if frame.rotation % 360 not in _UPRIGHT:
        raise BadVideo(f"is to be shown rotated by {frame.rotation} degrees, which is no multiple of 90")
    turn = _UPRIGHT[frame.rotation % 360]
    return image if turn is None else cv2.rotate(image, turn)


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or str(error)
