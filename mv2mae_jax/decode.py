"""Frames stored as DCT coefficients (data/dct.py) -> the crops of them that the model sees, on the accelerator.

Dequantisation is a product with a table. Inverse DCT, upsampling of chroma, resizing of the crop and the change from
luma and chroma to colours are linear and, plane by plane, separable: two matrix products, with matrices made for each
box, give what a plane adds to each colour. Rounding comes last, at the size of the crop. As on the host
(`data.samples.crop_clip`), a box is interpolated linearly, within its borders, or averaged by area where it shrinks
much.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import clips as sampling
from mv2mae_jax.models import layers

Arrays = dict[str, Any]

# Three passes of bfloat16 on a TPU, TensorFloat-32 on a GPU: with one pass of bfloat16 grey levels would be off by one
# or two, since the mean of a block is up to 128 grey levels and bfloat16 has eight bits.
PRECISION = jax.lax.Precision.HIGH

# What (Cb, Cr) add to (red, green, blue), around 0; luma adds 1 to each (JFIF).
COLOURS = np.array([[0, 1.402], [-0.344136, -0.714136], [1.772, 0]], np.float32)  # (3, 2)


def pixels(batch: Arrays, crop_size: tuple[int, int], tubelet_size: tuple[int, int, int]) -> Arrays:
    """A batch as data/pipeline.py makes it of either codec -> the same with pixels and motion energies.

    Args:
      batch: clips are uint8[B, ..., T, H, W, 3], or dictionaries as `clips` takes them.
      crop_size: (H, W).
      tubelet_size: (t, h, w) of one token.

    Returns:
      Every clip as uint8[B, ..., T, H, W, 3]; `motion` float32[B, ..., N] if `video` was not made of pixels.
    """
    decoded = {key: clips(value, crop_size) for key, value in batch.items() if isinstance(value, dict)}
    if "video" in decoded:
        video = decoded["video"]
        tokens, motion = layers.patchify(video, tubelet_size), motion_energy(video, tubelet_size)
        # Handed on together: where the rest of the step may begin with the energies alone, a TPU's compiler orders it
        # otherwise and keeps less in the fast memory, 2 ms of 50 (docs/scaling.md).
        tokens, decoded["motion"] = jax.lax.optimization_barrier((tokens, motion))
        decoded["video"] = layers.unpatchify(tokens, video.shape[-4:-1], tubelet_size)  # the model's patchify undoes it
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
    coefficients, box = stored["coefficients"], jnp.moveaxis(stored["box"], 1, -2)  # (E, ..., R, 4)
    num_elements, *views, num_frames, _, _ = coefficients.shape
    repeats = box.shape[-2]
    video = jax.vmap(_decode_clip, in_axes=(0, 0, 0, None))(
        coefficients.reshape(-1, *coefficients.shape[-3:]),  # (M, T, 3 * H / 2, W)
        stored["steps"].reshape(-1, 2, 8, 8),  # (M, 2, 8, 8)
        box.reshape(-1, repeats, 4),  # (M, R, 4)
        crop_size,
    )
    video = video.reshape(num_elements, *views, repeats, num_frames, *crop_size, 3)  # (E, ..., R, T, h, w, 3)
    video = jnp.moveaxis(video, -5, 1)  # (E, R, ..., T, h, w, 3)
    return video.reshape(-1, *views, num_frames, *crop_size, 3)  # (E * R, ..., T, h, w, 3)


def _decode_clip(coefficients: jax.Array, steps: jax.Array, box: jax.Array, crop_size: tuple[int, int]) -> jax.Array:
    """int8[T, 3 * H / 2, W], uint8[2, 8, 8], int32[R, 4] -> uint8[R, T, h, w, 3]."""
    height, width = 2 * coefficients.shape[-2] // 3, coefficients.shape[-1]
    luma, chroma = coefficients[:, :height], coefficients[:, height:]  # Cb and Cr stay side by side
    vertical, horizontal = jax.vmap(lambda one: _weights(one, (height, width), crop_size))(box)
    luma_columns = _product(_basis(width), horizontal.mT)[:, None]  # (R, 1, W, w)
    chroma_columns = _product(_basis(width // 2), _halved(horizontal).mT)  # (R, W / 2, w)
    chroma_columns = COLOURS[:, :, None, None] * chroma_columns[:, None, None]  # (R, 3, 2, W / 2, w)
    chroma_columns = chroma_columns.reshape(*chroma_columns.shape[:2], width, -1)  # (R, 3, W, w)
    luma_rows = _product(vertical, _basis(height).T)  # (R, h, H)
    chroma_rows = _product(_halved(vertical), _basis(height // 2).T)  # (R, h, H / 2)
    luma_steps = _spread(steps[0], height, width)
    chroma_steps = jnp.tile(_spread(steps[1], height // 2, width // 2), (1, 2))  # (H / 2, W)
    y = _transform(luma * luma_steps, luma_rows, luma_columns)  # (R, T, 1, h, w)
    colours = y + _transform(chroma * chroma_steps, chroma_rows, chroma_columns)  # (R, T, 3, h, w)
    # The blocks' means are of pixels - 128.
    colours = jnp.clip(jnp.round(colours + 128), 0, 255).astype(jnp.uint8)
    return jnp.moveaxis(colours, 2, -1)  # (R, T, h, w, 3)


def _spread(steps: jax.Array, num_rows: int, num_columns: int) -> jax.Array:
    """uint8[8, 8] -> float32[n, m]: to every coefficient of a plane its step."""
    steps = steps.astype(jnp.float32)
    return jnp.repeat(jnp.repeat(steps, num_rows // 8, axis=0), num_columns // 8, axis=1)


def _transform(coefficients: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """float32[T, n, m], float32[R, h, n], float32[R, C, m, w] -> C images of each frame, float32[R, T, C, h, w]."""
    # The longer side first: fewer operations, and a smaller array between the products.
    if coefficients.shape[1] > coefficients.shape[2]:
        of_rows = jnp.einsum("rhn,tnm->rthm", rows, coefficients, precision=PRECISION)
        return jnp.einsum("rthm,rcmw->rtchw", of_rows, columns, precision=PRECISION)
    of_columns = jnp.einsum("tnm,rcmw->rtcnw", coefficients, columns, precision=PRECISION)
    return jnp.einsum("rhn,rtcnw->rtchw", rows, of_columns, precision=PRECISION)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=PRECISION)


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
    return _product(weights, _upsampling(weights.shape[-1]))


def _upsampling(length: int) -> np.ndarray:
    """float32[n, n / 2]: libjpeg's triangle filter, 3/4 of the nearer and 1/4 of the farther sample."""
    pixel, sample = np.arange(length)[:, None], np.arange(length // 2)[None]
    nearer, farther = pixel // 2, np.clip(pixel // 2 + np.where(pixel % 2, 1, -1), 0, length // 2 - 1)
    return (0.75 * (sample == nearer) + 0.25 * (sample == farther)).astype(np.float32)


def motion_energy(video: jax.Array, tubelet_size: tuple[int, int, int]) -> jax.Array:
    """As `data.motion.motion_energy`: uint8[..., T, H, W, 3] -> float32[..., N], grey levels.

    Taken from the video cut into tokens, which the model cuts alike: compiled together, it is cut once.
    """
    _, grid_h, grid_w = layers.token_grid(video.shape[-4:-1], tubelet_size)
    if video.shape[-4] == 1:
        return jnp.zeros((*video.shape[:-4], grid_h * grid_w), jnp.float32)
    tokens = layers.patchify(video, tubelet_size)  # (..., N, t * h * w * 3)
    frames = jnp.split(tokens, tubelet_size[0], axis=-1)  # t of (..., N, h * w * 3)
    energy = [_squared_distance(later, earlier) for earlier, later in itertools.pairwise(frames)]  # of (..., N)
    per_frame = grid_h * grid_w
    across = _squared_distance(frames[0][..., per_frame:, :], frames[-1][..., :-per_frame, :])  # (..., N - nh * nw)
    # The first frame has no predecessor: the difference of the second stands in.
    first = (energy[0] if energy else across)[..., :per_frame]  # (..., nh * nw)
    return jnp.sqrt(sum(energy, start=jnp.concatenate([first, across], axis=-1)))  # (..., N)


def _squared_distance(first: jax.Array, second: jax.Array) -> jax.Array:
    """uint8[..., P] twice -> float32[...]."""
    return jnp.square(first.astype(jnp.float32) - second.astype(jnp.float32)).sum(axis=-1)
