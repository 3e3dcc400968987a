"""Frames stored as DCT coefficients (data/store/dct.py) -> the crops of them that the model sees, on the accelerator.

Dequantisation is a product with a table. Inverse DCT, upsampling of chroma and resizing of the crop are linear and
separable: two matrix products, with matrices made for each box, give a plane's crop. Luma and chroma are then rounded
to bytes, as a JPEG decoder does, and become colours. As on the host (`data.samples.crop_clip`), a box is interpolated
linearly, within its borders, or averaged by area where it shrinks much.

The products are in bfloat16, because the values between them are written to memory, which bounds the time on a GPU
(benchmarks/results/NOTES_input.md). Its eight bits are enough. A stored coefficient has seven bits, so its rounding is
at most a quarter of a quantisation step. Pixels lie around 0, so each rounding changes them by at most a quarter of a
grey level.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import clips as sampling

Arrays = dict[str, Any]


def pixels(batch: Arrays, crop_size: tuple[int, int]) -> Arrays:
    """Decodes what a batch of data/pipeline.py holds as coefficients. Batches of pixels stay as they are.

    Args:
      batch: `stored`, if it is there, holds records as `clips` takes them, by the names of the clips.
      crop_size: (H, W).

    Returns:
      Every clip under its own name, uint8[B, ..., T, H, W, 3]; all else as it is.
    """
    decoded = {name: clips(record, crop_size) for name, record in batch.get("stored", {}).items()}
    return {name: value for name, value in batch.items() if name != "stored"} | decoded


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
    luma = _dequantise(coefficients[:, :height], _spread(steps[0], height, width))  # (H, T, W)
    chroma_steps = jnp.tile(_spread(steps[1], height // 2, width // 2), (1, 2))  # (H / 2, W)
    chroma = _dequantise(coefficients[:, height:], chroma_steps)  # (H / 2, T, W), Cb and Cr stay side by side
    return jax.vmap(lambda one: _crop(luma, chroma, one, crop_size))(box)


def _crop(luma: jax.Array, chroma: jax.Array, box: jax.Array, crop_size: tuple[int, int]) -> jax.Array:
    """bfloat16[H, T, W], bfloat16[H / 2, T, W], int32[4] -> uint8[T, h, w, 3]."""
    height, _, width = luma.shape
    vertical, horizontal = _weights(box, (height, width), crop_size)
    y = _transform(luma, _product(vertical, _basis(height)), _product(horizontal, _basis(width)))  # (h, T, w)
    chroma_rows, columns = _product(vertical, _chroma_basis(height)), _product(horizontal, _chroma_basis(width))
    cb_cr = _transform(chroma, chroma_rows, jax.scipy.linalg.block_diag(columns, columns))  # (h, T, 2 * w)
    cb, cr = jnp.split(cb_cr, 2, axis=-1)
    red, green, blue = y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb  # (h, T, w) each; JFIF
    # Coefficients are of pixels - 128, as in JPEG.
    colours = [jnp.clip(jnp.round(one + 128), 0, 255).astype(jnp.uint8) for one in (red, green, blue)]
    return jnp.moveaxis(jnp.stack(colours, axis=-1), 0, 1)  # (T, h, w, 3)


def _spread(steps: jax.Array, num_rows: int, num_columns: int) -> jax.Array:
    """uint8[8, 8] -> uint8[n, m]: the quantisation step of every coefficient of a plane."""
    return jnp.repeat(jnp.repeat(steps, num_rows // 8, axis=0), num_columns // 8, axis=1)


def _dequantise(coefficients: jax.Array, steps: jax.Array) -> jax.Array:
    """int8[T, n, m], uint8[n, m] -> bfloat16[n, T, m].

    Rows come before frames, so that no transposition is needed between the two products of `_transform`.
    """
    return jnp.moveaxis(coefficients.astype(jnp.bfloat16), 0, 1) * steps[:, None].astype(jnp.bfloat16)


def _transform(coefficients: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """bfloat16[n, T, m], bfloat16[h, n], bfloat16[w, m] -> an image of each frame, around 0, float32[h, T, w]."""
    of_columns = jnp.einsum("ntm,wm->ntw", coefficients, columns)
    image = jnp.einsum("hn,ntw->htw", rows, of_columns, preferred_element_type=jnp.float32)
    # As int8, an image takes a quarter of float32's memory traffic.
    return jnp.clip(jnp.round(image), -128, 127).astype(jnp.int8).astype(jnp.float32)


def _product(weights: jax.Array, basis: np.ndarray) -> jax.Array:
    """float32[h, n], float32[n, k] -> bfloat16[h, k]."""
    return jnp.matmul(weights.astype(jnp.bfloat16), basis.astype(jnp.bfloat16))


@functools.cache
def _basis(length: int) -> np.ndarray:
    """The orthonormal inverse DCT of blocks of 8 along an axis: float32[n, n], rows pixels, columns (frequency, block).

    A plane of pixels is _basis(n) @ coefficients @ _basis(m).T.
    """
    pixel, frequency = np.mgrid[:8, :8]
    block = np.cos((2 * pixel + 1) * frequency * np.pi / 16) * np.where(frequency == 0, np.sqrt(1 / 8), 1 / 2)
    matrix = np.zeros((length // 8, 8, 8, length // 8), np.float32)  # (block, pixel, frequency, block)
    for index in range(length // 8):
        matrix[index, :, :, index] = block
    return matrix.reshape(length, length)  # (n, n)


@functools.cache
def _chroma_basis(length: int) -> np.ndarray:
    """The same for chroma, up to the pixels it is interpolated to: float32[n, n / 2]."""
    return _upsampling(length) @ _basis(length // 2)


def _weights(box: jax.Array, frame_size: tuple[int, int], crop_size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Each row and column of a crop as a mean of the frame's: weights f32[h, H] and f32[w, W]; their rows sum to 1."""
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


def _upsampling(length: int) -> np.ndarray:
    """float32[n, n / 2]: libjpeg's triangle filter, 3/4 of the nearer and 1/4 of the farther sample."""
    pixel, sample = np.arange(length)[:, None], np.arange(length // 2)[None]
    nearer, farther = pixel // 2, np.clip(pixel // 2 + np.where(pixel % 2, 1, -1), 0, length // 2 - 1)
    return (0.75 * (sample == nearer) + 0.25 * (sample == farther)).astype(np.float32)


def motion_energy(tokens: jax.Array, grid: tuple[int, int, int], tubelet_size: tuple[int, int, int]) -> jax.Array:
    """As `data.motion.motion_energy`, of a clip cut into tokens by `patchify`: uint8[..., N, P] -> float32[..., N]."""
    if grid[0] * tubelet_size[0] == 1:
        return jnp.zeros(tokens.shape[:-1], jnp.float32)
    frames = jnp.split(tokens, tubelet_size[0], axis=-1)  # t of (..., N, h * w * 3)
    per_frame = grid[1] * grid[2]
    # The first frame has no predecessor. The second frame takes that place: the difference is the same.
    second = frames[1] if len(frames) > 1 else tokens[..., per_frame:, :]
    before = jnp.concatenate([second[..., :per_frame, :], frames[-1][..., :-per_frame, :]], axis=-2)
    # All terms have one shape, so that a GPU's compiler computes the sum in one pass over the tokens.
    energies = (_squared_distance(later, earlier) for earlier, later in itertools.pairwise([before, *frames]))
    return jnp.sqrt(sum(energies))  # (..., N)


def _squared_distance(first: jax.Array, second: jax.Array) -> jax.Array:
    """uint8[..., P] twice -> float32[...]."""
    return jnp.square(first.astype(jnp.float32) - second.astype(jnp.float32)).sum(axis=-1)
