"""How a model is computed, in one dataclass. It changes nothing but rounding."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from console.errors import UserError
from mv2mae_jax.distributed import chips

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "attention": ("xla", "chunked", "cudnn", "per_head"),
    "norm_affine": ("applied", "folded"),
    "layer_loop": ("rolled", "unrolled"),
    "remat": ("none", "block", "dots"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Attribute `compute` of every module; `from_config` makes it. The fast forms that it names are in `kernels/`.

    Attributes:
      dtype: of the computation; parameters are always float32.
      attention: 'xla', plain products and a softmax; 'chunked', the same in parts that fit a CPU's cache; 'cudnn',
        NVIDIA's kernel for 16 bits; 'per_head', for TPUs, where the projections write each head separately.
      norm_affine: scale and bias of a norm are 'applied' to the tokens, or 'folded' into the dense layers that follow.
      scan_layers: the parameters of the blocks are stacked along a leading axis.
      layer_loop: for stacked blocks, 'rolled' compiles one and loops over it; 'unrolled' compiles each.
      remat: what is kept of a block for the backward pass: all ('none'), its input ('block'), or this and the outputs
        of its dense layers ('dots').

    Raises:
      ValueError: an unknown value, or cuDNN's attention in 32 bits.
    """

    dtype: Any = jnp.float32
    attention: str = "xla"
    norm_affine: str = "applied"
    scan_layers: bool = True
    layer_loop: str = "rolled"
    remat: str = "none"

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"Unknown {name} {value!r}. Choose one of {', '.join(choices)}.")
        if self.attention == "cudnn" and self.dtype.itemsize != 2:
            raise UserError(
                f"attention='cudnn' computes in 16 bits, the model's dtype is {self.dtype}. "
                "Set dtype='bfloat16' or attention='xla'."
            )

    def settled(self) -> dict[str, str]:
        """Its values of the config's keys that may be `auto`, by their full names."""
        return {"compute_dtype": self.dtype.name} | {f"model.{key}": getattr(self, key) for key in CHOICES}


class Computed:
    """A module that has a `compute`."""

    def with_compute(self, **changes: Any) -> Any:
        """The same model, computed otherwise; `changes` are fields of Compute."""
        return self.clone(compute=dataclasses.replace(self.compute, **changes))


def from_config(config: config_dict.ConfigDict, head_dims: Sequence[int]) -> Compute:
    """How the model of a config is computed on the devices at hand; `head_dims` as in `settle`."""
    fused = chips.has_fused_attention(jax.devices()[0])
    one_device = jax.device_count() == 1
    return settle(config, jax.default_backend(), head_dims, fused_attention=fused, one_device=one_device)


def settle(
    config: config_dict.ConfigDict,
    backend: str,
    head_dims: Sequence[int] = (),
    *,
    fused_attention: bool = False,
    one_device: bool = True,
) -> Compute:
    """The values of a config, with `auto` settled for 'cpu', 'gpu' or 'tpu':

                   cpu                         gpu                       tpu
      dtype        float32                     bfloat16                  bfloat16
      layer_loop   rolled                      unrolled                  unrolled
      attention    chunked; more devices: xla  cudnn where it runs; xla  per_head
      norm_affine  applied                     folded; fsdp: applied     applied
      remat        none                        none                      none; fine-tuning or fsdp: dots

    'chunked' loops over the heads, which several devices would share. 'cudnn' needs bfloat16, `fused_attention` and
    heads of a size that it has kernels for. Folding weights that `fsdp` cuts would take more collectives, and 'none'
    would keep them whole for the backward pass. Fine-tuning's encoder keeps three times the tokens of pre-training's.

    Args:
      head_dims: channels of the heads of encoder and decoders.
      fused_attention: whether cuDNN's attention runs there (chips.has_fused_attention).
      one_device: whether there is no other.
    """
    cpu, tpu, cut = backend == "cpu", backend == "tpu", config.mesh.fsdp != 1  # -1 is what is left
    dtype = config.compute_dtype if config.compute_dtype != "auto" else "float32" if cpu else "bfloat16"
    auto = {
        "layer_loop": "rolled" if cpu else "unrolled",
        "attention": "per_head" if tpu else "chunked" if cpu and one_device else "xla",
        "norm_affine": "folded" if backend == "gpu" and not cut else "applied",
        "remat": "dots" if tpu and (config.task == "finetune" or cut) else "none",
    }
    if fused_attention and dtype == "bfloat16" and not tpu:
        auto["attention"] = "cudnn" if cudnn_takes(head_dims) else "xla"
    written = {key: config.model.get(key, "auto") for key in auto}  # older runs have no layer_loop and norm_affine
    settled = {key: auto[key] if value == "auto" else value for key, value in written.items()}
    return Compute(dtype=dtype, scan_layers=config.model.scan_layers, **settled)


def cudnn_takes(head_dims: Sequence[int]) -> bool:
    """Whether cuDNN's attention has kernels for heads of these numbers of channels."""
    return all(head_dim % 8 == 0 and head_dim <= 128 for head_dim in head_dims)
