"""What a run starts from: its newest checkpoint, the parameters that `init_from` names, or fresh ones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

from mv2mae_jax.distributed import sharding
from mv2mae_jax.monitoring import metrics
from mv2mae_jax.runs import checkpoint, resume, run_record
from mv2mae_jax.state import TrainState
from mv2mae_jax.torch_weights import importer


def init_state(
    config: config_dict.ConfigDict,
    objective: Any,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    checkpointer: checkpoint.Checkpointer,
    allow_changes: Sequence[str],
) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint of the run: (state, the host's progress that was saved with it).

    Without one a fresh state, with parameters from `init_from` if that is set.
    """

    def create(key: jax.Array) -> TrainState:
        return TrainState.create(objective.init(key), optimizer, with_ema=config.optimizer.ema_decay is not None)

    abstract = sharding.abstract(mesh, jax.eval_shape(create, key))
    if checkpointer.latest_step() is not None:
        for line in resume.check_same_run(config, objective, checkpointer, allow_changes):
            metrics.say(line)
        state, saved = checkpointer.restore(abstract)
        return state, saved["progress"]
    state = sharding.create(mesh, create, key)
    if not config.init_from:
        importer.refuse_step(config)
    else:
        params = load_params(config, state.params, abstract.params, objective.model)
        if config.task == "finetune" and not importer.is_torch_checkpoint(config.init_from):
            run_record.compare_data(config.init_from, config.init_from_step, objective.dataset)
        ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
        state = state.replace(params=params, ema_params=ema_params)
    return state, {}


def load_params(config: config_dict.ConfigDict, params: Any, abstract_params: Any, model: Any) -> Any:
    """Parameters for `init_from`: another run's, or a PyTorch checkpoint's. Fine-tuning takes the encoder alone.

    Says in a line how many were taken, and which were not.

    Raises:
      ValueError: there is no such run or checkpoint, it does not fit, or it has no steps but `init_from_step` is set.
    """
    path, step = config.init_from, config.get("init_from_step")
    from_torch = importer.is_torch_checkpoint(path)
    if from_torch:
        importer.refuse_step(config)
    if config.task == "pretrain" and from_torch:
        loaded = importer.load_videomae(path, params, model, target=config.loss.target)
    elif config.task == "pretrain":
        loaded = checkpoint.load_params(path, abstract_params, step)
        trained = run_record.read_record(path, step)[2]
        importer.check_run(path, trained, model, ("num_heads", "tubelet_size", "decoder_heads"))
        importer.tell_other_target(path, trained.loss.target, config.loss.target)
    elif from_torch:
        loaded = params | importer.load_videomae(path, {"encoder": params["encoder"]}, model)
    else:
        loaded = params | {"encoder": checkpoint.load_encoder(path, abstract_params["encoder"], step)}
        importer.check_run(path, run_record.read_record(path, step)[2], model)
    metrics.say(checkpoint.taken(path, params, loaded))
    return loaded
