"""The same take and the same class seen from another camera, by the demo's frozen encoder; needs no training.

Command: python run.py --config=configs/retrieval.py --workdir=demo_output/retrieval (after `make demo`)
"""

from configs import probe


def get_config():
    config = probe.get_config()
    config.probe.kinds = ("retrieval",)
    return config
