"""Probes of the demo's frozen encoder on generated data, cross-subject: kNN, linear, ridge, attentive, retrieval.

Command: python run.py --config=configs/probe.py --workdir=demo_output/probe (after `make demo`)
Hardware and time: 1 min on 2 CPU cores beside other work.
Result: measured after `make demo`, kNN 6.7 %, linear 7.4 %, attentive 12.2 %, ridge regression of all tokens 40.5 %
top-1, where chance is 6.2 % and ridge regression on a random encoder has 39.4 %; retrieval of the same take from
another camera 1.6 % at rank 1, where chance is 0.3 %. More pre-training: benchmarks/results/.
Another run: --config.init_from=RUN --config.data.dir=PREPARED, and its sizes (--config.model.variant=S, ...).
"""

from configs import demo, probe_base


def get_config():
    config, demo_config = probe_base.get_config(), demo.get_config()
    config.init_from = "demo_output/run"
    config.probe.kinds = ("knn", "linear", "ridge", "attentive", "retrieval")
    for key in ("dir", "num_frames", "frame_stride", "crop_size", "num_workers"):
        config.data[key] = demo_config.data[key]
    for key in ("width", "depth", "num_heads", "tubelet_size", "scan_layers"):
        config.model[key] = demo_config.model[key]
    return config
