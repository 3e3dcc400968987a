"""Finds damage in checkpoints: digests written with each step, checked before anything is read from it.

Orbax has no checksum of its own: a flipped bit of a checkpoint is restored as another number.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import tensorstore
from jax.experimental import multihost_utils
from orbax.checkpoint.path import atomicity

from console.command import some_of
from console.errors import UserError
from data.store import digests

STEP_FILE = "STEP"  # the number of the step, under the digests like all files
SET_ASIDE = "damaged"  # ends the names of files and folders that were set aside: 1000.damaged


class DigestedPath(atomicity.AtomicRenameTemporaryPath):
    """The folder of a step. It appears whole, with SHA256SUMS in it, or not at all."""

    async def finalize(self) -> None:
        final_path = self._final_path
        if not final_path.name.isdecimal():  # one of the items of a step
            await super().finalize()
            return
        # Orbax writes its last file right before it renames. So it renames to another temporary name, and the digests
        # come after that.
        self._final_path = self._tmp_path.with_name(f"{self._tmp_path.name}-whole")
        await super().finalize()
        whole = Path(self._final_path)
        (whole / STEP_FILE).write_text(f"{final_path.name}\n")
        (whole / digests.NAME).write_text(digests.table(whole))
        self._final_path = final_path
        os.rename(whole, final_path)


def describe(step: Path, *, but: str = "") -> str:
    """What is wrong with the directory of a step, in a few words; '' if it is intact.

    Its files must have their digests, and its name must be the number of the saved step. The files alone do not show
    that a folder was copied under another number. Those in the folder `but` of it are not checked.
    """
    wrong = digests.check(step)
    shown = [f"{name} {problem}" for name, problem in wrong.items() if not (but and name.startswith(f"{but}/"))]
    return some_of(shown, 3) or misnamed(step)


def misnamed(step: Path) -> str:
    """'it holds step 16' if the directory is named by another number; else ''."""
    inside = _step_inside(step)
    return "" if inside is None or str(inside) == step.name else f"it holds step {inside}"


def _step_inside(step: Path) -> int | None:
    """The step that was saved in a directory; None if it cannot be told.

    Older versions wrote no STEP_FILE; their saved state has the step. It is read without Orbax, which would need all
    processes of a run to take part.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{step.absolute()}/state/"}, "path": "step/"}
    try:
        if (step / STEP_FILE).exists():
            return int((step / STEP_FILE).read_text())
        return int(tensorstore.open({"driver": "zarr", "kvstore": store}, read=True).result().read().result())
    except ValueError:  # no such array, or damage in a folder that is not checked
        return None


def steps_in(directory: Path) -> list[int]:
    """The steps in a directory of checkpoints, ascending."""
    names = os.listdir(directory) if directory.is_dir() else []
    steps = [int(name) for name in names if name.isdecimal() and (directory / name).is_dir()]
    return sorted(step for step in steps if str(step) in names)  # 016 is not a step


def choose(workdir: str, step: int | None, problem_of: Callable[[Path], str]) -> int:
    """The step of a run that is to be read: the given one, or the newest.

    Raises ValueError: there is no such run or step, or `problem_of` its directory is not ''. Another step than the one
    that is damaged would be another experiment, so the user must choose it.
    """
    folder = Path(workdir, "checkpoints")
    steps = steps_in(folder)
    if not steps:
        raise UserError(
            f"{workdir} holds no checkpoint: {folder} is missing or empty. A run is the --workdir of run.py."
        )
    if step not in (None, *steps):
        there = ", ".join(map(str, steps))
        raise UserError(
            f"{workdir} holds no checkpoint of step {step}: it has steps {there}. Choose one of them (--step, or "
            "init_from_step in a config)."
        )
    step = steps[-1] if step is None else step
    if problem := problem_of(folder / str(step)):
        raise UserError(
            f"{workdir}: its step {step} is damaged ({problem}). Bring back a copy of it, or move {folder / str(step)} "
            "away to take an older step."
        )
    return step


def set_aside(directory: Path) -> list[str]:
    """Renames the damaged steps of WORKDIR/checkpoints that are newer than the newest intact one.

    Removes nothing but unfinished saves. The directory need not exist.

    All processes of a run call this before the run looks for its newest step; the first one does the work. The workdir
    is locked, so that no other run is writing there.

    Returns:
      A line for each step that was set aside.

    Raises:
      ValueError: steps were set aside, now or before, and none is left.
    """
    lines = []
    if jax.process_index() == 0:
        for unfinished in directory.glob(f"*{atomicity.TMP_DIR_SUFFIX}*"):  # left by a killed process
            shutil.rmtree(unfinished)
        for step in reversed(steps_in(directory)):
            problem = describe(directory / str(step))
            if not problem:
                break
            aside = rename(directory / str(step))
            lines.append(f"Step {step} in {directory} is damaged ({problem}): renamed to {aside.name}, not deleted.")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    damaged = sorted(path.name for path in directory.glob(f"*.{SET_ASIDE}*"))
    if damaged and not steps_in(directory):
        raise UserError(
            "\n".join(
                [
                    *lines,
                    f"No checkpoint in {directory} is intact ({', '.join(damaged)}), and the run does not start over "
                    "on top of them. Bring back a copy of a step from elsewhere, or choose another --workdir.",
                ]
            )
        )
    return lines


def rename(path: Path, mark: str = SET_ASIDE) -> Path:
    """Renames a file or folder to NAME.MARK (or NAME.MARK-2 and so on, if that exists); returns the new path."""
    number, aside = 1, path.with_name(f"{path.name}.{mark}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{mark}-{number}")
    os.rename(path, aside)
    return aside
