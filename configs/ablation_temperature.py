"""Ablation: the temperature t of the motion weights; infinity is the plain MAE loss.

Command: python -m benchmarks.ablations --only=temperature
One variant by hand: python run.py --config=configs/ablation_temperature.py with its overrides as --config.KEY=VALUE.
"""

from configs import benchmark

# On which pixel scale the paper's t stands is not known; ours is [0, 255].
PAPER = "t = 60 is best; smaller t looks at moving patches alone, larger t tends to the plain loss."
VARIANTS = {
    "t_60": {"loss.temperature": 60.0},
    "t_240": {"loss.temperature": 240.0},
    "t_inf": {"loss.temperature": "inf"},
    "ess_30": {"loss.ess_fraction": 0.3},
    "ess_60": {"loss.ess_fraction": 0.6},
    "ess_80": {"loss.ess_fraction": 0.8},
}


def get_config():
    return benchmark.get_config()
