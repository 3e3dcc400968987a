"""transformers' VideoMAEForPreTraining with the cross-view decoder, which that class has no place for.

from transformers import AutoModelForPreTraining
model = AutoModelForPreTraining.from_pretrained(FOLDER, trust_remote_code=True)
"""

from transformers import VideoMAEForPreTraining

from .mv2mae_torch import CrossDecoder


class MV2MAEForPreTraining(VideoMAEForPreTraining):
    """Adds `decode_cross`; all else is VideoMAEForPreTraining, with the eps that the decoder was trained with."""

    def __init__(self, config):
        super().__init__(config)
        self.decoder.norm.eps = config.layer_norm_eps
        self.cross_decoder = CrossDecoder(
            config.hidden_size,
            config.decoder_hidden_size,
            config.decoder_num_hidden_layers,
            config.decoder_num_attention_heads,
            (config.decoder_intermediate_size + 0.5) / config.decoder_hidden_size,  # a ratio, which is rounded down
            3 * config.tubelet_size * config.patch_size**2,
        )

    def decode_cross(self, pixel_values, bool_masked_pos, source_pixel_values, source_bool_masked_pos):
        """The target view's hidden tokens, predicted with the help of other views at the same time.

        Args:
          pixel_values: float[B, T, 3, H, W]; bool_masked_pos: bool[B, N], True where hidden.
          source_pixel_values: float[B, S, T, 3, H, W]; source_bool_masked_pos: bool[B, S, N].

        Returns:
          float[B, M, P] in ascending order of the M hidden tokens, as `logits` of this class.
        """
        batch = len(pixel_values)
        decoder = self.cross_decoder
        target = self._embed(decoder, pixel_values, bool_masked_pos)
        source = self._embed(decoder, source_pixel_values.flatten(0, 1), source_bool_masked_pos.flatten(0, 1))
        hidden = decoder.mask_token + self._positions(bool_masked_pos, target)
        return decoder(target, hidden, source.reshape(batch, -1, source.shape[-1]))

    def _embed(self, decoder, pixel_values, bool_masked_pos):
        """Visible tokens as the decoder takes them: float[B, Nv, D]."""
        latents = self.videomae(pixel_values, bool_masked_pos=bool_masked_pos).last_hidden_state
        return decoder.encoder_to_decoder(latents) + self._positions(~bool_masked_pos, latents)

    def _positions(self, chosen, like):
        """The sinusoids of the chosen tokens of each clip: float[B, K, D]."""
        table = self.position_embeddings.to(device=like.device, dtype=like.dtype).expand(len(chosen), -1, -1)
        return table[chosen].reshape(len(chosen), -1, table.shape[-1])
