"""What is learnt: an objective says how a model is initialised, what is drawn, the loss, and how it is evaluated.

`pretrain` and `finetune` are used by the loop (train.py), which is the same for both. Imports models/, evaluation/ and
data/; `losses` and `masking` are functions of arrays and import no other room.
"""
