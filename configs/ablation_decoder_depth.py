"""Ablation: the depth of both decoders.

Command: python -m benchmarks.ablations --only=decoder_depth
One variant by hand: python run.py --config=configs/ablation_decoder_depth.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

PAPER = "the direction was not found in what we could read."
VARIANTS = {
    "1": {"model.decoder_depth": 1},
    "2": {"model.decoder_depth": 2},
    "4": {"model.decoder_depth": 4},
}


def get_config():
    return benchmark.get_config()
