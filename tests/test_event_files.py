"""TensorBoard shows the values of the run's own files, and its HPARAMS tab shows each config once."""

import json
import math
import re
import time

import jax
import numpy as np
import pytest
from tensorboardX.proto.layout_pb2 import Layout
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from mv2mae_jax.evaluation import visualize
from mv2mae_jax.monitoring import event_files, metrics
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import resume
from tests import faults, read_events, tiny
from tests.test_visualize import pictures


def sessions(folder) -> list[HParamsPluginData]:
    """The records that the HPARAMS plugin reads, in order."""
    found = []
    for event in read_events.read(folder):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                assert value.tag.startswith("_hparams_/session_")
                found.append(HParamsPluginData.FromString(value.metadata.plugin_data.content))
    return found


def report(workdir, first_step: int, steps: range, config, finished: bool) -> None:
    reporter = metrics.Reporter(str(workdir), first_step=first_step, total_steps=6)
    reporter.config(config, finished=False)
    for step in steps:
        reporter.scalars(step, {"train/loss": 1 / step, "perf/clips_per_second": 7.0, "data/wait_fraction": 0.5})
        if step % 3 == 0:
            reporter.scalars(step, {"eval/loss_self": 2 / step})
            for name in visualize.write(pictures(1), str(workdir / "pictures"), step):
                path = visualize.path_of(str(workdir / "pictures"), step, name)
                reporter.picture(step, f"eval/{name}", path + ".png")
                reporter.picture(step, f"eval/{name}_moving", path + ".gif")
    if finished:
        reporter.config(config, finished=True)
    reporter.close()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that was killed after step 5 and continued from step 4."""
    folder, config = tmp_path_factory.mktemp("resumed"), tiny.make_config()
    report(folder, 0, range(1, 6), config, finished=False)
    assert [session.WhichOneof("data") for session in sessions(folder / "tensorboard")] == ["session_start_info"]
    report(folder, 4, range(5, 7), config, finished=True)
    return folder


def test_tensorboard_holds_the_series_of_the_history(resumed):
    shown = {}
    for event in read_events.read(resumed / "tensorboard"):
        if event.HasField("session_log"):  # TensorBoard drops the steps that a resumed run repeats
            shown = {key: value for key, value in shown.items() if key[1] < event.step}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                shown[value.tag, event.step] = value.simple_value
    rows = [json.loads(line) for line in (resumed / "history.jsonl").read_text().splitlines()]
    kept = {(key, row["step"]): value for row in rows for key, value in row.items() if key != "step"}
    assert shown == pytest.approx(kept)
    assert {key.partition("/")[0] for key, _ in kept} == {"train", "eval", "perf", "data"}
    assert {step for _, step in kept} == set(range(1, 7))


def test_tensorboard_shows_the_picture_files_themselves(resumed):
    shown = {
        (value.tag, event.step): value.image
        for event in read_events.read(resumed / "tensorboard")
        for value in event.summary.value
        if value.HasField("image")
    }
    assert set(shown) == {(f"eval/sample_0{kind}", step) for kind in ("", "_moving") for step in (3, 6)}
    for (tag, step), image in shown.items():
        path = visualize.path_of(str(resumed / "pictures"), step, "sample_0")
        with open(path + (".gif" if tag.endswith("_moving") else ".png"), "rb") as file:
            assert image.encoded_image_string == file.read()
    still = visualize.write(pictures(1), str(resumed / "again"), 3)["sample_0"]
    assert (shown["eval/sample_0", 3].height, shown["eval/sample_0", 3].width) == still.shape[:2]
    one = visualize.animation_frames({"target": np.zeros((1, 16, 16, 3), np.uint8)})[0]
    moving = shown["eval/sample_0_moving", 3]
    assert (moving.height, moving.width) == (one.shape[0], 6 * one.shape[1]), "six pictures side by side"


def test_a_run_has_its_hparams_once_however_often_it_goes_on(resumed):
    start, end = sessions(resumed / "tensorboard")
    assert end.session_end_info.status == 1, "success"
    told = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.session_start_info.hparams.items()}
    assert told == event_files.hparams(tiny.make_config())
    assert told["optimizer.base_learning_rate"] == 0.03 and told["model.cross_view"] is True
    assert told["data.crop_size"] == "(32, 32)" and told["loss.temperature"] == "None"
    assert not told.keys() & resume.MAY_CHANGE


def test_the_charts_of_losses_name_series_that_a_run_has(resumed):
    contents = [
        value.tensor.string_val[0]
        for event in read_events.read(resumed / "tensorboard")
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "custom_scalars"
    ]
    assert len(contents) == 1, "once, however often the run continues"
    (category,) = Layout.FromString(contents[0]).category
    named = {tag for chart in category.chart for tag in chart.multiline.tag}
    (expression,) = (tag for tag in named if "train/" in tag)
    measured = {*jax.eval_shape(*loss_of_a_step(tiny.make_config()))[1], "learning_rate", "loss_spikes"}
    drawn = {name for name in measured if re.match(expression, f"train/{name}")}
    assert drawn == {"loss_self", "loss_cross", "loss_mean_prediction"}


def loss_of_a_step(config):
    """(loss function, its arguments) of pre-training."""
    task = Pretrain.from_config(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    inputs = jax.eval_shape(task.make_inputs, tiny.make_batch(config, 0), jax.random.key(0))
    return task.loss, params, inputs


def test_values_that_json_cannot_hold_become_text():
    values = event_files.hparams(tiny.make_config(loss=dict(temperature=math.inf)))
    assert values["loss.temperature"] == "inf"
    json.dumps(values, allow_nan=False)


def test_results_without_a_training_run(tmp_path):
    for _ in range(2):  # writing the same results again does not double them
        event_files.write_results(str(tmp_path), 7, {"knn/top_1": 0.5})
    summaries = [(event.step, event.summary.value) for event in read_events.read(tmp_path)]
    found = [(value.tag, value.simple_value, step) for step, values in summaries for value in values]
    assert found == [("knn/top_1", 0.5, 7)]


@pytest.mark.parametrize("seconds", [0, -1, -3600, -(10**8)], ids=["in a second", "second", "hour", "years"])
def test_a_clock_that_was_set_back_loses_no_value(tmp_path, monkeypatch, seconds):
    """Names must sort by the order of starts. A file makes TensorBoard drop earlier values from its first step on."""
    clock, now = 1_700_000_000, time.time
    for start, steps in enumerate((range(1, 5), range(3, 7), range(6, 9))):
        monkeypatch.setattr(time, "time", lambda start=start: clock + start * seconds)
        reporter = metrics.Reporter(str(tmp_path), first_step=steps[0] - 1, total_steps=8)
        for step in steps:
            reporter.scalars(step, {"train/loss": float(step), "data/wait_fraction": 0.0})
        reporter.close()
    monkeypatch.setattr(time, "time", now)
    assert sorted(faults.events(tmp_path)) == [
        (step, name) for step in range(1, 9) for name in ("data/wait_fraction", "train/loss")
    ]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_the_config_is_read_first():
    """TensorBoard reads a folder's files in the order of their names and does not return to an earlier one."""
    assert (
        min("events.out.tfevents.1695792426.host", event_files.RESULTS_FILE, event_files.CONFIG_FILE)
        == event_files.CONFIG_FILE
    )
