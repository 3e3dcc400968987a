"""The classifier: its head, its initialisation, and its stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2mae_jax.models import classifier, layers, tubelets
from tests import tiny

NUM_CLASSES = 7


def build(*overrides: str) -> classifier.Classifier:
    return classifier.from_config(tiny.make_finetune_config(*overrides), NUM_CLASSES)


def init(model):
    clip = jnp.zeros((1, *model.clip_size, 3), jnp.uint8)
    return jax.jit(model.init)(jax.random.key(0), clip)["params"]


def random_clips(model, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *model.clip_size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return build("model.head_init_scale=1.0")


@pytest.fixture(scope="module")
def params(model):
    """Initial parameters, with a last norm that is not the identity."""
    params = init(model)
    rng = np.random.default_rng(1)
    params["fc_norm"] = {name: rng.normal(1, 0.5, leaf.shape) for name, leaf in params["fc_norm"].items()}
    return params


def test_logits_are_a_linear_map_of_the_normalised_mean_of_all_tokens(model, params):
    clips = random_clips(model, 3)
    patches = tubelets.patchify(jnp.asarray(clips), model.tubelet_size)
    every = np.broadcast_to(np.arange(32, dtype=np.int32), (3, 32))  # 2 x 4 x 4 tokens
    tokens = np.asarray(jax.jit(model.encoder.apply)({"params": params["encoder"]}, patches, every), np.float64)
    assert tokens.shape == (3, 32, 24)
    mean = tokens.mean(axis=1)
    normalised = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    pooled = normalised * params["fc_norm"]["scale"] + params["fc_norm"]["bias"]
    expected = pooled @ np.asarray(params["head"]["kernel"], np.float64) + params["head"]["bias"]
    logits = jax.jit(model.apply)({"params": params}, clips)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_encoder_has_no_norm_of_its_own(params):
    assert params.keys() == {"encoder", "fc_norm", "head"}
    assert params["encoder"].keys() == {"patch_embed", "blocks"}


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_the_head_begins_normal_and_small(scale):
    kernel = classifier.scaled_normal(scale)(jax.random.key(0), (400, 100)) / scale
    # 40,000 draws of a normal distribution of std 0.02, not cut at one standard deviation.
    assert float(kernel.std()) == pytest.approx(0.02, rel=0.02)
    assert float((jnp.abs(kernel) > 0.02).mean()) == pytest.approx(0.317, abs=0.01)
    model = build(f"model.head_init_scale={scale}")
    head = init(model)["head"]
    assert 0.015 < float(head["kernel"].std()) / scale < 0.025
    assert not head["bias"].any()


def test_drop_path_is_drawn_per_clip_and_call_and_never_at_a_test():
    model = build("model.drop_path=0.5", "model.head_init_scale=1.0")
    params, same_clip = init(model), np.repeat(random_clips(model, 1), 16, axis=0)
    apply = jax.jit(model.apply, static_argnames="deterministic")

    def train(seed):
        rngs = {"drop_path": jax.random.key(seed)}
        return np.asarray(apply({"params": params}, same_clip, deterministic=False, rngs=rngs))

    # Two blocks, the first with rate 0, the second with two branches dropped by half: four outcomes.
    outcomes = np.unique(train(0).round(5), axis=0)
    assert len(outcomes) == 4
    np.testing.assert_array_equal(train(0), train(0))
    assert not np.array_equal(train(0), train(1))
    tested = apply({"params": params}, same_clip)
    np.testing.assert_allclose(tested, np.broadcast_to(tested[:1], tested.shape), atol=1e-6)
    undropped = build("model.drop_path=0.0", "model.head_init_scale=1.0")
    np.testing.assert_array_equal(tested, jax.jit(undropped.apply)({"params": params}, same_clip))


def test_scanned_and_unrolled_blocks_give_the_same_logits(model, params):
    clips = random_clips(model, 2)
    unrolled = build("model.scan_layers=False").apply({"params": layers.unstack_blocks(params)}, clips)
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, clips), unrolled, atol=1e-5)


def test_bfloat16_keeps_parameters_and_logits_in_float32(params):
    model = build("compute_dtype=bfloat16", "model.head_init_scale=1.0")
    assert {leaf.dtype for leaf in jax.tree.leaves(init(model))} == {jnp.float32.dtype}
    clips = random_clips(model, 2)
    logits = jax.jit(model.apply)({"params": params}, clips)
    assert logits.dtype == jnp.float32
    exact = jax.jit(build().apply)({"params": params}, clips)
    np.testing.assert_allclose(logits, exact, atol=0.05)
    assert not np.array_equal(logits, exact)
