"""Small videos for the tests, written with PyAV: real containers and codecs, known pictures."""

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
) -> Path:
    """Writes uint8[T, h, w, 3] RGB frames at a quality without visible loss; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without mbtree=0, x264's bytes differ from run to run, and with them what a damage does.
    x264 = {"crf": "10", "g": "8", "x264-params": "mbtree=0"}
    options = {"libx264": x264, "libvpx-vp9": {"crf": "10", "b": "0", "cpu-used": "8"}}.get(codec, {})
    with av.open(str(path), "w", format=container) as output:
        if title:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        stream.codec_context.thread_count = 1
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


def rotate_by_metadata(path: Path) -> None:
    """Tells players of an MP4 file to turn it clockwise by 90 degrees, as phones do held upright."""
    data = bytearray(path.read_bytes())
    # ISO 14496-12, 8.3.2: the matrix follows 40 bytes of a version 0 track header.
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
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
