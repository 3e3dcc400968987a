"""Samples of a pre-training run by its newest checkpoint: reconstructions, motion weights, attention."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import pipeline
from data.dataset import Dataset
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import reconstruction, visualize
from mv2mae_jax.models import tubelets
from mv2mae_jax.objectives import losses
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.report import attention, charts, pictures
from mv2mae_jax.report.attention import Look
from mv2mae_jax.report.collect import ReportedRun
from mv2mae_jax.report.pictures import Image
from mv2mae_jax.runs import checkpoint, run_record

ALTS = {
    "target": "the target view",
    "masked": "what the encoder sees of the target view: hidden tokens are grey",
    "self_view": "the target view reconstructed from its own visible tokens",
    "cross_view": "the target view reconstructed with the help of the other camera",
    "joint_view": "the target view reconstructed together with the other camera's",
    "source": "the source view",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample: its name, and its pictures.

    Attributes:
      name: take and cameras.
      films: target, masked input, reconstructions, source.
      weights: the target with its motion weights at three temperatures.
      weights_note: what a fixed temperature of 60 would do here.
      looks: one for each chosen token; empty without a cross-view decoder.
    """

    name: str
    films: list[Image]
    weights: list[Image]
    weights_note: str
    looks: list[Look]


def examine(run: ReportedRun, *, count: int) -> tuple[int, list[Sample]]:
    """(step of the newest checkpoint, `count` samples): held-out takes with the masks of an evaluation.

    Raises:
      ValueError: there is no checkpoint, it is damaged, or the data set is gone.
    """
    step, _, config = run_record.read_record(run.workdir)
    config.data.dir = run.config.data.dir
    config.model.attention = "xla"  # whichever form the run used
    dataset = Dataset.from_config(config)
    objective = Pretrain.from_config(config, dataset)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params = checkpoint.load_params(run.workdir, sharding.abstract(sharding.one_device(), shapes), step)
    batches = pipeline.eval_batches(dataset, seed=config.seed, global_batch_size=count, max_takes=config.eval.max_takes)
    batch = next(batches)
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    inputs, shown, looked = jax.device_get(jax.jit(functools.partial(_compute, objective))(params, batch, key))
    blur = config.eval.picture_blur_sigma
    shown = {name: video if name == "weights" else visualize.blurred(video, blur) for name, video in shown.items()}

    samples = []
    for index in np.flatnonzero(batch["valid"]).tolist():
        motion = inputs["motion"][index, 0]
        weights, note = weight_maps(objective, motion, visualize.sample_row(shown, "target", index))
        seen = []
        if looked is not None:
            sources = visualize.blurred(inputs["video"][index, 1:].astype(np.float32), blur)
            sources = np.round(sources).astype(np.uint8)  # (S, T, H, W, 3)
            frames = {name: visualize.sample_row(shown, name, index) for name in ("target", "masked")}
            masks = jax.tree.map(lambda x, index=index: x[index], (inputs["target_mask"], inputs["source_mask"]))
            seen = attention.draw(objective.model.grid, motion, frames, sources, masks, looked[index])
        films = [
            pictures.film(visualize.sample_row(shown, name, index), dict(visualize.ROWS)[name], f"Animation: {alt}")
            for name, alt in ALTS.items()
            if name in shown
        ]
        name = _name(dataset, batch, index)
        samples.append(Sample(name=name, films=films, weights=weights, weights_note=note, looks=seen))
    return step, samples


def temperature_of(motion: np.ndarray, weights: np.ndarray) -> float:
    """The t by which motion energies float[N] became weights float[N] ~ exp(motion / t); inf if all are alike."""
    motion, weights = np.asarray(motion, np.float64), np.asarray(weights, np.float64)
    top = int(np.argmax(motion))
    low = int(np.argmin(np.where(weights > 1e-30, motion, np.inf)))  # smaller weights have lost their precision
    ratio = math.log(weights[top] / weights[low])
    return (motion[top] - motion[low]) / ratio if ratio > 0 else math.inf


def weight_maps(objective: Pretrain, motion: np.ndarray, target: np.ndarray) -> tuple[list[Image], str]:
    """Motion weights over a target uint8[T, H, W, 3] at the run's temperature, a quarter and four times of it."""
    pixel_range = 255.0 if objective.temperature is None else objective.motion_pixel_range
    own = objective.temperature
    if own is None:
        own = temperature_of(motion, np.asarray(objective.weights(motion)))
    middle = own if math.isfinite(own) else 60.0
    images = []
    for temperature in (middle / 4, middle, 4 * middle):
        weights = losses.motion_weights(jnp.asarray(motion), temperature=temperature, pixel_range=pixel_range)
        share = 100 * float(losses.effective_share(weights))
        share = f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"
        weights = np.asarray(weights).reshape(objective.model.grid)  # (nt, nh, nw)
        label = f"t = {charts.number(temperature)}{', this run' if temperature == own else ''}: {share} of tokens"
        alt = f"Animation: the target view under its motion weights at temperature {charts.number(temperature)}; "
        alt += f"an effective {share} of the tokens carry the loss"
        images.append(pictures.film(visualize.weight_map(weights, target), label, alt))
    fixed = 100 * float(losses.effective_share(losses.motion_weights(jnp.asarray(motion), temperature=60.0)))
    note = (
        f"The paper's t = 60 on pixels in [0, 255] would leave an effective {fixed:.1f} % of the {motion.size} tokens."
    )
    if not math.isfinite(own):
        note += " This run weights all tokens alike (infinite temperature)."
    return images, note


def _compute(objective: Pretrain, params: Any, batch: dict[str, Any], key: jax.Array) -> tuple[Any, Any, Any]:
    """(inputs with their masks; reconstructions; attention float32[B, M, S * Ns] or None) of a batch."""
    inputs = objective.make_inputs(batch, key)
    looked = None
    if objective.model.cross_view:
        mask, source_mask = inputs["target_mask"], inputs["source_mask"]
        model = objective.model.bind({"params": params})
        latents, sources = model.encode_views(inputs["patches"], mask, source_mask)
        seen = (latents, mask.visible, mask.masked, sources, source_mask.visible)
        looked = attention.cross_attention(objective.model, params, *seen).mean(axis=(1, 2))  # over blocks and heads
    shown = reconstruction.pictures(objective, params, inputs)
    video = tubelets.unpatchify(inputs["patches"], objective.model.clip_size, objective.model.tubelet_size)
    kept = {name: inputs[name] for name in ("motion", "target_mask", "source_mask")}
    return kept | {"video": video}, shown, looked


def _name(dataset: Dataset, batch: dict[str, np.ndarray], index: int) -> str:
    views = dataset.held_out or dataset.train
    target, *sources = views.view_names[batch["view"][index]].tolist()
    label, classes = int(batch["label"][index]), dataset.prepared.class_names
    name = f"{views.take_names[batch['take'][index]]}, target {target}"
    name += f", source {' and '.join(sources)}" if sources else ""
    return name + (f" ({classes[label]})" if label >= 0 and classes else "")
