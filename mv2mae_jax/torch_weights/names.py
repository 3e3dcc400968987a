"""One table of names and layouts: this project's parameters <-> VideoMAE's state dict <-> Hugging Face's. NumPy only.

Modules are named as in MCG-NJU/VideoMAE (and CroCo, in the cross-view decoder). So a parameter's name follows from its
path, except for MOVED. Two layouts differ in PyTorch: dense kernels are transposed, and the patch embedding is a Conv3d
kernel.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Arrays = dict[str, np.ndarray]

# Parameters that VideoMAE keeps in another place: (here, there).
MOVED = (("decoder.mask_token", "mask_token"), ("decoder.encoder_to_decoder.", "encoder_to_decoder."))

# VideoMAE -> Hugging Face (transformers' VideoMAEForPreTraining and VideoMAEForVideoClassification), applied in this
# order both ways. The biases keep their published names, which transformers has renamed twice since: docs/pytorch.md.
HUGGING_FACE_PREFIXES = (
    ("encoder.patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection."),
    ("encoder.blocks.", "videomae.encoder.layer."),
    ("encoder.norm.", "videomae.layernorm."),
    ("decoder.blocks.", "decoder.decoder_layers."),
    ("head.", "classifier."),  # of a fine-tuned model
)
HUGGING_FACE_PARTS = (
    (".norm1.", ".layernorm_before."),
    (".attn.q_bias.", ".attention.attention.q_bias."),
    (".attn.v_bias.", ".attention.attention.v_bias."),
    (".attn.proj.", ".attention.output.dense."),
    (".norm2.", ".layernorm_after."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
CROSS_DECODER = "cross_decoder."  # has no slot in Hugging Face's model; keeps its names there
# VideoMAE's fine-tuned model is the encoder itself, with a head.
ENCODER_PARTS = ("patch_embed.", "blocks.", "norm.")


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters -> {'encoder/blocks/0/attn/q_bias': leaf, ...}."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def videomae_name(name: str) -> str:
    """'encoder/blocks/0/norm1/scale' or a module's 'encoder/blocks/0' -> VideoMAE's name."""
    name = re.sub(r"\.(kernel|scale)$", ".weight", name.replace("/", "."))
    for here, there in MOVED:
        if f"{name}.".startswith(here):
            return (there + f"{name}.".removeprefix(here)).removesuffix(".")
    return name


def to_videomae(params: Mapping[str, Any], tubelet_size: tuple[int, int, int]) -> Arrays:
    """Parameters of unrolled blocks -> VideoMAE's state dict, float32; `cross_decoder.` holds what VideoMAE lacks."""
    return {
        videomae_name(name): np.array(_to_torch_layout(name, np.asarray(leaf, np.float32), tubelet_size), order="C")
        for name, leaf in flatten(params).items()
    }


def _to_torch_layout(name: str, array: np.ndarray, tubelet_size: tuple[int, int, int]) -> np.ndarray:
    if name.endswith("patch_embed/proj/kernel"):
        kernel = array.reshape(*tubelet_size, 3, -1)  # (t, h, w, 3, D)
        return kernel.transpose(4, 3, 0, 1, 2)
    return array.T if name.endswith("/kernel") else array


def from_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Undoes the layout for the parameter that is called `name` here."""
    if name.endswith("patch_embed/proj/kernel"):
        return array.transpose(2, 3, 4, 1, 0).reshape(-1, array.shape[0])  # (t * h * w * 3, D)
    return array.T if name.endswith("/kernel") else array


def to_hugging_face(state: Arrays) -> Arrays:
    """VideoMAE's state dict -> Hugging Face's; the fused qkv weight is cut into three."""
    renamed = {}
    for name, array in state.items():
        if name.endswith(".attn.qkv.weight") and not name.startswith(CROSS_DECODER):
            block = hugging_face_name(name.removesuffix(".attn.qkv.weight"))
            for part, weight in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                renamed[f"{block}.attention.attention.{part}.weight"] = weight
        else:
            renamed[hugging_face_name(name)] = array
    return renamed


def hugging_face_name(name: str) -> str:
    """VideoMAE's name of a parameter or module -> Hugging Face's."""
    if name.startswith(CROSS_DECODER):
        return name
    return _replace(name, HUGGING_FACE_PREFIXES, HUGGING_FACE_PARTS)


def videomae_name_from_hugging_face(name: str) -> str:
    """Hugging Face's name of a parameter or module -> VideoMAE's."""
    if name.startswith(CROSS_DECODER):
        return name
    # transformers >= 5.12 has these names for the biases.
    name = re.sub(r"\.attention\.attention\.(query|value)\.bias$", lambda m: f".attn.{m[1][0]}_bias", name)
    return _replace(
        name, *(tuple((there, here) for here, there in t) for t in (HUGGING_FACE_PREFIXES, HUGGING_FACE_PARTS))
    )


def _replace(name: str, prefixes: tuple[tuple[str, str], ...], parts: tuple[tuple[str, str], ...]) -> str:
    name = f"{name}."
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in parts:
        name = name.replace(old, new)
    return name.removesuffix(".")


def without_encoder_prefix(state: Arrays) -> Arrays:
    """Names as in VideoMAE's fine-tuned models: 'encoder.blocks.0.norm1.weight' -> 'blocks.0.norm1.weight'."""
    return {name.removeprefix("encoder."): array for name, array in state.items()}


def with_encoder_prefix(name: str) -> str:
    """The name in a fine-tuned model -> the name in the pre-training model."""
    return f"encoder.{name}" if f"{name}.".startswith(ENCODER_PARTS) else name


def from_hugging_face(state: Arrays) -> Arrays:
    """Hugging Face's state dict -> VideoMAE's; query, key and value weights are fused."""
    renamed = {videomae_name_from_hugging_face(name): array for name, array in state.items()}
    for name in [name for name in renamed if name.endswith(".attention.attention.query.weight")]:
        attention = name.removesuffix("query.weight")
        parts = [renamed.pop(f"{attention}{part}.weight") for part in ("query", "key", "value")]
        renamed[attention.removesuffix("attention.attention.") + "attn.qkv.weight"] = np.concatenate(parts)
    return renamed
