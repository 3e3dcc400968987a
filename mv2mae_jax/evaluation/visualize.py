"""Pictures of reconstructions: one PNG and one animation per sample."""

import os

import cv2
import numpy as np

from console.errors import UnusableFile
from data.store.whole_files import write_whole

ROWS = (
    ("target", "target view"),
    ("masked", "what the encoder sees"),
    ("self_view", "self-view decoder"),
    ("cross_view", "cross-view decoder"),
    ("joint_view", "joint decoder"),
    ("source", "source view (unmasked)"),
    ("weights", "motion weights"),
)
_MIN_TILE = 112  # pixels; small clips are enlarged
_MAX_FRAMES = 8  # columns of the still picture
_LABEL_HEIGHT = 22
_BACKGROUND = 255


def write(pictures: dict[str, np.ndarray], directory: str, step: int, blur_sigma: float = 0.0) -> dict[str, np.ndarray]:
    """Writes `step_XXXXXXX_sample_K.png` (rows over time) and `.gif` (the same, moving) into `directory`.

    Args:
      pictures: float32[B, T, H, W, 3] in [0, 1] under the names of ROWS, and `weights` float32[B, nt, nh, nw].
      blur_sigma: standard deviation in pixels of a Gaussian blur of all videos shown, for data sets whose licence wants
        faces unrecognisable in figures; 0 for none. Everything is blurred, so no face detector can miss one.

    Returns:
      {'sample_0': uint8[h, w, 3], ...}, the still pictures.
    """
    os.makedirs(directory, exist_ok=True)
    pictures = {name: video if name == "weights" else blurred(video, blur_sigma) for name, video in pictures.items()}
    stills = {}
    for index in range(len(pictures["target"])):
        rows = {name: sample_row(pictures, name, index) for name, _ in ROWS if name in pictures}
        stills[f"sample_{index}"] = still = contact_sheet(rows)
        path = path_of(directory, step, f"sample_{index}")
        _write(path + ".png", *cv2.imencode(".png", still[..., ::-1]))
        write_animation(path + ".gif", animation_frames(rows))
    return stills


def path_of(directory: str, step: int, name: str) -> str:
    """The path of the picture of a sample, without extension."""
    return os.path.join(directory, f"step_{step:07d}_{name}")


def sample_row(pictures: dict[str, np.ndarray], name: str, index: int) -> np.ndarray:
    """uint8[T, H, W, 3] of one sample; motion weights become a heat map over the darkened target."""
    if name != "weights":
        return np.round(pictures[name][index] * 255).astype(np.uint8)
    return weight_map(pictures["weights"][index], sample_row(pictures, "target", index))


def weight_map(weights: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Weights float[nt, nh, nw] as colours over uint8[T, H, W, 3]; black is 0, bright the largest of the clip."""
    num_frames, height, width, _ = video.shape
    relative = np.clip(255 * weights / weights.max(), 0, 255).astype(np.uint8)  # (nt, nh, nw)
    frames = []
    for index, frame in enumerate(video):
        cells = relative[index * len(relative) // num_frames]
        heat = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
        colours = cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)[..., ::-1]
        frames.append(cv2.addWeighted(frame, 0.35, colours, 0.65, 0))
    return np.stack(frames)


def contact_sheet(rows: dict[str, np.ndarray]) -> np.ndarray:
    """One row of frames per kind of picture, with its name above: uint8[h, w, 3]."""
    length = len(next(iter(rows.values())))
    shown = np.unique(np.linspace(0, length - 1, min(_MAX_FRAMES, length)).round().astype(int))
    return np.concatenate(
        [_labelled(np.concatenate([_tile(rows[name][i]) for i in shown], axis=1), name) for name in rows]
    )


def animation_frames(rows: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All kinds of picture side by side, frame by frame: a list of uint8[h, w, 3]."""
    length = len(next(iter(rows.values())))
    return [np.concatenate([_labelled(_tile(rows[name][i]), name) for name in rows], axis=1) for i in range(length)]


def write_animation(path: str, frames: list[np.ndarray]) -> None:
    """uint8[h, w, 3] frames -> an endless animation (GIF or animated PNG, by the file's ending)."""
    animation = cv2.Animation()
    animation.frames = [np.ascontiguousarray(frame[..., ::-1]) for frame in frames]
    animation.durations = np.full(len(frames), 200)  # milliseconds
    _write(path, *cv2.imencodeanimation(os.path.splitext(path)[1], animation))


def blurred(videos: np.ndarray, sigma: float) -> np.ndarray:
    """float32[..., T, H, W, 3], every frame blurred by a Gaussian of this standard deviation in pixels; 0 for none."""
    if not sigma:
        return videos
    frames = videos.reshape(-1, *videos.shape[-3:])  # (B * T, H, W, 3)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames]).reshape(videos.shape)


def _tile(frame: np.ndarray) -> np.ndarray:
    factor = max(1, -(-_MIN_TILE // min(frame.shape[:2])))
    frame = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    return np.pad(frame, ((0, 4), (0, 4), (0, 0)), constant_values=_BACKGROUND)


def _labelled(image: np.ndarray, name: str) -> np.ndarray:
    label = np.full((_LABEL_HEIGHT, image.shape[1], 3), _BACKGROUND, np.uint8)
    cv2.putText(
        label, dict(ROWS)[name], (2, _LABEL_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA
    )
    return np.concatenate([label, image])


def _write(path: str, is_encoded: bool, content: np.ndarray) -> None:
    """Writes the file itself, because OpenCV does not say why a write failed, and not always that it failed."""
    if not is_encoded:
        raise UnusableFile(f"The picture {path} could not be encoded.")
    write_whole(path, content.tobytes())
