"""Whether carried 3D joints lie where the pictures of a prepared set move, and what would fit better if they do not.

Swapped cameras, joints of another take or moment, and lengths in another unit have the right form, so that no check of
numbers finds them.
"""

from pathlib import Path

import cv2
import numpy as np

from data.store import takes
from data.store.truth import Truth

# All [ours]. On 12 generated takes of 32x32 pixels, another reading fits 0.7 to 0.98 times as well as a right one, and
# the right one 1.1 (joints 0.8 s late) to 2.5 times (focal lengths of twice the size) as well as a wrong one.
TAKES = 12  # looked at per camera, spread over the set
FEWEST_TAKES = 4  # with fewer, chance decides
PAIRS = 8  # of frames per view, spread over it
PAIR_SECONDS = 0.2  # from one frame of a pair to the other
SHIFTS_SECONDS = (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0)
MARGIN = 1.05  # another reading must fit so much better to be told
NO_BETTER = 0.92  # joints of another take fit 0.6 to 0.85 times as well as the right ones
OTHER_TAKE = "joints of another take"


def remarks(output_dir: Path) -> list[str]:
    """A warning for each camera of a prepared set whose moving pixels another reading of the truth fits better."""
    prepared = takes.open_prepared(output_dir)
    cameras = np.unique(prepared.views["view"])
    found = []
    for camera in cameras.tolist():
        rows = np.flatnonzero(prepared.views["view"] == camera)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(TAKES, len(rows))).round().astype(int))]
        scores: dict[str, list[float]] = {}
        for row, other in zip(rows, np.roll(rows, -1), strict=True):
            for reading, score in _scores(prepared, row, other).items():
                scores.setdefault(reading, []).append(score)
        if len(scores.get("", ())) < FEWEST_TAKES:
            continue
        own = scores.pop("")
        means = {name: np.mean(some) / np.mean(own) for name, some in scores.items() if len(some) == len(own)}
        best = max(means, key=means.get)
        if max(means[best] / MARGIN, means[OTHER_TAKE] / NO_BETTER) > 1:
            best = best if means[best] > MARGIN else OTHER_TAKE
            found.append(
                f"view {camera}: its moving pixels fit {best} {means[best]:.2f} times as well as the 3D joints "
                f"and camera that were given ({len(own)} takes looked at); draw a few over the frames"
            )
    return found


def _scores(prepared: takes.Prepared, row: int, other: int) -> dict[str, float]:
    """How many times as much as its average the picture of a view moves at the joints, for each reading ('': as given).

    `other` is a view of another take from the same camera. Empty if the view has no two frames, or nothing moves.
    """
    views, truth = prepared.views, prepared.truth
    length, fps = int(views["num_frames"][row]), float(views["fps"][row])
    step = max(1, round(PAIR_SECONDS * fps))
    if length <= step:
        return {}
    frames = np.unique(np.linspace(0, length - 1 - step, PAIRS).round().astype(int))
    motion = _motion(prepared, row, frames, step)
    if not motion.any():
        return {}

    def score(of: int, by: int, shift: int = 0, **changes: float) -> float:
        last = int(views["num_frames"][of]) - 1
        both = (np.clip(frames + end + shift, 0, last)[None] for end in (0, step))  # a change shows at both
        worlds = (truth.in_world(np.array([of]), numbers) for numbers in both)
        return float(np.mean([_at_joints(motion, _project(truth, by, world, **changes)) for world in worlds]))

    found = {"": score(row, row), OTHER_TAKE: score(other, row)}
    siblings = np.flatnonzero((views["take"] == views["take"][row]) & (np.arange(len(views["take"])) != row))
    found |= {f"the camera of view {views['view'][by]}": score(row, by) for by in siblings}
    for seconds in SHIFTS_SECONDS:
        found[f"joints {abs(seconds):g} s {'later' if seconds > 0 else 'earlier'}"] = score(
            row, row, round(seconds * fps)
        )
    found |= {f"{scale:g} times the focal length": score(row, row, focal=scale) for scale in (0.5, 2.0)}
    found["translations from feet to metres"] = score(row, row, translation=0.3048)
    return found


def _motion(prepared: takes.Prepared, row: int, frames: np.ndarray, step: int) -> np.ndarray:
    """What changes from each frame to the one `step` later, a little blurred: float32[T, H, W]."""
    grey = prepared.read(row, np.concatenate([frames, frames + step])).astype(np.float32).mean(-1)  # (2 * T, H, W)
    change = np.abs(grey[len(frames) :] - grey[: len(frames)])  # (T, H, W)
    sigma = max(1.0, change.shape[1] / 40)
    return np.stack([cv2.GaussianBlur(picture, (0, 0), sigma) for picture in change])


def _project(truth: Truth, row: int, world: np.ndarray, focal: float = 1.0, translation: float = 1.0) -> np.ndarray:
    """Joints float[1, T, J, 3] of the world as a row's camera sees them, with changed numbers: float32[T, J, 2]."""
    rows = np.array([row])
    seen = truth.project(rows, truth.from_world(rows, world, translation))[0]  # (T, J, 2)
    centre = truth.camera(rows)["centre"]
    return centre + focal * (seen - centre)


def _at_joints(motion: np.ndarray, points: np.ndarray) -> float:
    """Mean of motion [T, H, W] at points (x, y) [T, J, 2] over its mean; 0 outside the picture or behind the camera."""
    size = np.array(motion.shape[:0:-1])  # (W, H)
    nearest = np.nan_to_num(np.round(points), nan=-1.0)
    inside = ((nearest >= 0) & (nearest < size)).all(-1)  # (T, J)
    x, y = np.moveaxis(np.where(inside[..., None], nearest, 0).astype(int), -1, 0)
    values = motion[np.arange(len(motion))[:, None], y, x] * inside  # (T, J)
    return float(values.mean() / motion.mean())
