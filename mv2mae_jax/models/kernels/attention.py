"""Attention of queries, keys and values that the layers have projected, in forms that suit a CPU, a GPU and a TPU."""

import jax
import jax.numpy as jnp

# Attention weights in all, up to which nothing is cut into chunks (8 MB in float32), and those of one chunk of heads
# (2 MB, about a core's second-level cache) [ours].
WHOLE, CHUNK = 2**21, 2**19


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, implementation: str) -> jax.Array:
    """Attention of every head: query [B, heads, Nq, head_dim], key and value [B, heads, Nk, head_dim] -> query's shape.

    The softmax is in float32. 'cudnn' is that of `jax.nn.dot_product_attention`. The others write the products with one
    batch axis: on XLA's CPU backend, forward and backward are 1.1 to 1.5 times as fast as JAX's, which has two
    (benchmarks/attention.py). 'chunked' goes through the heads in chunks, see `_attend_in_chunks`.
    """
    if implementation == "cudnn":
        return _attend_by_cudnn(*(x.transpose(0, 2, 1, 3) for x in (query, key, value))).transpose(0, 2, 1, 3)
    inputs = [x.reshape(-1, *x.shape[2:]) for x in (query * query.shape[-1] ** -0.5, key, value)]  # (B * heads, N, ...)
    y = (_attend_in_chunks if implementation == "chunked" else _attend_scaled)(*inputs)
    return y.reshape(query.shape)  # (B, heads, Nq, head_dim)


def _attend_scaled(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """As `attend`, of scaled queries [..., Nq, head_dim], keys and values [..., Nk, head_dim]."""
    logits = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, value)


def _attend_in_chunks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """As `_attend_scaled`, some heads at a time, whose weights are made again for the backward pass.

    The weights of a few heads fit a processor's cache. Those of all heads would be written to memory and read back.
    That costs more than making them again if they are as many as a decoder's, and less if they are as few as the
    encoder's (benchmarks/results/NOTES_speed.md).
    """
    num_heads, num_weights = query.shape[0], query.shape[1] * key.shape[1]
    if num_heads * num_weights <= WHOLE:
        return _attend_scaled(query, key, value)
    num_chunks = -(-num_heads // max(1, CHUNK // num_weights))
    attend_head = jax.checkpoint(_attend_scaled, prevent_cse=False)  # within a loop there is nothing to prevent
    heads_at_once = -(-num_heads // num_chunks)
    batch_size = heads_at_once if heads_at_once > 1 else None  # XLA is three times slower with a batch axis of one
    return jax.lax.map(lambda head: attend_head(*head), (query, key, value), batch_size=batch_size)


def _attend_by_cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """As `attend`, of [B, N, heads, head_dim]. JAX trains it on even numbers of tokens alone: odd ones are padded."""
    batch, num_queries, num_keys = query.shape[0], query.shape[1], key.shape[1]
    lengths = {}
    if num_queries % 2 or num_keys % 2:
        query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
        lengths["query_seq_lengths"] = jnp.full(batch, num_queries)
        lengths["key_value_seq_lengths"] = jnp.full(batch, num_keys)
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **lengths)[:, :num_queries]
