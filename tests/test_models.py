"""The model: which inputs may influence which outputs, and its numbers compared with independent computations."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2mae_jax.models import layers, mv2mae, tubelets, variants
from mv2mae_jax.models.compute import Compute
from mv2mae_jax.models.kernels import norms
from mv2mae_jax.models.kernels.gelu import gelu
from mv2mae_jax.models.tubelets import Mask
from mv2mae_jax.objectives import losses
from mv2mae_jax.objectives.masking import choose_decoded
from tests import tiny

CLIP, TUBELET = (6, 16, 24), (2, 8, 8)  # grid (3, 2, 3): no two axes alike
TINY = {"width": 32, "depth": 2, "num_heads": 2, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}


def build(**overrides) -> mv2mae.MV2MAE:
    """The tiny model; `overrides` are fields of it or of its Compute."""
    how = {field.name: overrides.pop(field.name) for field in dataclasses.fields(Compute) if field.name in overrides}
    return variants.build(
        "S", **({"clip_size": CLIP, "tubelet_size": TUBELET} | TINY | overrides), compute=Compute(**how)
    )


def random_video(*batch: int, seed: int = 0, clip_size: tuple[int, int, int] = CLIP) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*batch, *clip_size, 3), dtype=np.uint8)


def draw_masks(model: mv2mae.MV2MAE, batch: int = 2, num_sources: int = 1, ratios=(0.7, 0.7)) -> tuple[Mask, Mask]:
    rng = np.random.default_rng(1)

    def draw(batch_shape: tuple[int, ...], mask_ratio: float) -> Mask:
        order = rng.random((*batch_shape, model.num_tokens)).argsort(-1).astype(np.int32)
        num_masked = int(mask_ratio * model.num_tokens)
        return Mask(visible=np.sort(order[..., num_masked:]), masked=np.sort(order[..., :num_masked]))

    return draw((batch,), ratios[0]), draw((batch, num_sources), ratios[1])


@functools.cache
def parameter_shapes(model: mv2mae.MV2MAE):
    masks = draw_masks(model) if model.cross_view else (draw_masks(model)[0], None)
    video = jax.ShapeDtypeStruct((2, 2 if model.cross_view else 1, *model.clip_size, 3), jnp.uint8)
    return jax.eval_shape(model.init, jax.random.key(0), video, *masks)["params"]


@functools.cache
def random_params(model: mv2mae.MV2MAE):
    """Random parameters of a plausible size. No bias is zero and no scale is one."""
    rng = np.random.default_rng(0)

    def draw(path, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.float32(math.sqrt(leaf.shape[-2]))
            case "scale":
                return 1 + 0.1 * noise
        return 0.1 * noise

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))


@functools.cache
def jitted(model: mv2mae.MV2MAE, method: str = "__call__"):
    return jax.jit(functools.partial(model.apply, method=method), compiler_options=tiny.QUICK)


def run(model, method, *args):
    return jitted(model, method)({"params": random_params(model)}, *args)


def overwrite_tokens(video: np.ndarray, tokens: np.ndarray, seed: int = 9) -> np.ndarray:
    """Replaces the pixels of the given tokens int[B, K] of video [B, T, H, W, 3] by others."""
    patches = np.array(tubelets.patchify(video, TUBELET))
    noise = np.random.default_rng(seed).integers(0, 256, patches.shape, dtype=np.uint8)
    for b, indices in enumerate(np.asarray(tokens)):
        patches[b, indices] = noise[b, indices]
    return np.asarray(tubelets.unpatchify(patches, CLIP, TUBELET))


# Which inputs may influence which outputs
def test_pixels_of_masked_tokens_cannot_change_any_latent():
    model = build()
    video, (mask, _) = random_video(2), draw_masks(model)
    changed = overwrite_tokens(video, mask.masked)
    assert (changed != video).any()
    latents = run(model, "encode", video, mask.visible)
    assert latents.shape == (2, mask.visible.shape[1], TINY["width"])
    np.testing.assert_array_equal(run(model, "encode", changed, mask.visible), latents)
    seen = overwrite_tokens(video, mask.visible[:, :1])
    assert (np.asarray(run(model, "encode", seen, mask.visible)) != np.asarray(latents)).any(-1).all()


@pytest.mark.parametrize("kind", losses.TARGET_KINDS)
def test_visible_patches_of_the_target_cannot_change_the_loss(kind):
    model = build()
    video, (mask, source_mask) = random_video(2, 2), draw_masks(model)
    prediction = run(model, "__call__", video, mask, source_mask).self_target

    def loss(target_video):
        patches = tubelets.gather_tokens(tubelets.patchify(target_video, TUBELET), mask.masked)
        return losses.reconstruction_loss(prediction, losses.targets(patches, kind), jnp.ones(mask.masked.shape))[0]

    assert loss(overwrite_tokens(video[:, 0], mask.visible)) == loss(video[:, 0])
    assert loss(overwrite_tokens(video[:, 0], mask.masked[:, :1])) != loss(video[:, 0])


def test_another_source_view_changes_the_cross_reconstruction_only():
    model = build()
    video, masks = random_video(2, 2), draw_masks(model)
    other = np.concatenate([video[:, :1], random_video(2, 1, seed=7)], axis=1)
    first, second = run(model, "__call__", video, *masks), run(model, "__call__", other, *masks)
    np.testing.assert_array_equal(first.self_target, second.self_target)
    assert (np.asarray(first.cross) != np.asarray(second.cross)).any(-1).all()
    assert (np.asarray(first.self_source) != np.asarray(second.self_source)).any(-1).all()


def test_masked_tokens_of_the_source_cannot_change_the_cross_reconstruction():
    model = build()
    video, (mask, source_mask) = random_video(2, 2), draw_masks(model)
    hidden = overwrite_tokens(video[:, 1], source_mask.masked[:, 0])
    other = np.stack([video[:, 0], hidden], axis=1)
    first = run(model, "__call__", video, mask, source_mask)
    np.testing.assert_array_equal(first.cross, run(model, "__call__", other, mask, source_mask).cross)


def test_clips_of_a_batch_do_not_mix():
    model = build()
    video, (mask, source_mask) = random_video(2, 2), draw_masks(model)
    other = np.concatenate([video[:1], random_video(1, 2, seed=7)])
    first = run(model, "__call__", video, mask, source_mask)
    second = run(model, "__call__", other, mask, source_mask)
    for name in ("self_target", "self_source", "cross"):
        np.testing.assert_array_equal(getattr(first, name)[0], getattr(second, name)[0])
        assert (np.asarray(getattr(first, name)[1]) != np.asarray(getattr(second, name)[1])).any()


def test_the_order_in_which_tokens_are_given_does_not_matter():
    model = build()
    video, (mask, source_mask) = random_video(2, 3), draw_masks(model, num_sources=2)
    order = np.random.default_rng(0).permutation(mask.visible.shape[1])
    latents = run(model, "encode", video[:, 0], mask.visible)
    shuffled = run(model, "encode", video[:, 0], mask.visible[:, order])
    np.testing.assert_allclose(shuffled, latents[:, order], atol=1e-5)

    source = np.stack([run(model, "encode", video[:, 1 + s], source_mask.visible[:, s]) for s in range(2)], axis=1)
    cross = run(model, "decode_cross", latents, mask.visible, mask.masked, source, source_mask.visible)
    swapped = run(
        model,
        "decode_cross",
        latents[:, order],
        mask.visible[:, order],
        mask.masked[:, ::-1],
        source[:, ::-1][:, :, order],
        source_mask.visible[:, ::-1][:, :, order],
    )
    np.testing.assert_allclose(swapped, cross[:, ::-1], atol=1e-5)


# Views and decoded tokens


@pytest.mark.parametrize(
    ("num_sources", "ratios"), [(2, (0.7, 0.7)), (1, (0.8, 0.4))], ids=["in one call", "in two calls"]
)
def test_a_batch_of_views_equals_the_views_one_by_one(num_sources, ratios):
    model = build()
    video, (mask, source_mask) = random_video(2, 1 + num_sources), draw_masks(model, 2, num_sources, ratios)
    together = run(model, "__call__", video, mask, source_mask)

    latents = run(model, "encode", video[:, 0], mask.visible)
    np.testing.assert_allclose(
        together.self_target, run(model, "decode_self", latents, mask.visible, mask.masked), atol=2e-5
    )
    source_latents = []
    for s in range(num_sources):
        source_latents.append(run(model, "encode", video[:, 1 + s], source_mask.visible[:, s]))
        alone = run(model, "decode_self", source_latents[s], source_mask.visible[:, s], source_mask.masked[:, s])
        np.testing.assert_allclose(together.self_source[:, s], alone, atol=2e-5)
    cross = run(
        model, "decode_cross", latents, mask.visible, mask.masked, np.stack(source_latents, 1), source_mask.visible
    )
    np.testing.assert_allclose(together.cross, cross, atol=2e-5)


def test_only_the_chosen_tokens_are_decoded():
    model = build()
    video, (mask, source_mask) = random_video(2, 2), draw_masks(model)
    decoded = choose_decoded(jax.random.key(0), mask.masked, decode_ratio=0.5, grid=model.grid)
    decoded_source = choose_decoded(jax.random.key(1), source_mask.masked, decode_ratio=0.25, grid=model.grid)
    reconstruction = run(model, "__call__", video, mask, source_mask, decoded, decoded_source)
    assert reconstruction.self_target.shape == reconstruction.cross.shape == (*decoded.shape, model.patch_dim)
    assert reconstruction.self_source.shape == (*decoded_source.shape, model.patch_dim)
    latents = run(model, "encode", video[:, 0], mask.visible)
    expected = run(model, "decode_self", latents, mask.visible, decoded)
    np.testing.assert_allclose(reconstruction.self_target, expected, atol=2e-5)


def test_the_single_view_baseline_has_no_cross_decoder():
    model = build(cross_view=False)
    assert set(random_params(model)) == {"encoder", "decoder"}
    mask, _ = draw_masks(model)
    reconstruction = run(model, "__call__", random_video(2, 1), mask, None)
    assert reconstruction.cross is None and reconstruction.self_source is None
    assert reconstruction.self_target.shape == (2, mask.masked.shape[1], model.patch_dim)


@pytest.mark.parametrize(
    ("clip_size", "tubelet_size"),
    [((1, 16, 16), (1, 8, 8)), ((32, 16, 8), (4, 8, 4))],
)
def test_any_clip_that_the_tubelet_divides(clip_size, tubelet_size):
    model = build(clip_size=clip_size, tubelet_size=tubelet_size, depth=1, decoder_depth=1)
    masks = draw_masks(model, ratios=(0.5, 0.5))
    video = random_video(2, 2, clip_size=clip_size)
    reconstruction = run(model, "__call__", video, *masks)
    assert reconstruction.cross.shape == (2, masks[0].masked.shape[1], math.prod(tubelet_size) * 3)
    assert reconstruction.cross.dtype == jnp.float32 and np.isfinite(reconstruction.cross).all()


# Numbers against independent computations


def test_patch_embedding_is_a_convolution_over_normalised_frames():
    model = build(depth=0)
    params = random_params(model)
    video, everything = random_video(2), np.broadcast_to(np.arange(18), (2, 18))
    proj = params["encoder"]["patch_embed"]["proj"]
    frames = (video / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    embedded = jax.lax.conv_general_dilated(
        frames.astype(np.float32),
        proj["kernel"].reshape(*TUBELET, 3, TINY["width"]),  # (t, h, w, c, D)
        window_strides=TUBELET,
        padding="VALID",
        dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
    tokens = embedded.reshape(2, 18, TINY["width"]) + proj["bias"] + tubelets.sinusoid_table(18, TINY["width"])
    expected = numpy_layer_norm(np.asarray(tokens, np.float64), params["encoder"]["norm"])
    np.testing.assert_allclose(run(model, "encode", video, everything), expected, atol=1e-4)


def numpy_layer_norm(x, params):
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normalised * np.float64(params["scale"]) + np.float64(params["bias"])


def numpy_dense(x, params):
    return x @ np.float64(params["kernel"]) + np.float64(params.get("bias", 0))


def numpy_attention(query, key, value, num_heads):
    output = np.zeros_like(query)
    head_dim = query.shape[-1] // num_heads
    for b in range(len(query)):
        for head in range(num_heads):
            channels = slice(head * head_dim, (head + 1) * head_dim)
            scores = query[b, :, channels] @ key[b, :, channels].T / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            output[b, :, channels] = weights / weights.sum(-1, keepdims=True) @ value[b, :, channels]
    return output


def numpy_block(x, params, num_heads, source=None):
    y = numpy_layer_norm(x, params["norm1"])
    query, key, value = np.split(numpy_dense(y, params["attn"]["qkv"]), 3, axis=-1)
    query, value = query + np.float64(params["attn"]["q_bias"]), value + np.float64(params["attn"]["v_bias"])
    x = x + numpy_dense(numpy_attention(query, key, value, num_heads), params["attn"]["proj"])
    if source is not None:
        cross, memory = params["cross_attn"], numpy_layer_norm(source, params["norm_y"])
        query = numpy_dense(numpy_layer_norm(x, params["norm2"]), cross["projq"])
        key, value = numpy_dense(memory, cross["projk"]), numpy_dense(memory, cross["projv"])
        x = x + numpy_dense(numpy_attention(query, key, value, num_heads), cross["proj"])
    y = numpy_layer_norm(x, params["norm2" if source is None else "norm3"])
    y = numpy_dense(y, params["mlp"]["fc1"])
    activated = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    return x + numpy_dense(activated, params["mlp"]["fc2"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-7), ("bfloat16", 2**-8)])
def test_gelu_and_its_slope_in_both_tails(dtype, tolerance):
    """In bfloat16, only the result is rounded. An erf computed in bfloat16 would lose all digits near -1."""
    x = jnp.linspace(-6, 6, 97).astype(dtype)
    exact = np.float64(x)
    cdf = 0.5 * (1 + np.vectorize(math.erf)(exact / math.sqrt(2)))
    slope = cdf + exact * np.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(np.float64(gelu(x)), exact * cdf, rtol=tolerance, atol=6 * 3e-7)
    computed = jax.vmap(jax.grad(lambda y: gelu(y).astype(jnp.float32)))(x)
    np.testing.assert_allclose(np.float64(computed), slope, rtol=tolerance, atol=3e-6)


@pytest.mark.parametrize("norm_affine", ["applied", "folded"])
@pytest.mark.parametrize("cross", [False, True])
def test_a_block_against_numpy(cross, norm_affine):
    params = layers.unstack_blocks(random_params(build()))["cross_decoder" if cross else "decoder"]["blocks"]["0"]
    rng = np.random.default_rng(0)
    x, source = rng.normal(size=(2, 5, 16)), rng.normal(size=(2, 7, 16))
    # This test runs outside jit, the tests of the whole model inside.
    block = layers.Block(num_heads=2, cross=cross, compute=Compute(norm_affine=norm_affine))
    output = block.apply({"params": params}, jnp.float32(x), jnp.float32(source), None)
    expected = numpy_block(x, params, 2, source if cross else None)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_the_cross_decoder_against_numpy():
    model = build()
    params = layers.unstack_blocks(random_params(model))["cross_decoder"]
    video, (mask, source_mask) = random_video(2, 2), draw_masks(model)
    latents = np.asarray(run(model, "encode", video[:, 0], mask.visible))
    source = np.asarray(run(model, "encode", video[:, 1], source_mask.visible[:, 0]))
    table = tubelets.sinusoid_table(model.num_tokens, TINY["decoder_width"]).astype(np.float64)

    visible = numpy_dense(latents.astype(np.float64), params["encoder_to_decoder"]) + table[mask.visible]
    masked = np.float64(params["mask_token"]) + table[mask.masked]
    memory = numpy_dense(source.astype(np.float64), params["encoder_to_decoder"]) + table[source_mask.visible[:, 0]]
    x = np.concatenate([visible, masked], axis=1)
    for layer in range(TINY["decoder_depth"]):
        x = numpy_block(x, params["blocks"][str(layer)], TINY["decoder_heads"], memory)
    x = numpy_layer_norm(x[:, visible.shape[1] :], params["norm"])
    expected = numpy_dense(x, params["head"])
    cross = run(model, "decode_cross", latents, mask.visible, mask.masked, source[:, None], source_mask.visible)
    np.testing.assert_allclose(cross, expected, rtol=1e-3, atol=1e-4)


# Parameters


def count_parameters(model: mv2mae.MV2MAE) -> dict[str, int]:
    shapes = parameter_shapes(model)
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}


def block_parameters(width: int) -> int:
    """Two norms, qkv without key bias, projection, MLP of ratio 4."""
    return (
        2 * 2 * width
        + (3 * width * width + 2 * width)
        + (width + 1) * width
        + (width + 1) * 4 * width
        + (4 * width + 1) * width
    )


@pytest.mark.parametrize("variant", ["Ti", "S", "B", "L", "H"])
def test_parameter_counts_follow_videomaes_layout(variant):
    model = variants.build(variant, clip_size=(16, 128, 128), tubelet_size=(2, 16, 16))
    counts = count_parameters(model)
    width, decoder_width, patch_dim = model.width, model.decoder_width, 2 * 16 * 16 * 3
    encoder = (patch_dim + 1) * width + model.depth * block_parameters(width) + 2 * width
    decoder = width * decoder_width + decoder_width + model.decoder_depth * block_parameters(decoder_width)
    decoder += 2 * decoder_width + (decoder_width + 1) * patch_dim
    # The cross decoder adds to each block: q and v with bias, k without, projection with; norms of query and memory.
    cross_attention = 4 * decoder_width**2 + 3 * decoder_width + 2 * 2 * decoder_width
    assert counts == {
        "encoder": encoder,
        "decoder": decoder,
        "cross_decoder": decoder + model.decoder_depth * cross_attention,
    }


def test_initialisation_is_videomaes():
    model = build(depth=4)
    init = jax.jit(model.init, compiler_options=tiny.QUICK)
    params = init(jax.random.key(0), random_video(2, 2), *draw_masks(model))["params"]
    kernel = np.asarray(params["encoder"]["blocks"]["mlp"]["fc1"]["kernel"])  # (depth, 32, 128)
    limit = math.sqrt(6 / (32 + 128))
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std((1, 2)), limit / math.sqrt(3), rtol=0.05)
    assert len(np.unique(kernel[:, 0, 0])) == 4  # every layer has a draw of its own
    for name, part, fan_in in (
        ("kernel", params["encoder"]["patch_embed"]["proj"], model.patch_dim),
        ("bias", params["encoder"]["patch_embed"]["proj"], model.patch_dim),
        ("kernel", params["decoder"]["encoder_to_decoder"], TINY["width"]),
    ):
        assert 0.9 * fan_in**-0.5 < np.abs(part[name]).max() <= fan_in**-0.5
    for decoder in ("decoder", "cross_decoder"):
        assert 0 < np.abs(params[decoder]["mask_token"]).max() <= 0.02
        assert not np.any(params[decoder]["head"]["bias"])
    assert (np.asarray(params["decoder"]["mask_token"]) != np.asarray(params["cross_decoder"]["mask_token"])).any()


# Ways of running that must not change the numbers


def loss_and_gradient(model, params, video, masks):
    def loss(params):
        reconstruction = model.apply({"params": params}, video, *masks)
        return sum(jnp.square(part).mean() for part in jax.tree.leaves(reconstruction))

    return jax.jit(jax.value_and_grad(loss), compiler_options=tiny.QUICK)(params)


@functools.cache
def reference():
    model = build()
    video, masks = random_video(2, 2), draw_masks(model)
    return loss_and_gradient(model, random_params(model), video, masks), video, masks


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def in_test_long(**how):
    return pytest.param(how, marks=pytest.mark.long)


@pytest.mark.parametrize(
    "how",
    [
        {"remat": "block", "attention": "per_head"},
        {"layer_loop": "unrolled", "norm_affine": "folded"},
        {"scan_layers": False},
        in_test_long(remat="dots"),
        in_test_long(layer_loop="unrolled", remat="block"),
        in_test_long(scan_layers=False, remat="block"),
        in_test_long(scan_layers=False, remat="dots"),
        in_test_long(attention="per_head", norm_affine="folded", remat="dots"),
    ],
    ids=lambda how: " ".join(f"{name}={value}" for name, value in how.items()),
)
def test_how_the_model_is_computed_changes_no_number(how):
    (expected_loss, expected_gradient), video, masks = reference()
    model, params = build(**how), random_params(build())
    if model.compute.scan_layers:
        assert parameter_shapes(model) == parameter_shapes(build())
        loss, gradient = loss_and_gradient(model, params, video, masks)
    else:
        loss, gradient = loss_and_gradient(model, layers.unstack_blocks(params), video, masks)
        gradient = layers.stack_blocks(gradient)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert_trees_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_unstacking_fits_an_unrolled_model_and_stacking_undoes_it():
    params = random_params(build())
    unrolled = build(scan_layers=False)
    shapes = parameter_shapes(unrolled)
    assert jax.tree.map(jnp.shape, layers.unstack_blocks(params)) == jax.tree.map(jnp.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, layers.stack_blocks(layers.unstack_blocks(params)), params)


def test_every_parameter_receives_a_finite_gradient():
    (_, gradient), _, _ = reference()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters():
    model, half = build(), build(dtype="bfloat16")
    video, masks = random_video(2, 2), draw_masks(model)
    expected = run(model, "__call__", video, *masks)
    actual = jitted(half)({"params": random_params(model)}, video, *masks)
    assert jitted(half, "encode")({"params": random_params(model)}, video[:, 0], masks[0].visible).dtype == jnp.bfloat16
    for name in ("self_target", "self_source", "cross"):
        a, b = np.asarray(getattr(actual, name)), np.asarray(getattr(expected, name))
        assert a.dtype == np.float32
        assert 0 < np.sqrt(((a - b) ** 2).mean()) < 0.03 * b.std()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(random_params(half)))


def test_dense_equals_a_product_on_any_rank():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    dense = layers.Dense(7)
    params = dense.init(jax.random.key(0), x)["params"]
    expected = np.einsum("abci,io->abco", x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(dense.apply({"params": params}, x), expected, atol=1e-5)
    assert nn.Dense(7).init(jax.random.key(0), x)["params"].keys() == params.keys()


def test_a_dense_layer_takes_scale_and_bias_of_a_norm_into_its_weights():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(5, 7)).astype(np.float32), "bias": rng.normal(size=7).astype(np.float32)}
    norm = {"scale": rng.normal(size=5).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
    x = rng.normal(3, 2, (2, 4, 5)).astype(np.float32)
    normed = layers.LayerNorm(Compute(norm_affine="folded"), before_dense=True).apply({"params": norm}, x)
    np.testing.assert_allclose(normed.tokens, numpy_layer_norm(x, {"scale": 1, "bias": 0}), atol=1e-5)
    for use_bias in (True, False):
        own = params if use_bias else {"kernel": params["kernel"]}
        expected = numpy_dense(numpy_layer_norm(x, norm), own)
        actual = layers.Dense(7, use_bias=use_bias).apply({"params": own}, normed)
        np.testing.assert_allclose(actual, expected, atol=1e-4)


# Stochastic depth


def apply_quickly(module: nn.Module, params, *args, seed: int | None = None, **kwargs) -> np.ndarray:
    apply = jax.jit(functools.partial(module.apply, **kwargs), compiler_options=tiny.QUICK)
    return np.asarray(
        apply({"params": params}, *args, rngs=None if seed is None else {"drop_path": jax.random.key(seed)})
    )


def test_drop_path_drops_branches_per_sample_and_keeps_the_mean():
    model = build()
    params = layers.unstack_blocks(random_params(model))["encoder"]["blocks"]["0"]
    fc2 = jax.tree.map(np.zeros_like, params["mlp"]["fc2"])  # leaves attention as the only branch
    params = params | {"mlp": params["mlp"] | {"fc2": fc2}}
    x = np.broadcast_to(np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32), (2000, 5, 32))
    block = layers.Block(num_heads=2)
    branch = apply_quickly(block, params, x[:1], None, None) - x[:1]
    dropped = apply_quickly(block, params, x, None, 0.3, seed=1)
    scale = ((dropped - x) * branch).sum((1, 2)) / (branch**2).sum()
    np.testing.assert_allclose(np.minimum(abs(scale), abs(scale - 1 / 0.7)), 0, atol=1e-4)
    assert abs((scale > 0.5).mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize("scan_layers", [True, pytest.param(False, marks=pytest.mark.long)])
def test_drop_path_grows_with_depth_and_is_off_when_deterministic(scan_layers):
    params = layers.unstack_blocks(random_params(build())["encoder"])
    first_block = params | {"blocks": {"0": params["blocks"]["0"]}}
    if scan_layers:
        params, first_block = layers.stack_blocks(params), layers.stack_blocks(first_block)
    sizes = {"num_tokens": 18, "width": 32, "num_heads": 2, "compute": Compute(scan_layers=scan_layers)}
    inputs = np.asarray(tubelets.patchify(random_video(8), TUBELET)), np.broadcast_to(np.arange(18), (8, 18))
    plain = mv2mae.Encoder(depth=2, **sizes)
    dropping = mv2mae.Encoder(depth=2, drop_path=0.999999, **sizes)
    np.testing.assert_array_equal(apply_quickly(dropping, params, *inputs), apply_quickly(plain, params, *inputs))
    # The first block has rate 0 and the last nearly 1, so that only the first is left.
    alone = apply_quickly(mv2mae.Encoder(depth=1, **sizes), first_block, *inputs)
    dropped = apply_quickly(dropping, params, *inputs, seed=0, deterministic=False)
    np.testing.assert_allclose(dropped, alone, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 2e-2)])
def test_the_gradients_of_the_norm_are_those_that_autodiff_derives(dtype, tolerance):
    def derived(x, scale, bias):
        x = x.astype(jnp.float32)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return (x * scale + bias).astype(dtype)

    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.standard_normal((3, 5, 16)), dtype)
    scale, bias = (jnp.asarray(rng.standard_normal(16), jnp.float32) for _ in range(2))
    cotangent = jnp.asarray(rng.standard_normal(x.shape), dtype)
    actual, pullback = jax.vjp(lambda *a: norms.layer_norm(*a, dtype), x, scale, bias)
    expected, expected_pullback = jax.vjp(derived, x, scale, bias)
    for ours, theirs in zip((actual, *pullback(cotangent)), (expected, *expected_pullback(cotangent)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=tolerance, rtol=tolerance)


# Errors


def test_inputs_that_do_not_fit_are_refused():
    model = build()
    mask, source_mask = draw_masks(model)
    init = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
    with pytest.raises(ValueError, match="uint8 clips of shape \\(B, 6, 16, 24, 3\\), got float32"):
        init(random_video(2, 2).astype(np.float32), mask, source_mask)
    with pytest.raises(ValueError, match="at least one source view"):
        init(random_video(2, 1), mask, None)
    with pytest.raises(ValueError, match="holds 2 source views, source_mask 1"):
        init(random_video(2, 3), mask, source_mask)
