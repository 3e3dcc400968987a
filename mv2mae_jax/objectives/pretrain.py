"""MV2MAE pre-training: masks, the forward pass, the loss, and what evaluation measures."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from data import pipeline
from data.dataset import Dataset
from mv2mae_jax.evaluation import online_probes
from mv2mae_jax.models import joint, mv2mae, stored_frames, tubelets, variants
from mv2mae_jax.objectives import losses, masking
from mv2mae_jax.objectives.masking import Mask

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """The pre-training objective. All methods are pure functions of their arguments; attributes are the config's."""

    model: mv2mae.MV2MAE
    num_source_views: int
    mask_kind: str
    target_mask_ratio: float
    source_mask_ratio: float
    decode_ratio: float
    target: str
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
        video = jnp.zeros((1, 1 + self.num_source_views, *self.model.clip_size, 3), jnp.uint8)
        inputs = self.randomize({"video": video}, key)
        return self.model.init(key, video, inputs["target_mask"], inputs["source_mask"])["params"]

    def take_names(self, batch: Arrays) -> list[str]:
        """Which takes a training batch shows."""
        return self.dataset.train.take_names[batch["take"]].tolist()

    def train_batches(self, **position: Any) -> Iterator[Arrays]:
        """See `pipeline.train_batches`."""
        return pipeline.train_batches(self.dataset, **position)

    def randomize(self, batch: Arrays, key: jax.Array) -> Arrays:
        """Adds what is drawn for a step: the masks of every view, independently, and the tokens to decode.

        Args:
          batch: `video` uint8[B, V, T, H, W, 3], or coefficients to decode, and whatever else; see data/pipeline.py.
          key: the key of the step.
        """
        batch = stored_frames.with_motion(
            stored_frames.pixels(batch, self.model.clip_size[1:]), self.model.tubelet_size
        )
        batch_size = batch["video"].shape[0]
        target_key, source_key, decode_key = jax.random.split(key, 3)
        draw = {"grid": self.model.grid, "kind": self.mask_kind}
        choice = {"decode_ratio": self.decode_ratio, "grid": self.model.grid}
        target_mask = masking.draw_mask(
            target_key, batch_shape=(batch_size,), mask_ratio=self.target_mask_ratio, **draw
        )
        drawn = {
            "target_mask": target_mask,
            "decoded_target": masking.choose_decoded(decode_key, target_mask.masked, **choice),
            "source_mask": None,
            "decoded_source": None,
        }
        if self.num_source_views:
            shape = (batch_size, self.num_source_views)
            mask = masking.draw_mask(source_key, batch_shape=shape, mask_ratio=self.source_mask_ratio, **draw)
            decoded = masking.choose_decoded(jax.random.fold_in(decode_key, 1), mask.masked, **choice)
            drawn |= {"source_mask": mask, "decoded_source": decoded}
        return {**batch, **drawn}

    def loss(self, params: Any, inputs: Arrays) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Self-view loss of every view + cross_weight * cross-view loss of the target; joint: the mean over the views.

        Args:
          params: from `init`.
          inputs: from `randomize`; `motion` float32[B, V, N].

        Returns:
          (loss, metrics), float32 scalars. `loss_self` is the mean over the views, `loss` takes their sum. With a joint
          decoder, `loss_joint` is the mean over the views and the loss, and `loss_cross` the target's part of it.
        """
        measured = self._measure(self._reconstruct(params, inputs), inputs)
        metrics = {name: total.sum() / count.sum() for name, (total, count) in measured.items()}
        loss = metrics["loss_joint"] if self.is_joint else self.views_per_sample * metrics["loss_self"]  # mean or sum
        if self.model.cross_view:
            loss += self.cross_weight * metrics["loss_cross"]
        ess_fraction = losses.ess_fraction(self.weights(inputs["motion"])).mean()
        return loss, {"loss": loss, **metrics, "ess_fraction": ess_fraction}

    def _reconstruct(self, params: Any, inputs: Arrays) -> mv2mae.Reconstruction:
        return self.model.apply(
            {"params": params},
            inputs["video"],
            inputs["target_mask"],
            inputs["source_mask"],
            inputs["decoded_target"],
            inputs["decoded_source"],
        )

    def _measure(self, reconstruction: mv2mae.Reconstruction, inputs: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        """(sum, count) float32[B] of each loss; those over several views are averages over the views.

        `loss_mean_prediction` is the loss of predicting every patch's mean colour, a baseline for the other losses.
        """
        per_sample, baseline = jax.vmap(losses.reconstruction_loss), jax.vmap(losses.mean_prediction_loss)
        patches = self._patchify(inputs["video"])
        target = self._targets(patches[:, 0], inputs["motion"][:, 0], inputs["decoded_target"])
        name, of_target, of_source = "loss_self", reconstruction.self_target, reconstruction.self_source
        if self.is_joint:
            name, of_target, of_source = "loss_joint", reconstruction.cross, reconstruction.joint_source
        measured = {name: per_sample(of_target, *target), "loss_mean_prediction": baseline(*target)}
        if self.num_source_views:
            targets, weights = self._targets(patches[:, 1:], inputs["motion"][:, 1:], inputs["decoded_source"])
            source = targets, weights if self.weighted_views == "all" else jnp.ones_like(weights)
            of_sources = {name: per_sample(of_source, *source), "loss_mean_prediction": baseline(*source)}
            measured = {name: self._mean_over_views(measured[name], of_sources[name]) for name in measured}
        if reconstruction.cross is not None:
            measured["loss_cross"] = per_sample(reconstruction.cross, *target)
        return measured

    def _mean_over_views(self, target: tuple[jax.Array, jax.Array], sources: tuple[jax.Array, jax.Array]):
        """The views may hide different numbers of tokens: each enters by its mean, expressed at the target's count."""
        (target_sum, count), (source_sum, source_count) = target, sources
        total = target_sum + self.num_source_views * source_sum * count / source_count
        return total / (1 + self.num_source_views), count

    def weights(self, motion: jax.Array) -> jax.Array:
        """Motion energies float32[..., N] -> loss weights float32[..., N] of mean 1."""
        return losses.motion_weights(
            motion,
            temperature=self.temperature,
            pixel_range=self.motion_pixel_range,
            ess_fraction=self.ess_fraction,
        )

    def _patchify(self, video: jax.Array) -> jax.Array:
        """All views uint8[B, V, T, H, W, 3] -> uint8[B, V, N, P], as the model does: compiled, they are cut once."""
        return tubelets.patchify(video, self.model.tubelet_size)

    def _targets(self, patches: jax.Array, motion: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """uint8[..., N, P] -> targets float32[..., M, P], weights float32[..., M] at the decoded int32[..., M]."""
        patches = tubelets.gather_tokens(patches, positions)  # (..., M, P)
        weights = jnp.take_along_axis(self.weights(motion), positions, axis=-1)  # (..., M)
        return losses.targets(patches, self.target), weights

    def eval_batches(self, config: config_dict.ConfigDict, **share: Any) -> Iterator[Arrays]:
        """Held-out takes; see `pipeline.eval_batches`."""
        return pipeline.eval_batches(
            self.dataset,
            seed=config.seed,
            global_batch_size=config.eval.batch_size or config.global_batch_size,
            max_takes=config.eval.max_takes,
            clips_per_element=config.eval.clips_per_element,
            **share,
        )

    def eval_area(self, config: config_dict.ConfigDict) -> str:
        """First part of the metrics' names. Where no take is held out, they say that training takes stand in."""
        del config
        return "eval" if self.dataset.held_out is not None else "eval_on_training_takes"

    def eval_inputs(self, batch: Arrays, key: jax.Array) -> Arrays:
        """An evaluation draws masks as training does."""
        return self.randomize(batch, key)

    def evaluate(self, params: Any, inputs: Arrays) -> dict[str, jax.Array]:
        """Per-sample measures on held-out samples, float32[B] each, and what `summarize` needs to average them.

        The losses are those of training. PSNR is that of the target's hidden pixels; predictions of normalised pixels
        take each patch's true mean and contrast there. The cross-view reconstruction is repeated with the sources
        replaced by other takes' (same camera, same masks).
        """
        video, positions = inputs["video"], inputs["decoded_target"]
        reconstruction = self._reconstruct(params, inputs)
        measured = {k: total / count for k, (total, count) in self._measure(reconstruction, inputs).items()}
        patches = self._patchify(video)  # (B, V, N, P)
        pixels = tubelets.gather_tokens(patches[:, 0], positions)  # (B, M, P)

        def psnr(prediction: jax.Array) -> jax.Array:
            return losses.psnr(losses.to_pixels(prediction, self.target, statistics_of=pixels), pixels / 255)

        if reconstruction.self_target is not None:
            measured["psnr_self"] = psnr(reconstruction.self_target)
        measured |= self._by_motion(reconstruction, inputs)
        if reconstruction.cross is not None:
            measured["psnr_cross"] = psnr(reconstruction.cross)
            target = self._targets(patches[:, 0], inputs["motion"][:, 0], positions)
            for other in ("other_subject", "other_action"):
                prediction = self._with_sources(params, inputs, inputs[other], positions)
                total, count = jax.vmap(losses.reconstruction_loss)(prediction, *target)
                measured[f"loss_cross_{other}"] = total / count
        carried = ("take", "valid", "has_other_subject", "has_other_action")
        return measured | {key: inputs[key] for key in carried if key in inputs}

    def _with_sources(self, params: Any, inputs: Arrays, sources: jax.Array, positions: jax.Array) -> jax.Array:
        """The target's tokens at `positions` with the help of these sources: float32[B, M, P], same masks."""
        video, mask, source_mask = inputs["video"][:, :1], inputs["target_mask"], inputs["source_mask"]
        if self.is_joint:
            video = jnp.concatenate([video, sources], axis=1)
            return self._reconstruct(params, inputs | {"video": video, "decoded_target": positions}).cross
        model = self._bind(params)
        latents = model.encode(video[:, 0], mask.visible)
        source_latents = self.encode_sources(model, sources, source_mask)
        return model.decode_cross(latents, mask.visible, positions, source_latents, source_mask.visible)

    def _by_motion(self, reconstruction: mv2mae.Reconstruction, inputs: Arrays) -> dict[str, jax.Array]:
        """Unweighted losses of the target's moving tokens (above the clip's mean motion energy) and of the others.

        Sums and counts, float32[B]: `summarize` divides.
        """
        positions, motion = inputs["decoded_target"], inputs["motion"][:, 0]
        moving = jnp.take_along_axis(motion > motion.mean(axis=-1, keepdims=True), positions, axis=-1)  # (B, M)
        targets, _ = self._targets(self._patchify(inputs["video"])[:, 0], motion, positions)  # (B, M, P)
        predictions = {"self": reconstruction.self_target, "cross": reconstruction.cross}
        measured = {}
        for part, chosen in (("moving", moving.astype(jnp.float32)), ("static", 1.0 - moving)):
            measured[f"count_{part}"] = chosen.sum(axis=-1)
            for name, prediction in predictions.items():
                if prediction is not None:
                    total, _ = jax.vmap(losses.reconstruction_loss)(prediction, targets, chosen)
                    measured[f"sum_{name}_{part}"] = total
        return measured

    def _bind(self, params: Any) -> mv2mae.MV2MAE:
        return self.model.bind({"params": params})

    def encode_sources(self, model: mv2mae.MV2MAE, source: jax.Array, mask: Mask) -> jax.Array:
        """uint8[B, S, T, H, W, 3] -> latents of the visible tokens [B, S, Ns, D], by a bound model."""
        batch, num_sources = source.shape[:2]
        visible = mask.visible.reshape(batch * num_sources, -1)  # (B * S, Nv)
        latents = model.encode(source.reshape(batch * num_sources, *source.shape[2:]), visible)
        return latents.reshape(batch, num_sources, *latents.shape[1:])  # (B, S, Nv, D)

    def reconstruct(self, params: Any, inputs: Arrays) -> Arrays:
        """Pixels for pictures: float32[B, T, H, W, 3] in [0, 1].

        `masked` is the target view with hidden tokens grey; `self_view`, `cross_view` and `joint_view` show the
        prediction where tokens were hidden and the input elsewhere; `weights` float32[B, *grid] are the target's.
        Predictions of normalised pixels take mean and contrast from the *visible* tokens: nothing of the hidden ones is
        shown.
        """
        video, mask = inputs["video"], inputs["target_mask"]
        patches = tubelets.patchify(video[:, 0], self.model.tubelet_size)  # (B, N, P)
        visible = tubelets.gather_tokens(patches, mask.visible)  # (B, Nv, P)
        statistics = visible.reshape(visible.shape[0], 1, -1)  # (B, 1, Nv * P)

        def complete(prediction: jax.Array | None) -> jax.Array:
            if prediction is None:
                filled = jnp.full((*mask.masked.shape, patches.shape[-1]), 0.5)
            else:
                filled = jnp.clip(losses.to_pixels(prediction, self.target, statistics_of=statistics), 0, 1)
            rows = jnp.arange(patches.shape[0])[:, None]
            tokens = jnp.asarray(patches / 255).at[rows, mask.masked].set(filled)  # (B, N, P)
            return tubelets.unpatchify(tokens, self.model.clip_size, self.model.tubelet_size)  # (B, T, H, W, 3)

        pictures = {
            "target": video[:, 0] / 255,
            "masked": complete(None),
            "weights": self.weights(inputs["motion"][:, 0]).reshape(-1, *self.model.grid),  # (B, nt, nh, nw)
        }
        if self.num_source_views:
            pictures["source"] = video[:, 1] / 255
        if not self.is_joint:
            model = self._bind(params)
            latents = model.encode(video[:, 0], mask.visible)
            pictures["self_view"] = complete(model.decode_self(latents, mask.visible, mask.masked))
        if self.is_joint or self.model.cross_view:
            name = "joint_view" if self.is_joint else "cross_view"
            pictures[name] = complete(self._with_sources(params, inputs, video[:, 1:], mask.masked))
        return pictures

    def summarize(self, samples: dict[str, np.ndarray]) -> dict[str, float]:
        """Per-sample measures of a whole evaluation -> metrics; standard errors are over takes, not samples.

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
        for name, other in (("cross_gain", "other_subject"), ("cross_gain_pose", "other_action")):
            if f"loss_cross_{other}" not in samples:
                continue
            usable = samples[f"has_{other}"]
            if np.unique(samples["take"][usable]).size >= 2:
                gain, error = relative_increase(
                    samples["loss_cross"][usable], samples[f"loss_cross_{other}"][usable], samples["take"][usable]
                )
                metrics |= {name: gain, f"{name}_standard_error": error}
        return metrics

    def measure_features(
        self, params: Any, config: config_dict.ConfigDict, mesh: jax.sharding.Mesh
    ) -> dict[str, float]:
        """kNN, retrieval and 3D pose with the encoder as it is, on some training takes and the held-out ones.

        Empty where none are asked for or held out; see `online_probes.measure`.
        """
        if not config.eval.max_feature_takes or self.dataset.held_out is None:
            return {}
        chosen = np.random.default_rng(config.seed).permutation(self.dataset.train.rows)
        train_rows, test_rows = chosen[: config.eval.max_feature_takes], self.dataset.held_out.rows
        return online_probes.measure(
            self.model,
            params["encoder"],
            self.dataset.prepared,
            self.dataset.spec,
            mesh,
            train_rows=np.sort(train_rows[train_rows >= 0]),
            test_rows=np.sort(test_rows[test_rows >= 0]),
            global_batch_size=config.eval.batch_size or config.global_batch_size,
        )

    def tables(self, samples: dict[str, np.ndarray]) -> dict[str, Any]:
        """What metrics.json holds beside the numbers: nothing."""
        del samples
        return {}

    def describe(self) -> dict[str, str]:
        """What the start of a run says about the task."""
        data, views, model = self.dataset, self.views_per_sample, self.model
        held_out = "none" if data.held_out is None else len(np.unique(data.held_out.elements[:, 0]))
        shapes = {"video": jax.ShapeDtypeStruct((1, views, *model.clip_size, 3), np.uint8)}
        inputs = jax.eval_shape(self.randomize, shapes, jax.random.key(0))
        visible = f"{inputs['target_mask'].visible.shape[-1]} in the target"
        if self.num_source_views:
            visible += f" and {inputs['source_mask'].visible.shape[-1]} in a source view"
        return {
            "tokens per view": f"{model.num_tokens} {model.grid}, visible {visible}",
            "data": f"{data.prepared.name} in {data.prepared.directory}: {len(data.train.take_names)} takes, "
            f"{len(data.train.elements)} (take, target view) elements; {held_out} takes held out",
        }


_AVERAGED = ("loss_self", "loss_joint", "loss_cross", "loss_mean_prediction", "psnr_self", "psnr_cross")


def relative_increase(before: np.ndarray, after: np.ndarray, take: np.ndarray) -> tuple[float, float]:
    """mean(after) / mean(before) - 1 and its standard error, samples of a take averaged first.

    The error is that of a ratio estimator (delta method) over takes.

    Args:
      before, after: float[samples], paired.
      take: int[samples].
    """
    index = np.unique(take, return_inverse=True)[1]
    count = np.bincount(index)
    before, after = (np.bincount(index, values) / count for values in (before, after))
    gain = after.mean() / before.mean() - 1
    residual = after - (1 + gain) * before
    return float(gain), float(residual.std(ddof=1) / np.sqrt(len(count)) / before.mean())
