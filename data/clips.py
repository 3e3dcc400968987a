"""How a clip is sampled: which frames, which views, which pixels.

All views of a take are sampled at the same frame indices, so they stay synchronised.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from console.errors import UserError
from data.store.manifest import SPAN_TOLERANCE

# [ours] A crop is interpolated linearly if its sides are at most this many times those of the result; otherwise areas
# are averaged. Up to 1.5 linear interpolation is as near to Lanczos' filter (38.3 against 38.4 dB; at 1.6, 36.5 against
# 38.5 dB) and five times as fast.
MOST_LINEAR = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """What one training sample looks like."""

    num_frames: int  # frames of a clip, T
    frame_stride: int  # distance of neighbouring sampled frames, in frames of the stored video
    crop_size: tuple[int, int]  # (height, width) in pixels that every crop is resized to
    tubelet_size: tuple[int, int, int]  # (frames, height, width) of one token, for the motion energies
    # Sides of the random crops, as fractions of the largest box of the crop's aspect ratio in the frame.
    crop_scales: tuple[float, ...] = (1.0,)
    same_crop_in_views: bool = True  # whether all views of a sample share the (relative) crop box
    num_source_views: int = 1  # source views beside the target view, S; a sample holds V = 1 + S views
    view_pairs: tuple[tuple[str, str], ...] = ()  # allowed (target, source) names; empty: all pairs of different views
    repeats: int = 1  # crops taken from frames that are decoded once (repeated augmentation)
    # 'host' puts the motion energies of `video` into a batch if its pixels are known; 'device' leaves them to
    # mv2mae_jax/models/stored_frames.py.
    motion_on: str = "host"

    @classmethod
    def from_config(cls, config: config_dict.ConfigDict, **fields: Any) -> "ClipSpec":
        """Takes the fields that the sections `data` and `model` of a config state; `fields` replaces some."""
        stated = {**config.data, **config.model}
        names = (field.name for field in dataclasses.fields(cls) if field.name in stated)
        return cls(**{name: _as_tuples(stated[name]) for name in names} | fields)

    @property
    def num_tokens(self) -> int:
        sizes = (self.num_frames, *self.crop_size)
        return int(np.prod([size // step for size, step in zip(sizes, self.tubelet_size, strict=True)]))


def _as_tuples(value: Any) -> Any:
    """Lists, which a config from JSON holds, as tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def effective_stride(video_length: int, num_frames: int, frame_stride: int) -> int:
    """`frame_stride`, or the largest stride that fits if the video is too short for it; at least 1."""
    if num_frames == 1:
        return 1
    return max(1, min(frame_stride, (video_length - 1) // (num_frames - 1)))


def frame_indices(video_length: int, num_frames: int, frame_stride: int, position: float) -> np.ndarray:
    """Frame indices of a clip.

    A video shorter than the clip's span is sampled at a reduced stride; one with fewer frames than the clip repeats its
    last frame. A fifth of NTU RGB+D is shorter than 16 frames at stride 4.

    Args:
      video_length: frames of the shortest view of the take, at least 1.
      num_frames, frame_stride: of the clip, as wanted.
      position: where the clip starts, from 0 (first possible frame) up to but excluding 1 (after the last possible).

    Returns:
      int64[num_frames], non-decreasing, within [0, video_length).
    """
    stride = effective_stride(video_length, num_frames, frame_stride)
    span = (num_frames - 1) * stride + 1
    start = int(position * max(1, video_length - span + 1))
    return np.minimum(start + stride * np.arange(num_frames), video_length - 1)


def short_videos(lengths: np.ndarray, spec: ClipSpec) -> dict[str, str]:
    """{title: text} for the start of a run, of videos that are sampled at a smaller stride than `spec` wants, if any.

    `lengths`: int[videos], in frames.
    """
    span = (spec.num_frames - 1) * spec.frame_stride + 1
    short = lengths[lengths < span]
    if not len(short):
        return {}
    smallest, repeating = effective_stride(short.min(), spec.num_frames, spec.frame_stride), short < spec.num_frames
    text = f"{len(short)} of {len(lengths)} have fewer than the {span} frames of a clip: their frame stride is smaller"
    text += f", down to {smallest}" + (f"; {repeating.sum()} repeat their last frame" if repeating.any() else "")
    return {"short videos": text}


def small_videos(height: np.ndarray, width: np.ndarray, spec: ClipSpec) -> dict[str, str]:
    """{title: text} for the start of a run, of videos that are smaller than a crop, if any.

    `height`, `width`: int[videos], in stored pixels.
    """
    times = np.maximum(spec.crop_size[0] / height, spec.crop_size[1] / width)  # that the largest crop is enlarged
    if not (times > 1).any():
        return {}
    size = "x".join(map(str, spec.crop_size))
    text = f"{(times > 1).sum()} of {len(times)} are smaller than a crop of {size} pixels, which is enlarged"
    return {"small videos": f"{text}, up to {times.max():.3g} times; --short_side of data.prepare sets their size"}


def frame_rates(fps: np.ndarray, spec: ClipSpec) -> dict[str, str]:
    """{title: text} for the start of a run, of videos whose rates differ, as those of several sets may.

    `fps`: float[videos], frames per second.
    """
    low, high, steps = fps.min(), fps.max(), (spec.num_frames - 1) * spec.frame_stride
    if high <= low * (1 + SPAN_TOLERANCE) or not steps:
        return {}
    return {"frame rates": f"{low:.4g} to {high:.4g} per second: clips span {steps / high:.3g} to {steps / low:.3g} s"}


def spread_positions(clips_per_view: int) -> list[float]:
    """Positions for `frame_indices`: evenly from the first to the last start, one in the middle. ValueError if none."""
    if clips_per_view < 1:
        raise UserError(f"clips_per_view={clips_per_view}: at least 1.")
    if clips_per_view == 1:
        return [0.5]
    return np.linspace(0, np.nextafter(1, 0), clips_per_view).tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropDraw:
    """A crop relative to the frame, so that it means the same in views of different sizes."""

    scale: tuple[float, float] = (1.0, 1.0)  # (height, width) as parts of the largest box of the target aspect ratio
    offset: tuple[float, float] = (0.5, 0.5)  # (vertical, horizontal) position in [0, 1]; 0.5 is the centre


def draw_crop(rng: np.random.Generator, crop_scales: tuple[float, ...]) -> CropDraw:
    """Multi-scale crop: two neighbouring scales for height and width, at a uniform position.

    The scales are VideoMAE's (GroupMultiScaleCrop, max_distort=1); its positions are 13 fixed ones, ours are uniform.
    """
    first = int(rng.integers(len(crop_scales)))
    neighbours = [i for i in (first - 1, first, first + 1) if 0 <= i < len(crop_scales)]
    second = neighbours[rng.integers(len(neighbours))]
    return CropDraw(scale=(crop_scales[first], crop_scales[second]), offset=(float(rng.random()), float(rng.random())))


def spread_crops(crops_per_clip: int) -> list[CropDraw]:
    """The largest crops at test: 1 is the centre, 3 are start, middle and end of the longer side; else ValueError."""
    if crops_per_clip not in (1, 3):
        raise UserError(f"crops_per_clip={crops_per_clip}: 1 (centre) or 3 (start, middle, end of the longer side).")
    offsets = (0.5,) if crops_per_clip == 1 else (0.0, 0.5, 1.0)
    return [CropDraw(offset=(offset, offset)) for offset in offsets]


def crop_box(draw: CropDraw, frame_size: tuple[int, int], crop_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of a frame of `frame_size` (height, width)."""
    frame_height, frame_width = frame_size
    unit = min(frame_height / crop_size[0], frame_width / crop_size[1])
    height = max(1, min(frame_height, round(draw.scale[0] * unit * crop_size[0])))
    width = max(1, min(frame_width, round(draw.scale[1] * unit * crop_size[1])))
    top = round(draw.offset[0] * (frame_height - height))
    left = round(draw.offset[1] * (frame_width - width))
    return top, left, height, width


def enclosing_box(boxes: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """The smallest box (top, left, height, width) that holds all the given boxes."""
    top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
    bottom, right = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return top, left, bottom - top, right - left


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakeViews:
    """Which views every take has, and which (take, target view) elements can be formed."""

    take_names: np.ndarray  # str[num_takes], sorted
    view_names: np.ndarray  # str[num_views], sorted
    rows: np.ndarray  # int[num_takes, num_views], the manifest row of a take's view, -1 if the take lacks the view
    allowed: np.ndarray  # bool[num_views, num_views], whether [target, source] may be paired
    elements: np.ndarray  # int[num_elements, 2], (take, target view) in order

    def sources(self, take: int, target: int) -> np.ndarray:
        """View indices that may serve as sources for `target` in `take`."""
        return np.flatnonzero(self.allowed[target] & (self.rows[take] >= 0))


def group(column: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `np.unique(column[rows], return_inverse=True)`, without copying or sorting millions of strings.

    This is possible because takes come in runs, mostly in order, and there are few views.
    """
    is_first = np.ones(len(column), bool)
    is_first[1:] = column[1:] != column[:-1]
    names = column[is_first]
    if (names[1:] > names[:-1]).all():
        number = np.cumsum(is_first, dtype=np.int32) - 1
    else:
        parts = np.array_split(column, -(-len(column) // 2**16))
        names = np.unique(np.concatenate([np.unique(part) for part in parts]))
        number = np.concatenate([np.searchsorted(names, part).astype(np.int32) for part in parts])
    number = number[rows]
    is_there = np.bincount(number, minlength=len(names)) > 0
    return names[is_there], (np.cumsum(is_there, dtype=np.int32) - 1)[number]


def pair_views(
    views: dict[str, np.ndarray], selected: np.ndarray, spec: ClipSpec, *, held_out: bool = False
) -> TakeViews:
    """Groups the selected manifest rows into takes and lists the (take, target view) elements.

    Args:
      views: the manifest's columns; `take` and `view` are used.
      selected: bool[rows], rows that may be used (those of a split).
      spec: `num_source_views` and `view_pairs` are used.
      held_out: whether the rows are held out. Then a view of `view_pairs` that only other takes have is no error.

    Raises:
      ValueError: a view pair names a view that does not exist, or no take has enough views.
    """
    row_index = np.flatnonzero(selected).astype(np.int32)
    take_names, take_of_row = group(views["take"], row_index)
    view_names, view_of_row = group(views["view"], row_index)
    rows = np.full((len(take_names), len(view_names)), -1, np.int32)
    rows[take_of_row, view_of_row] = row_index
    del take_of_row, view_of_row, row_index  # for millions of rows each takes megabytes

    allowed = ~np.eye(len(view_names), dtype=bool)
    if spec.view_pairs:
        allowed[:] = False
        known = {name: i for i, name in enumerate(view_names.tolist())}
        for target, source in spec.view_pairs:
            if target in known and source in known and target != source:
                allowed[known[target], known[source]] = True
            elif not held_out or target == source or not np.isin([target, source], views["view"]).all():
                raise UserError(
                    f"data.view_pairs holds ({target!r}, {source!r}), but a pair is two different views among "
                    f"{', '.join(known)}."
                )

    present = rows >= 0
    num_sources = present.astype(np.int16) @ allowed.T.astype(np.int16)  # (num_takes, num_views)
    as_target = present & (num_sources >= spec.num_source_views)
    if spec.view_pairs:
        as_target &= allowed.any(axis=1)
    elements = np.stack([index.astype(np.int32) for index in np.nonzero(as_target)], axis=1)
    if len(elements) == 0:
        kind, most = "held-out " if held_out else "", int(present.sum(axis=1).max(initial=0))
        raise UserError(
            f"No {kind}take can form a sample of 1 target and {spec.num_source_views} source view(s): there are "
            f"{len(take_names)}, the richest has {most} view(s), view_pairs={spec.view_pairs or 'all'}. Lower "
            f"data.num_source_views, widen data.view_pairs, {'change data.holdout_fraction, ' if held_out else ''}or "
            "prepare a set with more cameras."
        )
    return TakeViews(take_names=take_names, view_names=view_names, rows=rows, allowed=allowed, elements=elements)


def takes_left_out(take_views: TakeViews, spec: ClipSpec) -> dict[str, str]:
    """{title: text} for the start of a run, of takes that have too few views for a sample, if any."""
    without = np.setdiff1d(np.arange(len(take_views.take_names)), take_views.elements[:, 0])
    if not len(without):
        return {}
    names = ", ".join(take_views.take_names[without[:3]]) + (", ..." if len(without) > 3 else "")
    text = f"{len(without)} takes without a target and {spec.num_source_views} source view(s) that may be paired: "
    return {"left out": text + names}
