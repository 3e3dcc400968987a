"""The 3D pose that ridge regression predicts from an encoder's tokens, over the video, beside a random encoder's."""

import dataclasses
import functools
import os
from typing import Any

import cv2
import jax
import numpy as np

from console.errors import UnusableFile
from data import clips
from data.store import takes
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import geometry
from mv2mae_jax.models import frozen_encoder
from mv2mae_jax.report import neighbours, pictures
from mv2mae_jax.report.collect import ReportedRun
from mv2mae_jax.report.pictures import Image

PICTURE = os.path.join("pictures", "skeletons.png")  # in the workdir
SHOWN = 4  # clips
TRAINING_CLIPS = 4  # [ours] the read-out is trained on this many times the predicted clips
SIDE = 192  # pixels; clips are enlarged to at least this, so that bones look thin compared with limbs
TRUE, TOLD = (255, 255, 255), (255, 128, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poses:
    """The report's part on the 3D pose.

    Attributes:
      about: which clips these are.
      rows: (name of the encoder, R^2, mean joint error in cm), this run's first.
      mean_error_cm: of always predicting the mean pose.
      films: clips with the true and the predicted skeleton.
      sheet: uint8[h, w, 3], one moment of each.
    """

    about: str
    rows: list[tuple[str, float, float]]
    mean_error_cm: float
    films: list[Image]
    sheet: np.ndarray


def examine(run: ReportedRun, opened: neighbours.Opened, *, max_clips: int, blur_sigma: float = 0.0) -> Poses | None:
    """Predicts the pose in some tested clips (held-out takes of pre-training), from one central clip of each view.

    None if the data set does not know its joints, or if no takes are left to train the read-out.
    """
    prepared, spec, model = opened.prepared, opened.spec, opened.model
    if prepared.truth is None or len(opened.train) == 0:
        return None
    seed = run.config.seed
    train = neighbours.choose_rows(prepared, opened.train, TRAINING_CLIPS * max_clips, seed=seed)
    test = neighbours.choose_rows(prepared, opened.rows, max_clips, seed=seed)
    true = [geometry.targets(prepared, spec, rows) for rows in (train, test)]
    encoders: dict[str, Any] = {"this run": opened.params}
    if not isinstance(model, frozen_encoder.RawPixels):
        create = functools.partial(frozen_encoder.init_encoder, model)
        encoders["a random encoder"] = sharding.create(sharding.one_device(), create, jax.random.key(seed))
    rows, told = [], None
    for name, params in encoders.items():
        found = [opened.encode(part, params, "the encoder", with_tokens=True) for part in (train, test)]
        read_outs = geometry.ReadOuts(model, *found, *true, group=prepared.views["take"][train], seed=seed)
        measured, pose = read_outs.pose()
        rows.append((name, measured["r2"], measured["error_cm"]))
        told = pose if told is None else told
    shown = _spread(prepared, test)
    videos = zip(shown, opened.videos(test[shown], blur_sigma), strict=True)
    drawn = [draw(prepared, spec, test[i], video, told[i], model.grid[0]) for i, video in videos]
    names = [f"{prepared.views['take'][test[i]]}, {prepared.views['view'][test[i]]}" for i in shown]
    return Poses(
        about=f"{len(test)} clips of {len(np.unique(prepared.views['take'][test]))} {opened.which}, read out by ridge "
        f"regression that was trained on {len(train)} clips of other takes.",
        rows=rows,
        mean_error_cm=measured["mean_error_cm"],
        films=[
            pictures.film(video, name, f"Animation: take {name} with its true and its predicted skeleton")
            for video, name in zip(drawn, names, strict=True)
        ],
        sheet=np.concatenate([video[len(video) // 2] for video in drawn], axis=1),
    )


def write(found: Poses, workdir: str) -> str:
    """Writes WORKDIR/pictures/skeletons.png; what was measured in a sentence, and where the picture is.

    Raises:
      UnusableFile: the picture cannot be written.
    """
    path = os.path.join(workdir, PICTURE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not cv2.imwrite(path, found.sheet[..., ::-1]):
        raise UnusableFile(f"the picture {path} cannot be written")
    told = "; ".join(f"{name} R² {r2:.2f}, {error:.1f} cm" for name, r2, error in found.rows)
    return f"3D pose read from frozen tokens: {told}; the mean pose {found.mean_error_cm:.1f} cm. Skeletons: {path}."


def draw(
    prepared: takes.Prepared, spec: clips.ClipSpec, row: int, video: np.ndarray, told: np.ndarray, num_slices: int
) -> np.ndarray:
    """A central clip with the true skeleton (white) and the predicted one (orange), drawn from the true root.

    Args:
      prepared, spec: the clip's.
      row: its manifest row.
      video: uint8[T, H, W, 3].
      told: float32[nt, 3 * (J - 1)], metres relative to the root in the camera's frame.
      num_slices: nt.

    Returns:
      uint8[T, h, w, 3], enlarged.
    """
    truth = prepared.truth
    length = int(prepared.views["num_frames"][row])
    (position,) = clips.spread_positions(1)
    frames = clips.frame_indices(length, spec.num_frames, spec.frame_stride, position)
    true = truth.in_camera(np.array([row]), frames[None])[0]  # (T, J, 3)
    pose = np.insert(told.reshape(num_slices, -1, 3), truth.root, 0.0, axis=1)  # (nt, J, 3)
    pose = np.repeat(pose, spec.num_frames // num_slices, axis=0) + true[:, [truth.root]]  # (T, J, 3)
    size = tuple(int(prepared.views[side][row]) for side in ("height", "width"))
    top, left, height, width = clips.crop_box(clips.CropDraw(), size, spec.crop_size)
    drawn = []
    for frame, *skeletons in zip(video, true, pose, strict=True):
        picture = pictures.enlarged(frame, SIDE)
        for points, colour in zip(skeletons, (TRUE, TOLD), strict=True):
            pixels = truth.project(np.array([row]), points[None])[0]  # (J, 2)
            scale = np.array(picture.shape[1::-1]) / (width, height)
            pixels = np.round((pixels + 0.5 - [left, top]) * scale - 0.5)  # (J, 2)
            if not np.isfinite(pixels).all():
                continue
            for a, b in truth.edges:
                ends = (tuple(int(x) for x in pixels[joint]) for joint in (a, b))
                cv2.line(picture, *ends, colour, 2, cv2.LINE_AA)
        drawn.append(picture)
    return np.stack(drawn)


def _spread(prepared: takes.Prepared, rows: np.ndarray) -> list[int]:
    """Some clips of different takes, from one camera after the other."""
    take, view = prepared.views["take"][rows], prepared.views["view"][rows]
    views, chosen = np.unique(view), []
    for number, name in enumerate(np.unique(take)[:: max(1, len(np.unique(take)) // SHOWN)][:SHOWN].tolist()):
        of_take = np.flatnonzero(take == name)
        wanted = of_take[view[of_take] == views[number % len(views)]]
        chosen.append(int((wanted if len(wanted) else of_take)[0]))
    return chosen
