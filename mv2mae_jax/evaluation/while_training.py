"""The evaluation that a training run makes of itself every so often: metrics of its held-out data, and pictures."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from console import progress
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import classification, reconstruction, visualize
from mv2mae_jax.monitoring import guards, log_files, metrics
from mv2mae_jax.state import TrainState

# By the objective; each has the functions that are called below (`pictures` and `measure_features` where the config has
# eval.num_pictures and eval.max_feature_takes).
EVALUATIONS = {"pretrain": reconstruction, "finetune": classification}


def make_evaluation(
    config: config_dict.ConfigDict, objective: Any, mesh: jax.sharding.Mesh, eval_key: jax.Array, workdir: str
) -> Callable[[TrainState, int, metrics.Reporter], tuple[dict[str, float], dict[str, Any]]]:
    """Makes `evaluate(state, step, reporter) -> (metrics, tables)`: one pass over what is evaluated, and pictures."""
    evaluation = EVALUATIONS[config.task]
    area, num_pictures = evaluation.area(objective, config), config.eval.get("num_pictures", 0)

    def eval_step(params: Any, batch: dict[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
        inputs = evaluation.inputs(objective, batch, jax.random.fold_in(eval_key, index))
        return evaluation.evaluate(objective, params, inputs)

    def reconstruct(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        shown = jax.tree.map(lambda rows: rows[:num_pictures], batch)  # a row's masks do not depend on those after it
        inputs = evaluation.inputs(objective, shown, jax.random.fold_in(eval_key, 0))
        return evaluation.pictures(objective, params, inputs)

    everywhere = sharding.replicated(mesh)  # every process receives all rows
    eval_step = jax.jit(sharding.with_mesh(mesh, eval_step), out_shardings=everywhere)
    are_finite = jax.jit(
        lambda params: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params), out_shardings=everywhere
    )
    reconstruct = jax.jit(sharding.with_mesh(mesh, reconstruct), out_shardings=everywhere)

    def draw(params: Any, batch: dict[str, jax.Array], step: int, reporter: metrics.Reporter) -> None:
        pictures = jax.device_get(reconstruct(params, batch))
        if jax.process_index() == 0:
            folder = os.path.join(workdir, "pictures")
            with log_files.optional(folder):
                for name in visualize.write(pictures, folder, step, config.eval.picture_blur_sigma):
                    path = visualize.path_of(folder, step, name)
                    reporter.picture(step, f"{area}/{name}", path + ".png")
                    reporter.picture(step, f"{area}/{name}_moving", path + ".gif")

    def evaluate(state: TrainState, step: int, reporter: metrics.Reporter) -> tuple[dict[str, float], dict[str, Any]]:
        guards.check_finite(jax.device_get(are_finite(state.eval_params)), step)
        measured = []
        share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        batches = evaluation.batches(objective, config, **share)
        for index, batch in enumerate(progress.track(batches, "evaluating", "batches")):
            batch = sharding.put_batch(mesh, batch)
            measured.append(eval_step(state.eval_params, batch, index))
            if index >= metrics.IN_FLIGHT:  # the host does not read on while the device is behind
                measured[index - metrics.IN_FLIGHT] = jax.device_get(measured[index - metrics.IN_FLIGHT])
            if index == 0 and num_pictures:
                draw(state.eval_params, batch, step, reporter)
        measured = jax.device_get(measured)
        samples = {key: np.concatenate([part[key] for part in measured]) for key in measured[0]}
        summary, tables = evaluation.summarize(objective, samples)
        if config.eval.get("max_feature_takes"):
            summary |= evaluation.measure_features(objective, state.eval_params, config, mesh)
        results = {f"{area}/{name}": value for name, value in summary.items()}
        reporter.scalars(step, results)
        metrics.say(f"{area} at step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in summary.items()))
        return results, tables

    return evaluate
