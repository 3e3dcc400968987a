"""Exact GELU by erf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x/2 * (1 + erf(x / sqrt 2)), in float32, the result in the dtype of x; only x is kept for backward.

    `jax.nn.gelu` takes erfc, which is slower on a CPU (benchmarks/gelu.py) and, by the compiler's estimate, on a TPU
    (benchmarks/results/NOTES_tpu.md). In float32 the two differ by rounding errors.
    """
    wide = x.astype(jnp.float32)
    return (wide / 2 * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)
