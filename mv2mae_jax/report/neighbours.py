"""Features of clips: the nearest clips of other cameras, and a map of all clips by class and by camera."""

import dataclasses
import math
from typing import Any

import numpy as np

from data import clips, pipeline
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.store import takes
from mv2mae_jax import features, inference
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import online_probes, probe, retrieval, visualize
from mv2mae_jax.models import frozen_encoder, stored_frames
from mv2mae_jax.report import charts, pictures, tables
from mv2mae_jax.report.charts import MOST_MARKS, Chart
from mv2mae_jax.report.collect import ReportedRun
from mv2mae_jax.report.pictures import Image

NEAREST = 5
QUERIES = 4
BATCH_SIZE = 16  # [ours] clips encoded at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """A clip and its nearest clips of other cameras, most similar first."""

    clip: Image
    nearest: list[Image]
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The report's part on features.

    Attributes:
      about: which clips and features these are.
      queries: some clips, drawn at random; empty where there is a single camera.
      maps: scatter plots of all clips.
    """

    about: str
    queries: list[Query]
    maps: list[Chart]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """The encoder and the data of a run.

    Attributes:
      model, params: its encoder is looked at.
      prepared, spec: the data set, and what a clip is.
      train: int[...], manifest rows that it was trained on; empty if `rows` are training rows.
      rows: int[...], manifest rows to look at.
      which: `rows` in words.
    """

    model: Any
    params: Any
    prepared: takes.Prepared
    spec: clips.ClipSpec
    train: np.ndarray
    rows: np.ndarray
    which: str

    def encode(self, rows: np.ndarray, params: Any, encoder: str, *, with_tokens: bool = False) -> features.Features:
        """Features of one central clip of each view; raises ValueError, naming `encoder`, if some are not finite."""
        tokens = np.empty((len(rows), self.model.num_tokens, self.model.width), np.float16) if with_tokens else None
        batches = pipeline.clip_batches(self.prepared, self.spec, rows, global_batch_size=BATCH_SIZE)
        found = features.extract(self.model, params, batches, sharding.one_device(), tokens=tokens)
        features.check_finite(found, encoder)
        return found

    def videos(self, rows: np.ndarray, blur_sigma: float) -> np.ndarray:
        """uint8[M, T, H, W, 3] of the clips that `encode` takes."""
        found, batch_size = [], min(BATCH_SIZE, len(rows))
        for batch in pipeline.clip_batches(self.prepared, self.spec, rows, global_batch_size=batch_size):
            video = np.asarray(stored_frames.pixels(batch, self.model.clip_size[1:])["video"])
            found.append(video[np.asarray(batch["valid"])])
        videos = np.concatenate(found).astype(np.float32)
        return np.round(visualize.blurred(videos, blur_sigma)).astype(np.uint8)


def examine(run: ReportedRun, opened: Opened, *, max_clips: int, key: str, blur_sigma: float = 0.0) -> Neighbours:
    """Encodes one central clip of every view of some takes: held-out ones of pre-training, else of the test split."""
    prepared, which = opened.prepared, opened.which
    rows = choose_rows(prepared, opened.rows, max_clips, seed=run.config.seed)
    found = opened.encode(rows, opened.params, "this run's encoder")
    pooling = run.config.probe.pooling if run.config.task == "probe" else online_probes.POOLING
    pooled = found.pooled(pooling)
    view, take, label = (prepared.views[name][rows] for name in ("view", "take", "label"))
    about = f"{len(rows)} clips of {len(np.unique(take))} {which}, each view's central clip; pooling: {pooling}."
    queries = []
    if len(np.unique(view)) > 1:
        chosen = _choose_queries(take, view, seed=run.config.seed)
        order = {query: nearest(pooled, view, query, NEAREST) for query in chosen}
        shown = np.unique(np.concatenate([[query, *index] for query, index in order.items()]))
        videos = dict(zip(shown.tolist(), opened.videos(rows[shown], blur_sigma), strict=True))
        queries = [_query(query, index, videos, pooled, take, view, label, prepared) for query, index in order.items()]
        if not prepared.not_synchronised and retrieval.camera_pairs(take, view):
            measured = retrieval.measure(pooled, take, view, label)
            about += (
                f" Searched from every camera in every other one, the same take comes first in "
                f"{100 * measured['recall_1']:.0f} % of the cases; chance is {100 / measured['gallery_size']:.1f} %."
            )
    return Neighbours(about=about, queries=queries, maps=_maps(pooled, take, view, label, prepared.class_names, key))


def choose_rows(prepared: takes.Prepared, rows: np.ndarray, most: int, *, seed: int) -> np.ndarray:
    """Ascending int[...] rows of whole takes, drawn at random, at most `most` of them (but at least one take)."""
    take = prepared.views["take"][rows]
    chosen: list[int] = []
    for name in np.random.default_rng(seed).permutation(np.unique(take)).tolist():
        of_take = rows[take == name].tolist()
        if chosen and len(chosen) + len(of_take) > most:
            break
        chosen += of_take
    return np.sort(np.array(chosen, np.int64))


def nearest(pooled: np.ndarray, view: np.ndarray, query: int, count: int) -> np.ndarray:
    """The clips int[<= count] of other cameras most similar to a clip by the cosine of features float[M, F]."""
    unit = retrieval.normalize(pooled)
    similarity = np.where(view == view[query], -np.inf, unit @ unit[query])  # (M,)
    order = np.argsort(-similarity, kind="stable")[:count]
    return order[np.isfinite(similarity[order])]


def principal_axes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PCA of float[M, F]: (coordinates float[M, 2] along the two axes of largest variance, their shares of it)."""
    centred = values - values.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    variances = np.square(singular)
    shares = variances / max(float(variances.sum()), np.finfo(np.float32).tiny)
    # With a single clip or feature, there is one axis; the other is 0.
    return np.pad(left * singular, [(0, 0), (0, 1)])[:, :2], np.pad(shares, (0, 1))[:2]


def open_run(run: ReportedRun) -> Opened:
    """Held-out takes of pre-training (training takes where none is held out), else those of the test split.

    Raises:
      ValueError: there is no checkpoint, it is damaged, or the data set is gone.
    """
    if run.config.task == "pretrain":
        dataset = Dataset.from_config(run.config)
        taken = dataset.held_out or dataset.train
        rows, which = taken.rows[taken.rows >= 0], "held-out takes" if dataset.held_out else "training takes"
        train = dataset.train.rows[dataset.train.rows >= 0] if dataset.held_out else np.array([], int)
    else:
        dataset = LabelledDataset.from_config(run.config)
        train, rows, which = dataset.train, dataset.test, "takes of the test split"
    if run.config.task == "probe":
        model, params, _ = probe.load_encoder(run.config, sharding.one_device())
    else:
        encoder = inference.load_encoder(run.workdir)
        model, params = encoder.model, encoder.params
    if not isinstance(model, frozen_encoder.RawPixels):
        model = model.with_compute(attention="xla")  # whichever form the run used
    return Opened(
        model=model, params=params, prepared=dataset.prepared, spec=dataset.spec, train=train, rows=rows, which=which
    )


def _choose_queries(take: np.ndarray, view: np.ndarray, *, seed: int) -> list[int]:
    """Clips of different takes, drawn at random, from one camera after the other."""
    order, views = np.random.default_rng(seed).permutation(len(take)), np.unique(view)
    chosen: list[int] = []
    for number in range(QUERIES):
        left = [i for i in order if view[i] == views[number % len(views)] and take[i] not in take[chosen]]
        chosen += [int(i) for i in left[:1]]
    return chosen


def _query(query, index, videos, pooled, take, view, label, prepared) -> Query:
    unit, names = retrieval.normalize(pooled), prepared.class_names

    def described(i: int) -> str:
        return f"{view[i]}, {names[label[i]]}" if label[i] >= 0 and names else f"{view[i]}, {take[i]}"

    def film(i: int, text: str, mark: str = "") -> Image:
        alt = f"Animation: take {take[i]} from camera {described(i)}"
        return pictures.film(videos[i], text, alt, most_frames=8, mark=mark)

    images = []
    for i in index.tolist():
        same_take, known = take[i] == take[query], label[i] >= 0 and label[query] >= 0
        right = same_take or (known and label[i] == label[query])
        kind = "same take" if same_take else "same class" if right else "other class" if known else "other take"
        text = f"{described(i)}, {float(unit[i] @ unit[query]):.3f}: {kind}"
        images.append(film(i, text, "right" if right else "wrong"))
    own = (take == take[query]) & (view != view[query])
    note = ""
    if own.any() and not prepared.not_synchronised:
        similarity = unit @ unit[query]
        others = view != view[query]
        rank = int((similarity[others] > similarity[own].max()).sum()) + 1
        note = f"The same take comes at place {rank} of {int(others.sum())}."
    return Query(clip=film(query, f"query: {described(query)}"), nearest=images, note=note)


def _maps(pooled, take, view, label, class_names, key: str) -> list[Chart]:
    coordinates, shares = principal_axes(pooled)
    groups = [("camera", view, np.unique(view).tolist())]
    if class_names and (label >= 0).any():
        present = np.unique(label[label >= 0]).tolist()
        names = np.array([*class_names, ""])[label]
        groups.insert(0, ("class", names, [class_names[k] for k in present]))
    found = []
    for kind, group, names in groups:
        near, chance = nearest_agree(pooled, take, group)
        said = (
            f"With all dimensions, the nearest clip of another take is of the same {kind} in {100 * near:.0f} % of the "
            f"cases; by chance it would be in {100 * chance:.0f} %."
            if math.isfinite(near)
            else ""
        )
        grey = f" Past the first {MOST_MARKS}, they are grey." if len(names) > MOST_MARKS else ""
        caption = f"Each point is a clip; neighbours have similar features, as far as two axes tell.{grey} {said}"

        def draw(axes, group=group, names=names) -> None:
            points = [
                axes.scatter(*coordinates[group == name].T, s=20, c=colour, marker=marker, linewidths=0)
                for name, (colour, marker) in zip(names, charts.scatter_marks(len(names)), strict=True)
            ]
            axes.set_xlabel(f"first axis ({100 * shares[0]:.0f} % of the variance)")
            axes.set_ylabel(f"second axis ({100 * shares[1]:.0f} %)")
            axes.tick_params(labelbottom=False, labelleft=False)
            if len(names) <= MOST_MARKS:
                axes.legend(  # names are passed here, because Matplotlib leaves out labels of points that begin with _
                    points,
                    [tables.shortened(name, 20) for name in names],
                    loc="upper center",
                    bbox_to_anchor=(0.45, -0.12),
                    ncols=min(3, len(names)),
                    fontsize=8.5,
                    columnspacing=1,
                    handletextpad=0.1,
                )

        listed = ", ".join(f"{name} ({int((group == name).sum())})" for name in names[:MOST_MARKS])
        alt = f"Scatter plot of {len(group)} clips along two principal axes, coloured by {kind}: {listed}. {said}"
        height = 3.1 + 0.17 * math.ceil(min(len(names), MOST_MARKS) / 3)
        found.append(charts.chart(f"{key}-{kind}", f"Features by {kind}", caption, alt, draw, size=(5.0, height)))
    return found


def nearest_agree(pooled: np.ndarray, take: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """How often the nearest clip of another take is of the same group, and how often a random clip would be.

    Args:
      pooled: float[M, F]; compared by cosine.
      take, group: [M].

    Returns:
      (share, chance); nan where there is a single take.
    """
    unit = retrieval.normalize(pooled)
    other = take[:, None] != take[None]  # (M, M)
    if not other.any(axis=1).all():
        return math.nan, math.nan
    order = np.where(other, unit @ unit.T, -np.inf).argmax(axis=1)
    same = (group[:, None] == group[None]) & other
    return float(np.mean(group[order] == group)), float(np.mean(same.sum(axis=1) / other.sum(axis=1)))
