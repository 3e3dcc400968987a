"""What pre-training is worth on held-out takes: its losses there, the gain from the other camera, and pictures.

Functions of the objective, its parameters and the inputs that it makes of a batch; `while_training` calls them.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from data import pipeline
from mv2mae_jax.evaluation import online_probes
from mv2mae_jax.models import mv2mae, tubelets
from mv2mae_jax.monitoring.metrics import LOSSES
from mv2mae_jax.objectives import losses
from mv2mae_jax.objectives.pretrain import OTHER_SOURCES, Arrays, Pretrain

_AVERAGED = (*LOSSES, "loss_mean_prediction", "psnr_self", "psnr_cross")


def area(objective: Pretrain, config: config_dict.ConfigDict) -> str:
    """First part of the metrics' names. Where no take is held out, they say that training takes stand in."""
    return "eval" if objective.dataset.held_out is not None else "eval_on_training_takes"


def batches(objective: Pretrain, config: config_dict.ConfigDict, **share: Any) -> Iterator[Arrays]:
    """Held-out takes; see `pipeline.eval_batches`."""
    return pipeline.eval_batches(
        objective.dataset,
        seed=config.seed,
        global_batch_size=config.eval.batch_size or config.global_batch_size,
        max_takes=config.eval.max_takes,
        clips_per_element=config.eval.clips_per_element,
        **share,
    )


def inputs(objective: Pretrain, batch: Arrays, key: jax.Array) -> Arrays:
    """An evaluation draws masks as training does."""
    return objective.make_inputs(batch, key)


def evaluate(objective: Pretrain, params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    """Per-sample measures on held-out samples, float32[B] each, and what `summarize` needs to average them.

    The losses are those of training. PSNR is that of the target's hidden pixels; predictions of normalised pixels take
    each patch's true mean and contrast there. The cross-view reconstruction is repeated with the sources replaced by
    other takes' (same camera, same masks).
    """
    model = objective.model.bind({"params": params})
    masks, positions = (inputs["target_mask"], inputs["source_mask"]), inputs["decoded_target"]
    decoded = positions, inputs["decoded_source"]
    latents, source_latents = model.encode_views(inputs["patches"], *masks)
    reconstruction = model.decode_views(latents, source_latents, *masks, *decoded)
    targets = objective.targets(inputs)
    measured = {name: total / count for name, (total, count) in objective.measure(reconstruction, targets).items()}
    pixels = tubelets.gather_tokens(inputs["patches"][:, 0], positions)  # (B, M, P)

    def psnr(prediction: jax.Array) -> jax.Array:
        return losses.psnr(losses.to_pixels(prediction, objective.target, statistics_of=pixels), pixels / 255)

    if reconstruction.self_target is not None:
        measured["psnr_self"] = psnr(reconstruction.self_target)
    measured |= _by_motion(objective, reconstruction, targets[0][0], inputs["motion"][:, 0], positions)
    if reconstruction.cross is not None:
        measured["psnr_cross"] = psnr(reconstruction.cross)
        for other in OTHER_SOURCES:
            others = model.encode_sources(inputs[other], inputs["source_mask"])
            prediction = model.decode_target(latents, others, *masks, *decoded)
            total, count = objective.loss_per_sample(prediction, *targets[0])
            measured[f"loss_cross_{other}"] = total / count
    carried = ("take", "valid", *(f"has_{other}" for other in OTHER_SOURCES))
    return measured | {key: inputs[key] for key in carried if key in inputs}


def _by_motion(
    objective: Pretrain,
    reconstruction: mv2mae.Reconstruction,
    targets: jax.Array,
    motion: jax.Array,
    positions: jax.Array,
) -> dict[str, jax.Array]:
    """Unweighted losses of the target's moving tokens (above the clip's mean motion energy) and of the others.

    Of predictions at int32[B, M], targets float32[B, M, P] and motion float32[B, N]: sums and counts, float32[B], which
    `summarize` divides.
    """
    moving = jnp.take_along_axis(motion > motion.mean(axis=-1, keepdims=True), positions, axis=-1)  # (B, M)
    predictions = {"self": reconstruction.self_target, "cross": reconstruction.cross}
    measured = {}
    for part, chosen in (("moving", moving.astype(jnp.float32)), ("static", 1.0 - moving)):
        measured[f"count_{part}"] = chosen.sum(axis=-1)
        for name, prediction in predictions.items():
            if prediction is not None:
                total, _ = objective.loss_per_sample(prediction, targets, chosen)
                measured[f"sum_{name}_{part}"] = total
    return measured


def summarize(objective: Pretrain, samples: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, Any]]:
    """Per-sample measures of a whole evaluation -> (metrics, no tables); standard errors are over takes, not samples.

    `cross_gain`: by what fraction the cross-view loss grows when the source is another subject's take in the same
    room; `cross_gain_pose`: the same subject in the same room doing something else, so that only the pose differs.
    """
    samples = {key: value[samples["valid"]] for key, value in samples.items()}
    metrics = {k: float(v.mean()) for k, v in samples.items() if k in _AVERAGED}
    for part in ("moving", "static"):
        count = samples.get(f"count_{part}", np.zeros(1)).sum()
        for name in ("self", "cross"):
            if count and f"sum_{name}_{part}" in samples:
                metrics[f"loss_{name}_{part}"] = float(samples[f"sum_{name}_{part}"].sum() / count)
    for name, other in zip(("cross_gain", "cross_gain_pose"), OTHER_SOURCES, strict=True):
        if f"loss_cross_{other}" not in samples:
            continue
        usable = samples[f"has_{other}"]
        if np.unique(samples["take"][usable]).size >= 2:
            gain, error = relative_increase(
                samples["loss_cross"][usable], samples[f"loss_cross_{other}"][usable], samples["take"][usable]
            )
            metrics |= {name: gain, f"{name}_standard_error": error}
    return metrics, {}


def relative_increase(before: np.ndarray, after: np.ndarray, take: np.ndarray) -> tuple[float, float]:
    """mean(after) / mean(before) - 1 of float[samples], paired, and its standard error; int[samples] are their takes.

    Samples of a take are averaged first. The error is that of a ratio estimator (delta method) over takes.
    """
    index = np.unique(take, return_inverse=True)[1]
    count = np.bincount(index)
    before, after = (np.bincount(index, values) / count for values in (before, after))
    gain = after.mean() / before.mean() - 1
    residual = after - (1 + gain) * before
    return float(gain), float(residual.std(ddof=1) / np.sqrt(len(count)) / before.mean())


def measure_features(
    objective: Pretrain, params: Any, config: config_dict.ConfigDict, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """kNN, retrieval and 3D pose with the encoder as it is, on some training takes and the held-out ones.

    Empty where none are held out; see `online_probes.measure`.
    """
    dataset = objective.dataset
    if dataset.held_out is None:
        return {}
    chosen = np.random.default_rng(config.seed).permutation(dataset.train.rows)
    train_rows, test_rows = chosen[: config.eval.max_feature_takes], dataset.held_out.rows
    return online_probes.measure(
        objective.model,
        params["encoder"],
        dataset.prepared,
        dataset.spec,
        mesh,
        train_rows=np.sort(train_rows[train_rows >= 0]),
        test_rows=np.sort(test_rows[test_rows >= 0]),
        global_batch_size=config.eval.batch_size or config.global_batch_size,
    )


def pictures(objective: Pretrain, params: Any, inputs: Arrays) -> Arrays:
    """Pixels for pictures: float32[B, T, H, W, 3] in [0, 1].

    `masked` is the target view with hidden tokens grey; `self_view`, `cross_view` and `joint_view` show the prediction
    where tokens were hidden and the input elsewhere; `weights` float32[B, *grid] are the target's. Predictions of
    normalised pixels take mean and contrast from the *visible* tokens: nothing of the hidden ones is shown.
    """
    model, mask = objective.model.bind({"params": params}), inputs["target_mask"]
    masks, patches = (mask, inputs["source_mask"]), inputs["patches"][:, 0]  # (B, N, P)
    visible = tubelets.gather_tokens(patches, mask.visible)  # (B, Nv, P)
    statistics = visible.reshape(visible.shape[0], 1, -1)  # (B, 1, Nv * P)

    def film(tokens: jax.Array) -> jax.Array:
        return tubelets.unpatchify(tokens, model.clip_size, model.tubelet_size)  # (B, T, H, W, 3)

    def complete(prediction: jax.Array | None) -> jax.Array:
        if prediction is None:
            filled = jnp.full((*mask.masked.shape, patches.shape[-1]), 0.5)
        else:
            filled = jnp.clip(losses.to_pixels(prediction, objective.target, statistics_of=statistics), 0, 1)
        rows = jnp.arange(patches.shape[0])[:, None]
        return film(jnp.asarray(patches / 255).at[rows, mask.masked].set(filled))

    shown = {
        "target": film(patches) / 255,
        "masked": complete(None),
        "weights": inputs["weights"][:, 0].reshape(-1, *model.grid),  # (B, nt, nh, nw)
    }
    if objective.num_source_views:
        shown["source"] = film(inputs["patches"][:, 1]) / 255
    latents, source_latents = model.encode_views(inputs["patches"], *masks)
    if not objective.is_joint:
        shown["self_view"] = complete(model.decode_self(latents, mask.visible, mask.masked))
    if objective.is_joint or model.cross_view:
        prediction = model.decode_target(latents, source_latents, *masks, mask.masked, inputs["decoded_source"])
        shown["joint_view" if objective.is_joint else "cross_view"] = complete(prediction)
    return shown
