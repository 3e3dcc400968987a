"""Checkpoints: one directory per step in WORKDIR/checkpoints, written by Orbax, with digests (see step_folders.py)."""

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from console.errors import UnusableFile, UserError
from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import layers
from mv2mae_jax.runs import step_folders


class _RaisedAnyway(logging.Filter):
    """Drops the tracebacks that Orbax logs in the background: hundreds for a failed save, which we raise anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        trace = record.exc_info[2] if record.exc_info else None
        while trace:
            if f"{os.sep}orbax{os.sep}" in trace.tb_frame.f_code.co_filename:
                return False
            trace = trace.tb_next
        return True


_LOGGERS = ("absl", "asyncio")


def _unraisable(unraisable: Any) -> None:
    """Drops what TensorStore prints if it ends a write after Orbax gave the save up and closed its event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _unraisable_before(unraisable)


_unraisable_before = sys.unraisablehook
sys.unraisablehook = _unraisable


class Checkpointer:
    """Saves and restores the state of a run together with a JSON record.

    The directory of a step holds `state` (the arrays), `run` (JSON: the config and what the host must remember) and
    SHA256SUMS (the digests of all files).
    """

    def __init__(self, workdir: str, *, every_steps: int = 1000, keep: int | None = 3):
        self.directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._every_steps = every_steps
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                temporary_path_class=step_folders.DigestedPath,
                # If directories were made in the background, Orbax would wait for a timeout when one cannot be made.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
            # Given as handlers, not names, so that shapes can be read before any array.
            item_handlers={"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()},
        )
        self._filter, self._has_failed = _RaisedAnyway(), False
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._filter)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, run: dict[str, Any]) -> bool:
        """Starts an asynchronous save if the step is not there yet. The state may be donated at once.

        Raises:
          OSError: this save, or the one before, has failed.
        """
        if step == self.latest_step():
            return False
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        with self._failures_told():
            if not os.path.isdir(self.directory):  # Orbax would make another one
                raise FileNotFoundError(f"{self.directory} has vanished")
            there = Path(self.directory, str(step))
            if jax.process_index() == 0 and there.exists():  # put there during the run; Orbax would delete it
                step_folders.rename(there)
            return self._manager.save(step, args=items, force=True)

    def is_due(self, step: int) -> bool:
        return step % self._every_steps == 0

    def check(self) -> None:
        """Raises OSError if a save has failed; does not wait for a save in progress."""
        with self._failures_told():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits for saves under way. Raises OSError if one has failed."""
        with self._failures_told():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of Orbax, TensorStore and the file system, each with its own types
            self._has_failed = True
            saved = step_folders.steps_in(Path(self.directory))
            kept = f"step {saved[-1]} is the newest that was" if saved else "none was before"
            raise UnusableFile(
                f"A checkpoint could not be written to {self.directory}; {kept}, and nothing was deleted. With room "
                f"and the right to write there, the same command continues. {type(error).__name__}: {_shortened(error)}"
            ) from error

    def restore(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the newest step: (state, run record).

        Args:
          state: a pytree of `jax.ShapeDtypeStruct` with the target's shardings, which may differ from the saved ones.

        Raises:
          ValueError: names or shapes of the saved state differ from the wanted ones; lists them.
        """
        step = self.latest_step()
        problems = _mismatches(self._manager.item_metadata(step)["state"].tree, state)
        if problems:
            # Only parameters are compared: their moments and averages would repeat the same differences.
            shown = [line for line in problems if line.startswith("params/")] or problems
            raise UserError(
                f"{self.directory}, step {step}, cannot be resumed, because this config has another model or "
                "another optimizer state:\n  " + "\n  ".join(shown[:8] + ["..."] * (len(shown) > 8)) + "\n"
                "Resume with the config of that run, or choose another --workdir; init_from takes parameters alone."
            )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(state), run=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["run"]

    def read_run(self) -> dict[str, Any]:
        """The JSON record of the newest step, without its arrays."""
        return self._manager.restore(self.latest_step(), args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def close(self) -> None:
        """Waits for saves under way. Raises OSError if one has failed."""
        with self._failures_told():
            self._manager.close()
        if not self._has_failed:  # after a failure Orbax logs about the rest of the save until the process ends
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(self._filter)


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


def load_params(workdir: str, params: Any, step: int | None = None) -> Any:
    """Parameters of another run (its average, if it kept one), for `init_from`.

    Scanned and unrolled layers are converted into each other if the runs differ in this.

    Args:
      params: a pytree of `jax.ShapeDtypeStruct` with shardings that the result must match.
      step: which checkpoint, the newest by default.

    Raises:
      ValueError: there is no checkpoint, it is damaged, or names or shapes differ; lists them.
    """
    return _load(workdir, step, params, lambda saved: saved)


def load_encoder(workdir: str, encoder: Any, step: int | None = None) -> Any:
    """As `load_params`, but only the encoder's parameters of a pre-trained or fine-tuned run.

    The number of frames and the resolution may differ, because positions are computed, not stored. Parameters that
    `encoder` lacks are left out (a classifier has no last norm).
    """
    return _load(workdir, step, encoder, lambda saved: {k: saved["encoder"].get(k, {}) for k in encoder})


def taken(path: str, before: Any, after: Any) -> str:
    """A line about `init_from`: how many parameters come from `path`, and the names of those that do not.

    Args:
      before: parameters as initialised; a leaf of scanned blocks counts once per block.
      after: the same tree; a leaf that was not loaded is the very object of `before`.
    """
    named = _by_name(before)
    count = {name: leaf.shape[0] if re.search(r"/blocks/(?!\d)", name) else 1 for name, leaf in named.items()}
    fresh = [name for (name, old), new in zip(named.items(), jax.tree.leaves(after), strict=True) if new is old]
    num_all, num_fresh = sum(count.values()), sum(count[name] for name in fresh)
    # If nothing was taken of a part, the line names the part only.
    taken_of = {name.partition("/")[0] for name in named.keys() - set(fresh)}
    fresh = dict.fromkeys(name if (part := name.partition("/")[0]) in taken_of else part for name in fresh)
    rest = f" Initialised afresh: {', '.join(fresh)}." if fresh else ""
    return f"{num_all - num_fresh} of {num_all} parameters taken from {path}.{rest}"


def _load(workdir: str, step: int | None, wanted: Any, select: Callable[[Any], Any]) -> Any:
    """Restores `select(saved parameters)` and gives it the structure and the shardings of `wanted`."""
    step = step_folders.choose(workdir, step, functools.partial(step_folders.describe, but="run"))
    directory = os.path.join(os.path.abspath(workdir), "checkpoints")
    # A manager knows the metadata of an item only if it was given the item's handler.
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(directory, item_handlers=handlers) as manager:
        saved = manager.item_metadata(step)["state"].tree
        source = "ema_params" if saved.get("ema_params") is not None else "params"
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved[source])
        convert = _layer_conversion(shapes, wanted)
        problems = _mismatches(jax.eval_shape(lambda tree: convert(select(tree)), shapes), wanted)
        if problems:
            raise UserError(f"init_from = {workdir}, step {step}, does not fit this model:\n  " + "\n  ".join(problems))
        placement = jax.tree.map(lambda leaf: leaf.sharding, wanted)
        target = {source: sharding.abstract(jax.tree.leaves(placement)[0].mesh, shapes)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        items = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
        restored = manager.restore(step, args=ocp.args.Composite(state=items))["state"]
    logging.getLogger(__name__).info("Parameters taken from %s, step %d (%s).", workdir, step, source)
    return jax.jit(lambda tree: convert(select(tree)), out_shardings=placement)(restored[source])


def _layer_conversion(saved: Any, wanted: Any) -> Callable[[Any], Any]:
    """Stacks or unstacks blocks, if the saved parameters are unrolled and the wanted ones scanned or the reverse."""

    def unrolled(tree: Any) -> bool:
        return any("0" in name.split("/") for name in _by_name(tree))

    if unrolled(saved) == unrolled(wanted):
        return lambda tree: tree
    return layers.stack_blocks if unrolled(saved) else layers.unstack_blocks


def not_finite(finite: Any) -> list[str]:
    """Names of the parameters for which `finite`, a pytree of truth values like theirs, is false."""
    return [name for name, good in _by_name(finite).items() if not good]


def _by_name(tree: Any) -> dict[str, Any]:
    """{'params/encoder/patch_embed/proj/bias': leaf, ...}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _mismatches(saved: Any, wanted: Any) -> list[str]:
    saved, wanted = ({name: tuple(leaf.shape) for name, leaf in _by_name(tree).items()} for tree in (saved, wanted))
    return [
        f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
