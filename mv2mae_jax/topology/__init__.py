"""A training step compiled for a TPU that is not at hand: its memory, its costs, its largest batch.

The command is `python -m mv2mae_jax.topology`. Imports everything that a step is made of; nothing imports it.
"""
