"""Fine-tuning on ETRI-Activity3D, cross-subject, from an encoder pre-trained there.

Prepare: python -m data.prepare --dataset=etri --input=ETRI_VIDEOS --output=prepared/etri
Command: python run.py --config=configs/finetune_etri.py --workdir=runs/etri_finetuned \\
    --config.data.dir=prepared/etri --config.init_from=runs/etri
Hardware and time: not run here; neither the data nor an accelerator of that size was at hand.
Result to reach, from the paper: ETRI cross-subject 96.5 % top-1.
"""

from configs import finetune_base


def get_config():
    config = finetune_base.get_config()
    config.data.protocol = "xsub"
    config.data.frame_stride = 3  # [ours] as pre-trained on ETRI: 20 frames per second
    return config
