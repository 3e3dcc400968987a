"""Clips cut into tubelets, the tokens of the model: their order, their split by a mask, their positions, their pixels.

Positions are MCG-NJU/VideoMAE's (`modeling_finetune.py`).
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from console.errors import UserError

# Per-channel statistics of ImageNet's RGB pixels in [0, 1], as VideoMAE uses them.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def token_grid(clip_size: tuple[int, int, int], tubelet_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens along (time, height, width) of a clip of (T, H, W) pixels cut into tubelets of (t, h, w) pixels.

    Raises:
      ValueError: the clip is not divisible by the tubelet.
    """
    for axis, clip, tubelet in zip(("frames", "height", "width"), clip_size, tubelet_size, strict=True):
        if tubelet < 1 or clip < 1 or clip % tubelet:
            raise UserError(
                f"A clip of {tuple(clip_size)} (frames, height, width) cannot be cut into tubelets of "
                f"{tuple(tubelet_size)}: {axis} {clip} is not a multiple of {tubelet}. "
                f"Choose {axis} as a multiple of {tubelet}, or another tubelet size."
            )
    return tuple(clip // tubelet for clip, tubelet in zip(clip_size, tubelet_size, strict=True))


def patchify(video: jax.Array, tubelet_size: tuple[int, int, int]) -> jax.Array:
    """Cuts video [..., T, H, W, C] of any dtype into tokens [..., N, t*h*w*C].

    Tokens are ordered by (time, row, column), the pixels of a token by (t, h, w, c).
    """
    *batch, frames, height, width, channels = video.shape
    t, h, w = tubelet_size
    grid_t, grid_h, grid_w = token_grid((frames, height, width), tubelet_size)
    # The pixels of a row stay together as one axis: a TPU would pad one of three colours to 128 lanes.
    tokens = video.reshape(-1, grid_t, t, grid_h, h, grid_w, w * channels)  # (B, T/t, t, H/h, h, W/w, w * C)
    tokens = tokens.transpose(0, 1, 3, 5, 2, 4, 6)
    return tokens.reshape(*batch, grid_t * grid_h * grid_w, t * h * w * channels)  # (..., N, P)


def unpatchify(tokens: jax.Array, clip_size: tuple[int, int, int], tubelet_size: tuple[int, int, int]) -> jax.Array:
    """Inverse of `patchify`: tokens [..., N, t*h*w*3] -> video [..., T, H, W, 3]. Compiled together, the two cancel."""
    *batch, _, _ = tokens.shape
    t, h, w = tubelet_size
    video = tokens.reshape(-1, *token_grid(clip_size, tubelet_size), t, h, w * 3)  # (B, gt, gh, gw, t, h, w * 3)
    video = video.transpose(0, 1, 4, 2, 5, 3, 6)
    return video.reshape(*batch, *clip_size, 3)  # (..., T, H, W, 3)


@flax.struct.dataclass
class Mask:
    """A split of the N token indices of a clip, flat over (time, row, column). Both parts ascend."""

    visible: jax.Array  # int32[..., N_visible]
    masked: jax.Array  # int32[..., N_masked]


def gather_tokens(tokens: jax.Array, indices: jax.Array) -> jax.Array:
    """tokens [..., N, P], indices int32[..., K] -> [..., K, P]. Leading axes must agree."""
    return jnp.take_along_axis(tokens, indices[..., None], axis=-2, mode="clip")


def normalize_pixels(patches: jax.Array) -> jax.Array:
    """uint8[..., P] in [0, 255], channels innermost -> float32[..., P], ImageNet-normalised."""
    tubelet_pixels = patches.shape[-1] // 3
    scale = np.tile(1 / (255 * IMAGENET_STD), tubelet_pixels)
    offset = np.tile(IMAGENET_MEAN / IMAGENET_STD, tubelet_pixels)
    return patches.astype(jnp.float32) * scale - offset


def denormalize_pixels(pixels: jax.Array) -> jax.Array:
    """ImageNet-normalised float[..., P] -> pixels float32[..., P], nominally in [0, 1], not clipped."""
    tubelet_pixels = pixels.shape[-1] // 3
    return pixels.astype(jnp.float32) * np.tile(IMAGENET_STD, tubelet_pixels) + np.tile(IMAGENET_MEAN, tubelet_pixels)


def sinusoid_table(num_positions: int, width: int) -> np.ndarray:
    """float32[num_positions, width]: angle pos / 10000^(2*(j//2)/width), sine on even j, cosine on odd j (VideoMAE)."""
    channel = np.arange(width)
    angle = np.arange(num_positions)[:, None] / np.power(10000.0, 2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)
