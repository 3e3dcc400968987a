"""The pre-training whose variants benchmarks/method.py and the ablations compare, on a generated data set.

Command: python -m benchmarks.method --preset=cpu; a single run of it, once the data are there (--data_only):
    python run.py --config=configs/benchmark.py --workdir=runs/benchmark
Result: see benchmarks/results/method_cpu/.

The demo's setting on six times the takes (3,840 takes of 120 people in 8 rooms), the training split of an official
protocol, more steps, and no motion weights. So small clips and rooms without furniture let a run of 200,000 clips,
minutes of one core, reach what larger ones reach in days (what did not: benchmarks/results/method_furnished/NOTES.md).
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.total_steps = 1562  # of 64 samples of two views: 200,000 clips
    config.data.dir = "benchmark_output/plain_32/prepared"
    config.data.protocol = "xsub"
    config.data.holdout_fraction = 0.05
    config.loss.ess_fraction = 1.0  # all tokens alike: the plain MAE loss

    config.checkpoint.every_steps = 100_000  # those that are evaluated, and the last step
    config.checkpoint.keep = 100
    config.eval.every_steps = 100_000
    config.eval.batch_size = 24
    config.eval.max_takes = 64
    config.eval.num_pictures = 0
    config.log.every_steps = 100
    config.log.tensorboard = False
    return config
