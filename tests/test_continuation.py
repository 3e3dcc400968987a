"""Settings that may change when a run is resumed, and the values that `auto` must keep."""

import types

import jax
import pytest

from mv2mae_jax.config import base_of, flatten
from mv2mae_jax.models import compute, variants
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import resume
from tests import tiny


@pytest.fixture
def go_on():
    """`go_on(saved config, config, saved values of auto, present values of auto, allowed changes)` resumes a run."""

    def check(saved, config, was, now, allowed=(), manifest="of the set"):
        record = {"config": saved.to_json(), "manifest_sha256": "of the set"} | (
            {} if was is None else {"settled": was}
        )
        model = types.SimpleNamespace(compute=types.SimpleNamespace(settled=lambda: now))
        dataset = types.SimpleNamespace(prepared=types.SimpleNamespace(content_digest=lambda: manifest))
        objective = types.SimpleNamespace(dataset=dataset, model=model)
        checkpointer = types.SimpleNamespace(read_run=lambda: record, directory="runs/a/checkpoints")
        return resume.check_same_run(config, objective, checkpointer, allowed)

    return check


def settled_on(backend: str, config=None) -> dict[str, str]:
    return compute.settle(config or tiny.make_config(), backend, fused_attention=backend == "gpu").settled()


def test_auto_that_would_be_another_dtype_is_refused(go_on):
    config, on_cpu, on_gpu = tiny.make_config(), settled_on("cpu"), settled_on("gpu")
    for was, now, first, second in ((on_cpu, on_gpu, "float32", "bfloat16"), (on_gpu, on_cpu, "bfloat16", "float32")):
        with pytest.raises(ValueError) as refused:
            go_on(config, config, was, now)
        assert f"  compute_dtype was '{first}' by auto, now '{second}' by auto\n" in str(refused.value)
        assert f"Set them back (--config.compute_dtype={first})" in str(refused.value)
        assert "attention" not in str(refused.value), "attention may change, because it changes only rounding"
    assert go_on(config, config, on_cpu, on_gpu, ["compute_dtype"])


def test_a_value_that_is_written_out_is_compared_with_what_auto_was(go_on):
    auto, written = tiny.make_config(), tiny.make_config(compute_dtype="float32")
    on_cpu, on_gpu = settled_on("cpu"), settled_on("gpu", written)
    assert on_gpu["compute_dtype"] == "float32"
    assert go_on(auto, written, on_cpu, settled_on("cpu", written)) == []
    (line,) = go_on(auto, written, on_cpu, on_gpu)
    assert "model.attention was chunked, is xla; model.layer_loop was rolled, is unrolled" in line


def test_checkpoints_that_do_not_say_what_auto_was_go_on(go_on):
    config = tiny.make_config()
    assert go_on(config, config, None, settled_on("gpu")) == []
    # A checkpoint of a version in which fewer keys could be auto.
    was = {"compute_dtype": "float32"}
    assert go_on(config, config, was, settled_on("cpu")) == []


def test_other_batches_of_an_evaluation_have_other_masks_and_are_refused(go_on):
    config, other = tiny.make_config(eval=dict(batch_size=8)), tiny.make_config(eval=dict(batch_size=4))
    with pytest.raises(ValueError, match=r"eval\.batch_size was 8, now 4"):
        go_on(config, other, {}, {})
    assert go_on(config, other, {}, {}, ["eval.batch_size"]) == []
    draw, key = Pretrain.from_config(config).draw_masks, jax.random.key(0)
    whole, second = draw(8, jax.random.fold_in(key, 0)), draw(4, jax.random.fold_in(key, 1))  # as evaluations do
    assert not (whole["target_mask"].visible[4:] == second["target_mask"].visible).all()


@pytest.mark.parametrize("text", ["process 7 on elsewhere, started today\n", ""], ids=["runs", "has ended"])
def test_a_workdir_that_another_run_has_taken_is_not_saved_into(tmp_path, text):
    """On file systems whose locks do not hold between machines, both runs get the lock."""
    with resume.locked(str(tmp_path)):
        resume.check_still_ours(str(tmp_path))
        (tmp_path / resume.LOCK).write_text(text)
        with pytest.raises(ValueError, match="was taken by another run"):
            resume.check_still_ours(str(tmp_path))
    assert (tmp_path / resume.LOCK).read_text() == text, "the text is the other run's"
    resume.check_still_ours(str(tmp_path))  # without a lock, as in tests
    with resume.locked(str(tmp_path)):
        (tmp_path / resume.LOCK).unlink()
        resume.check_still_ours(str(tmp_path))


def test_a_run_that_goes_on_with_other_data_says_what_that_means(go_on):
    config = tiny.make_config()
    (line,) = go_on(config, config, {}, {}, ["data.dir"], manifest="of the grown set")
    assert "takes that are held out now may have been trained on" in line


@pytest.mark.parametrize("make", [tiny.make_config, tiny.make_finetune_config])
def test_every_key_that_is_auto_is_settled(make):
    config = make()
    auto = {key for key, value in flatten(base_of(config)) if value == "auto"}
    settled = variants.from_config(config).compute.settled()
    assert auto - {"data.cache"} == settled.keys(), "a cache does not change the batches"
    assert "auto" not in settled.values()
