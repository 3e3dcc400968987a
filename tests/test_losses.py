"""Targets, motion weights and losses against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mv2mae_jax.objectives import losses

PATCH_DIM = 2 * 4 * 4 * 3


def random_patches(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, PATCH_DIM), dtype=np.uint8)


def random_motion(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, 200, shape).astype(np.float32)


# Targets


def test_pixel_targets_are_imagenet_normalised():
    patches = random_patches(2, 5)
    pixels = patches.reshape(2, 5, -1, 3) / 255.0
    expected = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(losses.targets(patches, "pixels").reshape(2, 5, -1, 3), expected, atol=2e-6)


def test_normalised_targets_have_mean_0_and_unit_variance_per_patch_and_channel():
    patches = random_patches(2, 5)
    pixels = patches.reshape(2, 5, -1, 3) / 255.0
    std = np.sqrt(pixels.var(-2, ddof=1, keepdims=True))
    expected = (pixels - pixels.mean(-2, keepdims=True)) / (std + 1e-6)
    target = losses.targets(patches, "normalized_pixels").reshape(2, 5, -1, 3)
    np.testing.assert_allclose(target, expected, atol=1e-5)


def test_normalised_targets_of_a_flat_patch_are_zero():
    flat = np.full((1, 1, PATCH_DIM), 77, np.uint8)
    # Rounding errors are divided by eps, but the result stays finite and small.
    assert np.abs(losses.targets(flat, "normalized_pixels")).max() < 0.2


@pytest.mark.parametrize("kind", losses.TARGET_KINDS)
def test_pixels_come_back_from_targets(kind):
    patches = random_patches(2, 5)
    pixels = losses.to_pixels(losses.targets(patches, kind), kind, statistics_of=patches)
    np.testing.assert_allclose(pixels, patches / 255.0, atol=1e-5)


def test_normalised_predictions_need_statistics_to_become_pixels():
    with pytest.raises(ValueError, match="statistics"):
        losses.to_pixels(np.zeros((1, 1, PATCH_DIM), np.float32), "normalized_pixels")
    with pytest.raises(ValueError, match=r"'pixel'.*pixels, normalized_pixels"):
        losses.targets(random_patches(1), "pixel")


# Reconstruction loss


def test_reconstruction_loss_is_the_papers_weighted_mean():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 3, 5, PATCH_DIM))
    weights = rng.uniform(0, 3, (3, 5))
    expected = sum(weights[b, i] * ((target[b, i] - prediction[b, i]) ** 2).mean() for b in range(3) for i in range(5))
    total, count = losses.reconstruction_loss(jnp.float32(prediction), jnp.float32(target), jnp.float32(weights))
    assert count == 15
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_sums_and_counts_of_parts_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 8, 5, PATCH_DIM)).astype(np.float32)
    weights = rng.uniform(0, 3, (8, 5)).astype(np.float32)
    whole = losses.reconstruction_loss(prediction, target, weights)
    parts = [
        losses.reconstruction_loss(*(x[cut] for x in (prediction, target, weights))) for cut in (np.s_[:3], np.s_[3:])
    ]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)


def test_no_gradient_flows_into_targets_and_weights():
    prediction, target = np.random.default_rng(0).normal(size=(2, 3, 5, PATCH_DIM)).astype(np.float32)
    weights = np.ones((3, 5), np.float32)
    grads = jax.grad(lambda *args: losses.reconstruction_loss(*args)[0], argnums=(0, 1, 2))(prediction, target, weights)
    assert np.abs(grads[0]).max() > 0
    assert np.abs(grads[1]).max() == np.abs(grads[2]).max() == 0


@pytest.mark.parametrize("kind", losses.TARGET_KINDS)
def test_mean_prediction_loss_is_the_weighted_variance_within_patches(kind):
    target = np.asarray(losses.targets(random_patches(3, 5), kind))
    weights = np.random.default_rng(1).uniform(0, 3, (3, 5))
    variance = target.astype(np.float64).reshape(3, 5, -1, 3).var(-2).mean(-1)
    total, count = losses.mean_prediction_loss(target, jnp.float32(weights))
    np.testing.assert_allclose(total, (weights * variance).sum(), rtol=1e-5)
    assert count == 15


def test_psnr_of_a_known_error():
    target = np.random.default_rng(0).uniform(0.2, 0.8, (3, 5, PATCH_DIM)).astype(np.float32)
    np.testing.assert_allclose(losses.psnr(target + 0.1, target), np.full(3, -20 * np.log10(0.1)), rtol=1e-4)
    np.testing.assert_allclose(losses.psnr(target - 9, target), -10 * np.log10((target**2).mean((-2, -1))), rtol=1e-4)


# Motion weights


@pytest.mark.parametrize(("temperature", "pixel_range"), [(60, 255), (60, 1), (5, 255), (1000, 255), (0.5, 1)])
def test_weights_equal_a_float64_softmax(temperature, pixel_range):
    motion = random_motion(4, 49)
    logits = motion.astype(np.float64) * pixel_range / 255 / temperature
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    weights = losses.motion_weights(motion, temperature=temperature, pixel_range=pixel_range)
    np.testing.assert_allclose(weights, softmax * 49, rtol=2e-4, atol=1e-12)


@pytest.mark.parametrize("num_tokens", [41, 512, 1568])  # in float32, 41 * (1 / 41) is not 1
def test_infinite_temperature_is_the_plain_loss_to_the_last_bit(num_tokens):
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 2, num_tokens, 12)).astype(np.float32)
    motion = random_motion(2, num_tokens)

    def motion_aware(prediction):
        total, count = losses.reconstruction_loss(
            prediction, target, losses.motion_weights(motion, temperature=float("inf"))
        )
        return total / count

    def plain(prediction):
        return jnp.square(prediction - target).mean(-1).sum() / (2 * num_tokens)

    for transform in (lambda f: f, jax.jit):
        value, gradient = transform(jax.value_and_grad(motion_aware))(prediction)
        plain_value, plain_gradient = transform(jax.value_and_grad(plain))(prediction)
        assert value == plain_value
        np.testing.assert_array_equal(gradient, plain_gradient)


@functools.partial(jax.jit, static_argnames="fraction")
def solved_weights(motion: jax.Array, fraction: float) -> jax.Array:
    return losses.motion_weights(motion, ess_fraction=fraction)


def ess_fraction_float64(weights: np.ndarray) -> np.ndarray:
    w = np.asarray(weights, np.float64)
    w /= w.sum(-1, keepdims=True)
    return 1 / (w**2).sum(-1) / w.shape[-1]


@settings(max_examples=200)
@given(
    motion=hnp.arrays(np.float32, (32,), elements=st.floats(0, 2**17, width=32, allow_subnormal=False)),
    fraction=st.sampled_from([0.05, 0.25, 0.5, 0.8, 0.97, 1.0]),
)
def test_the_solved_temperature_gives_the_asked_ess(motion, fraction):
    ties = (motion == motion.max()).mean()  # equal energies always share the weight
    weights = solved_weights(motion, fraction)
    np.testing.assert_allclose(ess_fraction_float64(weights), max(fraction, ties), rtol=0.01)
    np.testing.assert_allclose(np.asarray(weights, np.float64).mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_the_solved_temperature_gives_the_asked_ess_on_plausible_clips(fraction):
    motion = random_motion(3, 2, 512)
    weights = solved_weights(motion, fraction)
    np.testing.assert_allclose(ess_fraction_float64(weights), np.full((3, 2), fraction), rtol=0.001)
    np.testing.assert_allclose(losses.effective_share(weights), ess_fraction_float64(weights), rtol=1e-5)
    order = np.argsort(motion, axis=-1)
    assert (np.diff(np.take_along_axis(np.asarray(weights), order, -1), axis=-1) >= 0).all()


def test_solved_weights_do_not_depend_on_the_scale_of_the_energies():
    motion = random_motion(2, 64)
    np.testing.assert_allclose(solved_weights(motion, 0.5), solved_weights(motion * 1e-3, 0.5), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(solved_weights(motion, 0.5), solved_weights(motion * 1e30, 0.5), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("energy", [0.0, 3.7, 1e30])
def test_equal_energies_weigh_equally(energy):
    weights = solved_weights(np.full((2, 41), energy, np.float32), 0.5)
    np.testing.assert_allclose(weights, np.ones((2, 41)), rtol=1e-6)


def test_ties_at_the_maximum_share_the_weight():
    motion = np.array([5.0] * 6 + [0.0] * 4, np.float32)  # 6 of 10 tie: ESS cannot fall to 0.3
    np.testing.assert_allclose(solved_weights(motion, 0.3), [1 / 0.6] * 6 + [0] * 4, atol=1e-6)


def test_no_gradient_flows_into_the_motion():
    motion = jnp.asarray(random_motion(49))
    for kwargs in ({"temperature": 60.0}, {"ess_fraction": 0.5}):
        gradient = jax.grad(lambda m, kwargs=kwargs: jnp.square(losses.motion_weights(m, **kwargs)).sum())(motion)
        np.testing.assert_array_equal(gradient, np.zeros(49))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "either temperature"),
        ({"temperature": 60, "ess_fraction": 0.5}, "either temperature"),
        ({"temperature": 0}, "positive"),
        ({"temperature": 60, "pixel_range": -1}, "positive"),
        ({"ess_fraction": 1.2}, "between 1/N = 0.0204 and 1"),
        ({"ess_fraction": 0.01}, "between 1/N = 0.0204 and 1"),
    ],
)
def test_wrong_temperatures_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        losses.motion_weights(random_motion(49), **kwargs)
