"""Counts what a parsed XLA program computes, moves and communicates, with loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once, so a scanned stack of layers looks as cheap as one layer. Of
unrolled layers it counts fast memory as traffic: 5 times the bytes of `Array.hbm_bytes` for ViT-S on v5e, 16 samples a
chip. It adds elementwise work to the products (3 to 9 %), and says nothing of collectives. Products and traffic are
otherwise counted as there (openxla/xla `xla/service/hlo_cost_analysis.cc`).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterable

import numpy as np

from mv2mae_jax.topology.hlo import Array, Computation, Instruction, Module, root

# To be raised whenever the way of counting changes, so that older reports are made again.
COUNTED_AS = 2

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# Instructions that only name or group buffers. The second half of an asynchronous pair only waits.
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all")
_FREE += ("partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done")
_FREE += ("slice-done", "all-reduce-done", "all-gather-done", "collective-permute-done")
_FREE += ("custom-call-start", "custom-call-done")  # a gather on the sparse cores: its update names the arrays
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One communication between chips.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: of the whole array: reduced, gathered, or to be scattered.
      group_size: chips that take part together.
      runs: times per step; above 1 inside a loop.
    """

    kind: str
    bytes: float
    group_size: int
    runs: int

    @property
    def wire_bytes(self) -> float:
        """Least bytes that a chip must send for it (a ring's), per run."""
        share = (self.group_size - 1) / self.group_size
        shares = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
        return shares.get(self.kind, share) * self.bytes


def matmul_flops(module: Module) -> float:
    """Floating-point operations of all products (2 per multiply-add), everywhere, as often as they run."""
    return sum(
        runs * _product_flops(one, home)
        for instruction, computation, runs in module.executed()
        for one, home in module.parts(instruction, computation)
    )


def bytes_moved(module: Module, size: Callable[[Array], float]) -> collections.Counter:
    """What all instructions read and write by the operation they came from; `.total()` is the sum.

    If a fusion reads slices of an operand, or writes a slice of a result, only these slices count. A value that passes
    between two instructions counts twice: as written and as read. A collective counts once, where it starts, as its
    operand and its result; the later fusions that continue it only pass its buffers along.

    Args:
      size: bytes that an array counts, e.g. `lambda array: array.bytes`, or its `hbm_bytes`.
    """
    traffic, moved = _Traffic(module, size), collections.Counter()
    for instruction, computation, runs in module.executed():
        moved[instruction.source] += runs * traffic.of(instruction, computation)
    return +moved  # without what moves nothing


def _continued_collectives(module: Module) -> frozenset[str]:
    """Names of collectives inside fusions whose channel an earlier fusion of the same computation has named."""
    seen, continued = set(), set()
    for instruction, computation, _ in module.executed():
        if instruction.opcode != "fusion" or _sums_and_scatters(instruction):
            continue
        for one, _ in module.parts(instruction, computation):
            channel = (id(computation), one.attribute("channel_id") or one.name)
            if one.opcode in COLLECTIVES and channel in seen:
                continued.add(one.name)
            seen.add(channel)
    return frozenset(continued)


class _Traffic:
    """What single instructions of a module read and write, each array by its `size`."""

    def __init__(self, module: Module, size: Callable[[Array], float]):
        self.module, self.size, self.continued = module, size, _continued_collectives(module)

    def of(self, instruction: Instruction, computation: Computation) -> float:
        attributes = instruction.attributes
        if instruction.opcode in _FREE or "AllocateBuffer" in attributes:
            return 0.0
        if "ConcatBitcast" in attributes:  # slices that were copied side by side are one array now
            return 0.0
        if instruction.opcode in ("copy-start", "slice-start"):  # (source, destination, flag), one way or the other
            ends = instruction.arrays[:2]
            moved = min(ends, key=lambda array: array.bytes)
            return self.sum(dataclasses.replace(moved, layout=array.layout) for array in ends)
        if instruction.opcode == "fusion":
            fused = self.module.computations[instruction.called[0]]
            parameters = [i for i in fused.values() if i.opcode == "parameter" and i.arrays]
            read = sum(min(self.size(p.arrays[0]), self.read(p, fused)) for p in parameters)
            return read + self.written(fused)
        if instruction.opcode in _SLICES:
            return 2 * self.sum(instruction.arrays)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * self.sum(computation[instruction.operands[1]].arrays)
        return sum(self.sum(computation[name].arrays) for name in instruction.operands) + self.sum(
            _results(instruction)
        )

    def sum(self, arrays: Iterable[Array]) -> float:
        return sum(map(self.size, arrays))

    def read(self, value: Instruction, fused: Computation) -> float:
        """What the users of a value inside a fusion read of it, at most; each slice in the memory of the whole."""
        total = 0.0
        for user in fused.values():
            for position, name in enumerate(user.operands):
                if name != value.name or self.hands_on(user):
                    continue
                if user.opcode == "bitcast":
                    total += self.read(user, fused)
                elif user.opcode == "fusion":
                    inner = self.module.computations[user.called[0]]
                    parameters = (i for i in inner.values() if i.opcode == "parameter")
                    total += self.read(next(p for p in parameters if int(p.argument) == position), inner)
                elif user.opcode in _SLICES and position == 0:
                    total += self.sum(_placed_as(array, value.arrays[0].layout) for array in user.arrays)
                elif user.opcode == "dynamic-update-slice" and position == 0:
                    pass  # written in place
                else:
                    total += self.size(value.arrays[0])
        return total

    def hands_on(self, instruction: Instruction) -> bool:
        """Whether an instruction inside a fusion only names buffers: what it returns, or a collective under way."""
        if instruction.opcode == "custom-call":
            return "AsyncCollective" in instruction.attributes
        return instruction.opcode == "tuple" or instruction.name in self.continued

    def written(self, fused: Computation) -> float:
        """What a fusion writes."""
        result = root(fused)
        outputs = [fused[name] for name in result.operands] if result.opcode == "tuple" else [result]
        total = 0.0
        for output in outputs:
            source = output
            while source.opcode == "bitcast":
                source = fused[source.operands[0]]
            passed_on = source.opcode == "parameter" or source.name in self.continued
            if passed_on or "AsyncCollectiveDone" in source.attributes:
                continue
            if "AsyncCollectiveStart" in source.attributes:  # (operand, result, flags ...)
                total += self.sum(output.arrays[1:])
            elif source.opcode == "dynamic-update-slice":
                update = fused[source.operands[1]].arrays[0]
                total += self.size(_placed_as(update, output.arrays[0].layout))
            elif source.opcode == "fusion":
                total += self.written(self.module.computations[source.called[0]])
            else:
                total += self.sum(output.arrays)
        return total


def _results(instruction: Instruction) -> tuple[Array, ...]:
    """The arrays of an instruction's result, without the operands that the start of a collective repeats."""
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
        return instruction.arrays[len(instruction.operands) : 2 * len(instruction.operands)]
    return instruction.arrays


def collectives(module: Module) -> list[Collective]:
    """All communication of a step, in the order of the program.

    An asynchronous collective on a TPU is a row of fusions that do other work, too. Each of them names the collective
    again, so it counts once per channel. A sum of which each chip keeps a slice (a fusion called all-reduce-scatter)
    is a reduce-scatter. Each of these counts, because joined ones share a channel.
    """
    found, continued = [], _continued_collectives(module)
    for instruction, computation, runs in module.executed():
        for one, _ in module.parts(instruction, computation):
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or one.name in continued:
                continue
            group_size = _group_size(module, one.attributes)
            num_bytes = sum(array.bytes for array in _results(one)) * (group_size if kind == "reduce-scatter" else 1)
            kind = "reduce-scatter" if _sums_and_scatters(instruction) else kind
            found.append(Collective(kind=kind, bytes=num_bytes, group_size=group_size, runs=runs))
    return found


def _sums_and_scatters(instruction: Instruction) -> bool:
    return any("all-reduce-scatter" in name for name in instruction.called)


def _group_size(module: Module, attributes: str) -> int:
    """From {{0,1},{2,3}}, from [groups,size]<=[...], or mesh['x'=2,'y'=4] {'y'}; all devices if none is given."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return module.num_partitions


def estimated_cycles(module: Module) -> collections.Counter:
    """The TPU compiler's own estimates, summed by the operation an instruction came from; empty elsewhere."""
    cycles = collections.Counter()
    for instruction, _, runs in module.executed():
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if estimate and not instruction.opcode.endswith("-done"):
            cycles[instruction.source] += runs * int(estimate[1])
    return cycles


def _placed_as(array: Array, layout: str) -> Array:
    """The array in the memory of `layout`: inside a fusion, values carry no memory space of their own."""
    space = re.search(r"S\(\d+\)", layout)
    return dataclasses.replace(array, layout=re.sub(r"S\(\d+\)", "", array.layout) + (space[0] if space else ""))


def _product_flops(instruction: Instruction, computation: Computation) -> float:
    """2 * multiply-adds of a dot or a convolution; 0 for anything else. TPUs write every product as a convolution."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (computation[name].arrays[0].dims for name in instruction.operands[:2])
    out, attributes = instruction.arrays[0].dims, instruction.attributes
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)[1]
        return 2.0 * math.prod(out) * math.prod(lhs[int(axis)] for axis in axes.split(",") if axis)
    lhs_labels, rhs_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    lhs, rhs, out = (
        dict(zip(*pair, strict=True)) for pair in ((lhs_labels, lhs), (rhs_labels, rhs), (out_labels, out))
    )
    pairs = math.prod(
        _valid_positions(lhs[str(axis)], out[str(axis)], **window) for axis, window in enumerate(_windows(attributes))
    )
    return 2.0 * pairs * out["b"] * out["f"] * rhs["i"]


def _windows(attributes: str) -> list[dict[str, int]]:
    """The window of a convolution, one entry per spatial dimension: {size=1x6 pad=0_0x5_5 rhs_reversal=0x1}."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    if not found:
        return []
    fields = (field.split("=") for field in found[1].split())
    given = {name: [int(text.split("_")[0]) for text in values.split("x")] for name, values in fields}
    defaults = {"size": 1, "stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
    return [
        {name: given[name][axis] if name in given else default for name, default in defaults.items()}
        for axis in range(len(given["size"]))
    ]


def _valid_positions(lhs: int, out: int, *, size: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """(output, window) pairs that fall on an element rather than on padding (`pad` before it) or between elements."""
    index = np.arange(out)[:, None] * stride - pad + np.arange(size) * rhs_dilate
    return int(((index % lhs_dilate == 0) & (index >= 0) & (index < lhs * lhs_dilate)).sum())
