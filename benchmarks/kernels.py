"""Where the time of a training step is spent on a GPU: its kernels, traced by JAX's profiler.

    python -m benchmarks.kernels --model=B --batch=128 model.attention=cudnn

Traces some steps of `benchmarks.train_step` (VideoMAE's objective; with --whole the paper's) and prints the kernels'
times per step, by kind and the longest one by one. What lies between the kernels is not in it. On a CPU the operations
of the compiled program take the kernels' place, those of all threads added up.
"""

import collections
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.experiment import hardware
from benchmarks.train_step import OURS, Case, Implementation, make_our_step, read_clip
from console.command import Parser, execute

# Kinds by what stands in a kernel's name, the first that fits: products of libraries, attention of cuDNN. XLA names its
# own kernels by what they fuse.
KINDS = {"gemm": "product", "nvjet": "product", "cutlass": "product", "sdpa": "attention", "cudnn": "attention"}


def kind(name: str) -> str:
    """'nvjet_sm90_tst_128x160' -> 'product', 'loop_add_fusion_6' -> 'loop_add_fusion'."""
    return next((kind for part, kind in KINDS.items() if part in name), name.rstrip("_.0123456789"))


def kernels(trace: Path) -> Iterator[tuple[str, float]]:
    """(name, seconds) of each kernel in a trace's folder; of each operation on a CPU."""
    from jax.profiler import ProfileData

    for path in trace.rglob("*.xplane.pb"):
        planes = list(ProfileData.from_file(str(path)).planes)
        on_device = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in on_device or planes:
            for line in plane.lines:
                if on_device and not line.name.startswith("Stream"):
                    continue  # the other lines group the same kernels by module and operation
                for event in line.events:
                    if on_device or "hlo_op" in dict(event.stats):
                        yield event.name, event.duration_ns / 1e9


def ranking(measured: Iterable[tuple[str, float]], steps: int) -> list[str]:
    """A line for each name, the longest first: milliseconds per step, and how often."""
    times, counts = collections.Counter(), collections.Counter()
    for name, seconds in measured:
        times[name] += seconds
        counts[name] += 1
    return [f"{1000 * s / steps:9.3f} ms {counts[name] / steps:7.1f}x  {name}" for name, s in times.most_common()]


def report(measured: Sequence[tuple[str, float]], steps: int, longest: int) -> str:
    """Text: the time per step, by kind and for the `longest` single kernels."""
    by_kind = ranking(((kind(name), seconds) for name, seconds in measured), steps)
    in_all = f"{1000 * sum(seconds for _, seconds in measured) / steps:9.3f} ms a step in all"
    return "\n".join([in_all, *by_kind, "", "the longest:", *ranking(measured, steps)[:longest]])


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.kernels", __doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config")
    parser.add_argument("--model", default="S", choices=("Ti", "S", "B", "L", "H"), help="ViT size (%(default)s)")
    parser.add_argument(
        "--clip", type=read_clip, default="16x128x128", metavar="FRAMESxHEIGHTxWIDTH", help="(%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=128, help="clips per step (%(default)s)")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"), help="(%(default)s)")
    parser.add_argument("--whole", action="store_true", help="the whole step of MV2MAE")
    parser.add_argument("--steps", type=int, default=3, help="that are traced (%(default)s)")
    parser.add_argument("--longest", type=int, default=70, help="kernels named one by one (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    import jax

    case = Case(model=options.model, clip=options.clip, batch=options.batch, precision=options.precision)
    what = Implementation(name=OURS, whole=options.whole, overrides=tuple(options.overrides))
    steps, _, facts = make_our_step(case, what)
    steps(3)  # compiles, and settles memory
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps(options.steps)
        measured = list(kernels(Path(folder)))
    print(f"{case}, jax {jax.__version__}, {hardware()}")
    print(f"{facts['model_flops'] / 1e12:.2f} TFLOP a step")
    print(report(measured, options.steps, options.longest))


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.kernels", main))
