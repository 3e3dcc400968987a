"""From runs to PyTorch: the export with its own check, model cards, and a PyTorch port of the model.

The command is `python -m mv2mae_jax.torch_export`. Imports any room; nothing imports it.
"""
