"""The frames, views and crops that a clip is made of."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import clips

SPEC = clips.ClipSpec(num_frames=4, frame_stride=4, crop_size=(16, 16), tubelet_size=(2, 8, 8))


def manifest(*takes_and_views: tuple[str, str]) -> dict[str, np.ndarray]:
    return {"take": np.array([t for t, _ in takes_and_views]), "view": np.array([v for _, v in takes_and_views])}


def pair(views: dict[str, np.ndarray], spec: clips.ClipSpec = SPEC) -> clips.TakeViews:
    return clips.pair_views(views, np.ones(len(views["take"]), bool), spec)


@given(st.integers(1, 400), st.integers(1, 32), st.integers(1, 8), st.floats(0, 1, exclude_max=True))
def test_frames_stay_in_the_video_at_one_stride(length, num_frames, stride, position):
    indices = clips.frame_indices(length, num_frames, stride, position)
    assert len(indices) == num_frames and indices[0] >= 0 and indices[-1] < length
    steps = np.diff(indices)
    if (num_frames - 1) * stride < length:
        assert (steps == stride).all(), "a long enough video is sampled at the wanted stride"
    elif num_frames <= length:
        assert len(set(steps)) <= 1 and steps[0] >= 1, "a short one at a smaller stride, no frame twice"
        assert (num_frames - 1) * (steps[0] + 1) + 1 > length, "and at the largest that fits"
    else:
        assert set(indices) == set(range(length)), "a very short one shows every frame and holds the last"


def test_every_start_frame_is_reached():
    starts = {clips.frame_indices(64, 16, 4, position)[0] for position in np.linspace(0, 1, 500, endpoint=False)}
    assert starts == {0, 1, 2, 3}  # a span of 61 frames in 64


def test_largest_crop_is_centred_and_keeps_the_aspect_ratio():
    assert clips.crop_box(clips.CropDraw(), (72, 128), (48, 48)) == (0, 28, 72, 72)
    assert clips.crop_box(clips.CropDraw(), (128, 72), (48, 96)) == (46, 0, 36, 72)


@given(st.integers(4, 300), st.integers(4, 300), st.integers(0, 2**32 - 1))
def test_crops_lie_in_the_frame(height, width, seed):
    draw = clips.draw_crop(np.random.default_rng(seed), (1.0, 0.875, 0.75, 0.66))
    top, left, box_height, box_width = clips.crop_box(draw, (height, width), (32, 48))
    assert top >= 0 and left >= 0 and box_height >= 1 and box_width >= 1
    assert top + box_height <= height and left + box_width <= width


def test_crop_sides_differ_by_at_most_one_scale():
    scales = (1.0, 0.875, 0.75, 0.66)
    rng = np.random.default_rng(0)
    draws = {clips.draw_crop(rng, scales).scale for _ in range(500)}
    assert draws == {(a, b) for i, a in enumerate(scales) for j, b in enumerate(scales) if abs(i - j) <= 1}


@given(st.integers(1, 300), st.integers(1, 10), st.integers(2, 12))
def test_clips_are_spread_from_the_first_to_the_last_start(length, num_frames, clips_per_view):
    positions = clips.spread_positions(clips_per_view)
    found = [clips.frame_indices(length, num_frames, 2, position) for position in positions]
    starts = np.array([indices[0] for indices in found])
    even = np.linspace(0, starts[-1], clips_per_view)
    assert starts[0] == 0 and (np.abs(starts - even) <= 1).all(), "evenly, to a frame"
    if length >= num_frames:
        assert found[-1][-1] == length - 1, "the last clip ends with the video"


def test_a_single_clip_is_taken_from_the_middle():
    (position,) = clips.spread_positions(1)
    assert clips.frame_indices(101, 11, 1, position)[[0, -1]].tolist() == [45, 55]


@pytest.mark.parametrize("frame_size", [(40, 100), (100, 40)])
def test_three_crops_cover_the_longer_side(frame_size):
    boxes = [clips.crop_box(draw, frame_size, (32, 32)) for draw in clips.spread_crops(3)]
    longer = int(np.argmax(frame_size))
    assert all(box[2:] == (40, 40) and box[1 - longer] == 0 for box in boxes)
    assert [box[longer] for box in boxes] == [0, 30, 60]
    assert [clips.crop_box(draw, frame_size, (32, 32)) for draw in clips.spread_crops(1)] == boxes[1:2]


def test_impossible_tests_are_refused():
    with pytest.raises(ValueError, match="crops_per_clip=2: 1"):
        clips.spread_crops(2)
    with pytest.raises(ValueError, match="clips_per_view=0: at least 1"):
        clips.spread_positions(0)


def test_every_view_with_a_partner_is_a_target():
    takes = pair(manifest(("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "2"), ("c", "3")))
    names = [(takes.take_names[t], takes.view_names[v]) for t, v in takes.elements]
    assert names == [("a", "1"), ("a", "2"), ("a", "3"), ("c", "2"), ("c", "3")]
    assert [takes.view_names[v] for v in takes.sources(0, 1)] == ["1", "3"]
    assert [takes.view_names[v] for v in takes.sources(2, 1)] == ["3"]


def test_rows_point_at_the_right_record():
    views = manifest(("b", "2"), ("a", "1"), ("b", "1"), ("a", "2"))
    takes = pair(views)
    for take, name in enumerate(takes.take_names):
        for view, camera in enumerate(takes.view_names):
            row = takes.rows[take, view]
            assert (views["take"][row], views["view"][row]) == (name, camera)


def test_view_pairs_restrict_targets_and_sources():
    views = manifest(("a", "1"), ("a", "2"), ("a", "3"))
    spec = clips.ClipSpec(
        num_frames=4, frame_stride=4, crop_size=(16, 16), tubelet_size=(2, 8, 8), view_pairs=(("1", "3"), ("2", "1"))
    )
    takes = pair(views, spec)
    assert takes.elements.tolist() == [[0, 0], [0, 1]]
    assert takes.sources(0, 0).tolist() == [2] and takes.sources(0, 1).tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_source_views": 3}, "the richest has 3 view"),
        ({"view_pairs": (("1", "4"),)}, r"'4'.*among 1, 2, 3"),
        ({"view_pairs": (("1", "1"),)}, "two different views"),
    ],
)
def test_impossible_samples_are_refused(change, message):
    views = manifest(("a", "1"), ("a", "2"), ("a", "3"))
    settings = dict(num_frames=4, frame_stride=4, crop_size=(16, 16), tubelet_size=(2, 8, 8)) | change
    with pytest.raises(ValueError, match=message):
        pair(views, clips.ClipSpec(**settings))


def test_takes_with_too_few_views_are_told():
    whole, single = ("a", "1"), [("b", "1"), ("c", "2"), ("d", "1"), ("e", "1")]
    assert clips.takes_left_out(pair(manifest(whole, ("a", "2"))), SPEC) == {}
    told = clips.takes_left_out(pair(manifest(whole, ("a", "2"), *single)), SPEC)["left out"]
    assert told == "4 takes without a target and 1 source view(s) that may be paired: b, c, d, ..."


def test_held_out_takes_may_lack_a_view_but_not_all_pairs():
    views = manifest(("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2"), ("c", "1"))
    spec = dataclasses.replace(SPEC, view_pairs=(("1", "2"), ("1", "3")))
    held_out = clips.pair_views(views, views["take"] == "b", spec, held_out=True)
    assert held_out.elements.tolist() == [[0, 0]]
    with pytest.raises(ValueError, match=r"No held-out take can form a sample .* change data.holdout_fraction, or"):
        clips.pair_views(views, views["take"] == "c", spec, held_out=True)


@pytest.mark.parametrize("names", ["in order", "in disorder", "few", "one"])
def test_groups_are_those_of_a_sort(names):
    rng = np.random.default_rng(0)
    column = np.array([f"S{i:05d}" for i in range({"few": 4, "one": 1}.get(names, 20_000))])
    column = column if names == "one" else rng.choice(column, 100_000)
    column = np.sort(column) if names == "in order" else column
    for rows in (np.arange(len(column)), np.flatnonzero(rng.random(len(column)) < 0.3), np.arange(0)):
        found, wanted = clips.group(column, rows), np.unique(column[rows], return_inverse=True)
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_array_equal(found[1], wanted[1])


def test_videos_that_a_clip_does_not_fit_are_told():
    assert clips.short_videos(np.array([13, 100]), SPEC) == {}  # 4 frames at stride 4 span 13
    told = clips.short_videos(np.array([13, 12, 8, 3]), SPEC)["short videos"]
    assert told == (
        "3 of 4 have fewer than the 13 frames of a clip: their frame stride is smaller, down to 1; "
        "1 repeat their last frame"
    )


def test_videos_that_are_smaller_than_a_crop_are_told():
    height, width = np.array(SPEC.crop_size)[:, None] * [[1, 2, 1], [1, 1, 3]]
    assert clips.small_videos(height, width, SPEC) == {}
    told = clips.small_videos(height, width // [1, 4, 1], SPEC)["small videos"]
    assert told.startswith("1 of 3 are smaller than a crop of 16x16 pixels, which is enlarged, up to 4 times")


def test_videos_of_different_frame_rates_are_told():
    assert clips.frame_rates(np.array([29.97, 30, 30.01]), SPEC) == {}
    told = clips.frame_rates(np.array([30, 10, 25]), SPEC)["frame rates"]
    assert told == "10 to 30 per second: clips span 0.4 to 1.2 s"  # 12 frames from the first to the last
    still = dataclasses.replace(SPEC, num_frames=1, tubelet_size=(1, 8, 8))
    assert clips.frame_rates(np.array([30, 10]), still) == {}
