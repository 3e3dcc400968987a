"""Ablation: the encoder's size.

Command: python -m benchmarks.ablations --only=encoder_size
One variant by hand: python run.py --config=configs/ablation_encoder_size.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

PAPER = "larger is better: Ti 82.0, S 83.4, B 85.1 %."
VARIANTS = {
    "width_48": {"model.width": 48},
    "width_96": {"model.width": 96},
    "width_192": {"model.width": 192, "model.num_heads": 6},
}


def get_config():
    return benchmark.get_config()
