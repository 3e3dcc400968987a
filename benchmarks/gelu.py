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
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from benchmarks import attention
from console.command import Parser, execute
from mv2mae_jax.models.kernels.gelu import gelu

# name: (tokens of 8 clips, width)
SHAPES = {"ViT-S encoder": (8 * 154, 384), "ViT-S decoder": (8 * 512, 192), "demo decoder": (8 * 76, 96)}


def mlp(x: jax.Array, fc1: jax.Array, fc2: jax.Array, *, activation: Callable) -> jax.Array:
    return activation(x @ fc1) @ fc2


def cases(dtype: jnp.dtype) -> Iterator[attention.Case]:
    theirs = functools.partial(mlp, activation=functools.partial(jax.nn.gelu, approximate=False))
    for name, (num_tokens, width) in SHAPES.items():
        shapes = ((num_tokens, width), (width, 4 * width), (4 * width, width))
        keys = jax.random.split(jax.random.key(0), 3)
        inputs = [jax.random.normal(key, shape, dtype) * width**-0.5 for key, shape in zip(keys, shapes, strict=True)]
        yield name, theirs, functools.partial(mlp, activation=gelu), inputs


def make_parser() -> Parser:
    return attention.make_parser("python -m benchmarks.gelu", __doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    attention.compare(cases, ("JAX", "ours"), make_parser().parse_args(arguments).repeats)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.gelu", main))
