"""What is learnt: an objective says how a model is initialised, what a step begins with, and the loss.

`pretrain` and `finetune` are used by the loop (train.py), which is the same for both. Imports models/ and data/.
`losses` and `masking` are functions of arrays.
"""
