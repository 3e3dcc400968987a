"""Counts the products of a JAX function without compiling or running it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params


def matmul_flops(function: Callable, *arguments: Any) -> float:
    """Floating-point operations (2 per multiply-add) of all matrix products; those of a scan as often as it runs.

    Args:
      function: traceable by JAX.
      arguments: pytrees of arrays or `jax.ShapeDtypeStruct`s.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * np.prod([shape[axis] for axis in axes])
        inner = sum(_of(sub) for sub in jaxprs_in_params(equation.params))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return float(total)
