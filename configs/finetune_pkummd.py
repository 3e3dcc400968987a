"""Transfer to PKU-MMD phase 2, cross-subject, from an encoder pre-trained on NTU RGB+D 60.

Prepare: python -m data.prepare --dataset=pkummd --input=PKUMMD_V2 --output=prepared/pkummd
Command: python run.py --config=configs/finetune_pkummd.py --workdir=runs/pkummd \\
    --config.data.dir=prepared/pkummd --config.init_from=runs/ntu60
Hardware and time: not run here; neither the data nor an accelerator of that size was at hand.
Result to reach, from the paper: PKU-MMD-II 60.1 % top-1 by transfer; we could not read its protocol, cross-subject is
assumed. Cross-view is `--config.data.protocol=xview`.
"""

from configs import finetune_base


def get_config():
    config = finetune_base.get_config()
    config.data.protocol = "xsub"
    return config
