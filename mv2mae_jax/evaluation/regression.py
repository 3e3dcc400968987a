"""Predicts quantities, not classes, from frozen features: ridge regression and its metrics. NumPy.

No read-out gets the targets of the rows that it is tested on: the penalty is chosen on rows cut off the training rows.
`attentive.attentive_regression` predicts quantities by attention.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from console.errors import UserError
from mv2mae_jax.evaluation import probes

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)  # [ours] tried by default, for standardised features
_ROWS_AT_ONCE = 8192  # rows that are standardised in memory at once [ours]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regressed:
    """Outcome of a ridge regression.

    Attributes:
      prediction: float32[M, K] of the test rows, in the units of the targets.
      penalty: the chosen one.
      validation_r2: float64[num penalties], on the validation rows after training on the others; -inf for a penalty
        whose equations cannot be solved.
    """

    prediction: np.ndarray
    penalty: float
    validation_r2: np.ndarray


def ridges(
    train_x: np.ndarray,
    train_ys: Sequence[np.ndarray],
    test_x: np.ndarray,
    *,
    group: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> list[Regressed]:
    """Linear least squares with a penalty on the squared weights, on standardised features; the intercept is free.

    Minimises |Y - X W - b|^2 + penalty |W|^2, as scikit-learn's Ridge(alpha=penalty) on StandardScaler's output.
    Several targets share their equations, but each gets its own penalty. With more features than rows, the dual
    form is solved, which has the same solution.

    Args:
      train_x: float[M, F]; train_ys: float[M, K] for each target; test_x: float[M', F].
      group: int or str[M], rows of one group stay together when validation rows are cut off: takes, or subjects.
      penalties: the one with the highest R^2 on the validation rows is chosen; the fit is then repeated on all rows.
      validation_fraction: share of the groups on which the penalty is chosen.
      seed: decides the cut.

    Raises:
      ValueError: no penalties, one that is not positive, fewer than two groups, or features that are nearly alike.
    """
    if not len(penalties) or min(penalties) <= 0:
        raise UserError(f"penalties={tuple(penalties)}: give at least one, all greater than 0.")
    kept, held_out = probes.split_groups(group, validation_fraction, seed)
    ends = np.cumsum([y.shape[1] for y in train_ys])[:-1]
    train_y = np.concatenate(train_ys, axis=1)  # (M, K1 + K2 + ...)

    def score(told: np.ndarray) -> list[float]:
        parts = zip(np.split(told, ends, axis=1), np.split(train_y[held_out], ends, axis=1), strict=True)
        return [r2(part, true) for part, true in parts]

    fit = _Equations(train_x, train_y, kept)
    scores = {p: score(told) for p in penalties if (told := fit.predict(train_x[held_out], p)) is not None}
    fit, told = _Equations(train_x, train_y, np.arange(len(train_x))), {}
    while scores:
        best = [max(scores, key=lambda penalty, i=i: scores[penalty][i]) for i in range(len(train_ys))]
        told |= {penalty: fit.predict(test_x, penalty) for penalty in set(best) - told.keys()}
        unsolved = {penalty for penalty in best if told[penalty] is None}
        if not unsolved:
            break
        scores = {penalty: values for penalty, values in scores.items() if penalty not in unsolved}
    else:
        raise UserError(
            f"Ridge regression cannot tell the features of {len(train_x)} rows apart: its equations have no solution "
            f"at any penalty of {tuple(penalties)}, because the features are all (nearly) alike. The encoder has "
            "collapsed: take another step or run, or leave 'ridge', 'geometry' and 'motion' out of probe.kinds."
        )
    validation = np.array([scores.get(penalty, [-math.inf] * len(train_ys)) for penalty in penalties])  # (P, targets)
    return [
        Regressed(
            prediction=np.split(told[penalty], ends, axis=1)[i], penalty=float(penalty), validation_r2=validation[:, i]
        )
        for i, penalty in enumerate(best)
    ]


class _Equations:
    """The normal equations of some rows, which are the same for every penalty.

    (X^T X + penalty) W = X^T Y, or with more features than rows W = X^T A with (X X^T + penalty) A = Y.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray):
        self._mean, self._std = probes.statistics(x, rows)
        self._y_mean = y[rows].mean(axis=0, dtype=np.float64)
        features = x.shape[1]
        self._x = None  # the standardised rows, if the equations are between rows
        if features > len(rows):
            self._x = self._standardise(x[rows])
            self._gram, self._moment = (self._x @ self._x.T).astype(np.float64), y[rows] - self._y_mean
            return
        self._gram, self._moment = np.zeros((features, features)), np.zeros((features, y.shape[1]))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            standardised = self._standardise(x[part])
            self._gram += standardised.T @ standardised
            self._moment += standardised.T @ (y[part] - self._y_mean).astype(np.float32)

    def _standardise(self, x: np.ndarray) -> np.ndarray:
        return ((x - self._mean) / self._std).astype(np.float32)

    def predict(self, x: np.ndarray, penalty: float) -> np.ndarray | None:
        """float32[R, K] for float[R, F]; None if the penalty is lost in the rounding of features that are alike."""
        system = self._gram.copy()
        system.flat[:: len(system) + 1] += penalty
        try:
            factor = scipy.linalg.cho_factor(system, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return None
        solved = scipy.linalg.cho_solve(factor, self._moment, check_finite=False).astype(np.float32)
        weights = solved if self._x is None else self._x.T @ solved  # (F, K)
        parts = [x[start : start + _ROWS_AT_ONCE] for start in range(0, len(x), _ROWS_AT_ONCE)]
        return np.concatenate([self._standardise(part) @ weights + self._y_mean.astype(np.float32) for part in parts])


def r2(prediction: np.ndarray, target: np.ndarray) -> float:
    """1 - squared error / squared deviation from the targets' mean, both summed over all outputs.

    1 is perfect; 0 is as good as predicting the mean of the tested targets. Both are float[M, K]. Equals scikit-learn's
    r2_score(multioutput="variance_weighted"). It is not defined, -inf, where all targets are the same.
    """
    if (target == target[:1]).all():
        return -math.inf
    target = np.asarray(target, np.float64)
    error = np.square(np.asarray(prediction, np.float64) - target).sum()
    return float(1 - error / np.square(target - target.mean(axis=0)).sum())


def joint_error(prediction: np.ndarray, target: np.ndarray) -> float:
    """Mean distance between points: float[M, 3 * J] each, in the unit of the inputs (MPJPE of pose estimation)."""
    difference = (np.asarray(prediction, np.float64) - target).reshape(len(target), -1, 3)  # (M, J, 3)
    return float(np.linalg.norm(difference, axis=-1).mean())
