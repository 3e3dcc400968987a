"""What the dense layers gain from 2-D products: x @ W with x as (B, N, D) against (B * N, D), with both gradients.

    python -m benchmarks.dense_2d

Times dense layers of ViT-S pre-training, the two forms alternating in one process. Prints the median time of each in
milliseconds and the median of the ratios (3-D over 2-D) with its quartiles.

Two cores of an AMD EPYC (AVX-512) shared with other work, jax 0.10.2: float32 1.00 to 1.68, bfloat16 0.95 to 1.02.
"""

import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from benchmarks import attention
from console.command import Parser, execute
from mv2mae_jax.models.kernels.dense import product_2d

BATCH = 8
# name: (tokens, width in, width out). 154 of 512 tokens are visible at mask ratio 0.7.
LAYERS = {
    "encoder qkv": (154, 384, 3 * 384),
    "encoder fc1": (154, 384, 4 * 384),
    "encoder fc2": (154, 4 * 384, 384),
    "decoder fc1": (512, 192, 4 * 192),
    "decoder fc2": (512, 4 * 192, 192),
}


def cases(dtype: jnp.dtype) -> Iterator[attention.Case]:
    for layer, (num_tokens, width_in, width_out) in LAYERS.items():
        x_key, kernel_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, (BATCH, num_tokens, width_in), dtype)
        yield layer, jnp.matmul, product_2d, (x, jax.random.normal(kernel_key, (width_in, width_out), dtype))


def make_parser() -> Parser:
    return attention.make_parser("python -m benchmarks.dense_2d", __doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    attention.compare(cases, ("3-D", "2-D"), make_parser().parse_args(arguments).repeats)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.dense_2d", main))
