"""What is learnt: an objective says how a model is initialised, what a step begins with, and the loss.

`pretrain` and `finetune` are used by the loop (train.py), which is the same for both. `losses` and `masking` are
functions of arrays; config_checks.py reads the names of `mask_kinds`, which needs no JAX.
Imports: models, data, console.
Used by: evaluation, report, topology, torch_export, train.py, config_checks.py.
"""
