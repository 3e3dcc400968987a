"""Checkpoints: a saved state comes back, arrays that do not fit are named, and other runs load what they share."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import layers
from mv2mae_jax.runs import checkpoint
from mv2mae_jax.state import TrainState

RUN = {"config": json.dumps({"task": "finetune"}), "class_names": ["one", "two"]}


def make_params(width: int = 4, num_classes: int = 3, scan_layers: bool = True):
    """The structure of a classifier, every parameter different."""
    rng = np.random.default_rng(width)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {
        "encoder": {
            "patch_embed": {"kernel": draw(6, width)},
            "blocks": {"norm1": {"scale": draw(2, width)}, "mlp": {"kernel": draw(2, width, width)}},
        },
        "head": {"kernel": draw(width, num_classes)},
    }
    return params if scan_layers else layers.unstack_blocks(params)


def make_state(optimizer=None, with_ema: bool = False, **sizes) -> TrainState:
    optimizer = optax.adamw(0.1) if optimizer is None else optimizer
    state = TrainState.create(make_params(**sizes), optimizer, with_ema)
    if with_ema:
        state = state.replace(ema_params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    return state.replace(step=jnp.int32(5))


def abstract(tree):
    return sharding.abstract(sharding.make_mesh(), tree)


def save(workdir, state, **options) -> None:
    checkpointer = checkpoint.Checkpointer(str(workdir), **options)
    assert checkpointer.save(5, state, RUN)
    checkpointer.close()


def assert_identical(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("with_ema", [False, True])
def test_a_saved_state_comes_back_exactly(tmp_path, with_ema):
    state = make_state(with_ema=with_ema)
    save(tmp_path, state)
    checkpointer = checkpoint.Checkpointer(str(tmp_path))
    assert checkpointer.latest_step() == 5
    restored, run = checkpointer.restore(abstract(state))
    checkpointer.close()
    assert run == RUN
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_identical(restored, state)


def test_logging_is_as_before_when_a_checkpointer_is_closed(tmp_path):
    before = {name: list(logging.getLogger(name).filters) for name in ("", "absl", "asyncio")}
    save(tmp_path, make_state())
    assert {name: logging.getLogger(name).filters for name in before} == before


def test_the_record_of_the_run_can_be_read_without_the_state(tmp_path):
    save(tmp_path, make_state())
    checkpointer = checkpoint.Checkpointer(str(tmp_path))
    assert checkpointer.read_run() == RUN
    checkpointer.close()


def test_saves_are_made_when_due_and_old_ones_go(tmp_path):
    checkpointer = checkpoint.Checkpointer(str(tmp_path), every_steps=2, keep=2)
    assert checkpointer.latest_step() is None
    state = make_state()
    saved = [step for step in range(1, 8) if checkpointer.is_due(step) and checkpointer.save(step, state, RUN)]
    assert saved == [2, 4, 6]
    assert checkpointer.save(7, state, RUN)
    assert not checkpointer.save(7, state, RUN)  # already saved
    checkpointer.close()
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [6, 7]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (dict(num_classes=5), r"head/kernel: saved \(4, 3\), wanted \(4, 5\)"),
        (dict(width=6), r"encoder/patch_embed/kernel: saved \(6, 4\), wanted \(6, 6\)"),
        (dict(scan_layers=False), r"encoder/blocks/0/mlp/kernel: saved nothing, wanted \(4, 4\)"),
        (dict(with_ema=True), r"ema_params/head/kernel: saved nothing, wanted \(4, 3\)"),
        (dict(optimizer=optax.sgd(0.1)), r"opt_state/0/mu/head/kernel: saved \(4, 3\), wanted nothing"),
    ],
    ids=["classes", "width", "scan", "average", "optimizer"],
)
def test_a_state_of_another_shape_is_refused_by_name(tmp_path, wanted, message):
    save(tmp_path, make_state())
    checkpointer = checkpoint.Checkpointer(str(tmp_path))
    with pytest.raises(ValueError, match=message) as refused:
        checkpointer.restore(abstract(make_state(**wanted)))
    assert str(tmp_path) in str(refused.value) and "--workdir" in str(refused.value)
    checkpointer.close()


@pytest.mark.parametrize("with_ema", [False, True], ids=["last", "average"])
@pytest.mark.parametrize("saved_scanned", [True, False])
@pytest.mark.parametrize("wanted_scanned", [True, False])
def test_another_run_takes_the_parameters_it_can_use(tmp_path, with_ema, saved_scanned, wanted_scanned):
    state = make_state(with_ema=with_ema, scan_layers=saved_scanned)
    save(tmp_path, state)
    wanted = make_params(scan_layers=wanted_scanned)
    # The average is the parameters + 1.
    expected = jax.tree.map(lambda leaf: leaf + with_ema, wanted)
    assert_identical(checkpoint.load_params(str(tmp_path), abstract(wanted)), expected)
    # The encoder is loaded without the head.
    assert_identical(checkpoint.load_encoder(str(tmp_path), abstract(wanted["encoder"])), expected["encoder"])


def test_load_encoder_ignores_extra_parameters_and_names_missing_ones(tmp_path):
    save(tmp_path, make_state())
    encoder = make_params()["encoder"]
    without = {"blocks": encoder["blocks"]}
    assert_identical(checkpoint.load_encoder(str(tmp_path), abstract(without)), without)
    more = {**encoder, "norm": {"scale": jnp.ones(4)}}
    with pytest.raises(ValueError, match=r"norm/scale: saved nothing, wanted \(4,\)"):
        checkpoint.load_encoder(str(tmp_path), abstract(more))
    with pytest.raises(ValueError, match=r"(?s)step 5.*patch_embed/kernel: saved \(6, 4\), wanted \(6, 8\)"):
        checkpoint.load_encoder(str(tmp_path), abstract(make_params(width=8)["encoder"]))


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere holds no checkpoint: .* is missing or empty\. A run is"):
        checkpoint.load_encoder(str(tmp_path / "nowhere"), abstract(make_params()["encoder"]))
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="begun holds no checkpoint"):
        checkpoint.load_params(str(tmp_path / "begun"), abstract(make_params()))
