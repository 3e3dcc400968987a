"""A joint decoder in place of MV2MAE's two: no view is target or source, one decoder fills in the tokens of all views.

The nearest relative is MuM (arXiv 2511.17309), which masks any number of images of a scene alike, encodes each by
itself and decodes them together. Here it is a baseline for MV2MAE's decoders, with the same encoder and clips.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from console.errors import UserError
from mv2mae_jax.models import mv2mae
from mv2mae_jax.models.tubelets import Mask


class JointMAE(mv2mae.MV2MAE):
    """The shared encoder and one decoder, whose self-attention goes over the tokens of all views.

    The first view of a sample is still called target and the others sources, because their masks may hide different
    shares and the evaluation replaces the latter; the model treats all alike. What tells views apart is the position:
    one sinusoid table over views x tokens, in which token i of view v has row v * N + i.

    Attributes:
      num_views: V, views of a sample.
    """

    cross_view: bool = False
    num_views: int = 2

    @classmethod
    def fields_from_config(cls, config: config_dict.ConfigDict) -> dict[str, Any]:
        """As `MV2MAE.fields_from_config`, with the number of views."""
        return super().fields_from_config(config) | {"num_views": 1 + config.data.num_source_views}

    def set_up_decoders(self) -> None:
        self.joint_decoder = self.make_decoder(num_tokens=self.num_views * self.num_tokens)

    def decode_views(
        self,
        target_latents: jax.Array,
        source_latents: jax.Array,
        target_mask: Mask,
        source_mask: Mask,
        decoded_target: jax.Array,
        decoded_source: jax.Array,
    ) -> mv2mae.Reconstruction:
        """As `MV2MAE.decode_views`; the predictions are `cross` and `joint_source`."""
        prediction = self.decode_joint(
            _side_by_side(target_latents, source_latents),
            _side_by_side(target_mask.visible, self._numbered(source_mask.visible)),
            _side_by_side(decoded_target, self._numbered(decoded_source)),
        )
        num_decoded = decoded_target.shape[1]
        of_sources = prediction[:, num_decoded:].reshape(*decoded_source.shape, -1)  # (B, S, Md', P)
        return mv2mae.Reconstruction(cross=prediction[:, :num_decoded], joint_source=of_sources)

    def decode_target(self, *latents_and_masks: jax.Array | Mask) -> jax.Array:
        """As `MV2MAE.decode_target`."""
        return self.decode_views(*latents_and_masks).cross

    def decode_joint(self, latents: jax.Array, visible: jax.Array, decoded: jax.Array) -> jax.Array:
        """Latents [B, K, width] at `visible` int32[B, K] -> float32[B, M, P] at `decoded` int32[B, M].

        Tokens of all views stand side by side, in any order: positions are rows v * N + i of the table.
        """
        return self.joint_decoder(latents, visible, decoded)

    def _check_views(self, patches: jax.Array, source_mask: Mask | None) -> None:
        super()._check_views(patches, source_mask)
        if patches.shape[1] != self.num_views or source_mask is None:
            raise UserError(
                f"the joint decoder was built for {self.num_views} views, at least 2, got {patches.shape[1]} in tokens "
                f"{list(patches.shape)}. Feed as many views per take, or build the model with that num_views."
            )

    def _numbered(self, positions: jax.Array) -> jax.Array:
        """Positions within each source int32[B, S, K] -> rows of the table over all views."""
        first = self.num_tokens * jnp.arange(1, self.num_views, dtype=positions.dtype)
        return positions + first[:, None]


def _side_by_side(target: jax.Array, sources: jax.Array) -> jax.Array:
    """[B, K, ...] and [B, S, K', ...] -> [B, K + S * K', ...]."""
    sources = sources.reshape(sources.shape[0], -1, *sources.shape[3:])  # (B, S * K', ...)
    return jnp.concatenate([target, sources], axis=1)
