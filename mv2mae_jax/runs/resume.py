"""A workdir belongs to one run at a time and to one experiment: a lock, and the keys that a resumed run may change."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import config_dict

from console.command import some_of
from console.errors import UserError
from mv2mae_jax.config import base_of, flatten
from mv2mae_jax.distributed import processes
from mv2mae_jax.runs import checkpoint, metrics_file

LOCK = "run.lock"
_HELD: dict[str, str] = {}  # the texts of the locks that this process holds, by path

# Keys that a resumed run may change: where and how it is computed, not what. Changes of other keys change the
# experiment and are refused, unless --allow_changes names them. So is a change of eval.batch_size, because the masks of
# an evaluation are drawn batch by batch.
# fmt: off
MAY_CHANGE = frozenset({
    "checkpoint.every_steps", "checkpoint.keep",
    "data.cache", "data.cache_gb", "data.num_workers",
    "data.dir",  # the same data set in another place; its manifest is compared
    "data.motion_on",  # changes rounding only, as do the mesh and the model's keys below
    "eval.at_steps", "eval.every_steps", "eval.num_pictures", "eval.picture_blur_sigma",
    "limits.damaged_samples", "limits.heartbeat_timeout_seconds", "limits.skipped_updates",
    "log.every_steps", "log.report", "log.tensorboard", "profile_steps",
    "mesh.data", "mesh.fsdp", "optimizer.accumulation_steps",
    "model.attention", "model.layer_loop", "model.norm_affine", "model.remat",
})
# fmt: on

# Keys in which the processes of a run may differ: each reads the data as its machine can.
OF_A_PROCESS = frozenset({"data.cache", "data.cache_gb", "data.dir", "data.num_workers"})


def locked(workdir: str) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs out of a workdir while this one uses it: as `locked_file`, in the first process of the run."""
    if jax.process_index() != 0:
        return contextlib.nullcontext()
    return locked_file(os.path.join(workdir, LOCK), f"--workdir={workdir}", "run")


@contextlib.contextmanager
def locked_file(path: str, given: str, what: str) -> Iterator[None]:
    """Holds the lock of a file, which stands for something that one process at a time may use.

    The lock belongs to the process and vanishes with it, so it is never left behind. The text in the file only names
    the holder.

    Args:
      path: of the file; made if missing.
      given: the option that names what is locked, and its value: --workdir=runs/a.
      what: the work that needs it, in a word.

    Raises:
      ValueError: another process holds the lock; says which one.
    """
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{given} is in use by another {what} ({lock.read().strip() or 'which has just started'}). "
                f"Wait for it, stop it, or choose another {given.partition('=')[0]}."
            ) from None
        except OSError as error:  # some network file systems have no locks
            logging.warning("%s cannot be locked (%s): see to it that no other %s uses it.", given, error, what)
        lock.truncate(0)
        started = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        _HELD[path] = f"process {os.getpid()} on {socket.gethostname()}, started {started}"
        lock.write(f"{_HELD[path]}\n")
        lock.flush()
        try:
            yield
        finally:
            if _is_ours(path):
                lock.truncate(0)
            del _HELD[path]


def check_still_ours(workdir: str) -> None:
    """Raises ValueError if another run has begun to use a workdir, on a file system that did not keep it out.

    The text of the lock is then no longer this process's.
    """
    path = os.path.join(workdir, LOCK)
    if not _is_ours(path):
        raise UserError(
            f"--workdir={workdir} was taken by another run, because the locks of its file system do not hold between "
            f"machines; {path} names it while it runs. This one ends without saving. Stop the other one, or let it "
            "continue alone; give each run a --workdir of its own."
        )


def _is_ours(path: str) -> bool:
    try:
        with open(path) as lock:
            return _HELD.get(path, "") in lock.read()
    except OSError:  # without the file nobody can tell
        return True


@contextlib.contextmanager
def locked_output(output: Path, what: str) -> Iterator[None]:
    """As `locked_file`, of what a command's --output names; the lock file lies beside it and is removed at the end."""
    path = Path(os.path.abspath(output))
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f".{path.name}.lock")
    with locked_file(str(path), f"--output={output}", what):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_same_run(
    config: config_dict.ConfigDict, objective: Any, checkpointer: checkpoint.Checkpointer, allow_changes: Sequence[str]
) -> list[str]:
    """Refuses to resume a run of another task, other classes, other data or another config.

    Returns:
      A line if `auto` now means another way of computing than before, one that changes rounding only; another if other
      data is allowed.
    """
    saved = checkpointer.read_run()
    saved_config, advice = json.loads(saved["config"]), "Choose another --workdir; init_from takes its encoder."
    if saved_config["task"] != config.task:
        raise UserError(
            f"{checkpointer.directory} holds a run of task {saved_config['task']!r}, not {config.task!r}. {advice}"
        )
    prepared = objective.dataset.prepared
    if config.task == "finetune" and tuple(saved["class_names"]) != prepared.class_names:
        raise UserError(
            f"{checkpointer.directory} holds a head for the {len(saved['class_names'])} classes of {saved['dataset']} "
            f"({some_of(saved['class_names'], 3)}), but data.dir = {prepared.directory} holds the "
            f"{len(prepared.class_names)} classes of {prepared.name} ({some_of(prepared.class_names, 3)}). "
            f"{advice}"
        )
    # Checkpoints of older versions do not say what `auto` meant; their configs are compared as they were written.
    before = saved.get("settled", {})
    now = {key: value for key, value in objective.model.compute.settled().items() if key in before}
    check_unchanged(config_dict.ConfigDict(saved_config), config, base_of(config), allow_changes, (before, now))
    other_data = saved["manifest_sha256"] != prepared.content_digest()
    if other_data and "data.dir" not in allow_changes:
        raise UserError(
            f"{checkpointer.directory} holds a run on another data set than that in data.dir = {prepared.directory}: "
            "their manifests differ. Continue with the same one, choose another --workdir, or pass "
            "--allow_changes=data.dir if it is meant."
        )
    other = [f"{key} was {before[key]}, is {now[key]}" for key in now.keys() & MAY_CHANGE if now[key] != before[key]]
    lines = [f"Computed in another way, the same up to rounding: {'; '.join(sorted(other))}."] if other else []
    if other_data:
        lines.append(
            "The data set is another one than before: takes that are held out now may have been trained on, so "
            "evaluations from here on are not comparable with those before."
        )
    return lines


def check_processes(config: config_dict.ConfigDict, objective: Any, checkpointer: checkpoint.Checkpointer) -> None:
    """Refuses a run whose processes have other configs, data, code or checkpoints: each would train something else."""
    if jax.process_count() == 1:
        return
    started = {key: plain(value) for key, value in flatten(config) if key not in OF_A_PROCESS} | {
        "manifest of data.dir": objective.dataset.prepared.content_digest(),
        "newest checkpoint in --workdir": checkpointer.latest_step(),
    }
    if (revision := metrics_file.git_revision()) != "unknown":
        started["revision of the code"] = revision
    processes.check_alike(started)


def check_unchanged(
    saved: config_dict.ConfigDict,
    config: config_dict.ConfigDict,
    base: config_dict.ConfigDict,
    allowed: Sequence[str],
    settled: tuple[dict[str, str], dict[str, str]] = ({}, {}),
) -> None:
    """Refuses to resume with a config that would silently change the experiment.

    Args:
      saved: the config in the newest checkpoint.
      base: defaults, for keys that did not exist when the checkpoint was written.
      allowed: further keys that may differ.
      settled: of keys that may be `auto`, the values used when the checkpoint was written, and those used now.

    Raises:
      ValueError: lists every key that differs, with both values; or `allowed` has an unknown key.
    """
    written = [plain(dict(flatten(base)) | dict(flatten(c))) for c in (saved, config)]
    before, now = (values | meant for values, meant in zip(written, settled, strict=True))
    unknown = sorted(set(allowed) - now.keys())
    if unknown:
        raise UserError(f"--allow_changes names {', '.join(unknown)}, which the config does not have.")
    changed = [key for key in now if now[key] != before.get(key) and key not in MAY_CHANGE and key not in allowed]
    if changed:
        chosen = {key: [" by auto" if values.get(key) == "auto" else "" for values in written] for key in changed}
        lines = [
            f"  {key} was {before.get(key)!r}{then}, now {now[key]!r}{here}\n" for key, (then, here) in chosen.items()
        ]
        spelled = [f"--config.{key}={before[key]}" for key, by_auto in chosen.items() if any(by_auto)]
        back = f"Set them back ({' '.join(spelled)})" if spelled else "Set them back"
        raise UserError(
            "The workdir holds a run of another config, and continuing would change the experiment:\n"
            + "".join(lines)
            + f"{back}, choose another --workdir, or pass --allow_changes={','.join(changed)} if it is meant."
        )


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: lists in place of tuples."""
    return json.loads(json.dumps(value))
