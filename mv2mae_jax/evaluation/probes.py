"""Probes of frozen features: nearest neighbours and linear, and how every probe chooses its setting.

Pure functions of arrays. attentive.py has the probes that read all tokens, regression.py those that predict quantities.

No probe gets the labels of the rows that it is tested on. Learning rate and weight decay are chosen on rows cut off the
training rows. Probes return scores, which accuracy.py measures.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from console.errors import UserError
from mv2mae_jax.evaluation import accuracy

# No channel is amplified by more than 1000 times the average channel when features are standardised [ours].
_MIN_RELATIVE_STD = 1e-3
_QUERIES_AT_ONCE = 256  # rows whose similarities to all training rows are in memory at once [ours]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probed:
    """Outcome of a trained probe.

    Attributes:
      scores: float32[M, K], logits (or quantities) of the test rows.
      learning_rate, weight_decay: the chosen setting.
      validation_score: float64[num learning rates, num weight decays], accuracy (R^2 for quantities) on the validation
        rows after training on the others.
    """

    scores: np.ndarray
    learning_rate: float
    weight_decay: float
    validation_score: np.ndarray


def knn_scores(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, num_classes: int, *, k: int = 20
) -> np.ndarray:
    """Votes of the k nearest training rows by cosine similarity; they count alike.

    Args:
      train_x: float[M, F]; train_y: int[M], 0 to num_classes - 1; test_x: float[M', F].
      num_classes: K.
      k: neighbours; if there are fewer training rows, all of them vote.

    Returns:
      float32[M', K], shares of the votes. Of classes with equal votes argmax takes the lowest, as scikit-learn.

    Raises:
      ValueError: training rows without label, or labels beyond num_classes.
    """
    accuracy.check_labels(train_y, num_classes, len(train_x))
    train_x, test_x = (np.asarray(x, np.float32) for x in (train_x, test_x))
    return np.asarray(_knn_votes(train_x, train_y, test_x, num_classes=num_classes, k=min(k, len(train_x))))


@functools.partial(jax.jit, static_argnames=("num_classes", "k"))
def _knn_votes(train_x, train_y, test_x, *, num_classes: int, k: int) -> jax.Array:
    train_x, test_x = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train_x, test_x))

    def vote(query: jax.Array) -> jax.Array:
        _, neighbours = jax.lax.top_k(jnp.dot(train_x, query, precision="highest"), k)  # (k,), (k,)
        return jnp.full(k, 1 / k) @ jax.nn.one_hot(train_y[neighbours], num_classes)  # (K,)

    return jax.lax.map(vote, test_x, batch_size=_QUERIES_AT_ONCE)


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    num_classes: int,
    *,
    group: np.ndarray,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    epochs: int = 100,
    batch_size: int = 256,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> Probed:
    """Softmax regression on standardised features, trained by AdamW with a cosine schedule.

    Standardising by statistics of the training rows stands for the affine-free batch norm of MAE's linear probe
    (`main_linprobe.py`). All settings of the sweep train at once, on the same minibatches.

    Args:
      train_x: float[M, F]; train_y: int[M]; test_x: float[M', F].
      num_classes: K.
      group: int or str[M], rows of one group stay together when validation rows are cut off: takes, or subjects.
      learning_rates, weight_decays: the sweep is over all pairs; the decay is decoupled and spares the bias.
      epochs: passes over the training rows.
      batch_size: rows per step; if there are fewer rows, all of them.
      validation_fraction: share of the groups on which the setting is chosen. A probe with the chosen setting is then
        trained on all rows.
      seed: decides the cut and the order of the rows.

    Raises:
      ValueError: training rows without label, labels beyond num_classes, fewer than two groups, or an empty sweep.
    """
    accuracy.check_labels(train_y, num_classes, len(train_x))

    def fit(rows: np.ndarray, settings: np.ndarray, scored: np.ndarray) -> np.ndarray:
        mean, std = statistics(train_x[rows])
        x, scored = (((x - mean) / std).astype(np.float32) for x in (train_x, scored))
        order = np.stack(list(minibatches(rows, epochs=epochs, batch_size=batch_size, seed=seed)))  # (steps, B)
        return np.asarray(_fit_linear(x, train_y, order, *settings.T, scored, num_classes=num_classes))

    sweep = (learning_rates, weight_decays)
    return select_and_refit(fit, train_x, train_y, test_x, group, sweep, validation_fraction, seed, CLASSES)


@functools.partial(jax.jit, static_argnames="num_classes")
def _fit_linear(x, y, order, learning_rates, weight_decays, scored, *, num_classes: int) -> jax.Array:
    """f32[M, F], int[M], row numbers int[steps, B], f32[G], f32[G], f32[M', F] -> logits of `scored`, f32[G, M', K]."""

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        return cross_entropy(x[rows] @ params["kernel"] + params["bias"], y[rows])

    def train(learning_rate: jax.Array, weight_decay: jax.Array) -> jax.Array:
        optimizer = adamw(learning_rate, weight_decay, len(order))

        def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
            params, opt_state = state
            updates, opt_state = optimizer.update(jax.grad(loss)(params, rows), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        params = {"kernel": jnp.zeros((x.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), order)
        return scored @ params["kernel"] + params["bias"]  # (M', K)

    return jax.vmap(train)(learning_rates, weight_decays)


def split_groups(group: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (kept, held out), both ascending: whole groups are held out, at least one and not all.

    Raises:
      ValueError: fewer than two groups.
    """
    names = np.unique(group)
    if len(names) < 2:
        raise UserError(
            "A probe chooses its learning rate and weight decay on groups (takes or subjects) cut off the training "
            f"rows; there are {len(group)} rows of {len(names)} group(s). Use more training takes."
        )
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    chosen = np.random.default_rng(seed).permutation(names)[:count]
    held_out = np.isin(group, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def select_and_refit(
    fit: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    group: np.ndarray,
    sweep: tuple[Sequence[float], Sequence[float]],
    validation_fraction: float,
    seed: int,
    kind: "Kind",
) -> Probed:
    """`fit(training rows, settings f32[G, 2], inputs [M', ...]) -> outputs f32[G, M', K]`.

    If settings score alike, the one with the lower loss wins.
    """
    shape = tuple(len(values) for values in sweep)
    if 0 in shape:
        raise UserError(f"The sweep is empty: learning_rates={sweep[0]}, weight_decays={sweep[1]}; give one of each.")
    settings = np.stack(np.meshgrid(*sweep, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)  # (G, 2)
    kept, held_out = split_groups(group, validation_fraction, seed)
    scores = fit(kept, settings, train_x[held_out])
    quality = np.array([kind.score(s, train_y[held_out]) for s in scores])  # (G,)
    loss = np.array([kind.loss(s, train_y[held_out]) for s in scores])  # (G,)
    best = np.lexsort((loss, -quality))[0]
    learning_rate, weight_decay = (values[i] for values, i in zip(sweep, np.unravel_index(best, shape), strict=True))
    (scores,) = fit(np.arange(len(train_x)), settings[best : best + 1], test_x)
    return Probed(
        scores=scores,
        learning_rate=float(learning_rate),
        weight_decay=float(weight_decay),
        validation_score=quality.reshape(shape),  # (learning rates, weight decays)
    )


def minibatches(rows: np.ndarray, *, epochs: int, batch_size: int, seed: int):
    """Yields int[B]. Every epoch takes the rows in a new order and drops those that do not fill a batch."""
    batch_size, rng = min(batch_size, len(rows)), np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(rows)
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def statistics(x: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation float64[F] of x[rows] over all axes but the last; `x` is read in parts."""
    rows = np.arange(len(x)) if rows is None else rows
    count, total, square = 0, 0.0, 0.0
    origin = np.asarray(x[rows[:1]], np.float64).reshape(-1, x.shape[-1]).mean(axis=0)  # keeps the squares small
    for start in range(0, len(rows), 256):
        part = np.asarray(x[rows[start : start + 256]], np.float64).reshape(-1, x.shape[-1]) - origin  # (_, F)
        count, total, square = count + len(part), total + part.sum(axis=0), square + np.square(part).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    return origin + mean, np.maximum(std, max(_MIN_RELATIVE_STD * std.mean(), np.finfo(np.float32).tiny))


def adamw(learning_rate: jax.Array, weight_decay: jax.Array, num_steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    return optax.adamw(schedule, weight_decay=weight_decay, mask=lambda params: {key: key != "bias" for key in params})


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """The loss that a probe is trained with, and the score that its setting is chosen by (higher is better)."""

    loss: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[np.ndarray, np.ndarray], float]


CLASSES = Kind(loss=cross_entropy, score=lambda logits, label: (logits.argmax(axis=-1) == label).mean())
