"""Pre-training on your own synchronised videos, prepared with `--dataset=folder`: small enough to look at on a laptop.

Command: python run.py --config=configs/folder.py --workdir=runs/mine --config.data.dir=prepared/mine
Hardware and time: 300 steps (`--config.total_steps=300`) in minutes on 2 CPU cores. For a real set and an accelerator
raise the model, `data.crop_size` and `num_epochs` to what configs/ntu60.py uses.
Result to expect: both losses fall towards "mean prediction" in the log and, with more steps, below it.
If `eval/cross_gain` exceeds twice its standard error, the decoder uses the other camera. It needs two held-out takes.
"""

from configs import pretrain_base


def get_config():
    config = pretrain_base.get_config()
    config.num_epochs = 400  # [ours] small sets need many passes
    config.global_batch_size = 8

    config.data.num_frames = 8
    config.data.crop_size = (64, 64)
    config.data.holdout_fraction = 0.1
    config.data.num_workers = 2

    config.model.width = 96
    config.model.depth = 3
    config.model.num_heads = 3
    config.model.decoder_width = 96
    config.model.decoder_depth = 2
    config.model.decoder_heads = 3
    config.model.tubelet_size = (2, 8, 8)
    config.model.scan_layers = False
    config.masking.decode_ratio = 0.5

    config.optimizer.name = "muon"  # as in the demo
    config.optimizer.base_learning_rate = 0.256  # 8e-3 at 8 samples
    config.optimizer.weight_decay = 1.0  # as in the demo
    config.optimizer.final_base_learning_rate = 0.0
    config.eval.every_steps = 500
    config.log.every_steps = 20
    return config
