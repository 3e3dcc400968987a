"""Finds damage in checkpoints: digests written with each step, checked before anything is read from it.

Orbax has no checksum of its own: a flipped bit of a checkpoint is restored as another number.
"""

import os
import shutil
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint.path import atomicity

from console.errors import UserError
from data import digests

SET_ASIDE = "damaged"  # the end of the name of what was set aside: 1000.damaged


class DigestedPath(atomicity.AtomicRenameTemporaryPath):
    """A step that appears whole, with SHA256SUMS in it, or not at all."""

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
        (whole / digests.NAME).write_text(digests.table(whole))
        self._final_path = final_path
        os.rename(whole, final_path)


def describe(step: Path) -> str:
    """What is wrong with the directory of a step, in a few words; '' if it is intact."""
    wrong = digests.check(step)
    shown = [f"{name} {problem}" for name, problem in wrong.items()]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def steps_in(directory: Path) -> list[int]:
    """The steps in a directory of checkpoints, ascending."""
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and (directory / name).is_dir())


def set_aside(directory: Path) -> list[str]:
    """Renames the damaged steps that are newer than the newest intact one; removes only saves that never ended.

    All processes of a run call this before the run looks for its newest step; the first one does the work. The workdir
    is locked, so that no other run is writing there.

    Args:
      directory: WORKDIR/checkpoints; need not be there.

    Returns:
      A line for each step that was set aside.

    Raises:
      ValueError: steps were set aside, now or before, and none is left.
    """
    lines = []
    if jax.process_index() == 0:
        for unfinished in directory.glob(f"*{atomicity.TMP_DIR_SUFFIX}*"):  # of a process that was killed
            shutil.rmtree(unfinished)
        for step in reversed(steps_in(directory)):
            problem = describe(directory / str(step))
            if not problem:
                break
            aside = _free_name(directory / f"{step}.{SET_ASIDE}")
            os.rename(directory / str(step), aside)
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


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
