"""Checkpoints: one directory per step in WORKDIR/checkpoints, written by Orbax."""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging


class Checkpointer:
    """Saves and restores the state of a run together with a JSON record.

    The directory of a step holds `state` (the arrays) and `run` (JSON: the config and what the host must remember).
    """

    def __init__(self, workdir: str, *, every_steps: int = 1000, keep: int | None = 3):
        self.directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._every_steps = every_steps
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_names=("state", "run"),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, run: dict[str, Any], *, force: bool = False) -> bool:
        """Starts an asynchronous save if `step` is due (always with `force`). The state may be donated right after."""
        if step == self.latest_step() or not (force or step % self._every_steps == 0):
            return False
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        return self._manager.save(step, args=items, force=True)

    def restore(self, state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a step, the newest by default.

        Args:
          state: a pytree of `jax.ShapeDtypeStruct` with the target's shardings, which may differ from the saved ones.
          step: which step.

        Returns:
          (state, run record).
        """
        step = self.latest_step() if step is None else step
        items = ocp.args.Composite(state=ocp.args.StandardRestore(state), run=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["run"]

    def read_run(self, step: int | None = None) -> dict[str, Any]:
        """The JSON record of a step alone."""
        step = self.latest_step() if step is None else step
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.close()


def load_params(workdir: str, params: Any, step: int | None = None) -> Any:
    """Parameters of another run (its average, where it kept one), for `init_from`.

    Args:
      workdir: the other run's directory.
      params: a pytree of `jax.ShapeDtypeStruct` with shardings that the result must match.
      step: which checkpoint, the newest by default.

    Raises:
      ValueError: there is no checkpoint, or names or shapes differ; lists them.
    """
    directory = os.path.join(os.path.abspath(workdir), "checkpoints")
    if not os.path.isdir(directory):
        raise ValueError(f"init_from = {workdir}: there is no run with checkpoints there ({directory} is missing).")
    # The metadata of an item is known only to a manager that was told the item's handler.
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(directory, item_handlers=handlers) as manager:
        step = manager.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"init_from = {workdir}: {directory} holds no finished checkpoint.")
        saved = manager.item_metadata(step)["state"].tree
        source = "ema_params" if saved.get("ema_params") is not None else "params"
        problems = _mismatches(saved[source], params)
        if problems:
            raise ValueError(
                f"init_from = {workdir}, step {step}, does not fit this model:\n  " + "\n  ".join(problems)
            )
        target = {source: params}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        items = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
        restored = manager.restore(step, args=ocp.args.Composite(state=items))["state"]
    logging.info("Parameters taken from %s, step %d (%s).", workdir, step, source)
    return restored[source]


def _mismatches(saved: Any, wanted: Any) -> list[str]:
    def shapes(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}

    saved, wanted = shapes(saved), shapes(wanted)
    return [
        f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
