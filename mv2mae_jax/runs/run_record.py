"""The record that a run keeps beside its checkpoints, for commands that read them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import config_dict

from console import progress
from console.errors import UserError
from data.dataset import split_of_run
from data.labelled import LabelledDataset
from data.store import digests
from mv2mae_jax.runs import metrics_file, side_files, starts_file, step_folders

# [ours] Distances in time that differ by up to a quarter are alike: those at 24, 25 and 30 frames per second are.
ALIKE = 1.25


def read_record(workdir: str, step: int | None = None) -> tuple[int, dict[str, Any], config_dict.ConfigDict]:
    """(step, its JSON record, its config) of a checkpoint, the newest by default.

    If the record of that step is damaged, another step's record is used, and a message says so. The step's arrays may
    still be intact; whoever reads them checks this.

    Raises:
      ValueError: there is no such run or step, the directory holds another step, or no record is intact.
    """
    step = step_folders.choose(workdir, step, step_folders.misnamed)
    record = _read(Path(workdir, "checkpoints", str(step))) or _stand_in(workdir, step)
    return step, record, config_dict.ConfigDict(json.loads(record["config"]))


def compare_data(init_from: str, step: int | None, dataset: LabelledDataset) -> None:
    """Says if the run `init_from` has trained on views that are to be tested, or on frames at other distances in time.

    The former can be told only of the same set.
    """
    _, record, trained = read_record(init_from, step)
    prepared, spec = dataset.prepared, dataset.spec
    rates = prepared.frame_rates()
    there = [trained.data.frame_stride / fps for fps in record.get("frame_rates") or ()]
    here = [spec.frame_stride / fps for fps in rates]
    if there and spec.num_frames > 1 and (min(here) > ALIKE * max(there) or min(there) > ALIKE * max(here)):
        nearest = max(1, round(there[0] * rates[0]))
        advice = f": data.frame_stride={nearest} is nearest to that" if nearest != spec.frame_stride else ""
        progress.say(
            f"{init_from} was trained on a frame every {there[0]:.2g} s. Here data.frame_stride={spec.frame_stride} of "
            f"{rates[0]:.4g} frames per second takes one every {here[0]:.2g} s{advice}."
        )
    digest = prepared.content_digest()
    for path, told, config in [(init_from, record, trained), *_origins(trained)]:
        if told.get("manifest_sha256") != digest:
            continue
        split = split_of_run(prepared, config.data)[dataset.test]
        if seen := np.sum(split == "train"):
            progress.say(
                f"warning: {seen} of {len(split)} views to test on are among those that {path} has trained on (its "
                f"data.protocol={config.data.protocol!r}), so this is no test on unseen videos. For one, train that "
                "run with the protocol of the test."
            )


def _origins(trained: config_dict.ConfigDict) -> Iterator[tuple[str, dict[str, Any], config_dict.ConfigDict]]:
    """The run that a run began with, the one that this began with, and so on, where they are still there."""
    found = set()
    while (path := trained.get("init_from")) and path not in found and Path(path, "checkpoints").is_dir():
        found.add(path)
        try:
            _, record, trained = read_record(path, trained.get("init_from_step"))
        except UserError:  # its step is gone, or damaged
            return
        yield path, record, trained


def _read(step: Path) -> dict[str, Any] | None:
    """The record in the directory of a step; None if it is damaged."""
    path = step / "run" / "metadata"
    if any(name.startswith("run/") for name in digests.check(step, "run")):
        return None
    return side_files.read(path, lambda record: isinstance(record, dict) and isinstance(record.get("config"), str))


def _stand_in(workdir: str, step: int) -> dict[str, Any]:
    """The newest intact record of the same run; if there is none, what the files beside the checkpoints tell."""
    folder = Path(workdir, "checkpoints")
    told = f"{folder / str(step) / 'run'} is damaged: "
    for other in reversed(step_folders.steps_in(folder)):
        if other != step and not step_folders.misnamed(folder / str(other)) and (record := _read(folder / str(other))):
            progress.say(f"{told}the record of step {other} stands in.")
            return record
    starts = [start for start in starts_file.read_starts(workdir) if start["first_step"] < step]
    if not starts:
        raise UserError(
            f"{told}no other step and no line of {starts_file.STARTS_FILE} tells the config. Bring back a copy of it."
        )
    progress.say(f"{told}{starts_file.STARTS_FILE} stands in.")
    results = side_files.read(Path(workdir, metrics_file.RESULTS_FILE), metrics_file.is_whole) or {}
    return {
        "config": json.dumps(starts[-1]["config"]),
        "git_revision": starts[-1]["git_revision"],
        "class_names": results.get("class_names", []),
    }
