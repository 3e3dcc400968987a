"""Rates against published peaks, and traces of single steps."""

import dataclasses
import glob
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mv2mae_jax import config, config_checks, training_run
from mv2mae_jax.distributed import chips
from mv2mae_jax.monitoring import flops, perf
from mv2mae_jax.objectives.pretrain import Pretrain
from tests import tiny


class StoppedClock:
    """A clock that shows four steps a second, and a quarter of the time spent waiting."""

    def read(self):
        return 4.0, 0.25


def test_mfu_is_the_share_of_the_published_peak(monkeypatch):
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"))
    cost = perf.StepCost(clips=32, flops=10e12, mesh=mesh)
    values = cost.read(StoppedClock())
    assert "perf/mfu" not in values  # no peak is published for a CPU
    assert values["perf/clips_per_second"] == 128 and values["data/wait_fraction"] == 0.25
    assert values["perf/tflops_per_second_per_device"] == pytest.approx(40)
    monkeypatch.setattr(cost, "peak", 100e12)
    monkeypatch.setattr(cost, "num_devices", 2)
    assert cost.read(StoppedClock())["perf/mfu"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_devices_are_known_by_the_names_that_jax_gives_them(kind, teraflops):
    assert chips.peak_flops_per_second(kind) == (teraflops and teraflops * 1e12)


def test_flops_of_a_step_grow_with_the_batch():
    config_ = tiny.make_config()
    task = Pretrain.from_config(config_)
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = tiny.make_batch(config_, 0)
    half = {key: value[: len(value) // 2] for key, value in batch.items()}
    assert flops.training_flops(task, params, batch) == pytest.approx(2 * flops.training_flops(task, params, half))


def test_flops_do_not_depend_on_how_attention_is_computed():
    config_ = tiny.make_config()
    config_.compute_dtype = "bfloat16"
    config_.model.width, config_.model.decoder_width = 8 * config_.model.num_heads, 8 * config_.model.decoder_heads
    batch, counts = tiny.make_batch(config_, 0), []
    for config_.model.attention in ("xla", "chunked", "per_head", "cudnn"):  # "cudnn" is counted, but not run
        task = Pretrain.from_config(config_)
        plain = dataclasses.replace(task, model=task.model.with_compute(attention="xla"))
        params = jax.eval_shape(plain.init, jax.random.key(0))
        counts.append(flops.training_flops(task, params, batch))
    assert len(set(counts)) == 1


@pytest.mark.parametrize(
    ("capability", "fused"), [("9.0", True), ("8.0", True), ("12.0", True), ("7.5", False), ("gfx90a", False)]
)
def test_gpus_with_fused_attention_are_those_from_ampere_on(capability, fused):
    assert chips.has_fused_attention(types.SimpleNamespace(compute_capability=capability)) is fused
    assert not chips.has_fused_attention(jax.devices()[0]), "a CPU has no compute capability"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_cpu_is_that_of_the_process():
    found = perf.peak_memory_bytes(jax.devices()[0])
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # as Linux counts it
    assert found == pytest.approx(int(kilobytes) * 1024, rel=0.01)


@pytest.mark.parametrize(
    ("pages", "environment", "libc", "advised"),
    [
        ("always [madvise] never", "", ("glibc", "2.36"), True),
        ("always [madvise] never", "glibc.malloc.check=1", ("glibc", "2.35"), True),
        ("always [madvise] never", "glibc.malloc.hugetlb=1", ("glibc", "2.36"), False),
        ("always [madvise] never", "", ("glibc", "2.31"), False),  # older than the tunable
        ("always [madvise] never", "", ("", ""), False),  # musl, macOS
        ("[always] madvise never", "", ("glibc", "2.36"), False),
        ("always madvise [never]", "", ("glibc", "2.36"), False),
    ],
)
def test_a_run_on_a_cpu_advises_large_pages_where_they_are_given_on_request(
    pages, environment, libc, advised, tmp_path, monkeypatch
):
    monkeypatch.setattr(perf, "LARGE_PAGES", tmp_path / "enabled")
    perf.LARGE_PAGES.write_text(pages)
    monkeypatch.setenv("GLIBC_TUNABLES", environment)
    monkeypatch.setattr(perf.platform, "libc_ver", lambda: libc)
    assert ("GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in perf.advice_on_pages()) is advised
    perf.LARGE_PAGES.unlink()
    assert perf.advice_on_pages() == ""


def test_the_steps_asked_for_are_traced(tmp_path):
    step_function = jax.jit(lambda x: jnp.sin(x) @ x)
    x = step_function(jnp.ones((8, 8)))
    profiler = perf.Profiler(str(tmp_path), config.parse_steps("3:5"))
    ended = []
    for step in range(1, 8):
        with profiler.step(step):
            x = step_function(x)
        if profiler.finish(step, x):
            ended.append(step)
    profiler.close()
    assert ended == [4]
    (trace,) = glob.glob(f"{tmp_path}/plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(trace).planes
    names = [event.name for plane in planes for line in plane.lines for event in line.events]
    assert names.count("train") == 2


def test_steps_that_the_run_does_not_reach_are_told():
    config_ = tiny.make_config(eval=dict(at_steps=(3, 100, 600)), profile_steps="95:101")
    assert training_run.never_reached(config_, 600) == {}
    assert training_run.never_reached(config_, 100) == {"beyond the end": "eval.at_steps 600"}
    assert training_run.never_reached(config_, 99) == {
        "beyond the end": "eval.at_steps 100, eval.at_steps 600, profile_steps 95:101"
    }


@pytest.mark.parametrize("text", ["5", "5:3", "0:2", "a:b", "3:3"])
def test_steps_that_are_no_range_are_refused(text):
    config_ = tiny.make_config()
    config_.profile_steps = text
    with pytest.raises(ValueError, match=r"profile_steps = .* must be FIRST:END"):
        config_checks.validate(config_)
