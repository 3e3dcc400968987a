"""Frames stored as JPEG files, of which a window can be decoded alone.

Most of the time for decoding JPEG goes into its Huffman code, which must be read from the start: a bit's meaning
depends on all before it. So a restart marker (ITU-T T.81, B.2.1) stands after every MCU, the 16x16 pixels that are
coded together: behind it all begins anew. The MCUs around a window, taken over as they are, make a smaller JPEG file,
and what a decoder sees in that is, bit for bit, what it sees there in the whole one.
"""

import dataclasses
import functools

import cv2
import numpy as np
import simplejpeg

_MCU = 16  # pixels, in height and width
_FRAME, _INTERVAL, _SCAN = 0xC0, 0xDD, 0xDA  # markers of headers: of a baseline frame, restart interval, of a scan
_FIRST_RESTART, _END = 0xD0, 0xD9
_MOST = 0.9  # [ours] share of a frame's MCUs; to cut out the others takes a tenth of the time for decoding a frame

Window = tuple[int, int, int, int]  # (top, left, height, width) in pixels


def encode(frame: np.ndarray, quality: int) -> bytes:
    """The stored form of a frame.

    Args:
      frame: uint8[h, w, 3], RGB.
      quality: 1 to 100, JPEG's scale; chroma is stored at half the resolution (4:2:0).

    Returns:
      A JPEG file with a restart marker after every MCU. The markers cost 3.5 % of its bytes at quality 90, and Huffman
      tables of its own save 4 %.
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


def decode(data: bytes, window: Window | None = None) -> np.ndarray:
    """Pixels of a frame from its stored form.

    Args:
      data: a JPEG file; one without restart markers is decoded whole, whatever the window.
      window: (top, left, height, width) in pixels, within the frame; None is all of it.

    Returns:
      uint8[height, width, 3], RGB: exactly those pixels of the whole frame.

    Raises:
      ValueError: the bytes are damaged, or the window is not within the frame.
    """
    try:
        if window is None:
            return simplejpeg.decode_jpeg(data)  # OpenCV's pixels, in two thirds of its time
        part, first_row, first_column = _cut(data, window)
        decoded = simplejpeg.decode_jpeg(part)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{len(data)} bytes are not a JPEG image ({error})") from error
    top, left, height, width = window
    return decoded[top - first_row :, left - first_column :][:height, :width]


def _cut(data: bytes, window: Window) -> tuple[bytes, int, int]:
    """A JPEG file of the MCUs around a window, and the row and column of the frame where they begin.

    The file as it is, where it has no restart markers, or where little would be left out.
    """
    scan_start, size_start, interval = _parse_header(data)
    height, width = (int.from_bytes(data[i : i + 2], "big") for i in (size_start, size_start + 2))
    mcus = _Mcus.around(window, height, width)
    if interval == 0 or mcus.are_most:
        return data, 0, 0
    scan = np.frombuffer(data, np.uint8, offset=scan_start)
    ends = np.flatnonzero((scan[:-1] == 0xFF) & (scan[1:] != 0)) + 2  # of MCUs with the markers that follow them
    if scan[ends - 1].tobytes() != mcus.markers:
        raise ValueError(f"its {len(ends)} markers are not those of {len(mcus.markers)} MCUs")
    starts, stops = ends[mcus.first - 1], ends[mcus.last]  # of rows of MCUs
    if mcus.first[0] == 0:
        starts[0] = 0
    rows = [data[scan_start + i : scan_start + j] for i, j in zip(starts.tolist(), stops.tolist(), strict=True)]
    part = bytearray().join([data[:size_start], mcus.size, data[size_start + 4 : scan_start], *rows])
    moved_by = scan_start + np.cumsum(stops - starts) - stops
    markers = ends[mcus.wanted] + moved_by[:, None] - 1  # (r, c), where their last bytes are
    np.frombuffer(part, np.uint8)[markers] = mcus.new_markers
    return part, mcus.top, mcus.left


def _parse_header(data: bytes) -> tuple[int, int, int]:
    """Where the scan's first byte is, where height and width stand (2 bytes each), and the restart interval in MCUs."""
    position, size_start, interval = 2, 0, 0
    while True:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _FRAME:
            size_start = position + 5
        elif marker == _INTERVAL:
            interval = int.from_bytes(data[position + 4 : position + 6], "big")
        position += 2 + length
        if marker == _SCAN:
            return position, size_start, interval


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Mcus:
    """The r rows and c columns of MCUs around a window.

    Attributes:
      top, left: where they begin, in pixels.
      first, last: int[r], numbers of the MCUs at the ends of the rows.
      wanted: int[r, c], numbers of all.
      new_markers: uint8[r, c], the last byte of the marker after each of them in a file of its own.
      size: height and width of that file, as its header has them.
      markers: the last byte of the marker after each MCU of the whole frame.
      are_most: so many that to cut them out costs more than to decode the rest.
    """

    top: int
    left: int
    first: np.ndarray
    last: np.ndarray
    wanted: np.ndarray
    new_markers: np.ndarray
    size: bytes
    markers: bytes
    are_most: bool

    @classmethod
    @functools.lru_cache(256)  # the frames of a clip follow one another
    def around(cls, window: Window, frame_height: int, frame_width: int) -> "_Mcus":
        """With what a decoder looks at for the window's pixels: one more sample of chroma on each side."""
        top, left, height, width = window
        if not (0 <= top < top + height <= frame_height and 0 <= left < left + width <= frame_width):
            raise ValueError(f"the window {window} is not within its {frame_height}x{frame_width} pixels")
        numbers = np.arange(-(-frame_height // _MCU) * -(-frame_width // _MCU)).reshape(-1, -(-frame_width // _MCU))
        rows = slice(max(0, top - 1) // _MCU, -(-(top + height + 1) // _MCU))
        first = min(left - 1, frame_width - 5)  # libjpeg does not interpolate chroma of one or two columns
        columns = slice(max(0, first) // _MCU, -(-(left + width + 1) // _MCU))
        wanted = numbers[rows, columns]  # (r, c)
        top, left = rows.start * _MCU, columns.start * _MCU
        size = min(len(wanted) * _MCU, frame_height - top), min(len(wanted[0]) * _MCU, frame_width - left)
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
