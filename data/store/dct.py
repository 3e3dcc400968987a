"""Frames stored as JPEG's quantised DCT coefficients without JPEG's entropy code.

Most of the time for decoding JPEG goes into the Huffman code, which is read bit by bit. Here coefficients are whole
bytes. They are ordered by frequency, so that the many zeros stand together, and packed by LZ4. The result is larger
than JPEG, but unpacked ten times as fast. The rest of decoding is linear and small; an accelerator does it
(mv2mae_jax/models/stored_frames.py).

The coefficients of a frame of (h, w) pixels form one image, int8[3 * H / 2, W], with (H, W) = `padded_size(h, w)`: the
luma's, int8[H, W], above those of Cb and Cr, int8[H / 2, W / 2] each, side by side. A plane of n rows and m columns
holds frequency (u, v) of the 8x8 block (i, j) in row u * n / 8 + i and column v * m / 8 + j.
"""

import functools
import struct
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pyarrow as pa

from console.errors import UserError

# The quantisation steps that JPEG proposes (ITU-T T.81, annex K). libjpeg scales them by its quality.
_LUMA_STEPS = """
    16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56   14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99
"""
_CHROMA_STEPS = """
    17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
"""
# Coefficients of 8-bit pixels lie in -1024 to 1016, so int8 holds them all if steps are 8 or more. The error of a step
# of 8 is that of rounding pixels: 8**2 / 12 grey levels squared per coefficient, which is 1 / 12 per pixel.
MIN_STEP = 8
_HEADER = struct.Struct("<HHB")  # height, width, quality
_PACKER = pa.Codec("lz4_raw", compression_level=6)  # [ours] a quarter smaller than level 1, and faster to unpack


def encode(frame: np.ndarray, quality: int) -> bytes:
    """The stored form of a frame, uint8[h, w, 3] RGB: height, width and quality, then the packed coefficients.

    `quality` is 1 to 100, on JPEG's scale. Chroma is stored at half the resolution (4:2:0).
    """
    height, width = frame.shape[:2]
    full_height, full_width = padded_size(height, width)
    padding = (0, full_height - height, 0, full_width - width)
    ycrcb = cv2.cvtColor(cv2.copyMakeBorder(frame, *padding, cv2.BORDER_REPLICATE), cv2.COLOR_RGB2YCrCb)
    ycrcb = ycrcb.astype(np.float32) - 128
    luma, cr, cb = cv2.split(ycrcb)
    half = {"dsize": (full_width // 2, full_height // 2), "interpolation": cv2.INTER_AREA}  # means of four
    coefficients = np.empty((3 * full_height // 2, full_width), np.int8)
    pixels = (luma, cv2.resize(cb, **half), cv2.resize(cr, **half))
    for kind, plane, into in zip((0, 1, 1), pixels, planes(coefficients), strict=True):
        into[:] = np.rint(_transform(plane) / _spread(steps(quality)[kind], plane.shape))
    return _HEADER.pack(height, width, quality) + _PACKER.compress(coefficients).to_pybytes()


def decode(data: bytes) -> np.ndarray:
    """The frame, uint8[h, w, 3], RGB, of its stored form. Raises ValueError when the bytes are damaged."""
    coefficients, (height, width), quality = unpack(data)
    decoded = []
    for kind, plane in zip((0, 1, 1), planes(coefficients), strict=True):
        decoded.append(_inverse_transform(plane * _spread(steps(quality)[kind], plane.shape)) + 128)
    luma = decoded[0]
    cb, cr = (cv2.resize(plane, luma.shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in decoded[1:])
    ycrcb = np.clip(np.rint(np.stack([luma, cr, cb], axis=-1)), 0, 255).astype(np.uint8)
    return cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB)[:height, :width]


def decode_window(stored: Sequence[bytes], window: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
    """The same window (top, left, height, width) of several frames, each as of `decode`."""
    top, left, height, width = window
    for data in stored:
        yield decode(data)[top : top + height, left : left + width]


def unpack(data: bytes) -> tuple[np.ndarray, tuple[int, int], int]:
    """Stored form -> (coefficients int8[3 * H / 2, W], the frame's (height, width), quality); ValueError if damaged."""
    try:
        height, width, quality = _HEADER.unpack_from(data)
        full_height, full_width = padded_size(height, width)
        num_bytes = 3 * full_height // 2 * full_width
        unpacked = _PACKER.decompress(memoryview(data)[_HEADER.size :], num_bytes)
    except (struct.error, pa.ArrowException, OSError) as error:
        raise UserError(f"{len(data)} bytes are not the coefficients of a frame ({error})") from error
    coefficients = np.frombuffer(unpacked, np.int8).reshape(3 * full_height // 2, full_width)  # (3 * H / 2, W)
    return coefficients, (height, width), quality


def planes(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[..., 3 * H / 2, W] -> views of the luma's [..., H, W], and Cb's and Cr's [..., H / 2, W / 2]."""
    height, width = 2 * coefficients.shape[-2] // 3, coefficients.shape[-1]
    chroma = coefficients[..., height:, :]
    return coefficients[..., :height, :], chroma[..., : width // 2], chroma[..., width // 2 :]


def put(coefficients: np.ndarray, into: np.ndarray) -> None:
    """Copies a frame's coefficients to the upper left of a frame that may be larger, whose other pixels become grey.

    `coefficients` are int8[3 * h / 2, w], and `into` is int8[3 * H / 2, W], not smaller.
    """
    if coefficients.shape == into.shape:
        into[:] = coefficients
        return
    for source, target in zip(planes(coefficients), planes(into), strict=True):
        (height, width), (full_height, full_width) = source.shape, target.shape
        by_block = source.reshape(8, height // 8, 8, width // 8)  # (8, i, 8, j)
        whole = np.zeros((8, full_height // 8, 8, full_width // 8), np.int8)
        whole[:, : height // 8, :, : width // 8] = by_block
        target[:] = whole.reshape(full_height, full_width)  # (H, W)


def padded_size(height: int, width: int) -> tuple[int, int]:
    """The next multiples of 16 pixels: whole blocks of chroma."""
    return -(-height // 16) * 16, -(-width // 16) * 16


@functools.lru_cache
def steps(quality: int) -> np.ndarray:
    """Quantisation steps uint8[2, 8, 8] of luma and chroma by libjpeg's formula, MIN_STEP at least."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = np.array([_LUMA_STEPS.split(), _CHROMA_STEPS.split()], int).reshape(2, 8, 8)  # (2, 8, 8)
    return np.clip((tables * percent + 50) // 100, MIN_STEP, 255).astype(np.uint8)


def _spread(table: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float32[8, 8] -> [n, m]: the step of every coefficient of a plane of this shape."""
    return table.astype(np.float32).repeat(shape[0] // 8, axis=0).repeat(shape[1] // 8, axis=1)


def _transform(plane: np.ndarray) -> np.ndarray:
    """Pixels float32[n, m] -> orthonormal DCT of its 8x8 blocks, in the order of frequency."""
    height, width = plane.shape
    # OpenCV's, row by row of eight values: NumPy's products would start threads in each of many workers.
    rows = cv2.dct(plane.reshape(-1, 8), flags=cv2.DCT_ROWS)
    rows = rows.reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 3, 1)  # (i, j, v, y)
    columns = cv2.dct(np.ascontiguousarray(rows).reshape(-1, 8), flags=cv2.DCT_ROWS)
    columns = columns.reshape(height // 8, width // 8, 8, 8)  # (i, j, v, u)
    return columns.transpose(3, 0, 2, 1).reshape(height, width)  # (u i, v j)


def _inverse_transform(plane: np.ndarray) -> np.ndarray:
    """The inverse of `_transform`."""
    height, width = plane.shape
    flags = cv2.DCT_ROWS | cv2.DCT_INVERSE
    by_block = plane.reshape(8, height // 8, 8, width // 8).transpose(1, 3, 2, 0)  # (i, j, v, u)
    rows = cv2.dct(np.ascontiguousarray(by_block).reshape(-1, 8), flags=flags)
    rows = rows.reshape(height // 8, width // 8, 8, 8).transpose(0, 3, 1, 2)  # (i, y, j, v)
    return cv2.dct(np.ascontiguousarray(rows).reshape(-1, 8), flags=flags).reshape(height, width)
