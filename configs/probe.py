"""Probes of the demo's frozen encoder on generated data, cross-subject: kNN, linear, ridge, attentive, retrieval.

Command: python run.py --config=configs/probe.py --workdir=demo_output/probe (after `make demo`)
Hardware and time: 1 min on 2 CPU cores beside other work.
Result: after `make demo`, ridge regression of all tokens has 40 % top-1, on a random encoder 39.4 %; chance is 6.2 %.
The rest was measured with the demo's earlier weight decay, 0.05: kNN 6.4 %, linear 9.3 %, attentive 12.6 %, ridge
35.6 % top-1; retrieval of the same take from another camera 2.7 % at rank 1, where chance is 0.3 %. More pre-training:
benchmarks/results/.
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
