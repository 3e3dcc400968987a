"""The training loop, top to bottom, for every task."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import config_dict

from console import progress
from console.errors import UserError
from data.dataset import Dataset
from data.labelled import LabelledDataset
from mv2mae_jax import optim
from mv2mae_jax.config import describe, parse_steps
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import visualize
from mv2mae_jax.models import variants
from mv2mae_jax.monitoring import flops, guards, log_files, metrics, perf
from mv2mae_jax.objectives.finetune import Finetune
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.optim import Schedule
from mv2mae_jax.runs import checkpoint, metrics_file, preemption, resume, run_record, starts_file, step_folders
from mv2mae_jax.state import TrainState
from mv2mae_jax.torch_weights import importer

TASKS = {"pretrain": Pretrain, "finetune": Finetune}


def train(
    config: config_dict.ConfigDict,
    dataset: Dataset | LabelledDataset,
    mesh: jax.sharding.Mesh,
    workdir: str,
    allow_changes: Sequence[str] = (),
) -> dict[str, float]:
    """Trains until the last step, going on from the newest intact checkpoint in `workdir` if there is one.

    Args:
      config: a validated config.
      dataset: the opened data set; labelled for fine-tuning.
      mesh: all devices; see sharding.py.
      workdir: where checkpoints, metrics and pictures go.
      allow_changes: keys of the config that may differ from the checkpoint's, beside continuation.MAY_CHANGE.

    Returns:
      The metrics of the last evaluation.

    Raises:
      ValueError: `init_from` or what `workdir` holds does not fit the model, the data or the config, or the schedule
        the run; or too much of the data is damaged.
      OSError: a checkpoint cannot be written.
      FloatingPointError: loss or gradients are not finite, several steps in a row.
      Preempted: SIGTERM or SIGHUP; the state is saved.
    """
    task = TASKS[config.task].from_config(config, dataset)
    schedule = Schedule.from_config(config, dataset.samples_per_epoch / config.global_batch_size)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    init_key, step_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)

    for line in step_folders.set_aside(Path(workdir, "checkpoints")):
        metrics.say(line)
    checkpointer = checkpoint.Checkpointer(workdir, **config.checkpoint)
    state, host_state = init_state(config, task, optimizer, mesh, init_key, checkpointer, allow_changes)
    first_step = int(state.step)
    if first_step > schedule.total_steps:
        raise UserError(
            f"{checkpointer.directory} holds step {first_step}, beyond the {schedule.total_steps} steps that this "
            "config trains for (total_steps, or num_epochs). Nothing was changed. Set them to the step that is there "
            "or more, choose another --workdir, or move the steps after the new end out of that folder to train from "
            "an older one."
        )
    finished = metrics_file.read(workdir, first_step) if first_step == schedule.total_steps else None
    if finished:
        metrics.say(
            "Nothing is left to do. To go on, raise total_steps or num_epochs, with --allow_changes=total_steps or "
            "num_epochs; or choose another --workdir."
        )
        return finished
    train_step = jit_train_step(task, optimizer, schedule, config, mesh, state, step_key)
    evaluate = make_evaluation(config, task, mesh, eval_key, workdir)

    reporter = metrics.Reporter(
        workdir, first_step=first_step, total_steps=schedule.total_steps, tensorboard=config.log.tensorboard
    )
    facts = run_facts(config, task, schedule, mesh, state)
    reporter.say(describe(config, facts))
    with log_files.optional(os.path.join(workdir, starts_file.STARTS_FILE)):
        starts_file.record_start(workdir, config, facts, first_step)
    reporter.config(config, finished=False)
    if first_step:
        reporter.say(f"Going on from step {first_step} of {checkpointer.directory}.")
    record = {
        "config": config.to_json(),
        "settled": variants.settled(config),
        "git_revision": metrics_file.git_revision(),
        "dataset": dataset.prepared.name,
        "manifest_sha256": resume.manifest_digest(dataset),
        "class_names": list(dataset.prepared.class_names),
    }
    skipped = guards.SkippedUpdates(
        config.limits.skipped_updates, checkpointer.directory, task.take_names, host_state.get("skipped_in_a_row", 0)
    )
    damaged = guards.DamagedSamples(
        workdir,
        dataset.prepared,
        config.limits.damaged_samples,
        first_step=first_step,
        count=host_state.get("damaged_samples", 0),
    )
    step_metrics, clock = metrics.StepMetrics(skipped.observe, host_state.get("window", ())), metrics.Clock()
    profiler = perf.Profiler(os.path.join(workdir, "tensorboard"), parse_steps(config.profile_steps))
    watch, measured, tables = preemption.Watch(), {}, {}

    def is_evaluated(step: int) -> bool:
        wanted = step % config.eval.every_steps == 0 or step in config.eval.get("at_steps", ())
        return step == schedule.total_steps or (step > 0 and wanted)

    with contextlib.ExitStack() as cleanup:
        for close in (reporter.close, damaged.close, checkpointer.close, profiler.close, watch.stop):
            cleanup.callback(close)
        if is_evaluated(first_step):  # its checkpoint was written before its evaluation
            measured, tables = evaluate(state, first_step, reporter)
        batches = task.train_batches(
            seed=config.seed,
            start_step=first_step,
            global_batch_size=config.global_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.data.num_workers,
        )
        cleanup.callback(batches.close)
        bar = cleanup.enter_context(
            progress.Bar(schedule.total_steps, "training", "steps", initial=first_step, lines=False)
        )
        for step in range(first_step + 1, schedule.total_steps + 1):
            batch = damaged.take_out(step, clock.wait_for(batches))
            skipped.remember(step, batch)
            batch = sharding.put_batch(mesh, batch)
            with profiler.step(step):
                state, new_metrics = train_step(state, batch)
            step_metrics.add(step, new_metrics)
            bar.advance()  # the host's steps; the device is at most metrics.IN_FLIGHT behind

            if step == first_step + 1:  # keep compilation out of the rates
                jax.block_until_ready(new_metrics)
                watch.start()
                cost = perf.StepCost(
                    clips=config.global_batch_size * task.views_per_sample,
                    flops=flops.training_flops(task, state.params, batch),
                    mesh=mesh,
                )
                clock.restart()
                bar.resume()
            if profiler.finish(step, new_metrics):
                reporter.say(f"Traced the steps {config.profile_steps}: tensorboard --logdir={workdir}/tensorboard")
                clock.restart()
            if step % config.log.every_steps == 0 or step == schedule.total_steps:
                window = step_metrics.take()
                spikes = guards.loss_spikes(step, window)
                values = {f"train/{name}": value for name, value in metrics.average(window).items()}
                values["train/loss_spikes"] = float(len(spikes))
                values["data/damaged_samples"] = float(damaged.count)
                values |= cost.read(clock)
                reporter.scalars(step, values)
                reporter.progress(step, values)
                for line in spikes:
                    reporter.say(line)
                checkpointer.check()
            told_to_stop = watch.reached()
            if told_to_stop or is_evaluated(step) or checkpointer.is_due(step):
                reporter.flush()
                host_state = {
                    "window": step_metrics.unfinished(),
                    "skipped_in_a_row": skipped.in_a_row,
                    "damaged_samples": damaged.count,
                }
                checkpointer.save(step, state, record | {"progress": host_state}, force=True)
                clock.restart()
            if told_to_stop or is_evaluated(step):
                checkpointer.wait()
            if told_to_stop:
                raise preemption.Preempted(
                    f"Stopped by {watch.noticed} after step {step}, which is saved in {workdir}."
                )
            if is_evaluated(step):
                with watch.suspended():
                    measured, tables = evaluate(state, step, reporter)
                clock.restart()
                bar.resume()
    metrics_file.write(workdir, config, schedule.total_steps, measured, tables)
    reporter.config(config, finished=True)
    reporter.say(f"Done. The metrics of the last evaluation are in {os.path.join(workdir, metrics_file.RESULTS_FILE)}.")
    return measured


def init_state(
    config: config_dict.ConfigDict,
    task: Any,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    checkpointer: checkpoint.Checkpointer,
    allow_changes: Sequence[str],
) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint of the run: (state, what the host remembers of its progress).

    Without one a fresh state, with parameters from `init_from` if that is set.
    """

    def create(key: jax.Array) -> TrainState:
        return TrainState.create(task.init(key), optimizer, with_ema=config.optimizer.ema_decay is not None)

    shapes = jax.eval_shape(create, key)
    placement = sharding.state_sharding(mesh, shapes)
    abstract = sharding.abstract(shapes, placement)
    if checkpointer.latest_step() is not None:
        for line in resume.check_same_run(config, task, checkpointer, allow_changes):
            metrics.say(line)
        state, saved = checkpointer.restore(abstract)
        return state, saved["progress"]
    state = jax.jit(create, out_shardings=placement)(key)
    if config.init_from:
        params = load_params(config, state.params, abstract.params, task.model)
        ema_params = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
        state = state.replace(params=params, ema_params=ema_params)
    return state, {}


def load_params(config: config_dict.ConfigDict, params: Any, abstract_params: Any, model: Any) -> Any:
    """Parameters for `init_from`: another run's, or a PyTorch checkpoint's. Fine-tuning takes the encoder alone.

    Says in a line how many were taken, and which were not.
    """
    path, step, from_torch = (
        config.init_from,
        config.get("init_from_step"),
        importer.is_torch_checkpoint(config.init_from),
    )
    if config.task == "pretrain" and from_torch:
        loaded = importer.load_videomae(path, params, model, target=config.loss.target)
    elif config.task == "pretrain":
        loaded = checkpoint.load_params(path, abstract_params, step)
        importer.tell_other_target(path, run_record.read_record(path, step)[2].loss.target, config.loss.target)
    elif from_torch:
        loaded = params | importer.load_videomae(path, {"encoder": params["encoder"]}, model)
    else:
        loaded = params | {"encoder": checkpoint.load_encoder(path, abstract_params["encoder"], step)}
    metrics.say(checkpoint.taken(path, params, loaded))
    return loaded


def make_train_step(
    task: Any,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    step_key: jax.Array,
    *,
    accumulation_steps: int = 1,
    ema_decay: float | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch) -> (state, metrics)`: pure, its randomness a function of (seed, step)."""

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        inputs = task.randomize(batch, jax.random.fold_in(step_key, state.step))
        grads, step_metrics = accumulate_gradients(task.loss, state.params, inputs, accumulation_steps)
        step_metrics["gradient_norm"] = optax.tree.norm(grads)
        step_metrics["learning_rate"] = schedule(state.step)
        usable = jnp.isfinite(step_metrics["loss"]) & jnp.isfinite(step_metrics["gradient_norm"])
        step_metrics["skipped_update"] = 1.0 - usable
        return state.apply_gradients(grads, optimizer, ema_decay, usable), step_metrics

    return train_step


def accumulate_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]], params: Any, inputs: Any, parts: int
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients and metrics of a batch, computed in equal parts one after the other; `inputs` hold all randomness."""
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, inputs)

    def cut(array: jax.Array) -> jax.Array:
        # Part j takes rows j, j + parts, ...: every device keeps its own rows, nothing moves.
        rows = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])  # (B / parts, parts, ...)
        return rows.swapaxes(0, 1)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda array: array[: array.shape[0] // parts], inputs))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jax.tree.map(cut, inputs))
    return jax.tree.map(lambda array: array / parts, total)


def jit_train_step(
    task: Any,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: config_dict.ConfigDict,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    step_key: jax.Array,
) -> Callable:
    """The one compiled step: donated state, explicit placement of everything that goes in and out."""
    train_step = make_train_step(
        task,
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


def make_evaluation(
    config: config_dict.ConfigDict, task: Any, mesh: jax.sharding.Mesh, eval_key: jax.Array, workdir: str
) -> Callable[[TrainState, int, metrics.Reporter], tuple[dict[str, float], dict[str, Any]]]:
    """Makes `evaluate(state, step, reporter) -> (metrics, tables)`: one pass over what is evaluated, and pictures."""
    area, num_pictures = task.eval_area(config), config.eval.get("num_pictures", 0)

    def eval_step(params: Any, batch: dict[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
        return task.evaluate(params, task.eval_inputs(batch, jax.random.fold_in(eval_key, index)))

    def reconstruct(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        pictures = task.reconstruct(params, task.eval_inputs(batch, jax.random.fold_in(eval_key, 0)))
        return {name: images[:num_pictures] for name, images in pictures.items()}

    everywhere = sharding.replicated(mesh)  # every process receives all rows
    eval_step = jax.jit(sharding.with_mesh(mesh, eval_step), out_shardings=everywhere)
    reconstruct = jax.jit(sharding.with_mesh(mesh, reconstruct), out_shardings=everywhere)

    def draw(params: Any, batch: dict[str, jax.Array], step: int, reporter: metrics.Reporter) -> None:
        pictures = jax.device_get(reconstruct(params, batch))
        if jax.process_index() == 0:
            folder = os.path.join(workdir, "pictures")
            with log_files.optional(folder):
                for name in visualize.write(pictures, folder, step, config.eval.picture_blur_sigma):
                    path = visualize.path_of(folder, step, name)
                    reporter.picture(step, f"{area}/{name}", path + ".png")
                    reporter.picture(step, f"{area}/{name}_moving", path + ".gif")

    def evaluate(state: TrainState, step: int, reporter: metrics.Reporter) -> tuple[dict[str, float], dict[str, Any]]:
        measured = []
        batches = task.eval_batches(config, process_index=jax.process_index(), process_count=jax.process_count())
        for index, batch in enumerate(progress.track(batches, "evaluating", "batches")):
            batch = sharding.put_batch(mesh, batch)
            measured.append(eval_step(state.eval_params, batch, index))
            if index >= metrics.IN_FLIGHT:  # the host does not read on while the device is behind
                measured[index - metrics.IN_FLIGHT] = jax.device_get(measured[index - metrics.IN_FLIGHT])
            if index == 0 and num_pictures:
                draw(state.eval_params, batch, step, reporter)
        measured = jax.device_get(measured)
        samples = {key: np.concatenate([part[key] for part in measured]) for key in measured[0]}
        summary = task.summarize(samples) | task.measure_features(state.eval_params, config, mesh)
        results = {f"{area}/{name}": value for name, value in summary.items()}
        reporter.scalars(step, results)
        reporter.say(f"{area} at step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in summary.items()))
        return results, task.tables(samples)

    return evaluate


def run_facts(
    config: config_dict.ConfigDict, task: Any, schedule: Schedule, mesh: jax.sharding.Mesh, state: TrainState
) -> dict[str, str]:
    """What the start of a run says beside the config: the actual sizes and rates that follow from it."""
    device, views = mesh.devices.flat[0], task.views_per_sample
    parts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in state.params.items()}
    epoch = task.dataset.samples_per_epoch
    seen = schedule.total_steps * config.global_batch_size
    return {
        "devices": f"{mesh.size} x {device.device_kind} ({device.platform}), {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": f"{sum(parts.values()):,} (" + ", ".join(f"{k} {v:,}" for k, v in parts.items()) + ")",
        "compute": f"{jnp.dtype(task.model.dtype).name}, parameters float32",
        **task.describe(),
        "a step": f"{config.global_batch_size} samples x {views} view(s) = {config.global_batch_size * views} clips",
        "length": f"{schedule.total_steps} steps = {seen / epoch:.1f} epochs of {epoch} samples",
        "learning rate": f"{schedule.peak_learning_rate:.3g} after {schedule.warmup_steps} steps of warm-up, "
        f"then a cosine to {schedule.final_learning_rate:.3g}",
    }
