"""Pre-training on your own synchronised videos, prepared with `--dataset=folder`.

Command: python run.py --config=configs/folder.py --workdir=runs/mine --config.data.dir=prepared/mine
Hardware and time: a few hundred steps in minutes on 2 CPU cores (`--config.total_steps=300`); for a real set raise
`model.variant`, `data.crop_size` and `num_epochs` towards configs/ntu60.py and use a GPU or TPU.
Result to expect: both losses fall towards "mean prediction" in the log and below it. `eval/cross_gain` above 0 says
that the cross-view decoder uses the other camera; it needs at least two held-out takes.
"""

from configs import pretrain_base


def get_config():
    config = pretrain_base.get_config()
    config.num_epochs = 400  # [ours] small sets need many passes
    config.global_batch_size = 16
    config.data.crop_size = (64, 64)
    config.data.num_frames = 8
    config.data.holdout_fraction = 0.1
    config.data.num_workers = 2
    config.model.variant = "Ti"
    config.model.depth = 4
    config.model.tubelet_size = (2, 8, 8)
    config.optimizer.name = "muon"  # reaches the same loss in fewer steps than AdamW when there are few
    config.optimizer.base_learning_rate = 0.064  # 4e-3 at 16 samples
    config.optimizer.final_base_learning_rate = 0.0
    config.eval.every_steps = 500
    config.log.every_steps = 20
    return config
