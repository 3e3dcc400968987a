"""Compiles the training step for a TPU slice that is not there: what it needs, how fast it could be.

    python -m mv2mae_jax.topology --config=configs/ntu120.py --topology=v5e:16x16 --batch_per_chip=16
    python -m mv2mae_jax.topology --config=configs/ntu120.py --topology=v4:4x4x4,v5p:4x4x4,v6e:8x8
    python -m mv2mae_jax.topology --config=configs/ntu120.py --topology=v5e:2x2 --batch_per_chip=16 --largest_batch

Needs libtpu (requirements-tpu-aot.txt), whose compiler runs on a CPU, and no TPU. All figures are read off the compiled
program or follow from it and from published peak rates (chips.py): bounds, not measurements. docs/tpu.md explains.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from console.command import ExitCode, Parser, did_you_mean, execute, nearest, sizes
from console.errors import UserError
from data.store import dct
from data.store.whole_files import write_whole
from mv2mae_jax import config as configs
from mv2mae_jax import config_checks, optim
from mv2mae_jax.distributed import sharding
from mv2mae_jax.distributed.chips import CHIPS, Chip
from mv2mae_jax.models import compute
from mv2mae_jax.monitoring.flops import training_flops
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import side_files
from mv2mae_jax.state import TrainState
from mv2mae_jax.topology import batch_search, hlo, hlo_cost, roofline
from mv2mae_jax.train import jit_train_step

PROG = "python -m mv2mae_jax.topology"
OUTPUT = "benchmark_output/topology"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """A TPU slice known to the compiler.

    Attributes:
      name: e.g. 'v5e:16x16'.
      devices: one per chip; on v4 the two cores of a chip are one device, as in a run.
      num_hosts: processes that a run on it would have.
      chip: published rates.
    """

    name: str
    devices: list[Any]
    num_hosts: int
    chip: Chip

    @property
    def num_chips(self) -> int:
        return len(self.devices)


def find_slice(name: str) -> Slice:
    """Asks libtpu for the devices of 'GENERATION:AxB' or 'GENERATION:AxBxC'.

    Raises:
      ValueError: libtpu is not installed, or does not know such a slice.
    """
    generation = name.partition(":")[0]
    if generation not in CHIPS:
        hint = did_you_mean([f"{near}:{name.partition(':')[2] or '4x4'}" for near in nearest(generation, CHIPS)])
        raise UserError(f"--topology={name}: peak rates are known for {', '.join(CHIPS)}; write e.g. v5e:4x4.{hint}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler is missing. Install it into an environment of its own, since `import jax` then looks "
            "for a TPU: python -m venv .venv-tpu && .venv-tpu/bin/pip install -r requirements-tpu-aot.txt"
        )
    # No metadata server to ask, no TPU to hold a lock for; only errors are logged.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        options = {"chip_config_name": "megacore"} if generation == "v4" else {}
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology={name} is unknown to libtpu: {error}. Examples: v5e:4x4, v4:2x2x4.") from error
    num_hosts = len({device.process_index for device in devices})
    return Slice(name=name, devices=list(devices), num_hosts=num_hosts, chip=CHIPS[generation])


def batch_shapes(config: config_dict.ConfigDict, frame_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """A training batch as data/pipeline.py makes it, as far as the step reads it.

    Args:
      config: of pre-training.
      frame_size: (height, width) of frames that are stored as coefficients and decoded in the step; None for pixels.
    """
    model, views = Pretrain.from_config(config).model, 1 + config.data.num_source_views
    batch, repeats = config.global_batch_size, config.data.repeats
    if frame_size is not None:
        height, width = dct.padded_size(*frame_size)
        image = (batch // repeats, views, model.clip_size[0], 3 * height // 2, width)
        video = {
            "coefficients": jax.ShapeDtypeStruct(image, np.int8),
            "steps": jax.ShapeDtypeStruct((batch // repeats, views, 2, 8, 8), np.uint8),
            "box": jax.ShapeDtypeStruct((batch // repeats, repeats, views, 4), np.int32),
        }
        return {"stored": {"video": video}}
    shapes = {"video": jax.ShapeDtypeStruct((batch, views, *model.clip_size, 3), np.uint8)}
    if config.data.motion_on == "host":
        shapes["motion"] = jax.ShapeDtypeStruct((batch, views, model.num_tokens), np.float32)
    return shapes


def lower_train_step(
    config: config_dict.ConfigDict, devices: list[Any], frame_size: tuple[int, int] | None = None
) -> jax.stages.Lowered:
    """The step that `run.py` would run on these devices, up to the compiler; `frame_size` as in `batch_shapes`.

    Raises:
      ValueError: the batch cannot be cut over the devices, or another task than pre-training.
    """
    if config.task != "pretrain":
        raise UserError(f"task = {config.task!r}: the step of pre-training is compiled here; choose such a config.")
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_batch(mesh, config.global_batch_size, config.optimizer.accumulation_steps)
    objective = Pretrain.from_config(config)
    # Only constants of the program depend on the length of an epoch.
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1000.0)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    with_ema = config.optimizer.ema_decay is not None
    state = jax.eval_shape(lambda key: TrainState.create(objective.init(key), optimizer, with_ema), jax.random.key(0))
    batch = batch_shapes(config, frame_size)
    step = jit_train_step(objective, optimizer, schedule, config, mesh, state, jax.random.key(1))
    rows = sharding.batch_sharding(mesh)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), batch)
    return step.lower(sharding.abstract(mesh, state), batch)


def model_flops(config: config_dict.ConfigDict) -> float:
    """What flops.training_flops counts for a step over all chips."""
    objective = Pretrain.from_config(config)
    sample = {k: jax.ShapeDtypeStruct((1, *s.shape[1:]), s.dtype) for k, s in batch_shapes(config).items()}
    params = jax.eval_shape(objective.init, jax.random.key(0))
    return training_flops(objective, params, sample) * config.global_batch_size


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes per device as the compiler assigned them; donated arguments are not counted twice."""
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_REFUSALS = (  # libtpu 0.0.52, and before
    re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


def read_out_of_memory(message: str) -> dict[str, float | None] | None:
    """The compiler's refusal of a program in numbers, None where these are not stated.

    Newer compilers name the temporaries alone, without the arguments. Returns None if the error is another one.
    """
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    found = next(filter(None, (refusal.search(message) for refusal in _REFUSALS)), None)
    used, used_unit, available, available_unit = found.groups() if found else (None, "", None, "")
    return {
        "memory_used_bytes": float(used) * _UNITS[used_unit] if found else None,
        "memory_available_bytes": float(available) * _UNITS[available_unit] if found else None,
    }


def report(
    config: config_dict.ConfigDict,
    where: Slice,
    known: dict[str, Any] | None = None,
    frame_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Compiles one config for one slice.

    Args:
      config: with `global_batch_size` over the whole slice.
      where: from `find_slice`.
      known: an earlier report; returned as it is when it is of the same program and compiler.
      frame_size: as in `batch_shapes`.

    Returns:
      JSON-ready figures. Where the program does not fit the memory, `fits` is False, and instead of them there is what
      it would use and what the compiler grants; where it holds a loop of unknown length, there is its memory alone, and
      `not_counted` says why.

    Raises:
      ValueError: the compiled program cannot be read.
    """
    lowered = lower_train_step(config, where.devices, frame_size)
    identity = {
        "topology": where.name,
        "program_sha256": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        "libtpu": importlib.metadata.version("libtpu"),
        "counted_as": hlo_cost.COUNTED_AS,
        "compiler_flags": os.environ.get("LIBTPU_INIT_ARGS") or None,
    }
    if known and all(known.get(key) == value for key, value in identity.items()):
        return known
    record = {
        **identity,
        "jax": jax.__version__,
        "chips": where.num_chips,
        "hosts": where.num_hosts,
        "batch_per_chip": config.global_batch_size / where.num_chips,
        "views_per_sample": 1 + config.data.num_source_views,
        "remat": config.model.remat,
        "attention": config.model.attention,
        "compute_dtype": config.compute_dtype,
    }
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        lacking = read_out_of_memory(str(error))
        if lacking is None:
            raise
        seconds = round(time.monotonic() - start, 1)
        return {**record, "fits": False, "compile_seconds": seconds, **lacking}
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The step was compiled for {where.name}, but jaxlib {jax.lib.__version__} cannot read the program that "
            f"libtpu {identity['libtpu']} made ({reason}). jax 0.12 reads what 0.10 cannot, and needs Python 3.12: "
            "make the environment with it. Or try another libtpu."
        ) from error
    record |= {
        "fits": True,
        "compile_seconds": round(time.monotonic() - start, 1),
        "memory_per_device": memory(compiled),
        "chip_memory_bytes": where.chip.hbm_bytes,
    }
    try:
        program = roofline.read_program(text)
    except hlo.LoopOfUnknownLength as error:
        return {**record, "not_counted": str(error)}
    cost = compiled.cost_analysis()
    needed = model_flops(config) / where.num_chips
    bound = roofline.bounds(program, where.chip, flops_needed=needed)
    return {
        **record,
        "program": program,
        "cost_analysis_loops_once": {key: cost.get(key) for key in ("flops", "bytes accessed", "transcendentals")},
        "model_flops_per_chip": needed,
        "bound": bound,
        "input": input_rate(config, where, bound["step_seconds"], frame_size),
        "rates": dataclasses.asdict(where.chip),
    }


def input_rate(
    config: config_dict.ConfigDict, where: Slice, step_seconds: float, frame_size: tuple[int, int] | None = None
) -> dict[str, float]:
    """What the hosts must deliver for a step of this length; bytes are those that go to the chips."""
    num_clips = config.global_batch_size * (1 + config.data.num_source_views)
    clips = num_clips / step_seconds
    batch = batch_shapes(config, frame_size)
    shapes = jax.tree.leaves(batch["stored"] if "stored" in batch else batch["video"])
    clip_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes) / num_clips
    return {
        "clips_per_second": clips,
        "clips_per_second_per_host": clips / where.num_hosts,
        "bytes_per_second_per_host": clips * clip_bytes / where.num_hosts,
    }


def make_parser() -> Parser:
    parser = Parser(PROG, __doc__, exit_codes={ExitCode.DONE: "compiled, whether or not it fits; the table says which"})
    parser.add_config(configs.known_keys)
    parser.add_argument("--topology", required=True, help="slices, e.g. v5e:16x16 or v4:2x2x1,v5p:2x2x1,v6e:2x2")
    parser.add_argument(
        "--batch_per_chip", type=int, help="samples; without it global_batch_size is cut over the chips"
    )
    parser.add_argument(
        "--coefficients",
        type=sizes("HEIGHTxWIDTH in pixels", "170x302"),
        metavar="HEIGHTxWIDTH",
        help="decode frames of this size in the step (data.prepare --codec=dct); without it they come as pixels",
    )
    parser.add_argument("--largest_batch", action="store_true", help="also search for the largest batch that fits")
    parser.add_argument("--output", default=OUTPUT, help="where one JSON file per compilation goes (%(default)s)")
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    return execute(PROG, lambda: compile_all(arguments))


def compile_all(arguments: argparse.Namespace) -> None:
    """Runs the command. Raises ValueError where there is no such slice, config or compiler."""
    overrides, frame_size = arguments.overrides, arguments.coefficients
    config_checks.validate(configs.load(arguments.config, overrides), data_dir=False)  # mistakes show first
    if arguments.batch_per_chip is not None and arguments.batch_per_chip < 1:
        raise UserError(f"--batch_per_chip={arguments.batch_per_chip} must be at least 1.")
    jax.config.update("jax_platforms", "cpu")
    title = " ".join([os.path.splitext(os.path.basename(arguments.config))[0], *overrides])
    records, found = [], []
    if frame_size:
        title += " coefficients=" + "x".join(map(str, frame_size))
    if os.environ.get("LIBTPU_INIT_ARGS"):
        title += " " + os.environ["LIBTPU_INIT_ARGS"].replace("--", "")
    os.makedirs(arguments.output, exist_ok=True)
    for name in arguments.topology.split(","):
        where = find_slice(name)
        config = configs.load(arguments.config, overrides)
        config.update_from_flattened_dict(compute.settle(config, "tpu").settled())
        if arguments.batch_per_chip:
            config.global_batch_size = arguments.batch_per_chip * where.num_chips
        if arguments.largest_batch:
            tried, summary = search_batch(title, config, where, frame_size, arguments.output)
            records += tried
            found.append(summary)
        else:
            records.append(saved_report(title, config, where, frame_size, arguments.output))
    print("\n".join([roofline.table(records), *found]))


def saved_report(
    title: str, config: config_dict.ConfigDict, where: Slice, frame_size: tuple[int, int] | None, output: str
) -> dict[str, Any]:
    """`report`, written to a file in `output`; read from it where it is there and of the same program and compiler."""
    batch = f"{config.global_batch_size / where.num_chips:g}"
    path = os.path.join(output, re.sub(r"[^\w.=-]+", "_", f"{title} b{batch} {where.name}") + ".json")
    print(f"{where.name}: {batch} samples per chip, remat={config.model.remat} ...", end=" ", flush=True)
    known = side_files.read(path, lambda content: isinstance(content, dict))
    record = {"title": title, **report(config, where, known, frame_size)}
    if record == known:
        how = "as compiled before"
    else:
        how = f"compiled in {record['compile_seconds']:.0f} s"
        write_whole(path, json.dumps(record, indent=1))
    verdict = "" if record["fits"] else ", does not fit"
    if "not_counted" in record:
        verdict += f", fits; the rest is unknown: {record['not_counted']}"
    print(f"{roofline.memory_cell(record)} GB{verdict}; {how}: {path}", flush=True)
    return record


def search_batch(
    title: str, config: config_dict.ConfigDict, where: Slice, frame_size: tuple[int, int] | None, output: str
) -> tuple[list[dict[str, Any]], str]:
    """Reports for the batches that the search for the largest one compiled, in order of size, and what it found.

    It continues where it was interrupted, since every compilation is a file in `output`.

    Raises:
      ValueError: the batch to start with is not whole.
    """
    first, rest = divmod(config.global_batch_size, where.num_chips)
    if rest:
        raise UserError(
            f"global_batch_size = {config.global_batch_size} is not a whole number of samples for each of "
            f"{where.num_chips} chips, where the search starts; set --batch_per_chip."
        )
    reports = {}

    def compile_at(batch: int) -> batch_search.Trial:
        trial = config.copy_and_resolve_references()
        trial.global_batch_size = batch * where.num_chips
        record = reports[batch] = saved_report(title, trial, where, frame_size, output)
        used, available = roofline.used_and_available(record)
        return batch_search.Trial(
            fits=record["fits"], used_bytes=used, available_bytes=None if record["fits"] else available
        )

    trials = batch_search.largest_batch(compile_at, first=first, memory_bytes=where.chip.hbm_bytes)
    fits, fails = batch_search.bracket(trials)
    available = batch_search.available_bytes(trials, where.chip.hbm_bytes)
    said = f"{title}, {where.name}, remat={config.model.remat}: "
    if fits:
        free = available - trials[fits].used_bytes
        said += f"{fits} samples per chip fit, {free / roofline.GB:.1f} of {available / roofline.GB:.1f} GB are free"
    else:
        said += "no batch that was tried fits"
    said += f"; {fails} do not fit." if fails else "; nothing larger was tried."
    return [reports[batch] for batch in sorted(reports)], said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
