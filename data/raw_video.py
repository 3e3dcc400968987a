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
# Time on the clock of one video: what keeps a file system that hardly answers from holding a worker for ever. So much
# more that it does not decide which videos are used.
MAX_SECONDS = 2 * MAX_CPU_SECONDS
# FFmpeg's names of the containers that are read: all in which a video is one file. Others are playlists and
# descriptions of sessions, which make FFmpeg open other files and sockets.
CONTAINERS = (
    "asf",
    "avi",
    "flv",
    "h264",
    "hevc",
    "m4v",
    "matroska",
    "mov",
    "mpeg",
    "mpegts",
    "mpegvideo",
    "mxf",
    "ogg",
)
# How much of what the container claims may be missing before the video counts as truncated.
MISSING_FRAMES_TOLERANCE = 1  # [ours] of a count of frames; an entry may hold no picture
MISSING_SECONDS_TOLERANCE = 0.5  # [ours] of a duration, which may be that of a longer audio track, and
MISSING_FRACTION_TOLERANCE = 0.1  # [ours] no more than this part of it

_LIMITS = {"max_pixels": str(MAX_PIXELS)}  # FFmpeg refuses larger frames before it allocates them
# What a container refers to in other places is not opened: there is no protocol of this name.
_NOTHING_ELSE = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
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
    container = open_container(file)
    return frames_per_second(container), _upright_and_small(container, short_side)


def open_container(file: BinaryIO) -> av.container.InputContainer:
    """Opens a video for `decode`: in a container that is read here, within the limits, and without any other file.

    Args:
      file: as of `read`.

    Raises:
      BadVideo: with the reason.
    """
    if file.seek(0, 2) == 0:
        raise BadVideo("empty file")
    file.seek(0)
    try:
        container = av.open(_Bounded(file), mode="r", options=_LIMITS | _NOTHING_ELSE, **_METADATA)
    except av.ArgumentError as error:
        known = ", ".join(CONTAINERS)
        raise BadVideo(
            f"not a readable video: its container is damaged, or none of those read here ({known})"
        ) from error
    except av.FFmpegError as error:
        raise BadVideo(f"not a readable video: {_reason(error)}") from error
    try:
        _check_header(container)
    except BadVideo:
        container.close()
        raise
    return container


class _Bounded:
    """A file as PyAV reads it: no longer than MAX_SECONDS, and without a name, which FFmpeg would look at."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self._end = time.monotonic() + MAX_SECONDS

    def read(self, num_bytes: int) -> bytes:
        if time.monotonic() > self._end:
            raise BadVideo(f"its end is not reached in {MAX_SECONDS} s")
        return self._read(num_bytes)


def frames_per_second(container: av.container.InputContainer) -> float:
    """As the header says."""
    stream = container.streams.video[0]
    return float(stream.average_rate or stream.guessed_rate)


def _check_header(container: av.container.InputContainer) -> None:
    """Raises BadVideo if what the header says is not within the limits."""
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
    if not (stream.average_rate or stream.guessed_rate):
        raise BadVideo("no frame rate in the file")


def decode(container: av.container.InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames as they are stored, each after its presentation time in seconds; closes the container at the end.

    Args:
      container: of `open_container`.

    Raises:
      BadVideo: as of `read`.
    """
    stream, fps = container.streams.video[0], frames_per_second(container)
    stream.codec_context.thread_count = 1  # the processes are the parallelism
    stream.codec_context.options = _LIMITS
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
                seconds = frame.time or 0.0
                end = seconds + 1 / fps
                yield seconds, frame
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


def _upright_and_small(container: av.container.InputContainer, short_side: int) -> Iterator[np.ndarray]:
    stream, reformatter = container.streams.video[0], VideoReformatter()
    for _, frame in decode(container):
        width = frame.width * float(stream.sample_aspect_ratio or 1)
        scale = min(1.0, short_side / min(frame.height, width))
        # Averaging over areas, straight from the decoder's planes: 0.9 ms per 1080p frame, against 9 ms for the
        # conversion to RGB and 7 ms for OpenCV's INTER_AREA. One thread, as the processes are the parallelism.
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
        yield image if turn is None else cv2.rotate(image, turn)


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or str(error)
