"""Counts the products of a JAX function without compiling or running it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params


def matmul_flops(function: Callable, *arguments: Any) -> float:
    """Floating-point operations (2 per multiply-add) of all matrix products. Those in a scan count once per iteration.

    The arguments are pytrees of arrays or `jax.ShapeDtypeStruct`s.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def training_flops(objective: Any, params: Any, batch: Any) -> float:
    """Floating-point operations that a training step needs: three times the matrix products of the forward pass.

    The usual count of MFU (Chowdhery et al. 2022, PaLM, appendix B): a backward pass costs two forward passes; norms,
    softmax, optimiser and recomputation do not count. Parameters and the global batch may be shapes.
    """
    # With every product in its jaxpr: the attention of cuDNN is one operation without a dot_general.
    objective = dataclasses.replace(objective, model=objective.model.with_compute(attention="xla"))
    inputs = jax.eval_shape(objective.make_inputs, batch, jax.random.key(0))
    return 3 * matmul_flops(objective.loss, params, inputs)


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
