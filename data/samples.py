"""From the number of an element to arrays: which frames are read, what is drawn at random, and how crops are cut.

All random draws come from the generator that is passed in. `data.pipeline` decides which element gets which generator.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from data import augment, clips
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.motion import motion_energy
from data.store import takes

Sample = dict[str, np.ndarray | dict[str, np.ndarray]]
Empty = Callable[[tuple[int, ...], Any], np.ndarray]  # where large arrays come from: np.empty, or buffers.Buffers.empty

# [ours] If an element cannot be read, this many others are tried in its place before it is an error.
MOST_REPLACEMENTS = 10
_CACHED_BYTES = 2**18  # [ours] assumed size of a core's cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """What was drawn for a sample: the same frames of several views of a take, in several crops."""

    rows: np.ndarray  # int[V], manifest rows
    position: float  # of the clip; see `clips.frame_indices`
    crops: list[list[clips.CropDraw]]  # R lists of V crops
    replacement: int = 0  # seed of the next draw if this one cannot be read


def draw_sample(dataset: Dataset, element: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draws for an element of `dataset.train`: one clip of its target view and of source views, in `repeats` crops."""
    spec, take_views = dataset.spec, dataset.train
    take, view, facts = _draw_views(dataset, take_views, take_views.elements[element], rng)
    position, crops = rng.random(), []
    for _ in range(spec.repeats):
        draws = [clips.draw_crop(rng, spec.crop_scales) for _ in view]
        crops.append(draws[:1] * len(view) if spec.same_crop_in_views else draws)
    replacement = int(rng.integers(2**63))
    video = Views(rows=take_views.rows[take, view], position=position, crops=crops, replacement=replacement)
    return {"video": video, **facts}


def _draw_views(
    dataset: Dataset, take_views: clips.TakeViews, element: np.ndarray, rng: np.random.Generator
) -> tuple[int, np.ndarray, Sample]:
    """(take, int[V] the target view and the drawn source views, entries of the batch about them) for an element."""
    take, target = element.tolist()
    sources = rng.permutation(take_views.sources(take, target))[: dataset.spec.num_source_views]
    view = np.array([target, *sources])
    label = dataset.prepared.views["label"][take_views.rows[take, target]]
    return take, view, {"take": np.int32(take), "view": view.astype(np.int32), "label": np.int32(label)}


def read_training_batch(dataset: Dataset, drawn: Sequence[dict[str, Any]], empty: Empty = np.empty) -> Sample:
    """As `read_batch`, but a sample with a damaged record is replaced by another sample.

    The result depends only on the draws and on which records are damaged, so a repeated step gets the same batch.

    Returns:
      The batch, with `damaged` int32[B]: the damaged record that the sample replaces, else -1.

    Raises:
      DamagedRecord: a sample and MOST_REPLACEMENTS others in its place cannot be read.
    """
    drawn, damaged, tried = list(drawn), np.full(len(drawn), -1, np.int32), np.zeros(len(drawn), int)
    records = dataset.prepared.views["record"]
    while True:
        try:
            batch = read_batch(dataset, drawn, empty)
            break
        except takes.DamagedRecord as error:
            hit = next(i for i, sample in enumerate(drawn) if error.record in records[sample["video"].rows])
            if tried[hit] == MOST_REPLACEMENTS:
                raise
            tried[hit] += 1
            damaged[hit] = error.record if damaged[hit] == -1 else damaged[hit]
            rng = np.random.default_rng(drawn[hit]["video"].replacement)
            drawn[hit] = draw_sample(dataset, int(rng.integers(len(dataset.train.elements))), rng)
    return batch | {"damaged": damaged.repeat(dataset.spec.repeats)}


def read_batch(dataset: Dataset, drawn: Sequence[dict[str, Any]], empty: Empty = np.empty) -> Sample:
    """Samples -> a batch: reads the clips and stacks everything else. The crops of a clip follow one another.

    Returns:
      Clips under their names, as from `read_clips`; also `motion` float32[B, V, N] of `video` if
      `dataset.spec.motion_on` is 'host'. If frames are stored as coefficients, `stored` takes the place of both: what
      `read_coefficients` returns, under the names of the clips.

    Raises:
      ValueError: a view cannot be read; names the take and the view.
    """
    prepared, spec, video = dataset.prepared, dataset.spec, drawn[0]["video"]
    repeats, batch = len(video.crops), {}
    if prepared.codec != "dct" and spec.motion_on == "host":
        batch["motion"] = np.empty((len(drawn) * repeats, len(video.rows), spec.num_tokens), np.float32)
    for key, value in drawn[0].items():
        values = [sample[key] for sample in drawn]
        if isinstance(value, Views):
            if prepared.codec == "dct":
                batch.setdefault("stored", {})[key] = read_coefficients(prepared, spec, values, empty)
            else:
                batch[key] = read_clips(prepared, spec, values, empty, batch.get("motion") if key == "video" else None)
        else:
            batch[key] = np.repeat(np.stack(values), repeats, axis=0)  # (B, ...)
    return batch


def read_clips(
    prepared: takes.Prepared,
    spec: clips.ClipSpec,
    samples: Sequence[Views],
    empty: Empty = np.empty,
    motion: np.ndarray | None = None,
) -> np.ndarray:
    """The clips of E samples, whose frames are stored as JPEG files.

    Args:
      empty: makes the large arrays.
      motion: float32[E * R, V, N], if wanted: receives the motion energies.

    Returns:
      uint8[E * R, V, T, H, W, 3].

    Raises:
      ValueError: a view cannot be read; names the take and the view.
    """
    num_crops = sum(len(sample.crops) for sample in samples)
    video = empty((num_crops, len(samples[0].rows), spec.num_frames, *spec.crop_size, 3), np.uint8)
    # Motion energies are computed while clips are in the processor's cache; for small clips, many at once.
    clips_at_once, first, measured = max(1, _CACHED_BYTES // max(1, video[:1].nbytes)), 0, 0
    for sample in samples:
        indices = _frame_indices(prepared, spec, sample)
        last = first + len(sample.crops)
        records = prepared.views["record"][sample.rows].tolist()
        for v, (record, boxes) in enumerate(zip(records, _boxes(prepared, spec, sample), strict=True)):
            top, left, height, width = clips.enclosing_box(boxes)
            frames = prepared.read_frames(record, indices, (top, left, height, width))
            crop_frames(frames, [(y - top, x - left, h, w) for y, x, h, w in boxes], video[first:last, v])
        first = last
        if motion is not None and (first - measured >= clips_at_once or first == num_crops):
            motion[measured:first] = motion_energy(video[measured:first], spec.tubelet_size)
            measured = first
    return video  # (E * R, V, T, H, W, 3)


def read_coefficients(
    prepared: takes.Prepared, spec: clips.ClipSpec, samples: Sequence[Views], empty: Empty = np.empty
) -> dict[str, np.ndarray]:
    """Like `read_clips`, for frames stored as coefficients, which models/stored_frames.py turns into clips.

    Returns:
      `coefficients` int8[E, V, T, *prepared.coefficients_shape], `steps` uint8[E, V, 2, 8, 8] and `box` int32[E, R, V,
      4] (top, left, height, width in pixels).
    """
    num_views = len(samples[0].rows)
    shape = (len(samples), num_views, spec.num_frames, *prepared.coefficients_shape)
    coefficients = empty(shape, np.int8)  # filled in place: copying would take as long as unpacking
    steps = np.empty((len(samples), num_views, 2, 8, 8), np.uint8)
    box = np.empty((len(samples), len(samples[0].crops), num_views, 4), np.int32)
    for i, sample in enumerate(samples):
        indices = _frame_indices(prepared, spec, sample)
        for v, row in enumerate(sample.rows.tolist()):
            steps[i, v] = prepared.read_coefficients(int(prepared.views["record"][row]), indices, coefficients[i, v])
        box[i] = np.swapaxes(_boxes(prepared, spec, sample), 0, 1)  # (R, V, 4)
    return {"coefficients": coefficients, "steps": steps, "box": box}


def _boxes(prepared: takes.Prepared, spec: clips.ClipSpec, sample: Views) -> list[list[tuple[int, int, int, int]]]:
    """V times R times (top, left, height, width) in pixels."""
    sizes = zip(*(prepared.views[side][sample.rows].tolist() for side in ("height", "width")), strict=True)
    return [[clips.crop_box(crops[v], size, spec.crop_size) for crops in sample.crops] for v, size in enumerate(sizes)]


def _frame_indices(prepared: takes.Prepared, spec: clips.ClipSpec, sample: Views) -> np.ndarray:
    shortest = int(prepared.views["num_frames"][sample.rows].min())
    return clips.frame_indices(shortest, spec.num_frames, spec.frame_stride, sample.position)


def crop_clip(frames: Sequence[np.ndarray], draw: clips.CropDraw, crop_size: tuple[int, int]) -> np.ndarray:
    """One box of every frame, resized: T times uint8[h, w, 3] -> uint8[T, H, W, 3]; see `crop_frames`."""
    video = np.empty((1, len(frames), *crop_size, 3), np.uint8)
    crop_frames(frames, [clips.crop_box(draw, frames[0].shape[:2], crop_size)], video)
    return video[0]


def crop_frames(frames: Iterable[np.ndarray], boxes: Sequence[tuple[int, int, int, int]], into: np.ndarray) -> None:
    """Several boxes of every frame, resized: linearly, or by areas if one shrinks by more than `clips.MOST_LINEAR`.

    Args:
      frames: T times uint8[h, w, 3].
      boxes: R times (top, left, height, width) in pixels.
      into: uint8[R, T, H, W, 3], receives the crops.
    """
    crop_height, crop_width = into.shape[2:4]
    if isinstance(frames, np.ndarray) and all(tuple(box[2:]) == into.shape[2:4] for box in boxes):
        for (top, left, height, width), video in zip(boxes, into, strict=True):
            video[:] = frames[:, top : top + height, left : left + width]  # with the cache, 10 % more clips a second
        return
    crops = []
    for (top, left, height, width), video in zip(boxes, into, strict=True):
        by_area = max(height / crop_height, width / crop_width) > clips.MOST_LINEAR
        interpolation = cv2.INTER_AREA if by_area else cv2.INTER_LINEAR
        as_it_is = (height, width) == (crop_height, crop_width)
        crops.append((np.s_[top : top + height, left : left + width], None if as_it_is else interpolation, video))
    for index, frame in enumerate(frames):
        for box, interpolation, video in crops:
            if interpolation is None:
                video[index] = frame[box]
            else:
                cv2.resize(frame[box], (crop_width, crop_height), dst=video[index], interpolation=interpolation)


def read_labelled_sample(dataset: LabelledDataset, element: int, rng: np.random.Generator) -> Sample:
    """Reads one clip of an element of `dataset.train`, in `repeats` augmented crops.

    If the record is damaged, another element, drawn from `rng`, takes its place; see `read_training_batch`.
    """
    damaged = -1
    for number in range(MOST_REPLACEMENTS + 1):
        try:
            sample = _read_labelled(dataset, element, rng)
            break
        except takes.DamagedRecord as error:
            if number == MOST_REPLACEMENTS:
                raise
            damaged = error.record if damaged == -1 else damaged
            element = int(rng.integers(len(dataset.train)))
    return sample | {"damaged": np.full(dataset.spec.repeats, damaged, np.int32)}


def _read_labelled(dataset: LabelledDataset, element: int, rng: np.random.Generator) -> Sample:
    spec, prepared, augmentation, row = dataset.spec, dataset.prepared, dataset.augmentation, dataset.train[element]
    indices = _frame_indices(prepared, spec, Views(rows=np.array([row]), position=rng.random(), crops=[]))
    frames = prepared.read(int(prepared.views["record"][row]), indices)  # augmentations need pixels

    def augmented() -> np.ndarray:
        clip = augment.rand_augment(frames, augmentation, rng)
        clip = crop_clip(clip, clips.draw_crop(rng, spec.crop_scales), spec.crop_size)
        clip = augment.random_flip(clip, augmentation.flip, rng)
        return augment.random_erasing(clip, augmentation.random_erasing, rng)

    return {
        "video": np.stack([augmented() for _ in range(spec.repeats)]),  # (repeats, T, H, W, 3)
        "label": np.full(spec.repeats, prepared.views["label"][row], np.int32),
        "row": np.full(spec.repeats, row, np.int32),
    }


def read_plain_batch(
    prepared: takes.Prepared,
    spec: clips.ClipSpec,
    rows: np.ndarray,
    positions: Sequence[float],
    crops: Sequence[clips.CropDraw],
    numbers: Sequence[int],
    empty: Empty = np.empty,
) -> Sample:
    """Reads samples by their numbers, which count (row, clip, crop), the last fastest.

    A clip is decoded once for all its crops. Numbers after the end start over and are not valid.
    """
    shape = (len(rows), len(positions), len(crops))
    numbers, num_samples = np.asarray(numbers), math.prod(shape)
    view, clip, crop = np.unravel_index(numbers % num_samples, shape)
    same_clip = itertools.groupby(range(len(numbers)), key=lambda sample: (view[sample], clip[sample]))
    wanted = [
        Views(rows=rows[[i]], position=positions[j], crops=[[crops[crop[sample]]] for sample in group])
        for (i, j), group in same_clip
    ]
    if prepared.codec == "dct":
        batch = {"stored": {"video": _single_views(prepared, spec, wanted, empty)}}
    else:
        batch = {"video": read_clips(prepared, spec, wanted, empty)[:, 0]}  # (B, T, H, W, 3)
    rows = rows[view]
    batch |= {"label": prepared.views["label"][rows].astype(np.int32), "row": rows.astype(np.int32)}
    return batch | {"valid": numbers < num_samples}


def _single_views(
    prepared: takes.Prepared, spec: clips.ClipSpec, wanted: Sequence[Views], empty: Empty
) -> dict[str, np.ndarray]:
    """As `read_coefficients`, for samples of one view, without the axis of views."""
    video = [read_coefficients(prepared, spec, [clip]) for clip in wanted]
    parts = {key: np.concatenate([clip[key][0] for clip in video]) for key in video[0]}
    clip_of = np.repeat(np.arange(len(wanted)), [len(clip.crops) for clip in wanted])
    coefficients = empty((len(clip_of), *parts["coefficients"].shape[1:]), np.int8)
    return {
        # (B, T, 3 H / 2, W). mode="clip" skips NumPy's check of the indices, which would make another copy.
        "coefficients": parts["coefficients"].take(clip_of, axis=0, out=coefficients, mode="clip"),
        "steps": parts["steps"][clip_of],  # (B, 2, 8, 8)
        "box": parts["box"],  # (B, 1, 4)
    }


def other_takes(views: Mapping[str, np.ndarray], take_views: clips.TakeViews) -> dict[str, dict[int, np.ndarray]]:
    """For each take, the takes that may replace its source view in the cross-view evaluation.

    Takes of the same performance (facing direction) are preferred. A set without setups counts as one room. If subjects
    are unknown, any other take counts as another subject's. If subjects or labels are unknown, no take counts as
    another action of the same subject.

    Returns:
      `other_subject`: take -> takes of other subjects in the same setup; `other_action`: take -> takes of the same
      subject in the same setup with another label, both known.
    """
    first_row = take_views.rows.max(axis=1)  # any view, because these columns are the same for all views of a take
    facts = {key: views[key][first_row] for key in ("setup", "subject", "label", "performance")}
    found: dict[str, dict[int, np.ndarray]] = {"other_subject": {}, "other_action": {}}
    for setup in np.unique(facts["setup"]):
        members = np.flatnonzero(facts["setup"] == setup)
        subject, label, performance = (facts[key][members] for key in ("subject", "label", "performance"))
        for i, take in enumerate(members):
            known_subject, known_label = subject[i] >= 0, label[i] >= 0
            another_action = (label != label[i]) & (label >= 0) & known_label
            partners = {
                "other_subject": subject != subject[i] if known_subject else members != take,
                "other_action": (subject == subject[i]) & known_subject & another_action,
            }
            for kind, matches in partners.items():
                facing_alike = matches & (performance == performance[i])
                found[kind][int(take)] = members[facing_alike if facing_alike.any() else matches]
    return found


def draw_eval_sample(
    dataset: Dataset,
    take_views: clips.TakeViews,
    elements: np.ndarray,
    others: Mapping[str, Mapping[int, np.ndarray]],
    row: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Centre crops of a target view, its source views, and sources from other takes, for `read_batch`.

    `row` is a number in `elements` int[num_elements, 2], (take, target view) of `take_views` in order of evaluation;
    numbers after the end start over and are not valid. `others` is what `other_takes` returns.
    """
    spec = dataset.spec
    take, view, facts = _draw_views(dataset, take_views, elements[row % len(elements)], rng)

    def central(take: int, view: np.ndarray) -> Views:
        crops = [[clips.CropDraw()] * len(view)]
        return Views(rows=take_views.rows[take, view], position=rng.random(), crops=crops)

    sample = {"video": central(take, view), **facts, "valid": np.bool_(row < len(elements))}
    for name, partners in others.items() if spec.num_source_views else ():
        usable = [other for other in partners[take].tolist() if (take_views.rows[other, view[1:]] >= 0).all()]
        sample[name] = central(int(rng.choice(usable)) if usable else take, view[1:])
        sample[f"has_{name}"] = np.bool_(bool(usable))
    return sample
