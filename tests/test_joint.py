"""The joint decoder: its input, its loss, and its evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_base
from console.errors import UserError
from mv2mae_jax import config as configs
from mv2mae_jax import config_checks
from mv2mae_jax.evaluation import reconstruction
from mv2mae_jax.models import layers, tubelets
from mv2mae_jax.monitoring import flops
from mv2mae_jax.objectives import losses
from tests import tiny
from tests.test_models import numpy_block, numpy_dense, numpy_layer_norm
from tests.test_pretrain import evaluate, loss, make_task, pictures_of, predict
from tests.test_sharding import assert_same_numbers

JOINT = {"decoder": "joint", "cross_view": False}


def make_joint(**sections):
    return make_task(model=JOINT, masking=dict(target_mask_ratio=0.75, source_mask_ratio=0.5), **sections)


@pytest.fixture(scope="module")
def task_and_inputs():
    return make_joint(data=dict(num_source_views=2))


def changed(patches, view, positions):
    """The same tokens uint8[B, V, N, P], with other pixels at some positions of one view."""
    patches = np.array(patches)
    patches[np.arange(len(patches))[:, None], view, positions] ^= 255
    return patches


def test_one_decoder_of_the_same_size_replaces_both(task_and_inputs):
    _, params, _ = task_and_inputs
    _, paired, _ = make_task()
    assert set(params) == {"encoder", "joint_decoder"}
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params["joint_decoder"], paired["decoder"])]
    assert shapes[0] == shapes[1]
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], paired["encoder"])  # drawn from the same key


def test_predictions_depend_on_the_visible_tokens_of_every_view_and_on_no_hidden_token(task_and_inputs):
    task, params, inputs = task_and_inputs
    reconstruct = functools.partial(predict, task)
    before = reconstruct(params, inputs)
    assert before.self_target is None and before.self_source is None
    assert before.joint_source.shape == (8, 2, *inputs["decoded_source"].shape[2:], task.model.patch_dim)
    masks = [inputs["target_mask"], *(jax.tree.map(lambda x, s=s: x[:, s], inputs["source_mask"]) for s in range(2))]
    for view, mask in enumerate(masks):
        hidden = reconstruct(params, inputs | {"patches": changed(inputs["patches"], view, mask.masked)})
        jax.tree.map(np.testing.assert_array_equal, before, hidden)
        seen = reconstruct(params, inputs | {"patches": changed(inputs["patches"], view, mask.visible)})
        for name in ("cross", "joint_source"):
            difference = np.abs(getattr(seen, name) - getattr(before, name))
            assert difference.reshape(-1, task.model.patch_dim).max(axis=1).min() > 0


def test_the_order_of_tokens_does_not_matter(task_and_inputs):
    task, params, _ = task_and_inputs
    model, num_tokens = task.model, task.model.num_tokens
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 12, model.width), np.float32)
    rows = np.stack([rng.permutation(3 * num_tokens)[:20] for _ in range(2)]).astype(np.int32)
    decode = jax.jit(lambda *tokens: model.apply({"params": params}, *tokens, method="decode_joint"))
    expected = decode(latents, rows[:, :12], rows[:, 12:])
    order, back = rng.permutation(12), rng.permutation(8)
    found = decode(latents[:, order], rows[:, :12][:, order], rows[:, 12:][:, back])
    np.testing.assert_allclose(found, expected[:, back], rtol=1e-4, atol=1e-5)


def test_views_that_change_places_take_each_others_positions(task_and_inputs):
    """Exchanging content and masks of two sources equals exchanging the positions of their latents."""
    task, params, inputs = task_and_inputs
    model, mask, source_mask = task.model, inputs["target_mask"], inputs["source_mask"]
    exchanged = inputs | {
        "patches": inputs["patches"][:, [0, 2, 1]],
        "source_mask": jax.tree.map(lambda x: x[:, ::-1], source_mask),
        "decoded_source": inputs["decoded_source"][:, ::-1],
    }
    before, after = (predict(task, params, x) for x in (inputs, exchanged))
    assert np.abs(before.cross - after.cross).max() > 0
    assert np.abs(before.joint_source - after.joint_source[:, ::-1]).max() > 0

    apply = jax.jit(lambda method, *tokens: model.apply({"params": params}, *tokens, method=method), static_argnums=0)
    visible = [mask.visible, *source_mask.visible.swapaxes(0, 1)]
    latents = [apply("encode_patches", inputs["patches"][:, v], visible[v]) for v in range(3)]
    decoded = [inputs["decoded_target"], *inputs["decoded_source"].swapaxes(0, 1)]
    row = [0, 2 * model.num_tokens, model.num_tokens]  # the first position of each view after the exchange
    side_by_side = [np.concatenate([x[v] + row[v] for v in range(3)], axis=1) for x in (visible, decoded)]
    ends = np.cumsum([rows.shape[1] for rows in decoded])[:-1]
    expected = np.split(apply("decode_joint", np.concatenate(latents, axis=1), *side_by_side), ends, axis=1)
    for found, wanted in zip((after.cross, after.joint_source[:, 1], after.joint_source[:, 0]), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_predictions_against_numpy(task_and_inputs):
    """The decoder reads the latents of all views, then mask tokens. A table holds a position per view and token."""
    task, params, inputs = task_and_inputs
    params, model = tiny.random_like(params), task.model
    found = predict(task, params, inputs)
    positions = [[inputs["target_mask"].visible, *inputs["source_mask"].visible.swapaxes(0, 1)]]
    positions += [[inputs["decoded_target"], *inputs["decoded_source"].swapaxes(0, 1)]]
    encode = jax.jit(lambda *clip: model.apply({"params": params}, *clip, method="encode_patches"))
    latents = [np.asarray(encode(inputs["patches"][:, v], positions[0][v]), np.float64) for v in range(3)]
    visible, decoded = (
        np.concatenate([np.asarray(rows) + v * model.num_tokens for v, rows in enumerate(part)], axis=1)
        for part in positions
    )
    decoder = layers.unstack_blocks(params)["joint_decoder"]
    table = tubelets.sinusoid_table(3 * model.num_tokens, model.decoder_width).astype(np.float64)
    x = np.concatenate(
        [
            numpy_dense(np.concatenate(latents, axis=1), decoder["encoder_to_decoder"]) + table[visible],
            np.float64(decoder["mask_token"]) + table[decoded],
        ],
        axis=1,
    )
    for layer in range(model.decoder_depth):
        x = numpy_block(x, decoder["blocks"][str(layer)], model.decoder_heads)
    expected = numpy_dense(numpy_layer_norm(x[:, visible.shape[1] :], decoder["norm"]), decoder["head"])
    num_decoded = positions[1][0].shape[1]
    np.testing.assert_allclose(found.cross, expected[:, :num_decoded], rtol=1e-3, atol=1e-3)
    of_sources = expected[:, num_decoded:].reshape(found.joint_source.shape)
    np.testing.assert_allclose(found.joint_source, of_sources, rtol=1e-3, atol=1e-3)


def test_the_loss_is_the_mean_over_the_views(task_and_inputs):
    """The loss is computed from the predictions in float64, with the motion weights of each view."""
    task, params, inputs = task_and_inputs
    total, metrics = loss(task, params, inputs)
    predicted = predict(task, params, inputs)
    weights = np.asarray(losses.motion_weights(inputs["motion"], ess_fraction=0.6), np.float64)
    wanted = np.asarray(tubelets.normalize_pixels(inputs["patches"]), np.float64)
    of_views = []
    for view in range(3):
        prediction = predicted.cross if view == 0 else predicted.joint_source[:, view - 1]
        rows = np.asarray(inputs["decoded_target"] if view == 0 else inputs["decoded_source"][:, view - 1])
        token = np.arange(8)[:, None], view, rows
        error = ((np.float64(prediction) - wanted[token]) ** 2).mean(axis=-1)
        of_views.append((weights[token] * error).mean())
    assert float(total) == pytest.approx(np.mean(of_views), rel=1e-5)
    assert float(metrics["loss_joint"]) == float(total)
    assert float(metrics["loss_cross"]) == pytest.approx(of_views[0], rel=1e-5)
    assert set(metrics) == {"loss", "loss_joint", "loss_cross", "loss_mean_prediction", "ess_fraction"}


def test_evaluation_says_what_the_target_gains_from_the_other_views(task_and_inputs):
    task, params, inputs = task_and_inputs
    _, metrics = loss(task, params, inputs)
    measured = jax.device_get(evaluate(task, params, inputs))
    summary, _ = reconstruction.summarize(task, measured)
    for name in ("loss_joint", "loss_cross", "loss_mean_prediction"):
        assert summary[name] == pytest.approx(float(metrics[name]), rel=1e-5)
    # The stand-ins for the pose are the take's own sources.
    assert summary["cross_gain_pose"] == pytest.approx(0, abs=1e-6)
    patches = jnp.concatenate([inputs["patches"][:, :1], inputs["other_subject"]], axis=1)
    _, of_others = loss(task, params, inputs | {"patches": patches})
    gain = float(of_others["loss_cross"]) / float(metrics["loss_cross"]) - 1
    assert gain != 0 and summary["cross_gain"] == pytest.approx(gain, abs=1e-5)
    assert {"psnr_cross", "loss_cross_moving", "loss_cross_static"} <= set(summary)
    assert not [name for name in summary if "self" in name]


def test_pictures_show_the_joint_decoder_and_nothing_of_what_is_hidden(task_and_inputs):
    task, params, inputs = task_and_inputs
    pictures = pictures_of(task, params, inputs)
    assert set(pictures) == {"target", "masked", "joint_view", "source", "weights"}
    hidden = changed(inputs["patches"], 0, inputs["target_mask"].masked)
    other = pictures_of(task, params, inputs | {"patches": hidden})
    np.testing.assert_array_equal(pictures["joint_view"], other["joint_view"])
    assert np.abs(pictures["joint_view"] - pictures["masked"]).max() > 0


def test_products_are_those_of_the_encoder_per_view_and_of_one_decoder_over_all_tokens():
    task, params, inputs = make_joint()
    model = task.model
    visible = [inputs[name].visible.shape[-1] for name in ("target_mask", "source_mask")]
    decoded = sum(inputs[name].shape[-1] for name in ("decoded_target", "decoded_source"))

    def blocks(depth, width, num_tokens):
        return depth * (2 * num_tokens * 12 * width**2 + 4 * num_tokens**2 * width)  # dense layers, attention

    forward = sum(2 * n * model.patch_dim * model.width + blocks(model.depth, model.width, n) for n in visible)
    forward += 2 * sum(visible) * model.width * model.decoder_width
    forward += blocks(model.decoder_depth, model.decoder_width, sum(visible) + decoded)
    forward += 2 * decoded * model.decoder_width * model.patch_dim
    batch = {"video": jax.ShapeDtypeStruct((8, 2, *model.clip_size, 3), np.uint8), "motion": inputs["motion"]}
    assert flops.training_flops(task, params, batch) == 3 * 8 * forward


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"model.cross_view": True}, "set model.cross_view=False with it"),
        ({"data.num_source_views": 0}, "the joint decoder needs at least two views"),
        ({"loss.cross_weight": 0.5}, "which model.decoder = 'joint' does not have"),
        ({"model.decoder": "joined"}, "is not one of mv2mae, joint"),
    ],
)
def test_mistakes_in_the_config_are_named(synthetic_set, mistake, message):
    settings = {"data.dir": str(synthetic_set), "model.decoder": "joint", "model.cross_view": False}
    overrides = [*tiny.OVERRIDES, *(f"{key}={value}" for key, value in settings.items())]
    config_checks.validate(configs.load(pretrain_base.__file__, overrides))
    with pytest.raises(UserError, match=message):
        overrides += [f"{key}={value}" for key, value in mistake.items()]
        config_checks.validate(configs.load(pretrain_base.__file__, overrides))


def test_another_number_of_views_is_refused(task_and_inputs):
    task, params, inputs = task_and_inputs
    fewer = dict(inputs, patches=inputs["patches"][:, :2], decoded_source=inputs["decoded_source"][:, :1])
    fewer["source_mask"] = jax.tree.map(lambda x: x[:, :1], inputs["source_mask"])
    with pytest.raises(UserError, match="built for 3 views"):
        task.predict(params, fewer)


@pytest.mark.long
def test_eight_devices_equal_one(tmp_path):
    meshes = [{"data": 2, "fsdp": 4}]
    assert_same_numbers(tmp_path, slack=2.0, meshes=meshes, steps=2, min_fsdp_elements=64, model=JOINT)
