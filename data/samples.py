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

Sample = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadSample(grain.transforms.RandomMap):
    """Element index -> `repeats` crops of one clip of one target view and its source views."""

    dataset: Dataset

    def random_map(self, element: int, rng: np.random.Generator) -> Sample:
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
) -> Sample:
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

    def random_map(self, element: int, rng: np.random.Generator) -> Sample:
        spec, prepared = self.dataset.spec, self.dataset.prepared
        row = self.dataset.train[element]
        (frames,) = _read_rows(prepared, spec, [row], position=rng.random())
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

    def random_map(self, row: int, rng: np.random.Generator) -> Sample:
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
