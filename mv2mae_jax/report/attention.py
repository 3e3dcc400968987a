"""Where the cross-view decoder looks: its attention from hidden target tokens to the visible tokens of the sources.

Computed outside the model, from its queries and keys, because the model does not return its attention.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2mae_jax.models import layers, mv2mae
from mv2mae_jax.models.compute import Compute

MOVING = 4  # [ours] tokens that are shown with motion, if there are so many that lie apart


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
