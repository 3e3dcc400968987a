"""Placement: the device mesh and where every array lives. All else takes its mesh and its shardings from here.

The batch is cut along both mesh axes; parameters, optimiser state and EMA are replicated along `data` and cut along
`fsdp`. jit inserts the collectives. Layers call `whole` where weights that `fsdp` cuts are to be gathered.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from console.errors import UserError

BATCH_AXES = ("data", "fsdp")

# Arrays smaller than this stay whole on every device: cutting them saves nothing and costs a collective [ours].
MIN_FSDP_ELEMENTS = 2**16


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh over all devices; -1 takes what is left. Raises ValueError if sizes and devices differ."""
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp]
    if -1 in shape:
        known = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = max(1, len(devices) // known)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh.data = {data} and mesh.fsdp = {fsdp} do not multiply to the {len(devices)} devices at hand; "
            f"-1 in one of them takes what is left if the other divides their number."
        )
    # Auto axes: the compiler propagates shardings. make_mesh's default (explicit) rejects Linen with FSDP parameters.
    return jax.make_mesh(tuple(shape), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def one_device() -> Mesh:
    """A mesh of the first device."""
    return make_mesh(devices=jax.devices()[:1])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Where every array of a state lives: the largest axis divisible by `fsdp` is cut, if the array is large enough.

    From a pytree of arrays or `jax.ShapeDtypeStruct`s to one of NamedSharding.
    """
    size = mesh.shape["fsdp"]

    def place(leaf) -> NamedSharding:
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % size == 0]
        if size == 1 or leaf.size < MIN_FSDP_ELEMENTS or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(place, state)


def whole(weights: jax.Array) -> jax.Array:
    """Gathers weights that `fsdp` cuts. Works inside a function of `with_mesh`; elsewhere returns them as they are.

    Without it, the compiler keeps the weights cut in the products and gathers the activations of all devices instead,
    which sends 15 times as much for ViT-S (benchmarks/results/NOTES_tpu.md). A layer calls it for its own weights, so
    one layer at a time is whole, and gathered again for the backward pass. `model.remat=none` keeps all layers whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return weights
    return jax.lax.with_sharding_constraint(weights, PartitionSpec())


def with_mesh(mesh: Mesh, function: Callable) -> Callable:
    """The function, traced so that `whole` knows the mesh."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def abstract(mesh: Mesh, state: Any) -> Any:
    """Shapes, dtypes and places of a state's arrays: what a checkpoint is restored as."""
    placement = state_sharding(mesh, state)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), state, placement)


def create(mesh: Mesh, make: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """`make(key)`, compiled, so that every array of the state it returns is computed where it lies."""
    return jax.jit(make, out_shardings=state_sharding(mesh, jax.eval_shape(make, key)))(key)


def check_batch(mesh: Mesh, global_batch_size: int, accumulation_steps: int = 1) -> None:
    """Raises ValueError where a batch cannot be cut evenly over the devices."""
    devices = mesh.size * accumulation_steps
    if global_batch_size % devices:
        lower, upper = global_batch_size // devices * devices, -(-global_batch_size // devices) * devices
        parts = f" x {accumulation_steps} accumulation steps" if accumulation_steps > 1 else ""
        choices = f"{lower} or {upper}" if lower else str(upper)
        raise UserError(
            f"global_batch_size = {global_batch_size} is not divisible by the {mesh.size} devices{parts}; "
            f"use {choices}."
        )


def check_decoding(mesh: Mesh, global_batch_size: int, repeats: int) -> None:
    """Raises ValueError where the clips that the devices decode cannot be cut evenly over them."""
    if global_batch_size // repeats % mesh.size:
        raise UserError(
            f"global_batch_size = {global_batch_size} with data.repeats = {repeats} is {global_batch_size // repeats} "
            f"clips for {mesh.size} devices to decode, which is not divisible; use a multiple of {mesh.size * repeats}."
        )


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows, a pytree of NumPy arrays -> global device arrays, cut along both axes."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
