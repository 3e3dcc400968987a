"""WORKDIR/metrics.json: what a run measured at its end, and how it came about."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
from ml_collections import config_dict

from console import progress
from data.store.whole_files import write_whole
from mv2mae_jax.config import differences
from mv2mae_jax.runs import side_files, step_folders

RESULTS_FILE = "metrics.json"


def write(
    workdir: str, config: config_dict.ConfigDict, step: int, results: dict[str, float], tables: dict[str, Any]
) -> None:
    """Writes the final metrics, tables such as a confusion matrix, and how they came about."""
    if jax.process_index() != 0:
        return
    record = {
        "metrics": results,
        **tables,
        "step": step,
        "seed": config.seed,
        "protocol": config.data.protocol,
        "git_revision": git_revision(),
        "config": json.loads(config.to_json()),
    }
    write_whole(os.path.join(workdir, RESULTS_FILE), json.dumps(record, indent=2))


def keep_others(workdir: str, config: config_dict.ConfigDict, step: int) -> None:
    """Sets aside a metrics.json of another config or another step, and says what differs."""
    path = os.path.join(workdir, RESULTS_FILE)
    before = side_files.read(path, is_whole, repair=True)
    if before is None:
        return
    changed = sorted(differences(before["config"], json.loads(config.to_json())))
    changed += ["the step"] if before["step"] != step else []
    if changed:
        _set_aside(path, f"of a probe with another {', '.join(changed)}")


def read(workdir: str, step: int) -> dict[str, float] | None:
    """The metrics of a finished run; None if it stopped before its last evaluation was written.

    A damaged file is set aside.
    """
    record = side_files.read(os.path.join(workdir, RESULTS_FILE), is_whole, repair=jax.process_index() == 0)
    return record["metrics"] if record and record["step"] == step else None


def set_aside_after(workdir: str, step: int) -> None:
    """Sets aside results of a later step than that from which the run continues: they are not those of its end."""
    path = os.path.join(workdir, RESULTS_FILE)
    record = side_files.read(path, is_whole, repair=True) if jax.process_index() == 0 else None
    if record and record["step"] > step:
        _set_aside(path, f"of step {record['step']}, which is trained again")


def _set_aside(path: str, what: str) -> None:
    """Renames results to metrics.json.earlier, or .earlier-2 and so on, and says that they are `what`."""
    progress.say(f"{path} is {what}: renamed to {step_folders.rename(Path(path), 'earlier').name}.")


def is_whole(record: Any) -> bool:
    """Whether the content of a metrics.json has the form that `write` gives it."""
    if not side_files.is_row(record) or not isinstance(record.get("config"), dict):
        return False
    return isinstance(record.get("metrics"), dict) and side_files.is_numbers(record["metrics"] | {"step": 0})


def git_revision() -> str:
    """The revision of this checkout, with `-dirty` if files were changed; `unknown` outside a git checkout.

    An installed package may lie in a checkout of something else, so this file must belong to the checkout.
    """
    folder, file = os.path.split(os.path.abspath(__file__))

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file)
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
