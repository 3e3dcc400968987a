"""Classification metrics, on the host in NumPy: for fine-tuning and for probes alike."""

import numpy as np
import scipy.special

from console.errors import UserError


def summarize(scores: np.ndarray, label: np.ndarray, view: np.ndarray | None = None) -> dict[str, float]:
    """Accuracies in [0, 1].

    Args:
      scores: float[M, K], higher for likelier classes (logits, probabilities or votes). If scores are equal, the lower
        class wins.
      label: int[M], 0 to K - 1.
      view: str[M], the camera of each row; None if accuracies by camera are not wanted.

    Returns:
      `top_1`; `top_5` if there are more than five classes; `mean_class`, the accuracy within each class, averaged over
      the classes that occur in `label`; and with `view`, `top_1/<view>` for every view.

    Raises:
      ValueError: no rows, scores that are not finite, or labels that are not among the classes.
    """
    scores, label = np.asarray(scores), np.asarray(label)
    check_labels(label, scores.shape[1], len(scores))
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        raise UserError(f"Scores of {bad} of {len(scores)} rows are not finite: the classifier has diverged.")
    order = np.argsort(-scores, axis=1, kind="stable")  # (M, K)
    hit = order[:, 0] == label  # (M,)
    results = {"top_1": float(hit.mean())}
    if scores.shape[1] > 5:
        results["top_5"] = float((order[:, :5] == label[:, None]).any(axis=1).mean())
    results["mean_class"] = float(np.mean([hit[label == k].mean() for k in np.unique(label)]))
    if view is not None:
        view = np.asarray(view)
        results |= {f"top_1/{name}": float(hit[view == name].mean()) for name in np.unique(view).tolist()}
    return results


def confusion_matrix(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """int64[K, K]: [i, j] counts rows of class i that were taken for class j; from int[M] and int[M]."""
    counts = np.bincount(np.asarray(label) * num_classes + prediction, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)  # (K, K)


def average_clips(scores: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages the class probabilities of all clips and crops of a row, as VideoMAE tests (`engine_for_finetuning.py`).

    Args:
      scores: float[R, K], logits of single clips.
      row: int[R], the manifest row of each clip, in any order.

    Returns:
      (float64[M, K], probabilities that sum to one; int[M], the rows, ascending).
    """
    probabilities = scipy.special.softmax(np.asarray(scores, np.float64), axis=1)  # (R, K)
    rows, clip_row, count = np.unique(row, return_inverse=True, return_counts=True)
    total = np.zeros((len(rows), probabilities.shape[1]))
    np.add.at(total, clip_row, probabilities)
    return total / count[:, None], rows


def check_labels(label: np.ndarray, num_classes: int, num_rows: int) -> None:
    """Raises ValueError unless `label` int[M] has one of 0 to num_classes - 1 for every row, of which there is one."""
    label = np.asarray(label)
    if len(label) == 0 or len(label) != num_rows:
        raise UserError(f"Classes need at least one row and one label per row, got {num_rows} and {len(label)}.")
    if label.min() < 0:
        raise UserError(
            f"{int((label < 0).sum())} of {len(label)} rows have no label (-1). Leave them out; on a set without "
            "labels only retrieval can be measured."
        )
    if label.max() >= num_classes:
        raise UserError(
            f"Label {label.max()} does not fit {num_classes} classes (0 to {num_classes - 1}). Training and test rows, "
            "class_names and a head's outputs must be of the same data set."
        )
