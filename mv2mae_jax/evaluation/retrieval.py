"""Retrieval across cameras: how well features survive a change of viewpoint. NumPy; needs no training."""

import itertools

import numpy as np

from console.errors import UserError

_QUERIES_AT_ONCE = 1024  # bounds the similarity matrix to 1024 x gallery [ours]


def measure(
    features: np.ndarray, take: np.ndarray, view: np.ndarray, label: np.ndarray | None = None
) -> dict[str, float]:
    """Cosine retrieval from every camera a in the clips of every other camera b, averaged over the pairs (a, b).

    A wrong clip that is as similar as the right one is ranked before it, so constant features find nothing.

    Args:
      features: float[M, F], one row per take and view.
      take: str or int[M].
      view: str or int[M], the camera.
      label: int[M], -1 where unknown; None where there are none.

    Returns:
      `recall_1`, `recall_5`: how often the same take is the first, among the first five; `mean_rank` of the same take
      (1 is best; chance is about half of `gallery_size`, the mean number of clips searched). Over queries whose take
      was seen by camera b.
      With labels also `class_recall_1`, how often the nearest clip of *another* take is of the same class, and
      `class_map`, the mean average precision of ranking other takes of the same class first. Over queries with at
      least one such clip; absent if there is none.

    Raises:
      ValueError: no take was seen by two cameras, or a take twice by one.
    """
    take, view = np.asarray(take), np.asarray(view)
    pairs = camera_pairs(take, view)
    if not pairs:
        names, count = np.unique(view, return_counts=True)
        seen = ", ".join(f"{name} ({n} clips)" for name, n in zip(names.tolist(), count.tolist(), strict=True))
        raise UserError(
            f"Retrieval across cameras needs takes that two cameras have seen; there are none among "
            f"{len(take)} clips of {seen}. Use a data set, or a split, with several synchronised views (a cross-view "
            "protocol tests one)."
        )
    if len(set(zip(take.tolist(), view.tolist(), strict=True))) < len(take):
        raise UserError("A take occurs twice in one camera: average the features of its clips before retrieval.")
    unit = normalize(features)
    label = np.full(len(take), -1) if label is None else np.asarray(label)
    of_pairs = []
    for query_view, gallery_view in pairs:
        query, gallery = np.flatnonzero(view == query_view), np.flatnonzero(view == gallery_view)
        parts = [
            _measure_queries(unit, take, label, query[start : start + _QUERIES_AT_ONCE], gallery)
            for start in range(0, len(query), _QUERIES_AT_ONCE)
        ]
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        of_pairs.append({name: np.mean(value) for name, value in values.items() if len(value)})
    names = dict.fromkeys(name for of_pair in of_pairs for name in of_pair)
    return {name: float(np.mean([p[name] for p in of_pairs if name in p])) for name in names}


def camera_pairs(take: np.ndarray, view: np.ndarray) -> list[tuple]:
    """Ordered pairs of different cameras that have seen the same take."""
    takes_of = {name: take[view == name] for name in np.unique(view).tolist()}
    return [(a, b) for a, b in itertools.permutations(takes_of, 2) if np.isin(takes_of[a], takes_of[b]).any()]


def _measure_queries(
    unit: np.ndarray, take: np.ndarray, label: np.ndarray, query: np.ndarray, gallery: np.ndarray
) -> dict[str, np.ndarray]:
    """What `measure` averages, of single queries int[Q] in the gallery int[G]; those without an answer are left out."""
    similarity = unit[query] @ unit[gallery].T  # (Q, G)
    same_take = take[query][:, None] == take[gallery][None]  # (Q, G), at most one per row
    answered = same_take.any(axis=1)
    own = similarity[same_take][:, None]  # (number answered, 1)
    rank = (similarity[answered] >= own).sum(axis=1)

    positive = (label[query][:, None] == label[gallery][None]) & (label[gallery] >= 0) & ~same_take  # (Q, G)
    answered = positive.any(axis=1)
    similarity = np.where(same_take, -np.inf, similarity)[answered]  # ranks the query's own take last
    # By falling similarity. If similarities are equal, wrong clips come first.
    order = np.lexsort((positive[answered], -similarity), axis=1)
    hit = np.take_along_axis(positive[answered], order, axis=1)  # (number answered, G)
    precision = hit.cumsum(axis=1) / np.arange(1, len(gallery) + 1)
    return {
        "recall_1": rank <= 1,
        "recall_5": rank <= 5,
        "mean_rank": rank,
        "gallery_size": np.full(len(rank), len(gallery)),
        "class_recall_1": hit[:, 0],
        "class_map": (precision * hit).sum(axis=1) / hit.sum(axis=1),
    }


def normalize(features: np.ndarray) -> np.ndarray:
    """float[M, D] -> float32[M, D] of length 1."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
