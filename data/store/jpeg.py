"""Frames stored as JPEG files. A window of a frame can be decoded without the rest of it.

Most of the time for decoding JPEG goes into its Huffman code, which must be read from the start: a bit's meaning
depends on all before it. So a restart marker (ITU-T T.81, B.2.1) follows every MCU, the 16x16 pixels that are
coded together; decoding can start after any marker. The MCUs around a window, copied as they are, make a smaller JPEG
file. Decoding it gives, bit for bit, the same pixels as decoding the whole file.
"""

import dataclasses
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from console.errors import UserError

_MCU = 16  # pixels, in height and width
_FRAME, _INTERVAL, _SCAN = 0xC0, 0xDD, 0xDA  # markers of headers: of a baseline frame, restart interval, of a scan
_FIRST_RESTART, _END = 0xD0, 0xD9
_MOST = 0.9  # [ours] share of a frame's MCUs; beyond it, cutting takes longer than it saves

Window = tuple[int, int, int, int]  # (top, left, height, width) in pixels


def encode(frame: np.ndarray, quality: int) -> bytes:
    """A frame, uint8[h, w, 3] RGB, as a JPEG file with a restart marker after every MCU; chroma at half the resolution.

    Markers after every second or third MCU would have to divide a row of MCUs evenly, but a row of 302 pixels has 19
    MCUs, a prime number. The markers cost 3.6 % of the bytes at quality 90. Huffman tables made for the frame save 4 %.
    """
    parameters = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_RST_INTERVAL: 1,
        cv2.IMWRITE_JPEG_OPTIMIZE: 1,
    }
    flat = [number for item in parameters.items() for number in item]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), flat)
    assert encoded, frame.shape
    return data.tobytes()


def decode(data: bytes) -> np.ndarray:
    """The frame, uint8[h, w, 3], RGB, of its stored form. Raises ValueError when the bytes are damaged."""
    try:
        return simplejpeg.decode_jpeg(data)  # OpenCV's pixels, in two thirds of its time
    except ValueError as error:
        raise UserError(f"{len(data)} bytes are not a JPEG image ({error})") from error


def decode_window(stored: Sequence[bytes], window: Window) -> Iterator[np.ndarray]:
    """The same window of several frames of one size.

    Args:
      stored: at least one. Files without restart markers are decoded whole and then cut.
      window: within the frames.

    Yields:
      uint8[height, width, 3], RGB: exactly those pixels of the whole frame.

    Raises:
      ValueError: the bytes are damaged, or the window is not within the frames.
    """
    try:
        parts, first_row, first_column = _cut(stored, window)
    except (ValueError, IndexError, struct.error) as error:
        num_bytes = ", ".join(str(len(data)) for data in stored)
        raise UserError(f"{num_bytes} bytes are not JPEG images ({error})") from error
    top, left, height, width = window
    for part in parts:
        yield decode(part)[top - first_row :, left - first_column :][:height, :width]


def _cut(stored: Sequence[bytes], window: Window) -> tuple[Sequence[bytes], int, int]:
    """JPEG files of the MCUs around a window, and the row and column of the frames where they begin.

    Files without restart markers are returned as they are, and so are files of which little would be left out. All
    frames are cut at once, which takes half the time of cutting one after the other.
    """
    headers = [_Header.of(data) for data in stored]
    (height, width, interval), *others = {(header.height, header.width, header.interval) for header in headers}
    if others:
        raise UserError("they have different sizes or restart intervals")
    mcus = _Mcus.around(window, height, width)
    if interval == 0 or mcus.are_most:
        return stored, 0, 0
    scans = [data[header.num_bytes :] for data, header in zip(stored, headers, strict=True)]
    joined = b"".join(scans)
    values = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero((values[:-1] == 0xFF) & (values[1:] != 0)) + 2  # where each MCU with its marker ends
    if values[ends - 1].tobytes() != mcus.markers * len(stored):
        raise UserError(f"their markers are not those of {len(mcus.markers)} MCUs each")
    ends = ends.reshape(len(stored), -1)  # (T, n)
    starts, stops = ends[:, mcus.first - 1], ends[:, mcus.last]  # (T, r), of rows of MCUs
    if mcus.first[0] == 0:
        starts[:, 0] = [0, *itertools.accumulate(map(len, scans[:-1]))]
    pieces = []
    for data, header, ranges in zip(stored, headers, np.stack([starts, stops], axis=-1).tolist(), strict=True):
        pieces += data[: header.size_start], mcus.size, data[header.size_start + 4 : header.num_bytes]
        pieces += [joined[first:last] for first, last in ranges]
    parts = bytearray().join(pieces)
    row_lengths = stops - starts
    part_ends = np.cumsum([header.num_bytes for header in headers] + row_lengths.sum(axis=1))  # (T,)
    scan_starts = part_ends - row_lengths.sum(axis=1)
    row_ends = scan_starts[:, None] + np.cumsum(row_lengths, axis=1)  # (T, r), in `parts`
    markers = ends[:, mcus.wanted] + (row_ends - stops)[:, :, None] - 1  # (T, r, c), where their last bytes are
    np.frombuffer(parts, np.uint8)[markers] = mcus.new_markers
    bounds = itertools.pairwise([0, *part_ends.tolist()])
    return [memoryview(parts)[first:last] for first, last in bounds], mcus.top, mcus.left


class _Header(NamedTuple):
    """What a file holds before its scan."""

    num_bytes: int  # of the header
    size_start: int  # where height and width stand in it, two bytes each
    height: int  # of the frame, in pixels
    width: int
    interval: int  # of restart markers, in MCUs; 0 is none

    @classmethod
    def of(cls, data: bytes) -> "_Header":
        position, size_start, interval = 2, 0, 0
        while True:
            marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
            if marker == _FRAME:
                size_start = position + 5
            elif marker == _INTERVAL:
                interval = data[position + 4] << 8 | data[position + 5]
            position += 2 + length
            if marker == _SCAN:
                height, width = struct.unpack_from(">HH", data, size_start)
                return cls(position, size_start, height, width, interval)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Mcus:
    """The r rows and c columns of MCUs around a window."""

    top: int  # where they begin, in pixels
    left: int
    first: np.ndarray  # int[r], numbers of the MCUs at the ends of the rows
    last: np.ndarray
    wanted: np.ndarray  # int[r, c], numbers of all
    new_markers: np.ndarray  # uint8[r, c], the last byte of the marker after each of them in a file of its own
    size: bytes  # height and width of that file, as its header has them
    markers: bytes  # the last byte of the marker after each MCU of the whole frame
    are_most: bool  # whether they are so many that cutting them out would take longer than decoding the rest

    @classmethod
    def around(cls, window: Window, frame_height: int, frame_width: int) -> "_Mcus":
        """The MCUs that a decoder needs for the window's pixels: with one more sample of chroma on each side."""
        top, left, height, width = window
        if not (0 <= top < top + height <= frame_height and 0 <= left < left + width <= frame_width):
            raise UserError(f"the window {window} is not within their {frame_height}x{frame_width} pixels")
        num_rows, num_columns = -(-frame_height // _MCU), -(-frame_width // _MCU)
        numbers = np.arange(num_rows * num_columns).reshape(num_rows, num_columns)
        rows = slice(max(0, top - 1) // _MCU, -(-(top + height + 1) // _MCU))
        first = min(left - 1, frame_width - 5)  # libjpeg does not interpolate chroma of one or two columns
        columns = slice(max(0, first) // _MCU, -(-(left + width + 1) // _MCU))
        wanted = numbers[rows, columns]  # (r, c)
        top, left = rows.start * _MCU, columns.start * _MCU
        size = min(len(wanted) * _MCU, frame_height - top), min(len(wanted[0]) * _MCU, frame_width - left)
        if len(wanted[0]) == num_columns:
            wanted = wanted.reshape(1, -1)  # neighbours in the scan are cut out at once
        return cls(
            top=top,
            left=left,
            first=wanted[:, 0],
            last=wanted[:, -1],
            wanted=wanted,
            new_markers=_markers(wanted.size).reshape(wanted.shape),
            size=b"".join(side.to_bytes(2, "big") for side in size),
            markers=_markers(numbers.size).tobytes(),
            are_most=wanted.size > _MOST * numbers.size,
        )


def _markers(num_mcus: int) -> np.ndarray:
    """uint8[num_mcus], the last bytes of the markers after MCUs."""
    markers = _FIRST_RESTART + np.arange(num_mcus, dtype=np.uint8) % 8
    markers[-1] = _END
    return markers
