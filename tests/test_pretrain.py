"""The pre-training task: its loss, its evaluation and its pictures."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.dataset import Dataset
from mv2mae_jax import optim
from mv2mae_jax.evaluation import reconstruction
from mv2mae_jax.models import stored_frames, tubelets
from mv2mae_jax.objectives import losses, masking, pretrain
from mv2mae_jax.state import TrainState
from mv2mae_jax.train import make_train_step
from tests import tiny


def make_task(**sections):
    config = tiny.make_config(**sections)
    task = pretrain.Pretrain.from_config(config)
    batch = tiny.make_batch(config, 0)
    count = len(batch["video"])
    batch |= {  # keys that evaluation adds; without source views the stand-ins are empty
        "other_subject": batch["video"][::-1, 1:].copy(),
        "other_action": batch["video"][:, 1:].copy(),
        "has_other_subject": np.ones(count, bool),
        "has_other_action": np.ones(count, bool),
        "valid": np.ones(count, bool),
        "take": np.arange(count, dtype=np.int32),
    }
    return task, jax.jit(task.init)(jax.random.key(0)), task.make_inputs(batch, jax.random.key(1))


@pytest.fixture(scope="module")
def task_and_inputs():
    return make_task()


@functools.cache
def compiled(function, task):
    """The function of (params, inputs), traced and compiled once for all tests with this task."""
    return jax.jit(functools.partial(function, task))


def loss(task, params, inputs):
    return compiled(pretrain.Pretrain.loss, task)(params, inputs)


def predict(task, params, inputs):
    return compiled(pretrain.Pretrain.predict, task)(params, inputs)


def evaluate(task, params, inputs):
    return compiled(reconstruction.evaluate, task)(params, inputs)


def pictures_of(task, params, inputs):
    return compiled(reconstruction.pictures, task)(params, inputs)


def visible_pixels_changed(inputs):
    """The same inputs with other pixels in every token that the encoder sees."""
    patches = np.array(inputs["patches"])
    patches[np.arange(len(patches))[:, None], 0, inputs["target_mask"].visible] ^= 255
    return inputs | {"patches": patches}


def test_visible_tokens_are_no_targets(task_and_inputs):
    """With fixed predictions, the pixels of visible tokens do not change a loss."""
    task, params, inputs = task_and_inputs
    predicted = predict(task, params, inputs)
    before = task.measure(predicted, task.targets(inputs))
    after = task.measure(predicted, task.targets(visible_pixels_changed(inputs)))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_total_is_self_loss_of_both_views_plus_lambda_times_cross_loss(task_and_inputs):
    """The loss is computed from the model's predictions, token by token, in float64."""
    task, params, inputs = make_task(loss=dict(cross_weight=0.5), masking=dict(source_mask_ratio=0.5))
    total, metrics = loss(task, params, inputs)
    predicted = predict(task, params, inputs)
    weights = np.asarray(losses.motion_weights(inputs["motion"], ess_fraction=0.6), np.float64)

    def plain(prediction, view, masked):
        target = np.asarray(tubelets.normalize_pixels(inputs["patches"][:, view]), np.float64)
        values = [
            weights[row, view, token] * np.mean((np.asarray(prediction[row, i], np.float64) - target[row, token]) ** 2)
            for row in range(len(masked))
            for i, token in enumerate(np.asarray(masked[row]))
        ]
        return np.sum(values) / len(values)

    of_target, of_source = inputs["target_mask"].masked, inputs["source_mask"].masked[:, 0]
    self_target, self_source = (
        plain(predicted.self_target, 0, of_target),
        plain(predicted.self_source[:, 0], 1, of_source),
    )
    cross = plain(predicted.cross, 0, of_target)
    assert float(metrics["loss_self"]) == pytest.approx((self_target + self_source) / 2, rel=1e-5)
    assert float(metrics["loss_cross"]) == pytest.approx(cross, rel=1e-5)
    assert float(total) == pytest.approx(self_target + self_source + 0.5 * cross, rel=1e-5)


def test_evaluation_averages_to_the_training_losses(task_and_inputs):
    task, params, inputs = task_and_inputs
    _, metrics = loss(task, params, inputs)
    summary, _ = reconstruction.summarize(task, jax.device_get(evaluate(task, params, inputs)))
    for name in ("loss_self", "loss_cross", "loss_mean_prediction"):
        assert summary[name] == pytest.approx(float(metrics[name]), rel=1e-5)


def test_errors_of_moving_and_static_tokens_make_up_the_plain_loss(task_and_inputs):
    task, params, inputs = task_and_inputs
    plain = dataclasses.replace(task, temperature=np.inf, ess_fraction=None)
    inputs = inputs | {"weights": plain.weights(inputs["motion"])}
    measured = jax.device_get(evaluate(plain, params, inputs))
    summary, _ = reconstruction.summarize(plain, measured)
    share = measured["count_moving"].sum() / (measured["count_moving"] + measured["count_static"]).sum()
    assert 0 < share < 1
    predicted = predict(plain, params, inputs)
    target_loss, _ = plain.measure(predicted, plain.targets(inputs))["loss_cross"]
    count = predicted.cross.shape[0] * predicted.cross.shape[1]
    whole = share * summary["loss_cross_moving"] + (1 - share) * summary["loss_cross_static"]
    assert whole == pytest.approx(float(target_loss.sum()) / count, rel=1e-5)

    motion, hidden = np.asarray(inputs["motion"][:, 0]), np.asarray(inputs["decoded_target"])
    moving = np.take_along_axis(motion > motion.mean(1, keepdims=True), hidden, 1).sum(1)
    np.testing.assert_array_equal(measured["count_moving"], moving)


def test_every_loss_of_an_evaluation_is_of_the_error_that_was_trained(task_and_inputs, monkeypatch):
    monkeypatch.setitem(losses.ERRORS, "tenfold", lambda difference: 10 * jnp.square(difference))
    task, params, inputs = task_and_inputs
    squared = jax.device_get(evaluate(task, params, inputs))
    tenfold = jax.device_get(evaluate(dataclasses.replace(task, error="tenfold"), params, inputs))
    compared = [name for name in squared if name.startswith(("loss_", "sum_"))]
    assert {"loss_self", "loss_cross", "loss_cross_other_subject", "sum_cross_moving"} < set(compared)
    for name in compared:
        np.testing.assert_allclose(tenfold[name], 10 * squared[name], rtol=1e-5, err_msg=name)


def test_a_step_makes_tokens_weights_and_masks_once(monkeypatch):
    """One call for each clip's tokens, energies and weights, and one mask per kind of view."""
    counts = collections.Counter()

    def count(module, name):
        function = getattr(module, name)

        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    for module, name in (
        (tubelets, "patchify"),
        (stored_frames, "motion_energy"),
        (losses, "motion_weights"),
        (losses, "_solve_logits"),
        (masking, "draw_mask"),
    ):
        count(module, name)
    config = tiny.make_config()
    config.loss.temperature, config.loss.ess_fraction = None, 0.5
    task = pretrain.Pretrain.from_config(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = tiny.make_batch(config, 0)
    del batch["motion"]
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1.0)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer, with_ema=False), params)
    counts.clear()
    jax.eval_shape(make_train_step(task, optimizer, schedule, jax.random.key(0)), state, batch)
    assert counts == {"patchify": 1, "motion_energy": 1, "motion_weights": 1, "_solve_logits": 1, "draw_mask": 2}


def test_weights_of_the_target_alone_leave_the_sources_even(task_and_inputs):
    task, params, inputs = task_and_inputs
    of_target = dataclasses.replace(task, weighted_views="target")
    weights = np.array(inputs["weights"])
    weights[:, 1:] = 1.0
    still = inputs | {"weights": weights}
    _, expected = loss(task, params, still)
    _, metrics = loss(of_target, params, inputs)
    _, both = loss(task, params, inputs)
    assert float(metrics["loss_self"]) == pytest.approx(float(expected["loss_self"]), rel=1e-5)
    assert float(metrics["loss_self"]) != pytest.approx(float(both["loss_self"]), rel=1e-5)
    assert float(metrics["loss_cross"]) == pytest.approx(float(both["loss_cross"]), rel=1e-6)


def test_the_same_source_gains_nothing_and_another_changes_the_cross_view_only(task_and_inputs):
    task, params, inputs = task_and_inputs
    measured = jax.device_get(evaluate(task, params, inputs))
    np.testing.assert_allclose(measured["loss_cross_other_action"], measured["loss_cross"], rtol=1e-6)
    assert np.abs(measured["loss_cross_other_subject"] - measured["loss_cross"]).min() > 0
    swapped = jnp.concatenate([inputs["patches"][:, :1], inputs["other_subject"]], axis=1)
    before, after = (
        predict(task, params, inputs),
        predict(task, params, inputs | {"patches": swapped}),
    )
    np.testing.assert_array_equal(before.self_target, after.self_target)
    assert np.abs(before.cross - after.cross).max() > 0


def test_rows_that_only_fill_the_batch_are_left_out(task_and_inputs):
    task, params, inputs = task_and_inputs
    measured = jax.tree.map(np.array, evaluate(task, params, inputs))
    measured["loss_cross"][-1], measured["valid"] = np.nan, np.arange(len(measured["valid"])) < 7
    assert np.isfinite(list(reconstruction.summarize(task, measured)[0].values())).all()


def test_takes_without_a_stand_in_are_left_out_of_the_gain(task_and_inputs):
    task, params, inputs = task_and_inputs
    measured = jax.tree.map(np.array, evaluate(task, params, inputs))
    some = np.arange(8) % 2 == 0
    measured["has_other_subject"], measured["has_other_action"] = some, np.zeros(8, bool)
    summary, _ = reconstruction.summarize(task, measured)
    expected = measured["loss_cross_other_subject"][some].sum() / measured["loss_cross"][some].sum() - 1
    assert summary["cross_gain"] == pytest.approx(expected, abs=1e-6)
    assert "cross_gain_pose" not in summary


def test_standard_error_of_the_gain_is_that_of_a_resampling_of_takes():
    rng = np.random.default_rng(0)
    take = np.repeat(np.arange(60), 5)
    before = rng.gamma(20, 0.01, 60)[take] * rng.uniform(0.9, 1.1, 300)
    after = before * (1.2 + 0.3 * rng.standard_normal(60)[take])
    gain, error = reconstruction.relative_increase(before, after, take)
    groups = before.reshape(60, 5).mean(1), after.reshape(60, 5).mean(1)
    assert gain == pytest.approx(groups[1].sum() / groups[0].sum() - 1)
    draws = rng.integers(60, size=(4000, 60))
    bootstrap = groups[1][draws].sum(1) / groups[0][draws].sum(1) - 1
    assert error == pytest.approx(bootstrap.std(), rel=0.1)


@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
def test_pictures_show_the_input_where_it_is_visible_and_nothing_of_what_is_hidden(target):
    task, params, inputs = make_task(loss=dict(target=target))
    pictures = pictures_of(task, params, inputs)
    hidden = np.zeros((8, task.model.num_tokens), bool)
    hidden[np.arange(8)[:, None], inputs["target_mask"].masked] = True
    hidden_tokens = np.broadcast_to(hidden[..., None], (*hidden.shape, task.model.patch_dim))
    hidden_pixels = tubelets.unpatchify(hidden_tokens, task.model.clip_size, task.model.tubelet_size)
    for name in ("masked", "self_view", "cross_view"):
        shown = np.where(hidden_pixels, 0, pictures[name])
        np.testing.assert_allclose(shown, np.where(hidden_pixels, 0, pictures["target"]), atol=1e-6)

    patches = np.array(inputs["patches"])
    patches[:, 0] = np.where(hidden_tokens, 255 - patches[:, 0], patches[:, 0])
    other = pictures_of(task, params, inputs | {"patches": patches})
    for name in ("masked", "self_view", "cross_view"):
        np.testing.assert_array_equal(pictures[name], other[name])


def test_a_temperature_wins_over_the_automatic_one():
    _, _, inputs = make_task(loss=dict(temperature=60.0, motion_pixel_range=1.0))
    expected = losses.motion_weights(inputs["motion"], temperature=60.0, pixel_range=1.0)
    np.testing.assert_array_equal(inputs["weights"], expected)


@pytest.mark.parametrize("num_source_views", [0, 1])
def test_single_view_model_has_no_cross_loss(num_source_views):
    task, params, inputs = make_task(model=dict(cross_view=False), data=dict(num_source_views=num_source_views))
    _, metrics = loss(task, params, inputs)
    assert "loss_cross" not in metrics and "cross_decoder" not in params
    assert "cross_gain" not in reconstruction.summarize(task, jax.device_get(evaluate(task, params, inputs)))[0]
    assert "cross_view" not in pictures_of(task, params, inputs)


def test_tubes_partial_decoding_and_several_sources_go_together():
    task, params, inputs = make_task(
        data=dict(num_source_views=2), masking=dict(kind="tube", decode_ratio=0.5, source_mask_ratio=0.5)
    )
    total, metrics = loss(task, params, inputs)
    assert inputs["decoded_target"].shape[-1] == inputs["target_mask"].masked.shape[-1] // 2
    assert inputs["decoded_source"].shape[:2] == (8, 2)
    expected = 3 * metrics["loss_self"] + metrics["loss_cross"]  # the target and two sources
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    assert np.isfinite(float(total))


@pytest.mark.parametrize(("fraction", "said"), [(0.0, "no takes held out"), (0.25, r"\d+ takes held out")])
def test_a_run_says_how_many_takes_are_held_out(synthetic_set, fraction, said):
    config = tiny.make_config(data=dict(dir=str(synthetic_set), holdout_fraction=fraction))
    facts = pretrain.Pretrain.from_config(config, Dataset.from_config(config)).describe()
    assert re.search(rf"elements; {said}$", facts["data"])
