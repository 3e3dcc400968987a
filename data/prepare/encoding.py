"""From a video file to the encoded frames of the takes that are cut from it: whole pictures, or boxes of them.

Boxes are cut out of the decoder's planes, before these are made small.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import av
import av.filter
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from data.catalog import Video
from data.prepare import boxes
from data.prepare.boxes import Box
from data.prepare.options import Settings
from data.recordings import raw_video

# [ours] How much smoothed frames of a still picture differ at most: codecs change it a little from one to the next.
STILL_SIGMA = 1.5  # pixels
STILL_GREY_LEVELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedFrames:
    """The stored form of a file's frames; b'' for those that are not wanted."""

    frames: list[bytes]
    height: int
    width: int
    box: Box | None = None  # that they show, in pixels of the upright raw video; None for the whole picture
    raw_size: tuple[int, int] | None = None  # width and height that the box lies in


def encode_file(
    videos: Sequence[Video], file: BinaryIO, settings: Settings, given: Mapping[Video, Box | Path | None]
) -> tuple[raw_video.Source, dict[Video, EncodedFrames | str]]:
    """Encodes those frames of a file that go into records.

    To find the box of what moves, the file is decoded once more before: keeping its frames would take gigabytes.

    Args:
      videos: cut from the file.
      file: as of `raw_video.open_source`.
      settings: of the set.
      given: the boxes of a table, or the .skeleton files; empty if the boxes are found.

    Returns:
      Facts about the file, and for each video its encoded frames, or the reason why it has no box.

    Raises:
      BadVideo: as of `raw_video.decode`.
    """
    if settings.crop is None:
        source = raw_video.open_source(file)
        return source, dict.fromkeys(videos, _encode_whole(videos, source, settings))
    by_motion = settings.crop.by == "motion"
    found = _of_motion(videos, file) if by_motion else {video: _given(video, given) for video in videos}
    source = raw_video.open_source(file)
    return source, _encode_cut(source, settings, found)


def is_still(stored: Sequence[bytes], decode: Callable[[bytes], np.ndarray]) -> bool:
    """Whether nothing moves in a view, beyond what codecs change; `decode` makes uint8[h, w, 3] of a stored frame."""
    first = None
    # The middle and the end first: where something moves, two or three frames tell.
    for number in dict.fromkeys((0, len(stored) // 2, len(stored) - 1, *range(len(stored)))):
        grey = cv2.cvtColor(decode(stored[number]), cv2.COLOR_RGB2GRAY)
        smooth = cv2.GaussianBlur(grey, (0, 0), STILL_SIGMA)
        first = smooth if first is None else first
        if cv2.absdiff(smooth, first).max() > STILL_GREY_LEVELS:
            return False
    return True


def _interval(video: Video) -> tuple[int, int]:
    return video.interval or (0, raw_video.MAX_FRAMES)


def _encode_whole(videos: Sequence[Video], source: raw_video.Source, settings: Settings) -> EncodedFrames:
    intervals = [_interval(video) for video in videos]
    stored, encode = [], settings.encode
    for number, frame in enumerate(raw_video.frames(source, settings.short_side)):
        wanted = any(start <= number < end for start, end in intervals)
        stored.append(encode(frame) if wanted else b"")
    height, width = frame.shape[:2]
    return EncodedFrames(frames=stored, height=height, width=width)


def _encode_cut(
    source: raw_video.Source, settings: Settings, found: Mapping[Video, boxes.Found | str]
) -> dict[Video, EncodedFrames | str]:
    """Each video's own box of its own frames."""
    encode = settings.encode
    encoded: dict[Video, EncodedFrames | str] = {video: why for video, why in found.items() if isinstance(why, str)}
    cutters: dict[Video, _Cutter] = {}
    stored: dict[Video, list[bytes]] = {video: [] for video in found}
    for number, frame in enumerate(raw_video.decode(source)):
        if number == 0:
            size = _upright_size(frame, source.stream)
            for video in [video for video in found if video not in encoded]:
                try:
                    box = boxes.place(found[video], size, settings.crop)
                    cutters[video] = _Cutter(frame, size, box, settings.short_side)
                except boxes.NoBox as error:
                    encoded[video] = str(error)
        if not cutters:
            break
        for video, cutter in cutters.items():
            start, end = _interval(video)
            stored[video].append(encode(cutter.cut(frame)) if start <= number < end else b"")
    for video, cutter in cutters.items():
        facts = {"box": cutter.box, "raw_size": size, "height": cutter.shape[0], "width": cutter.shape[1]}
        encoded[video] = EncodedFrames(frames=stored[video], **facts)
    return encoded


def _of_motion(videos: Sequence[Video], file: BinaryIO) -> dict[Video, boxes.Found | str]:
    moving = {video: boxes.Motion() for video in videos}
    source = raw_video.open_source(file)
    for number, frame in enumerate(raw_video.frames(source, boxes.MOTION_SHORT_SIDE)):
        for video, motion in moving.items():
            start, end = _interval(video)
            if start <= number < end:
                motion.add(frame)
    found: dict[Video, boxes.Found | str] = {}
    for video, motion in moving.items():
        try:
            found[video] = boxes.Found(motion.box(), counted_in=(1, 1))
        except boxes.NoBox as error:
            found[video] = str(error)
    return found


def _given(video: Video, given: Mapping[Video, Box | Path | None]) -> boxes.Found | str:
    box = given.get(video)
    if box is None:
        return "there is no box of it in the table of --crop"
    if isinstance(box, Box):
        return boxes.Found(box, counted_in=None)
    try:
        return boxes.Found(boxes.read_skeleton(box), counted_in=boxes.SKELETON_SIZE)
    except boxes.NoBox as error:
        return str(error)


def _upright_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """(width, height) in pixels of a frame as a player shows it, upright and with square pixels."""
    size = round(frame.width * float(stream.sample_aspect_ratio or 1)), frame.height
    return size[::-1] if raw_video.turns(frame)[0] else size


class _Cutter:
    """Cuts one box out of frames that are all like the first one, upright and with square pixels.

    Attributes:
      box: of whole pixels in the upright picture.
      shape: (height, width) of what is cut out, in pixels; its shorter side is `short_side`, or less in a smaller box.
    """

    # Formats that store one colour for two by two pixels. A box is cut from the decoder's planes if it starts at even
    # pixels, or if shifting the colour by one pixel moves it by less than a quarter of a pixel of the result. Other
    # boxes are cut from RGB. Measured on 1080p: 0.6 ms, less than for the whole picture, against 10 ms.
    IN_PLANES = ("yuv420p", "yuvj420p")

    def __init__(self, frame: av.VideoFrame, size: tuple[int, int], box: Box, short_side: int):
        """`frame` is the first one, `size` its `_upright_size`."""
        self.box = box
        self._turned = transposed, down, across = raw_video.turns(frame)
        scale = min(1.0, short_side / min(box.right - box.left, box.bottom - box.top))
        left, top, right, bottom = box
        if across:
            left, right = size[0] - right, size[0] - left
        if down:
            top, bottom = size[1] - bottom, size[1] - top
        if transposed:
            size, (left, top, right, bottom) = size[::-1], (top, left, bottom, right)
        self._width, self._height = (max(1, round(side * scale)) for side in (right - left, bottom - top))
        self.shape = (self._width, self._height) if transposed else (self._height, self._width)
        x, y = frame.width / size[0], frame.height / size[1]  # stored pixels are not always square
        self._left, self._top = min(round(left * x), frame.width - 1), min(round(top * y), frame.height - 1)
        self._right, self._bottom = max(round(right * x), self._left + 1), max(round(bottom * y), self._top + 1)
        self._reformatter, self._to_rgb, self._graph = VideoReformatter(), VideoReformatter(), None
        even = self._left % 2 == self._top % 2 == 0
        if frame.format.name in self.IN_PLANES and (even or scale < 0.25):
            self._graph = av.filter.Graph()
            width, height = self._right - self._left, self._bottom - self._top
            steps = [
                self._graph.add_buffer(
                    width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
                ),
                self._graph.add("crop", f"{width}:{height}:{self._left}:{self._top}:exact=1"),
                self._graph.add("buffersink"),
            ]
            self._graph.link_nodes(*steps).configure()

    def cut(self, frame: av.VideoFrame) -> np.ndarray:
        """The box of a frame: uint8[*shape, 3], RGB. Raises BadVideo if it cannot be converted."""
        with raw_video.converting():
            if self._graph:
                self._graph.push(frame)
                part = self._graph.pull()
            else:
                whole = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
                cut = np.ascontiguousarray(whole[self._top : self._bottom, self._left : self._right])
                part = av.VideoFrame.from_ndarray(cut, format="rgb24")
            small = self._reformatter.reformat(
                part, width=self._width, height=self._height, format="rgb24", interpolation="AREA", threads=1
            )
        return raw_video.upright(small.to_ndarray(), self._turned)
