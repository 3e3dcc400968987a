"""Ablation: the number of source views.

Command: python -m benchmarks.ablations --only=source_views
One variant by hand: python run.py --config=configs/ablation_source_views.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

PAPER = "one source view is best; more make the task too easy."
VARIANTS = {
    "1": {"data.num_source_views": 1},
    "2": {"data.num_source_views": 2},
}


def get_config():
    return benchmark.get_config()
