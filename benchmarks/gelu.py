"""An MLP with mv2mae_jax.models.layers.gelu against one with jax.nn.gelu(approximate=False), with all gradients.

    python -m benchmarks.gelu

The two alternate in one process. Prints the median time of each in milliseconds and the median of the ratios (JAX's
over ours) with its quartiles.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.dense_2d import milliseconds
from mv2mae_jax.models import layers

# name: (tokens of 8 clips, width)
SHAPES = {"ViT-S encoder": (8 * 154, 384), "ViT-S decoder": (8 * 512, 192), "demo decoder": (8 * 76, 96)}


def gradients(gelu: Callable) -> Callable:
    def loss(x: jax.Array, fc1: jax.Array, fc2: jax.Array) -> jax.Array:
        return jnp.square((gelu(x @ fc1) @ fc2).astype(jnp.float32)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {repeats} repeats")
    print(f"{'dtype':<10} {'shape':<14} {'JAX ms':>8} {'ours ms':>8} {'JAX / ours':>10}  quartiles")
    theirs, ours = gradients(functools.partial(jax.nn.gelu, approximate=False)), gradients(layers.gelu)
    for dtype in (jnp.float32, jnp.bfloat16):
        for name, (num_tokens, width) in SHAPES.items():
            keys = jax.random.split(jax.random.key(0), 3)
            shapes = (num_tokens, width), (width, 4 * width), (4 * width, width)
            inputs = [
                jax.random.normal(key, shape, dtype) * width**-0.5 for key, shape in zip(keys, shapes, strict=True)
            ]
            milliseconds(theirs, *inputs), milliseconds(ours, *inputs)  # compile
            times = np.array([(milliseconds(theirs, *inputs), milliseconds(ours, *inputs)) for _ in range(repeats)])
            medians = np.median(times, axis=0)
            low, ratio, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))
            print(
                f"{jnp.dtype(dtype).name:<10} {name:<14} {medians[0]:8.2f} {medians[1]:8.2f} {ratio:10.2f}  "
                f"{low:.2f} to {high:.2f}"
            )


if __name__ == "__main__":
    main()
