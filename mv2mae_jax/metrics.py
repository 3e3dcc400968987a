"""What a run reports while it goes: progress lines, TensorBoard events, and history.jsonl."""

import collections
import json
import os
import time
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter


class StepMetrics:
    """Collects the metrics of steps as device arrays and averages them over a log interval.

    Values stay on the device until an interval is complete: the host waits once per interval, not once per step. At
    most `max_in_flight` steps are queued, since a batch that waits occupies device memory.
    """

    def __init__(self, max_in_flight: int = 2):
        self._max_in_flight = max_in_flight
        self._pending: collections.deque[dict[str, jax.Array]] = collections.deque()
        self._window: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._pending.append(metrics)
        if len(self._pending) > self._max_in_flight:
            jax.block_until_ready(self._pending.popleft())
        self._window.append(metrics)

    def mean(self) -> dict[str, float]:
        """Averages since the last call; waits for the steps in flight."""
        fetched = jax.device_get(self._window)
        self._window = []
        return {key: float(np.mean([metrics[key] for metrics in fetched])) for key in fetched[0]}


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


class Reporter:
    """Writes metrics of one run. Only the first process writes; the others' calls do nothing.

    Files in WORKDIR: `history.jsonl` (one JSON object per report) and `tensorboard/` (event files).
    """

    def __init__(self, workdir: str, *, first_step: int, total_steps: int, tensorboard: bool = True):
        self._total_steps = total_steps
        self._active = jax.process_index() == 0
        self._tensorboard = None
        self._history_path = os.path.join(workdir, "history.jsonl")
        if not self._active:
            return
        _drop_history_after(self._history_path, first_step)
        if tensorboard:
            # Events after the step that is resumed from belong to steps that are done again.
            self._tensorboard = SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=first_step + 1)

    def say(self, text: str) -> None:
        if self._active:
            print(text, flush=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Names by area: train/..., eval/..., perf/..., data/..."""
        if not self._active:
            return
        with open(self._history_path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8[H, W, 3] for TensorBoard."""
        if self._active and self._tensorboard:
            self._tensorboard.add_image(name, image, step, dataformats="HWC")

    def progress(self, step: int, values: dict[str, float]) -> None:
        """One line: step, percent, time left, losses, rates."""
        rate, left = values["perf/steps_per_second"], self._total_steps - step
        parts = [f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}", f"{step / self._total_steps:4.0%}"]
        parts += [f"{duration(left / rate)} left"] if rate > 0 else []  # unknown while only the first step is done
        parts += [
            f"{label} {values[key]:.4f}"
            for label, key in (
                ("loss", "train/loss"),
                ("self", "train/loss_self"),
                ("cross", "train/loss_cross"),
                ("mean prediction", "train/loss_mean_prediction"),
                ("accuracy", "train/accuracy"),
            )
            if key in values
        ]
        parts += [f"{values['perf/clips_per_second']:.1f} clips/s", f"data wait {values['data/wait_fraction']:.0%}"]
        parts += [f"MFU {values['perf/mfu']:.0%}"] if "perf/mfu" in values else []
        parts += [f"{values['perf/memory_gb']:.1f} GB"]
        self.say("  ".join(parts))

    def close(self) -> None:
        if self._active and self._tensorboard:
            self._tensorboard.close()


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


def _drop_history_after(path: str, step: int) -> None:
    """Rows of steps that will be done again, after a resume from an earlier checkpoint, are removed."""
    if not os.path.exists(path):
        return
    with open(path) as file:
        kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= step]
    with open(path + ".tmp", "w") as file:
        file.writelines(kept)
    os.replace(path + ".tmp", path)
