"""Sharding changes where arrays lie, but not what a step computes."""

import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mv2mae_jax.distributed import sharding
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
MESHES = [{"data": 8, "fsdp": 1}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 4}]
RUN = """
import pickle, sys
from mv2mae_jax.distributed import sharding
from tests import test_sharding
options, min_fsdp_elements, output = pickle.loads(bytes.fromhex(sys.argv[1]))
sharding.MIN_FSDP_ELEMENTS = min_fsdp_elements
pickle.dump(test_sharding.train(**options), open(output, "wb"))
"""


def train(*, meshes, steps, **sections):
    """Trains per mesh: [(mesh, devices, metrics of each step, bytes of state on the first device)]."""
    runs = []
    for mesh in meshes:
        state, history = tiny.run_steps(tiny.make_config(mesh=mesh, **sections), steps)
        share = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
        runs.append((mesh, jax.device_count(), history, share))
    return runs


def train_on_eight(folder: pathlib.Path, *, min_fsdp_elements, **options):
    """`train` in a process with eight simulated devices."""
    output = folder / "8.pkl"
    arguments = pickle.dumps((options, min_fsdp_elements, str(output))).hex()
    flags = f"--xla_force_host_platform_device_count=8 {tiny.QUICK_FLAGS}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", RUN, arguments], cwd=ROOT, env=environment, check=True)
    return pickle.loads(output.read_bytes())


def assert_same_numbers(folder: pathlib.Path, *, min_fsdp_elements, slack=1.1, meshes=MESHES, **options):
    ((_, devices, expected, whole),) = train(meshes=[{"data": 1, "fsdp": 1}], **options)
    assert devices == 1
    on_eight = train_on_eight(folder, min_fsdp_elements=min_fsdp_elements, meshes=meshes, **options)
    for mesh, devices, history, share in on_eight:
        assert devices == 8
        for sharded, single in zip(history, expected, strict=True):
            assert sharded == pytest.approx(single, rel=2e-4), mesh
        assert share < slack * whole / mesh["fsdp"], mesh


def test_eight_devices_equal_one(tmp_path):
    """MIN_FSDP_ELEMENTS is lowered so that the tiny model's kernels are sharded. Biases and odd sizes are not."""
    assert_same_numbers(tmp_path, slack=2.0, meshes=[{"data": 2, "fsdp": 4}], steps=3, min_fsdp_elements=64)


@pytest.mark.slow
def test_eight_devices_equal_one_for_vit_s(tmp_path):
    small = dict.fromkeys(("width", "depth", "num_heads", "decoder_width", "decoder_depth", "decoder_heads"))
    options = {"model": {"variant": "S", **small, "tubelet_size": (2, 16, 16)}, "data": {"num_frames": 16}}
    options["data"]["crop_size"] = (128, 128)
    assert_same_numbers(tmp_path, steps=2, min_fsdp_elements=sharding.MIN_FSDP_ELEMENTS, **options)


@pytest.mark.slow
def test_a_wide_model_is_cut_evenly_over_the_devices(tmp_path):
    """A weight takes 16 bytes: parameter, EMA and both moments. No device holds more than its share of 200 MB."""
    options = {"model": {"width": 1024, "num_heads": 16, "decoder_width": 256, "decoder_heads": 8}}
    options["optimizer"] = {"ema_decay": 0.99, "base_learning_rate": 1e-4}
    assert_same_numbers(tmp_path, steps=2, min_fsdp_elements=sharding.MIN_FSDP_ELEMENTS, **options)


def test_fsdp_cuts_large_arrays_along_their_largest_divisible_axis(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_FSDP_ELEMENTS", 64)
    mesh = jax.sharding.AbstractMesh((2, 4), sharding.BATCH_AXES)
    shapes = {"kernel": (6, 12, 16), "odd": (7, 15), "small": (4, 4), "tall": (64, 3)}
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    placed = {name: tuple(s.spec) for name, s in sharding.state_sharding(mesh, abstract).items()}
    assert placed == {"kernel": (None, None, "fsdp"), "odd": (), "small": (), "tall": ("fsdp",)}


def test_a_batch_that_cannot_be_cut_is_refused():
    mesh = jax.sharding.AbstractMesh((2, 4), sharding.BATCH_AXES)
    with pytest.raises(ValueError, match="not divisible by the 8 devices; use 8 or 16"):
        sharding.check_batch(mesh, 12)
    with pytest.raises(ValueError, match="8 devices x 3 accumulation steps; use 24"):
        sharding.check_batch(mesh, 16, accumulation_steps=3)


def test_a_mesh_of_other_size_than_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"mesh.data = 3 and mesh.fsdp = 1 do not multiply to the 1 device"):
        sharding.make_mesh(3, 1)
    with pytest.raises(ValueError, match="takes what is left if the other divides their number"):
        sharding.make_mesh(-1, 8)
