"""Retrieves the same take and class from another camera with the demo's frozen encoder; needs no training.

Command: python run.py --config=configs/retrieval.py --workdir=demo_output/retrieval (after `make demo`)
"""

from configs import probe


def get_config():
    config = probe.get_config()
    config.probe.kinds = ("retrieval",)
    return config
