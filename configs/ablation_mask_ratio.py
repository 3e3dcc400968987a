"""Ablation: the mask ratio of both views.

Command: python -m benchmarks.ablations --only=mask_ratio
One variant by hand: python run.py --config=configs/ablation_mask_ratio.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

PAPER = "0.7 in each view is best; single-view methods use 0.9."
VARIANTS = {
    "0.5": {"masking.target_mask_ratio": 0.5, "masking.source_mask_ratio": 0.5},
    "0.7": {"masking.target_mask_ratio": 0.7, "masking.source_mask_ratio": 0.7},
    "0.9": {"masking.target_mask_ratio": 0.9, "masking.source_mask_ratio": 0.9},
    "0.95_0.5": {"masking.target_mask_ratio": 0.95, "masking.source_mask_ratio": 0.5},
}


def get_config():
    return benchmark.get_config()
