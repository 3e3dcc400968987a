"""The parts of VideoMAE's vision transformer: tokens and positions, layers, blocks, stacks of blocks.

Follows MCG-NJU/VideoMAE `modeling_finetune.py` (pre-norm blocks, q and v biases but no k bias, exact GELU, sinusoidal
positions) and, for the block with cross-attention, the names of naver/croco `models/blocks.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mv2mae_jax import sharding
from mv2mae_jax.models.attention import attend

# Per-channel statistics of ImageNet's RGB pixels in [0, 1], as VideoMAE uses them.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

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


def token_grid(clip_size: tuple[int, int, int], tubelet_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens along (time, height, width) of a clip of (T, H, W) pixels cut into tubelets of (t, h, w) pixels.

    Raises:
      ValueError: the clip is not divisible by the tubelet.
    """
    for axis, clip, tubelet in zip(("frames", "height", "width"), clip_size, tubelet_size, strict=True):
        if tubelet < 1 or clip < 1 or clip % tubelet:
            raise ValueError(
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


def unpatchify(
    tokens: jax.Array, clip_size: tuple[int, int, int], tubelet_size: tuple[int, int, int], channels: int = 3
) -> jax.Array:
    """Inverse of `patchify`: tokens [..., N, t*h*w*C] -> video [..., T, H, W, C]. Compiled together, the two cancel."""
    *batch, _, _ = tokens.shape
    t, h, w = tubelet_size
    video = tokens.reshape(-1, *token_grid(clip_size, tubelet_size), t, h, w * channels)  # (B, gt, gh, gw, t, h, w * C)
    video = video.transpose(0, 1, 4, 2, 5, 3, 6)
    return video.reshape(*batch, *clip_size, channels)  # (..., T, H, W, C)


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


class Dense(nn.Module):
    """A dense layer: [..., D_in] -> [..., features]."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = xavier_uniform
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = product_2d(x.astype(self.dtype), self.kernel(x.shape[-1]))
        return y + self.bias() if self.use_bias else y

    def kernel(self, num_inputs: int) -> jax.Array:
        """[D_in, features] in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (num_inputs, self.features))
        return sharding.whole(kernel.astype(self.dtype))

    def bias(self) -> jax.Array:
        """[features] in `dtype`."""
        return sharding.whole(self.param("bias", self.bias_init, (self.features,)).astype(self.dtype))


def product_2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D_in] @ kernel [D_in, D_out] as a product of two matrices whatever the rank of x.

    XLA's CPU backend is slower on the same product of a 3-D input and its gradients: up to 1.7 times in float32, not in
    bfloat16, where this was measured (benchmarks/dense_2d.py).
    """
    flat = x.reshape(-1, x.shape[-1])  # (B * N, D_in)
    return (flat @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])  # (..., D_out)


class LayerNorm(nn.Module):
    """LayerNorm with eps 1e-6 over the last axis; statistics and affine map in float32, the output in `dtype`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: Any) -> jax.Array:
    """x [..., D] brought to mean 0 and variance 1, times scale, plus bias (float32[D]) -> [..., D] in `dtype`.

    The gradients are written out because a GPU's compiler reads and writes more for those that JAX derives: 52.0 GB in
    place of 49.2 in a step of ViT-B (docs/speed.md).
    """
    return _layer_norm_forward(x, scale, bias, dtype)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: Any) -> tuple[jax.Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + 1e-6)
    # Kept for backward; without the barrier they would be computed anew wherever they are used.
    mean, inverse_std = jax.lax.optimization_barrier((mean, inverse_std))  # (..., 1)
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

    `attention='per_head'` writes this order by the product itself, where a TPU would spend longer on the transposition.
    """

    num_heads: int = 1
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel = x.astype(self.dtype), self.kernel(x.shape[-1])
        if self.attention == "per_head":
            y = jnp.einsum("bnd,dhk->bhnk", x, kernel.reshape(x.shape[-1], self.num_heads, -1))
        else:
            y = product_2d(x, kernel).reshape(*x.shape[:2], self.num_heads, -1)  # (B, N, heads, head_dim)
            y = y.transpose(0, 2, 1, 3)  # (B, heads, N, head_dim)
        return y + self.bias().reshape(self.num_heads, 1, -1) if self.use_bias else y


class FromHeads(Dense):
    """The dense layer after attention: [B, heads, N, head_dim] -> [B, N, features]; `attention` as in ToHeads."""

    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, num_heads, num_tokens, head_dim = x.shape
        kernel = self.kernel(num_heads * head_dim)
        if self.attention == "per_head":
            y = jnp.einsum("bhnk,hkd->bnd", x, kernel.reshape(num_heads, head_dim, -1))
        else:
            y = product_2d(x.transpose(0, 2, 1, 3).reshape(batch, num_tokens, -1), kernel)  # (B, N, features)
        return y + self.bias() if self.use_bias else y


class SelfAttention(nn.Module):
    """One fused projection to q, k and v; biases on q and v only, because the softmax cancels a bias on k."""

    num_heads: int
    dtype: Any = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kwargs = {"dtype": self.dtype, "attention": self.attention}
        qkv = ToHeads(3 * width, num_heads=3 * self.num_heads, use_bias=False, name="qkv", **kwargs)(x)
        query, key, value = jnp.split(qkv, 3, axis=1)  # (B, heads, N, head_dim)
        q_bias, v_bias = (
            sharding.whole(self.param(name, nn.initializers.zeros, (width,)).astype(self.dtype)).reshape(
                self.num_heads, 1, -1
            )
            for name in ("q_bias", "v_bias")
        )
        y = attend(query + q_bias, key, value + v_bias, implementation=self.attention)
        return FromHeads(width, name="proj", **kwargs)(y)


class CrossAttention(nn.Module):
    """Queries from x [B, Nq, D], keys and values from source [B, Nk, D] -> [B, Nq, D]. No bias on k here either."""

    num_heads: int
    dtype: Any = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:
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
    def __call__(self, x: jax.Array) -> jax.Array:
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

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array | None, drop_path_rate: jax.Array | None) -> jax.Array:
        kwargs = {"dtype": self.dtype}
        heads = {"num_heads": self.num_heads, "attention": self.attention, **kwargs}
        branch = SelfAttention(name="attn", **heads)(LayerNorm(name="norm1", **kwargs)(x))
        x += self.drop_path(branch, drop_path_rate)
        if self.cross:
            source = LayerNorm(name="norm_y", **kwargs)(source)
            branch = CrossAttention(name="cross_attn", **heads)(LayerNorm(name="norm2", **kwargs)(x), source)
            x += self.drop_path(branch, drop_path_rate)
        hidden = int(x.shape[-1] * self.mlp_ratio)
        norm = LayerNorm(name="norm3" if self.cross else "norm2", **kwargs)
        return x + self.drop_path(Mlp(hidden, name="mlp", **kwargs)(norm(x)), drop_path_rate)

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
