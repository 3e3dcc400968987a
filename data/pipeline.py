"""The input pipeline: a prepared data set -> batches. The only place where order and randomness are set.

A training batch is a pure function of (seed, step): the pipeline is *positioned* by the step instead of restored from a
saved iterator, so a run goes on exactly with any number of workers, hosts or devices. Every random draw is made on the
global element index, before the stream is cut by process.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator

import cv2
import grain
import numpy as np
from absl import flags

from data import clips, takes
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.motion import motion_energy

Batch = dict[str, np.ndarray]


def train_batches(
    dataset: Dataset,
    *,
    seed: int,
    start_step: int,
    global_batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Endless training batches from `start_step` on: this process's rows of each global batch.

    One epoch is one pass over the (take, target view) elements in a fresh order; the source views are drawn.

    Args:
      dataset: the opened data set; its `train` elements are read.
      seed: decides order, source views, start frames and crops.
      start_step: the step whose batch comes first.
      global_batch_size: samples per step over all processes; divisible by process_count * repeats.
      process_index: which share of each batch.
      process_count: how many shares.
      num_workers: processes that read and decode; 0 decodes in threads of this process.

    Yields:
      `video` uint8[B, V, T, H, W, 3], view 0 the target; `motion` float32[B, V, N], grey levels; `take` int32[B];
      `view` int32[B, V]; `label` int32[B], -1 where unknown.
    """
    return _training_stream(
        ReadSample(dataset=dataset),
        len(dataset.train.elements),
        repeats=dataset.spec.repeats,
        seed=seed,
        start_step=start_step,
        global_batch_size=global_batch_size,
        process_index=process_index,
        process_count=process_count,
        num_workers=num_workers,
    )


def labelled_batches(
    dataset: LabelledDataset,
    *,
    seed: int,
    start_step: int,
    global_batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches of labelled views from `start_step` on; arguments as in `train_batches`.

    One epoch is one pass over the training rows in a fresh order; start frames, crops and augmentations are drawn.

    Yields:
      `video` uint8[B, T, H, W, 3]; `label` int32[B]; `row` int32[B], of the manifest.
    """
    return _training_stream(
        ReadLabelledSample(dataset=dataset),
        len(dataset.train),
        repeats=dataset.spec.repeats,
        seed=seed,
        start_step=start_step,
        global_batch_size=global_batch_size,
        process_index=process_index,
        process_count=process_count,
        num_workers=num_workers,
    )


def _training_stream(
    read: grain.transforms.RandomMap,
    num_elements: int,
    *,
    repeats: int,
    seed: int,
    start_step: int,
    global_batch_size: int,
    process_index: int,
    process_count: int,
    num_workers: int,
) -> Iterator[Batch]:
    if global_batch_size % (process_count * repeats):
        raise ValueError(
            f"global_batch_size = {global_batch_size} is not divisible by {process_count} process(es) * "
            f"data.repeats = {repeats}."
        )
    elements_per_step = global_batch_size // repeats
    elements = grain.MapDataset.range(num_elements).seed(seed).shuffle().repeat().random_map(read)
    rows = elements_per_step // process_count
    own = _ProcessRows(elements, start_step, elements_per_step, process_index * rows, rows)
    batches = own.batch(rows).map(_merge_repeats)
    return iter(_prefetch(batches, num_workers))


def eval_batches(
    dataset: Dataset,
    *,
    seed: int,
    global_batch_size: int,
    max_takes: int | None = None,
    clips_per_element: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """One pass over the held-out takes (the training takes where none is held out), the same clips every time.

    Every element comes `clips_per_element` times, from other start frames; crops are central.

    Besides the keys of `train_batches` a batch holds sources from other takes, seen by the same camera as the source:
      `other_subject` and `other_action` uint8[B, S, T, H, W, 3]: another subject in the same room, and the same subject
      in the same room doing something else;
      `has_other_subject`, `has_other_action` bool[B]: whether the set holds such a take (otherwise zeros are passed);
      `valid` bool[B]: False for rows that only fill the last batch.
    """
    take_views = dataset.held_out or dataset.train
    elements = np.random.default_rng(seed).permutation(take_views.elements)
    if max_takes is not None:
        elements = elements[np.isin(elements[:, 0], np.unique(elements[:, 0])[:max_takes])]
    elements = np.tile(elements, (clips_per_element, 1))
    read = ReadEvalSample(
        dataset=dataset,
        take_views=take_views,
        elements=elements,
        others=OtherTakes.find(dataset.prepared.views, take_views),
    )
    num_batches = -(-len(elements) // global_batch_size)
    rows = global_batch_size // process_count
    padded = grain.MapDataset.range(num_batches * global_batch_size).seed(seed).random_map(read)
    own = _ProcessRows(padded, 0, global_batch_size, process_index * rows, rows)
    return iter(_prefetch(own.batch(rows), num_workers))


def clip_batches(
    prepared: takes.Prepared,
    spec: clips.ClipSpec,
    rows: np.ndarray,
    *,
    global_batch_size: int,
    clips_per_view: int = 1,
    crops_per_clip: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """One pass over `rows` without augmentation: every clip of every view in every crop, the same each time.

    The samples of a view are neighbours, and the crops of a clip are within them.

    Args:
      prepared: the data set.
      spec: `num_frames`, `frame_stride` and `crop_size` are used.
      rows: int[...], manifest rows, in the order wanted.
      global_batch_size: samples per batch over all processes; divisible by process_count.
      clips_per_view: temporal clips, evenly from the first to the last possible start; 1 is the middle.
      crops_per_clip: 1 is the centre; 3 are the start, the middle and the end of the longer side.
      process_index, process_count, num_workers: as in `train_batches`.

    Yields:
      `video` uint8[B, T, H, W, 3]; `label` int32[B], -1 where unknown; `row` int32[B]; `valid` bool[B], False for
      samples that only fill the last batch.

    Raises:
      ValueError: an uneven share, no clips, or another number of crops than 1 or 3.
    """
    if global_batch_size % process_count:
        raise ValueError(f"global_batch_size = {global_batch_size} is not divisible by {process_count} process(es).")
    own = global_batch_size // process_count
    read = ReadClips(
        prepared=prepared,
        spec=spec,
        rows=np.asarray(rows),
        positions=clips.spread_positions(clips_per_view),
        crops=clips.spread_crops(crops_per_clip),
        own=own,
    )
    num_batches = -(-read.num_samples // global_batch_size)
    starts = [step * global_batch_size + process_index * own for step in range(num_batches)]
    return iter(_prefetch(grain.MapDataset.source(starts).map(read), num_workers))


def _prefetch(batches: grain.MapDataset, num_workers: int) -> grain.IterDataset:
    threads = 2 if num_workers == 0 else 1
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain's worker processes look at absl's flags, which we do not use
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2))
    return stream


class _ProcessRows(grain.MapDataset):
    """Cuts the stream of global batches into the contiguous rows of one process, from a given step on."""

    def __init__(self, parent: grain.MapDataset, start_step: int, per_step: int, first_row: int, rows: int):
        super().__init__(parent)
        self._start_step, self._per_step, self._first_row, self._rows = start_step, per_step, first_row, rows

    def __len__(self) -> int:
        return (len(self._parent) // self._per_step - self._start_step) * self._rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, self._rows)
        return self._parent[(self._start_step + step) * self._per_step + self._first_row + row]


def _merge_repeats(batch: Batch) -> Batch:
    """(elements, repeats, ...) -> (elements * repeats, ...): crops of the same clip are neighbours."""
    return {key: value.reshape(-1, *value.shape[2:]) for key, value in batch.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadSample(grain.transforms.RandomMap):
    """Element index -> `repeats` crops of one clip of one target view and its source views."""

    dataset: Dataset

    def random_map(self, element: int, rng: np.random.Generator) -> Batch:
        spec, take_views = self.dataset.spec, self.dataset.train
        take, target = (int(i) for i in take_views.elements[element])
        view = _draw_views(rng, take_views, take, target, spec)
        frames = read_views(self.dataset, take_views, take, view, position=rng.random())
        samples = []
        for _ in range(spec.repeats):
            draws = [clips.draw_crop(rng, spec.crop_scales) for _ in view]
            if spec.same_crop_in_views:
                draws = draws[:1] * len(view)
            samples.append(_sample(self.dataset, take_views, take, view, frames, draws))
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def _draw_views(
    rng: np.random.Generator, take_views: clips.TakeViews, take: int, target: int, spec: clips.ClipSpec
) -> np.ndarray:
    """int[V]: the target view, then the source views drawn among those allowed."""
    sources = rng.permutation(take_views.sources(take, target))[: spec.num_source_views]
    return np.array([target, *sources])


def _sample(
    dataset: Dataset,
    take_views: clips.TakeViews,
    take: int,
    view: np.ndarray,
    frames: list[np.ndarray],
    draws: list[clips.CropDraw],
) -> Batch:
    spec = dataset.spec
    video = np.stack([crop_clip(f, d, spec.crop_size) for f, d in zip(frames, draws, strict=True)])
    return {
        "video": video,  # (V, T, H, W, 3)
        "motion": np.stack([motion_energy(clip, spec.tubelet_size) for clip in video]),  # (V, N)
        "take": np.int32(take),
        "view": view.astype(np.int32),  # (V,)
        "label": np.int32(dataset.prepared.views["label"][take_views.rows[take, view[0]]]),
    }


def read_views(
    dataset: Dataset, take_views: clips.TakeViews, take: int, view: np.ndarray, position: float
) -> list[np.ndarray]:
    """The same frames of several views of a take: a list of uint8[T, h, w, 3] of the stored size.

    Raises:
      ValueError: a view cannot be read; names the take and the view.
    """
    return _read_rows(dataset.prepared, dataset.spec, take_views.rows[take, view], position)


def _read_rows(prepared: takes.Prepared, spec: clips.ClipSpec, rows: np.ndarray, position: float) -> list[np.ndarray]:
    shortest = int(prepared.views["num_frames"][rows].min())
    indices = clips.frame_indices(shortest, spec.num_frames, spec.frame_stride, position)
    return [prepared.read(int(prepared.views["record"][row]), indices) for row in rows]


def crop_clip(frames: np.ndarray, draw: clips.CropDraw, crop_size: tuple[int, int]) -> np.ndarray:
    """The same box of every frame, resized: uint8[T, h, w, 3] -> uint8[T, H, W, 3]."""
    top, left, height, width = clips.crop_box(draw, frames.shape[1:3], crop_size)
    box = frames[:, top : top + height, left : left + width]
    if (height, width) == tuple(crop_size):
        return box
    shrinks = height > crop_size[0] or width > crop_size[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, crop_size[::-1], interpolation=interpolation) for frame in box])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadLabelledSample(grain.transforms.RandomMap):
    """Element index -> `repeats` augmented crops of one clip of one labelled view."""

    dataset: LabelledDataset

    def random_map(self, element: int, rng: np.random.Generator) -> Batch:
        spec, prepared = self.dataset.spec, self.dataset.prepared
        row = self.dataset.train[element]
        (frames,) = _read_rows(prepared, spec, [row], position=rng.random())
        return {
            "video": np.stack([self._augmented(frames, rng) for _ in range(spec.repeats)]),  # (repeats, T, H, W, 3)
            "label": np.full(spec.repeats, prepared.views["label"][row], np.int32),
            "row": np.full(spec.repeats, row, np.int32),
        }

    def _augmented(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        spec = self.dataset.spec
        return crop_clip(frames, clips.draw_crop(rng, spec.crop_scales), spec.crop_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadClips(grain.transforms.Map):
    """Number of a sample -> the batch of `own` samples from there on; a clip is decoded once for all its crops.

    Samples are numbered (row, clip, crop), the last fastest; those after the end start over and are not valid.
    """

    prepared: takes.Prepared
    spec: clips.ClipSpec
    rows: np.ndarray
    positions: list[float]
    crops: list[clips.CropDraw]
    own: int

    @property
    def num_samples(self) -> int:
        return len(self.rows) * len(self.positions) * len(self.crops)

    def map(self, first: int) -> Batch:
        numbers = np.arange(first, first + self.own)
        shape = (len(self.rows), len(self.positions), len(self.crops))
        view, clip, crop = np.unravel_index(numbers % self.num_samples, shape)
        rows = self.rows[view]
        video = []
        for (i, j), same_clip in itertools.groupby(range(self.own), key=lambda sample: (view[sample], clip[sample])):
            (frames,) = _read_rows(self.prepared, self.spec, self.rows[[i]], self.positions[j])
            video += [crop_clip(frames, self.crops[crop[sample]], self.spec.crop_size) for sample in same_clip]
        return {
            "video": np.stack(video),  # (B, T, H, W, 3)
            "label": self.prepared.views["label"][rows].astype(np.int32),
            "row": rows.astype(np.int32),
            "valid": numbers < self.num_samples,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherTakes:
    """For each take, the takes that may stand in for its source in the cross-view evaluation.

    Attributes:
      subject: take -> takes of other subjects in the same setup.
      action: take -> takes of the same subject in the same setup with another label.
    """

    subject: dict[int, np.ndarray]
    action: dict[int, np.ndarray]

    @classmethod
    def find(cls, views: dict[str, np.ndarray], take_views: clips.TakeViews) -> "OtherTakes":
        """Looks for partners among the given takes, in the same performance (facing direction) where there are any.

        A set without setups counts as one room; where subjects are unknown, any other take counts as another subject's;
        where subjects or labels are unknown, no take counts as another action of the same subject.
        """
        first_row = take_views.rows.max(axis=1)  # any view: these columns belong to the take
        facts = {key: views[key][first_row] for key in ("setup", "subject", "label", "performance")}
        rooms = collections.defaultdict(list)
        for take, setup in enumerate(facts["setup"].tolist()):
            rooms[setup].append(take)
        found: dict[str, dict[int, np.ndarray]] = {"subject": {}, "action": {}}
        for members in (np.array(room) for room in rooms.values()):
            subject, label, performance = (facts[key][members] for key in ("subject", "label", "performance"))
            for i, take in enumerate(members):
                known_subject = subject[i] >= 0
                partners = {
                    "subject": subject != subject[i] if known_subject else members != take,
                    "action": (subject == subject[i]) & (label != label[i]) & (label >= 0) & known_subject,
                }
                for kind, matches in partners.items():
                    facing_alike = matches & (performance == performance[i])
                    found[kind][int(take)] = members[facing_alike if facing_alike.any() else matches]
        return cls(**found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadEvalSample(grain.transforms.RandomMap):
    """Row number -> centre crops of a target view, its source views, and sources from other takes.

    Attributes:
      elements: int[num_elements, 2], (take, target view) in the order of evaluation; further rows start over.
    """

    dataset: Dataset
    take_views: clips.TakeViews
    elements: np.ndarray
    others: OtherTakes

    def random_map(self, row: int, rng: np.random.Generator) -> Batch:
        spec, take_views = self.dataset.spec, self.take_views
        take, target = (int(i) for i in self.elements[row % len(self.elements)])
        view = _draw_views(rng, take_views, take, target, spec)
        frames = read_views(self.dataset, take_views, take, view, position=rng.random())
        sample = _sample(self.dataset, take_views, take, view, frames, [clips.CropDraw()] * len(view))
        sample["valid"] = np.bool_(row < len(self.elements))
        if spec.num_source_views == 0:
            return sample
        for name, partners in (("other_subject", self.others.subject), ("other_action", self.others.action)):
            usable = [other for other in partners[take].tolist() if (take_views.rows[other, view[1:]] >= 0).all()]
            source = np.zeros_like(sample["video"][1:])  # (S, T, H, W, 3)
            if usable:
                frames = read_views(self.dataset, take_views, int(rng.choice(usable)), view[1:], position=rng.random())
                source = np.stack([crop_clip(clip, clips.CropDraw(), spec.crop_size) for clip in frames])
            sample[name], sample[f"has_{name}"] = source, np.bool_(bool(usable))
        return sample
