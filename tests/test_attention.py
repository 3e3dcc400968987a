"""The implementations of attention, compared with each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2mae_jax.distributed import chips
from mv2mae_jax.models.kernels import attention


def attention_and_gradients(implementation, num_queries, num_keys, dtype):
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.standard_normal((2, 3, n, 16)), dtype) for n in (num_queries, num_keys, num_keys)]
    cotangent = jnp.asarray(rng.standard_normal(inputs[0].shape), dtype)
    y, pullback = jax.vjp(functools.partial(attention.attend, implementation=implementation), *inputs)
    return [np.asarray(array, np.float32) for array in (y, *pullback(cotangent))]


@pytest.mark.parametrize("weights_at_once", [1, 40, 2 * 42, 4 * 42, 6 * 42])  # a head has 42, and there are six
def test_chunks_of_heads_change_no_number(weights_at_once, monkeypatch):
    monkeypatch.setattr(attention, "WHOLE", 0)
    monkeypatch.setattr(attention, "CHUNK", weights_at_once)
    actual = attention_and_gradients("chunked", 7, 6, jnp.float32)
    expected = attention_and_gradients("xla", 7, 6, jnp.float32)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_large_weights_of_all_heads_are_never_held_at_once_and_small_ones_are_not_made_again(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 2 * 64 * 64)

    def temporary_bytes(implementation):
        inputs = [jnp.zeros((2, 6, 64, 8)) for _ in range(3)]
        attend = functools.partial(attention.attend, implementation=implementation)
        compiled = jax.jit(lambda *x: jax.vjp(attend, *x)[1](x[0])).lower(*inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    num_weights = 12 * 64 * 64  # of all heads
    monkeypatch.setattr(attention, "WHOLE", num_weights - 1)
    assert temporary_bytes("chunked") < 4 * num_weights < temporary_bytes("xla")
    monkeypatch.setattr(attention, "WHOLE", num_weights)
    assert temporary_bytes("chunked") == temporary_bytes("xla")


@pytest.mark.parametrize(("num_queries", "num_keys"), [(8, 6), (7, 6), (8, 5), (7, 7)])
def test_tokens_added_for_cudnn_change_nothing(num_queries, num_keys, monkeypatch):
    def stand_in(query, key, value, *, implementation, **lengths):
        assert implementation == "cudnn" and query.shape[1] % 2 == key.shape[1] % 2 == 0
        return jax_attention(query, key, value, implementation="xla", **lengths)

    jax_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    actual = attention_and_gradients("cudnn", num_queries, num_keys, jnp.float32)
    expected = attention_and_gradients("xla", num_queries, num_keys, jnp.float32)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.skipif(not chips.has_fused_attention(jax.devices()[0]), reason="needs a GPU with cuDNN's attention")
@pytest.mark.parametrize(("num_queries", "num_keys"), [(8, 6), (7, 6), (8, 5), (7, 7), (157, 157), (1568, 157)])
def test_cudnn_attends_as_written_out(num_queries, num_keys):
    actual = attention_and_gradients("cudnn", num_queries, num_keys, jnp.bfloat16)
    expected = attention_and_gradients("xla", num_queries, num_keys, jnp.float32)
    for ours, theirs in zip(actual, expected, strict=True):
        assert np.linalg.norm(ours - theirs) < 2e-2 * np.linalg.norm(theirs)
