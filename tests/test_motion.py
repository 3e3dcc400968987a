"""Motion energies against a direct computation."""

import numpy as np
import pytest

from data.motion import motion_energy


def direct(video: np.ndarray, tubelet_size: tuple[int, int, int]) -> np.ndarray:
    """The definition, token by token in float64."""
    pixels = video.astype(np.float64)
    difference = np.stack([np.abs(pixels[max(i, 1)] - pixels[max(i, 1) - 1]) for i in range(len(pixels))])
    (t, h, w), energies = tubelet_size, []
    for i in range(0, video.shape[0], t):
        for j in range(0, video.shape[1], h):
            for k in range(0, video.shape[2], w):
                energies.append(np.linalg.norm(difference[i : i + t, j : j + h, k : k + w]))
    return np.array(energies)


@pytest.mark.parametrize(
    ("shape", "tubelet_size"),
    [((8, 32, 48, 3), (2, 16, 16)), ((6, 24, 16, 3), (3, 8, 4)), ((4, 8, 8, 3), (1, 8, 8)), ((2, 8, 8, 3), (2, 4, 8))],
)
def test_energy_is_the_norm_of_frame_differences(shape, tubelet_size):
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_allclose(motion_energy(video, tubelet_size), direct(video, tubelet_size), rtol=1e-6)


def test_clips_together_are_as_each_alone():
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 16, 24, 3), np.uint8)
    together = motion_energy(video, (2, 8, 8))
    for clip, energy in zip(video.reshape(6, 4, 16, 24, 3), together.reshape(6, -1), strict=True):
        np.testing.assert_array_equal(energy, motion_energy(clip, (2, 8, 8)))


def test_only_the_moving_token_has_energy():
    video = np.zeros((4, 16, 16, 3), np.uint8)
    video[3, 8:, :8] = 255  # appears in the last frame, in the third of four places
    energy = motion_energy(video, (2, 8, 8))
    assert np.flatnonzero(energy).tolist() == [6]
    assert energy[6] == pytest.approx(255 * np.sqrt(8 * 8 * 3))


def test_a_single_frame_does_not_move():
    video = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    assert motion_energy(video, (1, 8, 8)).tolist() == [0.0] * 4
