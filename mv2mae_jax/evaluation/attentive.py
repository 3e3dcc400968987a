"""Probes of all tokens of a clip: learned queries pool them by attention. Pure functions of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from console import progress
from console.errors import UserError
from mv2mae_jax.evaluation import accuracy, probes, regression


def attentive_probe(
    train_tokens: np.ndarray,
    train_y: np.ndarray,
    test_tokens: np.ndarray,
    num_classes: int,
    *,
    batch_size: int = 64,
    **settings: Any,
) -> probes.Probed:
    """Learned queries, one per head, pool the tokens by attention; a linear classifier reads the pooled tokens.

    The cross-attention of V-JEPA's attentive probe (`AttentivePooler`) without its MLP [ours]. A query is constant, so
    the projection of the keys is folded into it, and the projection of the values is applied after pooling. This is the
    same function class at a fraction of the cost. Tokens are standardised per channel by statistics of the training
    tokens [ours].

    Args:
      train_tokens: float16 or float32[M, N, D], may be mapped from a file; test_tokens: the same of M' clips.
      batch_size: clips per step.
      **settings: those of `probes.linear_probe`, with 20 epochs by default; and `num_heads`, the number of queries, of
        which D is a multiple. None: 16 [ours], or the largest power of two below that divides D.

    Raises:
      ValueError: as `probes.linear_probe`, or D is not divisible by num_heads.
    """
    accuracy.check_labels(train_y, num_classes, len(train_tokens))
    return _attentive(
        probes.CLASSES, train_tokens, train_y, test_tokens, num_outputs=num_classes, batch_size=batch_size, **settings
    )


def attentive_regression(
    train_tokens: np.ndarray,
    train_y: np.ndarray,
    test_tokens: np.ndarray,
    *,
    hidden: int = 256,
    batch_size: int = 256,
    **settings: Any,
) -> probes.Probed:
    """As `attentive_probe`, but predicts quantities, float[M, K], in place of labels, and has one hidden layer.

    A velocity is not a linear function of two pictures. The hidden layer [ours] lets the head form products of pooled
    values. Targets are standardised, trained by the squared error, and predicted in their own units. The setting
    with the highest R^2 on the validation rows is chosen; `Probed.validation_score` holds R^2.

    Args:
      train_tokens: float16 or float32[M, N, D]; train_y: float[M, K]; test_tokens: the same of M' rows.
      hidden: units of the hidden layer.
      batch_size, **settings: see `attentive_probe`.
    """
    mean, std = probes.statistics(np.asarray(train_y, np.float64))
    probed = _attentive(
        _QUANTITIES,
        train_tokens,
        ((train_y - mean) / std).astype(np.float32),
        test_tokens,
        num_outputs=train_y.shape[1],
        hidden=hidden,
        batch_size=batch_size,
        **settings,
    )
    return dataclasses.replace(probed, scores=(probed.scores * std + mean).astype(np.float32))


def _squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.square(output - target).mean()


_QUANTITIES = probes.Kind(loss=_squared_error, score=regression.r2)


def _attentive(
    kind: probes.Kind,
    train_tokens: np.ndarray,
    train_y: np.ndarray,
    test_tokens: np.ndarray,
    *,
    num_outputs: int,
    batch_size: int,
    group: np.ndarray,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    num_heads: int | None = None,
    hidden: int | None = None,
    epochs: int = 20,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> probes.Probed:
    width = train_tokens.shape[-1]
    num_heads = math.gcd(16, width) if num_heads is None else num_heads
    if width % num_heads:
        raise UserError(f"Tokens of width {width} cannot be shared among num_heads={num_heads}: choose a divisor.")
    sizes = {"width": width, "num_heads": num_heads, "num_outputs": num_outputs, "hidden": hidden}

    def fit(rows: np.ndarray, settings: np.ndarray, scored: np.ndarray) -> np.ndarray:
        mean, std = (jnp.asarray(s, jnp.float32) for s in probes.statistics(train_tokens, rows))
        order = list(probes.minibatches(rows, epochs=epochs, batch_size=batch_size, seed=seed))
        state = _init_attentive(jax.random.key(seed), *settings.T, **sizes)
        for batch in progress.track(order, "training the attentive probe", "steps"):
            x, y = train_tokens[np.sort(batch)], train_y[np.sort(batch)]  # ascending: a mapped file is read in order
            state = _attentive_step(state, x, mean, std, y, *settings.T, num_steps=len(order), loss=kind.loss)
        return _attentive_scores(state[0], scored, mean, std, batch_size)

    sweep = (learning_rates, weight_decays)
    return probes.select_and_refit(
        fit, train_tokens, train_y, test_tokens, group, sweep, validation_fraction, seed, kind
    )


def _attend(params: Any, x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Tokens [B, N, D] -> logits or quantities f32[B, K]."""
    x = (x.astype(jnp.float32) - mean) / std
    attention = jax.nn.softmax(jnp.einsum("bnd,hd->bhn", x, params["queries"]) * x.shape[-1] ** -0.5)
    pooled = jnp.einsum("bhn,bnd->bhd", attention, x)
    values = jnp.einsum("bhd,hde->bhe", pooled, params["values"])  # (B, heads, D / heads)
    values = values.reshape(len(x), -1)  # (B, D)
    if "hidden_kernel" in params:
        values = jax.nn.gelu(values @ params["hidden_kernel"] + params["hidden_bias"])  # (B, hidden)
    return values @ params["kernel"] + params["bias"]  # (B, K)


@functools.partial(jax.jit, static_argnames=("width", "num_heads", "num_outputs", "hidden"))
def _init_attentive(
    key, learning_rates, weight_decays, *, width: int, num_heads: int, num_outputs: int, hidden: int | None
) -> Any:
    """(parameters, optimiser state) of every setting, stacked. All start alike and attend nearly evenly."""
    query_key, value_key = jax.random.split(key)
    params = {
        "queries": 0.02 * jax.random.normal(query_key, (num_heads, width)),  # 0.02 as in V-JEPA
        "values": jax.random.normal(value_key, (num_heads, width, width // num_heads)) * width**-0.5,
        "kernel": jnp.zeros((hidden or width, num_outputs)),
        "bias": jnp.zeros(num_outputs),
    }
    if hidden:
        kernel = jax.random.normal(jax.random.fold_in(key, 1), (width, hidden)) * width**-0.5
        params |= {"hidden_kernel": kernel, "hidden_bias": jnp.zeros(hidden)}
    return jax.vmap(lambda lr, wd: (params, probes.adamw(lr, wd, 1).init(params)))(learning_rates, weight_decays)


@functools.partial(jax.jit, static_argnames=("num_steps", "loss"), donate_argnums=0)
def _attentive_step(state, x, mean, std, y, learning_rates, weight_decays, *, num_steps: int, loss: Callable) -> Any:
    """One step of every setting on the same minibatch [B, N, D], int[B] or float[B, K]."""

    def step(state: Any, learning_rate: jax.Array, weight_decay: jax.Array) -> Any:
        params, opt_state = state
        gradient = jax.grad(lambda params: loss(_attend(params, x, mean, std), y))(params)
        updates, opt_state = probes.adamw(learning_rate, weight_decay, num_steps).update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.vmap(step)(state, learning_rates, weight_decays)


_attend_all = jax.jit(jax.vmap(_attend, in_axes=(0, None, None, None)))


def _attentive_scores(params: Any, tokens: np.ndarray, mean: jax.Array, std: jax.Array, batch_size: int) -> np.ndarray:
    """float32[G, M, K]. The last batch is padded, so that all batches use one compiled program."""
    scores = []
    for start in range(0, len(tokens), batch_size):
        x = tokens[start : start + batch_size]
        filled = np.concatenate([x, np.zeros((batch_size - len(x), *x.shape[1:]), x.dtype)])
        scores.append(np.asarray(_attend_all(params, filled, mean, std))[:, : len(x)])
    return np.concatenate(scores, axis=1)
