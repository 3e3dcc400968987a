"""What keeps a run from being lost: checkpoints and their damage, the lock, resuming, preemption, and its records.

Imports: models, distributed, data, data/store, config.py, console.
Used by: evaluation, features, inference.py, monitoring, report, topology, torch_export, initial_state.py,
training_run.py, train.py, run.py.
"""
