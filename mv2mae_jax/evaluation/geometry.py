"""How well frozen tokens predict the actor's 3D pose and motion: read-outs of joints and of their velocities.

The set must know its joints and cameras (data/store/truth.py). For each temporal slice of a clip, read-outs predict
where the joints are relative to the root and how fast they move. Raw pixels and a random encoder are measured in the
same way.
"""

import dataclasses
from typing import Any

import numpy as np

from console.errors import UserError
from data import clips
from data.store import takes
from mv2mae_jax.evaluation import attentive, regression
from mv2mae_jax.features import Features
from mv2mae_jax.models import mv2mae

# [ours] Cells along each side of a slice for ridge regression, and slices of a clip; more tokens are averaged to these.
MOST_CELLS = 4
MOST_SLICES = 4
CENTIMETRES = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """The truth of M clips of nt temporal slices; the root is left out.

    Attributes:
      camera: float32[M, nt, 3 * J], joints relative to the root along the camera's axes, metres; mean of the slice.
      actor: float32[M, nt, 3 * J], the same along the actor's own axes (forwards, left, up).
      velocity: float32[M, nt, 3 * J], metres per second along the camera's axes, relative to the root's.
    """

    camera: np.ndarray
    actor: np.ndarray
    velocity: np.ndarray


def targets(prepared: takes.Prepared, spec: clips.ClipSpec, rows: np.ndarray, clips_per_view: int = 1) -> Targets:
    """The truth of the clips that `pipeline.clip_batches` makes of the same arguments, in their order.

    Raises ValueError if the set has no truth, or none of these rows.
    """
    truth = prepared.truth
    if truth is None:
        raise UserError(
            f"{prepared.directory} does not know where the joints are: probe.kinds 'geometry' and 'motion' need a set "
            "that was prepared with --truth (generated data has it; docs/data_sets.md says how to give it)."
        )
    lengths = prepared.views["num_frames"][rows].tolist()
    frames = [
        clips.frame_indices(length, spec.num_frames, spec.frame_stride, position)
        for length in lengths
        for position in clips.spread_positions(clips_per_view)
    ]
    frames, rows = np.stack(frames), np.repeat(rows, clips_per_view)  # (M, T), (M,)

    shape = (len(rows), spec.num_frames // spec.tubelet_size[0], spec.tubelet_size[0], -1)

    def relative(joints: np.ndarray) -> np.ndarray:
        """float[M, T, J, 3] -> the same relative to the root, which is left out."""
        return np.delete(joints - joints[:, :, [truth.root]], truth.root, axis=2)

    def of_slices(values: np.ndarray) -> np.ndarray:
        """float[M, T, J, 3] -> float32[M, nt, 3 * J], the mean of each slice."""
        return values.reshape(shape).mean(axis=2).astype(np.float32)

    camera, actor = relative(truth.in_camera(rows, frames)), relative(truth.in_actor(rows, frames))
    seconds = (
        np.maximum(frames[:, 1] - frames[:, 0], 1) / truth.fps(rows) if spec.num_frames > 1 else np.ones(len(rows))
    )
    change = np.gradient(camera, axis=1) if spec.num_frames > 1 else np.zeros_like(camera)
    velocity = change / seconds[:, None, None, None]
    return Targets(camera=of_slices(camera), actor=of_slices(actor), velocity=of_slices(velocity))


def slice_tokens(features: Features, model: mv2mae.MV2MAE) -> np.ndarray:
    """Tokens of M clips -> those of their slices: float16[M * nt, nh * nw, D]; mapped tokens stay mapped."""
    num_slices, height, width = model.grid
    return features.tokens.reshape(len(features.row) * num_slices, height * width, -1)


def cells(tokens: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """The input of ridge regression for a slice: its tokens, averaged to at most 4 x 4 cells and concatenated.

    float[R, nh * nw, D] -> float32[R, cells * D]. Without averaging, the weights of a larger clip would not fit.
    """
    _, height, width = grid
    plane = np.asarray(tokens, np.float32).reshape(len(tokens), height, width, -1)  # (R, nh, nw, D)
    for axis in (1, 2):
        plane = _averaged(plane, axis, MOST_CELLS)
    return plane.reshape(len(tokens), -1)  # (R, cells * D)


def _averaged(values: np.ndarray, axis: int, most: int) -> np.ndarray:
    """Neighbours along an axis averaged, so that at most `most` are left."""
    size = values.shape[axis]
    if size <= most:
        return values
    starts = np.arange(most) * size // most
    counts = np.diff([*starts, size]).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return np.add.reduceat(values, starts, axis=axis) / counts


def slices_of(features: Features, model: mv2mae.MV2MAE) -> np.ndarray:
    """The cells of every slice of M clips: float32[M, nt, cells * D]."""
    found = cells(slice_tokens(features, model), model.grid)
    return found.reshape(len(features.row), model.grid[0], -1)  # (M, nt, cells * D)


def whole_clips(features: Features, model: mv2mae.MV2MAE) -> np.ndarray:
    """All tokens of M clips, each at its place, as the input of ridge regression: float32[M, slices * cells * D]."""
    return _averaged(slices_of(features, model), 1, MOST_SLICES).reshape(len(features.row), -1)


def with_neighbours(features: Features, model: mv2mae.MV2MAE) -> np.ndarray:
    """Every slice beside the one before and the one after it: float32[M * nt, 3 * cells * D].

    A velocity is a difference of places, so it is linear in these. The first and the last slice are repeated.
    """
    slices = np.pad(slices_of(features, model), ((0, 0), (1, 1), (0, 0)), mode="edge")  # (M, nt + 2, cells * D)
    beside = np.concatenate([slices[:, :-2], slices[:, 1:-1], slices[:, 2:]], axis=2)  # (M, nt, 3 * cells * D)
    return beside.reshape(-1, beside.shape[2])  # (M * nt, 3 * cells * D)


@dataclasses.dataclass(frozen=True)
class ReadOuts:
    """Predicts the truth of every slice by ridge regression and, if its settings are given, by attention.

    Attributes:
      model: has the grid of the tokens.
      train, test: features with tokens of M and M' clips.
      train_targets, test_targets: of the same clips.
      group: [M], rows of one group stay together when validation rows are cut off: takes, or subjects.
      validation_fraction: share of the groups on which settings are chosen.
      attention: `learning_rates`, `weight_decays`, `epochs`, `batch_size`; None leaves the attentive head out.
      seed: decides the cut, and the attentive head's initialisation and batches.
    """

    model: mv2mae.MV2MAE
    train: Features
    test: Features
    train_targets: Targets
    test_targets: Targets
    _: dataclasses.KW_ONLY
    group: np.ndarray
    validation_fraction: float = 0.2
    attention: dict[str, Any] | None = None
    seed: int = 0

    def pose(self) -> tuple[dict[str, float], np.ndarray]:
        """Predicts the pose.

        Returns:
          (metrics, float32[M', nt, 3 * J], the pose by ridge regression, metres in the camera's frame). Metrics are
          `r2` and `error_cm` (mean distance of a joint) of ridge regression in the camera's frame, `actor_r2` and
          `actor_error_cm` in the actor's own, `attentive_r2` and `attentive_error_cm`; `mean_error_cm` is the
          error of always predicting the training clips' mean pose; `penalty` was chosen by `validation_r2`.
        """
        train, test = self.train_targets, self.test_targets
        inputs = (cells(slice_tokens(part, self.model), self.model.grid) for part in (self.train, self.test))
        found, found_actor = self._ridges(*inputs, [train.camera, train.actor])
        true, true_actor = _flat(test.camera), _flat(test.actor)
        mean = np.broadcast_to(_flat(train.camera).mean(axis=0), true.shape)
        results = {
            **_scores("", found.prediction, true),
            **_scores("actor_", found_actor.prediction, true_actor),
            "mean_error_cm": CENTIMETRES * regression.joint_error(mean, true),
            "penalty": found.penalty,
        }
        if np.isfinite(found.validation_r2.max()):  # not if the validation rows show one pose
            results["validation_r2"] = float(found.validation_r2.max())
        if self.attention is not None:
            results |= _scores("attentive_", self._attend(train.camera), true)
        return results, found.prediction.reshape(test.camera.shape)  # (M', nt, 3 J)

    def motion(self) -> dict[str, float]:
        """Predicts the joints' velocities from the slice and its neighbours.

        Returns:
          `r2` and `error_cm_per_second`, the mean length of a joint's error, by ridge regression; `attentive_r2` and
          `attentive_error_cm_per_second`, from the slice alone.
        """
        inputs = (with_neighbours(part, self.model) for part in (self.train, self.test))
        (found,) = self._ridges(*inputs, [self.train_targets.velocity])
        target = _flat(self.test_targets.velocity)
        results = _scores("", found.prediction, target, unit="cm_per_second")
        if self.attention is not None:
            told = self._attend(self.train_targets.velocity)
            results |= _scores("attentive_", told, target, unit="cm_per_second")
        return results

    def _ridges(self, train_x: np.ndarray, test_x: np.ndarray, targets: list[np.ndarray]) -> list[regression.Regressed]:
        return regression.ridges(train_x, list(map(_flat, targets)), test_x, **self._choosing)

    def _attend(self, target: np.ndarray) -> np.ndarray:
        train, test = (slice_tokens(part, self.model) for part in (self.train, self.test))
        settings = self._choosing | self.attention
        return attentive.attentive_regression(train, _flat(target), test, **settings).scores

    @property
    def _choosing(self) -> dict[str, Any]:
        group = np.repeat(self.group, self.model.grid[0])
        return {"group": group, "validation_fraction": self.validation_fraction, "seed": self.seed}


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])  # (M * nt, 3 J)


def _scores(prefix: str, told: np.ndarray, target: np.ndarray, unit: str = "cm") -> dict[str, float]:
    error, r2 = CENTIMETRES * regression.joint_error(told, target), regression.r2(told, target)
    if not np.isfinite(r2):
        raise UserError(
            f"R^2 of {'poses' if unit == 'cm' else 'motion'} is not defined: they are the same in all {len(target)} "
            "tested slices. Test takes that differ, or leave "
            f"{'geometry' if unit == 'cm' else 'motion'!r} out of probe.kinds."
        )
    return {f"{prefix}r2": r2, f"{prefix}error_{unit}": error}
