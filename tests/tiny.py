"""Runs small enough for tests: their configs, and pre-training steps without data files."""

import math
from importlib.util import find_spec

import jax
import numpy as np

from configs import finetune_base, pretrain_base
from mv2mae_jax import optim
from mv2mae_jax.distributed import sharding
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import checkpoint
from mv2mae_jax.state import TrainState
from mv2mae_jax.train import jit_train_step

# Compiler options for programs that compile long and run briefly: a step of the tiny model compiles in 3 s of a core,
# without them in 20 s. QUICK_FLAGS are the same as XLA_FLAGS.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,  # more parts take more in all, and the tests keep every core busy anyway
}
# libtpu reads XLA_FLAGS, too, and ends the process over a flag for CPUs that it does not know.
_FOR_ALL = {name: value for name, value in QUICK.items() if not name.startswith("xla_cpu")}
QUICK_FLAGS = " ".join(
    f"--{name}={str(value).lower()}" for name, value in (_FOR_ALL if find_spec("libtpu") else QUICK).items()
)

# Overrides of a command line, so that run.py can start the same run.
OVERRIDES = (
    "total_steps=6",
    "global_batch_size=8",
    "data.num_frames=4",
    "data.crop_size=(32,32)",
    "data.holdout_fraction=0.25",
    "data.num_workers=0",
    "model.width=24",
    "model.depth=2",
    "model.num_heads=3",
    "model.decoder_width=12",
    "model.decoder_depth=2",
    "model.decoder_heads=3",
    "model.tubelet_size=(2,8,8)",
    "optimizer.base_learning_rate=0.03",
    "checkpoint.every_steps=2",
    "eval.every_steps=1000",
    "eval.num_pictures=1",
    "log.every_steps=2",
    "log.report=False",
)

# The same encoder, fine-tuned with every part of the recipe on.
FINETUNE_OVERRIDES = (
    *(override for override in OVERRIDES if not override.startswith(("model.decoder", "eval.", "data.holdout"))),
    "data.repeats=2",
    "model.drop_path=0.2",
    "eval.every_steps=1000",
    "eval.clips_per_view=2",
    "eval.crops_per_clip=3",
)


def options(*words: str) -> list[str]:
    """The words of a command line. Of two `--key=value` with one key, which commands refuse, the later one stays."""
    return list({word.partition("=")[0]: word for word in words}.values())


def overrides(*values: str) -> list[str]:
    """`key=value` as options of run.py; later values replace earlier ones."""
    return options(*(f"--config.{value}" for value in values))


def make_config(**sections):
    """The tiny config; `optimizer=dict(name="muon")` and so on change sections."""
    from mv2mae_jax import config as configs

    config = configs.load(pretrain_base.__file__, OVERRIDES)
    with config.ignore_type():
        config.update(sections)
    return config


def make_finetune_config(*overrides: str):
    """The tiny config of fine-tuning, with further overrides."""
    from mv2mae_jax import config as configs

    return configs.load(finetune_base.__file__, [*FINETUNE_OVERRIDES, *overrides])


def random_like(shapes, seed=0):
    """Random parameters of a plausible size. No bias is zero and no scale is one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.float32(math.sqrt(leaf.shape[-2]))
            case "scale":
                return 1 + np.float32(0.1) * noise
        return np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch(config, step: int) -> dict[str, np.ndarray]:
    """A random batch in the pipeline's form."""
    rng = np.random.default_rng(step)
    views = 1 + config.data.num_source_views
    video = rng.integers(0, 256, (config.global_batch_size, views, config.data.num_frames, *config.data.crop_size, 3))
    num_tokens = Pretrain.from_config(config).model.num_tokens
    motion = rng.gamma(1.0, 300.0, (config.global_batch_size, views, num_tokens))
    return {"video": video.astype(np.uint8), "motion": motion.astype(np.float32)}


def run_steps(config, num_steps: int):
    """Trains on random batches over all devices -> (final state on the devices, metrics of each step)."""
    mesh = sharding.make_mesh(**config.mesh)
    task = Pretrain.from_config(config)
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1.0)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    with_ema = config.optimizer.ema_decay is not None

    def create(key):
        return TrainState.create(task.init(key), optimizer, with_ema)

    state = sharding.create(mesh, create, jax.random.key(0))
    train_step = jit_train_step(task, optimizer, schedule, config, mesh, state, jax.random.key(1))
    history = []
    for step in range(num_steps):
        state, metrics = train_step(state, sharding.put_batch(mesh, make_batch(config, step)))
        history.append({key: float(value) for key, value in metrics.items()})
    return state, history


def save_run(workdir, params, *, ema_params=None):
    """Saves a pre-training run of the tiny config that has made three steps, without training it: its state."""
    config = make_config()
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1.0)
    state = TrainState.create(params, optim.make_optimizer(config.optimizer, schedule), ema_params is not None)
    state = state.replace(ema_params=ema_params)
    checkpointer = checkpoint.Checkpointer(str(workdir))
    checkpointer.save(3, state, {"config": config.to_json()})
    checkpointer.close()
    return state
