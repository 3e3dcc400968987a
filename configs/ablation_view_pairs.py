"""Ablation: how far apart the two views are.

Command: python -m benchmarks.ablations --only=view_pairs
One variant by hand: python run.py --config=configs/ablation_view_pairs.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

PAPER = "near pairs are better than far ones."
VARIANTS = {
    # C001 stands in the middle, C002 and C003 45 degrees to either side.
    "near_45": {"data.view_pairs": "(('C001','C002'),('C002','C001'),('C001','C003'),('C003','C001'))"},
    "far_90": {"data.view_pairs": "(('C002','C003'),('C003','C002'))"},
}


def get_config():
    return benchmark.get_config()
