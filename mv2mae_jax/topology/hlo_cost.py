"""Counts what a parsed XLA program computes, moves and communicates, with loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once, so a scanned stack of layers looks as cheap as one layer.
Products and traffic are otherwise counted as there (openxla/xla `xla/service/hlo_cost_analysis.cc`).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

from mv2mae_jax.topology.hlo import Array, Computation, Instruction, Module

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
      source: the operation it came from, in the words of the traced program.
    """

    kind: str
    bytes: float
    group_size: int
    runs: int
    source: str

    @property
    def wire_bytes(self) -> float:
        """Least bytes that a chip must send for it (a ring's), per run."""
        share = (self.group_size - 1) / self.group_size
        return {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(
            self.kind, share
        ) * self.bytes


def matmul_flops(module: Module) -> float:
    """Floating-point operations of all products (2 per multiply-add), everywhere, as often as they run."""
    total = 0.0
    for instruction, computation, runs in module.executed():
        total += runs * _product_flops(instruction, computation)
        if instruction.opcode == "fusion":
            total += runs * _fused_flops(module, instruction.called[0])
    return total


def _fused_flops(module: Module, name: str) -> float:
    computation = module.computations[name]
    return sum(
        _product_flops(i, computation) + (_fused_flops(module, i.called[0]) if i.opcode == "fusion" else 0)
        for i in computation.values()
    )


def bytes_moved(module: Module, size: Callable[[Array], float]) -> collections.Counter:
    """What all instructions read and write by the operation they came from; `.total()` is the sum.

    If a fusion reads slices of an operand, or writes a slice of a result, only these slices count. A value that passes
    between two instructions counts twice: as written and as read. A collective counts once, where it starts, as its
    operand and its result; the later fusions that continue it only pass its buffers along.

    Args:
      size: bytes that an array counts, e.g. `lambda array: array.bytes`, or `hbm_bytes`.
    """
    moved, continued = collections.Counter(), _continued_collectives(module)
    for instruction, computation, runs in module.executed():
        size_moved = _moved_by(module, instruction, computation, size, continued)
        if size_moved:
            moved[instruction.source] += runs * size_moved
    return moved


def _continued_collectives(module: Module) -> frozenset[str]:
    """Names of collectives inside fusions whose channel an earlier fusion of the same computation has named."""
    seen, continued = set(), set()
    for instruction, computation, _ in module.executed():
        goes_on = instruction.opcode == "fusion" and not _sums_and_scatters(instruction)
        for one in _fused_instructions(module, instruction) if goes_on else []:
            channel = (id(computation), one.attribute("channel_id") or one.name)
            if one.opcode in COLLECTIVES and channel in seen:
                continued.add(one.name)
            seen.add(channel)
    return frozenset(continued)


def _moved_by(
    module: Module,
    instruction: Instruction,
    computation: Computation,
    size: Callable[[Array], float],
    continued: frozenset[str],
) -> float:
    if instruction.opcode in _FREE or "AllocateBuffer" in instruction.attributes:
        return 0.0
    if "ConcatBitcast" in instruction.attributes:  # slices that were copied side by side are one array now
        return 0.0
    if instruction.opcode in ("copy-start", "slice-start"):  # (source, destination, flag), one way or the other
        moved = min(instruction.arrays[:2], key=lambda array: array.bytes)
        return sum(size(dataclasses.replace(moved, layout=array.layout)) for array in instruction.arrays[:2])
    if instruction.opcode == "fusion":
        fused = module.computations[instruction.called[0]]
        read = _read_by_fusion(module, fused, size, continued)
        return read + _written_by_fusion(module, fused, size, continued)
    if instruction.opcode in _SLICES:
        return 2 * sum(map(size, instruction.arrays))
    if instruction.opcode == "dynamic-update-slice":
        return 2 * sum(map(size, computation[instruction.operands[1]].arrays))
    read = sum(size(array) for name in instruction.operands for array in computation[name].arrays)
    return read + sum(map(size, _results(instruction)))


def _results(instruction: Instruction) -> tuple[Array, ...]:
    """The arrays of an instruction's result, without the operands that the start of a collective repeats."""
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
        return instruction.arrays[len(instruction.operands) : 2 * len(instruction.operands)]
    return instruction.arrays


def _read_by_fusion(
    module: Module, fused: Computation, size: Callable[[Array], float], continued: frozenset[str]
) -> float:
    parameters = [i for i in fused.values() if i.opcode == "parameter"]
    return sum(min(size(p.arrays[0]), _read(module, p, fused, size, continued)) for p in parameters if p.arrays)


def _read(
    module: Module, value: Instruction, fused: Computation, size: Callable[[Array], float], continued: frozenset[str]
) -> float:
    """What the users of a value inside a fusion read of it, at most; each slice in the memory of the whole."""
    total = 0.0
    for user in fused.values():
        for position, name in enumerate(user.operands):
            if name != value.name or _hands_on(user, continued):
                continue
            if user.opcode == "bitcast":
                total += _read(module, user, fused, size, continued)
            elif user.opcode == "fusion":
                inner = module.computations[user.called[0]]
                parameter = next(i for i in inner.values() if i.opcode == "parameter" and int(i.argument) == position)
                total += _read(module, parameter, inner, size, continued)
            elif user.opcode in _SLICES and position == 0:
                layout = value.arrays[0].layout
                total += sum(size(_placed_as(array, layout)) for array in user.arrays)
            elif user.opcode == "dynamic-update-slice" and position == 0:
                pass  # written in place
            else:
                total += size(value.arrays[0])
    return total


def _hands_on(instruction: Instruction, continued: frozenset[str]) -> bool:
    """Whether an instruction inside a fusion only names buffers: what it returns, or a collective under way."""
    if instruction.opcode == "custom-call":
        return "AsyncCollective" in instruction.attributes
    return instruction.opcode == "tuple" or instruction.name in continued


def _written_by_fusion(
    module: Module, fused: Computation, size: Callable[[Array], float], continued: frozenset[str]
) -> float:
    root = next(i for i in fused.values() if i.is_root)
    outputs = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for output in outputs:
        source = output
        while source.opcode == "bitcast":
            source = fused[source.operands[0]]
        if source.opcode == "parameter" or source.name in continued or "AsyncCollectiveDone" in source.attributes:
            continue
        if "AsyncCollectiveStart" in source.attributes:  # (operand, result, flags ...)
            total += sum(map(size, output.arrays[1:]))
        elif source.opcode == "dynamic-update-slice":
            update = fused[source.operands[1]].arrays[0]
            total += size(_placed_as(update, output.arrays[0].layout))
        elif source.opcode == "fusion":
            total += _written_by_fusion(module, module.computations[source.called[0]], size, continued)
        else:
            total += sum(map(size, output.arrays))
    return total


def collectives(module: Module) -> list[Collective]:
    """All communication of a step, in the order of the program.

    An asynchronous collective on a TPU is a row of fusions that do other work, too. Each of them names the collective
    again, so it counts once per channel. A sum of which each chip keeps a slice (a fusion called all-reduce-scatter)
    is a reduce-scatter. Each of these counts, because joined ones share a channel.
    """
    found, continued = [], _continued_collectives(module)
    for instruction, _, runs in module.executed():
        inside = _fused_instructions(module, instruction) if instruction.opcode == "fusion" else [instruction]
        for one in inside:
            if one.opcode.removesuffix("-start") not in COLLECTIVES or one.name in continued:
                continue
            collective = _collective(module, one, runs)
            if _sums_and_scatters(instruction):
                collective = dataclasses.replace(collective, kind="reduce-scatter")
            found.append(collective)
    return found


def _sums_and_scatters(instruction: Instruction) -> bool:
    return any("all-reduce-scatter" in name for name in instruction.called)


def _fused_instructions(module: Module, fusion: Instruction) -> list[Instruction]:
    found = []
    for instruction in module.computations[fusion.called[0]].values():
        found += _fused_instructions(module, instruction) if instruction.opcode == "fusion" else [instruction]
    return found


def _collective(module: Module, instruction: Instruction, runs: int) -> Collective:
    kind, group_size = instruction.opcode.removesuffix("-start"), _group_size(module, instruction.attributes)
    total = sum(array.bytes for array in _results(instruction))
    return Collective(
        kind=kind,
        bytes=total * group_size if kind == "reduce-scatter" else total,
        group_size=group_size,
        runs=runs,
        source=instruction.source,
    )


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


def hbm_bytes(array: Array) -> float:
    """Bytes with their padding where the array lies in the chip's main memory, else 0."""
    return array.padded_bytes if array.in_hbm else 0.0


def _placed_as(array: Array, layout: str) -> Array:
    """The array in the memory of `layout`: inside a fusion, values carry no memory space of their own."""
    space = re.search(r"S\(\d+\)", layout)
    return dataclasses.replace(array, layout=re.sub(r"S\(\d+\)", "", array.layout) + (space[0] if space else ""))


def _product_flops(instruction: Instruction, computation: Computation) -> float:
    """2 * multiply-adds of a dot or a convolution; 0 for anything else. TPUs write every product as a convolution."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (computation[name].arrays[0].dims for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        contracted = math.prod(lhs[int(axis)] for axis in axes.split(",") if axis)
        return 2.0 * math.prod(instruction.arrays[0].dims) * contracted
    lhs_labels, rhs_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    out = instruction.arrays[0].dims
    pairs = 1
    for index, window in enumerate(_windows(instruction.attributes)):
        label = str(index)
        pairs *= _valid_positions(lhs[lhs_labels.index(label)], out[out_labels.index(label)], **window)
    batch, features = out[out_labels.index("b")], out[out_labels.index("f")]
    return 2.0 * pairs * batch * features * rhs[rhs_labels.index("i")]


def _windows(attributes: str) -> list[dict[str, int]]:
    """The window of a convolution, one entry per spatial dimension: {size=1x6 pad=0_0x5_5 rhs_reversal=0x1}."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    if not found:
        return []
    fields = {key: value.split("x") for key, _, value in (f.partition("=") for f in found[1].split())}
    return [
        {
            "size": int(size),
            "stride": int(fields["stride"][i]) if "stride" in fields else 1,
            "pad_low": int(fields["pad"][i].split("_")[0]) if "pad" in fields else 0,
            "lhs_dilate": int(fields["lhs_dilate"][i]) if "lhs_dilate" in fields else 1,
            "rhs_dilate": int(fields["rhs_dilate"][i]) if "rhs_dilate" in fields else 1,
        }
        for i, size in enumerate(fields["size"])
    ]


def _valid_positions(
    lhs: int, out: int, *, size: int, stride: int, pad_low: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """(output, window) pairs that fall on an element rather than on padding or between dilated elements."""
    count = 0
    for window in range(size):
        for position in range(out):
            index, between = divmod(position * stride - pad_low + window * rhs_dilate, lhs_dilate)
            count += not between and 0 <= index < lhs
    return count
