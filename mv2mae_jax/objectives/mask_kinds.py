"""Kinds of masks, by the names that `masking.kind` takes. Imports no JAX, so that a config is checked at once.

A kind says which tokens are hidden together. `masking.py` draws which of these groups stay visible.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Grid = tuple[int, int, int]  # tokens along (time, height, width)


class MaskKind(NamedTuple):
    """A way to divide the tokens of a grid into groups of equal size.

    Attributes:
      unit: what error messages call the groups.
      num_groups: grid -> G.
      tokens: (groups int32[..., K], grid) -> the flat indices of their tokens, int32[..., K * N / G], in any order.
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
    "random": MaskKind("tokens", math.prod, lambda tokens, grid: tokens),
    "tube": MaskKind("places per time slice", lambda grid: grid[1] * grid[2], _tubes),
}
