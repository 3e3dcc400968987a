"""Measures the encoder during pre-training: kNN, retrieval across cameras, and the 3D pose."""

from typing import Any

import jax
import numpy as np

from console import progress
from console.errors import UserError
from data import clips, pipeline
from data.store import takes
from mv2mae_jax import features
from mv2mae_jax.evaluation import accuracy, geometry, probes, retrieval
from mv2mae_jax.models import mv2mae
from mv2mae_jax.monitoring import metrics

POOLING = "slices"  # of features, for kNN and retrieval [ours]


def measure(
    model: mv2mae.MV2MAE,
    params: Any,
    prepared: takes.Prepared,
    spec: clips.ClipSpec,
    mesh: jax.sharding.Mesh,
    *,
    train_rows: np.ndarray,
    test_rows: np.ndarray,
    global_batch_size: int,
    knn_k: int = 20,
) -> dict[str, float]:
    """Measures the encoder's present features on one central clip of each view.

    Args:
      params: the encoder's parameters.
      spec: its frames and crop size are used.
      train_rows, test_rows: int[...], manifest rows of different takes.
      global_batch_size: clips encoded at once; divisible by the devices.
      knn_k: neighbours; 20 as in DINO [ours].

    Returns:
      `knn_top_1`, `knn_mean_class`: neighbours among the training takes; absent if either side has no labels.
      `retrieval_*`: see retrieval.py, among the test takes; absent if no take has two views or views are not
      synchronised.
      `geometry_r2`, `geometry_error_cm`, `geometry_mean_error_cm` and so on: the 3D pose in the test takes by ridge
      regression, see geometry.py; absent if the set does not know its joints. The result may be empty. What cannot be
      measured, and all if features are not finite, is left out and said: training goes on, and has limits of its own.
    """
    views, truth = prepared.views, prepared.truth
    take, view, label = (views[name][test_rows] for name in ("take", "view", "label"))
    with_geometry = truth is not None
    with_knn = (views["label"][train_rows] >= 0).any() and (label >= 0).any()
    with_retrieval = not prepared.not_synchronised and retrieval.camera_pairs(take, view)
    if not (with_geometry or with_knn or with_retrieval):
        return {}

    def features_of(rows: np.ndarray) -> features.Features:
        batches = pipeline.clip_batches(
            prepared,
            spec,
            rows,
            global_batch_size=global_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        batches = progress.track(batches, "extracting features", "batches")
        tokens = np.empty((len(rows), model.num_tokens, model.width), np.float16) if with_geometry else None
        return features.extract(model, params, batches, mesh, tokens=tokens)

    results = {}
    if not with_geometry:
        train_rows = train_rows[views["label"][train_rows] >= 0]
    test, train = features_of(test_rows), features_of(train_rows) if with_geometry or with_knn else None
    assert np.array_equal(test.row, test_rows), "features follow the order of the rows"
    try:
        for found in filter(None, (test, train)):
            features.check_finite(found, "the encoder in training")
        if with_knn:
            known, asked = train.label >= 0, label >= 0
            scores = probes.knn_scores(
                train.pooled(POOLING)[known],
                train.label[known],
                test.pooled(POOLING)[asked],
                len(prepared.class_names),
                k=knn_k,
            )
            knn = accuracy.summarize(scores, label[asked])
            results |= {"knn_top_1": knn["top_1"], "knn_mean_class": knn["mean_class"]}
        if with_retrieval:
            found = retrieval.measure(test.pooled(POOLING), take, view, label)
            results |= {f"retrieval_{name}": value for name, value in found.items()}
        if with_geometry:
            asked = (geometry.targets(prepared, spec, rows) for rows in (train_rows, test_rows))
            found, _ = geometry.ReadOuts(model, train, test, *asked, group=views["take"][train_rows]).pose()
            results |= {f"geometry_{name}": value for name, value in found.items()}
    except UserError as error:
        metrics.say(f"Features are not measured, or not all: {error}")
    return results
