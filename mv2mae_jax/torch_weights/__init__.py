"""Reads PyTorch checkpoints as parameters of this package. Only .pth files need PyTorch for that.

Used by the loop (`init_from=`), by inference and by torch_export/. Imports models/, features/, monitoring/ and
distributed/.
"""
