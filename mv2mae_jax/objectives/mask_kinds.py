"""The kinds of masks that `masking.kind` names. Does not import JAX, which takes seconds: configs are checked before.

A kind divides the tokens into groups that are hidden together. `masking.py` draws which groups stay visible.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from console.errors import UserError

Grid = tuple[int, int, int]  # tokens along (time, height, width)


class MaskKind(NamedTuple):
    """A way to divide the tokens of a grid into groups of equal size.

    Attributes:
      unit: what error messages call the groups.
      num_groups: grid -> G. It raises a UserError for a grid that the kind cannot divide.
      tokens: (groups int32[..., K], grid) -> the flat indices of their tokens, int32[..., K * N / G], in any order.
        The groups may be JAX tracers, which NumPy functions refuse: only index, broadcast and reshape them.
    """

    unit: str
    num_groups: Callable[[Grid], int]
    tokens: Callable[[Any, Grid], Any]


def _tubes(places: Any, grid: Grid) -> Any:
    """The same places in every time slice."""
    time, height, width = grid
    slice_start = np.arange(time, dtype=np.int32)[:, None] * (height * width)  # (time, 1)
    return (slice_start + places[..., None, :]).reshape(*places.shape[:-1], -1)  # (..., time * K)


MASK_KINDS = {
    # Tokens anywhere in the clip.
    "random": MaskKind("tokens", math.prod, lambda tokens, grid: tokens),
    # The same places in every time slice.
    "tube": MaskKind("places per time slice", lambda grid: grid[1] * grid[2], _tubes),
}


def num_visible_tokens(grid: Grid, mask_ratio: float, kind: str = "random", key: str = "mask_ratio") -> int:
    """Tokens of a grid that stay visible.

    As VideoMAE's `masking_generator.py`: of the G groups of a kind, int(mask_ratio * G) are masked.

    Args:
      grid: tokens along (time, height, width).
      mask_ratio: in [0, 1].
      kind: a key of MASK_KINDS.
      key: what an error calls the ratio.

    Raises:
      ValueError: unknown kind, a grid that it cannot divide, or a ratio that leaves no visible or no masked group.
    """
    if kind not in MASK_KINDS:
        raise UserError(f"Unknown mask kind {kind!r}. Choose one of {', '.join(MASK_KINDS)}.")
    num_groups, unit = MASK_KINDS[kind].num_groups(grid), MASK_KINDS[kind].unit
    if num_groups < 2:
        raise UserError(
            f"{key}: of {num_groups} {unit} none can be hidden (grid {tuple(grid)}); cut the clip into more "
            "(model.tubelet_size)."
        )
    lowest, highest = math.ceil(1000 / num_groups) / 1000, math.floor(1000 * (num_groups - 1) / num_groups) / 1000
    if not 0 <= mask_ratio <= 1:
        raise UserError(f"{key} = {mask_ratio} must lie between {lowest} and {highest}.")
    masked = int(mask_ratio * num_groups)
    if not 0 < masked < num_groups:
        raise UserError(
            f"{key} = {mask_ratio} leaves {num_groups - masked} visible and {masked} masked of {num_groups} {unit} "
            f"(grid {tuple(grid)}); both are needed: choose it between {lowest} and {highest}."
        )
    return math.prod(grid) // num_groups * (num_groups - masked)
