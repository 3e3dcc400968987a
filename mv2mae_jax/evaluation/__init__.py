"""What an encoder is worth: kNN, linear and attentive probes, retrieval across cameras, 3D pose, accuracy, pictures.

`probe` is a run of its own (run.py, configs/probe.py); `online_probes` measures during pre-training. Imports models/,
features/, runs/ and monitoring/.
"""
