"""The encoder alone on whole clips, nothing masked: its fresh parameters, its tokens, and raw pixels in its place."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from mv2mae_jax.models import mv2mae, tubelets
from mv2mae_jax.models.compute import Compute


def encode(model: mv2mae.MV2MAE, params: Any, patches: jax.Array) -> jax.Array:
    """The encoder's parameters and a clip's patches uint8[B, N, P] -> tokens [B, N, D], in raster order."""
    if isinstance(model, RawPixels):
        return patches / 255
    everything = jnp.broadcast_to(jnp.arange(model.num_tokens), patches.shape[:2])
    return model.apply({"params": {"encoder": params}}, patches, everything, method="encode_patches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawPixels:
    """Replaces an `MV2MAE` of these sizes: the tokens of a clip are its own pixels. A baseline for every encoder."""

    clip_size: tuple[int, int, int]
    tubelet_size: tuple[int, int, int]
    depth: int = 0
    num_heads: int = 0
    compute: Compute = dataclasses.field(default_factory=Compute)

    @property
    def grid(self) -> tuple[int, int, int]:
        return tubelets.token_grid(self.clip_size, self.tubelet_size)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def width(self) -> int:
        return 3 * math.prod(self.tubelet_size)

    def patchify(self, video: jax.Array) -> jax.Array:
        """Clips uint8[..., T, H, W, 3] -> uint8[..., N, P]."""
        return tubelets.patchify(video, self.tubelet_size)


def init_encoder(model: mv2mae.MV2MAE, key: jax.Array) -> Any:
    """Fresh float32 parameters of the encoder, for probes of a random initialisation."""
    video = jnp.zeros((1, *model.clip_size, 3), jnp.uint8)
    everything = jnp.arange(model.num_tokens)[None]
    return model.init(key, video, everything, method="encode")["params"]["encoder"]
