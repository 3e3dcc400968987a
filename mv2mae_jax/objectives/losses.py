"""Reconstruction targets, motion weights and losses.

Losses are returned as (sum, count), so that parts of a batch, views and shards average correctly. No gradient flows
into targets or weights.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp

from console.errors import UserError
from mv2mae_jax.models import tubelets

# The values of `loss.error`: prediction minus target -> error of each value, float32[...] -> float32[...].
ERRORS: Final[dict[str, Callable[[jax.Array], jax.Array]]] = {
    "squared": jnp.square,
}
_NORMALIZED_EPS = 1e-6  # added to the standard deviation of a patch, as VideoMAE does


class TargetKind(NamedTuple):
    """A space in which decoders predict.

    Attributes:
      of_patches: uint8[..., P] -> float32[..., P].
      to_pixels: (prediction float32[..., P], statistics_of uint8[..., P]) -> pixels float32[..., P].
      needs_statistics: whether `to_pixels` reads `statistics_of`.
    """

    of_patches: Callable[[jax.Array], jax.Array]
    to_pixels: Callable[[jax.Array, jax.Array | None], jax.Array]
    needs_statistics: bool = True


def targets(patches: jax.Array, kind: str) -> jax.Array:
    """What the decoders predict for the patches uint8[..., P] -> float32[..., P]; `kind` is a key of TARGET_KINDS.

    Raises:
      ValueError: unknown kind.
    """
    return _target_kind(kind).of_patches(patches)


def to_pixels(prediction: jax.Array, kind: str, *, statistics_of: jax.Array | None = None) -> jax.Array:
    """Predictions f32[..., P] in target space -> pixels f32[..., P], nominally in [0, 1], not clipped.

    A prediction of normalised pixels does not tell a patch's mean and contrast. These are taken from the patches
    `statistics_of`, uint8[..., P]. If these are the true patches, the picture reveals part of the answer: say so there.

    Raises:
      ValueError: unknown kind, or normalised pixels without `statistics_of`.
    """
    target = _target_kind(kind)
    if target.needs_statistics and statistics_of is None:
        raise UserError(f"Predictions of {kind!r} need the statistics of patches to become pixels.")
    return target.to_pixels(prediction, statistics_of)


def reconstruction_loss(
    prediction: jax.Array, target: jax.Array, weights: jax.Array, error: str = "squared"
) -> tuple[jax.Array, jax.Array]:
    """Weighted error (a key of ERRORS), mean over the values of a token, summed over tokens.

    The paper's loss is sum / count: 1/(rho N) * sum over masked tokens of w_i |I_i - I'_i|^2, the norm as a mean over
    the token's P values [ours].

    Args:
      prediction, target: [..., M, P]; weights: [..., M] (`motion_weights` at the same tokens; ones for the plain loss).

    Returns:
      (sum, count), float32 scalars; count is the number of tokens.
    """
    target, weights = jax.lax.stop_gradient((target, weights))
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    errors = ERRORS[error](difference).mean(-1)  # (..., M)
    return (weights * errors).sum(), jnp.float32(errors.size)


def mean_prediction_loss(target: jax.Array, weights: jax.Array, error: str = "squared") -> tuple[jax.Array, jax.Array]:
    """The loss of predicting each patch's mean colour, as a model would that knows the colours but no structure.

    Args and returns as `reconstruction_loss`.
    """
    mean = _channel_means(target)  # (..., M, 1, 3)
    prediction = jnp.broadcast_to(mean, (*target.shape[:-1], target.shape[-1] // 3, 3))
    return reconstruction_loss(prediction.reshape(target.shape), target, weights, error)  # (..., M, P)


def motion_weights(
    motion: jax.Array,
    *,
    temperature: float | None = None,
    pixel_range: float = 255.0,
    ess_fraction: float | None = None,
) -> jax.Array:
    """Weight of each token: a softmax of the motion energies of a clip's tokens, rescaled to mean 1 [ours].

    The paper's softmax sums to 1. With mean 1, the size of the loss does not depend on the temperature, and an infinite
    temperature gives exactly the plain loss. Exactly one of `temperature` and `ess_fraction` must be given.

    Args:
      motion: float32[..., N], norm of the frame difference over a token's pixels, which lie in [0, 255].
      temperature: t of softmax(motion / t), for a norm over pixels that span `pixel_range`. The paper's best t is 60
        [paper]. It does not state the pixel scale: with 255 a few tokens get all the weight, with 1 all get the same.
      ess_fraction: t is solved for each clip so that the effective number of tokens, 1 / sum w_i^2 with sum w_i = 1, is
        this fraction of N [ours]. `pixel_range` then has no effect. If equal energies put the fraction out of reach,
        the nearest possible one is taken.

    Returns:
      float32[..., N], mean 1 over the last axis.

    Raises:
      ValueError: both or none of the two given, or out of range.
    """
    if (temperature is None) == (ess_fraction is None):
        raise UserError(f"Give either temperature ({temperature}) or ess_fraction ({ess_fraction}), the other as None.")
    motion = jax.lax.stop_gradient(motion.astype(jnp.float32))
    if ess_fraction is not None:
        return _weights(_solve_logits(motion, ess_fraction))
    if not (temperature > 0 and pixel_range > 0):
        raise UserError(f"temperature ({temperature}) and pixel_range ({pixel_range}) must be positive.")
    if math.isinf(temperature):  # a compiled softmax times N is 1 only up to rounding
        return jnp.ones_like(motion)
    return _weights(motion * (pixel_range / 255 / temperature))


def effective_share(weights: jax.Array) -> jax.Array:
    """Effective number of tokens over their number, (sum w)^2 / (N sum w^2): f32[..., N] -> f32[...] in [1/N, 1]."""
    return jnp.square(weights.mean(-1)) / jnp.square(weights).mean(-1)


def psnr(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1] (predictions are clipped): [..., M, P] twice -> f32[...]."""
    error = jnp.square(jnp.clip(prediction, 0, 1) - target).mean((-2, -1))
    return -10 * jnp.log10(error)


def _weights(logits: jax.Array) -> jax.Array:
    unnormalized = jnp.exp(logits - logits.max(-1, keepdims=True))
    return unnormalized / unnormalized.mean(-1, keepdims=True)


def _solve_logits(motion: jax.Array, fraction: float) -> jax.Array:
    """motion / t, up to a constant per clip. A bisection over log(beta) solves for t; beta is 1/t at a spread of 1.

    As beta grows, the ESS falls from N to the number of tokens that share the maximum.
    """
    num_tokens = motion.shape[-1]
    if not 1 / num_tokens <= fraction <= 1:
        raise UserError(
            f"ess_fraction={fraction} must lie between 1/N = {1 / num_tokens:.3g} and 1 for N = {num_tokens}."
        )
    # Energies are brought to [-1, 0], so that one bracket of beta serves every clip. Without motion, all become 0.
    below_max = motion - motion.max(-1, keepdims=True)
    spread = -below_max.min(-1, keepdims=True)
    below_max = below_max / jnp.maximum(spread, jnp.finfo(jnp.float32).tiny)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        flat = effective_share(_weights(jnp.exp(middle) * below_max)) > fraction
        return jnp.where(flat[..., None], middle, low), jnp.where(flat[..., None], high, middle)

    low = jnp.full_like(spread, math.log(1e-3))  # the ESS is N within 1e-6
    high = jnp.full_like(spread, math.log(1e9))  # beyond float32's resolution: only tokens at the maximum have weight
    low, high = jax.lax.fori_loop(0, 40, halve, (low, high))
    return jnp.exp((low + high) / 2) * below_max


def _unit_pixels(patches: jax.Array) -> jax.Array:
    return _split_channels(patches.astype(jnp.float32)) / 255  # (..., t * h * w, 3)


def _split_channels(values: jax.Array) -> jax.Array:
    return values.reshape(*values.shape[:-1], -1, 3)  # (..., t * h * w, 3)


def _channel_means(values: jax.Array) -> jax.Array:
    """[..., n * 3] -> mean of each channel [..., 1, 3].

    Neighbouring pixels are added in groups first. Adding pixels one by one, three values apart, is 15 times slower on a
    GPU.
    """
    num_pixels = values.shape[-1] // 3
    group = math.gcd(num_pixels, 32)
    groups = values.reshape(*values.shape[:-1], num_pixels // group, group * 3).sum(-2)  # (..., group * 3)
    return _split_channels(groups).sum(-2, keepdims=True) / num_pixels  # (..., 1, 3)


def _patch_statistics(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., n, 3] -> mean and (unbiased) standard deviation of each channel, [..., 1, 3] each."""
    num_pixels = pixels.shape[-2]
    mean = _channel_means(pixels.reshape(*pixels.shape[:-2], -1))  # (..., 1, 3)
    squares = jnp.square(pixels - mean).reshape(*pixels.shape[:-2], -1)  # (..., n * 3)
    return mean, jnp.sqrt(_channel_means(squares) * (num_pixels / max(1, num_pixels - 1)))


def _target_kind(kind: str) -> TargetKind:
    if kind not in TARGET_KINDS:
        raise UserError(f"Unknown target kind {kind!r}. Choose one of {', '.join(TARGET_KINDS)}.")
    return TARGET_KINDS[kind]


def _normalize_patches(patches: jax.Array) -> jax.Array:
    """Each channel of each patch is brought to mean 0 and unit (unbiased) variance."""
    pixels = _unit_pixels(patches)
    mean, std = _patch_statistics(pixels)
    return ((pixels - mean) / (std + _NORMALIZED_EPS)).reshape(patches.shape)  # (..., P)


def _denormalize_patches(prediction: jax.Array, statistics_of: jax.Array) -> jax.Array:
    mean, std = _patch_statistics(_unit_pixels(statistics_of))
    pixels = _split_channels(prediction) * (std + _NORMALIZED_EPS) + mean
    return pixels.reshape(prediction.shape)  # (..., P)


# The values of `loss.target`.
TARGET_KINDS: Final[dict[str, TargetKind]] = {
    # Pixels normalised by ImageNet's mean and standard deviation [ours].
    "pixels": TargetKind(
        tubelets.normalize_pixels, lambda prediction, _: tubelets.denormalize_pixels(prediction), needs_statistics=False
    ),
    # As VideoMAE's `engine_for_pretraining.py`.
    "normalized_pixels": TargetKind(_normalize_patches, _denormalize_patches),
}
