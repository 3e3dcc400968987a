"""Pictures can be read back and show the given videos and weights."""

import cv2
import numpy as np

from mv2mae_jax.evaluation import visualize


def pictures(num_samples=2):
    rng = np.random.default_rng(0)
    names = ("target", "masked", "self_view", "cross_view", "source")
    shown = {name: rng.random((num_samples, 4, 16, 16, 3)).astype(np.float32) for name in names}
    weights = np.zeros((num_samples, 2, 2, 2))
    weights[:, 1, 0, 1] = 8.0  # all weight on one token of the last two frames
    return shown | {"weights": weights}


def test_every_sample_has_a_picture_and_an_animation(tmp_path):
    stills = visualize.write(pictures(), str(tmp_path / "pictures"), step=7)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "step_0000007_sample_0.gif",
        "step_0000007_sample_0.png",
        "step_0000007_sample_1.gif",
        "step_0000007_sample_1.png",
    ]
    read = cv2.imread(str(tmp_path / "pictures" / "step_0000007_sample_1.png"))[..., ::-1]
    np.testing.assert_array_equal(read, stills["sample_1"])
    found, animation = cv2.imreadanimation(str(tmp_path / "pictures" / "step_0000007_sample_0.gif"))
    assert found and len(animation.frames) == 4


def test_tiles_are_the_frames_enlarged():
    shown = pictures()
    rows = {"target": visualize.sample_row(shown, "target", 0)}
    sheet = visualize.contact_sheet(rows)
    side = 16 * 7  # the smallest multiple of 16 from 112 pixels on
    tile = sheet[visualize._LABEL_HEIGHT :][:side, side + 4 :][:, :side]
    np.testing.assert_array_equal(tile[::7, ::7], np.round(shown["target"][0, 1] * 255).astype(np.uint8))


def test_the_weighted_token_is_the_bright_one():
    shown = pictures()
    black = np.zeros((4, 16, 16, 3), np.uint8)
    brightness = visualize.weight_map(shown["weights"][0], black).sum(-1)
    assert (brightness[2:, :8, 8:] > 3 * brightness[0].max()).all()
    assert brightness[2:, 8:].max() == brightness[0].max()


def test_blurring_removes_fine_detail_from_every_video(tmp_path):
    shown = pictures(num_samples=1)
    sharp = visualize.write(shown, str(tmp_path / "sharp"), step=1)["sample_0"]
    blurred = visualize.write(shown, str(tmp_path / "blurred"), step=1, blur_sigma=3.0)["sample_0"]
    row_height = sharp.shape[0] // 6
    for row in range(5):  # blurred noise is nearly grey
        rows = slice(row * row_height + visualize._LABEL_HEIGHT, (row + 1) * row_height - 4)
        tile = slice(0, 112)
        assert blurred[rows, tile].std() < 0.25 * sharp[rows, tile].std()
