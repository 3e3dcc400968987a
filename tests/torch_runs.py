"""What the tests of both ways to PyTorch share."""

import functools

import jax
import numpy as np
import torch

# These tests compile much and compute little.
jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def pixel_values(video: np.ndarray) -> torch.Tensor:
    """uint8[B, T, H, W, 3] -> what transformers' models take, (B, T, 3, H, W)."""
    normalized = (video / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalized.astype(np.float32)).permute(0, 1, 4, 2, 3)
