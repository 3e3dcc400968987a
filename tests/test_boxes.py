"""Boxes around the person: from motion, from tables and from .skeleton files, and how a box fits a picture."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.prepare import boxes
from data.prepare.boxes import Box


def motion_box(frames):
    motion = boxes.Motion()
    for frame in frames:
        motion.add(frame)
    return motion.box()


def scene(num_frames=20, noise=0, seed=0):
    """Frames uint8[T, 90, 160, 3] of a textured wall with noise."""
    rng = np.random.default_rng(seed)
    wall = rng.integers(40, 200, (90, 160, 1)).repeat(3, axis=2)
    return np.clip(wall + rng.integers(-noise, noise + 1, (num_frames, 90, 160, 1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0, 6])
def test_what_moves_is_found_in_noise_and_two_people_give_one_box(noise):
    frames = scene(noise=noise)
    for t, frame in enumerate(frames):
        frame[30:80, 40 + t : 50 + t] = 230  # the square covers columns 40 to 69
    box = motion_box(frames).scaled(160, 90)
    assert np.abs(np.subtract(box, (40, 30, 69, 80))).max() <= 7, box  # smoothing widens it
    assert box.left <= 41 and box.top <= 31 and box.right >= 68 and box.bottom >= 79, box
    for t, frame in enumerate(frames):
        frame[20:60, 140 - t : 150 - t] = 10
    both = motion_box(frames).scaled(160, 90)
    assert both.left <= 41 and both.right >= 149 and both.top <= 21 and both.bottom >= 79, both


def test_a_flicker_far_away_is_left_out():
    frames = scene()
    for t, frame in enumerate(frames):
        frame[30:80, 40 + t : 50 + t] = 230
        frame[2:4, 150:152] += np.uint8(20 * (t % 2))
    assert motion_box(frames).right * 160 < 80


def test_a_moving_camera_gives_the_whole_picture():
    wall = np.random.default_rng(0).integers(0, 255, (90, 260, 3)).astype(np.uint8)
    assert motion_box(wall[:, t : t + 160] for t in range(20)) == Box(0, 0, 1, 1)


@pytest.mark.parametrize(("frames", "reason"), [(scene(), "nothing moves in it"), (scene(1), "it has one frame")])
def test_without_motion_there_is_no_box(frames, reason):
    with pytest.raises(boxes.NoBox, match=reason):
        motion_box(frames)


@pytest.mark.parametrize(
    ("box", "margin", "aspect", "fitted"),
    [
        ((30, 20, 70, 60), 0, None, (30, 20, 70, 60)),  # unchanged
        ((30.2, 20.7, 69.1, 59.9), 0, None, (30, 20, 70, 60)),  # rounded outwards to whole pixels
        ((30, 20, 50, 60), 0.1, None, (26, 16, 54, 64)),  # a tenth of the longer side, 40, is added on all sides
        ((40, 20, 60, 80), 0, 1, (20, 20, 80, 80)),  # widened about its middle
        ((40, 20, 120, 60), 0, 1, (40, 0, 120, 80)),  # made higher
        ((0, 20, 20, 80), 0, 1, (0, 20, 60, 80)),  # moved in at the left
        ((180, 20, 200, 80), 0, 1, (140, 20, 200, 80)),  # moved in at the right
        ((0, 0, 200, 100), 0.2, 1, (0, 0, 200, 100)),  # limited to the picture
        ((20, 10, 140, 90), 0, 1, (20, 0, 140, 100)),  # made as high as the picture allows
        ((-10, 20, 60, 60), 0, None, (0, 20, 70, 60)),  # most of it is inside
    ],
)
def test_a_box_is_fitted_into_the_picture(box, margin, aspect, fitted):
    assert boxes.fit(Box(*box), (200, 100), margin, aspect) == fitted


def test_fitted_boxes_are_whole_lie_inside_and_hold_what_was_found():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = rng.integers(20, 400, 2).tolist()
        x, y = np.sort(rng.uniform(0, size[0], 2)), np.sort(rng.uniform(0, size[1], 2))
        margin, aspect = rng.choice([0, 0.1, 0.5]), rng.choice([None, 0.5, 1, 2])
        fitted = boxes.fit(Box(x[0], y[0], x[1], y[1]), tuple(size), margin, aspect)
        assert all(edge == int(edge) for edge in fitted)
        assert 0 <= fitted.left <= x[0] and x[1] <= fitted.right <= size[0]
        assert 0 <= fitted.top <= y[0] and y[1] <= fitted.bottom <= size[1]
        width, height = fitted.right - fitted.left, fitted.bottom - fitted.top
        if aspect and width < size[0] and height < size[1]:
            assert abs(width - aspect * height) <= 0.5 * max(1, aspect)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((30, 20, 30, 60), r"its box \(30, 20, 30, 60\).* is empty"),
        ((30, 60, 70, 20), "is empty"),
        ((float("nan"), 0, 5, 5), "is empty"),
        ((150, 20, 260, 60), "lies outside of the picture of 200x100 pixels"),
        ((-300, -300, -200, -200), "lies outside"),
    ],
)
def test_a_box_that_cannot_be_used_is_told(box, reason):
    with pytest.raises(boxes.NoBox, match=reason):
        boxes.fit(Box(*box), (200, 100))


def test_a_box_is_placed_in_a_video_of_another_size():
    crop = boxes.Crop(by="skeletons", margin=0, aspect=None)
    assert boxes.place(boxes.Found(Box(960, 540, 1920, 1080), (1920, 1080)), (320, 180), crop) == (160, 90, 320, 180)
    with pytest.raises(boxes.NoBox, match=r"\(100, 20, 400, 170\).*outside of the picture, which has 320x180 pixels"):
        boxes.place(boxes.Found(Box(100, 20, 400, 170), None), (320, 180), crop)  # in pixels of a larger picture


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.5, 1), (100, 20, 106, 70)])
def test_a_box_too_small_for_a_person_is_told(box):
    crop = boxes.Crop(by="table", margin=0.1, aspect=None)
    reason = r"its box \(.*\) .*is narrower than 8 pixels, too small for a person: .*raw video, 320x180 upright"
    with pytest.raises(boxes.NoBox, match=reason):
        boxes.place(boxes.Found(Box(*box), None), (320, 180), crop)


def test_boxes_that_all_lie_in_one_corner_are_told():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, (900, 300), (20, 2))
    drawn = [Box(x, y, x + 60, y + 200) for x, y in corner]
    told = boxes.in_one_corner([box.scaled(0.5, 0.5) for box in drawn], [(1920, 1080)] * 20)
    assert told.startswith("all 20 boxes lie in the upper left, within 0.2")
    assert boxes.in_one_corner([box.scaled(2, 2) for box in drawn], [(1920, 1080)] * 20) == ""
    assert boxes.in_one_corner(drawn[:5], [(1920, 1080)] * 5) == ""


def test_defaults_are_those_of_the_kind():
    assert boxes.make_crop("full", None, None) is None
    found = boxes.Crop(by="motion", margin=boxes.FOUND_MARGIN, aspect=boxes.FOUND_ASPECT)
    assert boxes.make_crop("motion", None, None) == found
    assert boxes.make_crop("boxes.csv", None, None) == boxes.Crop(by="table", margin=0, aspect=None)
    assert boxes.make_crop("boxes.csv", 0.2, 1) == boxes.Crop(by="table", margin=0.2, aspect=1)
    assert boxes.make_crop("motion", 0, 0) == boxes.Crop(by="motion", margin=0, aspect=None)


HEADER = "take,view,left,top,right,bottom\n"


def test_tables_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffview,take,left,top,right,bottom,score\n02,007,1,2.5,30,40,0.9\n", "utf-8")
    found = {("007", "02"): Box(1, 2.5, 30, 40)}
    assert boxes.read_table(tmp_path / "a.csv") == found
    columns = {"take": ["007"], "view": ["02"], "left": [1], "top": [2.5], "right": [30], "bottom": [40]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert boxes.read_table(tmp_path / "a.parquet") == found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "take,view,left,top\n", "lacks the columns right, bottom: it is to have take, view, left"),
        ("a.csv", "", "is no such table"),
        ("a.csv", HEADER + "t,v,1,2,3\n", "is no such table"),
        ("a.csv", HEADER + "t,v,1,2,3,\n", "row 1, view v of take t: .* four numbers of pixels"),
        ("a.csv", HEADER + "t,v,1,2,3,x\n", "row 1, view v of take t: .* four numbers of pixels"),
        ("a.csv", HEADER + "t,v,5,2,3,4\n", r"row 1, view v of take t: the box \(5, 2, 3, 4\) is empty"),
        ("a.csv", HEADER + "t,v,nan,2,3,4\n", "is empty"),
        (
            "a.csv",
            HEADER + "t,v,0.1,0.2,0.5,1\nt,w,0.3,0,0.4,1.02\n",
            r"no box ends beyond 1\.5 pixels, e\.g\. \(0\.1, 0\.2, 0\.5, 1\) of view v of take t\. .*multiply them by",
        ),
        ("a.csv", HEADER + "t,v,1,2,3,4\nt,v,1,2,3,4\n", "row 2, view v of take t is there twice"),
        ("a.parquet", HEADER, "is no such table"),
        ("a.txt", HEADER, r"give full, motion, skeletons or a table that ends in .csv or .parquet"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        boxes.read_table(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        boxes.read_table(tmp_path / "missing.csv")


def skeleton(frames) -> str:
    """The text of a .skeleton file; frames: for each a list of (body, float[J, 2] in the colour image)."""
    lines = [f"{len(frames)}"]
    for bodies in frames:
        lines.append(f"{len(bodies)}")
        for body, joints in bodies:
            lines += [f"{body} 0 1 1 1 1 0 0.02 -0.3 2", f"{len(joints)}"]
            lines += [f"0.2 0.3 3.7 277.4 191.8 {x} {y} -0.2 0.1 0.9 -0.1 2" for x, y in joints]
    return "\r\n".join(lines) + "\r\n"


def test_skeletons_are_read_and_two_people_give_one_box(tmp_path):
    path = tmp_path / "S001C001P001R001A050.skeleton"
    one, other = [[900, 300], [1000.5, 800]], [[1200, 250], [1300, 700], ["NaN", "NaN"]]
    path.write_text(skeleton([[("7", one)], [("7", one), ("8", other)], []]))
    assert boxes.read_skeleton(path) == (900, 250, 1301, 801)
    ghost = [("9", [[20, 20], [1900, 1000]])]  # a chair that Kinect took for a person, in one frame of thirty
    path.write_text(skeleton([[("7", one)]] * 29 + [ghost]))
    assert boxes.read_skeleton(path) == (900, 300, 1001.5, 801)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2\n0\n0\n", "holds no body in the picture"),
        (skeleton([[("7", [[1, 2]])]] * 3)[:120], "is damaged"),
        (skeleton([[("7", [["x", 2]])]]), "is damaged: could not convert"),
        ("", "is damaged: it ends early"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_skeleton_file_without_a_box_is_told(tmp_path, text, reason):
    path = tmp_path / "S001C001P001R001A050.skeleton"
    if text is not None:
        path.write_text(text)
    with pytest.raises(boxes.NoBox, match=f"{path.name} {reason}"):
        boxes.read_skeleton(path)


def test_of_two_skeleton_files_of_one_name_none_is_chosen(tmp_path):
    for folder in ("nturgb+d_skeletons", "unpacked_again"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "S001C001P001R001A050.skeleton").write_text(skeleton([[("7", [[1, 2]])]]))
    assert [path.parent.name for path in boxes.skeleton_files(tmp_path).values()] == ["nturgb+d_skeletons"]
    (tmp_path / "unpacked_again" / "S001C001P001R001A050.skeleton").write_text(skeleton([[("7", [[1, 3]])]]))
    with pytest.raises(ValueError, match=r"nturgb\+d_skeletons/S001.* and .*unpacked_again/S001.* different content"):
        boxes.skeleton_files(tmp_path)
