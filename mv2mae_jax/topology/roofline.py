"""The cost of a compiled program on a chip with published rates, and the table of such reports."""

import collections
from typing import Any

from mv2mae_jax.distributed.chips import Chip
from mv2mae_jax.topology import hlo, hlo_cost

GB = 1e9


def read_program(text: str) -> dict[str, Any]:
    """What one device does in a step, from the text of the compiled program; loops counted as often as they run."""
    module = hlo.parse(text)
    collectives: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for one in hlo_cost.collectives(module):
        collectives[one.kind].update(
            runs=one.runs,
            runs_in_loops=one.runs if one.runs > 1 else 0,
            bytes=one.runs * one.bytes,
            wire_bytes=one.runs * one.wire_bytes,
        )
    cycles, traffic = hlo_cost.estimated_cycles(module), hlo_cost.bytes_moved(module, lambda array: array.hbm_bytes)
    return {
        "matmul_flops": hlo_cost.matmul_flops(module),
        "bytes_accessed": hlo_cost.bytes_moved(module, lambda array: array.bytes).total(),
        "hbm_bytes": traffic.total(),
        "hbm_bytes_of": dict(traffic.most_common(20)),
        "collectives": {kind: dict(counts) for kind, counts in sorted(collectives.items())},
        "compiler_cycles": cycles.total(),
        "compiler_cycles_of": dict(cycles.most_common(20)),
    }


def bounds(program: dict[str, Any], chip: Chip, *, flops_needed: float) -> dict[str, float | str | None]:
    """Lower bounds of the program's time on a chip of this kind, in seconds, and what follows from them.

    Args:
      program: from `read_program`.
      chip: published rates.
      flops_needed: of the model, per chip and step.
    """
    wire_bytes = sum(kind["wire_bytes"] for kind in program["collectives"].values())
    seconds = {
        "compute": program["matmul_flops"] / chip.flops_per_second,
        "memory": program["hbm_bytes"] / chip.hbm_bytes_per_second,
        "interconnect": wire_bytes / chip.ici_bytes_per_second,
    }
    bound_by = max(seconds, key=seconds.get)
    step = seconds[bound_by]
    on_chip = program["bytes_accessed"] / chip.hbm_bytes_per_second
    compiler = program["compiler_cycles"] / chip.clock_hz if chip.clock_hz and program["compiler_cycles"] else None
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "step_seconds": step,
        "bound_by": bound_by,
        "mfu": flops_needed / (step * chip.flops_per_second),
        "flops_per_hbm_byte": program["matmul_flops"] / program["hbm_bytes"],
        "flops_per_byte_accessed": program["matmul_flops"] / program["bytes_accessed"],
        "mfu_if_all_bytes_were_hbm": flops_needed / (max(step, on_chip) * chip.flops_per_second),
        "compiler_seconds": compiler,
        "mfu_by_compiler": flops_needed / (compiler * chip.flops_per_second) if compiler else None,
    }


def used_and_available(record: dict[str, Any]) -> tuple[float | None, float | None]:
    """Bytes of a chip's memory that a program needs, and what there is.

    The second is the published memory, or what the compiler stated in a refusal; None if it did not state it.
    """
    if record["fits"]:
        return record["memory_per_device"]["total"], record["chip_memory_bytes"]
    return record["memory_used_bytes"], record["memory_available_bytes"]


# fmt: off
COLUMNS = (
    "program", "slice", "chips", "batch/chip", "memory GB/chip", "TFLOP/chip", "HBM GB/chip", "flop/byte",
    "sent MB/chip", "compute ms", "memory ms", "links ms", "compiler's ms", "MFU at most", "clips/s at most",
    "clips/s per host",
)
# fmt: on


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table of reports in the order given."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for record in records:
        cells = [record["title"], record["topology"], str(record["chips"]), f"{record['batch_per_chip']:g}"]
        if not record["fits"]:
            cells += [f"{memory_cell(record)}: does not fit"]
        elif "not_counted" in record:
            cells += [memory_cell(record)]
        else:
            cells += _figures(record)
        cells += [""] * (len(COLUMNS) - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_cell(record: dict[str, Any]) -> str:
    """'1.7 of 17.2', in GB."""
    return " of ".join("?" if size is None else f"{size / GB:.1f}" for size in used_and_available(record))


def _figures(record: dict[str, Any]) -> list[str]:
    bound, program = record["bound"], record["program"]
    sent = sum(kind["wire_bytes"] for kind in program["collectives"].values())
    return [
        memory_cell(record),
        f"{program['matmul_flops'] / 1e12:.2f}",
        f"{program['hbm_bytes'] / GB:.1f}",
        f"{bound['flops_per_hbm_byte']:.0f}",
        f"{sent / 1e6:.0f}",
        *(f"{1e3 * bound[f'{name}_seconds']:.1f}" for name in ("compute", "memory", "interconnect")),
        f"{1e3 * bound['compiler_seconds']:.0f}" if bound["compiler_seconds"] else "",
        f"{bound['mfu']:.0%}",
        f"{record['input']['clips_per_second']:,.0f}",
        f"{record['input']['clips_per_second_per_host']:,.0f}",
    ]
