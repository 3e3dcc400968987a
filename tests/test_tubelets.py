"""Clips are cut into tubelets and put together again; positions and normalised pixels."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mv2mae_jax.models import tubelets
from mv2mae_jax.topology import hlo

CLIP, TUBELET = (6, 16, 24), (2, 8, 8)  # grid (3, 2, 3): no two axes alike


def test_patchify_against_slicing():
    video = np.random.default_rng(0).integers(0, 256, (2, *CLIP, 3), dtype=np.uint8)
    tokens = np.asarray(tubelets.patchify(video, TUBELET))
    index = 0
    for t in range(0, 6, 2):
        for y in range(0, 16, 8):
            for x in range(0, 24, 8):
                cuboid = video[:, t : t + 2, y : y + 8, x : x + 8].reshape(2, -1)
                np.testing.assert_array_equal(tokens[:, index], cuboid)
                index += 1
    assert tokens.shape[1] == index and tokens.dtype == np.uint8
    np.testing.assert_array_equal(tubelets.unpatchify(tokens, CLIP, TUBELET), video)


def test_patchify_after_unpatchify_compiles_to_nothing():
    """mv2mae_jax/models/stored_frames.py relies on this."""
    video = jnp.zeros((2, *CLIP, 3), jnp.uint8)
    tokens = tubelets.patchify(video, TUBELET)

    def again(tokens):
        return tubelets.patchify(tubelets.unpatchify(tokens, CLIP, TUBELET), TUBELET)

    def operations(function, argument):
        module = hlo.parse(jax.jit(function).lower(argument).compile().as_text())
        return {i.opcode for computation in module.computations.values() for i in computation.values()}

    assert "transpose" in operations(lambda video: tubelets.patchify(video, TUBELET), video)
    assert operations(again, tokens) <= {"parameter", "copy", "bitcast"}


def test_position_table_against_its_formula():
    table = tubelets.sinusoid_table(500, 24)
    for position in (0, 1, 37, 499):
        for j in range(24):
            angle = position / 10000 ** (2 * (j // 2) / 24)
            assert abs(table[position, j] - (math.cos if j % 2 else math.sin)(angle)) < 1e-6


def test_pixels_survive_normalising():
    patches = np.arange(256, dtype=np.uint8).repeat(3)
    np.testing.assert_allclose(
        tubelets.denormalize_pixels(tubelets.normalize_pixels(patches)) * 255, patches, atol=1e-3
    )
