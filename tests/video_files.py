"""Writes small videos for the tests with PyAV, in real containers and codecs and with known pictures."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_square(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """A red square that moves over a smooth background. uint8[T, h, w, 3], RGB."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(30, 200, (2, 2, 3))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top, bottom = corners[0, 0] * (1 - x) + corners[0, 1] * x, corners[1, 0] * (1 - x) + corners[1, 1] * x
    frames = np.repeat((top * (1 - y) + bottom * y)[None], num_frames, axis=0).astype(np.uint8)  # (T, h, w, 3)
    side = min(height, width) // 3
    for index, frame in enumerate(frames):
        left = (seed + 2 * index) % (width - side)
        frame[side : 2 * side, left : left + side] = (220, 30, 30)
    return frames


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    fps: int = 30,
    container: str | None = None,
    pixel_aspect: Fraction | None = None,
    title: str = "",
    colour_space: int = 0,
    transfer: int = 0,
    interlaced: bool = False,
) -> Path:
    """Writes uint8[T, h, w, 3] RGB frames without visible loss of quality. Creates the folder.

    `colour_space` and `transfer` are numbers that the header of H.264 states (matrix_coefficients and
    transfer_characteristics); 0 for none. With `interlaced` its frames are marked so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without mbtree=0, x264's bytes differ from run to run, and so would the effect of damage.
    x264 = {"crf": "10", "g": "8", "x264-params": "mbtree=0:tff=1" if interlaced else "mbtree=0"}
    options = {"libx264": x264, "libvpx-vp9": {"crf": "10", "b": "0", "cpu-used": "8"}}.get(codec, {})
    with av.open(str(path), "w", format=container) as output:
        if title:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.thread_count = 1
        if colour_space:
            stream.codec_context.colorspace = colour_space
        if transfer:
            stream.codec_context.color_trc = transfer
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A container with a tone and no picture."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = (8000 * np.sin(np.arange(8000) / 5)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def rotate_by_metadata(path: Path, turn: tuple[int, int, int, int] = (0, 1, -1, 0)) -> None:
    """Makes players turn an MP4 file by (a, b, c, d). The default is a phone's held upright: 90 degrees clockwise."""
    data = bytearray(path.read_bytes())
    # ISO 14496-12, 8.3.2: the matrix follows 40 bytes of a version 0 track header.
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(
        ">9i", turn[0] << 16, turn[1] << 16, 0, turn[2] << 16, turn[3] << 16, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)


def claim_in_avi(path: Path, *, num_frames: int | None = None, size: tuple[int, int] | None = None) -> None:
    """Changes what the headers of an AVI file claim: the number of frames, or width and height."""
    data = bytearray(path.read_bytes())
    main, stream, bitmap = data.index(b"avih") + 8, data.index(b"strh") + 8, data.index(b"strf") + 8
    if num_frames is not None:
        struct.pack_into("<I", data, main + 16, num_frames)  # dwTotalFrames
        struct.pack_into("<I", data, stream + 32, num_frames)  # dwLength
    if size is not None:
        struct.pack_into("<II", data, main + 32, *size)  # dwWidth, dwHeight
        struct.pack_into("<ii", data, bitmap + 4, *size)  # biWidth, biHeight
    path.write_bytes(data)


def decode(path: Path) -> np.ndarray:
    """Every frame as FFmpeg gives it, without rotation. uint8[T, h, w, 3], RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def timed_frame(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A frame that shows a number, which `time_shown` reads, and which way is up. uint8[h, w, 3], RGB.

    Eight blocks in its middle hold the number's bits. The corners are red and green above, blue and white below.
    """
    frame = np.full((height, width, 3), 90, np.uint8)
    bits = np.unpackbits(np.uint8(number))
    frame[int(height * 0.35) : int(height * 0.65)] = np.repeat(bits * 200 + 20, width // 8)[None, :, None]
    y, x = height // 5, width // 5
    frame[:y, :x], frame[:y, -x:] = (230, 20, 20), (20, 230, 20)
    frame[-y:, :x], frame[-y:, -x:] = (20, 20, 230), (240, 240, 240)
    return frame


def time_shown(frame: np.ndarray) -> int:
    """The number that was given to `timed_frame`."""
    height, width = frame.shape[:2]
    middle = frame[int(height * 0.45) : int(height * 0.55), : width // 8 * 8]
    blocks = middle.reshape(len(middle), 8, -1).mean(axis=(0, 2))
    return int(np.packbits(blocks > 128)[0])


def corners_shown(frame: np.ndarray) -> str:
    """'RGBW' for an upright `timed_frame`: its corners in reading order."""
    height, width = frame.shape[:2]
    corners = [frame[y, x] for y in (height // 12, -height // 12) for x in (width // 12, -width // 12)]
    return "".join("W" if corner.min() > 150 else "RGB"[int(corner.argmax())] for corner in corners)


def write_timed(
    path: Path,
    numbers: list[int],
    *,
    codec: str = "libx264",
    rate: int = 30,
    b_frames: int = 0,
    first: int | None = None,
    stated_rate: int | None = None,
    size: tuple[int, int] = (96, 128),
) -> Path:
    """Writes frames that show their numbers. A frame's time stamp is its number, in units of 1/`rate` seconds.

    Args:
      path: of the file. Its ending decides on the container.
      numbers: the frames' numbers, in rising order.
      codec: FFmpeg's name of the codec.
      rate: time stamps per second.
      b_frames: the largest number of B-frames between two other frames.
      first: the stamp of the first frame, if it is not its number. The other stamps are shifted alike.
      stated_rate: the frame rate in the header, if it is not `rate`.
      size: (height, width) in pixels.
    """
    options = {"g": "12", "preset": "veryfast", "x264-params": f"bframes={b_frames}"} if codec == "libx264" else {}
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"} if path.suffix == ".mkv" else {}) as output:
        stream = output.add_stream(codec, rate=stated_rate or rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = b_frames
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(timed_frame(number, *size), format="rgb24")
            frame.pts, frame.time_base = number + (0 if first is None else first - numbers[0]), Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Makes players show pixel (x, y) of an MP4 file at (a x + c y, b x + d y). Each of a, b, c, d is -1, 0 or 1."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2: behind 40 bytes of a version 0 track header
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def with_thumbnail(path: Path, source: Path, num_frames: int = 1) -> Path:
    """Copies `source` and puts another video track before its own, of a few red pictures that last as long."""
    with av.open(str(source)) as video, av.open(str(path), "w") as output:
        thumbnail = output.add_stream("mjpeg", rate=1)
        thumbnail.height, thumbnail.width, thumbnail.pix_fmt = 48, 64, "yuvj420p"
        copied = output.add_stream_from_template(video.streams.video[0])
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (250, 0, 0), np.uint8), format="rgb24")
            frame.pts = number
            output.mux(thumbnail.encode(frame))
        output.mux(thumbnail.encode())
        for packet in video.demux(video.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copied
                output.mux(packet)
    return path
