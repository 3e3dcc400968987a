"""Which tokens the encoder sees and which tokens the decoders predict, drawn on the device from a random key."""

import math

import jax
import jax.numpy as jnp

from console.errors import UserError
from mv2mae_jax.models.tubelets import Mask
from mv2mae_jax.objectives.mask_kinds import MASK_KINDS, num_visible_tokens


def draw_mask(
    key: jax.Array, *, batch_shape: tuple[int, ...], grid: tuple[int, int, int], mask_ratio: float, kind: str = "random"
) -> Mask:
    """Draws one mask for each element of `batch_shape`, independently.

    `kind`, a key of MASK_KINDS, says which tokens are hidden together. With JAX's partitionable random numbers (its
    default), the values do not depend on how the result is sharded.

    Returns:
      Mask with visible int32[*batch_shape, num_visible_tokens(...)] and masked int32[*batch_shape, the rest].

    Raises:
      ValueError: as `num_visible_tokens`.
    """
    num_visible = num_visible_tokens(grid, mask_ratio, kind)
    mask_kind = MASK_KINDS[kind]
    num_groups = mask_kind.num_groups(grid)
    order = jnp.argsort(jax.random.uniform(key, (*batch_shape, num_groups)), axis=-1).astype(jnp.int32)
    visible_groups = num_visible * num_groups // math.prod(grid)
    parts = (mask_kind.tokens(groups, grid) for groups in (order[..., :visible_groups], order[..., visible_groups:]))
    return Mask(*map(_ascending, parts))


def choose_decoded(key: jax.Array, masked: jax.Array, *, decode_ratio: float, grid: tuple[int, int, int]) -> jax.Array:
    """Chooses which masked tokens the decoders predict: int32[..., M] -> int32[..., int(decode_ratio * M)], ascending.

    Follows VideoMAEv2's running cells (arXiv 2303.16727): in every cell of 2 x 2 places, the decoded place moves on by
    one from time slice to time slice, so that each place is predicted at some time. How many tokens at these places
    are masked varies from clip to clip, but arrays need a fixed number. Therefore [ours] the masked tokens are taken in
    the order of the cell, from a random phase per clip and with ties broken at random, until there are enough.

    Args:
      masked: int32[..., M] flat token indices.
      decode_ratio: fraction of the masked tokens to decode, in (0, 1]; 1 returns `masked` unchanged.
      grid: tokens along (time, height, width).

    Raises:
      ValueError: decode_ratio outside (0, 1], or so small that no token is left.
    """
    num_masked = masked.shape[-1]
    num_decoded = int(decode_ratio * num_masked)
    if not 0 < decode_ratio <= 1 or num_decoded < 1:
        raise UserError(
            f"decode_ratio={decode_ratio} of {num_masked} masked tokens decodes {num_decoded}. "
            f"Choose a ratio from {1 / num_masked:.3g} to 1."
        )
    if decode_ratio == 1:
        return masked
    _, height, width = grid
    time, row, column = masked // (height * width), masked // width % height, masked % width
    place_in_cell = 2 * (row % 2) + (row + column) % 2  # once round the cell: (0,0) (0,1) (1,1) (1,0)
    phase_key, tie_key = jax.random.split(key)
    phase = jax.random.randint(phase_key, (*masked.shape[:-1], 1), 0, 4)
    priority = (place_in_cell + time + phase) % 4 + jax.random.uniform(tie_key, masked.shape)
    first = jnp.argsort(priority, axis=-1)[..., :num_decoded]
    return _ascending(jnp.take_along_axis(masked, first, axis=-1))


def _ascending(indices: jax.Array) -> jax.Array:
    return jnp.sort(indices, axis=-1)
