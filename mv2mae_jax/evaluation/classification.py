"""What fine-tuning is worth: accuracies over clips and crops of the views that are tested.

The same functions as in `reconstruction`, for fine-tuning.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from data import pipeline
from mv2mae_jax.evaluation import accuracy
from mv2mae_jax.models import stored_frames
from mv2mae_jax.objectives.finetune import Arrays, Finetune


def area(objective: Finetune, config: config_dict.ConfigDict) -> str:
    """First part of the metrics' names: the split that is measured."""
    return config.eval.split


def batches(objective: Finetune, config: config_dict.ConfigDict, **share: Any) -> Iterator[Arrays]:
    """Clips x crops of every view of the split `config.eval.split`."""
    dataset = objective.dataset
    return pipeline.clip_batches(
        dataset.prepared,
        dataset.spec,
        {"test": dataset.test, "held_out": dataset.held_out}[config.eval.split],
        global_batch_size=config.eval.batch_size or config.global_batch_size,
        clips_per_view=dataset.clips_per_view,
        crops_per_clip=dataset.crops_per_clip,
        num_workers=config.data.num_workers,
        **share,
    )


def inputs(objective: Finetune, batch: Arrays, key: jax.Array) -> Arrays:
    """Nothing is drawn at a test."""
    return stored_frames.pixels(batch, objective.model.clip_size[1:])


def evaluate(objective: Finetune, params: Any, inputs: Arrays) -> dict[str, jax.Array]:
    """Logits of every clip, and which view it is of."""
    logits = objective.model.apply({"params": params}, inputs["video"])
    return {"logits": logits, **{key: inputs[key] for key in ("row", "valid")}}


def summarize(objective: Finetune, samples: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, Any]]:
    """Probabilities averaged over the clips and crops of each view -> (accuracies, also by camera; confusions)."""
    valid, dataset = samples["valid"], objective.dataset
    probabilities, rows = accuracy.average_clips(samples["logits"][valid], samples["row"][valid])
    label, view = (dataset.prepared.views[column][rows] for column in ("label", "view"))
    confusion = accuracy.confusion_matrix(probabilities.argmax(-1), label, dataset.num_classes)
    tables = {"class_names": list(dataset.class_names), "confusion_matrix": confusion.tolist()}
    return accuracy.summarize(probabilities, label, view), tables
