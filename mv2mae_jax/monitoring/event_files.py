"""What TensorBoard shows of a run besides its series: small event files, written again when a run is resumed.

The HPARAMS tab compares configs. It takes the measures from the run's scalars, the last value of each. No list of
columns (`_hparams_/experiment`) is written. Without one, TensorBoard makes the list from all runs that it sees and puts
the keys whose values differ first. If there were several lists, it would take one and ignore the others.

The CUSTOM SCALARS tab draws the losses in one chart with what painting every patch in its mean colour would cost.
"""

import math
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Mapping

from ml_collections import config_dict

from data.store.whole_files import write_whole
from mv2mae_jax.config import flatten
from mv2mae_jax.runs.resume import MAY_CHANGE

# tensorboardX would import PyTorch to know its tensors; that takes seconds and some hundred MB. None hides it.
_torch = sys.modules.get("torch")
sys.modules["torch"] = None
try:
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c
finally:
    del sys.modules["torch"]
    if _torch is not None:
        sys.modules["torch"] = _torch

# TensorBoard reads the files of a folder in the order of their names and never goes back. These names sort before those
# that are made of the time.
CONFIG_FILE = "events.out.tfevents.0.config"
RESULTS_FILE = "events.out.tfevents.1.results"

_CHARTS = {"training": "train", "held-out takes": "eval", "training takes, none held out": "eval_on_training_takes"}
# TensorBoard takes tags as regular expressions: a new loss is in the chart at once.
CHARTS = {"losses": {title: ["Multiline", [f"^{area}/loss_(?!spikes)"]] for title, area in _CHARTS.items()}}


def hparams(config: config_dict.ConfigDict) -> dict[str, bool | float | str]:
    """The keys by which TensorBoard tells experiments apart: those that a resumed run must not change.

    Every value that is neither a number nor a truth value becomes text, even None: if a run lacked a key, TensorBoard
    would not count the key as different.
    """
    return {key: _plain(value) for key, value in flatten(config) if key not in MAY_CHANGE}


def _plain(value: object) -> bool | float | str:
    if isinstance(value, bool):
        return value
    # TensorBoard sends values to its page as JSON, which has no infinity.
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else str(value)


def write_config(folder: str, config: config_dict.ConfigDict, *, finished: bool) -> None:
    """Writes FOLDER/CONFIG_FILE; `finished` marks the run as successful."""
    _, start, end = summary.hparams(hparams(config), {})
    charts = [summary.custom_scalars(CHARTS)] if config.task == "pretrain" else []
    _write(os.path.join(folder, CONFIG_FILE), [start, *charts, *([end] if finished else [])])


def write_results(folder: str, step: int, results: Mapping[str, float]) -> None:
    """Writes FOLDER/RESULTS_FILE: the scalars of something that measures once and is not a training run."""
    _write(os.path.join(folder, RESULTS_FILE), [_scalars(results)], step)


def series_path(folder: str) -> str:
    """The file for the series of a start: FOLDER/events.out.tfevents.TIME.HOST, which sorts after the existing files.

    TIME is in seconds. If the clock was set back, or two starts fall in one second, TIME is one more than that of the
    last file. Otherwise TensorBoard would read this file first, take it for the older one, and drop its values.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = [re.match(r"events\.out\.tfevents\.(\d{10})\.", name) for name in names]
    number = max([int(time.time()), *(int(match[1]) + 1 for match in found if match)])
    return os.path.join(folder, f"events.out.tfevents.{number:010d}.{socket.gethostname()}")


def series_head(first_step: int) -> bytes:
    """The first records of a file of series. They make TensorBoard drop earlier files' values from `first_step` on."""
    return _head() + _record(first_step, session_log=SessionLog(status=SessionLog.START))


def series_row(step: int, values: Mapping[str, float]) -> bytes:
    """The record of the scalars of a step."""
    return _record(step, summary=_scalars(values))


def series_picture(step: int, name: str, encoded: bytes, *, height: int, width: int) -> bytes:
    """The record of a PNG or GIF file, in pixels `height` x `width`."""
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    return _record(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))


def _write(path: str, summaries: list[Summary], step: int = 0) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_whole(path, _head() + b"".join(_record(step, summary=each) for each in summaries))


def _scalars(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _head() -> bytes:
    return _record(0, file_version="brain.Event:2")


def _record(step: int, **content: object) -> bytes:
    """An event of this moment in TFRecord's form: length (8 bytes), its checksum (4), data, their checksum (4)."""
    data = Event(wall_time=time.time(), step=step, **content).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
