"""Two libraries decode JPEG alike: files that one wrote and the other reads keep their pixels."""

import cv2
import numpy as np
import pytest

from data import jpeg
from tests.test_decode import make_clip


@pytest.mark.parametrize(("size", "quality"), [((48, 64), 90), ((40, 53), 75), ((17, 30), 30)])
def test_pixels_are_those_of_opencv(size, quality):
    data = jpeg.encode(make_clip(1, *size)[0], quality)
    wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(jpeg.decode(data), wanted)


def test_damage_is_an_error():
    data = jpeg.encode(make_clip(1, 48, 64)[0], 90)
    for damaged in (b"", b"no picture", data[: len(data) // 2], data[:100] + data[200:]):
        with pytest.raises(ValueError):
            jpeg.decode(damaged)
