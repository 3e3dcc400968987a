"""The parts of VideoMAE's vision transformer: layers, blocks, stacks of blocks.

Follows MCG-NJU/VideoMAE `modeling_finetune.py` (pre-norm blocks, q and v biases but no k bias, exact GELU) and, for the
block with cross-attention, the names of naver/croco `models/blocks.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mv2mae_jax.distributed import sharding
from mv2mae_jax.models.attention import attend

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "block": None,  # only the input of each block is kept
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # and the outputs of its dense layers
}

# VideoMAE's initialisation: Xavier for the dense layers inside encoder and decoders; PyTorch's default, uniform within
# +-1/sqrt(fan_in), for the patch embedding and the projection between encoder and decoder; the mask token cut at 1 std.
xavier_uniform = nn.initializers.xavier_uniform()
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
mask_token_init = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)


@flax.struct.dataclass
class Normed:
    """What a LayerNorm gives before its scale and bias, for a dense layer that takes these into its weights:

    (tokens * scale + bias) @ kernel = tokens @ (scale * kernel) + bias @ kernel. So neither they nor their gradients,
    which are sums over all tokens, cost a pass over the tokens.
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


class Dense(nn.Module):
    """A dense layer: [..., D_in] -> [..., features]."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = xavier_uniform
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array | Normed) -> jax.Array:
        x, kernel, bias = self.operands(x)
        y = product_2d(x, kernel)
        return y if bias is None else y + bias

    def operands(
        self, x: jax.Array | Normed, bias: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """x [..., D_in], kernel [D_in, features] and bias [features] in `dtype`.

        Without `use_bias`, the bias is the one given, float32[features]; None for none.
        """
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
        if isinstance(x, Normed):
            kernel, bias = x.fold_into(kernel, bias)
            x = x.tokens
        kernel, bias = jax.tree.map(lambda weights: sharding.whole(weights.astype(self.dtype)), (kernel, bias))
        return x.astype(self.dtype), kernel, bias


def product_2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D_in] @ kernel [D_in, D_out] as a product of two matrices whatever the rank of x.

    XLA's CPU backend is slower on the same product of a 3-D input and its gradients: up to 1.7 times in float32, not in
    bfloat16, where this was measured (benchmarks/dense_2d.py).
    """
    flat = x.reshape(-1, x.shape[-1])  # (B * N, D_in)
    return (flat @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])  # (..., D_out)


class LayerNorm(nn.Module):
    """LayerNorm with eps 1e-6 over the last axis, [..., D] -> [..., D]; computed in float32, the output in `dtype`.

    `folded` leaves scale and bias to the dense layer that follows. This makes a step of ViT-B on a GPU a tenth shorter
    (docs/speed.md), but a TPU's longer, by its compiler's estimate (benchmarks/results/NOTES_tpu.md).
    """

    dtype: Any = jnp.float32
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array | Normed:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return Normed(normalize(x, self.dtype), scale, bias) if self.folded else layer_norm(x, scale, bias, self.dtype)


@functools.partial(jax.checkpoint, static_argnums=(1,))
def normalize(x: jax.Array, dtype: Any) -> jax.Array:
    """x [..., D] brought to mean 0 and variance 1 over the last axis, in `dtype`.

    Only x is kept for backward: a GPU's kernel that reads it for the gradients makes mean and deviation on the way.
    """
    wide = x.astype(jnp.float32)
    mean, inverse_std = _mean_and_inverse_std(wide)
    return ((wide - mean) * inverse_std).astype(dtype)


def _mean_and_inverse_std(wide: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32[..., D] -> two of float32[..., 1]."""
    mean = wide.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + 1e-6)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: Any) -> jax.Array:
    """x [..., D] brought to mean 0 and variance 1, times scale, plus bias (float32[D]) -> [..., D] in `dtype`.

    The gradients are written out: those that JAX derives take a TPU longer (38.7 ms in place of 38.2 for a step of
    ViT-S, by its compiler's estimate).
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


class ToHeads(Dense):
    """A dense layer that cuts its features into heads: [B, N, D_in] -> [B, heads, N, features / heads].

    With `attention='per_head'` the product itself writes the heads apart, because a transposition takes a TPU longer.
    """

    num_heads: int = 1
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array | Normed, bias: jax.Array | None = None) -> jax.Array:
        folded = isinstance(x, Normed)
        x, kernel, bias = self.operands(x, bias)
        if self.attention == "per_head":
            y = jnp.einsum("bnd,dhk->bhnk", x, kernel.reshape(x.shape[-1], self.num_heads, -1))
        else:
            y = product_2d(x, kernel)
            if folded:  # right after the product, where cuBLAS adds it
                y, bias = y + bias, None
            y = y.reshape(*x.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)  # (B, heads, N, head_dim)
        return y if bias is None else y + bias.reshape(self.num_heads, 1, -1)


class FromHeads(Dense):
    """The dense layer after attention: [B, heads, N, head_dim] -> [B, N, features]; `attention` as in ToHeads."""

    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, num_heads, num_tokens, head_dim = x.shape
        joined = x.transpose(0, 2, 1, 3).reshape(batch, num_tokens, -1)  # (B, N, heads * head_dim)
        joined, kernel, bias = self.operands(joined)
        if self.attention == "per_head":
            y = jnp.einsum("bhnk,hkd->bnd", x, kernel.reshape(num_heads, head_dim, -1))
        else:
            y = product_2d(joined, kernel)  # (B, N, features)
        return y + bias


class SelfAttention(nn.Module):
    """One fused projection to q, k and v; biases on q and v only, because the softmax cancels a bias on k."""

    num_heads: int
    dtype: Any = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array | Normed) -> jax.Array:
        width = x.shape[-1]
        kwargs = {"dtype": self.dtype, "attention": self.attention}
        q_bias, v_bias = (self.param(name, nn.initializers.zeros, (width,)) for name in ("q_bias", "v_bias"))
        to_heads = ToHeads(3 * width, num_heads=3 * self.num_heads, use_bias=False, name="qkv", **kwargs)
        if isinstance(x, Normed):  # has a bias for the product in any case
            qkv = to_heads(x, jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]))
            query, key, value = jnp.split(qkv, 3, axis=1)  # (B, heads, N, head_dim)
        else:
            query, key, value = jnp.split(to_heads(x), 3, axis=1)  # (B, heads, N, head_dim)
            query, value = (
                part + sharding.whole(bias.astype(self.dtype)).reshape(self.num_heads, 1, -1)  # (heads, 1, head_dim)
                for part, bias in ((query, q_bias), (value, v_bias))
            )
        y = attend(query, key, value, implementation=self.attention)
        return FromHeads(width, name="proj", **kwargs)(y)


class CrossAttention(nn.Module):
    """Queries from x [B, Nq, D], keys and values from source [B, Nk, D] -> [B, Nq, D]. No bias on k here either."""

    num_heads: int
    dtype: Any = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array | Normed, source: jax.Array | Normed) -> jax.Array:
        width = x.shape[-1]
        kwargs = {"dtype": self.dtype, "attention": self.attention}
        query = ToHeads(width, num_heads=self.num_heads, name="projq", **kwargs)(x)
        key = ToHeads(width, num_heads=self.num_heads, use_bias=False, name="projk", **kwargs)(source)
        value = ToHeads(width, num_heads=self.num_heads, name="projv", **kwargs)(source)
        y = attend(query, key, value, implementation=self.attention)
        return FromHeads(width, name="proj", **kwargs)(y)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x/2 * (1 + erf(x / sqrt 2)), in float32, the result in the dtype of x; only x is kept for backward.

    `jax.nn.gelu` takes erfc, which is slower (benchmarks/gelu.py); in float32 the two differ by rounding errors.
    """
    wide = x.astype(jnp.float32)
    return (wide / 2 * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


class Mlp(nn.Module):
    """Dense, exact (erf) GELU, dense."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array | Normed) -> jax.Array:
        hidden = Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(gelu(hidden))


class Block(nn.Module):
    """Pre-norm transformer block, [B, N, D] -> [B, N, D].

    With `cross`, cross-attention to `source` [B, Ns, D] stands between self-attention and MLP (CroCo's decoder block).
    `drop_path_rate` (a scalar array, or None for no stochastic depth) drops each residual branch per sample.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    cross: bool = False
    dtype: Any = jnp.float32
    attention: str = "xla"
    folded_norms: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array | None, drop_path_rate: jax.Array | None) -> jax.Array:
        heads = {"num_heads": self.num_heads, "attention": self.attention, "dtype": self.dtype}
        branch = SelfAttention(name="attn", **heads)(self.norm("norm1")(x))
        x += self.drop_path(branch, drop_path_rate)
        if self.cross:
            branch = CrossAttention(name="cross_attn", **heads)(self.norm("norm2")(x), self.norm("norm_y")(source))
            x += self.drop_path(branch, drop_path_rate)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        return x + self.drop_path(mlp(self.norm("norm3" if self.cross else "norm2")(x)), drop_path_rate)

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.dtype, self.folded_norms, name=name)

    def drop_path(self, branch: jax.Array, rate: jax.Array | None) -> jax.Array:
        if rate is None:
            return branch
        keep = jax.random.uniform(self.make_rng("drop_path"), (branch.shape[0], 1, 1)) >= rate
        return jnp.where(keep, branch / (1 - rate), 0).astype(branch.dtype)


class UnrolledBlocks(nn.Module):
    """Blocks '0', '1', ... one after the other."""

    block: Callable[..., Block]
    body: Callable
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array | None, rates: jax.Array | None) -> jax.Array:
        for layer in range(self.depth):
            x, _ = self.body(self.block(name=str(layer)), x, source, None if rates is None else rates[layer])
        return x


def run_blocks(
    x: jax.Array,
    source: jax.Array | None = None,
    *,
    block: Callable[..., Block],
    depth: int,
    scan_layers: bool,
    remat: str,
    unroll: bool = False,
    drop_path: float = 0.0,
) -> jax.Array:
    """`depth` blocks one after the other, as the submodule `blocks` of the module that calls this.

    Args:
      x: [B, N, D].
      source: [B, Ns, D] for blocks with cross-attention, the same for every block.
      block: makes one block, called with `name` only.
      scan_layers: the parameters are stacked along a leading layer axis and the block is compiled once; otherwise they
        lie under '0', '1', ... (`stack_blocks` and `unstack_blocks` convert).
      unroll: of stacked parameters, too, the block is compiled once for each layer: longer, but what is kept for the
        backward pass need not be copied into a stack of all layers.
      remat: a key of REMAT_POLICIES: what is kept of a block for the backward pass.
      drop_path: stochastic depth rate of the last block, growing linearly from 0 at the first; 0 for none.
    """

    def body(module: Block, x: jax.Array, source: jax.Array | None, rate: jax.Array | None) -> tuple[jax.Array, None]:
        return module(x, source, rate), None

    if remat != "none":
        body = nn.remat(body, policy=REMAT_POLICIES[remat], prevent_cse=unroll or not scan_layers)
    rates = jnp.linspace(0, drop_path, depth) if drop_path else None
    if not scan_layers:
        return UnrolledBlocks(block, body, depth, name="blocks")(x, source, rates)
    scanned = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "drop_path": True},
        in_axes=(nn.broadcast, 0),
        length=depth,
        unroll=depth if unroll else 1,
    )
    x, _ = scanned(block(name="blocks"), x, source, rates)
    return x


def stack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of unrolled blocks ('blocks' -> '0', '1', ...) -> of scanned blocks (leaves [depth, ...])."""

    def stack(blocks: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[str(i)] for i in range(len(blocks))))

    return _map_blocks(stack, params)


def unstack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `stack_blocks`."""

    def unstack(blocks: dict[str, Any]) -> dict[str, Any]:
        depth = len(jax.tree.leaves(blocks)[0])
        return {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(depth)}

    return _map_blocks(unstack, params)


def _map_blocks(convert: Callable[[dict], dict], params: dict[str, Any]) -> dict[str, Any]:
    return {
        name: convert(child) if name == "blocks" else _map_blocks(convert, child) if isinstance(child, dict) else child
        for name, child in params.items()
    }
