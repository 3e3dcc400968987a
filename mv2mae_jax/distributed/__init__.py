"""Devices and processes: the mesh and where arrays lie on it, starting several processes, what each chip can do.

Imports: console.
Used by: models, features, inference.py, evaluation, runs, monitoring, torch_weights, torch_export, report, topology,
initial_state.py, training_run.py, train.py, run.py.
"""
