"""An MLP with mv2mae_jax.models.kernels.gelu against one with jax.nn.gelu(approximate=False), with all gradients.

    python -m benchmarks.gelu

The two alternate in one process. Prints the median time of each in milliseconds and the median of the ratios (JAX's
over ours) with its quartiles.

One core of an AMD EPYC (AVX-512) shared with other work, jax 0.10.2, 15 repeats: ViT-S float32 1.22 and 1.08, bfloat16
1.04 and 1.11. The demo's decoder takes 4 ms, where the load hides the difference: float32 0.74 (quartiles 0.34 to
1.00), bfloat16 1.40 (1.38 to 1.43).
"""

import functools
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from benchmarks import attention
from console.command import Parser, execute
from mv2mae_jax.models.kernels.gelu import gelu

# name: (tokens of 8 clips, width)
SHAPES = {"ViT-S encoder": (8 * 154, 384), "ViT-S decoder": (8 * 512, 192), "demo decoder": (8 * 76, 96)}


def gradients(activation: Callable) -> Callable:
    def loss(x: jax.Array, fc1: jax.Array, fc2: jax.Array) -> jax.Array:
        return jnp.square((activation(x @ fc1) @ fc2).astype(jnp.float32)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def make_parser() -> Parser:
    return attention.make_parser("python -m benchmarks.gelu", __doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    repeats = make_parser().parse_args(arguments).repeats
    attention.print_header(repeats)
    theirs, ours = gradients(functools.partial(jax.nn.gelu, approximate=False)), gradients(gelu)
    for dtype in (jnp.float32, jnp.bfloat16):
        for name, (num_tokens, width) in SHAPES.items():
            keys, shapes = jax.random.split(jax.random.key(0), 3), ((num_tokens, width), (width, 4 * width))
            x, fc1, fc2 = (
                jax.random.normal(key, shape, dtype) * width**-0.5
                for key, shape in zip(keys, (*shapes, shapes[1][::-1]), strict=True)
            )
            attention.compare(name, theirs, ours, (x, fc1, fc2), repeats)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.gelu", main))
