"""Parses as much of an optimised XLA program's text as its costs need (mv2mae_jax/topology/hlo_cost.py).

The grammar is that of `HloModule::ToString` (openxla/xla `xla/hlo/parser`).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from console.errors import UserError

ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")


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
    def hbm_bytes(self) -> float:
        """Bytes occupied in the main memory; 0 in S(1), S(2), ..., the memories on the chip (VMEM, SMEM, flags)."""
        return 0.0 if re.search(r"S\([1-9]", self.layout) else self.padded_bytes

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

    @functools.cached_property
    def source(self) -> str:
        """The operation it came from, in the words of the traced program; its opcode where none is stated."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else self.opcode

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=%?([^\s,}}]+)", self.attributes)
        return found[1] if found else ""


_CALLERS = ("fusion", "call", "async-start", "conditional")

Computation = dict[str, Instruction]  # by name, in the order of the text


class LoopOfUnknownLength(ValueError):
    """A loop whose condition does not say how often it runs."""


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

    def parts(self, instruction: Instruction, computation: Computation) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions that a fusion is made of, with their computations; any other instruction is its own part."""
        if instruction.opcode != "fusion":
            yield instruction, computation
            return
        fused = self.computations[instruction.called[0]]
        for one in fused.values():
            yield from self.parts(one, fused)

    def trip_count(self, loop: Instruction) -> int:
        """The number of times a loop runs: the compiler's statement, else from a condition `counter < constant`.

        A counter starts at 0 and grows by 1, as those of `jax.lax.scan` and `fori_loop` do.

        Raises:
          LoopOfUnknownLength: neither is there.
        """
        known = re.search(r'known_trip_count"?:\s*\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        compared = root(condition)
        sides = [condition[name] for name in compared.operands]
        if compared.opcode == "fusion":  # of the comparison alone, whose operands are those of the fusion
            fused, passed = self.computations[compared.called[0]], sides
            compared = root(fused)
            sides = [fused[name] for name in compared.operands]
            sides = [passed[int(side.argument)] if side.opcode == "parameter" else side for side in sides]
        numbers = [side for side in sides if side.opcode == "constant" and not side.arrays[0].dims]
        bounds = [int(side.argument) for side in numbers if side.arrays[0].dtype[0] in "su"]
        if "direction=LT" not in compared.attributes or sides[0].opcode != "get-tuple-element" or len(bounds) != 1:
            raise LoopOfUnknownLength(
                f"How often the loop {loop.name} runs cannot be read from its condition ({compared.opcode}, "
                f"{compared.attributes[:40]!r}). A while_loop of the step can be written as a scan or a fori_loop of "
                "fixed length; one that the compiler made may be absent at another batch."
            )
        return bounds[0]


def root(computation: Computation) -> Instruction:
    """The instruction whose result is the computation's."""
    return next(instruction for instruction in computation.values() if instruction.is_root)


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
        raise UserError("This is not the text of an HLO module: it has no ENTRY computation.")
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
