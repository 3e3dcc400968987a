"""MV2MAE: one shared ViT encoder, a self-view decoder and a cross-view decoder (arXiv 2401.15900).

Every view is encoded from its visible tokens alone. The self-view decoder reconstructs a view from its own visible
tokens; the cross-view decoder reconstructs the target view from its own visible tokens and, by cross-attention in every
block, the visible tokens of the source views. Encoder and self-view decoder are VideoMAE's, parameter for parameter.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import config_dict

from console.errors import UserError
from mv2mae_jax.models import layers, tubelets
from mv2mae_jax.models.compute import Compute, Computed
from mv2mae_jax.models.tubelets import Mask


@flax.struct.dataclass
class Reconstruction:
    """Predicted tokens in the space of the target (losses.targets), flattened over (t, h, w, c)."""

    self_target: jax.Array | None = None  # float32[B, Md, P]: target view from itself; None with a joint decoder
    self_source: jax.Array | None = None  # float32[B, S, Md', P]: each source view from itself; None without sources
    cross: jax.Array | None = None  # float32[B, Md, P]: target view from all views, by the cross or joint decoder
    joint_source: jax.Array | None = None  # float32[B, S, Md', P]: each source from all views, by a joint decoder


class Encoder(Computed, nn.Module):
    """ViT over the given tokens of a clip: pixels uint8[B, K, P] and flat positions int32[B, K] -> [B, K, width].

    `final_norm=False` leaves out the last norm. As in VideoMAE's classifier, it is then applied to the pooled tokens.
    """

    num_tokens: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    final_norm: bool = True
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, patches: jax.Array, positions: jax.Array, *, deterministic: bool = True) -> jax.Array:
        x = tubelets.normalize_pixels(patches)
        x = PatchEmbed(self.width, self.compute, name="patch_embed")(x)
        x += position_embedding(self.num_tokens, self.width, positions).astype(self.compute.dtype)
        x = layers.run_blocks(
            x,
            block=lambda name: layers.Block(self.num_heads, self.mlp_ratio, compute=self.compute, name=name),
            depth=self.depth,
            compute=self.compute,
            drop_path=0.0 if deterministic else self.drop_path,
        )
        return layers.LayerNorm(self.compute, name="norm")(x) if self.final_norm else x


class PatchEmbed(nn.Module):
    """Linear projection of flattened tubelets [B, K, P] -> [B, K, width]; VideoMAE's Conv3d of stride = kernel."""

    width: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        limit = patches.shape[-1] ** -0.5  # PyTorch's default for a convolution's bias

        def bias_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -limit, limit)

        return layers.Dense(
            self.width, compute=self.compute, kernel_init=layers.torch_default, bias_init=bias_init, name="proj"
        )(patches)


class Decoder(nn.Module):
    """Predicts tokens of a view from its visible ones and, with `cross`, from the visible tokens of the source views.

    The input is [visible tokens, mask tokens], each with the embedding of its position. Only the outputs at the mask
    tokens are predictions (VideoMAE `modeling_pretrain.py`).
    """

    num_tokens: int
    patch_dim: int
    width: int
    depth: int
    num_heads: int
    cross: bool = False
    mlp_ratio: float = 4.0
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        latents: jax.Array,
        visible: jax.Array,
        decoded: jax.Array,
        source_latents: jax.Array | None = None,
        source_visible: jax.Array | None = None,
    ) -> jax.Array:
        """Latents [B, Nv, D] at `visible` int32[B, Nv] -> float32[B, Md, P] at `decoded` int32[B, Md].

        With `cross`, also source_latents [B, Ns, D] at `source_visible` int32[B, Ns].
        """
        project = layers.Dense(
            self.width,
            use_bias=False,
            compute=self.compute,
            kernel_init=layers.torch_default,
            name="encoder_to_decoder",
        )
        mask_token = self.param("mask_token", layers.mask_token_init, (1, 1, self.width)).astype(self.compute.dtype)

        x_visible = project(latents) + self._positions(visible)  # (B, Nv, Dd)
        x_masked = mask_token + self._positions(decoded)  # (B, Md, Dd)
        source = project(source_latents) + self._positions(source_visible) if self.cross else None  # (B, Ns, Dd)
        x = layers.run_blocks(
            jnp.concatenate([x_visible, x_masked], axis=1),
            source,
            block=lambda name: layers.Block(self.num_heads, self.mlp_ratio, self.cross, self.compute, name=name),
            depth=self.depth,
            compute=self.compute,
        )
        x = layers.LayerNorm(self.compute, before_dense=True, name="norm")(x[:, visible.shape[1] :])
        x = layers.Dense(self.patch_dim, compute=self.compute, name="head")(x)
        if not self.cross:
            # Keeps XLA from fusing the split into views with this product. For v6e, libtpu 0.0.52 aborts on that fusion
            # (benchmarks/results/NOTES_tpu.md).
            x = jax.lax.optimization_barrier(x)
        return x.astype(jnp.float32)

    def _positions(self, positions: jax.Array) -> jax.Array:
        return position_embedding(self.num_tokens, self.width, positions).astype(self.compute.dtype)


class MV2MAE(Computed, nn.Module):
    """The pre-training model. `variants.build` makes one by the name of a variant and checks its sizes.

    Attributes:
      clip_size: (frames, height, width) of a clip in pixels.
      tubelet_size: (frames, height, width) of one token in pixels.
      width, depth, num_heads: of the encoder; mlp_ratio: hidden over model width, everywhere.
      decoder_width, decoder_depth, decoder_heads: of each of the two decoders.
      final_norm: False leaves out the encoder's last norm, as fine-tuning does.
      cross_view: False leaves out the cross-view decoder and its parameters (the single-view baseline, VideoMAE).
      backbone: class of the encoder, with the fields of `Encoder`.
      compute: dtype, attention, recomputation; the same for encoder and decoders.
    """

    clip_size: tuple[int, int, int]
    tubelet_size: tuple[int, int, int]
    width: int
    depth: int
    num_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float = 4.0
    final_norm: bool = True
    cross_view: bool = True
    backbone: type[nn.Module] = Encoder
    compute: Compute = Compute()

    @classmethod
    def fields_from_config(cls, config: config_dict.ConfigDict) -> dict[str, Any]:
        """The fields besides the sizes that a config sets. Configs of fine-tuning and probes have no decoders."""
        return {"cross_view": config.model.get("cross_view", False)}

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (time, height, width)."""
        return tubelets.token_grid(self.clip_size, self.tubelet_size)

    @property
    def num_tokens(self) -> int:
        """N, tokens of one clip."""
        return math.prod(self.grid)

    @property
    def patch_dim(self) -> int:
        """P = t * h * w * 3, values of one token."""
        return math.prod(self.tubelet_size) * 3

    def setup(self):
        self.encoder = self.make_encoder(final_norm=self.final_norm)
        self.set_up_decoders()

    @nn.nowrap
    def make_encoder(self, **fields: Any) -> nn.Module:
        """An encoder of the model's sizes; `fields` sets further fields. Also works on a model that is not bound."""
        sizes = {"width": self.width, "depth": self.depth, "num_heads": self.num_heads}
        return self.backbone(**sizes, **self._shared_fields(), **fields)

    def set_up_decoders(self) -> None:
        """The part of `setup` that a subclass with other decoders overrides."""
        self.decoder = self.make_decoder()
        if self.cross_view:
            self.cross_decoder = self.make_decoder(cross=True)

    def make_decoder(self, **fields: Any) -> Decoder:
        """A decoder of the model's sizes; `fields` overrides fields of the decoder."""
        sizes = {"width": self.decoder_width, "depth": self.decoder_depth, "num_heads": self.decoder_heads}
        return Decoder(**{"patch_dim": self.patch_dim, **sizes, **self._shared_fields(), **fields})

    @nn.nowrap
    def _shared_fields(self) -> dict[str, Any]:
        return {"num_tokens": self.num_tokens, "mlp_ratio": self.mlp_ratio, "compute": self.compute}

    def __call__(
        self,
        video: jax.Array,
        target_mask: Mask,
        source_mask: Mask | None = None,
        decoded_target: jax.Array | None = None,
        decoded_source: jax.Array | None = None,
    ) -> Reconstruction:
        """`reconstruct` for clips uint8[B, V, T, H, W, 3], RGB; view 0 is the target, the S = V - 1 others are sources.

        Raises:
          ValueError: shapes that do not fit, or cross_view without a source view.
        """
        return self.reconstruct(self.patchify(video), target_mask, source_mask, decoded_target, decoded_source)

    def reconstruct(
        self,
        patches: jax.Array,
        target_mask: Mask,
        source_mask: Mask | None = None,
        decoded_target: jax.Array | None = None,
        decoded_source: jax.Array | None = None,
    ) -> Reconstruction:
        """Reconstructs masked tokens of every view.

        Args:
          patches: uint8[B, V, N, P], from `patchify`.
          target_mask: of int32[B, ...]; source_mask: of int32[B, S, ...], None without source views.
          decoded_target: int32[B, Md], decoded_source: int32[B, S, Md']: masked tokens to predict; None for all.

        Raises:
          ValueError: shapes that do not fit, or cross_view without a source view.
        """
        decoded_target = target_mask.masked if decoded_target is None else decoded_target
        if source_mask is not None and decoded_source is None:
            decoded_source = source_mask.masked
        latents = self.encode_views(patches, target_mask, source_mask)
        return self.decode_views(*latents, target_mask, source_mask, decoded_target, decoded_source)

    def patchify(self, video: jax.Array) -> jax.Array:
        """Clips uint8[..., T, H, W, 3] -> tokens uint8[..., N, P]. Raises ValueError for another shape or dtype."""
        if video.shape[-4:] != (*self.clip_size, 3) or video.dtype != jnp.uint8:
            raise UserError(
                f"The encoder takes uint8 clips of shape (B, {', '.join(map(str, self.clip_size))}, 3), got "
                f"{video.dtype}{list(video.shape)}. Crop clips to clip_size; pixels are normalised inside the model."
            )
        return tubelets.patchify(video, self.tubelet_size)

    def encode(self, video: jax.Array, visible: jax.Array) -> jax.Array:
        """uint8[B, T, H, W, 3], int32[B, Nv] -> latents [B, Nv, width]. Masked tokens never enter a product."""
        return self.encode_patches(self.patchify(video), visible)

    def encode_patches(self, patches: jax.Array, visible: jax.Array) -> jax.Array:
        """`encode` of a clip that is already cut: uint8[B, N, P], int32[B, Nv] -> latents [B, Nv, width]."""
        return self.encoder(tubelets.gather_tokens(patches, visible), visible)

    def encode_views(
        self, patches: jax.Array, target_mask: Mask, source_mask: Mask | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """uint8[B, V, N, P] -> latents of visible tokens: target [B, Nv, width], sources [B, S, Ns, width] or None."""
        self._check_views(patches, source_mask)
        if source_mask is None:
            return self.encode_patches(patches[:, 0], target_mask.visible), None
        target, sources = (patches[:, 0], target_mask.visible), (patches[:, 1:], source_mask.visible)
        return self._per_view(self.encode_patches, target, sources)

    def encode_sources(self, patches: jax.Array, source_mask: Mask) -> jax.Array:
        """uint8[B, S, N, P] -> latents of the visible tokens [B, S, Ns, width]."""
        return self._each_view(self.encode_patches, (patches, source_mask.visible))

    def decode_views(
        self,
        target_latents: jax.Array,
        source_latents: jax.Array | None,
        target_mask: Mask,
        source_mask: Mask | None,
        decoded_target: jax.Array,
        decoded_source: jax.Array | None,
    ) -> Reconstruction:
        """Decodes the latents that `encode_views` returns. Other arguments as in `reconstruct`."""
        if source_mask is None:
            return Reconstruction(self_target=self.decode_self(target_latents, target_mask.visible, decoded_target))
        self_target, self_source = self._per_view(
            self.decode_self,
            (target_latents, target_mask.visible, decoded_target),
            (source_latents, source_mask.visible, decoded_source),
        )
        cross = None
        if self.cross_view:
            cross = self.decode_cross(
                target_latents, target_mask.visible, decoded_target, source_latents, source_mask.visible
            )
        return Reconstruction(self_target=self_target, self_source=self_source, cross=cross)

    def decode_target(
        self,
        target_latents: jax.Array,
        source_latents: jax.Array,
        target_mask: Mask,
        source_mask: Mask,
        decoded_target: jax.Array,
        decoded_source: jax.Array,
    ) -> jax.Array:
        """Predicts only the target, from its own tokens and the sources': float32[B, Md, P]. See `decode_views`."""
        del decoded_source  # only a joint decoder reads it
        return self.decode_cross(
            target_latents, target_mask.visible, decoded_target, source_latents, source_mask.visible
        )

    def decode_self(self, latents: jax.Array, visible: jax.Array, decoded: jax.Array) -> jax.Array:
        """[B, Nv, width], int32[B, Nv], int32[B, Md] -> float32[B, Md, P], from the view's own visible tokens."""
        return self.decoder(latents, visible, decoded)

    def decode_cross(
        self,
        target_latents: jax.Array,
        target_visible: jax.Array,
        decoded: jax.Array,
        source_latents: jax.Array,
        source_visible: jax.Array,
    ) -> jax.Array:
        """Target [B, Nv, width] at int32[B, Nv], sources [B, S, Ns, width] at int32[B, S, Ns] -> float32[B, Md, P].

        The tokens of all source views form one sequence. Nothing but its content tells which view a token is from.
        """
        batch, num_sources, num_visible, width = source_latents.shape
        source_latents = source_latents.reshape(batch, num_sources * num_visible, width)  # (B, S * Ns, D)
        source_visible = source_visible.reshape(batch, num_sources * num_visible)  # (B, S * Ns)
        return self.cross_decoder(target_latents, target_visible, decoded, source_latents, source_visible)

    def _per_view(self, function: Any, target: tuple[jax.Array, ...], source: tuple[jax.Array, ...]):
        """Applies `function` to target [B, ...] and sources [B, S, ...], in one call if their shapes agree."""
        if all(t.shape[1:] == s.shape[2:] for t, s in zip(target, source, strict=True)):
            views = [jnp.concatenate([t[:, None], s], axis=1) for t, s in zip(target, source, strict=True)]
            y = self._each_view(function, views)  # (B, V, ...)
            return y[:, 0], y[:, 1:]
        of_sources = self._each_view(function, source)
        return function(*target), of_sources

    def _each_view(self, function: Any, views: Sequence[jax.Array]) -> jax.Array:
        """Applies `function`, which maps [B, ...], to arrays [B, V, ...] in one call."""
        batch, num_views = views[0].shape[:2]
        y = function(*(x.reshape(-1, *x.shape[2:]) for x in views))  # (B * V, ...)
        return y.reshape(batch, num_views, *y.shape[1:])  # (B, V, ...)

    def _check_views(self, patches: jax.Array, source_mask: Mask | None) -> None:
        num_views = patches.shape[1]
        if self.cross_view and num_views < 2:
            raise UserError(
                f"cross_view=True needs a target and at least one source view, got tokens {list(patches.shape)} of "
                f"{num_views} view. Feed more views per take or build the model with cross_view=False."
            )
        masked_sources = 0 if source_mask is None else source_mask.visible.shape[1]
        if num_views - 1 != masked_sources:
            raise UserError(
                f"a batch of tokens {list(patches.shape)} holds {num_views - 1} source views, source_mask "
                f"{masked_sources}. Draw the source mask with batch_shape=(B, V - 1)."
            )


def position_embedding(num_tokens: int, width: int, positions: jax.Array) -> jax.Array:
    """Rows of the fixed sinusoid table: int32[B, K] -> float32[B, K, width]."""
    return jnp.take(tubelets.sinusoid_table(num_tokens, width), positions, axis=0, mode="clip")
