"""Draws the figures of docs/method.md from a generated take, with the functions that training uses.

    python docs/draw_method.py        # writes docs/figures/{clip,masks,weights,temperature}.*

Needs matplotlib (requirements-dev.txt). Seconds, no data: one take is rendered as by `python -m data.synthetic`.
"""

import functools
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import clips, motion, samples
from data.synthetic import writer
from data.synthetic.design import Take
from mv2mae_jax.evaluation import visualize
from mv2mae_jax.models import tubelets
from mv2mae_jax.objectives import losses, masking

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURES = Path(__file__).parent / "figures"
TAKE = Take(setup=1, subject=2, performance=1, action=11)
TARGET, SOURCE = 2, 1  # cameras
# The paper's clip: 16 frames at stride 4, 128 x 128 pixels, tubelets of 2 x 16 x 16 [paper].
SPEC = clips.ClipSpec(num_frames=16, frame_stride=4, crop_size=(128, 128), tubelet_size=(2, 16, 16))
GRID = tubelets.token_grid((16, 128, 128), SPEC.tubelet_size)
SHOWN = (0, 4, 8, 12)  # frames of a clip
STYLE = {"font.size": 9, "svg.hashsalt": "mv2mae", "svg.fonttype": "none", "axes.spines.top": False}


@functools.cache
def take_clips() -> dict[int, np.ndarray]:
    """Camera -> uint8[16, 128, 128, 3], the same frames of each."""
    videos = writer.render_take(0, TAKE, (TARGET, SOURCE))  # 320 x 180 pixels
    draw = clips.CropDraw(scale=(1.0, 1.0), offset=(0.5, 0.5))

    def clip(video: np.ndarray) -> np.ndarray:
        indices = clips.frame_indices(len(video), SPEC.num_frames, SPEC.frame_stride, 0.5)
        return samples.crop_clip(video[indices], draw, SPEC.crop_size)

    return {camera: clip(video) for camera, video in videos.items()}


def energies() -> np.ndarray:
    """float32[N] of the target clip."""
    return motion.motion_energy(take_clips()[TARGET], SPEC.tubelet_size)


def draw_clip() -> plt.Figure:
    """Both views at the same moments, cut into tokens."""
    figure, axes = plt.subplots(2, len(SHOWN), figsize=(8, 4.2), layout="constrained")
    for row, (camera, name) in enumerate(((TARGET, "target view"), (SOURCE, "source view"))):
        for column, frame in enumerate(SHOWN):
            axis = axes[row, column]
            _show(axis, take_clips()[camera][frame])
            for line in range(16, 128, 16):
                axis.axhline(line - 0.5, color="white", linewidth=0.4, alpha=0.6)
                axis.axvline(line - 0.5, color="white", linewidth=0.4, alpha=0.6)
            axis.set_title(f"{name}, frame {frame}" if column == 0 else f"frame {frame}", loc="left")
    return figure


def draw_masks() -> plt.Figure:
    """What the encoder sees under each kind of mask."""
    video, kinds = take_clips()[TARGET], ("random", "tube")
    figure, axes = plt.subplots(len(kinds), len(SHOWN), figsize=(8, 4.2), layout="constrained")
    tokens = np.asarray(tubelets.patchify(video, SPEC.tubelet_size))  # (N, P)
    for row, kind in enumerate(kinds):
        mask = masking.draw_mask(jax.random.key(0), batch_shape=(), grid=GRID, mask_ratio=0.7, kind=kind)
        hidden = tokens.copy()
        hidden[np.asarray(mask.masked)] = 128
        seen = np.asarray(tubelets.unpatchify(hidden, video.shape[:3], SPEC.tubelet_size))
        for column, frame in enumerate(SHOWN):
            _show(axes[row, column], seen[frame])
            axes[row, column].set_title(f"{kind}, frame {frame}" if column == 0 else f"frame {frame}", loc="left")
    return figure


def draw_weights() -> plt.Figure:
    """Motion weights of the same clip at three temperatures."""
    video, rule = take_clips()[TARGET], dict(temperature=None, ess_fraction=None)
    rows = (
        ("t = 60 on [0, 255]", rule | {"temperature": 60.0}),
        ("t = 600 on [0, 255]", rule | {"temperature": 600.0}),
        ("t solved for 60 %", rule | {"ess_fraction": 0.6}),
    )
    busiest = int(energies().argmax()) // (GRID[1] * GRID[2]) * SPEC.tubelet_size[0]  # frame of the largest energy
    shown = sorted({*SHOWN[: len(SHOWN) - 1], busiest} if busiest not in SHOWN else SHOWN)
    figure, axes = plt.subplots(len(rows) + 1, len(shown), figsize=(8, 8.9))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.97, wspace=0.04, hspace=0.14)
    for column, frame in enumerate(shown):
        _show(axes[0, column], video[frame])
        axes[0, column].set_title(f"frame {frame}", loc="left")
    for row, (name, settings) in enumerate(rows, start=1):
        weights = losses.motion_weights(energies(), **settings)
        share = float(losses.effective_share(weights))
        pictures = visualize.weight_map(np.asarray(weights).reshape(GRID), video)
        for column, frame in enumerate(shown):
            _show(axes[row, column], pictures[frame])
        tokens = f"{share * len(weights):.1f} of {len(weights)} tokens carry the loss"
        title = f"{name}: {tokens}, largest weight {float(weights.max()):.1f}"
        axes[row, 0].set_title(title, loc="left")  # it runs on over the other columns
    return figure


def draw_temperature() -> plt.Figure:
    """Effective share of the tokens against t, for the pixel scales that t could be meant for."""
    temperatures = np.geomspace(0.1, 1e5, 121)
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    for name, pixel_range in (("pixels in [0, 255]", 255.0), ("pixels in [0, 1]", 1.0)):
        shares = [
            float(
                losses.effective_share(losses.motion_weights(energies(), temperature=float(t), pixel_range=pixel_range))
            )
            for t in temperatures
        ]
        axis.semilogx(temperatures, shares, label=name)
    axis.axvline(60, color="gray", linestyle=":", label="t = 60")
    axis.axhline(0.6, color="gray", linestyle="--", label="loss.ess_fraction = 0.6")
    axis.set(xlabel="temperature t", ylabel="ESS / N", ylim=(0, 1.03))
    axis.spines["right"].set_visible(False)
    axis.legend(frameon=False)
    return figure


FIGURES_BY_NAME = {
    "clip.jpg": draw_clip,
    "masks.jpg": draw_masks,
    "weights.jpg": draw_weights,
    "temperature.svg": draw_temperature,
}


def _show(axis: plt.Axes, picture: np.ndarray) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES_BY_NAME.items():
            options = {"metadata": {"Date": None}} if name.endswith("svg") else {"pil_kwargs": {"quality": 82}}
            draw().savefig(FIGURES / name, dpi=130, **options)
            print(FIGURES / name)


if __name__ == "__main__":
    main()
