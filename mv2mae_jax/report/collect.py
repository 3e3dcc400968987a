"""Reads the files of a run from its workdir."""

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import config_dict

from console import progress
from console.errors import UserError
from mv2mae_jax.runs import metrics_file, run_record, side_files, starts_file

MOST_RUNS = 8  # [ours] the colours of charts.SERIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """The content of a run's workdir.

    Attributes:
      workdir: the folder that run.py wrote to.
      name: short, and different from those of the other runs of a report.
      config: of the newest start.
      history: rows of history.jsonl, in order; may be empty.
      results: metrics.json, None while the run continues (also after an earlier end) or if it was stopped.
      starts: lines of starts.jsonl; empty for runs of revisions that did not write it.
    """

    workdir: str
    name: str
    config: config_dict.ConfigDict
    history: tuple[dict[str, float], ...]
    results: dict[str, Any] | None
    starts: tuple[dict[str, Any], ...]

    @property
    def step(self) -> int | None:
        """The last step in the files; None for a probe that has not ended."""
        if self.history:
            return int(self.history[-1]["step"])
        return None if self.results is None else int(self.results["step"])

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics at the end, or the latest ones of a run that has not ended."""
        if self.results is not None:
            return self.results["metrics"]
        evaluated = [row for row in self.history if any(key.startswith(("eval", "test/", "held_out/")) for key in row)]
        return {key: value for key, value in evaluated[-1].items() if key != "step"} if evaluated else {}

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; empty if the files do not have them."""
        return [] if self.results is None else self.results.get("class_names", [])

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int[n], values float[n]) of a metric, finite values only, in the order of the steps."""
        rows = [(row["step"], row[name]) for row in self.history if name in row and math.isfinite(row[name])]
        steps, values = np.array(rows, float).reshape(-1, 2).T  # (2, n)
        return steps.astype(int), values


def read(workdir: str, name: str | None = None) -> ReportedRun:
    """Reads a run. Damaged parts of its files are reported and left out.

    Raises:
      ValueError: the folder holds no run, or nothing in it tells the config.
    """
    path = Path(workdir)
    known = [metrics_file.RESULTS_FILE, side_files.HISTORY_FILE, starts_file.STARTS_FILE, "checkpoints"]
    if not any((path / file).exists() for file in known):
        state = "holds none of " + ", ".join(known) if path.is_dir() else "does not exist"
        raise UserError(f"{workdir} is no run: it {state}. A run is the --workdir of run.py.")
    results = side_files.read(path / metrics_file.RESULTS_FILE, metrics_file.is_whole)
    history = side_files.read_rows(path / side_files.HISTORY_FILE, side_files.is_numbers)
    if any(after["step"] < before["step"] for before, after in itertools.pairwise(history)):
        progress.say(
            f"{path / side_files.HISTORY_FILE} goes back in its steps, as if edited: its rows are put in order."
        )
        history.sort(key=lambda row: row["step"])
    starts = starts_file.read_starts(workdir)
    if starts:
        config = config_dict.ConfigDict(starts[-1]["config"])
    else:
        config = config_dict.ConfigDict(results["config"]) if results else run_record.read_record(workdir)[2]
    if results is not None and history and history[-1]["step"] > results["step"]:
        results = None  # these are from an earlier end; the run has continued since
    return ReportedRun(
        workdir=workdir,
        name=name or path.resolve().name,
        config=config,
        history=tuple(history),
        results=results,
        starts=tuple(starts),
    )


def read_all(workdirs: Sequence[str]) -> list[ReportedRun]:
    """Reads runs, and gives them the shortest names that differ.

    Raises:
      ValueError: as `read`; or a run is named twice, or there are more runs than colours.
    """
    if len(workdirs) > MOST_RUNS:
        raise UserError(f"{len(workdirs)} runs are more than {MOST_RUNS} colours can tell apart. Compare fewer.")
    paths = [Path(workdir).resolve().parts for workdir in workdirs]
    if len(set(paths)) < len(paths):
        raise UserError(f"--workdir names the same run twice: {', '.join(workdirs)}.")
    length = 1
    while len({parts[-length:] for parts in paths}) < len(paths):
        length += 1
    return [read(workdir, os.path.join(*parts[-length:])) for workdir, parts in zip(workdirs, paths, strict=True)]
