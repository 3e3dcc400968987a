"""The paper's ablations: configs/benchmark.py with one thing changed, on a generated data set.

Command: python -m benchmarks.method --data_only     # once: the data of configs/benchmark.py
    python run.py --config=configs/ablations.py:temperature=60 --workdir=runs/t60
All of them, with their read-outs: python -m benchmarks.ablations
Result: in benchmarks/results/ablations/, as far as measured; all of an earlier setting in
benchmarks/results/first_setting/.
"""

import dataclasses
from typing import Any

from configs import benchmark
from console.command import did_you_mean, nearest
from console.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One thing that is varied."""

    paper: str  # what the paper found
    variants: dict[str, dict[str, Any]]  # {name: {config key: value}}


UNKNOWN = "the direction was not found in what we could read."
# C001 stands in the middle, C002 and C003 45 degrees to either side.
NEAR = (("C001", "C002"), ("C001", "C003"), ("C002", "C001"), ("C003", "C001"))
FAR = (("C002", "C003"), ("C003", "C002"))
ABLATIONS = {
    # On which pixel scale the paper's t stands is not known; ours is [0, 255]. All tokens weigh alike at infinity, the
    # plain MAE loss, and with ess_fraction=1.0.
    "temperature": Ablation(
        "t = 60 is best; smaller t looks at moving patches alone, larger t tends to the plain loss.",
        {"60": {"loss.temperature": 60.0}, "240": {"loss.temperature": 240.0}},
    ),
    "ess_fraction": Ablation(
        "not in the paper: t chosen for each clip such that so large a share of its tokens counts.",
        {name: {"loss.ess_fraction": float(name)} for name in ("0.3", "0.5", "0.8", "1.0")},
    ),
    "mask_ratio": Ablation(
        "0.7 in each view is best; single-view methods use 0.9.",
        {
            "0.5": {"masking.target_mask_ratio": 0.5, "masking.source_mask_ratio": 0.5},
            "0.7": {"masking.target_mask_ratio": 0.7, "masking.source_mask_ratio": 0.7},
            "0.9": {"masking.target_mask_ratio": 0.9, "masking.source_mask_ratio": 0.9},
            "0.9_0.5": {"masking.target_mask_ratio": 0.9, "masking.source_mask_ratio": 0.5},
            "0.95_0.5": {"masking.target_mask_ratio": 0.95, "masking.source_mask_ratio": 0.5},
        },
    ),
    "source_views": Ablation(
        "one source view is best; more make the task too easy.",
        {name: {"data.num_source_views": int(name)} for name in ("1", "2")},
    ),
    "view_pairs": Ablation(
        "near pairs are better than far ones.",
        {"near_45": {"data.view_pairs": NEAR}, "far_90": {"data.view_pairs": FAR}},
    ),
    "weighted_views": Ablation(  # whose losses motion weights
        UNKNOWN, {name: {"loss.weighted_views": name} for name in ("all", "target")}
    ),
    "encoder_size": Ablation(
        "larger is better: Ti 82.0, S 83.4, B 85.1 %.",
        {
            "width_32": {"model.width": 32, "model.num_heads": 1},
            "width_64": {"model.width": 64, "model.num_heads": 2},
            "width_128": {"model.width": 128, "model.num_heads": 4},
        },
    ),
    "decoder_depth": Ablation(UNKNOWN, {name: {"model.decoder_depth": int(name)} for name in ("1", "2", "4")}),
    "target": Ablation(UNKNOWN, {name: {"loss.target": name} for name in ("pixels", "normalized_pixels")}),
}


def get_config(variant: str):
    """The config of a variant, 'temperature=60'."""
    known = {f"{name}={value}": changes for name, of in ABLATIONS.items() for value, changes in of.variants.items()}
    if variant not in known:
        listed = did_you_mean(nearest(variant, known)) or f" There are {', '.join(known)}."
        raise UserError(f"there is no ablation {variant!r}.{listed}")
    return change(known[variant])


def change(overrides: dict[str, Any]):
    """configs/benchmark.py with these keys changed."""
    config = benchmark.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(overrides)
    return config
