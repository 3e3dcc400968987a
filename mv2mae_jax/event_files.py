"""What TensorBoard shows of a run beside its series: small event files of their own, written anew when a run goes on.

The HPARAMS tab compares configs. It takes the measures from the run's scalars, the last value of each. No list of
columns is written (`_hparams_/experiment`): without one TensorBoard makes it from all the runs that it sees, those keys
first whose values differ, whereas of several lists it would take one and ignore the others.

The CUSTOM SCALARS tab draws the losses in one chart with what painting every patch in its mean colour would cost.
"""

import math
import os
import time
from collections.abc import Mapping

from ml_collections import config_dict
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from mv2mae_jax.config import flatten
from mv2mae_jax.continuation import MAY_CHANGE

# TensorBoard reads the files of a folder in the order of their names and never goes back: these come before those that
# are named by their time.
CONFIG_FILE = "events.out.tfevents.0.config"
RESULTS_FILE = "events.out.tfevents.1.results"

_LOSSES = ("loss_self", "loss_cross", "loss_mean_prediction")
_CHARTS = {"training": "train", "held-out takes": "eval", "training takes, none held out": "eval_on_training_takes"}
CHARTS = {"losses": {title: ["Multiline", [f"{area}/{loss}" for loss in _LOSSES]] for title, area in _CHARTS.items()}}


def hparams(config: config_dict.ConfigDict) -> dict[str, bool | float | str]:
    """What an experiment is told from others by: keys that a run cannot change when it goes on.

    What is neither a number nor a truth value becomes text, None too: where a run lacks a key, TensorBoard would not
    count it as different.
    """
    return {key: _plain(value) for key, value in flatten(config) if key not in MAY_CHANGE}


def _plain(value: object) -> bool | float | str:
    if isinstance(value, bool):
        return value
    # JSON, in which TensorBoard answers its page, knows no infinity.
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else str(value)


def write_config(folder: str, config: config_dict.ConfigDict, *, finished: bool) -> None:
    """Writes FOLDER/CONFIG_FILE; `finished` marks the run as successful."""
    _, start, end = summary.hparams(hparams(config), {})
    charts = [summary.custom_scalars(CHARTS)] if config.task == "pretrain" else []
    _write(os.path.join(folder, CONFIG_FILE), [start, *charts, *([end] if finished else [])])


def write_results(folder: str, step: int, results: Mapping[str, float]) -> None:
    """Writes FOLDER/RESULTS_FILE: the scalars of something that measures once and is not a training run."""
    values = [Summary.Value(tag=name, simple_value=value) for name, value in results.items()]
    _write(os.path.join(folder, RESULTS_FILE), [Summary(value=values)], step)


def _write(path: str, summaries: list[Summary], step: int = 0) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, step=step, summary=each) for each in summaries]
    writer = RecordWriter(path + ".tmp")
    for event in events:
        writer.write(event.SerializeToString())
    writer.close()
    os.replace(path + ".tmp", path)
