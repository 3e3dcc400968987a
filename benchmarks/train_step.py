"""A pre-training step of this project beside the same step of Hugging Face's VideoMAE in PyTorch.

    python -m benchmarks.train_step                                                  # CPU, ViT-S at 16x128x128
    python -m benchmarks.train_step --models=S,B --clips=16x128x128,16x224x224 --batch=128 --precisions=bfloat16  # GPU

The same work for both: a single-view masked autoencoder (self-view decoder alone, since the peer has no other), mask
ratio 0.9, normalised pixels as targets, AdamW, the same batch, clip and precision. Each implementation runs in its own
process; they take turns, a step each, in one run, so that whatever else the machine does falls on all alike. Beside
them, not compared: the whole step of MV2MAE (two views, both decoders, motion weights) with as many clips.

Printed and saved: clips per second (median over the turns), the peer's time over ours of each turn (median and
quartiles), peak memory, and the rate of floating-point operations that the model needs, with MFU where a peak is
published. Needs torch and transformers (requirements-torch.txt).
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiment import CONFIGS, RESULTS, chosen, hardware
from console.command import Parser, execute

OURS, WHOLE = "mv2mae-jax", "mv2mae-jax, whole MV2MAE step"
PEER, COMPILED = "transformers", "transformers, torch.compile"
IMPLEMENTATIONS = (OURS, PEER, COMPILED, WHOLE)
VERSIONS = ("jax", "jaxlib", "flax", "torch", "transformers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared: ViT `model`, `clip` (frames, height, width), clips per step, float32 or bfloat16."""

    model: str
    clip: tuple[int, int, int]
    batch: int
    precision: str

    def __str__(self) -> str:
        return f"ViT-{self.model}, {'x'.join(map(str, self.clip))}, {self.batch} clips, {self.precision}"


def our_config(case: Case, *, whole: bool):
    """configs/ntu120.py with this case's model, clip and batch; VideoMAE's objective, or the paper's if `whole`."""
    from mv2mae_jax import config as configs

    frames, *crop = case.clip
    overrides = {
        "model.variant": case.model,
        "data.num_frames": frames,
        "data.crop_size": tuple(crop),
        "compute_dtype": case.precision,
        "model.scan_layers": False,  # as the peer; what scanning saves is the compilation
        "global_batch_size": case.batch // 2 if whole else case.batch,
    }
    if not whole:
        overrides |= {
            "model.cross_view": False,
            "data.num_source_views": 0,
            "masking.target_mask_ratio": 0.9,
            "loss.target": "normalized_pixels",
            "loss.temperature": "inf",
        }
    return configs.load(str(CONFIGS / "ntu120.py"), [f"{key}={value}" for key, value in overrides.items()])


def make_our_step(case: Case, *, whole: bool) -> tuple[Callable[[], None], Callable[[], int], dict[str, Any]]:
    """The step that run.py would run, on one random batch: (step, peak memory in bytes, facts)."""
    import jax

    from mv2mae_jax import flops, optim, perf, sharding, topology
    from mv2mae_jax.chips import peak_flops_per_second
    from mv2mae_jax.state import TrainState
    from mv2mae_jax.tasks.pretrain import Pretrain
    from mv2mae_jax.train import jit_train_step

    config = our_config(case, whole=whole)
    task, mesh = Pretrain.from_config(config), sharding.make_mesh(1, 1, jax.devices()[:1])
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1000.0)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    state = jax.jit(lambda key: TrainState.create(task.init(key), optimizer, with_ema=False))(jax.random.key(0))
    rng = np.random.default_rng(0)
    shapes = topology.batch_shapes(config)
    rows = {"video": rng.integers(0, 256, shapes["video"].shape), "motion": rng.gamma(1, 300, shapes["motion"].shape)}
    batch = sharding.put_batch(mesh, {name: array.astype(shapes[name].dtype) for name, array in rows.items()})
    train_step = jit_train_step(task, optimizer, schedule, config, mesh, state, jax.random.key(1))
    needed = flops.training_flops(task, state.params, batch)
    device = jax.devices()[0]

    def step() -> None:
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))

    facts = {"model_flops": needed, "peak_flops_per_second": peak_flops_per_second(device.device_kind)}
    return step, lambda: perf.peak_memory_bytes(device), facts | {"device": device.device_kind}


def model_sizes(case: Case) -> dict[str, int]:
    """Our model's sizes under the names of transformers' VideoMAEConfig."""
    from mv2mae_jax.tasks.pretrain import Pretrain

    model = Pretrain.from_config(our_config(case, whole=False)).model
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio),
    }


def make_peer_step(
    case: Case, sizes: dict[str, int], *, compiled: bool
) -> tuple[Callable[[], None], Callable[[], int], dict[str, Any]]:
    """The same work in PyTorch, with scaled-dot-product attention and fused AdamW."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest" if case.precision == "float32" else "high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = transformers.VideoMAEConfig(
        image_size=case.clip[1],
        patch_size=16,
        num_frames=case.clip[0],
        tubelet_size=2,
        norm_pix_loss=True,
        attn_implementation="sdpa",
        **sizes,
    )
    model = transformers.VideoMAEForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    num_tokens = (case.clip[0] // 2) * (case.clip[1] // 16) * (case.clip[2] // 16)
    video = torch.rand(case.batch, case.clip[0], 3, *case.clip[1:], device=device)
    num_masked = int(0.9 * num_tokens)
    order = torch.rand(case.batch, num_tokens, device=device).argsort(dim=1)
    mask = order < num_masked  # as many in every row
    run = torch.compile(model) if compiled else model
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bfloat16")

    def step() -> None:
        with autocast:
            loss = run(video, bool_masked_pos=mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def peak_memory() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return step, peak_memory, {"parameters": sum(p.numel() for p in model.parameters())}


def serve(connection: Any, implementation: str, case: Case, sizes: dict[str, int]) -> None:
    """The process of one implementation: runs a step whenever it is told to and answers how long it took."""
    try:
        if implementation in (OURS, WHOLE):
            step, memory, facts = make_our_step(case, whole=implementation == WHOLE)
        else:
            step, memory, facts = make_peer_step(case, sizes, compiled=implementation == COMPILED)
        for _ in range(2):
            step()  # compiles, and settles memory
        connection.send(facts)
        while connection.recv() == "step":
            start = time.perf_counter()
            step()
            connection.send(time.perf_counter() - start)
        connection.send(memory())
    except Exception as error:  # of two frameworks and their compilers: reported, the others go on
        traceback.print_exc()
        connection.send(error.__class__.__name__ + ": " + str(error).splitlines()[0])


@contextlib.contextmanager
def started(case: Case, names: list[str]) -> Iterator[dict[str, Any]]:
    """Connections to one process per implementation."""
    context = multiprocessing.get_context("spawn")
    processes, connections, sizes = [], {}, model_sizes(case)
    for name in names:
        connections[name], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, name, case, sizes), daemon=True))
        processes[-1].start()
        other.close()
    try:
        yield connections
    finally:
        for process in processes:
            process.terminate()
            process.join()


def measure(case: Case, names: list[str], turns: int) -> dict[str, Any]:
    """The record of a case: per implementation its seconds per step, turn by turn, memory and facts, or its error."""
    with started(case, names) as connections:
        answers = {name: connection.recv() for name, connection in connections.items()}
        record = {name: {"error": answer} for name, answer in answers.items() if isinstance(answer, str)}
        record |= {name: {**answer, "seconds": []} for name, answer in answers.items() if not isinstance(answer, str)}
        running = [name for name in names if "seconds" in record[name]]
        for turn in range(turns):
            for name in running[turn % len(running) :] + running[: turn % len(running)]:  # nobody is always first
                connections[name].send("step")
                record[name]["seconds"].append(connections[name].recv())
        for name in running:
            connections[name].send("stop")
            record[name]["memory_bytes"] = connections[name].recv()
    return {"case": dataclasses.asdict(case), "implementations": record}


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: one row per case and implementation."""
    lines = [
        "| case | implementation | clips/s | its time / ours (quartiles) | memory GB | TFLOP/s | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        case, found = Case(**record["case"]), record["implementations"]
        for name, one in found.items():
            if "error" in one:
                lines.append(f"| {case} | {name} | failed: {one['error']} | | | | |")
                continue
            seconds = statistics.median(one["seconds"])
            ratio = ""
            if name in (PEER, COMPILED) and "seconds" in found.get(OURS, {}):
                low, middle, high = np.quantile(np.divide(one["seconds"], found[OURS]["seconds"]), (0.25, 0.5, 0.75))
                ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            flops = one.get("model_flops") or found.get(OURS, {}).get("model_flops")
            peak = found.get(OURS, {}).get("peak_flops_per_second")
            rate = f"{flops / seconds / 1e12:.2f}" if flops else ""
            mfu = f"{flops / seconds / peak:.0%}" if flops and peak else ""
            memory = f"{one['memory_bytes'] / 1e9:.1f}"
            lines.append(f"| {case} | {name} | {case.batch / seconds:.1f} | {ratio} | {memory} | {rate} | {mfu} |")
    return "\n".join(lines)


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.train_step", __doc__)
    parser.add_argument("--models", default="S", help="ViT sizes, comma-separated (%(default)s)")
    parser.add_argument("--clips", default="16x128x128", help="FRAMESxHEIGHTxWIDTH, comma-separated (%(default)s)")
    parser.add_argument("--precisions", default="float32,bfloat16", help="comma-separated (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="clips per step, an even number (%(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="steps of each implementation (%(default)s)")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, default=RESULTS / "train_step" / "cpu.json", help="%(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    models = chosen(parser, options.models, ("Ti", "S", "B", "L", "H"))
    precisions = chosen(parser, options.precisions, ("float32", "bfloat16"))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share one accelerator
    # Read by the C library as a process starts: what a step frees is kept for the next one, for all alike.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**34))
    names = [name for name in IMPLEMENTATIONS if not (options.no_compile and name == COMPILED)]
    versions = {package: importlib.metadata.version(package) for package in VERSIONS}
    command = "python -m benchmarks.train_step " + " ".join(sys.argv[1:] if arguments is None else arguments)
    summary = {"command": command, "hardware": hardware(), "versions": versions, "records": []}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for model in models:
        for clip in options.clips.split(","):
            for precision in precisions:
                size = tuple(int(part) for part in clip.split("x"))
                case = Case(model=model, clip=size, batch=options.batch, precision=precision)
                summary["records"].append(measure(case, names, options.turns))
                print(table(summary["records"][-1:]), flush=True)
                options.output.write_text(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.train_step", main))
