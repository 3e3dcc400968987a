"""Augmentation: every operation follows its definition, treats all frames alike and does nothing at strength zero."""

import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from data import augment

WITHOUT_STRENGTH = ("auto_contrast", "equalize", "invert")
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def make_video(num_frames=3, height=40, width=60, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def disc(y: float, x: float, size=81) -> np.ndarray:
    """A white disc of radius 4 on black, uint8[1, size, size, 3]; coordinates are relative to the centre."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    inside = (rows - y) ** 2 + (columns - x) ** 2 <= 16
    return np.repeat(255 * inside[None, :, :, None], 3, axis=-1).astype(np.uint8)


def centroid(frame: np.ndarray) -> tuple[float, float]:
    """(y, x), relative to the centre, of the pixels that are clearly brighter than the grey fill."""
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]] - frame.shape[0] // 2
    weight = np.maximum(frame[..., 0].astype(float) - 192, 0)  # interpolation overshoots at the edge of the grey
    return float((rows * weight).sum() / weight.sum()), float((columns * weight).sum() / weight.sum())


@pytest.mark.parametrize("name", sorted(set(augment.OPERATIONS) - set(WITHOUT_STRENGTH) - {"posterize"}))
def test_strength_zero_changes_nothing(name):
    video = make_video()
    np.testing.assert_array_equal(augment.apply(name, video, 0.0), video)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_strength_changes_frames_but_not_their_form(name):
    video = make_video() // 2 + 20  # leaves room for auto_contrast
    changed = augment.apply(name, video, 0.7)
    assert changed.shape == video.shape and changed.dtype == np.uint8 and not np.array_equal(changed, video)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("invert", lambda v: 255 - v),
        ("posterize", lambda v: v // 64 * 64),  # 4 - int(2.8) = 2 bits stay
        ("solarize", lambda v: np.where(v < 256 - 179, v, 255 - v)),  # int(0.7 * 256) = 179
        ("solarize_add", lambda v: np.where(v < 128, np.minimum(255, v + 77), v)),  # int(0.7 * 110) = 77
        ("brightness", lambda v: np.minimum(255, v * 1.63)),  # 1 + 0.7 * 0.9
        ("color", lambda v: np.clip(grey(v) + 1.63 * (v - grey(v)), 0, 255)),
        ("contrast", lambda v: np.clip(mean_grey(v) + 1.63 * (v - mean_grey(v)), 0, 255)),
        ("auto_contrast", lambda v: stretched(v)),
    ],
)
def test_colours_at_magnitude_seven(name, expected):
    video = make_video() // 2 + 20
    changed = augment.apply(name, video, 0.7).astype(float)
    np.testing.assert_allclose(
        changed, expected(video.astype(int)), atol=1.7
    )  # Pillow cuts off fractions and rounds greys


def grey(video: np.ndarray) -> np.ndarray:
    return np.round(video @ [0.299, 0.587, 0.114])[..., None]  # ITU-R 601 luma


def mean_grey(video: np.ndarray) -> np.ndarray:
    return np.round(grey(video).mean(axis=(1, 2, 3), keepdims=True))  # of each frame


def stretched(video: np.ndarray) -> np.ndarray:
    low, high = video.min(axis=(1, 2), keepdims=True), video.max(axis=(1, 2), keepdims=True)
    return (video - low) / (high - low) * 255


def test_negative_strength_weakens():
    video = make_video()
    np.testing.assert_allclose(augment.apply("brightness", video, -0.7), video * 0.37, atol=1.01)
    for name in ("color", "contrast"):
        assert augment.apply(name, video, -0.7).std() < 0.9 * video.std()


def test_equalizing_flattens_the_histogram():
    dark = (make_video(height=64, width=64).astype(float) ** 2 / 255).astype(np.uint8)
    quartiles = np.percentile(augment.apply("equalize", dark, 0.0), [25, 50, 75])
    np.testing.assert_allclose(quartiles, [64, 128, 191], atol=8)
    assert np.percentile(dark, 50) < 80


@pytest.mark.parametrize("sign", [-1, 1])
def test_translation_moves_by_a_share_of_the_frame(sign):
    video = make_video(height=40, width=80)  # at strength 0.5: 0.225 of the width = 18 pixels, of the height = 9
    across, down = (augment.apply(f"translate_{axis}", video, 0.5 * sign) for axis in "xy")
    if sign < 0:  # mirrored, a negative translation is a positive one
        video, across, down = video[:, ::-1, ::-1], across[:, ::-1, ::-1], down[:, ::-1, ::-1]
    np.testing.assert_array_equal(across[:, :, :-18], video[:, :, 18:])
    np.testing.assert_array_equal(down[:, :-9], video[:, 9:])
    assert (across[:, :, -18:] == 128).all() and (down[:, -9:] == 128).all()


@pytest.mark.parametrize("strength", [-0.7, 0.4, 1.0])
def test_rotation_and_shear_move_a_disc_where_they_should(strength):
    angle = math.radians(30 * strength)  # counter-clockwise on the screen, whose y axis points down
    found = centroid(augment.apply("rotate", disc(0, 20), strength)[0])
    np.testing.assert_allclose(found, (-20 * math.sin(angle), 20 * math.cos(angle)), atol=0.3)
    # A shear takes output (y, x) from input x + 0.3 * strength * y, with y counted from the top (40 above the centre).
    found = centroid(augment.apply("shear_x", disc(-20, 0), strength)[0])
    np.testing.assert_allclose(found, (-20, -0.3 * strength * 20), atol=0.5)
    found = centroid(augment.apply("shear_y", disc(0, -20), strength)[0])
    np.testing.assert_allclose(found, (-0.3 * strength * 20, -20), atol=0.5)


def test_sharpness_goes_both_ways():
    video = make_video()
    roughness = [np.abs(np.diff(augment.apply("sharpness", video, s).astype(int), axis=2)).mean() for s in (-1, 0, 1)]
    assert roughness == sorted(roughness) and roughness[0] < 0.9 * roughness[1]


def test_off_is_the_identity():
    video, rng = make_video(), np.random.default_rng(0)
    off = augment.Augmentation()
    assert augment.rand_augment(video, off, rng) is video
    assert augment.random_flip(video, off.flip, rng) is video
    assert augment.random_erasing(video, off.random_erasing, rng) is video


@pytest.mark.parametrize("seed", range(8))
def test_frames_are_treated_alike(seed):
    """A frame comes out the same, whatever the other frames are."""
    settings = augment.Augmentation(randaugment_num_ops=4)
    video = make_video(num_frames=4)
    whole = augment.rand_augment(video, settings, np.random.default_rng(seed))
    for i in range(4):
        alone = augment.rand_augment(video[i : i + 1], settings, np.random.default_rng(seed))
        np.testing.assert_array_equal(whole[i : i + 1], alone)


def test_draws_of_randaugment(monkeypatch):
    """All operations are equally frequent, and half of the draws are applied. Strengths and signs have their shares."""
    drawn = []
    monkeypatch.setattr(augment, "apply", lambda name, video, strength: (drawn.append((name, strength)), video)[1])
    rng, clips = np.random.default_rng(0), 3000
    settings = augment.Augmentation(randaugment_num_ops=4, randaugment_magnitude=7.0, randaugment_magnitude_std=0.5)
    for _ in range(clips):
        augment.rand_augment(make_video(1, 2, 2), settings, rng)
    names, counts = np.unique([name for name, _ in drawn], return_counts=True)
    assert set(names) == set(augment.OPERATIONS) and len(names) == 15
    np.testing.assert_allclose(counts, clips * 4 / 2 / 15, rtol=0.25)  # five standard deviations of a count of 400
    strength = np.array([strength for _, strength in drawn])
    np.testing.assert_allclose(np.abs(strength).mean(), 0.7, atol=0.005)
    np.testing.assert_allclose(np.abs(strength).std(), 0.05, atol=0.005)
    two_sided = np.isin([name for name, _ in drawn], [*GEOMETRIC, "color", "contrast", "brightness", "sharpness"])
    assert (strength[~two_sided] > 0).all()
    np.testing.assert_allclose((strength[two_sided] < 0).mean(), 0.5, atol=0.05)


def test_magnitudes_stay_in_range(monkeypatch):
    drawn = []
    monkeypatch.setattr(augment, "apply", lambda name, video, strength: (drawn.append(strength), video)[1])
    settings = augment.Augmentation(randaugment_num_ops=200, randaugment_magnitude=9.0, randaugment_magnitude_std=5.0)
    augment.rand_augment(make_video(1, 2, 2), settings, np.random.default_rng(0))
    assert np.abs(drawn).max() == 1.0 and np.abs(drawn).min() == 0.0


def test_flip_is_the_mirror_image():
    video = make_video()
    flipped = augment.random_flip(video, 1.0, np.random.default_rng(0))
    expected = [np.asarray(ImageOps.mirror(Image.fromarray(frame))) for frame in video]
    np.testing.assert_array_equal(flipped, np.stack(expected))


def erased_boxes(count: int, size=(48, 64)) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of the overwritten part of a clip, found by its pixels."""
    boxes, rng = [], np.random.default_rng(0)
    original = np.zeros((2, *size, 3), np.uint8)
    for _ in range(count):
        changed = (augment.random_erasing(original, 1.0, rng) > 0).any(axis=-1)  # (T, H, W)
        found = []
        for frame in changed:
            rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
            found.append((rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
            assert frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.9  # a black pixel is rare
        assert found[0] == found[1], "the same box in every frame"
        boxes.append(found[0])
    assert not original.any(), "the clip that was passed in stays as it was"
    return boxes


def test_erased_boxes_have_the_wanted_areas_and_shapes():
    boxes = np.array(erased_boxes(400))
    areas = boxes[:, 2] * boxes[:, 3] / (48 * 64)
    aspects = boxes[:, 2] / boxes[:, 3]
    assert 0.015 < areas.min() < 0.04 and 0.29 < areas.max() < 0.345  # 0.02 to 1/3, sides rounded to pixels
    assert 0.25 < aspects.min() < 0.4 and 2.3 < aspects.max() < 3.9  # 0.3 to 3.3
    assert boxes[:, 0].min() == 0 and (boxes[:, 0] + boxes[:, 2]).max() == 48, "up to the edges"
    assert boxes[:, 1].min() == 0 and (boxes[:, 1] + boxes[:, 3]).max() == 64


def test_erasing_noise_is_standard_normal_to_the_model():
    rng, pixels = np.random.default_rng(0), []
    original = np.zeros((4, 32, 32, 3), np.uint8)
    for _ in range(50):
        erased = augment.random_erasing(original, 1.0, rng)
        pixels.append(erased[(erased > 0).any(axis=-1)])  # (pixels, 3)
        assert not np.array_equal(erased[0], erased[1]), "fresh noise in every frame"
    values = np.concatenate(pixels) / 255
    normalised = (values - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    # Median and quartiles of the standard normal; the tails are cut by uint8.
    for quantile, expected in ((0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745)):
        np.testing.assert_allclose(np.quantile(normalised, quantile, axis=0), expected, atol=0.03)


def test_probability_is_that_of_the_event():
    rng, video = np.random.default_rng(0), make_video(1, 16, 16)
    erased = sum(augment.random_erasing(video, 0.25, rng) is not video for _ in range(2000))
    flipped = sum(augment.random_flip(video, 0.25, rng) is not video for _ in range(2000))
    assert 400 < erased < 600 and 400 < flipped < 600  # 500, give or take five standard deviations of 19


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"flip": 1.5}, r"augment.flip=1.5 must lie between 0 and 1"),
        ({"random_erasing": -0.1}, r"augment.random_erasing=-0.1"),
        ({"randaugment_magnitude": 11.0}, r"augment.randaugment_magnitude=11.0 must lie between 0 and 10"),
        ({"randaugment_num_ops": -1}, r"augment.randaugment_num_ops=-1 must not be negative"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        augment.Augmentation(**setting)


def test_classes_with_sides_are_recognised():
    named = ("turn left", "TurnRight", "arm_circle_clockwise", "push something from left to right", "Counterclockwise")
    others = ("stand upright", "bright light", "leftover food", "walk", "side kick", "copyright")
    assert augment.has_left_right(named + others) == named
