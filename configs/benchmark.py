"""The pre-training that benchmarks/method.py and the ablations compare variants of, on the generated data set.

Command: python -m benchmarks.method --preset=cpu; a single run of it:
    python run.py --config=configs/benchmark.py --workdir=runs/benchmark --config.data.dir=PREPARED
Result: see benchmarks/results/.

What differs from the demo: the training split of an official protocol with all its pairs of cameras, fewer steps, and
no motion weights. The sizes are the demo's, so that a run takes minutes of one core.
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.total_steps = 800
    config.global_batch_size = 8
    config.data.dir = "benchmark_output/prepared"
    config.data.protocol = "xsub"
    config.data.view_pairs = ()
    config.data.holdout_fraction = 0.05

    config.masking.decode_ratio = 0.25
    config.loss.ess_fraction = 1.0  # all tokens alike: the plain MAE loss

    config.checkpoint.every_steps = 100_000  # the last step alone
    config.eval.every_steps = 100_000
    config.eval.clips_per_element = 1
    config.eval.max_takes = 64
    config.eval.num_pictures = 0
    config.log.every_steps = 100
    config.log.tensorboard = False
    return config
