"""Frames stored as DCT coefficients (data/dct.py) -> the crops of them that the model sees, on the accelerator.

Dequantisation is a product with a table. Inverse DCT, upsampling of chroma and the resizing of the crop are all linear
and separable, so that a plane costs two matrix products, out = L @ coefficients @ R.T, with L and R made for each box.
Colour comes last, at the size of the crop. As on the host (`data.samples.crop_clip`), a box is interpolated
linearly, within its borders, or averaged by area where it shrinks much.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import clips as sampling
from data import dct

Arrays = dict[str, Any]

# Three passes of bfloat16 on a TPU, TensorFloat-32 on a GPU: with one pass of bfloat16 grey levels would be off by one
# or two, since the mean of a block is up to 128 grey levels and bfloat16 has eight bits.
PRECISION = jax.lax.Precision.HIGH


def pixels(batch: Arrays, crop_size: tuple[int, int], tubelet_size: tuple[int, int, int]) -> Arrays:
    """A batch as data/pipeline.py makes it of either codec -> the same with pixels and motion energies.

    Args:
      batch: clips are uint8[B, ..., T, H, W, 3], or dictionaries as `clips` takes them.
      crop_size: (H, W).
      tubelet_size: (t, h, w) of one token.

    Returns:
      Every clip as uint8[B, ..., T, H, W, 3]; `motion` float32[B, ..., N] if `video` was not made of pixels.
    """
    planar = {key: _planar_clips(value, crop_size) for key, value in batch.items() if isinstance(value, dict)}
    decoded = {key: jnp.moveaxis(value, -3, -1) for key, value in planar.items()}
    if "video" in planar:
        decoded["motion"] = _planar_motion_energy(planar["video"], tubelet_size)
    return {**batch, **decoded}


def clips(stored: Arrays, crop_size: tuple[int, int]) -> jax.Array:
    """Decodes clips once and cuts R boxes from each.

    Args:
      stored: `coefficients` int8[E, ..., T, 3 * H / 2, W]; `steps` uint8[E, ..., 2, 8, 8]; `box` int32[E, R, ..., 4],
        (top, left, height, width) in pixels.
      crop_size: (height, width) of the result.

    Returns:
      uint8[E * R, ..., T, height, width, 3], RGB; the crops of a clip are neighbours.
    """
    return jnp.moveaxis(_planar_clips(stored, crop_size), -3, -1)


def _planar_clips(stored: Arrays, crop_size: tuple[int, int]) -> jax.Array:
    """As `clips`, uint8[E * R, ..., T, 3, height, width]: three colours would fill 3 of a TPU's 128 lanes."""
    coefficients, box = stored["coefficients"], jnp.moveaxis(stored["box"], 1, -2)  # (E, ..., R, 4)
    num_elements, *views, num_frames, _, _ = coefficients.shape
    repeats = box.shape[-2]
    video = jax.vmap(_decode_clip, in_axes=(0, 0, 0, None))(
        coefficients.reshape(-1, *coefficients.shape[-3:]),  # (M, T, 3 * H / 2, W)
        stored["steps"].reshape(-1, 2, 8, 8),  # (M, 2, 8, 8)
        box.reshape(-1, repeats, 4),  # (M, R, 4)
        crop_size,
    )
    video = video.reshape(num_elements, *views, repeats, num_frames, 3, *crop_size)  # (E, ..., R, T, 3, h, w)
    video = jnp.moveaxis(video, -5, 1)  # (E, R, ..., T, 3, h, w)
    return video.reshape(-1, *views, num_frames, 3, *crop_size)  # (E * R, ..., T, 3, h, w)


def _decode_clip(coefficients: jax.Array, steps: jax.Array, box: jax.Array, crop_size: tuple[int, int]) -> jax.Array:
    """int8[T, 3 * H / 2, W], uint8[2, 8, 8], int32[R, 4] -> uint8[R, T, 3, h, w]."""
    luma, cb, cr = dct.planes(coefficients)
    vertical, horizontal = jax.vmap(lambda one: _weights(one, luma.shape[-2:], crop_size))(box)
    y = _transform(luma, steps[0], vertical, horizontal)
    halves = (_halved(vertical), _halved(horizontal))
    cb, cr = (_transform(plane, steps[1], *halves) for plane in (cb, cr))
    y, cb, cr = (plane.astype(jnp.float32) for plane in jax.lax.optimization_barrier((y, cb, cr)))
    # JFIF's conversion, around 0: the blocks' means are of pixels - 128.
    rgb = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    rgb = [jnp.clip(jnp.round(colour + 128), 0, 255).astype(jnp.uint8) for colour in rgb]
    return jnp.stack(rgb, axis=-3)  # (R, T, 3, h, w)


def _transform(plane: jax.Array, steps: jax.Array, vertical: jax.Array, horizontal: jax.Array) -> jax.Array:
    """int8[T, n, m], uint8[8, 8], float32[R, h, n], float32[R, w, m] -> bfloat16[R, T, h, w]."""
    num_rows, num_columns = plane.shape[-2:]
    spread = jnp.repeat(jnp.repeat(steps, num_rows // 8, axis=0), num_columns // 8, axis=1)  # (n, m)
    dequantised = plane.astype(jnp.float32) * spread.astype(jnp.float32)
    left = jnp.matmul(vertical, _basis(num_rows).T, precision=PRECISION)  # (R, h, n)
    right = jnp.matmul(horizontal, _basis(num_columns).T, precision=PRECISION)  # (R, w, m)
    # The longer side is contracted first: fewer operations.
    decoded = jnp.einsum("rhn,tnm,rwm->rthw", left, dequantised, right, precision=PRECISION, optimize="optimal")
    # Half as much to write and read. Eight bits of -128 to 127 are off by 1/4 at most, rounding to grey levels by 1/2.
    # Without the barrier that follows the compiler leaves out both conversions, and writes float32.
    return decoded.astype(jnp.bfloat16)


@functools.cache
def _basis(length: int) -> np.ndarray:
    """The orthonormal DCT of blocks of 8 along an axis: float32[n, n], rows (frequency, block), columns pixels.

    A plane of coefficients is then _basis(n) @ pixels @ _basis(m).T, divided by the steps.
    """
    frequency, pixel = np.mgrid[:8, :8]
    block = np.cos((2 * pixel + 1) * frequency * np.pi / 16) * np.where(frequency == 0, np.sqrt(1 / 8), 1 / 2)
    matrix = np.zeros((8, length // 8, length // 8, 8), np.float32)  # (frequency, block, block, pixel)
    for index in range(length // 8):
        matrix[:, index, index] = block
    return matrix.reshape(length, length)  # (n, n)


def _weights(box: jax.Array, frame_size: tuple[int, int], crop_size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """What every pixel of a crop takes from those of the frame: float32[h, H] and float32[w, W]; rows sum to 1."""
    by_area = jnp.maximum(box[2] / crop_size[0], box[3] / crop_size[1]) > sampling.MOST_LINEAR
    vertical = _resize_weights(box[0], box[2], frame_size[0], crop_size[0], by_area)
    return vertical, _resize_weights(box[1], box[3], frame_size[1], crop_size[1], by_area)


def _resize_weights(start: jax.Array, size: jax.Array, num_in: int, num_out: int, by_area: jax.Array) -> jax.Array:
    out, pixel = jnp.arange(num_out)[:, None], jnp.arange(num_in)[None]
    scale = size / num_out
    first, last = start + out * scale, start + (out + 1) * scale
    overlap = jnp.clip(jnp.minimum(pixel + 1, last) - jnp.maximum(pixel, first), 0) / scale
    centre = start + jnp.clip((out + 0.5) * scale - 0.5, 0, size - 1)
    return jnp.where(by_area, overlap, jnp.clip(1 - jnp.abs(pixel - centre), 0))  # (num_out, num_in)


def _halved(weights: jax.Array) -> jax.Array:
    """Weights of pixels -> weights of the chroma they are interpolated from: float32[R, h, n] -> [R, h, n / 2]."""
    return jnp.matmul(weights, _upsampling(weights.shape[-1]), precision=PRECISION)


def _upsampling(length: int) -> np.ndarray:
    """float32[n, n / 2]: libjpeg's triangle filter, 3/4 of the nearer and 1/4 of the farther sample."""
    pixel, sample = np.arange(length)[:, None], np.arange(length // 2)[None]
    nearer, farther = pixel // 2, np.clip(pixel // 2 + np.where(pixel % 2, 1, -1), 0, length // 2 - 1)
    return (0.75 * (sample == nearer) + 0.25 * (sample == farther)).astype(np.float32)


def motion_energy(video: jax.Array, tubelet_size: tuple[int, int, int]) -> jax.Array:
    """As `data.motion.motion_energy`: uint8[..., T, H, W, 3] -> float32[..., N], grey levels."""
    return _planar_motion_energy(jnp.moveaxis(video, -1, -3), tubelet_size)


def _planar_motion_energy(video: jax.Array, tubelet_size: tuple[int, int, int]) -> jax.Array:
    """uint8[..., T, 3, H, W] -> float32[..., N]. Sums over tokens are products with zeros and ones."""
    *batch, num_frames, _, height, width = video.shape
    t, h, w = tubelet_size
    if num_frames == 1:
        return jnp.zeros((*batch, height // h * (width // w)), jnp.float32)
    frames = video.astype(jnp.float32)
    squared = jnp.square(frames[..., 1:, :, :, :] - frames[..., :-1, :, :, :])  # (..., T - 1, 3, H, W)
    rows, columns = (np.repeat(np.eye(size // step), step, axis=0) for size, step in ((height, h), (width, w)))
    exactly = jax.lax.Precision.HIGHEST
    of_rows = jnp.einsum("...chw,wj->...chj", squared, columns.astype(np.float32), precision=exactly)
    of_tokens = jnp.einsum("...chj,hi->...ij", of_rows, rows.astype(np.float32), precision=exactly)
    of_tokens = jnp.concatenate([of_tokens[..., :1, :, :], of_tokens], axis=-3)  # (..., T, nh, nw)
    of_tokens = of_tokens.reshape(*batch, num_frames // t, t, *of_tokens.shape[-2:])  # (..., nt, t, nh, nw)
    return jnp.sqrt(of_tokens.sum(axis=-3)).reshape(*batch, -1)  # (..., N)
