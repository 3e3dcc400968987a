"""Windows of JPEG files, and the two libraries that write and read them."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data import jpeg
from tests.test_decode import make_clip


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """Colours that change from pixel to pixel, so that no neighbour's chroma goes unseen."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def without_markers(frame: np.ndarray, quality: int) -> bytes:
    """As sets were prepared before windows could be decoded."""
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
@example(((40, 18), (20, 17, 1, 1)), 90, 0)  # in the last MCUs there is one column of chroma, here one row
@example(((18, 40), (17, 20, 1, 1)), 90, 0)
def test_a_window_is_cut_from_the_whole_frame(size_and_window, quality, seed):
    size, window = size_and_window
    frame = noise(*size, seed)
    data = jpeg.encode(frame, quality)
    np.testing.assert_array_equal(jpeg.decode(data, window), cut(jpeg.decode(data), window))
    old = without_markers(frame, quality)
    np.testing.assert_array_equal(jpeg.decode(data), jpeg.decode(old))
    np.testing.assert_array_equal(jpeg.decode(old, window), cut(jpeg.decode(old), window))


@pytest.mark.parametrize("window", [(20, 150, 120, 120), (0, 0, 170, 170), (50, 182, 120, 120), (16, 16, 32, 32)])
def test_a_window_of_a_stored_frame(window):
    data = jpeg.encode(make_clip(1, 170, 302)[0], 90)
    np.testing.assert_array_equal(jpeg.decode(data, window), cut(jpeg.decode(data), window))
    part, _, _ = jpeg._cut(data, window)
    height, width = jpeg.decode(bytes(part)).shape[:2]
    assert height <= window[2] + 2 * 17 and width <= window[3] + 2 * 17, "no more than the MCUs around it"


@pytest.mark.parametrize("window", [(0, 0, 41, 64), (-1, 0, 10, 10), (0, 60, 10, 5), (3, 3, 0, 4)])
@pytest.mark.parametrize("encode", [jpeg.encode, without_markers])
def test_a_window_outside_of_the_frame_is_refused(encode, window):
    with pytest.raises(ValueError, match="is not within its 40x64 pixels"):
        jpeg.decode(encode(make_clip(1, 40, 64)[0], 90), window)


@pytest.mark.parametrize("window", [None, (10, 10, 20, 20)])
def test_damage_is_an_error(window):
    data = jpeg.encode(make_clip(1, 48, 64)[0], 90)
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
        with pytest.raises(ValueError, match="are not a JPEG image"):
            pytest.fail(f"{name}: {jpeg.decode(content, window).shape}")
