"""PyTorch's checkpoints as parameters of this package, without PyTorch: names, files, and what starts from them.

Used by the loop (`init_from=`), by inference and by torch_export/. Imports models/ and features/.
"""
