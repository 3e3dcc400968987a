"""The pre-training that benchmarks/method.py and the ablations compare variants of, on a generated data set.

Command: python -m benchmarks.method --preset=cpu; a single run of it, once the data are there (--data_only):
    python run.py --config=configs/benchmark.py --workdir=runs/benchmark
Result: see benchmarks/results/.

2,560 takes (80 people, 16 classes) in 8 plain rooms, 32x32 pixels around a person who fills the frame, 10 frames per
second. Clips are 8 frames at stride 2 (1.4 s), cut into 64 tokens. So small clips and rooms without furniture let a
run of 200,000 clips, minutes of one core, reach what larger ones reach in days: the cross-view decoder begins to use
the other camera (benchmarks/results/method_cpu/NOTES.md).
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.total_steps = 3125  # of 64 samples of two views: 400,000 clips
    config.global_batch_size = 64

    config.data.dir = "benchmark_output/prepared"
    config.data.protocol = "xsub"
    config.data.holdout_fraction = 0.05
    config.data.crop_size = (32, 32)  # the stored frames, whole
    config.data.frame_stride = 2
    # (target, source), 45 degrees apart; with 90 degrees the decoder does not begin to look in this budget
    config.data.view_pairs = (("C001", "C002"), ("C001", "C003"), ("C002", "C001"), ("C003", "C001"))

    config.model.width = 64
    config.model.depth = 3
    config.model.num_heads = 2
    config.model.decoder_width = 48
    config.model.decoder_depth = 2
    config.model.decoder_heads = 2

    config.masking.target_mask_ratio = 0.9
    config.masking.source_mask_ratio = 0.5
    config.masking.decode_ratio = 0.5
    config.loss.ess_fraction = 1.0  # all tokens alike: the plain MAE loss

    config.optimizer.base_learning_rate = 0.08  # 2e-2 at 64 samples; 2e-3 and 8e-3 were slower

    config.checkpoint.every_steps = 100_000  # those that are evaluated, and the last step
    config.checkpoint.keep = 100
    config.eval.every_steps = 100_000
    config.eval.clips_per_element = 1
    config.eval.max_takes = 64
    config.eval.num_pictures = 0
    config.log.every_steps = 100
    config.log.tensorboard = False
    return config
