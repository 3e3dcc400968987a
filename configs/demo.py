"""draft"""

from configs import pretrain_base


def get_config():
    config = pretrain_base.get_config()
    config.total_steps = 1000
    config.global_batch_size = 8
    config.data.dir = "demo_output/prepared"
    config.data.num_frames = 8
    config.data.crop_size = (48, 48)
    config.data.crop_scales = (1.0,)
    config.data.same_crop_in_views = True
    config.data.view_pairs = (("C002", "C001"),)
    config.data.holdout_fraction = 0.2
    config.data.num_workers = 0
    config.model.width = 96
    config.model.depth = 3
    config.model.num_heads = 3
    config.model.decoder_width = 96
    config.model.decoder_depth = 3
    config.model.decoder_heads = 3
    config.model.tubelet_size = (2, 8, 8)
    config.masking.target_mask_ratio = 0.95
    config.masking.source_mask_ratio = 0.5
    config.loss.ess_fraction = 0.6
    config.optimizer.name = "muon"
    config.optimizer.base_learning_rate = 4e-3 * 256 / 8
    config.optimizer.final_base_learning_rate = 0.0
    config.eval.every_steps = 10000
    return config
