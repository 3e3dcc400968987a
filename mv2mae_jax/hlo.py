"""Reads an optimised XLA program as text: what it computes, moves and communicates, with loops counted as they run.

XLA's own `cost_analysis` counts the body of a loop once, so a scanned stack of layers looks as cheap as one layer. Here
every computation is weighted with the number of times it runs. The grammar is that of `HloModule::ToString`
(openxla/xla `xla/hlo/parser`); the counting of products follows `xla/service/hlo_cost_analysis.cc`.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# Instructions that name or group buffers and move nothing. The second half of an asynchronous pair waits, no more.
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all")
_FREE += ("partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done")
_FREE += ("slice-done", "all-reduce-done", "all-gather-done", "collective-permute-done")
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """One array of a shape.

    Attributes:
      dtype: HLO's name, e.g. 'bf16'.
      dims: sizes.
      layout: 'minor_to_major:tiles', e.g. '1,0:T(8,128)(2,1)S(1)'; empty where the backend states none.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def item_bytes(self) -> float:
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) / 8 if bits else float(self.dtype == "pred")

    @property
    def bytes(self) -> float:
        return math.prod(self.dims) * self.item_bytes

    @property
    def in_hbm(self) -> bool:
        """S(1), S(2), ... in a layout are memories on the chip (VMEM, SMEM, flags)."""
        return not re.search(r"S\([1-9]", self.layout)

    @property
    def padded_bytes(self) -> float:
        """Bytes occupied: the minor dimensions are rounded up to the layout's first tile, T(8,128) for most."""
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile or not self.dims:
            return self.bytes
        tile = [int(size) for size in tile[1].split(",")]
        dims = [self.dims[int(axis)] for axis in reversed(self.layout.partition(":")[0].split(","))]  # major to minor
        dims = [1] * (len(tile) - len(dims)) + dims
        for axis, size in enumerate(tile, start=len(dims) - len(tile)):
            dims[axis] = -(-dims[axis] // size) * size
        return math.prod(dims) * self.item_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation. `arrays` are those of its result, `attributes` all text after the operands."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations run by a fusion, a call, an asynchronous wrapper or a conditional; not a loop's."""
        if self.opcode == "while":
            return ()
        names = re.findall(r"\b(?:calls|to_apply)=%?([^\s,}]+)", self.attributes) if self.opcode in _CALLERS else []
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return tuple(names)

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=%?([^\s,}}]+)", self.attributes)
        return found[1] if found else ""


_CALLERS = ("fusion", "call", "async-start", "conditional")

Computation = dict[str, Instruction]  # by name, in the order of the text; its last one marked ROOT


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A parsed program.

    Attributes:
      computations: by name.
      entry: the name of the one that runs.
      num_partitions: devices that it is compiled for.
    """

    computations: dict[str, Computation]
    entry: str
    num_partitions: int

    def executed(self) -> Iterator[tuple[Instruction, Computation, int]]:
        """Every instruction outside fusions with its computation and the number of times it runs per step."""

        def walk(name: str, runs: int) -> Iterator[tuple[Instruction, Computation, int]]:
            computation = self.computations[name]
            for instruction in computation.values():
                yield instruction, computation, runs
                if instruction.opcode == "while":
                    yield from walk(instruction.attribute("body"), runs * self.trip_count(instruction))
                elif instruction.opcode != "fusion":
                    for called in instruction.called:
                        yield from walk(called, runs)

        yield from walk(self.entry, 1)

    def trip_count(self, loop: Instruction) -> int:
        """Times a loop runs: as the compiler states it, else from a condition `counter < constant`.

        A counter starts at 0 and grows by 1, as those of `jax.lax.scan` and `fori_loop` do.

        Raises:
          ValueError: neither is there.
        """
        known = re.search(r'known_trip_count"?:\s*\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        root = next(i for i in condition.values() if i.is_root)
        inner = condition
        if root.opcode == "fusion":  # the comparison alone; its operands are those of the fusion
            inner = self.computations[root.called[0]]
            root = next(i for i in inner.values() if i.is_root)
        sides = [_argument_of(inner[name], inner, condition) for name in root.operands]
        bounds = [int(side.argument) for side in sides if side.opcode == "constant" and _is_integer(side)]
        if "direction=LT" not in root.attributes or sides[0].opcode != "get-tuple-element" or len(bounds) != 1:
            raise ValueError(
                f"How often the loop {loop.name} runs cannot be read from its condition ({root.opcode}, "
                f"{root.attributes[:40]!r}); write it as a scan or a fori_loop of fixed length."
            )
        return bounds[0]

    def matmul_flops(self) -> float:
        """Floating-point operations of all products (2 per multiply-add), everywhere, as often as they run."""
        total = 0.0
        for instruction, computation, runs in self.executed():
            total += runs * _product_flops(instruction, computation)
            if instruction.opcode == "fusion":
                total += runs * self._fused_flops(instruction.called[0])
        return total

    def _fused_flops(self, name: str) -> float:
        computation = self.computations[name]
        return sum(
            _product_flops(i, computation) + (self._fused_flops(i.called[0]) if i.opcode == "fusion" else 0)
            for i in computation.values()
        )

    def bytes_moved(self, size: Callable[[Array], float], *, count_loops: bool = True) -> float:
        """What all instructions read and write, each array counted as `size(array)` bytes.

        An operand of which a fusion reads slices counts as those slices; a result into which a fusion writes a slice
        counts as the slice. What passes between two instructions counts twice: written, and read.

        Args:
          size: e.g. `lambda array: array.bytes`, or `hbm_bytes`.
          count_loops: False counts the body of a loop once, as `cost_analysis` does.
        """
        total = 0.0
        for instruction, computation, runs in self.executed():
            total += (runs if count_loops else 1) * self._moved_by(instruction, computation, size)
        return total

    def _moved_by(self, instruction: Instruction, computation: Computation, size: Callable[[Array], float]) -> float:
        if instruction.opcode in _FREE or "AllocateBuffer" in instruction.attributes:
            return 0.0
        if "ConcatBitcast" in instruction.attributes:  # slices that were copied side by side are one array now
            return 0.0
        if instruction.opcode in ("copy-start", "slice-start"):  # (source, destination, flag), one way or the other
            moved = min(instruction.arrays[:2], key=lambda array: array.bytes)
            return sum(size(dataclasses.replace(moved, layout=array.layout)) for array in instruction.arrays[:2])
        if instruction.opcode == "fusion":
            fused = self.computations[instruction.called[0]]
            return self._read_by_fusion(fused, size) + self._written_by_fusion(fused, size)
        if instruction.opcode in _SLICES:
            return 2 * sum(map(size, instruction.arrays))
        if instruction.opcode == "dynamic-update-slice":
            return 2 * sum(map(size, computation[instruction.operands[1]].arrays))
        read = sum(size(array) for name in instruction.operands for array in computation[name].arrays)
        return read + sum(map(size, instruction.arrays))

    def _read_by_fusion(self, fused: Computation, size: Callable[[Array], float]) -> float:
        parameters = [i for i in fused.values() if i.opcode == "parameter"]
        return sum(min(size(p.arrays[0]), self._read(p, fused, size)) for p in parameters if p.arrays)

    def _read(self, value: Instruction, fused: Computation, size: Callable[[Array], float]) -> float:
        """What the users of a value inside a fusion read of it, at most; each slice in the memory of the whole."""
        total = 0.0
        for user in fused.values():
            for position, name in enumerate(user.operands):
                if name != value.name:
                    continue
                if user.opcode == "bitcast":
                    total += self._read(user, fused, size)
                elif user.opcode == "fusion":
                    inner = self.computations[user.called[0]]
                    parameter = next(
                        i for i in inner.values() if i.opcode == "parameter" and int(i.argument) == position
                    )
                    total += self._read(parameter, inner, size)
                elif user.opcode in _SLICES and position == 0:
                    layout = value.arrays[0].layout
                    total += sum(size(_placed_as(array, layout)) for array in user.arrays)
                elif user.opcode == "dynamic-update-slice" and position == 0:
                    pass  # written in place
                else:
                    total += size(value.arrays[0])
        return total

    def _written_by_fusion(self, fused: Computation, size: Callable[[Array], float]) -> float:
        root = next(i for i in fused.values() if i.is_root)
        outputs = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
        total = 0.0
        for output in outputs:
            source = output
            while source.opcode == "bitcast":
                source = fused[source.operands[0]]
            if source.opcode == "dynamic-update-slice":
                update = fused[source.operands[1]].arrays[0]
                total += size(_placed_as(update, output.arrays[0].layout))
            elif source.opcode == "fusion":
                total += self._written_by_fusion(self.computations[source.called[0]], size)
            else:
                total += sum(map(size, output.arrays))
        return total

    def collectives(self) -> list[Collective]:
        """All communication of a step, in the order of the program."""
        found = []
        for instruction, _, runs in self.executed():
            inside = self._fused_instructions(instruction) if instruction.opcode == "fusion" else [instruction]
            found += [self._collective(i, runs) for i in inside if i.opcode.removesuffix("-start") in COLLECTIVES]
        return found

    def _fused_instructions(self, fusion: Instruction) -> list[Instruction]:
        found = []
        for instruction in self.computations[fusion.called[0]].values():
            found += self._fused_instructions(instruction) if instruction.opcode == "fusion" else [instruction]
        return found

    def _collective(self, instruction: Instruction, runs: int) -> Collective:
        kind, group_size = instruction.opcode.removesuffix("-start"), self._group_size(instruction.attributes)
        arrays = instruction.arrays
        if instruction.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
            arrays = arrays[len(instruction.operands) : 2 * len(instruction.operands)]
        total = sum(array.bytes for array in arrays)
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        return Collective(
            kind=kind,
            bytes=total * group_size if kind == "reduce-scatter" else total,
            group_size=group_size,
            runs=runs,
            source=source[1] if source else "",
        )

    def _group_size(self, attributes: str) -> int:
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
        return self.num_partitions

    def estimated_cycles(self) -> dict[str, int]:
        """The TPU compiler's own estimates, summed by the operation an instruction came from; empty elsewhere."""
        cycles = collections.Counter()
        for instruction, _, runs in self.executed():
            estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            if estimate and not instruction.opcode.endswith("-done"):
                source = re.search(r'op_name="([^"]*)"', instruction.attributes)
                cycles[source[1] if source else instruction.opcode] += runs * int(estimate[1])
        return dict(cycles.most_common())


def hbm_bytes(array: Array) -> float:
    """Bytes with their padding where the array lies in the chip's main memory, else 0."""
    return array.padded_bytes if array.in_hbm else 0.0


def _placed_as(array: Array, layout: str) -> Array:
    """The array in the memory of `layout`: inside a fusion, values carry no memory space of their own."""
    space = re.search(r"S\(\d+\)", layout)
    return dataclasses.replace(array, layout=re.sub(r"S\(\d+\)", "", array.layout) + (space[0] if space else ""))


def _argument_of(value: Instruction, inner: Computation, outer: Computation) -> Instruction:
    """A parameter of a condition's fusion -> what the condition passes for it; anything else is itself."""
    if value.opcode != "parameter" or inner is outer:
        return value
    fusion = next(i for i in outer.values() if i.is_root)
    return outer[fusion.operands[int(value.argument)]]


def _is_integer(value: Instruction) -> bool:
    return value.arrays[0].dtype[0] in "su" and not value.arrays[0].dims


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


_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")


def parse(text: str) -> Module:
    """The text of an optimised module (`compiled.as_text()`) -> Module.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if not line.startswith((" ", "}")):
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
            continue
        body = _LINE.match(line)
        if body:
            instruction = _parse_instruction(body[2], body[3], bool(body[1]))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("This is not the text of an HLO module: it has no ENTRY computation.")
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations=computations, entry=entry, num_partitions=int(partitions[1]) if partitions else 1)


def _parse_instruction(name: str, text: str, is_root: bool) -> Instruction:
    """`f32[4]{0} add(%a, %b), metadata=...` after the name."""
    shape, rest = _cut(text) if text.startswith("(") else text.split(" ", 1)
    opcode, _, rest = rest.strip().partition("(")
    argument, attributes = _cut("(" + rest)
    return Instruction(
        name=name,
        opcode=opcode,
        arrays=tuple(
            Array(dtype=dtype, dims=tuple(int(d) for d in dims.split(",") if d), layout=layout)
            for dtype, dims, layout in ARRAY.findall(shape)
        ),
        operands=tuple(re.findall(r"%([^\s,()]+)", argument)),
        argument=argument[1:-1],
        attributes=attributes,
        is_root=is_root,
    )


def _cut(text: str) -> tuple[str, str]:
    """Splits after the parenthesis that closes the first one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    raise AssertionError(f"unbalanced parentheses: {text[:80]}")
