"""Products of tokens and weights, in forms that suit a CPU, a GPU and a TPU."""

import jax
import jax.numpy as jnp


def product_2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D_in] @ kernel [D_in, D_out] as a product of two matrices whatever the rank of x.

    XLA's CPU backend is slower on the same product of a 3-D input and its gradients: up to 1.7 times in float32, not in
    bfloat16, where this was measured (benchmarks/dense_2d.py).
    """
    flat = x.reshape(-1, x.shape[-1])  # (B * N, D_in)
    return (flat @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])  # (..., D_out)


def product_to_heads(x: jax.Array, kernel: jax.Array, num_heads: int) -> jax.Array:
    """x [B, N, D_in] @ kernel [D_in, heads * head_dim] -> [B, heads, N, head_dim], without a transposition.

    For a TPU: by its compiler's estimate the attention of the encoder and of a decoder of ViT-S takes 10.2 and 6.8 ms
    in place of 12.5 and 10.4 (benchmarks/results/NOTES_tpu.md).
    """
    return jnp.einsum("bnd,dhk->bhnk", x, kernel.reshape(x.shape[-1], num_heads, -1))


def product_from_heads(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, heads, N, head_dim], its heads side by side, @ kernel [heads * head_dim, D_out] -> [B, N, D_out]."""
    _, num_heads, _, head_dim = x.shape
    return jnp.einsum("bhnk,hkd->bnd", x, kernel.reshape(num_heads, head_dim, -1))
