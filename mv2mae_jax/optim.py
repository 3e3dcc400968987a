"""Optimiser and learning-rate schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import jax
import numpy as np
import optax
from ml_collections import config_dict

from console.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to the peak, then a cosine to the final learning rate at the last optimiser step."""

    peak_learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    total_steps: int

    @classmethod
    def from_config(cls, config: config_dict.ConfigDict, steps_per_epoch: float) -> "Schedule":
        """The linear rule (Goyal et al. 2017): learning rates are stated for 256 samples and scale with the batch."""
        scale = config.global_batch_size / 256
        total_steps = config.total_steps or max(1, round(config.num_epochs * steps_per_epoch))
        warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        if config.total_steps:  # a shortened run keeps the shape of its schedule
            warmup_steps = min(warmup_steps, total_steps // 10)
        if warmup_steps >= total_steps:
            raise UserError(
                f"warmup_epochs = {config.warmup_epochs:g} ({warmup_steps} steps) leaves nothing of the run's "
                f"{total_steps} steps; lower it."
            )
        return cls(
            peak_learning_rate=config.optimizer.base_learning_rate * scale,
            final_learning_rate=config.optimizer.final_base_learning_rate * scale,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
        )

    def __call__(self, step: jax.Array) -> jax.Array:
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.peak_learning_rate,
            warmup_steps=self.warmup_steps,
            decay_steps=self.total_steps,
            end_value=self.final_learning_rate,
        )(step)


def scheduled_at(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """The optimiser's state with `step` (int32[]) as the count of its learning-rate schedule.

    optax counts updates itself, so after a skipped update its schedule would lag behind the run's steps. Adam's own
    count is kept: it corrects the moments and must be the number of gradients in them.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda node: node._replace(count=step) if is_schedule(node) else node, opt_state, is_leaf=is_schedule
    )


def decayed(params: Any) -> Any:
    """True for parameters with weight decay: kernels, not biases, norms and mask tokens (VideoMAE's rule).

    Decided by name, because with scanned layers a bias is a matrix (layers, width).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _matrix_axes(params: Any) -> Any:
    """For Muon: the (in, out) axes of kernels, where a leading layer axis is a batch of matrices; None for Adam."""

    def axes(path, leaf):
        if path[-1].key != "kernel":
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=leaf.ndim - 2, output_axis=leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def layer_scales(params: Any, layer_decay: float) -> Any:
    """Layer-wise learning-rate decay: the factor of each parameter's update (BEiT, VideoMAE).

    decay^(depth + 1 - id), where id is 0 for the patch embedding, i + 1 for block i of the encoder, and depth + 1 for
    everything after the blocks (norms, head). Factors are scalars, or float32[depth, 1, ...] for the stacked parameters
    of scanned blocks. A decay of 1 scales nothing, so it also suits encoders without blocks.

    Raises:
      ValueError: another decay than 1 for an encoder without blocks.
    """
    if layer_decay == 1:
        return jax.tree.map(lambda _: np.float32(1), params)
    if "blocks" not in params["encoder"]:
        raise UserError(
            f"optimizer.layer_decay = {layer_decay} needs an encoder with parameters under 'blocks'; this one has "
            f"{', '.join(sorted(params['encoder']))}. Set --config.optimizer.layer_decay=1."
        )
    blocks = params["encoder"]["blocks"]
    scanned = "0" not in blocks
    depth = jax.tree.leaves(blocks)[0].shape[0] if scanned else len(blocks)

    def scale(path, leaf):
        names = [key.key for key in path]
        if names[:2] == ["encoder", "patch_embed"]:
            layer = 0
        elif names[:2] == ["encoder", "blocks"]:
            layer = 1 + (np.arange(depth).reshape(-1, *[1] * (leaf.ndim - 1)) if scanned else int(names[2]))
        else:
            layer = depth + 1
        return np.float32(layer_decay ** (depth + 1 - layer))

    return jax.tree_util.tree_map_with_path(scale, params)


def scale_by_layer(layer_decay: float) -> optax.GradientTransformation:
    """Scales updates by `layer_scales`. It comes last, so that learning rate and weight decay are scaled alike."""

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, s: u * s, updates, layer_scales(params, layer_decay))

    return optax.stateless(update)


def _adamw(config: config_dict.ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """AdamW, as in VideoMAE."""
    return optax.adamw(
        schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decayed
    )


def _muon(config: config_dict.ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """Muon on the kernels, with its update scaled to AdamW's usual size (RMS 0.2); Adam on the rest."""
    return optax.contrib.muon(
        schedule,
        weight_decay=config.weight_decay,
        weight_decay_mask=decayed,
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        muon_weight_dimension_numbers=_matrix_axes,
        consistent_rms=0.2,
    )


# The values of `optimizer.name`.
OPTIMIZERS: Final[dict[str, Callable]] = {"adamw": _adamw, "muon": _muon}


def make_optimizer(config: config_dict.ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """The optimizer of a config, after gradient clipping and before layer-wise decay if these are set."""
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    layer_decay = config.get("layer_decay")
    scale = [] if layer_decay is None else [scale_by_layer(layer_decay)]
    optimizer = OPTIMIZERS[config.name](config, schedule)
    return optax.chain(*clip, optimizer, *scale) if clip or scale else optimizer
