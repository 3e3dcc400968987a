"""Where the cross-view decoder looks: its attention from hidden target tokens to visible ones of the sources, drawn."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2mae_jax.models import layers, mv2mae
from mv2mae_jax.models.compute import Compute
from mv2mae_jax.report import pictures
from mv2mae_jax.report.pictures import Image

MOVING = 4  # [ours] tokens that are shown with motion, if there are so many that lie apart
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


def cross_attention(
    model: mv2mae.MV2MAE,
    params: Any,
    target_latents: jax.Array,
    target_visible: jax.Array,
    decoded: jax.Array,
    source_latents: jax.Array,
    source_visible: jax.Array,
) -> jax.Array:
    """Attention of every block and head of the cross-view decoder; arguments as `MV2MAE.decode_cross`.

    Computed outside the model, from its queries and keys, because the model does not return its attention.

    Args:
      model: with a cross-view decoder; computed in float32 whatever its dtype.
      params: of the whole model.

    Returns:
      float32[B, depth, heads, Md, S * Ns], from each decoded token to the sources' visible tokens; sums to 1 over the
      last axis.
    """
    plain = model.clone(compute=Compute(scan_layers=False))
    params = layers.unstack_blocks(params) if model.compute.scan_layers else params
    _, captured = plain.apply(
        {"params": params},
        *(target_latents, target_visible, decoded, source_latents, source_visible),
        method="decode_cross",
        capture_intermediates=lambda module, method: module.name in ("projq", "projk"),
        mutable=["intermediates"],
    )
    blocks = captured["intermediates"]["cross_decoder"]["blocks"]
    attention = []
    for index in range(model.decoder_depth):
        (query,), (key,) = (blocks[str(index)]["cross_attn"][name]["__call__"] for name in ("projq", "projk"))
        query = query[:, :, target_visible.shape[1] :]  # (B, heads, Md, head_dim)
        logits = jnp.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5
        attention.append(jax.nn.softmax(logits, axis=-1))  # (B, heads, Md, S * Ns)
    return jnp.stack(attention, axis=1)


def choose_tokens(motion: np.ndarray, hidden: np.ndarray, grid: tuple[int, int, int]) -> list[int]:
    """Hidden tokens to show: those with the most motion, no two of them neighbours, and finally one without motion.

    Args:
      motion: float[N], motion energies of a clip.
      hidden: int[M], its hidden tokens.
      grid: tokens along (time, height, width).

    Returns:
      Up to MOVING + 1 of `hidden`.
    """
    _, height, width = grid
    row, column = hidden // width % height, hidden % width
    chosen: list[int] = []
    for index in np.argsort(-motion[hidden], kind="stable").tolist():
        if all(max(abs(row[index] - row[i]), abs(column[index] - column[i])) > 1 for i in chosen):
            chosen.append(index)
        if len(chosen) == MOVING:
            break
    still = int(np.argmin(motion[hidden]))
    return hidden[chosen + [still] * (still not in chosen)].tolist()


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
    tokens, looks = choose_tokens(motion, mask.masked, grid), []
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
