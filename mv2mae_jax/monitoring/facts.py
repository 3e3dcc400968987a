"""What the start of a run says beside the config: sizes and rates that follow from it."""

from typing import Any

import jax
from ml_collections import config_dict

from mv2mae_jax.config import parse_steps
from mv2mae_jax.monitoring import perf


def run_facts(
    config: config_dict.ConfigDict, objective: Any, schedule: Any, mesh: jax.sharding.Mesh, state: Any
) -> dict[str, str]:
    """{title: text} of a run with its optim.Schedule and TrainState: devices, parameters, steps and learning rate."""
    device, views = mesh.devices.flat[0], objective.views_per_sample
    parts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in state.params.items()}
    epoch = objective.dataset.samples_per_epoch
    seen = schedule.total_steps * config.global_batch_size
    return {
        "devices": f"{mesh.size} x {device.device_kind} ({device.platform}), {jax.process_count()} process(es)",
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "parameters": f"{sum(parts.values()):,} (" + ", ".join(f"{k} {v:,}" for k, v in parts.items()) + ")",
        "compute": f"{objective.model.compute.dtype.name}, parameters float32",
        **({"memory": advice} if (advice := perf.advice_on_pages()) else {}),
        **objective.describe(),
        "a step": f"{config.global_batch_size} samples x {views} view(s) = {config.global_batch_size * views} clips",
        "length": f"{schedule.total_steps} steps = {seen / epoch:.1f} epochs of {epoch} samples",
        "learning rate": f"{schedule.peak_learning_rate:.3g} after {schedule.warmup_steps} steps of warm-up, "
        f"then a cosine to {schedule.final_learning_rate:.3g}",
        **never_reached(config, schedule.total_steps),
    }


def never_reached(config: config_dict.ConfigDict, total_steps: int) -> dict[str, str]:
    """{title: text} of the steps in a config that lie beyond the last one, if any."""
    late = [f"eval.at_steps {step}" for step in config.eval.at_steps if step > total_steps]
    if parse_steps(config.profile_steps).stop > total_steps + 1:
        late.append(f"profile_steps {config.profile_steps}")
    return {"beyond the end": ", ".join(late)} if late else {}
