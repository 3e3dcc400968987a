"""What a run reports."""

import json

import jax.numpy as jnp
import pytest

from mv2mae_jax import metrics


def test_step_metrics_average_over_the_interval():
    collected = metrics.StepMetrics()
    for loss in (1.0, 2.0, 6.0):
        collected.add({"loss": jnp.float32(loss)})
    assert collected.mean() == {"loss": 3.0}
    collected.add({"loss": jnp.float32(5.0)})
    assert collected.mean() == {"loss": 5.0}, "the next interval starts empty"


def test_history_of_steps_done_again_is_dropped(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    reporter = metrics.Reporter(str(tmp_path), first_step=20, total_steps=40, tensorboard=False)
    reporter.scalars(30, {"train/loss": 1.5})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 10}, {"step": 20}, {"step": 30, "train/loss": 1.5}]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (3600, "1h00m"), (90061, "1d01h"), (125, "2m05s")]
)
def test_durations(seconds, text):
    assert metrics.duration(seconds) == text


def test_waiting_for_data_is_told_from_computing():
    clock = metrics.Clock()
    clock._start -= 10.0  # ten seconds ago
    assert clock.wait_for(iter(["batch"])) == "batch"
    clock._waited = 4.0
    steps_per_second, waited = clock.read()
    assert steps_per_second == pytest.approx(0.1, rel=0.01) and waited == pytest.approx(0.4, rel=0.01)
    assert clock._steps == 0
