"""Transfer to RoCoG-v2, from an encoder pre-trained on NTU RGB+D 60.

Prepare: python -m data.prepare --dataset=rocog --input=ROCOG_V2 --output=prepared/rocog
Command: python run.py --config=configs/finetune_rocog.py --workdir=runs/rocog \\
    --config.data.dir=prepared/rocog --config.init_from=runs/ntu60
Hardware and time: not run here; neither the data nor an accelerator of that size was at hand.
Result to reach, from the paper: RoCoG-v2 89.0 % top-1 by transfer; we could not read its protocol and assume the ground
videos. The others are listed by `python -m data.catalog rocog`.
"""

from configs import finetune_base


def get_config():
    config = finetune_base.get_config()
    config.data.protocol = "ground"
    config.num_epochs = 100  # [ours] a small set
    config.global_batch_size = 128  # [ours]
    return config
