"""What is watched during a run: updates that had to be skipped, spikes of the loss, samples that cannot be read."""

import collections
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from console import progress
from console.command import some_of
from console.errors import NotFinite
from data.store.takes import DamagedRecord, Prepared
from mv2mae_jax.monitoring import log_files
from mv2mae_jax.monitoring.metrics import IN_FLIGHT, drop_rows_after
from mv2mae_jax.runs import checkpoint, step_folders

SPIKE = 3.0  # [ours] a loss of more than this many times the median of the losses before it is a spike
SPIKE_BEFORE = 10  # [ours] the median is taken over at most this many steps, and at least half as many
FIRST_SAMPLES = 1000  # [ours] the share of damaged samples is taken of at least this many samples

Batch = dict[str, np.ndarray]


class SkippedUpdates:
    """Stops a run when too many updates in a row are skipped because loss or gradients are not finite."""

    def __init__(self, most_in_a_row: int, checkpoints: str, names: Callable[[Batch], list[str]], in_a_row: int = 0):
        """
        Args:
          most_in_a_row: this many skipped updates in a row stop the run.
          checkpoints: directory, to name the newest good one.
          names: of the takes of a batch.
          in_a_row: the checkpoint's value if the run was resumed.
        """
        self.in_a_row = in_a_row  # updates skipped up to the step that was observed last
        self._most, self._checkpoints, self._names = most_in_a_row, Path(checkpoints), names
        self._batches: collections.deque[tuple[int, Batch]] = collections.deque(maxlen=most_in_a_row + IN_FLIGHT)

    def remember(self, step: int, batch: Batch) -> None:
        """Keeps the numbers of the takes in a step's batch."""
        self._batches.append((step, {key: batch[key] for key in ("take", "row") if key in batch}))

    def observe(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """To be called for each step, in order, when its metrics are there.

        Raises:
          FloatingPointError: too many in a row; names the steps, their takes and the newest good checkpoint.
        """
        self.in_a_row = self.in_a_row + 1 if float(metrics["skipped_update"]) else 0
        if self.in_a_row < self._most:
            return
        first = step - self.in_a_row + 1
        known = [(number, sorted(set(self._names(batch)))) for number, batch in self._batches]
        takes = [f"step {number}: {some_of(names, 8)}" for number, names in known if first <= number <= step]
        good = [saved for saved in step_folders.steps_in(self._checkpoints) if saved < first]
        kept = f"step {good[-1]} in {self._checkpoints}" if good else "none, none was written before"
        raise NotFinite(
            f"Loss or gradients were not finite in steps {first} to {step}; these {self.in_a_row} updates were "
            f"skipped. Newest checkpoint from before: {kept}. Nothing was deleted. Lower "
            "optimizer.base_learning_rate, set optimizer.clip_norm, compute in float32, or look at the takes"
            + (" of this process's share:" if jax.process_count() > 1 else ":")
            + "".join(f"\n  {line}" for line in takes)
        )


def check_finite(finite: Any, step: int) -> None:
    """Stops a run whose parameters are not finite, before they are evaluated: they will never be again.

    `finite` says of each parameter after that step whether all its values are.

    Raises:
      FloatingPointError: names the first of those that are not.
    """
    if bad := checkpoint.not_finite(finite):
        raise NotFinite(
            f"After step {step}, {len(bad)} of {len(jax.tree.leaves(finite))} parameters are not finite: "
            f"{some_of(bad, 3)}. No further step can mend them. Lower optimizer.base_learning_rate or set "
            "optimizer.clip_norm, and begin again in another --workdir, or from an earlier checkpoint by init_from."
        )


def loss_spikes(last_step: int, window: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each step whose loss jumps up, of a log interval whose steps have these metrics and of no other."""
    losses = [float(metrics["loss"]) for metrics in window]
    lines = []
    for index, loss in enumerate(losses):
        before = [value for value in losses[max(0, index - SPIKE_BEFORE) : index] if math.isfinite(value)]
        if len(before) >= SPIKE_BEFORE // 2 and loss > SPIKE * float(np.median(before)):
            step = last_step - len(window) + 1 + index
            lines.append(f"Loss spike: {loss:.4g} at step {step}, {float(np.median(before)):.4g} in the steps before.")
    return lines


class DamagedSamples:
    """Counts and logs the samples that could not be read and were replaced; too many stop the run.

    Only the process that reads a sample knows of its damage. Of several processes, each watches its own share and
    writes its own log.
    """

    def __init__(self, workdir: str, prepared: Prepared, most: float, *, first_step: int, count: int = 0):
        """
        Args:
          workdir: `damaged_records.jsonl` is written there.
          prepared: the data set, to name takes and reasons.
          most: share of the samples, above which the run stops.
          first_step: the log's rows after it belong to steps that are repeated.
          count: the checkpoint's value if the run was resumed.
        """
        self.count = count  # damaged samples since the first step
        self._prepared, self._most = prepared, most
        process = f"-{jax.process_index()}" if jax.process_index() else ""
        self._path = os.path.join(workdir, f"damaged_records{process}.jsonl")
        drop_rows_after(self._path, first_step)
        self._log = log_files.LogFile(self._path)

    def close(self) -> None:
        self._log.close()

    def take_out(self, step: int, batch: Batch) -> Batch:
        """Logs the damage in a batch and returns the batch without its column `damaged`.

        Raises:
          DamagedRecord: more than the stated share of the samples is damaged.
        """
        damaged = batch["damaged"]
        records = damaged[damaged >= 0].tolist()
        if records:
            self.count += len(records)
            rows = [self._row(step, record) for record in sorted(set(records))]
            for row in rows:
                self._log.add(json.dumps(row).encode() + b"\n")
                progress.say(f"Damaged, replaced by another sample: {row['reason']}")
            self._log.flush()
            samples = max(step * len(damaged), FIRST_SAMPLES)
            if self.count > self._most * samples:
                raise DamagedRecord(
                    f"{self.count} samples could not be read up to step {step}, more than limits.damaged_samples = "
                    f"{self._most:g} of {samples}; {self._path} lists them. `python -m data.prepare --verify "
                    f"--output={self._prepared.place_of(records[-1])[0]}` names what is damaged.",
                    records[-1],
                )
        return {key: value for key, value in batch.items() if key != "damaged"}

    def _row(self, step: int, record: int) -> dict[str, Any]:
        views = self._prepared.views
        try:
            self._prepared.read(record, np.arange(views["num_frames"][record]))
            reason = f"record {record} could not be read, and now can"
        except DamagedRecord as error:
            reason = str(error)
        take, view = str(views["take"][record]), str(views["view"][record])
        return {"step": step, "record": record, "take": take, "view": view, "reason": reason}
