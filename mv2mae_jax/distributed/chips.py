"""Published peak rates of accelerator chips, each with its source; nothing here was measured."""

import dataclasses
import re
from typing import Any, Final

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip."""

    flops_per_second: float  # peak of dense bfloat16 products
    hbm_bytes: int  # capacity of the main memory
    hbm_bytes_per_second: float  # its bandwidth
    ici_bytes_per_second: float  # what a chip can send to its neighbours over all its links, one way
    clock_hz: float | None  # of the matrix units; None if sources contradict each other


# Google states a chip's interconnect as the sum of both directions; a chip can send half of it.
# If a page has stated two bandwidths of the main memory (v5e: 819 GB/s, later 800 GiB/s), the lower one is used.
# Clocks of v5e and v5p follow from the peak: 2 flops * 128 * 128 multiply-adds * MXUs per chip (4, 8) * clock.
CHIPS: Final[dict[str, Chip]] = {
    # https://docs.cloud.google.com/tpu/docs/v4; links and clock: Jouppi et al. 2023, arXiv 2304.01433
    "v4": Chip(
        flops_per_second=275e12,
        hbm_bytes=32 * GIB,
        hbm_bytes_per_second=1200e9,
        ici_bytes_per_second=6 * 50e9,
        clock_hz=1.05e9,
    ),
    # https://docs.cloud.google.com/tpu/docs/v5e
    "v5e": Chip(
        flops_per_second=197e12,
        hbm_bytes=16 * GIB,
        hbm_bytes_per_second=819e9,
        ici_bytes_per_second=400e9 / 2,
        clock_hz=197e12 / (2 * 128 * 128 * 4),
    ),
    # https://docs.cloud.google.com/tpu/docs/v5p
    "v5p": Chip(
        flops_per_second=459e12,
        hbm_bytes=95 * GIB,
        hbm_bytes_per_second=2765e9,
        ici_bytes_per_second=1200e9 / 2,
        clock_hz=459e12 / (2 * 128 * 128 * 8),
    ),
    # https://docs.cloud.google.com/tpu/docs/v6e
    "v6e": Chip(
        flops_per_second=918e12,
        hbm_bytes=32 * GIB,
        hbm_bytes_per_second=1638e9,
        ici_bytes_per_second=800e9 / 2,
        clock_hz=None,  # Google's pages name two MXUs of 256x256 or four, so the clock may be twice as high
    ),
}

# JAX's names of TPU chips.
_TPU_KINDS: Final[dict[str, str]] = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}

# Dense bfloat16 operations per second of NVIDIA's GPUs. Data sheets state twice as much, "with sparsity".
# A device gets the first entry whose words all occur in its name.
_GPU_FLOPS_PER_SECOND: Final[tuple[tuple[str, float], ...]] = (
    ("H200", 989e12),  # https://www.nvidia.com/en-us/data-center/h200/ (SXM)
    ("H100 PCIe", 756e12),  # https://www.nvidia.com/en-us/data-center/h100/
    ("H100", 989e12),  # the same page (SXM)
    ("A100", 312e12),  # https://www.nvidia.com/en-us/data-center/a100/
    ("L40S", 362e12),  # https://www.nvidia.com/en-us/data-center/l40s/
    ("L4", 121e12),  # https://www.nvidia.com/en-us/data-center/l4/
)


def peak_flops_per_second(device_kind: str) -> float | None:
    """Published peak of dense bfloat16 products for a JAX device; None if it is not in the tables above."""
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]].flops_per_second
    words = set(device_kind.replace("-", " ").split())
    return next((peak for name, peak in _GPU_FLOPS_PER_SECOND if words >= set(name.split())), None)


def has_fused_attention(device: Any) -> bool:
    """Whether cuDNN's fused attention runs on the device: NVIDIA's GPUs from Ampere on (compute capability 8.0).

    Source: https://docs.nvidia.com/deeplearning/cudnn (support matrix of scaled dot-product attention).
    """
    capability = str(getattr(device, "compute_capability", ""))  # "9.0"; AMD's are names
    return bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= 8
