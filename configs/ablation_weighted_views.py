"""Ablation: whose losses motion weights: those of the target alone, or of all views.

Command: python -m benchmarks.ablations --only=weighted_views
One variant by hand: python run.py --config=configs/ablation_weighted_views.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

PAPER = "the direction was not found in what we could read."
VARIANTS = {
    "all": {"loss.ess_fraction": 0.6, "loss.weighted_views": "all"},
    "target": {"loss.ess_fraction": 0.6, "loss.weighted_views": "target"},
}


def get_config():
    return benchmark.get_config()
