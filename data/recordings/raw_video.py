"""Decodes a raw video once, frame by frame. Frames are upright and small, and come with their times.

Damage is found if the decoder notices it. H.264, HEVC and MPEG-4 decoders notice nearly every changed byte, VP9 and
MJPEG decoders hardly any. FFV1 without checksums (FFmpeg adds them from FFV1's version 3 on) notices none: changed
bytes then become changed pictures.
"""

import contextlib
import dataclasses
import enum
import io
import struct
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

# Limits [ours] on what a file may claim or hold, so that a hostile one can exhaust neither the memory nor the time.
MAX_PIXELS = 7680 * 4320  # of one frame: 8K video
MAX_FRAMES = 18_000  # of one video: ten minutes at 30 fps; all its frames may be one record
# Processor time for one video: ten minutes of 4K take about a quarter of it. Wall time would make the choice of videos
# depend on the machine's other work.
MAX_CPU_SECONDS = 1800
# Wall time for one video, so that a file system that hardly answers cannot hold a worker for ever. It is long enough
# not to decide which videos are used.
MAX_SECONDS = 2 * MAX_CPU_SECONDS
MAX_INDEX_ENTRIES = 8 * MAX_FRAMES  # of an AVI file, whose sound has entries too
# FFmpeg's names of the containers that are read: those in which a video is one file. Playlists and descriptions of
# sessions are left out, because they make FFmpeg open other files and sockets.
# fmt: off
CONTAINERS = (
    "asf", "avi", "flv", "h264", "hevc", "m4v", "matroska", "mov", "mpeg", "mpegts", "mpegvideo", "mxf", "ogg",
)
# fmt: on
# How much of what the container claims may be missing before the video counts as truncated.
MISSING_FRAMES_TOLERANCE = 1  # [ours] frames of the claimed count; an entry may hold no picture
MISSING_SECONDS_TOLERANCE = 0.5  # [ours] of the claimed duration, which may be that of a longer audio track; but
MISSING_FRACTION_TOLERANCE = 0.1  # [ours] at most this part of the duration

# What a frame may be marked as, and what a user should know of views that are. They are used as they are decoded.
INTERLACED, HDR = "interlaced", "HDR"
MARKS = {
    INTERLACED: "A frame shows two moments at once, each in every other line. Deinterlace the files for sharp "
    "movements (ffmpeg's filter bwdif)",
    HDR: "Stored without tone mapping, they are paler than a player shows them, and than SDR views of the same take. "
    "Convert the files to SDR if that matters (ffmpeg's filters zscale and tonemap)",
}
_HDR_TRANSFERS = (16, 18)  # PQ (SMPTE ST 2084) and HLG (ARIB STD-B67), by ITU-T H.273

_LIMITS = {"max_pixels": str(MAX_PIXELS)}  # FFmpeg refuses larger frames before it allocates them
# No protocol is called "none", so nothing that a container refers to elsewhere is opened.
_NOTHING_ELSE = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
# Titles and other metadata are not used; they may be damaged or in any encoding. Before version 19 PyAV decoded them on
# opening, and raised an error unless told otherwise.
_METADATA = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}


def _unnamed(kind: type[enum.Enum], value: int) -> enum.Enum:
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


# PyAV has no names for FFmpeg's newer kinds of side data, such as EXIF, and would refuse to read any of a frame's then.
SideDataType._missing_ = classmethod(_unnamed)


class BadVideo(Exception):
    """A video that cannot be used; the message is the reason."""


class ImageSeries(io.BytesIO):
    """A video made of numbered images, and what their numbers say that its container cannot hold."""

    begin: float = 0.0  # seconds, by the first number
    step: int = 1  # from one number to the next


@dataclasses.dataclass(kw_only=True)
class Source:
    """An open video, and what is learnt of it while its frames are read."""

    file: BinaryIO  # what the container is read from
    container: av.container.InputContainer  # closed when the last frame was read
    stream: av.VideoStream  # the video track that is read
    num_tracks: int  # number of video tracks; cover pictures do not count
    fps: float  # frames per second, as the header says
    seconds: list[float] = dataclasses.field(default_factory=list)  # receives the presentation time of every frame
    begin: float = 0.0  # of a series of images, see ImageSeries; `decode` adds it to the seconds at its end
    step: int = 0  # the same; 0 of a file that is no series
    num_empty_at_end: int = 0  # entries without a picture after the last frame, known once that was read
    marks: set[str] = dataclasses.field(default_factory=set)  # receives those of MARKS that a frame has

    @property
    def repeats(self) -> bool:
        """Whether times without a frame are entries of the container that mean "the frame before, again"."""
        return self.container.format.name == "avi"


def open_source(file: BinaryIO) -> Source:
    """Opens a video for `frames` or `decode`; no other file is opened.

    Its container must be one of CONTAINERS and within the limits. Of several video tracks it takes the longest: the
    others are thumbnails and previews.

    Args:
      file: what FFmpeg reads, seekable; it stays open while the frames are read.

    Raises:
      BadVideo: with the reason.
    """
    container = _open(file)
    try:
        tracks = _tracks(container)
        index = tracks[0].index if len(tracks) == 1 else _longest(container, [track.index for track in tracks])
        if len(tracks) > 1:
            container.close()
            container = _open(file)
        stream = container.streams[index]
        _check_header(stream)
    except av.FFmpegError as error:
        container.close()
        raise BadVideo(f"not a readable video: {_reason(error)}") from error
    except BadVideo:
        container.close()
        raise
    fps = float(stream.average_rate or stream.guessed_rate)
    numbered = {"begin": file.begin, "step": file.step} if isinstance(file, ImageSeries) else {}
    return Source(file=file, container=container, stream=stream, num_tracks=len(tracks), fps=fps, **numbered)


def _open(file: BinaryIO) -> av.container.InputContainer:
    if file.seek(0, 2) == 0:
        raise BadVideo("empty file")
    file.seek(0)
    try:
        return av.open(_Bounded(file), mode="r", options=_LIMITS | _NOTHING_ELSE, **_METADATA)
    except av.ArgumentError as error:
        known = ", ".join(CONTAINERS)
        raise BadVideo(
            f"not a readable video: its container is damaged, or none of those read here ({known})"
        ) from error
    except av.FFmpegError as error:
        raise BadVideo(f"not a readable video: {_reason(error)}") from error


def _tracks(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video tracks, those with a known codec if there are any."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    tracks = [stream for stream in streams if stream.codec_context is not None] or streams
    if not tracks:
        raise BadVideo("no video in the file, or its index is lost, as at the end of a cut MP4 file")
    return tracks


def _longest(container: av.container.InputContainer, tracks: Sequence[int]) -> int:
    """The index of the track whose packets span the most time; headers often do not state the duration."""
    first, last = {}, dict.fromkeys(tracks, (0.0, 0))
    for packet in container.demux([container.streams[index] for index in tracks]):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            index, seconds = packet.stream_index, float(time * packet.time_base)
            begin = first.setdefault(index, seconds)
            last[index] = (max(last[index][0], seconds - begin), last[index][1] + 1)
    return max(tracks, key=lambda index: last[index])


class _Bounded:
    """A file for PyAV that stops reading after MAX_SECONDS. It has no name, because FFmpeg would interpret it."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self._end = time.monotonic() + MAX_SECONDS

    def read(self, num_bytes: int) -> bytes:
        if time.monotonic() > self._end:
            raise BadVideo(f"its end is not reached in {MAX_SECONDS} s")
        return self._read(num_bytes)


def _check_header(stream: av.VideoStream) -> None:
    """Raises BadVideo if what the header says is not within the limits."""
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


def decode(source: Source) -> Iterator[av.VideoFrame]:
    """The frames as they are stored, in constant memory; `source` receives their times, and is closed at the end.

    Raises:
      BadVideo: with the reason, up to the end (a truncated video tells only there).
    """
    stream = source.stream
    stream.codec_context.thread_count = 1  # the processes are the parallelism
    stream.codec_context.options = _LIMITS
    num_frames, shape, rotation = 0, None, None
    began = time.process_time()
    with source.container:
        try:
            for seconds, frame in _timed(source):
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
                rotation = frame.rotation if rotation is None else rotation
                if rotation != frame.rotation:
                    raise BadVideo(
                        f"is to be shown turned by {rotation} degrees, and by {frame.rotation} from frame "
                        f"{num_frames - 1} on: make it one video for each"
                    )
                if frame.interlaced_frame:
                    source.marks.add(INTERLACED)
                if frame.color_trc in _HDR_TRANSFERS:
                    source.marks.add(HDR)
                source.seconds.append(seconds)
                yield frame
        except av.FFmpegError as error:
            raise BadVideo(f"cannot be decoded after {num_frames} frames: {_reason(error)}") from error
        if num_frames == 0:
            raise BadVideo("holds no frame")
        _check_end(source, num_frames)
        source.seconds[:] = [seconds + source.begin for seconds in source.seconds]


def _timed(source: Source) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames, each after its presentation time in seconds; where the container has none, one frame after the last.

    AVI has one entry per frame period, in the order of decoding, and no time of presentation; FFmpeg's guess of it is
    wrong beside empty entries, and where frames are reordered. A frame is due when the decoder gives it, less the
    decoder's delay.
    """
    step = float(source.stream.time_base) if source.repeats else 1 / source.fps
    seconds, delay = -step, None
    for num_packets, packet in enumerate(source.container.demux(source.stream)):
        for frame in packet.decode():
            if delay is None:
                delay = num_packets
            if not source.repeats:
                seconds = seconds + step if frame.time is None else frame.time
            elif packet.dts is None:  # at the end come the frames that the decoder has held back
                seconds += step
            else:
                seconds = max(seconds + step, float(packet.dts * packet.time_base) - delay * step)
            yield seconds, frame


def _check_end(source: Source, num_frames: int) -> None:
    """Raises BadVideo if the container claims more than the frames that were there."""
    container, stream = source.container, source.stream
    end = source.seconds[-1] + (float(stream.time_base) if source.repeats else 1 / source.fps)
    if stream.frames:
        claimed = stream.frames
        if "mov" in container.format.name and stream.duration:
            # An edit list hides frames, as after trimming on a phone. The duration leaves them out, the count does not.
            claimed = min(claimed, round(stream.duration * stream.time_base * source.fps))
        found = num_frames
        if source.repeats and claimed > num_frames:
            found = round(end / stream.time_base)
            if claimed > found:
                source.num_empty_at_end = min(_num_empty_at_end(source.file, stream.index), claimed - found)
                found += source.num_empty_at_end
        elif source.repeats:  # no entry is empty: a step of two only shows that the decoder has begun to reorder
            source.seconds[:] = (source.seconds[0] + np.arange(num_frames) * float(stream.time_base)).tolist()
        if claimed - found > MISSING_FRAMES_TOLERANCE:
            raise BadVideo(f"truncated: {num_frames} frames of the {claimed} that the container claims")
    elif container.duration is not None:
        claimed_end = container.duration / av.time_base
        if "matroska" not in container.format.name:  # Matroska counts the duration from 0, wherever the first frame is
            claimed_end += (container.start_time or 0) / av.time_base
        if claimed_end - end > min(MISSING_SECONDS_TOLERANCE, MISSING_FRACTION_TOLERANCE * claimed_end):
            raise BadVideo(f"truncated: ends after {end:.2f} s of the {claimed_end:.2f} s that the container claims")


def _num_empty_at_end(file: BinaryIO, stream: int) -> int:
    """Entries of a stream without a picture after its last one, by the index at the end of an AVI file; 0 without one.

    A camera that has stopped early may leave them; FFmpeg does not show them. A file that was cut has no index there.
    """
    end = file.seek(0, 2)
    file.seek(12)  # 'RIFF', its size, 'AVI '
    while file.tell() + 8 <= end:
        name, num_bytes = struct.unpack("<4sI", file.read(8))
        if name != b"idx1":
            file.seek(num_bytes + num_bytes % 2, 1)
            continue
        index = file.read(min(num_bytes, 16 * MAX_INDEX_ENTRIES))
        entries = np.frombuffer(index[: len(index) // 16 * 16], "S4, <u4, <u4, <u4")
        of_stream = np.char.startswith(entries["f0"], b"%02d" % stream)
        filled = np.flatnonzero(entries["f3"][of_stream])
        return int(of_stream.sum()) - 1 - int(filled[-1]) if len(filled) else 0
    return 0


def frames(source: Source, short_side: int) -> Iterator[np.ndarray]:
    """The frames as a player shows them: rotated or mirrored as the display matrix says, with square pixels.

    Args:
      short_side: of the frames, in pixels; a video that is smaller stays as it is.

    Yields:
      uint8[h, w, 3], RGB, all of one size.

    Raises:
      BadVideo: as of `decode`.
    """
    reformatter, turned = VideoReformatter(), None
    for frame in decode(source):
        # Not read for each frame: PyAV keeps frames alive whose side data were read.
        turned = turned or turns(frame)
        width = frame.width * float(source.stream.sample_aspect_ratio or 1)
        scale = min(1.0, short_side / min(frame.height, width))
        # Averaging over areas, straight from the decoder's planes: 0.9 ms per 1080p frame, against 9 ms for the
        # conversion to RGB and 7 ms for OpenCV's INTER_AREA. One thread, as the processes are the parallelism.
        with converting():
            small = reformatter.reformat(
                frame,
                width=max(1, round(width * scale)),
                height=max(1, round(frame.height * scale)),
                format="rgb24",
                interpolation="AREA",
                threads=1,
            )
        yield upright(small.to_ndarray(), turned)


@contextlib.contextmanager
def converting() -> Iterator[None]:
    """A context that makes frames from frames: raises BadVideo if FFmpeg cannot, as of some colour spaces."""
    try:
        yield
    except av.FFmpegError as error:
        raise BadVideo(f"its frames cannot be converted to RGB: {_reason(error)}") from error


def turns(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """What its display matrix asks for (ISO 14496-12, 6.2.2): a transposition, then mirroring down, and across."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # (x, y) is shown at (a x + c y, b x + d y)
    if a == d == 0:
        return True, b < 0, c < 0
    if b or c:
        raise BadVideo(f"is to be shown rotated by {frame.rotation} degrees, which is no multiple of 90")
    return False, d < 0, a < 0


def upright(image: np.ndarray, turned: tuple[bool, bool, bool]) -> np.ndarray:
    """uint8[h, w, 3], turned and mirrored as `turns` says."""
    transposed, down, across = turned
    if transposed:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[:: -1 if down else 1, :: -1 if across else 1])


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or str(error)
