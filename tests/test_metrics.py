"""The values that a run reports: averages, history, durations and its lines of progress."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from console import progress
from mv2mae_jax.monitoring import metrics


def collect(observe, losses, first_step=1, skipped=(), window=()):
    collected = metrics.StepMetrics(observe, window)
    for step, loss in enumerate(losses, start=first_step):
        collected.add(step, {"loss": jnp.float32(loss), "skipped_update": jnp.float32(step in skipped)})
    return collected


def test_step_metrics_average_over_the_interval():
    seen = []
    collected = collect(lambda step, values: seen.append((step, float(values["loss"]))), (1.0, 2.0, 6.0))
    assert seen == [(1, 1.0)], "steps in flight are not observed yet"
    assert metrics.average(collected.take()) == {"loss": 3.0, "skipped_updates": 0.0}
    assert seen == [(1, 1.0), (2, 2.0), (3, 6.0)]
    collected.add(4, {"loss": jnp.float32(5.0), "skipped_update": jnp.float32(0)})
    assert metrics.average(collected.take())["loss"] == 5.0, "the next interval starts empty"


def test_skipped_updates_are_counted_and_not_averaged():
    collected = collect(lambda *_: None, (1.0, math.nan, 3.0, math.inf), skipped=(2, 4))
    assert metrics.average(collected.take()) == {"loss": 2.0, "skipped_updates": 2.0}
    assert math.isnan(metrics.average(collect(lambda *_: None, (math.nan,), skipped=(1,)).take())["loss"])


def test_an_interval_that_a_checkpoint_cuts_in_two_is_averaged_as_a_whole():
    losses = np.random.default_rng(0).normal(size=7).astype(np.float32)
    whole = metrics.average(collect(lambda *_: None, losses).take())
    saved = json.loads(json.dumps(collect(lambda *_: None, losses[:4]).unfinished()))
    parts = collect(lambda *_: None, losses[4:], first_step=5, window=saved)
    assert metrics.average(parts.take()) == whole


def test_history_of_steps_done_again_is_dropped(tmp_path):
    path = tmp_path / "history.jsonl"
    rows = [{"step": 10, "train/loss": 1.0}, {"step": 10, "eval/loss": 2.0}, {"step": 20, "train/loss": 3.0}]
    again = [{"step": 20, "eval/loss": 4.0}, {"step": 30, "train/loss": 5.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + again) + '{"step": 4')
    reporter = metrics.Reporter(str(tmp_path), first_step=20, total_steps=40, tensorboard=False)
    reporter.scalars(30, {"train/loss": 1.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*rows, {"step": 30, "train/loss": 1.5}]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (3600, "1h00m"), (90061, "1d01h"), (125, "2m05s")]
)
def test_durations(seconds, text):
    assert metrics.duration(seconds) == text


def test_waiting_for_data_is_distinguished_from_computing():
    clock = metrics.Clock()
    clock._start -= 10.0  # ten seconds ago
    assert clock.wait_for(iter(["batch"])) == "batch"
    clock._waited = 4.0
    steps_per_second, waited = clock.read()
    assert steps_per_second == pytest.approx(0.1, rel=0.01) and waited == pytest.approx(0.4, rel=0.01)
    assert clock._steps == 0


@pytest.mark.parametrize(("mode", "printed"), [(None, True), ("auto", True), ("plain", True), ("none", False)])
def test_a_runs_lines_are_printed_unless_progress_is_none(mode, printed, tmp_path, capsys):
    if mode:
        progress.configure(mode)
    values = {
        "perf/steps_per_second": 2.0,
        "perf/clips_per_second": 16.0,
        "data/wait_fraction": 0.0,
        "perf/memory_gb": 1,
    }
    metrics.Reporter(str(tmp_path), first_step=0, total_steps=10, tensorboard=False).progress(4, values)
    assert capsys.readouterr().out.startswith("step  4/10   40%  3s left") == printed
