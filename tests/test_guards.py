"""Updates that are not finite are skipped and counted, and many in a row stop the run. Spikes are reported."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.store import takes
from mv2mae_jax import optim
from mv2mae_jax.monitoring import guards, metrics
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.state import TrainState
from mv2mae_jax.train import make_train_step
from tests import tiny


class Poisoned:
    """A task whose loss (poison 1) or gradient (poison 2) is not finite if the batch says so."""

    def __init__(self):
        self.params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}

    def make_inputs(self, batch, key):
        return batch

    def loss(self, params, inputs):
        # sqrt(0) is finite, its gradient is not.
        root = jnp.sqrt(jnp.where(inputs["poison"] == 2, 0.0 * params["bias"], 1.0 + params["bias"] ** 2)).sum()
        loss = (params["kernel"] ** 2).mean() + root + jnp.where(inputs["poison"] == 1, jnp.nan, 0.0)
        return loss.mean(), {"loss": loss.mean()}


@pytest.fixture(scope="module")
def step_and_state():
    config = tiny.make_config()
    schedule = optim.Schedule(peak_learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    task = Poisoned()
    state = TrainState.create(task.params, optimizer, with_ema=True)
    return jax.jit(make_train_step(task, optimizer, schedule, jax.random.key(0), ema_decay=0.5)), state


@pytest.mark.parametrize("poison", [1, 2], ids=["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped(step_and_state, poison):
    step, state = step_and_state
    fine, poisoned = ({"poison": jnp.full(3, value)} for value in (0, poison))
    first, told = step(state, fine)
    assert told["skipped_update"] == 0
    skipped, told = step(first, poisoned)
    assert told["skipped_update"] == 1
    assert not (math.isfinite(told["loss"]) and math.isfinite(told["gradient_norm"]))
    assert int(skipped.step) == 2, "a skipped step is counted, so that data and randomness advance"
    jax.tree.map(np.testing.assert_array_equal, skipped.replace(step=first.step), first)
    # The next update is the one that this step would make without the poisoned step before it.
    after, told = step(skipped, fine)
    expected, _ = step(first.replace(step=skipped.step), fine)
    assert told["skipped_update"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, expected.params)
    assert not np.array_equal(after.params["kernel"], first.params["kernel"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_learning_rate_that_is_applied_is_the_one_that_is_told(name):
    """With zero gradients only weight decay moves a kernel: by the learning rate times the decay."""
    config = tiny.make_config(optimizer=dict(name=name, weight_decay=0.5)).optimizer
    schedule = optim.Schedule(peak_learning_rate=1.0, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    optimizer = optim.make_optimizer(config, schedule)

    class Flat(Poisoned):
        def loss(self, params, inputs):
            loss = 0.0 * (params["kernel"].sum() + params["bias"].sum()) + jnp.where(inputs["poison"], jnp.nan, 0.0)
            return loss.sum(), {"loss": loss.sum()}

    task = Flat()
    step = jax.jit(make_train_step(task, optimizer, schedule, jax.random.key(0)))
    state = TrainState.create(task.params, optimizer, with_ema=False)
    for number in range(10):
        before, (state, told) = state.params["kernel"], step(state, {"poison": jnp.float32(2 <= number < 7)})
        applied = 1 - float(state.params["kernel"][1, 2] / before[1, 2])
        assert told["skipped_update"] == (2 <= number < 7)
        expected = 0.5 * (1 + math.cos(math.pi * number / 10))  # skipped steps count: the cosine ends with the run
        assert float(told["learning_rate"]) == pytest.approx(expected, abs=1e-6)
        assert applied == pytest.approx(0.0 if told["skipped_update"] else 0.5 * expected, abs=1e-5)


def observe(guard, skipped: list[bool], first_step: int = 1):
    for step, value in enumerate(skipped, start=first_step):
        guard.remember(step, {"take": np.array([step, step + 100]), "video": np.zeros(1)})
        guard.observe(step, {"skipped_update": jnp.float32(value)})


def named(batch) -> list[str]:
    return [f"t{number}" for number in batch["take"]]


def test_skipped_updates_in_a_row_stop_the_run_with_steps_takes_and_checkpoint(tmp_path):
    for step in (2, 4, 7, "5.damaged"):
        (tmp_path / str(step)).mkdir()
    guard = guards.SkippedUpdates(3, str(tmp_path), named)
    with pytest.raises(FloatingPointError) as stopped:
        observe(guard, [True, True, False, False, False, True, True, True, True])
    message = str(stopped.value)
    assert "in steps 6 to 8; these 3 updates were skipped" in message
    assert f"Newest checkpoint from before: step 4 in {tmp_path}. Nothing was deleted." in message
    assert message.endswith("\n  step 6: t106, t6\n  step 7: t107, t7\n  step 8: t108, t8")


def test_a_row_is_counted_across_a_restart(tmp_path):
    before = guards.SkippedUpdates(4, str(tmp_path), named)
    observe(before, [False, True, True, True])
    after = guards.SkippedUpdates(4, str(tmp_path), named, in_a_row=before.in_a_row)
    with pytest.raises(FloatingPointError, match=r"in steps 2 to 5; these 4 .*none, none was written before"):
        observe(after, [True], first_step=5)
    observe(guards.SkippedUpdates(4, str(tmp_path), named, in_a_row=3), [False, True, True, True], first_step=5)


def window(losses) -> metrics.Window:
    return [{"loss": np.float32(loss)} for loss in losses]


@pytest.mark.parametrize(
    ("losses", "spikes"),
    [
        ([1.0] * 30, []),
        ([*[1.0] * 12, 3.5, *[1.0] * 5], [73]),
        ([*[1.0] * 12, 2.9, *[1.0] * 5], []),  # less than three times the median
        ([1.0, 1.0, 1.0, 1.0, 9.0, 1.0], []),  # too few before it
        ([1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 9.0], [67]),
        ([*np.linspace(5, 1, 20)], []),  # the falling loss at the start of a run is no spike
        ([*[1.0] * 6, math.inf], [67]),
    ],
)
def test_a_spike_stands_out_from_the_losses_before_it(losses, spikes):
    lines = guards.loss_spikes(60 + len(losses), window(losses))
    assert [int(line.split("at step ")[1].split(",")[0]) for line in lines] == spikes


@pytest.fixture
def prepared(synthetic_set):
    return takes.open_prepared(synthetic_set)


def batch_with(*damaged: int) -> dict[str, np.ndarray]:
    return {"video": np.zeros((8, 1)), "damaged": np.array([*damaged, *[-1] * (8 - len(damaged))], np.int32)}


def test_damaged_samples_are_counted_logged_and_stop_the_run_beyond_the_stated_share(prepared, tmp_path, capsys):
    guard = guards.DamagedSamples(str(tmp_path), prepared, 0.005, first_step=0)
    assert guard.take_out(1, batch_with()).keys() == {"video"}
    assert not (tmp_path / "damaged_records.jsonl").exists()
    guard.take_out(2, batch_with(7, 7))
    guard.take_out(3, batch_with(9))
    assert guard.count == 3
    rows = [json.loads(line) for line in (tmp_path / "damaged_records.jsonl").read_text().splitlines()]
    assert [(row["step"], row["record"]) for row in rows] == [(2, 7), (3, 9)]
    assert (rows[0]["take"], rows[0]["view"]) == (prepared.views["take"][7], prepared.views["view"][7])
    assert rows[0]["reason"] == "record 7 could not be read, and now can"
    assert capsys.readouterr().out.count("Damaged, replaced by another sample") == 2

    # 0.5 % of 1000 samples are five. A run that resumes at step 2 forgets the damage of later steps.
    again = guards.DamagedSamples(str(tmp_path), prepared, 0.005, first_step=2, count=2)
    again.take_out(3, batch_with(9, 9, 9))
    with pytest.raises(takes.DamagedRecord, match=r"6 samples .* up to step 4, more than .* = 0.005 of 1000"):
        again.take_out(4, batch_with(9))
    rows = [json.loads(line)["step"] for line in (tmp_path / "damaged_records.jsonl").read_text().splitlines()]
    assert rows == [2, 3, 4]
    guards.DamagedSamples(str(tmp_path), prepared, 0.005, first_step=0, count=40).take_out(2000, batch_with(9))


def test_the_tiny_model_trains_on_after_a_poisoned_batch():
    """With the real task, motion energies of NaN make the weights and the loss not finite. That update is skipped."""
    config = tiny.make_config()
    task = Pretrain.from_config(config)
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1.0)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    state = TrainState.create(jax.jit(task.init)(jax.random.key(0)), optimizer, with_ema=False)
    step = jax.jit(make_train_step(task, optimizer, schedule, jax.random.key(1)))
    batch = tiny.make_batch(config, 0)
    poisoned = batch | {"motion": np.full_like(batch["motion"], np.nan)}
    skipped, told = step(state, poisoned)
    assert told["skipped_update"] == 1
    jax.tree.map(np.testing.assert_array_equal, skipped.params, state.params)
    after, told = step(skipped, batch)
    assert told["skipped_update"] == 0 and math.isfinite(told["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
