"""Ablation: what is predicted: pixels, or pixels normalised patch by patch.

Command: python -m benchmarks.ablations --only=target
One variant by hand: python run.py --config=configs/ablation_target.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

PAPER = "the direction was not found in what we could read."
VARIANTS = {
    "pixels": {"loss.target": "pixels"},
    "normalized": {"loss.target": "normalized_pixels"},
}


def get_config():
    return benchmark.get_config()
