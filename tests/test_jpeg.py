"""Windows of JPEG files, and the two libraries that write and read them."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.store import jpeg
from tests.test_decode import make_clip


def noise(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Random colours, so that the chroma of a neighbouring pixel would be noticed."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def without_markers(frame: np.ndarray, quality: int) -> bytes:
    """A JPEG file without restart markers, as older versions prepared them."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])
    return data.tobytes()


def cut(pixels: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]


@st.composite
def sizes_and_windows(draw) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    size, starts, lengths = [], [], []
    for _ in range(2):
        whole = draw(st.integers(1, 120))
        start = draw(st.integers(0, whole - 1))
        size.append(whole)
        starts.append(start)
        lengths.append(draw(st.integers(1, whole - start)))
    return tuple(size), (*starts, *lengths)


@pytest.mark.parametrize(("size", "quality"), [((48, 64), 90), ((40, 53), 75), ((17, 30), 30)])
def test_pixels_are_those_of_opencv(size, quality):
    data = jpeg.encode(make_clip(1, *size)[0], quality)
    wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(jpeg.decode(data), wanted)


@given(sizes_and_windows(), st.sampled_from([1, 30, 75, 90, 100]), st.integers(0, 2**32 - 1))
@example(((40, 18), (20, 17, 1, 1)), 90, 0)  # the last MCUs hold one column of chroma; in the next example, one row
@example(((18, 40), (17, 20, 1, 1)), 90, 0)
def test_a_window_is_cut_from_the_whole_frame(size_and_window, quality, seed):
    size, window = size_and_window
    frames = noise(3, *size, seed)
    stored, old = ([encode(frame, quality) for frame in frames] for encode in (jpeg.encode, without_markers))
    whole = [jpeg.decode(data) for data in stored]
    np.testing.assert_array_equal(whole, [jpeg.decode(data) for data in old])
    for files in (stored, stored[:1], old):
        wanted = [cut(pixels, window) for pixels in whole[: len(files)]]
        np.testing.assert_array_equal(list(jpeg.decode_window(files, window)), wanted)


@pytest.mark.parametrize("window", [(20, 150, 120, 120), (0, 0, 170, 170), (50, 182, 120, 120), (16, 16, 32, 32)])
def test_no_more_is_decoded_than_the_mcus_around_a_window(window):
    stored = [jpeg.encode(frame, 90) for frame in make_clip(2, 170, 302)]
    wanted = [cut(jpeg.decode(data), window) for data in stored]
    np.testing.assert_array_equal(list(jpeg.decode_window(stored, window)), wanted)
    parts, _, _ = jpeg._cut(stored, window)
    for part in parts:
        height, width, _ = jpeg.decode(part).shape
        assert height <= window[2] + 2 * 17 and width <= window[3] + 2 * 17


@pytest.mark.parametrize("window", [(0, 0, 41, 64), (-1, 0, 10, 10), (0, 60, 10, 5), (3, 3, 0, 4)])
@pytest.mark.parametrize("encode", [jpeg.encode, without_markers])
def test_a_window_outside_of_the_frame_is_refused(encode, window):
    with pytest.raises(ValueError, match="is not within their 40x64 pixels"):
        next(jpeg.decode_window([encode(make_clip(1, 40, 64)[0], 90)], window))


def test_frames_of_different_sizes_are_refused():
    stored = [jpeg.encode(make_clip(1, 40, width)[0], 90) for width in (64, 80)]
    with pytest.raises(ValueError, match="different sizes"):
        next(jpeg.decode_window(stored, (0, 0, 10, 10)))


@pytest.mark.parametrize("window", [None, (10, 10, 20, 20)])
def test_damage_is_an_error(window):
    intact, data = (jpeg.encode(frame, 90) for frame in make_clip(2, 48, 64))
    first, second, third = (found.start() for found in list(re.finditer(rb"\xff[\xd0-\xd7]", data))[:3])
    size = data.index(b"\xff\xc0") + 5
    damaged = {
        "nothing": b"",
        "another file": b"no picture",
        "one byte": b"\xff",
        "the end is missing": data[: len(data) // 2],
        "a part is missing": data[:100] + data[200:],
        "a marker is missing": data[:first] + data[first + 2 :],
        "an MCU is missing": data[:first] + data[second:],
        "an MCU is there twice": data[:second] + data[first:],
        "a marker more": data[:second] + b"\xff\xd1" + data[second:],
        "MCUs in another order": data[:first] + data[second:third] + data[first:second] + data[third:],
        "another height": data[:size] + bytes([0, 80]) + data[size + 2 :],
        "a header alone": data[: data.index(b"\xff\xda")],
    }
    for name, content in damaged.items():
        with pytest.raises(ValueError, match=r"bytes are not .*JPEG image"):
            found = list(jpeg.decode_window([intact, content], window)) if window else jpeg.decode(content)
            pytest.fail(f"{name}: {np.shape(found)}")
