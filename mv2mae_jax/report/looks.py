"""Pictures of attention: a hidden token of the target, and where in the source views the cross-view decoder looks."""

import dataclasses
import math
from typing import Any

import numpy as np

from mv2mae_jax.report import attention, pictures
from mv2mae_jax.report.pictures import Image

TILE = 150  # [ours] pixels, at least, of a picture
HOT = (255, 60, 0)  # [ours] colour of the most attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """Attention from one token.

    Attributes:
      label: the text of its button.
      targets: the target view and its masked input, the token marked.
      sources: the source views, one picture for each moment.
      note: a sentence with numbers.
    """

    label: str
    targets: list[Image]
    sources: list[Image]
    note: str


def draw(
    grid: tuple[int, int, int],
    motion: np.ndarray,
    frames: dict[str, np.ndarray],
    sources: np.ndarray,
    masks: tuple[Any, Any],
    looked: np.ndarray,
) -> list[Look]:
    """Draws where chosen hidden tokens look.

    Args:
      grid: tokens along (time, height, width).
      motion: float[N] of the target.
      frames: `target` and `masked`, uint8[T, H, W, 3].
      sources: uint8[S, T, H, W, 3].
      masks: of the target, int32[*], and of the sources, int32[S, *].
      looked: float32[M, S * Ns], attention from the target's hidden tokens to the sources' visible ones.
    """
    time, height, width = grid
    mask, source_mask = masks
    tokens, looks = attention.choose_tokens(motion, mask.masked, grid), []
    moment_of = source_mask.visible // (height * width)  # (S, Ns)
    for number, token in enumerate(tokens):
        weight = looked[np.searchsorted(mask.masked, token)].reshape(moment_of.shape)  # (S, Ns)
        moment, row, column = token // (height * width), token // width % height, token % width
        kind = "most motion" if number == 0 else "still" if number == len(tokens) - 1 else "motion"
        where = f"moment {moment + 1}, row {row + 1}, column {column + 1}"
        targets = [
            pictures.still(
                _marked(frames[name], grid, moment, row, column),
                label,
                f"The {label} at {where}; a box marks the hidden token that was chosen",
            )
            for name, label in (("target", "target view"), ("masked", "what the encoder sees"))
        ]
        tiles = []
        for view in range(len(sources)):
            for at in range(time):
                share = f"{100 * weight[view][moment_of[view] == at].sum():.0f} %"
                name = f"source {view + 1}, moment {at + 1}" if len(sources) > 1 else f"moment {at + 1}"
                tiles.append(
                    pictures.still(
                        attended(sources[view], grid, weight[view] / weight.max(), source_mask.visible[view], at),
                        f"{name}{' of the token' if at == moment else ''}: {share}",
                        f"Heat map of the attention over the source view, {name} of {time}: {share} of the whole",
                    )
                )
        same = moment_of == moment
        note = (
            f"The token at {where}. The brightest token of the source receives {100 * weight.max():.1f} % of the "
            f"attention; evenly spread, each of the {weight.size} would receive {100 / weight.size:.1f} %. The moment "
            f"of the chosen token receives {100 * weight[same].sum():.0f} % and holds {100 * same.mean():.0f} % of the "
            "source's visible tokens."
        )
        looks.append(Look(label=f"{number + 1}: {kind}", targets=targets, sources=tiles, note=note))
    return looks


def attended(
    video: np.ndarray, grid: tuple[int, int, int], weight: np.ndarray, visible: np.ndarray, at: int
) -> np.ndarray:
    """The frame of a time slice, enlarged: warm by attention float[Ns] in [0, 1], pale where tokens were hidden."""
    heat = np.zeros(math.prod(grid))
    seen = np.zeros(math.prod(grid), bool)
    heat[visible], seen[visible] = weight, True
    frame = _frame(video, grid, at)
    cell = np.ones((frame.shape[0] // grid[1], frame.shape[1] // grid[2]))
    opacity = np.kron(heat.reshape(grid)[at], cell)[..., None]  # (H, W, 1)
    shown = (1 - 0.85 * opacity) * frame + 0.85 * opacity * np.array(HOT)
    pale = 0.25 * frame.mean(axis=-1, keepdims=True) + 0.75 * 170
    shown = np.where(np.kron(seen.reshape(grid)[at], cell)[..., None] > 0, shown, pale)
    return pictures.enlarged(np.round(shown).astype(np.uint8), TILE)


def _marked(video: np.ndarray, grid: tuple[int, int, int], at: int, row: int, column: int) -> np.ndarray:
    """The frame of a time slice, enlarged, with a box around a token."""
    frame = pictures.enlarged(_frame(video, grid, at), TILE)
    height, width = frame.shape[0] // grid[1], frame.shape[1] // grid[2]
    return pictures.boxed(frame, row * height, column * width, height, width)


def _frame(video: np.ndarray, grid: tuple[int, int, int], at: int) -> np.ndarray:
    """The first frame of time slice `at`."""
    return video[at * len(video) // grid[0]]
