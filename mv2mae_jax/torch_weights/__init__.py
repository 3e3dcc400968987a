"""Reads PyTorch checkpoints as parameters of this package. Only .pth files need PyTorch for that.

Imports: models, monitoring, distributed, console.
Used by: evaluation, inference.py, torch_export, initial_state.py.
"""
