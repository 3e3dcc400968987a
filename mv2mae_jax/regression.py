"""Read-outs of frozen features that tell a quantity, not a class: ridge regression and what it is measured by. NumPy.

No read-out is given the targets of the rows that it is tested on: the penalty is chosen on rows cut off the training
rows. A read-out by attention is probes.attentive_regression.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from console.errors import UserError
from mv2mae_jax import probes

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)  # [ours] tried by default, for standardised features
_ROWS_AT_ONCE = 8192  # rows that are standardised in memory at once [ours]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regressed:
    """Outcome of a ridge regression.

    Attributes:
      prediction: float32[M, K] of the test rows, in the units of the targets.
      penalty: the chosen one.
      validation_r2: float64[num penalties], of training on the other rows.
    """

    prediction: np.ndarray
    penalty: float
    validation_r2: np.ndarray


def ridge(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    group: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> Regressed:
    """Linear least squares with a penalty on the squared weights, on standardised features; the intercept is free.

    Minimises |Y - X W - b|^2 + penalty |W|^2, as scikit-learn's Ridge(alpha=penalty) on StandardScaler's output.

    Args:
      train_x: float[M, F]; train_y: float[M, K]; test_x: float[M', F].
      group: int or str[M], what must not be torn apart when validation rows are cut off: takes, or subjects.
      penalties: the one with the highest R^2 on the validation rows is taken, and trained anew on all rows.
      validation_fraction: share of the groups that the penalty is chosen on.
      seed: decides the cut.

    Raises:
      ValueError: no penalties, one that is not positive, or fewer than two groups.
    """
    if not len(penalties) or min(penalties) <= 0:
        raise UserError(f"penalties={tuple(penalties)}: give at least one, all greater than 0.")
    kept, held_out = probes.split_groups(group, validation_fraction, seed)
    fit = _Normal(train_x, train_y, kept)
    validation = np.array([r2(fit.solve(p).predict(train_x[held_out]), train_y[held_out]) for p in penalties])
    best = penalties[int(validation.argmax())]
    prediction = _Normal(train_x, train_y, np.arange(len(train_x))).solve(best).predict(test_x)
    return Regressed(prediction=prediction, penalty=float(best), validation_r2=validation)


class _Normal:
    """The normal equations of some rows, which serve every penalty."""

    def __init__(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray):
        self._mean, self._std = probes.statistics(x, rows)
        self._y_mean = y[rows].mean(axis=0, dtype=np.float64)
        features = x.shape[1]
        self._gram, self._moment = np.zeros((features, features)), np.zeros((features, y.shape[1]))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            standardised = self._standardise(x[part])
            self._gram += standardised.T @ standardised
            self._moment += standardised.T @ (y[part] - self._y_mean).astype(np.float32)

    def _standardise(self, x: np.ndarray) -> np.ndarray:
        return ((x - self._mean) / self._std).astype(np.float32)

    def solve(self, penalty: float) -> "_Normal":
        """Sets the weights for a penalty, and returns itself."""
        system = self._gram + penalty * np.eye(len(self._gram))
        self._weights = scipy.linalg.solve(system, self._moment, assume_a="pos", overwrite_a=True)  # (F, K)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        parts = [x[start : start + _ROWS_AT_ONCE] for start in range(0, len(x), _ROWS_AT_ONCE)]
        weights = self._weights.astype(np.float32)
        return np.concatenate([self._standardise(part) @ weights + self._y_mean.astype(np.float32) for part in parts])


def r2(prediction: np.ndarray, target: np.ndarray) -> float:
    """1 - squared error / squared deviation from the targets' mean, both summed over all outputs.

    1 is perfect and 0 as good as the mean of the tested targets; float[M, K] each. The same as scikit-learn's
    r2_score(multioutput="variance_weighted").
    """
    target = np.asarray(target, np.float64)
    error = np.square(np.asarray(prediction, np.float64) - target).sum()
    return float(1 - error / np.square(target - target.mean(axis=0)).sum())


def joint_error(prediction: np.ndarray, target: np.ndarray) -> float:
    """Mean distance between points: float[M, 3 * J] each, in the unit of the inputs (MPJPE of pose estimation)."""
    difference = (np.asarray(prediction, np.float64) - target).reshape(len(target), -1, 3)  # (M, J, 3)
    return float(np.linalg.norm(difference, axis=-1).mean())
