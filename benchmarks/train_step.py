"""A pre-training step of this project beside the same step of Hugging Face's VideoMAE in PyTorch.

    python -m benchmarks.train_step                                                  # CPU, ViT-S at 16x128x128
    python -m benchmarks.train_step --models=S,B --batch=128 --precisions=bfloat16 --steps_per_turn=5 --in_turn  # GPU
    python -m benchmarks.train_step --coefficients=170x302                           # and decoding in the step
    python -m benchmarks.train_step --finetune --clips=16x224x224                    # a step of fine-tuning
    python -m benchmarks.train_step --also=model.attention=cudnn --also=--xla_gpu_enable_triton_gemm=false

The same work for both: a single-view masked autoencoder (self-view decoder alone, since the peer has no other), mask
ratio 0.9, normalised pixels as targets, AdamW, the same batch, clip and precision. Each implementation runs in its own
process; they take turns, a step each, in one run, so that whatever else the machine does falls on all alike. Beside
them: the whole step of MV2MAE (two views, both decoders, motion weights) with as many clips, and with --coefficients
the same decoded within the step from stored DCT coefficients.

With --finetune: the classifier, which sees all tokens, beside VideoMAEForVideoClassification. Neither side mixes
samples, smooths labels or drops paths.

Printed and saved: clips per second (median over the turns); each one's time over that of this project, turn by turn
(median and quartiles), where the step from coefficients stands against the one from pixels; peak memory; and the rate
of floating-point operations that the model needs, with MFU where a peak is published. Needs torch and transformers
(requirements-torch.txt).
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import resource
import shlex
import statistics
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiment import CONFIGS, OUTPUT, chosen, hardware
from console.command import Parser, execute, sizes

OURS, PEER, COMPILED = "mv2mae-jax", "transformers", "transformers, torch.compile"
WHOLE, DECODING = "mv2mae-jax, whole MV2MAE step", "mv2mae-jax, whole MV2MAE step from coefficients"
read_clip = sizes("FRAMESxHEIGHTxWIDTH", "16x128x128")
NUM_CLASSES = 60  # of fine-tuning, as NTU-60 has
VERSIONS = ("jax", "jaxlib", "flax", "torch", "transformers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared: ViT `model`, `clip` (frames, height, width), clips per step, float32 or bfloat16.

    `finetune`: steps of fine-tuning in place of pre-training.
    """

    model: str
    clip: tuple[int, int, int]
    batch: int
    precision: str
    finetune: bool = False

    def __str__(self) -> str:
        task = ", fine-tuning" if self.finetune else ""
        return f"ViT-{self.model}, {'x'.join(map(str, self.clip))}, {self.batch} clips, {self.precision}{task}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """What runs in a process of its own."""

    name: str  # in the tables
    compared_with: str | None = None  # the name of the implementation whose time its own is divided by; None for none
    # 'eager' or 'compiled' (by torch.compile) for a step of transformers' VideoMAE; None for one of this project, to
    # which the rest belongs.
    peer: str | None = None
    whole: bool = False  # the paper's objective; False is VideoMAE's
    frame_size: tuple[int, int] | None = None  # (height, width) of frames decoded in the step; None for pixels
    overrides: tuple[str, ...] = ()  # `key=value` of the config
    xla_flags: tuple[str, ...] = ()  # added to the environment's


def our_config(case: Case, *, whole: bool, overrides: Sequence[str] = ()):
    """configs/ntu120.py with this case's model, clip and batch; VideoMAE's objective, or the paper's if `whole`.

    For a case of fine-tuning configs/finetune_ntu120.py, without what only the one side would do.
    """
    from mv2mae_jax import config as configs

    frames, *crop = case.clip
    values = {
        "model.variant": case.model,
        "data.num_frames": frames,
        "data.crop_size": tuple(crop),
        "compute_dtype": case.precision,
        "model.layer_loop": "unrolled",  # as the peer's layers are; a loop would only save compilation
        "global_batch_size": case.batch // 2 if whole else case.batch,
    }
    if case.finetune:
        values |= {"model.drop_path": 0.0, "mix.mix_probability": 0.0, "loss.label_smoothing": 0.0}
    elif not whole:
        values |= {
            "model.cross_view": False,
            "data.num_source_views": 0,
            "masking.target_mask_ratio": 0.9,
            "loss.target": "normalized_pixels",
            "loss.temperature": "inf",
        }
    arguments = [f"{key}={value}" for key, value in values.items()]
    file = "finetune_ntu120.py" if case.finetune else "ntu120.py"
    return configs.load(str(CONFIGS / file), [*arguments, *overrides])


def random_array(rng: np.random.Generator, spec: Any) -> np.ndarray:
    """Bytes of every value; boxes and energies are positive numbers."""
    if np.issubdtype(spec.dtype, np.floating):
        return rng.gamma(1, 300, spec.shape).astype(spec.dtype)
    low, high = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
    return rng.integers(low, high, spec.shape, spec.dtype, endpoint=True)


def batch_shapes(config: Any, frame_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """As `topology.batch_shapes`; of fine-tuning `video` uint8[B, T, H, W, 3], `label` int32[B]."""
    import jax

    from mv2mae_jax.topology import __main__ as topology

    if config.task == "pretrain":
        return topology.batch_shapes(config, frame_size)
    batch = config.global_batch_size
    video = (batch, config.data.num_frames, *config.data.crop_size, 3)
    return {"video": jax.ShapeDtypeStruct(video, np.uint8), "label": jax.ShapeDtypeStruct((batch,), np.int32)}


def random_batch(config: Any, frame_size: tuple[int, int] | None) -> dict[str, Any]:
    """A batch of `batch_shapes`; stored frames are faint noise, boxes in the middle."""
    import jax

    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda spec: random_array(rng, spec), batch_shapes(config, frame_size))
    if "label" in batch:
        batch["label"] %= NUM_CLASSES
    if frame_size is not None:
        side = min(frame_size)
        box = np.array([(size - side) // 2 for size in frame_size] + [side, side])
        video = batch["stored"]["video"]
        video["box"] = np.broadcast_to(box.astype(np.int32), video["box"].shape).copy()
        video["coefficients"] //= 32
    return batch


def make_objective(config: Any) -> Any:
    """The objective of a config, without data."""
    from mv2mae_jax.models import classifier
    from mv2mae_jax.objectives.finetune import Finetune
    from mv2mae_jax.objectives.pretrain import Pretrain

    if config.task == "pretrain":
        return Pretrain.from_config(config)
    return Finetune(
        model=classifier.from_config(config, NUM_CLASSES),
        dataset=types.SimpleNamespace(num_classes=NUM_CLASSES),
        mixing=dict(config.mix),
        label_smoothing=config.loss.label_smoothing,
    )


def make_our_step(case: Case, what: Implementation) -> tuple[Callable[[int], None], Callable[[], int], dict[str, Any]]:
    """The step that run.py would run, on one random batch: (does n of them, peak memory in bytes, facts)."""
    import jax

    from mv2mae_jax import optim
    from mv2mae_jax.distributed import sharding
    from mv2mae_jax.distributed.chips import peak_flops_per_second
    from mv2mae_jax.monitoring import flops, perf
    from mv2mae_jax.state import TrainState
    from mv2mae_jax.train import jit_train_step

    config = our_config(case, whole=what.whole, overrides=what.overrides)
    task, mesh = make_objective(config), sharding.make_mesh(1, 1, jax.devices()[:1])
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1000.0)
    optimizer = optim.make_optimizer(config.optimizer, schedule)
    state = jax.jit(lambda key: TrainState.create(task.init(key), optimizer, with_ema=False))(jax.random.key(0))
    batch = sharding.put_batch(mesh, random_batch(config, what.frame_size))
    train_step = jit_train_step(task, optimizer, schedule, config, mesh, state, jax.random.key(1))
    needed = flops.training_flops(task, state.params, batch_shapes(config))
    device = jax.devices()[0]

    def steps(number: int) -> None:
        nonlocal state
        for _ in range(number):
            state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))

    facts = {"model_flops": needed, "peak_flops_per_second": peak_flops_per_second(device.device_kind)}
    return steps, lambda: perf.peak_memory_bytes(device), facts | {"device": device.device_kind}


def model_sizes(case: Case) -> dict[str, int]:
    """Our model's sizes under the names of transformers' VideoMAEConfig."""
    model = make_objective(our_config(case, whole=False)).model
    encoder = model.encoder if case.finetune else model
    sizes = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
    }
    if case.finetune:
        return sizes
    return sizes | {
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio),
    }


def make_peer(case: Case, peer_sizes: dict[str, int], device: Any) -> tuple[Any, Any, dict[str, Any]]:
    """transformers' model with scaled-dot-product attention, a random video for it, and its other arguments."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=case.clip[1],
        patch_size=16,
        num_frames=case.clip[0],
        tubelet_size=2,
        norm_pix_loss=True,
        use_mean_pooling=case.finetune,  # it also takes the encoder's last norm out
        num_labels=NUM_CLASSES,
        attn_implementation="sdpa",
        **peer_sizes,
    )
    kind = transformers.VideoMAEForVideoClassification if case.finetune else transformers.VideoMAEForPreTraining
    model = kind(config).to(device).train()
    num_tokens = (case.clip[0] // 2) * (case.clip[1] // 16) * (case.clip[2] // 16)
    video = torch.rand(case.batch, case.clip[0], 3, *case.clip[1:], device=device)
    if case.finetune:
        return model, video, {"labels": torch.arange(case.batch, device=device) % NUM_CLASSES}
    order = torch.rand(case.batch, num_tokens, device=device).argsort(dim=1)
    return model, video, {"bool_masked_pos": order < int(0.9 * num_tokens)}  # as many in every row


def make_peer_step(
    case: Case, peer_sizes: dict[str, int], what: Implementation
) -> tuple[Callable[[int], None], Callable[[], int], dict[str, Any]]:
    """The same work in PyTorch, with fused AdamW."""
    import torch

    torch.set_float32_matmul_precision("highest" if case.precision == "float32" else "high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, video, asked = make_peer(case, peer_sizes, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    run = torch.compile(model) if what.peer == "compiled" else model
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bfloat16")

    def steps(number: int) -> None:
        for _ in range(number):
            with autocast:
                loss = run(video, **asked).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def peak_memory() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return steps, peak_memory, {"parameters": sum(p.numel() for p in model.parameters())}


def serve(connection: Any, implementation: Implementation, case: Case, peer_sizes: dict[str, int]) -> None:
    """The process of one implementation: does as many steps as it is told to and answers how long they took."""
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *implementation.xla_flags])
    try:
        if implementation.peer is None:
            steps, memory, facts = make_our_step(case, implementation)
        else:
            steps, memory, facts = make_peer_step(case, peer_sizes, implementation)
        steps(2)  # compiles, and settles memory
        connection.send(facts)
        while number := connection.recv():
            start = time.perf_counter()
            steps(number)
            connection.send((time.perf_counter() - start) / number)
        connection.send(memory())
    except Exception as error:  # of two frameworks and their compilers: reported, the others continue
        traceback.print_exc()
        connection.send(error.__class__.__name__ + ": " + str(error).splitlines()[0])


@contextlib.contextmanager
def started(
    case: Case, implementations: Sequence[Implementation], *, in_turn: bool
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(connections, facts or errors) of one process per implementation, all ready, by name.

    `in_turn`: each of ours is ready before the next one starts. Prints a line when one is ready.
    """
    context, began = multiprocessing.get_context("spawn"), time.perf_counter()
    processes, connections, facts, peer_sizes = [], {}, {}, model_sizes(case)

    def wait_for(name: str) -> None:
        facts[name] = answer(connections[name])
        how = "failed" if isinstance(facts[name], str) else "is ready"
        print(f"{case}: {name} {how}, {time.perf_counter() - began:.0f} s", flush=True)

    try:
        for one in sorted(implementations, key=lambda one: one.peer is None):
            connections[one.name], other = context.Pipe()
            processes.append(context.Process(target=serve, args=(other, one, case, peer_sizes), daemon=True))
            processes[-1].start()
            other.close()
            if in_turn and one.peer is None:
                wait_for(one.name)
        for name in [name for name in connections if name not in facts]:
            wait_for(name)
        yield connections, facts
    finally:
        for process in processes:
            process.terminate()
            process.join()


def answer(connection: Any) -> Any:
    """The process's next message, or a text if it died without one, as with an unknown flag of XLA."""
    try:
        return connection.recv()
    except EOFError:
        return "the process ended, see its output"


def measure(
    case: Case, implementations: Sequence[Implementation], *, turns: int, steps_per_turn: int, in_turn: bool
) -> dict[str, Any]:
    """The record of a case: per implementation its seconds per step, turn by turn, memory and facts, or its error."""
    with started(case, implementations, in_turn=in_turn) as (connections, facts):
        record = {}
        for one in implementations:
            said = facts[one.name]
            said = {"error": said} if isinstance(said, str) else said | {"seconds": []}
            record[one.name] = said | {"compared_with": one.compared_with}
        running = [one.name for one in implementations if "seconds" in record[one.name]]
        for turn in range(turns):
            first = turn % max(1, len(running))  # nobody is always first
            for name in running[first:] + running[:first]:
                connections[name].send(steps_per_turn)
                seconds = answer(connections[name])
                if isinstance(seconds, str):
                    record[name]["error"] = seconds
                    running.remove(name)
                    continue
                record[name]["seconds"].append(seconds)
        for name in running:
            connections[name].send(0)
            record[name]["memory_bytes"] = connections[name].recv()
    return {"case": dataclasses.asdict(case), "implementations": record}


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: one row per case and implementation."""
    lines = [
        "| case | implementation | clips/s | time, relative (quartiles) | memory GB | TFLOP/s | MFU |",
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
            other = found.get(one["compared_with"], {"error": ""})
            if "error" not in other:
                low, middle, high = np.quantile(np.divide(one["seconds"], other["seconds"]), (0.25, 0.5, 0.75))
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
    parser.add_argument(
        "--clips",
        type=lambda text: [read_clip(clip) for clip in text.split(",")],
        default="16x128x128",
        metavar="FRAMESxHEIGHTxWIDTH",
        help="comma-separated (%(default)s)",
    )
    parser.add_argument("--precisions", default="float32,bfloat16", help="comma-separated (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="clips per step, an even number (%(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="of each implementation (%(default)s)")
    parser.add_argument("--steps_per_turn", type=int, default=1, help="waited for at its end only (%(default)s)")
    parser.add_argument(
        "--in_turn",
        action="store_true",
        help="start one step of this project after the other: on a GPU its compiler times kernels to choose among them",
    )
    parser.add_argument("--finetune", action="store_true", help="steps of fine-tuning in place of pre-training")
    parser.add_argument("--only_ours", action="store_true", help="leave the peer out")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--coefficients",
        type=sizes("HEIGHTxWIDTH in pixels", "170x302"),
        metavar="HEIGHTxWIDTH",
        help="the whole step once more, decoding stored frames of this size",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="this project's step once more with 'KEY=VALUE --xla_FLAG=VALUE ...'; may be given several times",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT / "train_step" / "cpu.json", help="%(default)s")
    return parser


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # the peer's, where it is left out
        return None


def chosen_implementations(options: Any) -> list[Implementation]:
    """The rows of each case."""
    implementations = [Implementation(name=OURS)]
    for text in options.also:
        overrides = tuple(word for word in text.split() if not word.startswith("--"))
        flags = tuple(word for word in text.split() if word.startswith("--"))
        more = {"compared_with": OURS, "overrides": overrides, "xla_flags": flags}
        implementations.append(Implementation(name=f"{OURS}, {text}", **more))
    if not options.only_ours:
        implementations.append(Implementation(name=PEER, peer="eager", compared_with=OURS))
        if not options.no_compile:
            implementations.append(Implementation(name=COMPILED, peer="compiled", compared_with=OURS))
    if not options.finetune:
        implementations.append(Implementation(name=WHOLE, whole=True))
        if options.coefficients:
            more = {"compared_with": WHOLE, "frame_size": options.coefficients}
            implementations.append(Implementation(name=DECODING, whole=True, **more))
    return implementations


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    models = chosen(parser, options.models, ("Ti", "S", "B", "L", "H"))
    precisions = chosen(parser, options.precisions, ("float32", "bfloat16"))
    if options.finetune and options.coefficients:
        parser.error("--coefficients is of pre-training: leave it or --finetune out")
    implementations = chosen_implementations(options)
    # The processes share one accelerator; by default one would take all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / len(implementations):.2f}")
    # Read by the C library of each process: its memory comes in large pages, as docs/speed.md advises.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    command = ["python", "-m", "benchmarks.train_step", *(sys.argv[1:] if arguments is None else arguments)]
    summary = {
        "command": shlex.join(command),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "hardware": hardware(),
        "versions": {package: installed_version(package) for package in VERSIONS},
        "records": [],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    how = {"turns": options.turns, "steps_per_turn": options.steps_per_turn, "in_turn": options.in_turn}
    for model, clip, precision in itertools.product(models, options.clips, precisions):
        case = Case(model=model, clip=clip, batch=options.batch, precision=precision, finetune=options.finetune)
        summary["records"].append(measure(case, implementations, **how))
        print(table(summary["records"][-1:]), flush=True)
        options.output.write_text(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.train_step", main))
