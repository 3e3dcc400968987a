"""LayerNorm, eps 1e-6: with its gradients written out, or with scale and bias left to the layer that follows."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: Any) -> jax.Array:
    """x [..., D] brought to mean 0 and variance 1, times scale, plus bias (float32[D]) -> [..., D] in `dtype`.

    The gradients are written out, because those that JAX derives cost more traffic. Without them a step of ViT-S takes
    1.09 times as long on a CPU and 1.2 times the memory (benchmarks/results/NOTES_speed.md). By a TPU compiler's
    estimate it takes 38.2 ms with them and 38.7 without (benchmarks/results/NOTES_tpu.md).
    """
    return _layer_norm_forward(x, scale, bias, dtype)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: Any) -> tuple[jax.Array, tuple]:
    wide = x.astype(jnp.float32)
    # Kept for backward; without the barrier they would be computed anew wherever they are used.
    mean, inverse_std = jax.lax.optimization_barrier(_mean_and_inverse_std(wide))
    y = (wide - mean) * inverse_std * scale + bias
    return y.astype(dtype), (x, scale, mean, inverse_std)


def _layer_norm_backward(dtype: Any, kept: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse_std = kept
    dy = dy.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse_std
    dnormed = dy * scale
    dx = dnormed - dnormed.mean(-1, keepdims=True) - normed * (dnormed * normed).mean(-1, keepdims=True)
    leading = tuple(range(x.ndim - 1))
    return (dx * inverse_std).astype(x.dtype), (dy * normed).sum(leading), dy.sum(leading)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@flax.struct.dataclass
class Normed:
    """What a LayerNorm gives before its scale and bias, for a dense layer that takes these into its weights:

    (tokens * scale + bias) @ kernel = tokens @ (scale * kernel) + bias @ kernel. So neither they nor their gradients,
    which are sums over all tokens, cost a pass over the tokens: a step of ViT-B on a GPU is a tenth shorter for it
    (benchmarks/results/NOTES_speed.md), a TPU's is longer by its compiler's estimate (benchmarks/results/NOTES_tpu.md).
    """

    tokens: jax.Array  # [..., D] of mean 0 and variance 1
    scale: jax.Array  # float32[D]
    bias: jax.Array  # float32[D]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens.shape

    def fold_into(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """float32 kernel [D, D_out] and bias [D_out] (None: 0) of a layer on the norm's output -> on `tokens`."""
        shift = jnp.dot(self.bias, kernel, precision="highest")
        return self.scale[:, None] * kernel, shift if bias is None else shift + bias


@functools.partial(jax.checkpoint, static_argnums=(1,))
def normalize(x: jax.Array, dtype: Any) -> jax.Array:
    """x [..., D] brought to mean 0 and variance 1 over the last axis, in `dtype`.

    Only x is kept for backward. A GPU's kernel reads it there anyway, so mean and deviation cost no further pass.
    """
    wide = x.astype(jnp.float32)
    mean, inverse_std = _mean_and_inverse_std(wide)
    return ((wide - mean) * inverse_std).astype(dtype)


def _mean_and_inverse_std(wide: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32[..., D] -> two of float32[..., 1]."""
    mean = wide.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + 1e-6)
