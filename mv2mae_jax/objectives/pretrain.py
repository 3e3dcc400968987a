"""MV2MAE pre-training: masks and motion weights of a step, the forward pass, the loss."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from data import clips, pipeline
from data.dataset import Dataset
from mv2mae_jax.models import joint, mv2mae, stored_frames, tubelets, variants
from mv2mae_jax.objectives import losses, masking

Arrays = dict[str, Any]
Targets = tuple[jax.Array, jax.Array]

# Source views of other takes. An evaluation compares a take's own sources with them; see `pipeline.eval_batches`.
OTHER_SOURCES = ("other_subject", "other_action")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """The pre-training objective. Attributes are the config's values; methods are pure functions of their arguments."""

    model: mv2mae.MV2MAE
    num_source_views: int
    mask_kind: str
    target_mask_ratio: float
    source_mask_ratio: float
    decode_ratio: float
    target: str
    error: str
    cross_weight: float
    temperature: float | None
    ess_fraction: float | None
    motion_pixel_range: float
    weighted_views: str
    dataset: Dataset | None = None  # None where batches come from elsewhere

    @classmethod
    def from_config(cls, config: config_dict.ConfigDict, dataset: Dataset | None = None) -> "Pretrain":
        return cls(
            model=variants.from_config(config),
            num_source_views=config.data.num_source_views,
            mask_kind=config.masking.kind,
            target_mask_ratio=config.masking.target_mask_ratio,
            source_mask_ratio=config.masking.source_mask_ratio,
            decode_ratio=config.masking.decode_ratio,
            target=config.loss.target,
            error=config.loss.get("error", "squared"),  # older runs have no such key
            cross_weight=config.loss.cross_weight,
            temperature=config.loss.temperature,
            ess_fraction=None if config.loss.temperature is not None else config.loss.ess_fraction,
            motion_pixel_range=config.loss.motion_pixel_range,
            weighted_views=config.loss.weighted_views,
            dataset=dataset,
        )

    @property
    def views_per_sample(self) -> int:
        return 1 + self.num_source_views

    @property
    def is_joint(self) -> bool:
        """Whether one decoder fills in all views together, in place of a self-view and a cross-view decoder."""
        return isinstance(self.model, joint.JointMAE)

    def init(self, key: jax.Array) -> Any:
        """Parameters, float32."""
        video = jnp.zeros((1, self.views_per_sample, *self.model.clip_size, 3), jnp.uint8)
        masks = self.draw_masks(1, key)
        return self.model.init(key, video, masks["target_mask"], masks["source_mask"])["params"]

    def take_names(self, batch: Arrays) -> list[str]:
        """Which takes a training batch shows."""
        return self.dataset.train.take_names[batch["take"]].tolist()

    def train_batches(self, **position: Any) -> Iterator[Arrays]:
        """See `pipeline.train_batches`."""
        return pipeline.train_batches(self.dataset, **position)

    def make_inputs(self, batch: Arrays, key: jax.Array) -> Arrays:
        """Makes once all that a step needs: tokens and motion weights (by `tokenize`), and masks (by `draw_masks`)."""
        batch = self.tokenize(batch)
        return {**batch, **self.draw_masks(batch["patches"].shape[0], key)}

    def tokenize(self, batch: Arrays) -> Arrays:
        """Decodes clips that are stored as coefficients, cuts clips into tokens, and turns motion into weights.

        Args:
          batch: from data/pipeline.py. `video` uint8[B, V, T, H, W, 3], or its coefficients in `stored`; `motion`
            float32[B, V, N] if the host has measured it; in an evaluation also OTHER_SOURCES, uint8[B, S, T, H, W, 3].

        Returns:
          `patches` uint8[B, V, N, P], `motion` and `weights` float32[B, V, N]; OTHER_SOURCES as tokens uint8[B, S, N,
          P]; all other entries of the batch as they are.
        """
        batch = stored_frames.pixels(batch, self.model.clip_size[1:])
        tokens = {name: self.model.patchify(batch[name]) for name in ("video", *OTHER_SOURCES) if name in batch}
        patches, motion = tokens.pop("video"), batch.get("motion")
        if motion is None:
            motion = stored_frames.motion_energy(patches, self.model.grid, self.model.tubelet_size)
            # The barrier makes the rest of the step wait for both tokens and energies. Without it, a TPU's compiler
            # begins with the energies and keeps less in fast memory. By its own estimate, that costs 2 ms of 50
            # (benchmarks/results/NOTES_input.md).
            patches, motion = jax.lax.optimization_barrier((patches, motion))
        del batch["video"]
        return {**batch, **tokens, "patches": patches, "motion": motion, "weights": self.weights(motion)}

    def draw_masks(self, batch_size: int, key: jax.Array) -> Arrays:
        """Draws the mask of every view independently, and which of its masked tokens are decoded.

        Returns:
          `target_mask` of int32[B, ...] and `decoded_target` int32[B, Md]; `source_mask` of int32[B, S, ...] and
          `decoded_source` int32[B, S, Md'], both None without source views.
        """
        grid, sources = self.model.grid, self.num_source_views

        def draw(key: jax.Array, decode_key: jax.Array, shape: tuple[int, ...], ratio: float):
            mask = masking.draw_mask(key, batch_shape=shape, grid=grid, mask_ratio=ratio, kind=self.mask_kind)
            return mask, masking.choose_decoded(decode_key, mask.masked, decode_ratio=self.decode_ratio, grid=grid)

        target_key, source_key, decode_key = jax.random.split(key, 3)
        target_mask, decoded_target = draw(target_key, decode_key, (batch_size,), self.target_mask_ratio)
        drawn = {"target_mask": target_mask, "decoded_target": decoded_target}
        if not sources:
            return drawn | {"source_mask": None, "decoded_source": None}
        decode_key = jax.random.fold_in(decode_key, 1)
        source_mask, decoded_source = draw(source_key, decode_key, (batch_size, sources), self.source_mask_ratio)
        return drawn | {"source_mask": source_mask, "decoded_source": decoded_source}

    def loss(self, params: Any, inputs: Arrays) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Self-view loss of every view + cross_weight * cross-view loss of the target; joint: the mean over the views.

        Returns:
          (loss, metrics), float32 scalars. `loss_self` is the mean over the views, although `loss` contains their sum.
          With a joint decoder, `loss` is `loss_joint`, the mean over the views, and `loss_cross` the target's loss.
        """
        measured = self.measure(self.predict(params, inputs), self.targets(inputs))
        metrics = {name: total.sum() / count.sum() for name, (total, count) in measured.items()}
        loss = metrics["loss_joint"] if self.is_joint else self.views_per_sample * metrics["loss_self"]
        if self.model.cross_view:
            loss += self.cross_weight * metrics["loss_cross"]
        return loss, {"loss": loss, **metrics, "ess_fraction": losses.effective_share(inputs["weights"]).mean()}

    def predict(self, params: Any, inputs: Arrays) -> mv2mae.Reconstruction:
        """The forward pass on what `make_inputs` returns."""
        names = ("patches", "target_mask", "source_mask", "decoded_target", "decoded_source")
        return self.model.apply({"params": params}, *(inputs[name] for name in names), method="reconstruct")

    def targets(self, inputs: Arrays) -> tuple[Targets, Targets | None]:
        """What the predictions are compared with: a pair for the target view and a pair for the source views.

        Returns:
          (targets float32[B, Md, P], weights float32[B, Md]) of the target at its decoded tokens, and the same of the
          sources, [B, S, Md', P] and [B, S, Md']; None without source views.
        """
        patches, weights = inputs["patches"], inputs["weights"]
        target = self._targets_at(inputs["decoded_target"], patches[:, 0], weights[:, 0])
        if not self.num_source_views:
            return target, None
        tokens, weights = self._targets_at(inputs["decoded_source"], patches[:, 1:], weights[:, 1:])
        return target, (tokens, weights if self.weighted_views == "all" else jnp.ones_like(weights))

    def _targets_at(self, positions: jax.Array, patches: jax.Array, weights: jax.Array) -> Targets:
        """All N patches and weights -> targets float32[..., M, P] and weights float32[..., M] at int32[..., M]."""
        weights = jnp.take_along_axis(weights, positions, axis=-1)  # (..., M)
        return losses.targets(tubelets.gather_tokens(patches, positions), self.target), weights

    def measure(
        self, reconstruction: mv2mae.Reconstruction, targets: tuple[Targets, Targets | None]
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """(sum, count) of each loss, float32[B]; losses of several views are averaged over the views.

        `loss_mean_prediction` is the loss of predicting every patch's mean colour, a baseline for the other losses.
        """
        per_sample = self.loss_per_sample
        baseline = jax.vmap(functools.partial(losses.mean_prediction_loss, error=self.error))
        target, source = targets
        name, of_target, of_source = "loss_self", reconstruction.self_target, reconstruction.self_source
        if self.is_joint:
            name, of_target, of_source = "loss_joint", reconstruction.cross, reconstruction.joint_source
        measured = {name: per_sample(of_target, *target), "loss_mean_prediction": baseline(*target)}
        if source is not None:
            of_sources = {name: per_sample(of_source, *source), "loss_mean_prediction": baseline(*source)}
            measured = {name: self._mean_over_views(measured[name], of_sources[name]) for name in measured}
        if reconstruction.cross is not None:
            measured["loss_cross"] = per_sample(reconstruction.cross, *target)
        return measured

    def loss_per_sample(
        self, prediction: jax.Array, target: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`losses.reconstruction_loss` of each sample, [B, ..., M, P] twice and [B, ..., M] -> (sum, count) f32[B]."""
        return jax.vmap(functools.partial(losses.reconstruction_loss, error=self.error))(prediction, target, weights)

    def _mean_over_views(self, target: tuple[jax.Array, jax.Array], sources: tuple[jax.Array, jax.Array]):
        """The average of the views' mean losses, times the target's count. Views may hide unequal numbers of tokens."""
        (target_sum, count), (source_sum, source_count) = target, sources
        total = target_sum + self.num_source_views * source_sum * count / source_count
        return total / self.views_per_sample, count

    def weights(self, motion: jax.Array) -> jax.Array:
        """Motion energies float32[..., N] -> loss weights float32[..., N] of mean 1."""
        return losses.motion_weights(
            motion, temperature=self.temperature, pixel_range=self.motion_pixel_range, ess_fraction=self.ess_fraction
        )

    def describe(self) -> dict[str, str]:
        """What the start of a run says about the task."""
        data, views, model = self.dataset, self.views_per_sample, self.model
        stored, rows = data.prepared.views, data.train.rows[data.train.rows >= 0]
        held_out = "no" if data.held_out is None else len(np.unique(data.held_out.elements[:, 0]))
        shapes = {"video": jax.ShapeDtypeStruct((1, views, *model.clip_size, 3), np.uint8)}
        inputs = jax.eval_shape(self.make_inputs, shapes, jax.random.key(0))
        visible = f"{inputs['target_mask'].visible.shape[-1]} in the target"
        if self.num_source_views:
            visible += f" and {inputs['source_mask'].visible.shape[-1]} in a source view"
        return {
            "tokens per view": f"{model.num_tokens} {model.grid}, visible {visible}",
            "data": f"{data.prepared.name} in {data.prepared.directory}: {len(data.train.take_names)} takes, "
            f"{len(data.train.elements)} (take, target view) elements; {held_out} takes held out",
            **clips.takes_left_out(data.train, data.spec),
            **clips.short_videos(stored["num_frames"][rows], data.spec),
            **clips.small_videos(stored["height"][rows], stored["width"][rows], data.spec),
            **clips.frame_rates(stored["fps"][rows], data.spec),
        }
