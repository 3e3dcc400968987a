"""What the dense layers gain from 2-D products: x @ W with x as (B, N, D) against (B * N, D), with both gradients.

    python -m benchmarks.dense_2d

Times dense layers of ViT-S pre-training, the two forms alternating in one process. Prints the median time of each in
milliseconds and the median of the ratios (3-D over 2-D) with its quartiles.

Two cores of an AMD EPYC (AVX-512) shared with other work, jax 0.10.2: float32 1.00 to 1.68, bfloat16 0.95 to 1.02.
"""

import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from console.command import Parser, execute

BATCH = 8
# name: (tokens, width in, width out). 154 of 512 tokens are visible at mask ratio 0.7.
LAYERS = {
    "encoder qkv": (154, 384, 3 * 384),
    "encoder fc1": (154, 384, 4 * 384),
    "encoder fc2": (154, 4 * 384, 384),
    "decoder fc1": (512, 192, 4 * 192),
    "decoder fc2": (512, 4 * 192, 192),
}


def dense_3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def dense_2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    flat = x.reshape(-1, x.shape[-1])  # (B * N, D_in)
    return (flat @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])  # (B, N, D_out)


def gradients(dense: Callable) -> Callable:
    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(dense(x, kernel).astype(jnp.float32)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def milliseconds(function: Callable, *args: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1e3 * (time.perf_counter() - start)


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.dense_2d", __doc__)
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="of each measurement (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    repeats = make_parser().parse_args(arguments).repeats

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, batch {BATCH}, {repeats} repeats")
    print(f"{'dtype':<10} {'layer':<12} {'3-D ms':>8} {'2-D ms':>8} {'3-D / 2-D':>10}  quartiles")
    for dtype in (jnp.float32, jnp.bfloat16):
        for layer, (num_tokens, width_in, width_out) in LAYERS.items():
            x_key, kernel_key = jax.random.split(jax.random.key(0))
            x = jax.random.normal(x_key, (BATCH, num_tokens, width_in), dtype)
            kernel = jax.random.normal(kernel_key, (width_in, width_out), dtype)
            step_3d, step_2d = gradients(dense_3d), gradients(dense_2d)
            milliseconds(step_3d, x, kernel), milliseconds(step_2d, x, kernel)  # compile
            times = np.array(
                [(milliseconds(step_3d, x, kernel), milliseconds(step_2d, x, kernel)) for _ in range(repeats)]
            )
            median_3d, median_2d = np.median(times, axis=0)
            low, ratio, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))
            name = jnp.dtype(dtype).name
            print(f"{name:<10} {layer:<12} {median_3d:>8.1f} {median_2d:>8.1f} {ratio:>10.2f}  {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.dense_2d", main))
