"""What a model is worth: held-out losses, pictures, accuracy, kNN, linear and attentive probes, retrieval, 3D pose.

`reconstruction` and `classification` measure the two objectives during training; `online_probes` adds probes to
pre-training. `probe` is a run of its own (run.py, configs/probe.py).
Imports: objectives, models, features, inference.py, runs, monitoring, distributed, torch_weights, state.py, data,
data/store, console.
Used by: report, train.py, run.py.
"""
