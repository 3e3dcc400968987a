"""From runs to PyTorch: the export with its own check, model cards, and a PyTorch port of the model.

Imports: objectives, models, runs, torch_weights, distributed, data/store, config.py, console.
Used by: nothing; it is a command, `python -m mv2mae_jax.torch_export`.
"""
