"""Fine-tuning by VideoMAE's recipe: mixing of samples and the classification loss."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import config_dict

from console.errors import UserError
from data import clips, pipeline
from data.labelled import LabelledDataset
from mv2mae_jax.models import classifier

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune:
    """The classification objective. Attributes are the config's values; methods are pure functions of their inputs."""

    model: classifier.Classifier
    dataset: LabelledDataset
    mixing: Mapping[str, float]  # the options of `mix`
    label_smoothing: float  # share of the target spread over all classes

    views_per_sample: ClassVar[int] = 1

    @classmethod
    def from_config(cls, config: config_dict.ConfigDict, dataset: LabelledDataset) -> "Finetune":
        if config.eval.split == "held_out" and len(dataset.held_out) == 0:
            raise UserError(
                f"eval.split = 'held_out', but data.holdout_fraction = {config.data.holdout_fraction} and "
                f"data.train_views = {tuple(config.data.train_views)} hold out no labelled view of "
                f"{dataset.prepared.directory}. Hold out more, or measure eval.split=test."
            )
        return cls(
            model=classifier.from_config(config, dataset.num_classes),
            dataset=dataset,
            mixing=dict(config.mix),
            label_smoothing=config.loss.label_smoothing,
        )

    def init(self, key: jax.Array) -> Any:
        """Parameters, float32."""
        return self.model.init(key, jnp.zeros((1, *self.model.clip_size, 3), jnp.uint8))["params"]

    def take_names(self, batch: Arrays) -> list[str]:
        """Which takes a training batch shows."""
        return self.dataset.prepared.views["take"][batch["row"]].tolist()

    def train_batches(self, **position: Any) -> Iterator[Arrays]:
        """See `pipeline.labelled_batches`."""
        return pipeline.labelled_batches(self.dataset, **position)

    def make_inputs(self, batch: Arrays, key: jax.Array) -> Arrays:
        """Mixes samples and draws what stochastic depth needs.

        Args:
          batch: `video` uint8[B, T, H, W, 3], `label` int32[B].

        Returns:
          `video` uint8, mixed; `target` float32[B, K], rows sum to 1; `drop_path_key`, one per row, so that each part
          of an accumulated batch has a key of its own.
        """
        mix_key, drop_path_key = jax.random.split(key)
        target = smoothed_one_hot(batch["label"], self.dataset.num_classes, self.label_smoothing)
        video, target = mix(mix_key, batch["video"], target, **self.mixing)
        return {"video": video, "target": target, "drop_path_key": jax.random.split(drop_path_key, video.shape[0])}

    def loss(self, params: Any, inputs: Arrays) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy with soft targets: (loss, metrics), float32 scalars.

        `accuracy` compares with the larger share of a mixed target.
        """
        rngs = {"drop_path": inputs["drop_path_key"][0]}
        logits = self.model.apply({"params": params}, inputs["video"], deterministic=False, rngs=rngs)  # (B, K)
        loss = -(inputs["target"] * jax.nn.log_softmax(logits)).sum(-1).mean()
        correct = logits.argmax(-1) == inputs["target"].argmax(-1)
        return loss, {"loss": loss, "accuracy": correct.mean()}

    def describe(self) -> dict[str, str]:
        """What the start of a run says about the task."""
        data, views = self.dataset, self.dataset.prepared.views
        takes = len(np.unique(views["take"][data.train]))
        return {
            "tokens per clip": f"{self.model.encoder.num_tokens}",
            "data": f"{data.prepared.name} in {data.prepared.directory}, {data.num_classes} classes: {len(data.train)} "
            f"views of {takes} takes to train on, {len(data.held_out)} views held out, {len(data.test)} to test on by "
            f"{data.clips_per_view} clips x {data.crops_per_clip} crops",
            **clips.short_videos(views["num_frames"][data.train], data.spec),
            **clips.small_videos(views["height"][data.train], views["width"][data.train], data.spec),
            **clips.frame_rates(views["fps"][data.train], data.spec),
        }


def smoothed_one_hot(label: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """int32[B] -> float32[B, K]: 1 - smoothing on the label and smoothing spread evenly over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(label, num_classes), smoothing)


def mix(
    key: jax.Array,
    video: jax.Array,
    target: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    mix_probability: float,
    cutmix_probability: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each sample with its mirror in the batch.

    One choice, one share and one box for the whole batch, as timm's `Mixup(mode='batch')` that VideoMAE uses. A box
    spans all frames; targets are mixed by the area that it really covers.

    Args:
      video: uint8[B, T, H, W, 3]; B even, else the middle sample is mixed with itself.
      target: float32[B, K].
      mixup_alpha, cutmix_alpha: of the Beta distributions that the mixing share is drawn from; 0 switches one off.
      mix_probability: share of the steps that mix at all.
      cutmix_probability: share of the mixing steps that cut a box instead of blending, where both are on.

    Returns:
      (video uint8, blended pixels rounded; target).
    """
    if not (mixup_alpha or cutmix_alpha) or not mix_probability:
        return video, target
    whether_key, kind_key, blend_key, cut_key, box_key = jax.random.split(key, 5)
    other_video, other_target = video[::-1], target[::-1]
    use_cutmix = jnp.bool_(not mixup_alpha)
    if mixup_alpha and cutmix_alpha:
        use_cutmix = jax.random.uniform(kind_key) < cutmix_probability

    share = jax.random.beta(blend_key, mixup_alpha, mixup_alpha) if mixup_alpha else jnp.float32(1)
    cut = jax.random.beta(cut_key, cutmix_alpha, cutmix_alpha) if cutmix_alpha else jnp.float32(1)
    inside = _draw_box(box_key, video.shape[2:4], 1 - cut)  # (H, W)

    # What each pixel takes from the sample itself; the target follows by the mean.
    keep = jnp.where(use_cutmix, 1.0 - inside, share)  # (H, W)
    keep = jnp.where(jax.random.uniform(whether_key) < mix_probability, keep, 1.0)
    pixels = keep[..., None] * video + (1 - keep[..., None]) * other_video  # (B, T, H, W, 3)
    own = keep.mean()
    return jnp.round(pixels).astype(jnp.uint8), own * target + (1 - own) * other_target


def _draw_box(key: jax.Array, size: tuple[int, int], area: jax.Array) -> jax.Array:
    """float32[H, W], 1 inside a box of the frame's aspect ratio and about this share of its area, cut at the border."""
    inside = jnp.float32(1)
    for axis, (length, axis_key) in enumerate(zip(size, jax.random.split(key), strict=True)):
        extent = jnp.sqrt(area) * length
        centre = jax.random.uniform(axis_key, maxval=length)
        position = jnp.arange(length) + 0.5
        hit = jnp.abs(position - centre) < extent / 2
        inside = inside * jnp.expand_dims(hit.astype(jnp.float32), 1 - axis)
    return inside
