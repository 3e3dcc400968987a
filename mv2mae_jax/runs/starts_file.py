"""WORKDIR/starts.jsonl: one line per start of a run, which says how the run's files came about."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from typing import Any

import jax
from ml_collections import config_dict

from mv2mae_jax.runs import metrics_file, side_files

STARTS_FILE = "starts.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def record_start(workdir: str, config: config_dict.ConfigDict, facts: dict[str, str], first_step: int = 0) -> str:
    """Adds a line: time, command, revision, versions, machine, the config and what followed from it. Process 0 writes.

    Args:
      facts: what the start prints besides the config, e.g. devices and numbers of parameters.
      first_step: the step that the run resumes from; 0 for a fresh run.

    Returns:
      A sentence if a run is resumed by another revision than that of the start before; else ''.

    Raises:
      OSError: the line cannot be written.
    """
    if jax.process_index() != 0:
        return ""
    start = {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "first_step": first_step,
        "command": _command(),
        "git_revision": metrics_file.git_revision(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "facts": facts,
        "config": json.loads(config.to_json()),
    }
    before = read_starts(workdir, repair=True)  # a line added after a cut-off one would be lost with it
    with open(os.path.join(workdir, STARTS_FILE), "a") as file:
        file.write(json.dumps(start) + "\n")
    was, now = before[-1]["git_revision"] if before else "", start["git_revision"]
    return f"The code has changed since the last start: {was} -> {now}." if first_step and was not in ("", now) else ""


def read_starts(workdir: str, *, repair: bool = False) -> list[dict]:
    """The lines, oldest first; empty for runs of older revisions, which wrote none. See `side_files.read_rows`."""
    return side_files.read_rows(os.path.join(workdir, STARTS_FILE), _is_whole, repair=repair)


def _is_whole(start: Any) -> bool:
    texts, tables = ("time", "command", "git_revision", "machine"), ("versions", "facts", "config")
    if not isinstance(start, dict) or not isinstance(start.get("first_step"), int):
        return False
    return all(isinstance(start.get(key), kind) for keys, kind in ((texts, str), (tables, dict)) for key in keys)


def _command() -> str:
    """The command as typed, as far as Python knows it. With `-m`, sys.argv has the file in place of the module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    typed = ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]] if spec else sys.argv
    return shlex.join([os.path.basename(sys.executable), *typed])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
