"""What a model is worth: held-out losses, pictures, accuracy, kNN, linear and attentive probes, retrieval, 3D pose.

`reconstruction` and `classification` measure the two objectives while they are trained; what pre-training adds are
`online_probes`. `probe` is a run of its own (run.py, configs/probe.py).
Imports: objectives, models, features, inference.py, runs, monitoring, distributed, torch_weights, state.py, data,
data/store, console.
Used by: report, train.py, run.py.
"""
