"""Reports for absent hardware: products, loops, traffic and collectives are counted, and bounds follow from them."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mv2mae_jax import config as configs
from mv2mae_jax.distributed.chips import CHIPS
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.topology import __main__ as topology
from mv2mae_jax.topology import hlo, hlo_cost, roofline
from tests import tiny

TINY = [
    "compute_dtype=float32",
    "global_batch_size=4",
    "data.num_frames=4",
    "data.crop_size=(32, 32)",
    "model.width=24",
    "model.depth=2",
    "model.num_heads=2",
    "model.decoder_width=16",
    "model.decoder_depth=2",
    "model.decoder_heads=2",
    "model.tubelet_size=(2, 8, 8)",
    "loss.temperature=inf",  # no search for a temperature: quicker to compile
]
NUM_TOKENS, VISIBLE, PATCH = 32, 10, 2 * 8 * 8 * 3  # int(0.7 * 32) = 22 tokens are masked


def tiny_config(*overrides: str):
    return configs.load("configs/ntu120.py", [*TINY, *overrides])


def compile_here(config) -> jax.stages.Compiled:
    return topology.lower_train_step(config, jax.devices()[:1]).compile(compiler_options=tiny.QUICK)


@pytest.fixture(scope="module")
def scanned():
    return compile_here(tiny_config("model.scan_layers=True"))


@pytest.fixture(scope="module")
def unrolled():
    return compile_here(tiny_config("model.scan_layers=False"))


@pytest.mark.long
def test_scanned_layers_count_as_often_as_they_run(scanned, unrolled):
    looped, flat = (hlo_cost.matmul_flops(hlo.parse(program.as_text())) for program in (scanned, unrolled))
    assert looped == pytest.approx(flat, rel=1e-6)
    # XLA's own count takes each of three stacks of two layers for one layer, so that hlo_cost counts by itself.
    assert scanned.cost_analysis()["flops"] < 0.8 * unrolled.cost_analysis()["flops"]


def test_traffic_agrees_with_xla_where_nothing_loops(unrolled):
    moved = hlo_cost.bytes_moved(hlo.parse(unrolled.as_text()), lambda array: array.bytes).total()
    assert moved == pytest.approx(unrolled.cost_analysis()["bytes accessed"], rel=0.1)


def forward_flops(*, width: int, depth: int, decoder_width: int, decoder_depth: int) -> float:
    """FLOPs of one sample's forward pass by formula: two views are encoded and decoded, and one is cross-decoded."""

    def block(tokens: int, width: int, source: int = 0) -> float:
        dense = 2 * tokens * 12 * width**2  # qkv 3, projection 1, MLP 8
        attention = 2 * 2 * tokens**2 * width
        if source:
            dense += 2 * (2 * tokens + 2 * source) * width**2  # queries and projection; keys and values
            attention += 2 * 2 * tokens * source * width
        return dense + attention

    masked = NUM_TOKENS - VISIBLE
    encoder = 2 * VISIBLE * PATCH * width + depth * block(VISIBLE, width)
    project, head = 2 * VISIBLE * width * decoder_width, 2 * masked * decoder_width * PATCH
    decoder = project + decoder_depth * block(NUM_TOKENS, decoder_width) + head
    cross = 2 * project + decoder_depth * block(NUM_TOKENS, decoder_width, source=VISIBLE) + head
    return 2 * (encoder + decoder) + cross


@pytest.mark.parametrize("scan_layers", [True, False])
def test_model_flops_are_three_forward_passes(scan_layers):
    config = tiny_config(f"model.scan_layers={scan_layers}", "model.remat=block")
    expected = 3 * 4 * forward_flops(width=24, depth=2, decoder_width=16, decoder_depth=2)
    assert topology.model_flops(config) == pytest.approx(expected, rel=1e-9)


def test_the_program_computes_what_the_model_needs(scanned):
    executed = hlo_cost.matmul_flops(hlo.parse(scanned.as_text()))
    needed = topology.model_flops(tiny_config())
    # Pixels need no gradient, which saves one of the patch embedding's three products.
    saved = 4 * 2 * 2 * VISIBLE * PATCH * 24
    assert executed == pytest.approx(needed - saved, rel=1e-6)


COLLECTIVES = """
import jax, jax.numpy as jnp, json
from jax.sharding import NamedSharding, PartitionSpec as P
from mv2mae_jax.topology import roofline, __main__ as topology
from mv2mae_jax.distributed import sharding
from tests.test_topology import tiny_config
sharding.MIN_FSDP_ELEMENTS = 64
mesh = sharding.make_mesh(data=2, fsdp=4)

def loss(weights, x):  # weights f32[3, 64, 64], cut along fsdp; x f32[16, 64], rows cut over all devices
    return jnp.square(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]).mean()

cut, batch = NamedSharding(mesh, P(None, "fsdp")), sharding.batch_sharding(mesh)
fsdp = jax.jit(jax.grad(loss), in_shardings=(cut, batch), out_shardings=cut)
data = jax.jit(lambda w, x: (x @ w).sum(0), in_shardings=(sharding.replicated(mesh), batch),
               out_shardings=sharding.replicated(mesh))
looped = jax.jit(jax.shard_map(
    lambda x: jax.lax.fori_loop(0, 5, lambda i, t: jax.lax.psum(t * x.sum(), "fsdp") / 4, jnp.ones(16)),
    mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(), check_vma=False))
weights, x = jnp.zeros((3, 64, 64)), jnp.zeros((16, 64))
step = topology.lower_train_step(tiny_config("global_batch_size=16", "mesh.data=2", "mesh.fsdp=4"), jax.devices())
programs = {"fsdp": fsdp.lower(weights, x), "data": data.lower(weights[0], x), "looped": looped.lower(jnp.zeros(8))}
programs["step"] = step
print(json.dumps({k: roofline.read_program(p.compile().as_text())["collectives"] for k, p in programs.items()}))
"""


@pytest.fixture(scope="module")
def eight_devices():
    """Collectives by kind of the programs above, compiled in a process with eight devices."""
    flags = f"--xla_force_host_platform_device_count=8 {tiny.QUICK_FLAGS}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", COLLECTIVES], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.long
def test_collectives_of_eight_devices(eight_devices):
    found = eight_devices
    # One sum of f32[64] over eight devices; a ring sends each element twice, less its own share.
    assert found["data"] == {
        "all-reduce": {"runs": 1, "runs_in_loops": 0, "bytes": 256.0, "wire_bytes": 2 * 7 / 8 * 256}
    }
    # f32[16] summed over the four devices of an axis, five times in a loop.
    assert found["looped"] == {
        "all-reduce": {"runs": 5, "runs_in_loops": 5, "bytes": 5 * 64.0, "wire_bytes": 5 * 2 * 3 / 4 * 64}
    }
    # Each of three layers' f32[64, 64] is gathered over fsdp in a loop, at least once.
    gathered = found["fsdp"]["all-gather"]
    assert gathered["bytes"] >= 3 * 64 * 64 * 4
    assert gathered["runs"] >= 1


@pytest.mark.long
def test_fsdp_gathers_weights_and_no_activations(eight_devices):
    """Without `sharding.whole`, products would follow the weights' sharding, and activations would be exchanged."""
    step = eight_devices["step"]
    assert set(step) <= {"all-gather", "reduce-scatter", "all-reduce"}
    params = jax.eval_shape(Pretrain.from_config(tiny_config()).init, jax.random.key(0))
    weights = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(params))
    assert 0 < step["all-gather"]["bytes"] <= 2 * weights  # once for the forward pass, at most once more for backward


# Three ways in which the TPU compiler writes a product as a convolution, from compiled training steps.
CONVOLUTIONS = {
    "bf16[192,154,64] a b0[192,154,154] b1[192,154,64] window={size=192 stride=191 lhs_dilate=192}, "
    "dim_labels=0bf_0io->0bf": 2 * 192 * 154 * 154 * 64,
    "f32[48,512,512] a b0[48,512,64] b1[48,512,64] window={size=48 stride=48 pad=47_47 lhs_dilate=47 rhs_reversal=1}, "
    "dim_labels=0bf_0oi->0fb": 2 * 48 * 512 * 512 * 64,
    "bf16[32,154,6,64] a b0[32,154,384,1] b1[6,64,384,1] window={size=1x6 pad=0_0x5_5 rhs_reversal=0x1}, "
    "dim_labels=0bf1_1oi0->0b1f": 2 * 32 * 154 * 384 * 384,
    "bf16[1536,384] a b0[4928,1536] b1[4928,384] dim_labels=fb_io->bf": 2 * 4928 * 1536 * 384,
}


@pytest.mark.parametrize("written", CONVOLUTIONS)
def test_products_written_as_convolutions(written):
    out, _, lhs, rhs, rest = written.split(" ", 4)
    text = f"""HloModule m

ENTRY %main (a: bf16[1], b: bf16[1]) -> bf16[1] {{
  %a = bf16{lhs[2:]} parameter(0)
  %b = bf16{rhs[2:]} parameter(1)
  ROOT %c = {out} convolution(%a, %b), {rest}
}}
"""
    assert hlo_cost.matmul_flops(hlo.parse(text)) == CONVOLUTIONS[written]


TRAFFIC = """HloModule m, num_partitions=4

%fused (p0: f32[12,8,128], p1: s32[], p2: f32[12,8,128]) -> f32[12,8,128] {
  %p0 = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = f32[12,8,128]{2,1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %layer = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %twice = f32[1,8,128]{2,1,0:T(8,128)} add(%layer, %layer)
  ROOT %new = f32[12,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p2, %twice, %p1, %zero, %zero)
}

%condition (c: (s32[], f32[12,8,128], f32[12,8,128])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %bound = s32[]{:T(128)} constant(12)
  %counter = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%body (t: (s32[], f32[12,8,128], f32[12,8,128])) -> (s32[], f32[12,8,128], f32[12,8,128]) {
  %t = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%t), index=0
  %old = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%t), index=1
  %into = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%t), index=2
  %written = f32[12,8,128]{2,1,0:T(8,128)} fusion(%old, %i, %into), kind=kLoop, calls=%fused
  ROOT %next = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) tuple(%i, %old, %written)
}

ENTRY %main (x: (s32[], f32[12,8,128], f32[12,8,128]), y: bf16[100,64]) -> bf16[100,64] {
  %x = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %y = bf16[100,64]{1,0:T(8,128)(2,1)} parameter(1)
  %loop = (s32[], f32[12,8,128]{2,1,0}, f32[12,8,128]{2,1,0}) while(%x), condition=%condition, body=%body
  %near = bf16[100,64]{1,0:T(8,128)(2,1)S(1)} copy(%y)
  ROOT %double = bf16[100,64]{1,0:T(8,128)(2,1)S(1)} add(%near, %near)
}
"""


def test_main_memory_traffic_of_slices_loops_and_fast_memory():
    module = hlo.parse(TRAFFIC)
    layer = 8 * 128 * 4  # each of 12 rounds reads and writes one layer, not the whole stacks
    padded = 104 * 128 * 2  # rows are padded to a multiple of 8, columns to 128; copy and sum lie in VMEM
    moved = hlo_cost.bytes_moved(module, lambda array: array.hbm_bytes)
    assert moved["copy"] == padded
    counters = moved["fusion"] - 12 * 2 * layer
    assert 0 <= counters <= 12 * 128 * 4  # the loop's counter, a padded scalar
    assert "add" not in moved


ASYNCHRONOUS = """HloModule m, num_partitions=4

%first (p: f32[2,8]) -> f32[8,8] {
  %p = f32[2,8] parameter(0)
  ROOT %g1 = f32[8,8] all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%second (q: f32[2,8]) -> f32[8,8] {
  %q = f32[2,8] parameter(0)
  ROOT %g2 = f32[8,8] all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%all-reduce-scatter.1 (r: f32[8,8]) -> f32[2,8] {
  %r = f32[8,8] parameter(0)
  %zero = s32[] constant(0)
  %sum = f32[8,8] all-reduce(%r), channel_id=8, replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}, to_apply=%add
  ROOT %own = f32[2,8] dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={2,8}
}

%all-reduce-scatter.2 (t: f32[4,8]) -> f32[1,8] {
  %t = f32[4,8] parameter(0)
  %zero.2 = s32[] constant(0)
  %sum.2 = f32[4,8] all-reduce(%t), channel_id=8, replica_groups=mesh['data'=1,'fsdp'=4] {'fsdp'}, to_apply=%add
  ROOT %own.2 = f32[1,8] dynamic-slice(%sum.2, %zero.2, %zero.2), dynamic_slice_sizes={1,8}
}

ENTRY %main (x: f32[2,8], y: f32[4,8]) -> (f32[2,8], f32[1,8]) {
  %x = f32[2,8] parameter(0)
  %y = f32[4,8] parameter(1)
  %started = f32[8,8] fusion(%x), kind=kCustom, calls=%first
  %finished = f32[8,8] fusion(%x), kind=kCustom, calls=%second
  %scattered = f32[2,8] fusion(%finished), kind=kCustom, calls=%all-reduce-scatter.1
  %other = f32[1,8] fusion(%y), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %both = (f32[2,8], f32[1,8]) tuple(%scattered, %other)
}
"""


def test_asynchronous_collectives_of_tpus_count_once_and_joined_sums_each():
    gather, scatter, other = hlo_cost.collectives(hlo.parse(ASYNCHRONOUS))
    assert (other.kind, other.bytes, other.group_size) == ("reduce-scatter", 128.0, 4)
    assert (gather.kind, gather.bytes, gather.group_size, gather.runs) == ("all-gather", 256.0, 4, 1)
    assert gather.wire_bytes == 3 / 4 * 256
    assert (scatter.kind, scatter.bytes, scatter.group_size) == ("reduce-scatter", 256.0, 2)
    assert scatter.wire_bytes == 1 / 2 * 256


# A shortened program of the TPU compiler. A gather starts, runs beside a sum, and ends; its buffers pass through all.
IN_FLIGHT = """HloModule m, num_partitions=4

%start (p: f32[2,8]) -> (f32[2,8], f32[8,8], s32[2]) {
  %p = f32[2,8] parameter(0)
  %g1 = f32[8,8] all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %s = (f32[2,8]{1,0}, f32[8,8]{1,0}, s32[2]{0:S(4)}) custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}

%beside (a: f32[100], q: f32[2,8], r: f32[8,8], f: s32[2]) -> (f32[100], f32[2,8], f32[8,8], f32[8,8], s32[2]) {
  %a = f32[100] parameter(0)
  %q = f32[2,8] parameter(1)
  %r = f32[8,8] parameter(2)
  %f = s32[2]{0:S(4)} parameter(3)
  %twice = f32[100] add(%a, %a)
  %g2 = f32[8,8] all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %t = (f32[100]{0}, f32[2,8]{1,0}, f32[8,8]{1,0}, f32[8,8]{1,0}, s32[2]{0:S(4)}) tuple(%twice, %q, %r, %g2, %f)
}

%done (q: f32[2,8], r: f32[8,8], f: s32[2]) -> f32[8,8] {
  %q.1 = f32[2,8] parameter(0)
  %r.1 = f32[8,8] parameter(1)
  %f.1 = s32[2]{0:S(4)} parameter(2)
  %g3 = f32[8,8] all-gather(%q.1), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %d = f32[8,8]{1,0} custom-call(%q.1, %r.1, %g3, %f.1), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[2,8], y: f32[100]) -> f32[8,8] {
  %x = f32[2,8] parameter(0)
  %y = f32[100] parameter(1)
  %started = (f32[2,8]{1,0}, f32[8,8]{1,0}, s32[2]{0:S(4)}) fusion(%x), kind=kCustom, calls=%start
  %x1 = f32[2,8]{1,0} get-tuple-element(%started), index=0
  %r1 = f32[8,8]{1,0} get-tuple-element(%started), index=1
  %f1 = s32[2]{0:S(4)} get-tuple-element(%started), index=2
  %went = (f32[100]{0}, f32[2,8]{1,0}, f32[8,8]{1,0}, f32[8,8]{1,0}, s32[2]{0:S(4)}) fusion(%y, %x1, %r1, %f1), \
kind=kOutput, calls=%beside
  %x2 = f32[2,8]{1,0} get-tuple-element(%went), index=1
  %r2 = f32[8,8]{1,0} get-tuple-element(%went), index=2
  %f2 = s32[2]{0:S(4)} get-tuple-element(%went), index=4
  %gathered = f32[8,8]{1,0} fusion(%x2, %r2, %f2), kind=kCustom, calls=%done
  %moved = (f32[8,8]{1,0}, f32[8,8]{1,0}, u32[]{:S(2)}) collective-permute-start(%gathered), channel_id=9
  ROOT %there = f32[8,8]{1,0} collective-permute-done(%moved)
}
"""


def test_traffic_of_a_collective_counts_where_it_starts():
    moved = hlo_cost.bytes_moved(hlo.parse(IN_FLIGHT), lambda array: array.hbm_bytes)
    gather, work, permute = 2 * 8 * 4 + 8 * 8 * 4, 2 * 100 * 4, 2 * 8 * 8 * 4
    assert moved == {"fusion": gather + work, "collective-permute-start": permute}


@pytest.mark.parametrize(
    ("shape", "padded"),
    [
        ("f32[12,192,154,64]{2,3,1,0:T(8,128)}", 12 * 192 * 64 * 256 * 4),  # 154 is the minor one
        ("bf16[4,154]{1,0:T(4,128)(2,1)}", 4 * 256 * 2),
        ("f32[192]{0:T(256)}", 256 * 4),
        ("f32[10,10]{1,0}", 400),
        ("pred[]", 1),
    ],
)
def test_padding(shape, padded):
    dtype, dims, layout = hlo.ARRAY.findall(shape)[0]
    array = hlo.Array(dtype=dtype, dims=tuple(int(d) for d in dims.split(",") if d), layout=layout)
    assert array.padded_bytes == padded


def test_a_loop_of_unknown_length_is_refused():
    endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x))
    module = hlo.parse(endless.lower(jnp.ones(3)).compile().as_text())
    with pytest.raises(hlo.LoopOfUnknownLength, match="fixed length"):
        hlo_cost.matmul_flops(module)


def test_bounds_come_from_the_slowest_of_three():
    chip = dataclasses.replace(
        CHIPS["v5e"],
        flops_per_second=100.0,
        hbm_bytes_per_second=10.0,
        ici_bytes_per_second=1.0,
        clock_hz=5.0,
    )
    program = {
        "matmul_flops": 400.0,
        "hbm_bytes": 80.0,
        "bytes_accessed": 160.0,
        "collectives": {"all-reduce": {"wire_bytes": 2.0}, "all-gather": {"wire_bytes": 1.0}},
        "compiler_cycles": 100,
    }
    bound = roofline.bounds(program, chip, flops_needed=300.0)
    assert (bound["compute_seconds"], bound["memory_seconds"], bound["interconnect_seconds"]) == (4.0, 8.0, 3.0)
    assert (bound["step_seconds"], bound["bound_by"]) == (8.0, "memory")
    assert bound["mfu"] == 300 / (8 * 100)
    assert bound["mfu_if_all_bytes_were_hbm"] == 300 / (16 * 100)
    assert (bound["compiler_seconds"], bound["mfu_by_compiler"]) == (20.0, 300 / (20 * 100))


def test_clocks_of_the_published_peaks():
    """The clocks of other chips are derived from their peaks. v4's clock is published, which checks the derivation."""
    assert CHIPS["v4"].flops_per_second / (2 * 128 * 128 * 8) == pytest.approx(CHIPS["v4"].clock_hz, rel=0.01)


REFUSALS = {
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (601.71G) exceeds available HBM (15.75G). HLO module: jit_train_step.": (
        601.71 * 2**30,
        15.75 * 2**30,
    ),
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.50G of 15.75G "
    "hbm. Exceeded hbm capacity by 1.75G.": (17.5 * 2**30, 15.75 * 2**30),
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM.": (None, None),
}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.model.variant=XL", "model.variant = 'XL' is not one of Ti, S, B, L, H"),
        ("--config.masking.target_mask_ratio=1.0", "leaves 0 visible"),
        ("--batch_per_chip=0", "--batch_per_chip=0 must be at least 1"),
    ],
)
def test_what_a_run_would_refuse_is_refused(option, message, tmp_path, capsys):
    arguments = ["--config=configs/ntu120.py", "--topology=v5e:4x4", f"--output={tmp_path}", option]
    assert topology.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals_for_lack_of_memory(message):
    used, available = REFUSALS[message]
    assert topology.read_out_of_memory(message) == {"memory_used_bytes": used, "memory_available_bytes": available}


@pytest.mark.parametrize("message", ["INTERNAL: hbm", "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem"])
def test_other_errors_are_not_taken_for_lack_of_memory(message):
    assert topology.read_out_of_memory(message) is None


class Refused(jax.stages.Lowered):
    """A lowered step that the compiler refuses for lack of memory."""

    def __init__(self):
        pass

    def as_text(self):
        return "program"

    def compile(self):
        raise jax.errors.JaxRuntimeError(next(iter(REFUSALS)))


def test_a_step_that_does_not_fit_is_a_report(monkeypatch):
    monkeypatch.setattr(topology, "lower_train_step", lambda *_: Refused())
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.52")
    where = topology.Slice(name="v5e:2x2", devices=[None] * 4, num_hosts=1, chip=CHIPS["v5e"])
    record = topology.report(tiny_config("global_batch_size=64"), where)
    assert not record["fits"] and record["memory_used_bytes"] == 601.71 * 2**30
    row = roofline.table([{"title": "tiny", **record}]).splitlines()[-1]
    assert "646.1 of 16.9: does not fit" in row and "16" in row


def test_a_step_with_a_loop_of_unknown_length_still_has_its_memory(monkeypatch):
    endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x)).lower(jnp.ones(3))
    monkeypatch.setattr(topology, "lower_train_step", lambda *_: endless)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.52")
    where = topology.Slice(name="v6e:2x2", devices=[None] * 4, num_hosts=1, chip=CHIPS["v6e"])
    record = topology.report(tiny_config("global_batch_size=64"), where)
    assert record["fits"] and record["memory_per_device"]["total"] > 0
    assert "another batch" in record["not_counted"]
    row = roofline.table([{"title": "tiny", **record}]).splitlines()[-1]
    assert "0.0 of 34.4 |  |" in row and row.count("|") == len(roofline.COLUMNS) + 1


def test_flags_of_the_compiler_make_another_report(monkeypatch):
    monkeypatch.setattr(topology, "lower_train_step", lambda *_: Refused())
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.52")
    where = topology.Slice(name="v5e:2x2", devices=[None] * 4, num_hosts=1, chip=CHIPS["v5e"])
    config = tiny_config("global_batch_size=64")
    plain = topology.report(config, where)
    assert topology.report(config, where, plain) is plain
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_rwb_fusion=false")
    flagged = topology.report(config, where, plain)
    assert flagged is not plain and flagged["compiler_flags"] == "--xla_tpu_rwb_fusion=false"


def test_the_search_reports_each_batch_and_goes_on_from_its_files(monkeypatch, tmp_path, capsys):
    compiled = []

    def report(config, where, known, frame_size):
        batch = config.global_batch_size // where.num_chips
        if known:
            return known
        compiled.append(batch)
        record = {"batch_per_chip": float(batch), "compile_seconds": 60.0, "fits": batch <= 100}
        used = 1e9 + batch * 0.15e9
        if record["fits"]:
            return {**record, "memory_per_device": {"total": used}, "chip_memory_bytes": where.chip.hbm_bytes}
        return {**record, "memory_used_bytes": used, "memory_available_bytes": 16.2e9}

    monkeypatch.setattr(topology, "report", report)
    where = topology.Slice(name="v5e:2x2", devices=[None] * 4, num_hosts=1, chip=CHIPS["v5e"])
    config = tiny_config("global_batch_size=64", "model.remat=dots")
    records, said = topology.search_batch("tiny", config, where, None, str(tmp_path))
    assert [record["batch_per_chip"] for record in records] == sorted(compiled)
    assert said == "tiny, v5e:2x2, remat=dots: 96 samples per chip fit, 0.8 of 16.2 GB are free; 104 do not fit."
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("v5e:2x2: 16 samples per chip, remat=dots ... 3.4 of 17.2 GB; compiled in 60 s: ")
    assert "104 samples per chip, remat=dots ... 16.6 of 16.2 GB, does not fit; compiled" in lines[-2] + lines[-1]
    number = len(compiled)
    assert topology.search_batch("tiny", config, where, None, str(tmp_path))[1] == said
    assert len(compiled) == number and "as compiled before" in capsys.readouterr().out
    cut = sorted(tmp_path.glob("*.json"))[0]
    cut.write_text(cut.read_text()[:40])  # as a file is that was not written whole
    assert topology.search_batch("tiny", config, where, None, str(tmp_path))[1] == said
    assert len(compiled) == number + 1 and f"{cut} is damaged" in capsys.readouterr().out
    with pytest.raises(ValueError, match="66 is not a whole number of samples for each of 4 chips"):
        topology.search_batch("tiny", tiny_config("global_batch_size=66"), where, None, str(tmp_path))


def test_input_rate_of_the_hosts():
    where = topology.Slice(name="v5e:4x4", devices=[None] * 16, num_hosts=4, chip=CHIPS["v5e"])
    rate = topology.input_rate(tiny_config("global_batch_size=64"), where, step_seconds=0.5)
    assert rate["clips_per_second"] == 64 * 2 / 0.5
    assert rate["clips_per_second_per_host"] == 64
    assert rate["bytes_per_second_per_host"] == 64 * 4 * 32 * 32 * 3


def test_errors_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="v4, v5e, v5p, v6e"):
        topology.find_slice("v9:2x2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"requirements-tpu-aot\.txt"):
        topology.find_slice("v5e:2x2")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed in this environment"
)


@pytest.mark.slow
@needs_libtpu
def test_the_compiler_refuses_a_batch_that_does_not_fit():
    """The compiler's wording differs between versions. The wording of the installed one must be understood."""
    where = topology.find_slice("v5e:2x2")
    record = topology.report(tiny_config("compute_dtype=bfloat16", "global_batch_size=4000000"), where)
    assert not record["fits"]
    assert 0.9 * where.chip.hbm_bytes < record["memory_available_bytes"] <= where.chip.hbm_bytes
    assert record["memory_used_bytes"] > 10 * where.chip.hbm_bytes


@pytest.mark.slow
@needs_libtpu
def test_a_tpu_program_of_scanned_layers_counts_like_the_unrolled_one():
    where = topology.find_slice("v5e:2x2")
    reports = [
        topology.report(tiny_config("compute_dtype=bfloat16", f"model.scan_layers={scan}"), where)
        for scan in (True, False)
    ]
    looped, flat = (report["program"]["matmul_flops"] for report in reports)
    assert looped == pytest.approx(flat, rel=0.02)
    needed = topology.model_flops(tiny_config()) / 4
    assert flat == pytest.approx(needed, rel=0.1)
    for report in reports:
        assert report["fits"] and 0 < report["memory_per_device"]["total"] < where.chip.hbm_bytes
        assert report["program"]["collectives"]["all-reduce"]["bytes"] > 0
        assert math.isfinite(report["bound"]["step_seconds"])
    assert topology.report(tiny_config("compute_dtype=bfloat16"), where, reports[0]) is reports[0]


COMPILE_FOR_V6E = """
from mv2mae_jax import config as configs
from mv2mae_jax.topology import __main__ as topology
where = topology.find_slice("v6e:2x2")
overrides = ["model.depth=1", "model.decoder_depth=1", "compute_dtype=bfloat16", "model.attention=per_head",
             "model.remat=dots", "model.layer_loop=unrolled", f"global_batch_size={16 * where.num_chips}"]
topology.lower_train_step(configs.load("configs/ntu120.py", overrides), where.devices).compile()
"""


@pytest.mark.slow
@needs_libtpu
@pytest.mark.skipif("CI" in os.environ, reason="compiles for three minutes of a core")
def test_the_compiler_of_v6e_takes_the_predictions_of_several_views():
    """The compiler aborts if it fuses the split into views with the product. Smaller sizes do not show this."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", COMPILE_FOR_V6E], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
