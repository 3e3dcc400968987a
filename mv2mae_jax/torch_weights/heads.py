"""What the decoders' heads predict: this project's `pixels` are ImageNet-normalised, VideoMAE's lie in [0, 1].

A head is linear, so one becomes the other by a scale and an offset of each colour channel. The loss that transformers'
VideoMAEForPreTraining computes with `norm_pix_loss=False`, and VideoMAE's own with `--normlize_target False`, compares
with pixels in [0, 1]. Normalised patches (`normalized_pixels`) are the same everywhere.
"""

import numpy as np

from mv2mae_jax.models import tubelets
from mv2mae_jax.torch_weights.names import Arrays

HEADS = ("decoder.head", "cross_decoder.head")


def to_unit_pixels(state: Arrays) -> Arrays:
    """VideoMAE's state dict whose heads predict ImageNet-normalised pixels -> one whose heads predict [0, 1]."""
    return _rescaled(state, tubelets.IMAGENET_STD, tubelets.IMAGENET_MEAN)


def from_unit_pixels(state: Arrays) -> Arrays:
    """Undoes `to_unit_pixels`, except for rounding."""
    return _rescaled(state, 1 / np.float64(tubelets.IMAGENET_STD), -tubelets.IMAGENET_MEAN / tubelets.IMAGENET_STD)


def _rescaled(state: Arrays, scale: np.ndarray, offset: np.ndarray) -> Arrays:
    """prediction -> scale * prediction + offset, of each channel; the rows of a head are (t, h, w, c)."""
    changed = {}
    for head in HEADS:
        weight, bias = state.get(f"{head}.weight"), state.get(f"{head}.bias")
        if weight is not None and len(weight) % 3 == 0:
            rows = np.tile(np.float64(scale), len(weight) // 3)  # (P,)
            changed[f"{head}.weight"] = (rows[:, None] * weight).astype(np.float32)  # (P, D)
        if bias is not None and len(bias) % 3 == 0:
            num_pixels = len(bias) // 3
            rescaled = np.tile(np.float64(scale), num_pixels) * bias + np.tile(np.float64(offset), num_pixels)
            changed[f"{head}.bias"] = rescaled.astype(np.float32)  # (P,)
    return state | changed
