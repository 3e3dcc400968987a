"""The encoder with a linear head over the mean of its tokens: what is fine-tuned (VideoMAE `modeling_finetune.py`)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import config_dict

from mv2mae_jax.models import layers, tubelets, variants
from mv2mae_jax.models.compute import Compute


def scaled_normal(scale: float) -> Callable:
    """VideoMAE's initialisation of the head: normal of std 0.02, times `scale`.

    VideoMAE says truncated, but by timm's default that is at +-2, a hundred standard deviations away.
    """
    normal = nn.initializers.normal(0.02)
    return lambda key, shape, dtype=jnp.float32: scale * normal(key, shape, dtype)


class Classifier(nn.Module):
    """Video clip -> class logits: encoder over all tokens, their mean, a fresh norm, a linear head.

    Attributes:
      encoder: of `MV2MAE.make_encoder`, without its last norm. Its parameters are named as in pre-training.
      num_classes: K.
      clip_size: (frames, height, width) in pixels.
      tubelet_size: (frames, height, width) of one token.
      head_init_scale: multiplies the initial weights of the head [ours: VideoMAE's 0.001].
    """

    encoder: nn.Module
    num_classes: int
    clip_size: tuple[int, int, int]
    tubelet_size: tuple[int, int, int]
    head_init_scale: float = 0.001

    @property
    def num_heads(self) -> int:
        """Of the encoder."""
        return self.encoder.num_heads

    @property
    def num_tokens(self) -> int:
        """N, tokens of one clip."""
        return self.encoder.num_tokens

    @property
    def compute(self) -> Compute:
        """How the encoder is computed; the head is in float32."""
        return self.encoder.compute

    def with_compute(self, **changes: Any) -> "Classifier":
        """See `Computed.with_compute`."""
        return self.clone(encoder=self.encoder.with_compute(**changes))

    @nn.compact
    def __call__(self, video: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """uint8[B, T, H, W, 3] -> logits float32[B, K].

        Without `deterministic`, residual branches are dropped (stochastic depth); takes an rng `drop_path`.
        """
        patches = tubelets.patchify(video, self.tubelet_size)  # (B, N, P)
        positions = jnp.broadcast_to(jnp.arange(patches.shape[1], dtype=jnp.int32), patches.shape[:2])  # (B, N)
        tokens = self.encoder(patches, positions, deterministic=deterministic)  # (B, N, D)
        pooled = layers.LayerNorm(name="fc_norm")(tokens.astype(jnp.float32).mean(axis=1))  # (B, D)
        return layers.Dense(self.num_classes, kernel_init=scaled_normal(self.head_init_scale), name="head")(pooled)


def from_config(config: config_dict.ConfigDict, num_classes: int) -> Classifier:
    """The classifier of a config's `model` and `data` sections."""
    model = variants.from_config(config)
    return Classifier(
        encoder=model.make_encoder(final_norm=False, drop_path=config.model.drop_path),
        num_classes=num_classes,
        clip_size=model.clip_size,
        tubelet_size=model.tubelet_size,
        head_init_scale=config.model.head_init_scale,
    )
