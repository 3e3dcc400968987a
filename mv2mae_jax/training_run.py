"""Everything around the steps of a training run, behind one object, `TrainingRun`: see docs/reliability.md.

It evaluates, saves and logs when that is due. It obeys the stop signals, counts skipped updates and damaged samples,
measures rates, takes traces and writes the history. It changes nothing that a step computes.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import config_dict

from console import progress
from console.errors import UserError
from mv2mae_jax.config import describe, parse_steps
from mv2mae_jax.distributed import sharding
from mv2mae_jax.monitoring import flops, guards, log_files, metrics, perf
from mv2mae_jax.optim import Schedule
from mv2mae_jax.runs import checkpoint, metrics_file, preemption, resume, side_files, starts_file, step_folders
from mv2mae_jax.state import TrainState

Batch = dict[str, jax.Array]
Evaluate = Callable[[TrainState, int, metrics.Reporter], tuple[dict[str, float], dict[str, Any]]]


def open_checkpoints(config: config_dict.ConfigDict, workdir: str) -> checkpoint.Checkpointer:
    """Opens the checkpoints of a workdir. Damaged ones are first renamed, each with a line in the log.

    Raises ValueError if none is left, but the workdir tells of one; OSError if nothing can be written there, which is
    told now and not at the first save.
    """
    folder = Path(workdir, "checkpoints")
    for line in step_folders.set_aside(folder):
        metrics.say(line)
    if not step_folders.steps_in(folder) and (evidence := _was_saved(workdir)):
        raise UserError(
            f"{folder} holds no checkpoint, but {evidence}. The run does not start over on top of that: bring the "
            "checkpoints back, or choose another --workdir."
        )
    checkpointer = checkpoint.Checkpointer(workdir, **config.checkpoint)
    if jax.process_index() != 0 and not os.path.isdir(checkpointer.directory):
        raise UserError(
            f"{checkpointer.directory} is not there, which process 0 has made in its --workdir: give every process a "
            "--workdir that all of them see."
        )
    for needed in (workdir, checkpointer.directory):
        tempfile.TemporaryFile(dir=needed).close()
    return checkpointer


def _was_saved(workdir: str) -> str:
    """Which file of a workdir tells that a checkpoint was there, and of what step; '' if none does."""
    results = side_files.read(os.path.join(workdir, metrics_file.RESULTS_FILE), metrics_file.is_whole)
    starts = starts_file.read_starts(workdir)
    rows = side_files.read_rows(os.path.join(workdir, side_files.HISTORY_FILE), side_files.is_numbers)
    evaluated = [row["step"] for row in rows if not metrics.is_of_training(row)]  # each was saved before
    told = {
        metrics_file.RESULTS_FILE: [results["step"]] if results else [],
        starts_file.STARTS_FILE: [start["first_step"] for start in starts if start["first_step"]],
        side_files.HISTORY_FILE: evaluated,
    }
    return next((f"{file} tells of step {max(steps)}" for file, steps in told.items() if steps), "")


def results_if_finished(workdir: str, checkpoints: str, step: int, total_steps: int) -> dict[str, float] | None:
    """The metrics of a run that has nothing left to do, else None. Raises ValueError if it is beyond its last step."""
    if step > total_steps:
        raise UserError(
            f"{checkpoints} holds step {step}, beyond the {total_steps} steps that this config trains for "
            "(total_steps, or num_epochs). Nothing was changed. Set them to the step that is there or more, choose "
            "another --workdir, or move the steps after the new end out of that folder to train from an older one."
        )
    finished = metrics_file.read(workdir, step) if step == total_steps else None
    if finished:
        metrics.say(
            "Nothing is left to do. To continue, raise total_steps or num_epochs, with --allow_changes=total_steps or "
            "num_epochs; or choose another --workdir."
        )
    return finished


class TrainingRun:
    """A run from its first step to its results. As a context manager, it closes everything that it opened.

    for step, batch in run.steps():
        state, metrics = train_step(state, batch)
        run.after(step, state, metrics)
    """

    def __init__(
        self,
        *,
        config: config_dict.ConfigDict,
        objective: Any,
        schedule: Schedule,
        mesh: jax.sharding.Mesh,
        workdir: str,
        checkpointer: checkpoint.Checkpointer,
        evaluate: Evaluate,
        state: TrainState,
        saved_progress: dict[str, Any],
    ):
        """Prints what the run is, and records it in WORKDIR.

        Args:
          evaluate: `(state, step, reporter) -> (metrics, tables)`.
          state: where the run starts from.
          saved_progress: what `_progress` returned when `state` was saved; empty for a fresh run.
        """
        self._config, self._objective, self._mesh, self._workdir = config, objective, mesh, workdir
        self._checkpointer, self._evaluate, self._state = checkpointer, evaluate, state
        self._first_step, self._last_step = int(state.step), schedule.total_steps
        dataset = objective.dataset
        metrics_file.set_aside_after(workdir, self._first_step)
        self._reporter = metrics.Reporter(
            workdir, first_step=self._first_step, total_steps=self._last_step, tensorboard=config.log.tensorboard
        )
        facts = run_facts(config, objective, schedule, mesh, state)
        metrics.say(describe(config, facts))
        other_code = ""
        with log_files.optional(os.path.join(workdir, starts_file.STARTS_FILE)):
            other_code = starts_file.record_start(workdir, config, facts, self._first_step)
        self._reporter.config(config, finished=False)
        if self._first_step:
            metrics.say(f"Continuing from step {self._first_step} of {checkpointer.directory}.")
            if other_code:
                metrics.say(other_code)
        self._record = {
            "config": config.to_json(),
            "settled": objective.model.compute.settled(),
            "git_revision": metrics_file.git_revision(),
            "dataset": dataset.prepared.name,
            "manifest_sha256": dataset.prepared.content_digest(),
            "class_names": list(dataset.prepared.class_names),
            "frame_rates": dataset.prepared.frame_rates(),  # for those who give the encoder other videos
        }
        self._skipped = guards.SkippedUpdates(
            config.limits.skipped_updates,
            checkpointer.directory,
            objective.take_names,
            saved_progress.get("skipped_in_a_row", 0),
        )
        self._damaged = guards.DamagedSamples(
            workdir,
            dataset.prepared,
            config.limits.damaged_samples,
            first_step=self._first_step,
            count=saved_progress.get("damaged_samples", 0),
        )
        self._step_metrics = metrics.StepMetrics(self._skipped.observe, saved_progress.get("window", ()))
        self._clock = metrics.Clock()
        self._profiler = perf.Profiler(os.path.join(workdir, "tensorboard"), parse_steps(config.profile_steps))
        self._traced_step = contextlib.ExitStack()
        self._watch = preemption.Watch()
        self._results: tuple[dict[str, float], dict[str, Any]] = {}, {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "TrainingRun":
        for part in (self._reporter, self._damaged, self._checkpointer, self._profiler):
            self._cleanup.callback(part.close)
        self._cleanup.callback(self._watch.stop)
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._cleanup.__exit__(*error)

    def steps(self) -> Iterator[tuple[int, Batch]]:
        """Yields the steps that are left, each with its batch on the devices.

        A run may have ended between saving a step and evaluating it. That step is evaluated first.
        """
        if self._evaluation_is_due(self._first_step):
            self._results = self._evaluate(self._state, self._first_step, self._reporter)
        del self._state  # its memory is donated to the first step
        batches = self._objective.train_batches(
            seed=self._config.seed,
            start_step=self._first_step,
            global_batch_size=self._config.global_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self._config.data.num_workers,
        )
        self._cleanup.callback(batches.close)
        self._bar = self._cleanup.enter_context(
            progress.Bar(self._last_step, "training", "steps", initial=self._first_step, lines=False)
        )
        for step in range(self._first_step + 1, self._last_step + 1):
            batch = self._damaged.take_out(step, self._clock.wait_for(batches))
            self._skipped.remember(step, batch)
            batch = sharding.put_batch(self._mesh, batch)
            if step == self._first_step + 1:
                self._first_batch = batch
            self._traced_step.enter_context(self._profiler.step(step))
            yield step, batch

    def after(self, step: int, state: TrainState, new_metrics: Batch) -> None:
        """Logs, saves and evaluates where that is due.

        Args:
          step: the step that was taken; the first is 1.
          new_metrics: its metrics, on the devices. The host reads them when a log interval is complete.

        Raises:
          FloatingPointError, OSError, Preempted: as `train` says.
          ValueError: another run has begun in the workdir.
        """
        self._traced_step.close()
        self._step_metrics.add(step, new_metrics)
        self._bar.advance()  # the host's steps; the device is at most metrics.IN_FLIGHT behind
        if step == self._first_step + 1:
            self._after_first_step(state, new_metrics)
        if self._profiler.finish(step, new_metrics):
            metrics.say(
                f"Traced the steps {self._config.profile_steps}: tensorboard --logdir={self._workdir}/tensorboard"
            )
            self._clock.restart()
        if step % self._config.log.every_steps == 0 or step == self._last_step:
            self._log(step)
            self._checkpointer.check()
        told_to_stop, evaluates = self._watch.reached(), self._evaluation_is_due(step)
        if told_to_stop or evaluates or self._checkpointer.is_due(step):
            self._reporter.flush()
            resume.check_still_ours(self._workdir)
            self._checkpointer.save(step, state, self._record | {"progress": self._progress()})
            self._clock.restart()
        if told_to_stop or evaluates:
            self._checkpointer.wait()
            told_to_stop = told_to_stop or self._watch.reached()  # the signal may have come while the state was saved
        if told_to_stop:
            raise preemption.Preempted(
                f"Stopped by {self._watch.noticed} after step {step}, which is saved in {self._workdir}."
            )
        if evaluates:
            with self._watch.suspended():
                self._results = self._evaluate(state, step, self._reporter)
            self._clock.restart()
            self._bar.resume()

    def finish(self) -> dict[str, float]:
        """Writes metrics.json after the last step. Returns what it holds, the metrics of the last evaluation."""
        measured, tables = self._results
        metrics_file.write(self._workdir, self._config, self._last_step, measured, tables)
        self._reporter.config(self._config, finished=True)
        path = os.path.join(self._workdir, metrics_file.RESULTS_FILE)
        metrics.say(f"Done. The metrics of the last evaluation are in {path}.")
        return measured

    def _evaluation_is_due(self, step: int) -> bool:
        wanted = step % self._config.eval.every_steps == 0 or step in self._config.eval.at_steps
        return step == self._last_step or (step > 0 and wanted)

    def _after_first_step(self, state: TrainState, new_metrics: Batch) -> None:
        """Starts obeying stop signals and measuring rates, without the first step: that one compiles."""
        jax.block_until_ready(new_metrics)
        self._watch.start()
        self._cost = perf.StepCost(
            clips=self._config.global_batch_size * self._objective.views_per_sample,
            flops=flops.training_flops(self._objective, state.params, self._first_batch),
            mesh=self._mesh,
        )
        del self._first_batch
        self._clock.restart()
        self._bar.resume()

    def _log(self, step: int) -> None:
        window = self._step_metrics.take()
        spikes = guards.loss_spikes(step, window)
        values = {f"train/{name}": value for name, value in metrics.average(window).items()}
        values["train/loss_spikes"] = float(len(spikes))
        values["data/damaged_samples"] = float(self._damaged.count)
        values |= self._cost.read(self._clock)
        self._reporter.scalars(step, values)
        self._reporter.progress(step, values)
        for line in spikes:
            metrics.say(line)

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state, so that a resumed run continues exactly."""
        return {
            "window": self._step_metrics.unfinished(),
            "skipped_in_a_row": self._skipped.in_a_row,
            "damaged_samples": self._damaged.count,
        }


def run_facts(
    config: config_dict.ConfigDict, objective: Any, schedule: Schedule, mesh: jax.sharding.Mesh, state: TrainState
) -> dict[str, str]:
    """{title: text} of what follows from the config: devices, parameters, steps and learning rate."""
    device, views = mesh.devices.flat[0], objective.views_per_sample
    parts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in state.params.items()}
    epoch = objective.dataset.samples_per_epoch
    seen = schedule.total_steps * config.global_batch_size
    return {
        "devices": f"{mesh.size} x {device.device_kind} ({device.platform}), {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": f"{sum(parts.values()):,} (" + ", ".join(f"{k} {v:,}" for k, v in parts.items()) + ")",
        "compute": f"{objective.model.compute.dtype.name}, parameters float32",
        **({"memory": advice} if (advice := perf.advice_on_pages()) else {}),
        **objective.describe(),
        "a step": f"{config.global_batch_size} samples x {views} view(s) = {config.global_batch_size * views} clips",
        "length": f"{schedule.total_steps} steps = {seen / epoch:.1f} epochs of {epoch} samples",
        "learning rate": f"{schedule.peak_learning_rate:.3g} after {schedule.warmup_steps} steps of warm-up, "
        f"then a cosine to {schedule.final_learning_rate:.3g}",
        **never_reached(config, schedule.total_steps),
    }


def never_reached(config: config_dict.ConfigDict, total_steps: int) -> dict[str, str]:
    """{title: text} of the steps in a config that lie beyond the last one, if any."""
    late = [f"eval.at_steps {step}" for step in config.eval.at_steps if step > total_steps]
    if parse_steps(config.profile_steps).stop > total_steps + 1:
        late.append(f"profile_steps {config.profile_steps}")
    return {"beyond the end": ", ".join(late)} if late else {}
