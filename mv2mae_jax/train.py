"""The training loop, top to bottom, for every objective."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

from data.dataset import Dataset
from data.labelled import LabelledDataset
from mv2mae_jax import optim
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation.while_training import make_evaluation
from mv2mae_jax.initial_state import init_state
from mv2mae_jax.objectives.finetune import Finetune
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.optim import Schedule
from mv2mae_jax.runs import resume
from mv2mae_jax.state import TrainState
from mv2mae_jax.training_run import TrainingRun, open_checkpoints, results_if_finished

OBJECTIVES = {"pretrain": Pretrain, "finetune": Finetune}


def train(
    config: config_dict.ConfigDict,
    dataset: Dataset | LabelledDataset,
    mesh: jax.sharding.Mesh,
    workdir: str,
    allow_changes: Sequence[str] = (),
) -> dict[str, float]:
    """Trains until the last step, continuing from the newest intact checkpoint in `workdir` if there is one.

    Args:
      config: a validated config.
      dataset: the opened data set; labelled for fine-tuning.
      mesh: all devices; see distributed/sharding.py.
      workdir: where checkpoints, metrics and pictures go.
      allow_changes: keys of the config that may differ from the checkpoint's, besides resume.MAY_CHANGE.

    Returns:
      The metrics of the last evaluation.

    Raises:
      ValueError: `init_from` or the content of `workdir` does not fit the model, the data or the config; the schedule
        does not fit the run; the processes were not started alike; or too much of the data is damaged.
      OSError: a checkpoint cannot be written.
      FloatingPointError: loss or gradients are not finite, several steps in a row.
      Preempted: SIGTERM or SIGHUP; the state is saved.
    """
    objective = OBJECTIVES[config.task].from_config(config, dataset)
    schedule = Schedule.from_config(config, dataset.samples_per_epoch / config.global_batch_size)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    init_key, step_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)

    checkpointer = open_checkpoints(config, workdir)
    resume.check_processes(config, objective, checkpointer)
    state, saved_progress = init_state(config, objective, optimizer, mesh, init_key, checkpointer, allow_changes)
    finished = results_if_finished(workdir, checkpointer.directory, int(state.step), schedule.total_steps)
    if finished:
        return finished
    train_step = jit_train_step(objective, optimizer, schedule, config, mesh, state, step_key)
    evaluate = make_evaluation(config, objective, mesh, eval_key, workdir)

    with TrainingRun(
        config=config,
        objective=objective,
        schedule=schedule,
        mesh=mesh,
        workdir=workdir,
        checkpointer=checkpointer,
        evaluate=evaluate,
        state=state,
        saved_progress=saved_progress,
    ) as run:
        for step, batch in run.steps():
            state, metrics = train_step(state, batch)
            run.after(step, state, metrics)
    return run.finish()


def make_train_step(
    objective: Any,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    step_key: jax.Array,
    *,
    accumulation_steps: int = 1,
    ema_decay: float | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the pure function `train_step(state, batch) -> (state, metrics)`. (seed, step) decides its randomness."""

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        inputs = objective.make_inputs(batch, jax.random.fold_in(step_key, state.step))
        grads, step_metrics = accumulate_gradients(objective.loss, state.params, inputs, accumulation_steps)
        step_metrics["gradient_norm"] = optax.tree.norm(grads)
        step_metrics["learning_rate"] = schedule(state.step)
        usable = jnp.isfinite(step_metrics["loss"]) & jnp.isfinite(step_metrics["gradient_norm"])
        step_metrics["skipped_update"] = 1.0 - usable
        return state.apply_gradients(grads, optimizer, ema_decay, usable), step_metrics

    return train_step


def accumulate_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]], params: Any, inputs: Any, parts: int
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients and metrics of a batch: the mean over equal parts, computed in turn. `inputs` hold all randomness."""
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, inputs)

    def cut(array: jax.Array) -> jax.Array:
        # Part j takes rows j, j + parts, ..., so that every device keeps its own rows and nothing is sent.
        rows = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])  # (B / parts, parts, ...)
        return rows.swapaxes(0, 1)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda array: array[: array.shape[0] // parts], inputs))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jax.tree.map(cut, inputs))
    return jax.tree.map(lambda array: array / parts, total)


def jit_train_step(
    objective: Any,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: config_dict.ConfigDict,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    step_key: jax.Array,
) -> Callable:
    """Compiles the step. The state is donated; the placement of every input and output is given."""
    train_step = make_train_step(
        objective,
        optimizer,
        schedule,
        step_key,
        accumulation_steps=config.optimizer.accumulation_steps,
        ema_decay=config.optimizer.ema_decay,
    )
    placement = sharding.state_sharding(mesh, state)
    return jax.jit(
        sharding.with_mesh(mesh, train_step),
        in_shardings=(placement, sharding.batch_sharding(mesh)),
        out_shardings=(placement, sharding.replicated(mesh)),
        donate_argnums=0,
    )
