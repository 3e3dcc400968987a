"""The reports of a running run: progress lines, TensorBoard events, and history.jsonl."""

import collections
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict
from PIL import Image

from console import progress
from mv2mae_jax.monitoring import event_files, log_files
from mv2mae_jax.runs import side_files

# The parts of a reconstruction loss, by metric, and what reports call them.
LOSSES = {"loss_self": "self-view", "loss_joint": "joint", "loss_cross": "cross-view"}
IN_FLIGHT = 2  # [ours] the host is at most this many steps ahead, because waiting batches take device memory

Window = list[dict[str, np.float32]]  # the metrics of steps, in order


class StepMetrics:
    """Collects the metrics of the steps of a log interval as device arrays.

    Values stay on the device until an interval is complete: the host waits once per interval, not once per step.
    """

    def __init__(self, observe: Callable[[int, dict[str, jax.Array]], None], window: Sequence[dict[str, float]] = ()):
        """
        Args:
          observe: called with each step and its metrics, in order, once they are there (IN_FLIGHT steps later).
          window: the value of `unfinished` in the checkpoint, if the run was resumed within an interval.
        """
        self._observe = observe
        self._in_flight: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._window = [{key: np.float32(value) for key, value in metrics.items()} for metrics in window]

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._in_flight.append((step, metrics))
        self._window.append(metrics)
        self._settle(IN_FLIGHT)

    def unfinished(self) -> list[dict[str, float]]:
        """The metrics of the steps since the last `take`, for a checkpoint; waits for the steps in flight."""
        self._settle(0)
        self._window = jax.device_get(self._window)
        return [{key: float(value) for key, value in metrics.items()} for metrics in self._window]

    def take(self) -> Window:
        """The metrics of the steps since the last call; waits for the steps in flight."""
        self._settle(0)
        window, self._window = jax.device_get(self._window), []
        return window

    def _settle(self, in_flight: int) -> None:
        while len(self._in_flight) > in_flight:
            step, metrics = self._in_flight.popleft()
            jax.block_until_ready(metrics)
            self._observe(step, metrics)


def average(window: Window) -> dict[str, float]:
    """Means over the steps whose update was not skipped (over all if there is none), and `skipped_updates`."""
    done = [metrics for metrics in window if not metrics["skipped_update"]] or window
    means = {key: float(np.mean([metrics[key] for metrics in done])) for key in done[0] if key != "skipped_update"}
    return means | {"skipped_updates": float(sum(metrics["skipped_update"] for metrics in window))}


class Clock:
    """Wall time of training since the last reading, without what is excluded (compilation, evaluation, saving)."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def wait_for(self, batches) -> Any:
        """The next batch; the time it takes counts as waiting for data."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        self._steps += 1
        return batch

    def read(self) -> tuple[float, float]:
        """(steps per second, fraction of the time spent waiting for data) since the last restart, then restarts."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rates = self._steps / elapsed, min(1.0, self._waited / elapsed)
        self.restart()
        return rates


def say(text: str) -> None:
    """Prints a line, in the first process only."""
    if jax.process_index() == 0:
        progress.say(text)


class Reporter:
    """Writes metrics of one run. Only the first process writes; the others' calls do nothing.

    Files in WORKDIR: `history.jsonl` (one JSON object per report) and `tensorboard/` (event files). They neither delay
    nor end a run, see log_files.py.
    """

    def __init__(self, workdir: str, *, first_step: int, total_steps: int, tensorboard: bool = True):
        self._total_steps = total_steps
        self._history: log_files.LogFile | None = None
        self._events: log_files.LogFile | None = None
        self._folder = os.path.join(workdir, "tensorboard")
        if jax.process_index() != 0:
            return
        # A resumed run repeats everything after the checkpoint's step, and also that step's evaluation, because the
        # checkpoint is written before it.
        path = os.path.join(workdir, side_files.HISTORY_FILE)
        rows = drop_rows_after(path, first_step, is_of_training, side_files.is_numbers)
        self._history = log_files.LogFile(path)
        if tensorboard:
            with log_files.optional(self._folder):
                os.makedirs(self._folder, exist_ok=True)
            self._events = log_files.LogFile(event_files.series_path(self._folder))
            self._events.add(event_files.series_head(first_step))
            for row in rows[-1:]:
                if row["step"] == first_step:  # purged with the evaluation, but not computed again
                    self._add_events(first_step, {key: value for key, value in row.items() if key != "step"})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Names by area: train/..., eval/..., perf/..., data/..."""
        if self._history:
            self._history.add(json.dumps({"step": step, **values}).encode() + b"\n")
            self._history.flush()  # so that the file is as new as the screen
        self._add_events(step, values)

    def _add_events(self, step: int, values: dict[str, float]) -> None:
        if self._events:
            self._events.add(event_files.series_row(step, values))

    def flush(self) -> None:
        """Writes what was reported so far, so that no checkpoint is ahead of the files."""
        for file in filter(None, (self._history, self._events)):
            file.flush()

    def picture(self, step: int, name: str, path: str) -> None:
        """A PNG or GIF file for TensorBoard, which shows GIFs moving. Raises OSError where it cannot be read."""
        if self._events:
            with Image.open(path) as image:
                width, height = image.size
            encoded = Path(path).read_bytes()
            self._events.add(event_files.series_picture(step, name, encoded, height=height, width=width))

    def config(self, config: config_dict.ConfigDict, *, finished: bool) -> None:
        """Writes the config that TensorBoard compares; again with `finished` after the last evaluation."""
        if self._events:
            with log_files.optional(os.path.join(self._folder, event_files.CONFIG_FILE)):
                event_files.write_config(self._folder, config, finished=finished)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """One line: step, percent, time left, losses, rates."""
        if progress.silenced():
            return
        rate, left = values["perf/steps_per_second"], self._total_steps - step
        parts = [f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}", f"{step / self._total_steps:4.0%}"]
        parts += [f"{duration(left / rate)} left"] if rate > 0 else []  # unknown after the first step
        parts += [
            f"{name.removeprefix('loss_').replace('_', ' ')} {values[f'train/{name}']:.4f}"
            for name in ("loss", *LOSSES, "loss_mean_prediction", "accuracy")
            if f"train/{name}" in values
        ]
        parts += [f"{values['perf/clips_per_second']:.1f} clips/s", f"data wait {values['data/wait_fraction']:.0%}"]
        parts += [f"MFU {values['perf/mfu']:.0%}"] if "perf/mfu" in values else []
        parts += [f"{values['perf/memory_gb']:.1f} GB"]
        say("  ".join(parts))

    def close(self) -> None:
        for file in filter(None, (self._history, self._events)):
            file.close()


def duration(seconds: float) -> str:
    """90 -> '1m30s'."""
    seconds = round(seconds)
    days, seconds = divmod(seconds, 86400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def is_of_training(row: dict[str, float]) -> bool:
    """Whether a row of history.jsonl is of a log interval. The others are of evaluations, each of a saved step."""
    return any(key.startswith("train/") for key in row)


def drop_rows_after(
    path: str,
    step: int,
    keep_at_step: Callable[[dict], bool] = lambda row: True,
    is_whole: Callable[[Any], bool] = side_files.is_row,
) -> list[dict]:
    """Removes the rows of steps that will be repeated after resuming from a checkpoint.

    Args:
      path: a file with one JSON object with a `step` per line; it need not exist.
      step: the checkpoint's step.
      keep_at_step: whether to keep a row of this very step.
      is_whole: whether a row is not damaged; see side_files.py.

    Returns:
      The remaining rows.
    """
    rows = side_files.read_rows(path, is_whole, repair=True)
    kept = [row for row in rows if row["step"] < step or (row["step"] == step and keep_at_step(row))]
    if len(kept) < len(rows):
        side_files.write_rows(path, kept)
    return kept
