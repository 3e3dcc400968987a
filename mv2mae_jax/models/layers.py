"""The parts of VideoMAE's vision transformer: layers, blocks, stacks of blocks.

Follows MCG-NJU/VideoMAE `modeling_finetune.py` (pre-norm blocks, q and v biases but no k bias, exact GELU) and, for the
block with cross-attention, the names of naver/croco `models/blocks.py`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mv2mae_jax.distributed import sharding
from mv2mae_jax.models.compute import Compute
from mv2mae_jax.models.kernels.attention import attend
from mv2mae_jax.models.kernels.dense import product_2d, product_from_heads, product_to_heads
from mv2mae_jax.models.kernels.gelu import gelu
from mv2mae_jax.models.kernels.norms import Normed, layer_norm, normalize

REMAT_POLICIES: dict[str, Callable | None] = {
    "block": None,  # only the input of each block is kept
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # that, and the outputs of its dense layers
}

# VideoMAE's initialisation: Xavier for the dense layers inside encoder and decoders; PyTorch's default, uniform within
# +-1/sqrt(fan_in), for the patch embedding and the projection to the decoder; a normal cut at 1 std for the mask token.
xavier_uniform = nn.initializers.xavier_uniform()
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
mask_token_init = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)


class Dense(nn.Module):
    """A dense layer: [..., D_in] -> [..., features]."""

    features: int
    use_bias: bool = True
    compute: Compute = Compute()
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
        """x [..., D_in], kernel [D_in, features] and bias [features] or None, in the dtype of the computation.

        With `use_bias`, the bias is the layer's parameter. Otherwise it is the given one, float32[features] or None.
        """
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
        if isinstance(x, Normed):
            kernel, bias = x.fold_into(kernel, bias)
            x = x.tokens
        dtype = self.compute.dtype
        kernel, bias = jax.tree.map(lambda weights: sharding.whole(weights.astype(dtype)), (kernel, bias))
        return x.astype(dtype), kernel, bias


class LayerNorm(nn.Module):
    """LayerNorm with eps 1e-6 over the last axis, [..., D] -> [..., D]; computed in float32.

    `before_dense`: only dense layers read the output, so scale and bias may be folded into their weights.
    """

    compute: Compute = Compute()
    before_dense: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array | Normed:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        if self.before_dense and self.compute.norm_affine == "folded":
            return Normed(normalize(x, self.compute.dtype), scale, bias)
        return layer_norm(x, scale, bias, self.compute.dtype)


class ToHeads(Dense):
    """A dense layer that cuts its features into heads: [B, N, D_in] -> [B, heads, N, features / heads]."""

    num_heads: int = 1

    @nn.compact
    def __call__(self, x: jax.Array | Normed, bias: jax.Array | None = None) -> jax.Array:
        folded = isinstance(x, Normed)
        x, kernel, bias = self.operands(x, bias)
        if self.compute.attention == "per_head":
            y = product_to_heads(x, kernel, self.num_heads)
        else:
            y = product_2d(x, kernel)
            if folded:  # added directly after the product, cuBLAS fuses the two
                y, bias = y + bias, None
            y = y.reshape(*x.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)  # (B, heads, N, head_dim)
        return y if bias is None else y + bias.reshape(self.num_heads, 1, -1)


class FromHeads(Dense):
    """The dense layer after attention: [B, heads, N, head_dim] -> [B, N, features]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        joined = x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)  # (B, N, heads * head_dim)
        joined, kernel, bias = self.operands(joined)
        per_head = self.compute.attention == "per_head"
        y = product_from_heads(x, kernel) if per_head else product_2d(joined, kernel)  # (B, N, features)
        return y + bias


class SelfAttention(nn.Module):
    """[B, N, D] -> [B, N, D]. One fused projection to q, k and v; no bias on k, because the softmax cancels it."""

    num_heads: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array | Normed) -> jax.Array:
        width, compute = x.shape[-1], self.compute
        q_bias, v_bias = (self.param(name, nn.initializers.zeros, (width,)) for name in ("q_bias", "v_bias"))
        to_qkv = ToHeads(3 * width, num_heads=3 * self.num_heads, use_bias=False, compute=compute, name="qkv")
        if isinstance(x, Normed):  # folding the norm adds a bias to q, k and v anyway
            qkv = to_qkv(x, jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]))
            query, key, value = jnp.split(qkv, 3, axis=1)  # (B, heads, N, head_dim)
        else:
            query, key, value = jnp.split(to_qkv(x), 3, axis=1)  # (B, heads, N, head_dim)
            query, value = (
                part + sharding.whole(bias.astype(compute.dtype)).reshape(self.num_heads, 1, -1)  # (heads, 1, head_dim)
                for part, bias in ((query, q_bias), (value, v_bias))
            )
        y = attend(query, key, value, implementation=compute.attention)
        return FromHeads(width, compute=compute, name="proj")(y)


class CrossAttention(nn.Module):
    """Queries from x [B, Nq, D], keys and values from source [B, Nk, D] -> [B, Nq, D]. No bias on k here either."""

    num_heads: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array | Normed, source: jax.Array | Normed) -> jax.Array:
        width, heads = x.shape[-1], {"num_heads": self.num_heads, "compute": self.compute}
        query = ToHeads(width, name="projq", **heads)(x)
        key = ToHeads(width, use_bias=False, name="projk", **heads)(source)
        value = ToHeads(width, name="projv", **heads)(source)
        y = attend(query, key, value, implementation=self.compute.attention)
        return FromHeads(width, compute=self.compute, name="proj")(y)


class Mlp(nn.Module):
    """[..., D] -> [..., D]: dense, exact (erf) GELU, dense."""

    hidden: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array | Normed) -> jax.Array:
        hidden = Dense(self.hidden, compute=self.compute, name="fc1")(x)
        return Dense(x.shape[-1], compute=self.compute, name="fc2")(gelu(hidden))


class Block(nn.Module):
    """Pre-norm transformer block, [B, N, D] -> [B, N, D].

    With `cross`, cross-attention to `source` [B, Ns, D] follows self-attention (CroCo's decoder block).
    `drop_path_rate`, float32[] or None for no stochastic depth, drops each residual branch per sample.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    cross: bool = False
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array | None, drop_path_rate: jax.Array | None) -> jax.Array:
        heads = {"num_heads": self.num_heads, "compute": self.compute}
        branch = SelfAttention(name="attn", **heads)(self.norm("norm1")(x))
        x += self.drop_path(branch, drop_path_rate)
        if self.cross:
            branch = CrossAttention(name="cross_attn", **heads)(self.norm("norm2")(x), self.norm("norm_y")(source))
            x += self.drop_path(branch, drop_path_rate)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.compute, name="mlp")
        return x + self.drop_path(mlp(self.norm("norm3" if self.cross else "norm2")(x)), drop_path_rate)

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.compute, before_dense=True, name=name)

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
    compute: Compute,
    drop_path: float = 0.0,
) -> jax.Array:
    """`depth` blocks one after the other, as the submodule `blocks` of the module that calls this.

    Args:
      x: [B, N, D].
      source: [B, Ns, D] for blocks with cross-attention, the same for every block.
      block: makes one block, called with `name` only.
      depth: number of blocks.
      compute: With `scan_layers`, parameters are stacked along a leading layer axis; otherwise they lie under '0', '1',
        ... (`stack_blocks` and `unstack_blocks` convert). A rolled loop compiles one block for all layers. An unrolled
        one compiles each layer, which takes longer, but then what the backward pass needs is not copied into a stack.
      drop_path: stochastic depth rate of the last block, growing linearly from 0 at the first; 0 for none.
    """

    def body(module: Block, x: jax.Array, source: jax.Array | None, rate: jax.Array | None) -> tuple[jax.Array, None]:
        return module(x, source, rate), None

    unroll = compute.layer_loop == "unrolled"
    if compute.remat != "none":
        body = nn.remat(body, policy=REMAT_POLICIES[compute.remat], prevent_cse=unroll or not compute.scan_layers)
    rates = jnp.linspace(0, drop_path, depth) if drop_path else None
    if not compute.scan_layers:
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
