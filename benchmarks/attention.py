"""Attention of models/kernels, 'xla' and 'chunked', against jax.nn.dot_product_attention, with gradients.

    python -m benchmarks.attention

The two alternate in one process. Prints the median time of each in milliseconds and the median of the ratios (JAX's
over ours) with its quartiles.

Two cores of an AMD EPYC (AVX-512), jax 0.10.2, 30 repeats, float32 and bfloat16: 'xla' 1.60 and 1.54 (ViT-S encoder),
1.20 and 1.24 (decoder), 1.58 and 1.62 (decoder at 224 pixels), 1.52 and 1.71 (demo decoder); 'chunked' 1.29 and 1.30,
1.69 and 1.95, 2.65 and 2.66, 1.53 and 1.73.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from console.command import Parser, execute
from mv2mae_jax.models.kernels.attention import attend

# name: (batch, tokens, width, heads)
SHAPES = {
    "ViT-S encoder": (8, 154, 384, 6),
    "ViT-S decoder": (8, 512, 192, 3),
    "ViT-S decoder, 224": (2, 1568, 192, 3),
    "demo decoder": (8, 76, 96, 3),
}
Case = tuple[str, Callable, Callable, Sequence[jax.Array]]  # shape, two functions of the same arrays, these arrays


def jax_attention(query, key, value, *, num_heads):
    """query, key, value [B, N, D] -> [B, N, D]."""
    split = [x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value)]  # (B, N, heads, head_dim)
    return jax.nn.dot_product_attention(*split).reshape(query.shape)  # (B, N, D)


def our_attention(query, key, value, *, num_heads, implementation):
    """query, key, value [B, N, D] -> [B, N, D]."""
    split = [x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3) for x in (query, key, value)]
    y = attend(*split, implementation=implementation)  # (B, heads, N, head_dim)
    return y.transpose(0, 2, 1, 3).reshape(query.shape)  # (B, N, D)


def cases(dtype: jnp.dtype) -> Iterator[Case]:
    for name, (*shape, num_heads) in SHAPES.items():
        inputs = jax.random.normal(jax.random.key(0), (3, *shape), dtype)
        theirs = functools.partial(jax_attention, num_heads=num_heads)
        for implementation in ("xla", "chunked"):
            ours = functools.partial(our_attention, num_heads=num_heads, implementation=implementation)
            yield f"{name}, {implementation}", theirs, ours, inputs


def gradients(function: Callable) -> Callable:
    """The sum of squares of what a function of arrays returns, with the gradients of all of them."""

    def loss(inputs: Sequence[jax.Array]) -> jax.Array:
        return jnp.square(function(*inputs).astype(jnp.float32)).sum()

    return jax.jit(jax.value_and_grad(loss))


def milliseconds(function: Callable, inputs: Sequence[jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(inputs))
    return 1e3 * (time.perf_counter() - start)


def compare(cases: Callable[[jnp.dtype], Iterable[Case]], names: tuple[str, str], repeats: int) -> None:
    """Times the gradients of two functions in turns; prints a line for each dtype and case."""
    first, second = names
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {repeats} repeats")
    print(f"{'dtype':<10} {'shape':<27} {first + ' ms':>8} {second + ' ms':>8} {f'{first} / {second}':>10}  quartiles")
    for dtype in (jnp.float32, jnp.bfloat16):
        for shape, *functions, inputs in cases(dtype):
            steps, inputs = [gradients(function) for function in functions], tuple(inputs)
            for step in steps:
                milliseconds(step, inputs)  # compile
            times = np.array([[milliseconds(step, inputs) for step in steps] for _ in range(repeats)])
            medians = np.median(times, axis=0)
            low, ratio, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))
            row = f"{jnp.dtype(dtype).name:<10} {shape:<27} {medians[0]:8.2f} {medians[1]:8.2f} {ratio:10.2f}"
            print(f"{row}  {low:.2f} to {high:.2f}")


def make_parser(command: str = "python -m benchmarks.attention", description: str = __doc__) -> Parser:
    parser = Parser(command, description)
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="of each measurement (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    compare(cases, ("JAX", "ours"), make_parser().parse_args(arguments).repeats)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.attention", main))
