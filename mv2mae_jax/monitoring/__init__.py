"""What a run tells while it goes: log lines, TensorBoard, rates, FLOP, and what it watches (skips, spikes, damage).

Imports: runs, distributed, data/store, config.py, console.
Used by: evaluation, report, topology, torch_weights, initial_state.py, training_run.py.
"""
