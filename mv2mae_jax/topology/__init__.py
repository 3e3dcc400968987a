"""A training step compiled for a machine that is not there: its memory, its costs, its largest batch.

The command is `python -m mv2mae_jax.topology`. Imports everything that a step is made of; nothing imports it.
"""
