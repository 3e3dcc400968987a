"""A training step compiled for a TPU that is not at hand: its memory, its costs, its largest batch.

Imports: train.py, state.py, optim.py, objectives, models, runs, monitoring, distributed, data/store, config.py,
config_checks.py, console.
Used by: nothing; it is a command, `python -m mv2mae_jax.topology`.
"""
