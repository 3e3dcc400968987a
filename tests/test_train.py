"""The training step and the loop. Accumulation and interruptions do not change the results."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

import run as program
from mv2mae_jax import optim, train
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import while_training
from mv2mae_jax.monitoring import metrics
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import checkpoint
from mv2mae_jax.state import TrainState
from tests import faults, tiny

ROOT = pathlib.Path(__file__).parent.parent


def assert_close(first, second, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def assert_identical(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def plain_run():
    return tiny.run_steps(tiny.make_config(), 5)


def test_accumulated_parts_equal_the_whole_batch(plain_run):
    state, history = tiny.run_steps(tiny.make_config(optimizer=dict(accumulation_steps=4)), 5)
    for parts, whole in zip(history, plain_run[1], strict=True):
        assert parts == pytest.approx(whole, rel=2e-4)
    assert_close(state.params, plain_run[0].params, rtol=1e-3, atol=1e-4)


def test_a_step_equals_its_definition():
    """One step of AdamW, computed from the loss's gradient without mesh and donation."""
    config = tiny.make_config()
    task = Pretrain.from_config(config)
    schedule = optim.Schedule(peak_learning_rate=0.01, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    params = tiny.random_like(jax.eval_shape(task.init, jax.random.key(0)))
    state = TrainState.create(params, optimizer, with_ema=True)
    step_key, batch = jax.random.key(1), tiny.make_batch(config, 0)
    step = train.make_train_step(task, optimizer, schedule, step_key, ema_decay=0.9)
    new_state, metrics = jax.device_get(jax.jit(step)(state, batch))

    inputs = jax.jit(task.make_inputs)(batch, jax.random.fold_in(step_key, 0))
    (loss, _), grads = jax.device_get(jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, inputs))
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    gradient_norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(grads)))
    assert float(metrics["gradient_norm"]) == pytest.approx(gradient_norm, rel=1e-5)

    def adamw(path, parameter, gradient):
        decay = 0.05 * parameter if path[-1].key == "kernel" else 0.0
        return parameter - 0.01 * (gradient / (np.abs(gradient) + 1e-8) + decay)  # bias-corrected first step

    expected = jax.tree_util.tree_map_with_path(adamw, params, grads)
    # The first step depends on the gradient's sign alone, which rounding may change where the gradient is near zero.
    sure = jax.tree.map(lambda g: np.abs(g) > 1e-5, grads)
    jax.tree.map(
        lambda a, b, s: np.testing.assert_allclose(np.where(s, a, 0), np.where(s, b, 0), rtol=1e-3, atol=2e-5),
        new_state.params,
        expected,
        sure,
    )
    averaged = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, params, new_state.params)
    assert_close(new_state.ema_params, averaged)


def test_steps_differ_in_their_masks():
    config = tiny.make_config()
    task, batch = Pretrain.from_config(config), tiny.make_batch(config, 0)
    key = jax.random.key(1)
    masks = [task.make_inputs(batch, jax.random.fold_in(key, step))["target_mask"].visible for step in (0, 0, 1)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_pictures_take_the_masks_of_the_first_rows_of_their_batch():
    """Those rows alone are cut into tokens again, so a smaller batch must draw the same masks for them."""
    for masking in ({}, {"decode_ratio": 0.5}, {"kind": "tube"}):
        draw, key = Pretrain.from_config(tiny.make_config(masking=masking)).draw_masks, jax.random.key(3)
        jax.tree.map(
            lambda of_all, of_few: np.testing.assert_array_equal(of_all[:3], of_few), draw(8, key), draw(3, key)
        )


def test_pictures_cut_only_the_clips_that_they_show(tmp_path, monkeypatch):
    cut, config = [], tiny.make_config(eval=dict(num_pictures=2))
    evaluation = types.SimpleNamespace(
        area=lambda task, config: "eval",
        batches=lambda task, config, **share: iter([{"x": np.zeros((4, 1), np.float32)}]),
        inputs=lambda task, batch, key: cut.append(len(batch["x"])) or batch,
        evaluate=lambda task, params, inputs: inputs,
        pictures=lambda task, params, inputs: inputs,
        summarize=lambda task, samples: ({}, {}),
    )
    monkeypatch.setitem(while_training.EVALUATIONS, config.task, evaluation)
    monkeypatch.setattr(while_training.visualize, "write", lambda *pictures: {})
    evaluate = train.make_evaluation(config, None, sharding.make_mesh(), jax.random.key(0), str(tmp_path))
    evaluate(types.SimpleNamespace(eval_params={}), 1, metrics.Reporter(str(tmp_path), first_step=0, total_steps=1))
    assert cut == [4, 2]


def test_an_evaluation_reads_no_further_ahead_than_training_does(tmp_path, monkeypatch):
    """Every batch that waits for the device occupies device memory."""
    done = []

    def slow(values):
        time.sleep(0.05)
        done.append(len(done))
        return values

    class Evaluation:
        def area(self, task, config):
            return "eval"

        def inputs(self, task, batch, key):
            return batch

        def evaluate(self, task, params, batch):
            return {"x": jax.pure_callback(slow, jax.ShapeDtypeStruct((1,), np.float32), batch["x"])}

        def batches(self, task, config, **share):
            for index in range(10):
                assert len(done) >= index - metrics.IN_FLIGHT
                yield {"x": np.float32([index])}

        def summarize(self, task, samples):
            return {"sum": float(samples["x"].sum())}, {"order": samples["x"].tolist()}

    config = tiny.make_config(eval=dict(num_pictures=0))
    monkeypatch.setitem(while_training.EVALUATIONS, config.task, Evaluation())
    state = types.SimpleNamespace(eval_params={})
    evaluate = train.make_evaluation(config, None, sharding.make_mesh(), jax.random.key(0), str(tmp_path))
    reporter = metrics.Reporter(str(tmp_path), first_step=0, total_steps=1, tensorboard=False)
    assert evaluate(state, 1, reporter) == ({"eval/sum": 45.0}, {"order": list(range(10))})
    state.eval_params["kernel"] = np.float32([1, np.inf])
    with pytest.raises(FloatingPointError, match="After step 2, 1 of 1 parameters are not finite: kernel"):
        evaluate(state, 2, reporter)


def run(workdir, data_dir, *overrides, check=True):
    command = [sys.executable, "run.py", *faults.arguments(workdir, data_dir, *overrides)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def final_state(workdir):
    with checkpoint.ocp.CheckpointManager(os.path.abspath(workdir / "checkpoints")) as manager:
        step = manager.latest_step()
        restored = manager.restore(
            step, args=checkpoint.ocp.args.Composite(state=checkpoint.ocp.args.StandardRestore())
        )
    return step, restored["state"]


@pytest.mark.slow
def test_an_interrupted_run_equals_an_uninterrupted_one(synthetic_set, tmp_path):
    """A run that is stopped and started again by the same command ends equal bit for bit, with EMA and accumulation."""
    options = ("optimizer.ema_decay=0.9", "optimizer.accumulation_steps=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = run(whole, synthetic_set, *options)
    assert "6/6  100%" in first.stdout

    # Reading the data fails after three batches, which stands for a machine that was taken away.
    code = """
import os, sys, time
from data import pipeline
train_batches = pipeline.train_batches
def failing(*args, **kwargs):
    for number, batch in enumerate(train_batches(*args, **kwargs)):
        if number == 3:
            while not os.path.isdir(sys.argv[2].removeprefix("--workdir=") + "/checkpoints/2"):
                time.sleep(0.1)  # saves are asynchronous
            raise SystemExit(9)
        yield batch
pipeline.train_batches = failing
import run
sys.exit(run.main(sys.argv[1:]))
"""
    arguments = ["--config=configs/pretrain_base.py", f"--workdir={parts}", f"--config.data.dir={synthetic_set}"]
    arguments += tiny.overrides(*tiny.OVERRIDES, *options)
    stopped = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert stopped.returncode == 9, stopped.stderr
    second = run(parts, synthetic_set, *options)
    assert "Continuing from step 2" in second.stdout

    (step, state), (same_step, same_state) = final_state(whole), final_state(parts)
    assert step == same_step == 6
    assert_identical(state, same_state)
    assert faults.history(whole) == faults.history(parts)
    assert (
        json.loads((whole / "metrics.json").read_text())["metrics"]
        == (json.loads((parts / "metrics.json").read_text())["metrics"])
    )
    assert list((whole / "pictures").glob("*.png"))

    # A finished run has nothing left to do; a new run can start from its parameters.
    results = (parts / "metrics.json").read_bytes()
    assert "Nothing is left to do" in run(parts, synthetic_set, *options).stdout
    assert (parts / "metrics.json").read_bytes() == results
    started = run(
        tmp_path / "from", synthetic_set, f"init_from={parts}", "total_steps=1", "optimizer.base_learning_rate=1e-9"
    )
    assert f"parameters taken from {parts}." in started.stdout
    _, new_state = final_state(tmp_path / "from")
    assert_close(new_state["params"], state["ema_params"], rtol=1e-4)


def test_init_from_names_what_does_not_fit(synthetic_set, tmp_path, capsys):
    shapes = jax.eval_shape(Pretrain.from_config(tiny.make_config()).init, jax.random.key(0))
    tiny.save_run(tmp_path / "small", tiny.random_like(shapes))
    init_from = f"init_from={tmp_path / 'small'}"
    assert program.main(faults.arguments(tmp_path / "other", synthetic_set, init_from, "model.width=48")) == 2
    assert "encoder/patch_embed/proj/kernel: saved (384, 24), wanted (384, 48)" in capsys.readouterr().err


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_the_run(synthetic_set, tmp_path):
    options = ("optimizer.base_learning_rate=1e30", "limits.skipped_updates=2")
    stopped = run(tmp_path / "run", synthetic_set, *options, check=False)
    assert stopped.returncode == 2
    told = re.search(r"not finite in steps (\d) to (\d); these 2 updates were skipped", stopped.stderr)
    assert int(told[2]) == int(told[1]) + 1
    assert f"step {told[1]}: S001" in stopped.stderr and "Nothing was deleted" in stopped.stderr
