"""From the number of an element to arrays: which frames are read, what is drawn, and how a crop is cut.

What is drawn comes from the generator that is passed in; `data.pipeline` decides which element gets which generator.
"""

import collections
import dataclasses
import itertools

import cv2
import grain
import numpy as np

from data import augment, clips, takes
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.motion import motion_energy

Sample = dict[str, np.ndarray | dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadSample(grain.transforms.RandomMap):
    """Element index -> `repeats` crops of one clip of one target view and its source views."""

    dataset: Dataset

    def random_map(self, element: int, rng: np.random.Generator) -> Sample:
        spec, take_views = self.dataset.spec, self.dataset.train
        take, target = (int(i) for i in take_views.elements[element])
        view = _draw_views(rng, take_views, take, target, spec)
        position = rng.random()
        draws = [self._draw_crops(rng, len(view)) for _ in range(spec.repeats)]
        facts = _facts(self.dataset, take_views, take, view)
        return {
            **_read_sample(self.dataset, take_views, take, view, position, draws),
            **{key: np.repeat(value[None], spec.repeats, axis=0) for key, value in facts.items()},
        }

    def _draw_crops(self, rng: np.random.Generator, num_views: int) -> list[clips.CropDraw]:
        draws = [clips.draw_crop(rng, self.dataset.spec.crop_scales) for _ in range(num_views)]
        return draws[:1] * num_views if self.dataset.spec.same_crop_in_views else draws


def _draw_views(
    rng: np.random.Generator, take_views: clips.TakeViews, take: int, target: int, spec: clips.ClipSpec
) -> np.ndarray:
    """int[V]: the target view, then the source views drawn among those allowed."""
    sources = rng.permutation(take_views.sources(take, target))[: spec.num_source_views]
    return np.array([target, *sources])


def _facts(dataset: Dataset, take_views: clips.TakeViews, take: int, view: np.ndarray) -> Sample:
    label = dataset.prepared.views["label"][take_views.rows[take, view[0]]]
    return {"take": np.asarray(take, np.int32), "view": view.astype(np.int32), "label": np.asarray(label, np.int32)}


def _read_sample(
    dataset: Dataset,
    take_views: clips.TakeViews,
    take: int,
    view: np.ndarray,
    position: float,
    draws: list[list[clips.CropDraw]],
) -> Sample:
    """`video` and, where the pixels are known, `motion` float32[R, V, N]."""
    video = read_crops(dataset.prepared, dataset.spec, take_views.rows[take, view], position, draws)
    if isinstance(video, dict):
        return {"video": video}
    energies = [[motion_energy(clip, dataset.spec.tubelet_size) for clip in views] for views in video]
    return {"video": video, "motion": np.array(energies)}


def read_crops(
    prepared: takes.Prepared,
    spec: clips.ClipSpec,
    rows: np.ndarray,
    position: float,
    draws: list[list[clips.CropDraw]],
) -> np.ndarray | dict[str, np.ndarray]:
    """The same frames of several views, in each of R crops. The one place where a codec decides what a batch holds.

    Args:
      prepared: the data set.
      spec: its frames and crop size are used.
      rows: int[V], manifest rows.
      position: of the clip; see `clips.frame_indices`.
      draws: R lists of V crops.

    Returns:
      uint8[R, V, T, H, W, 3], or of frames stored as coefficients what mv2mae_jax/decode.py makes that from:
      `coefficients` int8[V, T, *prepared.coefficients_shape], `steps` uint8[V, 2, 8, 8] and `box` int32[R, V, 4] (top,
      left, height and width in pixels).

    Raises:
      ValueError: a view cannot be read; names the take and the view.
    """
    indices, records = _frame_indices(prepared, spec, rows, position), prepared.views["record"][rows].tolist()
    if prepared.codec == "dct":
        coefficients = np.empty((len(rows), len(indices), *prepared.coefficients_shape), np.int8)
        read = zip(records, coefficients, strict=True)
        steps = np.stack([prepared.read_coefficients(record, indices, into) for record, into in read])
        sizes = [(int(prepared.views["height"][row]), int(prepared.views["width"][row])) for row in rows]
        box = [[clips.crop_box(d, s, spec.crop_size) for d, s in zip(views, sizes, strict=True)] for views in draws]
        return {"coefficients": coefficients, "steps": steps, "box": np.array(box, np.int32)}
    frames = [prepared.read(record, indices) for record in records]
    return np.stack(
        [[crop_clip(f, d, spec.crop_size) for f, d in zip(frames, views, strict=True)] for views in draws]
    )  # (R, V, T, H, W, 3)


def _frame_indices(prepared: takes.Prepared, spec: clips.ClipSpec, rows: np.ndarray, position: float) -> np.ndarray:
    shortest = int(prepared.views["num_frames"][rows].min())
    return clips.frame_indices(shortest, spec.num_frames, spec.frame_stride, position)


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

    def random_map(self, element: int, rng: np.random.Generator) -> Sample:
        spec, prepared = self.dataset.spec, self.dataset.prepared
        row = self.dataset.train[element]
        indices = _frame_indices(prepared, spec, [row], position=rng.random())
        frames = prepared.read(int(prepared.views["record"][row]), indices)  # augmentations want pixels, here
        return {
            "video": np.stack([self._augmented(frames, rng) for _ in range(spec.repeats)]),  # (repeats, T, H, W, 3)
            "label": np.full(spec.repeats, prepared.views["label"][row], np.int32),
            "row": np.full(spec.repeats, row, np.int32),
        }

    def _augmented(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        spec, augmentation = self.dataset.spec, self.dataset.augmentation
        frames = augment.rand_augment(frames, augmentation, rng)
        clip = crop_clip(frames, clips.draw_crop(rng, spec.crop_scales), spec.crop_size)
        clip = augment.random_flip(clip, augmentation.flip, rng)
        return augment.random_erasing(clip, augmentation.random_erasing, rng)


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

    def map(self, first: int) -> Sample:
        numbers = np.arange(first, first + self.own)
        shape = (len(self.rows), len(self.positions), len(self.crops))
        view, clip, crop = np.unravel_index(numbers % self.num_samples, shape)
        rows = self.rows[view]
        video = []
        for (i, j), same_clip in itertools.groupby(range(self.own), key=lambda sample: (view[sample], clip[sample])):
            draws = [[self.crops[crop[sample]]] for sample in same_clip]
            video.append(read_crops(self.prepared, self.spec, self.rows[[i]], self.positions[j], draws))
        return {
            "video": _join(video),
            "label": self.prepared.views["label"][rows].astype(np.int32),
            "row": rows.astype(np.int32),
            "valid": numbers < self.num_samples,
        }


def _join(clips_in_crops: list[np.ndarray | dict[str, np.ndarray]]) -> np.ndarray | dict[str, np.ndarray]:
    """Of single views, R crops of each clip: one batch with a row for every crop, uint8[B, T, H, W, 3] or its parts."""
    if not isinstance(clips_in_crops[0], dict):
        return np.concatenate(clips_in_crops)[:, 0]
    repeats = [len(clip["box"]) for clip in clips_in_crops]
    parts = {key: np.concatenate([clip[key] for clip in clips_in_crops]) for key in clips_in_crops[0]}
    return {
        "coefficients": parts["coefficients"].repeat(repeats, axis=0),  # (B, T, 3 H / 2, W)
        "steps": parts["steps"].repeat(repeats, axis=0),  # (B, 2, 8, 8)
        "box": parts["box"],  # (B, 1, 4)
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

    def random_map(self, row: int, rng: np.random.Generator) -> Sample:
        spec, take_views = self.dataset.spec, self.take_views
        take, target = (int(i) for i in self.elements[row % len(self.elements)])
        view = _draw_views(rng, take_views, take, target, spec)
        centre = [[clips.CropDraw()] * len(view)]
        read = _read_sample(self.dataset, take_views, take, view, rng.random(), centre)
        facts = _facts(self.dataset, take_views, take, view) | {"valid": np.asarray(row < len(self.elements))}
        if spec.num_source_views == 0:
            return read | {key: value[None] for key, value in facts.items()}
        for name, partners in (("other_subject", self.others.subject), ("other_action", self.others.action)):
            usable = [other for other in partners[take].tolist() if (take_views.rows[other, view[1:]] >= 0).all()]
            other = int(rng.choice(usable)) if usable else take
            position = rng.random() if usable else 0.0
            rows = take_views.rows[other, view[1:]]
            read[name] = read_crops(self.dataset.prepared, spec, rows, position, [centre[0][1:]])
            facts[f"has_{name}"] = np.asarray(bool(usable))
        return read | {key: value[None] for key, value in facts.items()}
