"""Models by name or from a config: sizes, what `auto` means on the devices at hand, and checks."""

import dataclasses
import difflib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from console.errors import UserError
from mv2mae_jax.distributed import chips
from mv2mae_jax.models import layers, tubelets
from mv2mae_jax.models.joint import JointMAE
from mv2mae_jax.models.mv2mae import MV2MAE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Sizes of the encoder and of the decoders that go with it."""

    width: int
    depth: int
    num_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


# The paper trains Ti, S and B [paper]. The sizes of its decoders could not be read, so all are [ours]; for S to H
# they are VideoMAE's (widths and heads from its `modeling_pretrain.py`, depths from its Kinetics-400 scripts).
VARIANTS: dict[str, Variant] = {
    # VideoMAE has no Ti; the decoder is half as wide as S's [ours].
    "Ti": Variant(width=192, depth=12, num_heads=3, decoder_width=96, decoder_depth=4, decoder_heads=3),
    "S": Variant(width=384, depth=12, num_heads=6, decoder_width=192, decoder_depth=4, decoder_heads=3),
    "B": Variant(width=768, depth=12, num_heads=12, decoder_width=384, decoder_depth=4, decoder_heads=6),
    "L": Variant(width=1024, depth=24, num_heads=16, decoder_width=512, decoder_depth=12, decoder_heads=8),
    "H": Variant(width=1280, depth=32, num_heads=16, decoder_width=640, decoder_depth=12, decoder_heads=8),
}

DECODERS = {"mv2mae": MV2MAE, "joint": JointMAE}
ATTENTION = ("xla", "chunked", "cudnn", "per_head")  # attention.attend, layers.ToHeads


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
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Choose among {', '.join(fields)}."
            raise UserError(f"{kind.__name__} has no field {name!r}. {hint}")
    sizes = dataclasses.asdict(VARIANTS[variant]) | overrides
    model = kind(clip_size=tuple(clip_size), tubelet_size=tuple(tubelet_size), **sizes)
    _check_sizes(model)
    return model


def from_config(config: config_dict.ConfigDict) -> MV2MAE:
    """The model of a config's `model` and `data` sections, with `auto` settled for the backend at hand."""
    fused = chips.has_fused_attention(jax.devices()[0])
    settled = settle_auto(config, jax.default_backend(), fused_attention=fused, one_device=jax.device_count() == 1)
    sizes = [field.name for field in dataclasses.fields(Variant)]
    overrides = {name: config.model[name] for name in sizes if config.model.get(name) is not None}
    decoder = config.model.get("decoder", "mv2mae")  # older runs, fine-tuning and probes have no such key
    if decoder == "joint":
        overrides["num_views"] = 1 + config.data.num_source_views
    attention = settled["model.attention"]
    if_it_fits = config.model.attention == "auto" and attention == "cudnn"
    model = build(
        config.model.variant,
        clip_size=(config.data.num_frames, *config.data.crop_size),
        tubelet_size=tuple(config.model.tubelet_size),
        decoder=decoder,
        cross_view=config.model.get("cross_view", False),
        dtype=jnp.dtype(settled["compute_dtype"]),
        scan_layers=config.model.scan_layers,
        unroll=settled["model.layer_loop"] == "unrolled",
        remat=settled["model.remat"],
        attention="xla" if if_it_fits else attention,
        folded_norms=settled["model.norm_affine"] == "folded",
        **overrides,
    )
    return model.clone(attention="cudnn") if if_it_fits and _cudnn_takes(model) else model


def settled(config: config_dict.ConfigDict) -> dict[str, str]:
    """What `from_config` builds: the values of the keys that may be `auto`, by their full names."""
    model = from_config(config)
    return {
        "compute_dtype": jnp.dtype(model.dtype).name,
        "model.remat": model.remat,
        "model.attention": model.attention,
        "model.layer_loop": "unrolled" if model.unroll else "rolled",
        "model.norm_affine": "folded" if model.folded_norms else "applied",
    }


def settle_auto(
    config: config_dict.ConfigDict, backend: str, *, fused_attention: bool = False, one_device: bool = True
) -> dict[str, str]:
    """The config's values of the keys that may be `auto`, by their full names, for 'cpu', 'gpu' or 'tpu'.

    `auto` is bfloat16 and 'unrolled' except on CPU. On TPU it is 'per_head', and 'dots' for fine-tuning, whose encoder
    keeps three times the tokens of pre-training's, and where `fsdp` cuts the weights, which 'none' would keep whole for
    the backward pass. On a GPU it is 'folded' unless `fsdp` cuts the weights, which would take more collectives, and
    with `fused_attention` (chips.has_fused_attention) and heads of a size that allows it, 'cudnn'; on one CPU
    'chunked', whose loop goes over the heads that several devices would share.
    """
    model = config.model
    dtype, remat, attention = config.compute_dtype, model.remat, model.attention
    layer_loop, norm_affine = (model.get(key, "auto") for key in ("layer_loop", "norm_affine"))  # older runs have none
    dtype = ("float32" if backend == "cpu" else "bfloat16") if dtype == "auto" else dtype
    cut = config.mesh.fsdp != 1  # -1 is what is left
    if remat == "auto":
        remat = "dots" if backend == "tpu" and (config.task == "finetune" or cut) else "none"
    if attention == "auto" and backend == "tpu":
        attention = "per_head"
    elif attention == "auto" and fused_attention and dtype == "bfloat16":
        attention = "cudnn"
    elif attention == "auto":
        attention = "chunked" if backend == "cpu" and one_device else "xla"
    if layer_loop == "auto":
        layer_loop = "rolled" if backend == "cpu" else "unrolled"
    if norm_affine == "auto":
        norm_affine = "folded" if backend == "gpu" and not cut else "applied"
    return {
        "compute_dtype": dtype,
        "model.remat": remat,
        "model.attention": attention,
        "model.layer_loop": layer_loop,
        "model.norm_affine": norm_affine,
    }


def _head_dims(model: MV2MAE) -> tuple[int, int]:
    return model.width // model.num_heads, model.decoder_width // model.decoder_heads


def _cudnn_takes(model: MV2MAE) -> bool:
    return all(head_dim % 8 == 0 and head_dim <= 128 for head_dim in _head_dims(model))


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
    if model.remat not in layers.REMAT_POLICIES:
        raise UserError(f"Unknown remat {model.remat!r}. Choose one of {', '.join(layers.REMAT_POLICIES)}.")
    if model.attention not in ATTENTION:
        raise UserError(f"Unknown attention {model.attention!r}. Choose one of {', '.join(ATTENTION)}.")
    if model.attention == "cudnn" and jnp.dtype(model.dtype).itemsize != 2:
        raise UserError(
            f"attention='cudnn' computes in 16 bits, the model's dtype is {jnp.dtype(model.dtype)}. "
            "Set dtype='bfloat16' or attention='xla'."
        )
    if model.attention == "cudnn" and not _cudnn_takes(model):
        encoder, decoder = _head_dims(model)
        raise UserError(
            f"attention='cudnn' takes heads of 8, 16, ... 128 channels, the encoder's have {encoder} and the decoders' "
            f"{decoder}. Choose widths and numbers of heads for such sizes, or attention='xla'."
        )
