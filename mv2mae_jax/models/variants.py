"""Builds models by name or from a config, and checks that their sizes fit together."""

import dataclasses
from typing import Any, Final

import flax.linen as nn
from ml_collections import config_dict

from console.command import did_you_mean, nearest
from console.errors import UserError
from mv2mae_jax.models import compute, tubelets
from mv2mae_jax.models.joint import JointMAE
from mv2mae_jax.models.mv2mae import MV2MAE, Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Sizes of the encoder and of the decoders that go with it.

    `backbone` is the encoder's class. It has the fields of `Encoder` and the same inputs and outputs. In a checkpoint,
    its parameters are called `encoder`.
    """

    width: int
    depth: int
    num_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    backbone: type[nn.Module] = Encoder


# The paper trains Ti, S and B [paper]. The sizes of its decoders could not be read, so all are [ours]; for S to H
# they are VideoMAE's (widths and heads from its `modeling_pretrain.py`, depths from its Kinetics-400 scripts).
VARIANTS: Final[dict[str, Variant]] = {
    # VideoMAE has no Ti; the decoder is half as wide as S's [ours].
    "Ti": Variant(width=192, depth=12, num_heads=3, decoder_width=96, decoder_depth=4, decoder_heads=3),
    "S": Variant(width=384, depth=12, num_heads=6, decoder_width=192, decoder_depth=4, decoder_heads=3),
    "B": Variant(width=768, depth=12, num_heads=12, decoder_width=384, decoder_depth=4, decoder_heads=6),
    "L": Variant(width=1024, depth=24, num_heads=16, decoder_width=512, decoder_depth=12, decoder_heads=8),
    "H": Variant(width=1280, depth=32, num_heads=16, decoder_width=640, decoder_depth=12, decoder_heads=8),
}

# The values of `model.decoder`: pre-training models that differ in their decoders.
DECODERS: Final[dict[str, type[MV2MAE]]] = {
    "mv2mae": MV2MAE,
    "joint": JointMAE,
}


def build(
    variant: str,
    *,
    clip_size: tuple[int, int, int],
    tubelet_size: tuple[int, int, int],
    decoder: str = "mv2mae",
    **overrides: Any,
) -> MV2MAE:
    """Makes a model from a row of VARIANTS, with a kind of DECODERS; `overrides` replaces or adds fields of its class.

    Raises:
      ValueError: unknown variant or field, or values that do not go together.
    """
    if variant not in VARIANTS:
        raise UserError(f"Unknown model variant {variant!r}. Choose one of {', '.join(VARIANTS)}.")
    if decoder not in DECODERS:
        raise UserError(f"Unknown decoder {decoder!r}. Choose one of {', '.join(DECODERS)}.")
    kind = DECODERS[decoder]
    fields = [field.name for field in dataclasses.fields(kind) if field.name not in ("parent", "name")]
    for name in overrides:
        if name not in fields:
            hint = did_you_mean(nearest(name, fields, 1)) or f" Choose among {', '.join(fields)}."
            raise UserError(f"{kind.__name__} has no field {name!r}.{hint}")
    sizes = vars(VARIANTS[variant]) | overrides
    model = kind(clip_size=tuple(clip_size), tubelet_size=tuple(tubelet_size), **sizes)
    _check_sizes(model)
    _check_attention(model)
    return model


def from_config(config: config_dict.ConfigDict) -> MV2MAE:
    """The model of a config's `model` and `data` sections, with `compute` chosen for the devices at hand."""
    sizes = [field.name for field in dataclasses.fields(Variant)]
    overrides = {name: config.model[name] for name in sizes if config.model.get(name) is not None}
    decoder = config.model.get("decoder", "mv2mae")  # older runs, fine-tuning and probes have no such key
    overrides |= DECODERS[decoder].fields_from_config(config)
    model = build(
        config.model.variant,
        clip_size=(config.data.num_frames, *config.data.crop_size),
        tubelet_size=tuple(config.model.tubelet_size),
        decoder=decoder,
        **overrides,
    )
    model = model.clone(compute=compute.from_config(config, _head_dims(model)))
    _check_attention(model)
    return model


def _head_dims(model: MV2MAE) -> tuple[int, int]:
    return model.width // model.num_heads, model.decoder_width // model.decoder_heads


def _check_sizes(model: MV2MAE) -> None:
    tubelets.token_grid(model.clip_size, model.tubelet_size)
    for part, width, num_heads in (
        ("width=%d and num_heads=%d", model.width, model.num_heads),
        ("decoder_width=%d and decoder_heads=%d", model.decoder_width, model.decoder_heads),
    ):
        if width % num_heads:
            raise UserError(
                f"{part % (width, num_heads)} do not go together: the width must be a multiple of the heads."
            )


def _check_attention(model: MV2MAE) -> None:
    if model.compute.attention == "cudnn" and not compute.cudnn_takes(_head_dims(model)):
        encoder, decoder = _head_dims(model)
        raise UserError(
            f"attention='cudnn' takes heads of 8, 16, ... 128 channels, the encoder's have {encoder} and the decoders' "
            f"{decoder}. Choose widths and numbers of heads for such sizes, or attention='xla'."
        )
