"""3D joints and cameras beside the videos: joints lie on the actor in the pictures, and wrong tables are refused."""

import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from console.command import ExitCode
from console.errors import UserError
from data.catalog import get
from data.prepare import __main__ as prepare
from data.store import takes, truth
from data.synthetic import actors, renderer, rooms, writer
from data.synthetic.__main__ import main as synthesise
from data.synthetic.design import Take
from tests import video_files

SEED, SIDE, SHORT_SIDE = 1, 128, 96
STYLES = {
    "furnished": rooms.Style(width=SIDE, height=SIDE),
    "plain": rooms.Style(width=SIDE, height=SIDE, rooms="plain", actor_share=0.65, facing_spread=180, fps=10),
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- Generated joints and cameras, and their preparation --------------------------------------------------------------


@pytest.fixture(scope="module", params=STYLES)
def generated(request, tmp_path_factory):
    """(raw folder, prepared set, style)."""
    folder, style = tmp_path_factory.mktemp(request.param), STYLES[request.param]
    options = [f"--rooms={style.rooms}", f"--facing_spread={style.facing_spread}", f"--fps={style.fps}"]
    options += [f"--actor_share={style.actor_share}"] if style.actor_share else []
    size = ["--takes=2", f"--seed={SEED}", f"--resolution={SIDE}x{SIDE}", "--workers=1"]
    assert synthesise([f"--output={folder}/raw", *size, *options]) == 0
    options = [f"--short_side={SHORT_SIDE}", "--workers=1"]
    assert prepare.main(["--dataset=synthetic", f"--input={folder}/raw", f"--output={folder}/prepared", *options]) == 0
    return folder / "raw", takes.open_prepared(folder / "prepared"), style


def take_of(prepared: takes.Prepared, row: int) -> Take:
    numbers = {name: int(prepared.views[name][row]) for name in ("setup", "subject", "performance")}
    return Take(**numbers, action=int(prepared.views["label"][row]) + 1)


def rows_and_frames(prepared: takes.Prepared) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(prepared.views["record"]))
    return rows, np.stack([np.linspace(0, length - 1, 7).astype(int) for length in prepared.views["num_frames"]])


def on_the_actor(prepared: takes.Prepared, style: rooms.Style, points: np.ndarray) -> float:
    """Share of points (x, y) float[M, T, J, 2] at which a stored picture differs from that of the empty room."""
    rows, frames = rows_and_frames(prepared)
    hits = []
    for row in rows:
        take, camera = take_of(prepared, row), int(prepared.views["camera"][row])
        empty = renderer.still_picture(SEED, take.setup, take.performance, camera, style).image
        empty = cv2.resize(empty, (SHORT_SIDE, SHORT_SIDE), interpolation=cv2.INTER_AREA).astype(int)
        for picture, joints in zip(prepared.read(row, frames[row]), points[row], strict=True):
            differs = np.abs(picture - empty).max(axis=2) > 14
            x, y = np.moveaxis(np.round(joints).astype(int).clip(0, SHORT_SIDE - 1), -1, 0)
            hits.append(differs[y, x])
    return np.mean(hits)


def test_joints_are_projected_onto_the_actor(generated):
    _, prepared, style = generated
    rows, frames = rows_and_frames(prepared)
    points = prepared.truth.in_pixels(rows, frames)
    assert points.shape == (len(rows), 7, len(actors.JOINTS), 2) and points.dtype == np.float32
    assert on_the_actor(prepared, style, points) > 0.95
    assert on_the_actor(prepared, style, points + np.array([SHORT_SIDE / 6, 0])) < 0.4  # a shift beside the actor
    other = np.roll(rows, 1)
    assert np.abs(prepared.truth.in_pixels(other, frames[other]) - points)[..., 0].max() > 3


def test_stored_frames_and_their_joints_are_of_the_same_moment(generated):
    _, prepared, style = generated
    rows, frames = rows_and_frames(prepared)
    found = prepared.truth.in_world(rows, frames)
    assert prepared.truth.joint_names == actors.JOINTS
    for row in rows:
        body = writer.take_body(SEED, take_of(prepared, row), style)
        assert len(body.start) == prepared.views["num_frames"][row]
        expected = np.stack([body.joints[name][frames[row]] for name in actors.JOINTS], axis=1)
        np.testing.assert_allclose(found[row], expected, atol=1e-6)
    np.testing.assert_array_equal(prepared.truth.fps(rows), style.fps)


def test_cameras_are_calibrated_in_pixels_of_stored_frames(generated):
    raw, prepared, _ = generated
    table = pq.read_table(raw / "truth" / truth.CAMERAS).to_pylist()
    assert len(table) == len(prepared.views["record"])
    rows, frames = rows_and_frames(prepared)
    world, found = prepared.truth.in_world(rows, frames), prepared.truth.in_pixels(rows, frames)
    names = list(zip(prepared.views["take"], prepared.views["view"], strict=True))
    for camera in table:
        row = names.index((camera["take"], camera["view"]))
        rotation = np.array(camera["rotation"]).reshape(3, 3)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0
        x, y, z = np.moveaxis(world[row] @ rotation.T + camera["translation"], -1, 0)
        raw_pixels = np.stack([x, y], -1) / z[..., None] * camera["focal"] + camera["centre"]
        edges = (raw_pixels + 0.5) / [camera["width"], camera["height"]]  # 0..1 from edge to edge
        np.testing.assert_allclose(found[row], edges * SHORT_SIDE - 0.5, atol=1e-3)


def test_the_persons_own_frame(generated):
    _, prepared, _ = generated
    rows, frames = rows_and_frames(prepared)
    own = prepared.truth.in_actor(rows, frames)
    index = prepared.truth.joint_names.index
    np.testing.assert_allclose(own[:, :, prepared.truth.root], 0, atol=1e-6)
    across = own[:, :, index("left_hip")] - own[:, :, index("right_hip")]
    assert (across[..., 1] > 0.1).all() and np.abs(across[..., 0]).max() < 1e-5  # left is +y
    assert (own[:, :, index("neck"), 2] > 0.3).all()  # up is +z
    np.testing.assert_allclose(
        np.linalg.norm(own, axis=-1),
        np.linalg.norm(
            prepared.truth.in_camera(rows, frames) - prepared.truth.in_camera(rows, frames)[:, :, [0]], axis=-1
        ),
        atol=1e-5,
    )


def test_points_behind_a_camera_have_no_pixel(generated):
    _, prepared, _ = generated
    found = prepared.truth.project(np.array([0]), np.array([[[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]]))
    assert np.isfinite(found[0, 0]).all() and np.isnan(found[0, 1]).all()


def test_frames_beyond_the_end_are_refused_and_pickles_leave_out_the_tables(generated):
    _, prepared, _ = generated
    rows, frames = rows_and_frames(prepared)
    with pytest.raises(ValueError, match="beyond the end"):
        prepared.truth.in_world(rows, frames + 1)
    again = pickle.dumps(prepared.truth)
    assert len(again) < 5000
    np.testing.assert_array_equal(pickle.loads(again).in_world(rows, frames), prepared.truth.in_world(rows, frames))
    assert prepared.truth.in_world(rows[:0], frames[:0]).shape[0] == 0


def test_any_flipped_bit_of_the_truth_is_found(generated, capsys):
    folder = Path(generated[1].directory)
    for name in (truth.SKELETON, truth.JOINTS, truth.CAMERAS):
        path = folder / truth.FOLDER / name
        content = path.read_bytes()
        path.write_bytes(
            bytes([*content[: len(content) // 2], content[len(content) // 2] ^ 4, *content[len(content) // 2 + 1 :]])
        )
        assert prepare.main(["--verify", f"--output={folder}"]) == ExitCode.FAILED
        assert f"truth/{name}: damaged" in capsys.readouterr().out
        path.write_bytes(content)
    assert prepare.main(["--verify", f"--output={folder}"]) == 0


# --- Joints and cameras of a user -------------------------------------------------------------------------------------

HIP, HEAD = np.array([4.0, -3.0, 1.0]), np.array([4.0, -3.0, 1.7])
NAMES, HEIGHT, WIDTH, NUM_FRAMES = ("hip", "head", "hand"), 48, 64, 12


def look_from(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """A camera at (x, y, 1) from HIP that looks at it: rotation from the world to the camera, translation."""
    forward = -np.array([x, y, 0.0]) / np.hypot(x, y)
    rotation = np.stack([np.cross(forward, [0, 0, 1.0]), [0, 0, -1.0], forward])
    return rotation, -rotation @ (HIP + np.array([x, y, 0.0]))


def motion_capture(num_takes: int = 3, num_frames: int = NUM_FRAMES) -> tuple[dict, dict]:
    """Columns of the two tables: persons at HIP, two cameras. In frame i the hand is i centimetres before the hip."""
    joints, cameras = {"take": [], "frame": [], "facing": [], "joints": []}, {}
    for take in range(num_takes):
        for frame in range(num_frames):
            joints["take"].append(f"t{take:02}")
            joints["frame"].append(frame)
            joints["facing"].append(0.5)
            person = HIP + np.array([[0, 0, 0], [0, 0, 0.7], [frame / 100, 0.4, 0.2]])
            joints["joints"].append(person.reshape(-1).tolist())
        for view, place in (("0", (3.0, 0.5)), ("1", (-2.0, 2.5))):
            rotation, translation = look_from(*place)
            row = {"take": f"t{take:02}", "view": view, "rotation": rotation.reshape(-1), "translation": translation}
            row |= {"focal": [60.0, 60.0], "centre": [31.5, 23.5], "width": WIDTH, "height": HEIGHT}
            for name, value in row.items():
                cameras.setdefault(name, []).append(value if np.isscalar(value) else np.asarray(value).tolist())
    return joints, cameras


def give(folder: Path, joints: dict, cameras: dict, names=NAMES) -> Path:
    """Writes the tables as a user would: plain columns, lists of any length."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(joints), folder / truth.JOINTS)
    pq.write_table(pa.table(cameras), folder / truth.CAMERAS)
    (folder / truth.SKELETON).write_bytes(truth.skeleton_json(names, [(0, 1), (0, 2)], names[0]))
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for take in range(3):
        for view in range(2):
            frames = video_files.moving_square(NUM_FRAMES, HEIGHT, WIDTH, seed=10 * take + view)
            video_files.write_video(folder / f"t{take:02}_cam{view}.avi", frames)
    return folder


def prepare_folder(raw: Path, output: Path, *more: str) -> int:
    return prepare.main(["--dataset=folder", f"--input={raw}", f"--output={output}", "--workers=1", *more])


def test_truth_adds_its_files_and_changes_no_other(videos, tmp_path):
    assert prepare_folder(videos, tmp_path / "without") == 0
    raw = tmp_path / "raw"
    shutil.copytree(videos, raw)
    give(raw / "truth", *motion_capture())
    assert prepare_folder(raw, tmp_path / "none", "--truth=none") == 0
    assert files_of(tmp_path / "none") == files_of(tmp_path / "without")
    assert takes.open_prepared(tmp_path / "none").truth is None
    assert prepare_folder(raw, tmp_path / "with") == 0
    there, others = files_of(tmp_path / "with"), files_of(tmp_path / "none")
    added = {f"truth/{name}" for name in (truth.SKELETON, truth.JOINTS, truth.CAMERAS)}
    assert there.keys() - others.keys() == added
    assert {name for name in others if others[name] != there[name]} == {"SHA256SUMS"}


def test_motion_capture_of_ones_own_is_carried(videos, tmp_path, capsys):
    joints, cameras = motion_capture(num_takes=4, num_frames=NUM_FRAMES + 3)  # more than was filmed
    order = np.random.default_rng(0).permutation(len(joints["take"]))  # in any order
    source = give(tmp_path / "mocap", {k: [v[i] for i in order] for k, v in joints.items()}, cameras)
    assert prepare_folder(videos, tmp_path / "prepared", f"--truth={source}", "--short_side=24") == 0
    assert f"truth: 3 joints in 60 frames, 8 cameras: {source}" in capsys.readouterr().out
    known = takes.open_prepared(tmp_path / "prepared").truth
    assert (known.joint_names, known.edges, known.root) == (NAMES, ((0, 1), (0, 2)), 0)
    frames = np.tile([0, 5, 11], (6, 1))
    np.testing.assert_allclose(known.in_world(np.arange(6), frames)[:, :, 2, 0], HIP[0] + frames / 100, atol=1e-6)
    middle = known.in_pixels(np.arange(6), frames)[:, :, 0]  # the hip is in the middle of each picture
    np.testing.assert_allclose(middle, np.broadcast_to([15.5, 11.5], middle.shape), atol=1e-4)


def test_named_data_sets_take_a_truth(tmp_path):
    path = "S001C{:03}P001R001A001_rgb.avi"
    frames = video_files.moving_square(NUM_FRAMES, HEIGHT, WIDTH, seed=0)
    joints, cameras = motion_capture(num_takes=1)
    for camera, view in ((1, "0"), (2, "1")):
        video_files.write_video(tmp_path / "raw" / path.format(camera), frames)
        named = get("ntu60").parse(path.format(camera))
        cameras["view"] = [named.view if v == view else v for v in cameras["view"]]
    joints["take"], cameras["take"] = [named.take] * NUM_FRAMES, [named.take] * 2
    source = give(tmp_path / "mocap", joints, cameras)
    options = [f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'prepared'}", "--workers=1", f"--truth={source}"]
    assert prepare.main(["--dataset=ntu60", *options]) == 0
    assert takes.open_prepared(tmp_path / "prepared").truth.in_world(np.array([1]), np.array([[3]]))[0, 0, 2, 0] > 4.029


def test_takes_cut_from_a_recording_begin_where_their_view_was_cut(tmp_path):
    joints, cameras = motion_capture(num_takes=1, num_frames=30)
    joints["take"], cameras["take"], cameras["view"] = ["A01N01"] * 30, ["A01N01"] * 2, ["L", "M"]
    for view, rows in (("L", "1,4,16,2\n2,10,20,2\n"), ("M", "1,7,17,2\n2,8,28,2\n")):
        frames = video_files.moving_square(30, HEIGHT, WIDTH, seed=0)
        video_files.write_video(tmp_path / "raw" / f"A01N01-{view}.avi", frames)
        (tmp_path / "raw" / "label").mkdir(exist_ok=True)
        (tmp_path / "raw" / "label" / f"A01N01-{view}.txt").write_text(rows)
    give(tmp_path / "raw" / "truth", joints, cameras)
    options = [f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'prepared'}", "--workers=1"]
    assert prepare.main(["--dataset=pkummd", *options]) == 0
    prepared = takes.open_prepared(tmp_path / "prepared")
    rows = np.arange(4)
    moment = np.round(100 * (prepared.truth.in_world(rows, np.tile([0, 5], (4, 1)))[:, :, 2, 0] - HIP[0]))
    found = dict(
        zip(zip(prepared.views["take"].tolist(), prepared.views["view"].tolist(), strict=True), moment, strict=True)
    )
    expected = {("001-01", "L"): 4, ("002-02", "L"): 10, ("001-01", "M"): 7, ("002-02", "M"): 8}
    for (name, view), start in expected.items():
        np.testing.assert_array_equal(found[f"A01N01/{name}", view], [start, start + 5])
    np.testing.assert_allclose(
        prepared.truth.in_pixels(rows, np.zeros((4, 1), int))[:, 0, 0], [[31.5, 23.5]] * 4, atol=1e-4
    )


def _each(column, change):
    def apply(joints, cameras):
        table = cameras if column in cameras and column != "take" else joints
        table[column] = [change(value) for value in table[column]]

    return apply


def _without(table, row):
    def apply(joints, cameras):
        for column in (joints, cameras)[table].values():
            del column[row]

    return apply


def _at(table, column, row, value):
    def apply(joints, cameras):
        (joints, cameras)[table][column][row] = value

    return apply


def _all(*changes):
    def apply(joints, cameras):
        for change in changes:
            change(joints, cameras)

    return apply


WRONG = {
    "a frame is missing": (_without(0, 5), r"2 of 6 prepared views.*view 0 of take t00: joints.parquet has 11 frames"),
    "the last frame is missing": (
        _without(0, -1),
        "take t02: joints.parquet has 11 frames of it, and the video's are 0 to 11",
    ),
    "a frame stands twice": (_at(0, "frame", 5, 4), "take t00: joints.parquet has 12 frames of it.*each needed once"),
    "another take": (
        _each("take", lambda take: take.replace("t01", "x01")),
        "view 0 of take t01: joints.parquet lacks it",
    ),
    "a camera is missing": (_without(1, 3), "1 of 6 prepared views.*view 1 of take t01: cameras.parquet lacks it"),
    "a camera stands twice": (_at(1, "view", 1, "0"), "has view 0 of take t00 twice"),
    "other joints": (
        _each("joints", lambda j: j[:6]),
        "a frame has 6 numbers, and the 3 joints of skeleton.json need 9",
    ),
    "not finite": (_at(0, "joints", 3, [np.nan] * 9), "column joints holds numbers that are not finite"),
    "lists of other lengths": (_at(0, "joints", 3, [0.0] * 6), "rows of joints have different lengths"),
    "a row is empty": (_at(0, "facing", 3, None), "column facing has 1 empty"),
    "a number is missing": (_at(1, "rotation", 2, [1.0] * 8), "cameras.parquet cannot be read as part of the truth"),
    "a column is missing": (lambda joints, _: joints.pop("facing"), "column facing is missing"),
    "a mirror": (_at(1, "rotation", 0, [1, 0, 0, 0, 1, 0, 0, 0, -1.0]), "view 0 of take t00: its rotation is none"),
    "no rotation": (_at(1, "rotation", 0, [2.0, 0, 0, 0, 2, 0, 0, 0, 2]), "view 0 of take t00: its rotation is none"),
    "rotated pictures": (_at(1, "width", 0, 36), "has 36x48 pixels, of another shape than the stored 64x48"),
    "a negative focal length": (_at(1, "focal", 0, [-60.0, 60.0]), "are to be positive pixels"),
    "degrees": (_each("facing", lambda _: 90.0), "facing is in radians"),
    "millimetres": (
        _each("joints", lambda j: [1000 * x for x in j]),
        "joints are in metres, and there they lie 700 from",
    ),
    "feet": (_each("joints", lambda j: [x / 0.3048 for x in j]), "there they lie 2.297 from the root hip"),
    "all joints in one point": (_each("joints", lambda j: 3 * j[:3]), "there they lie 0 from the root hip"),
    "a joint far away": (
        _at(0, "joints", 15, [*HIP, *HEAD, *HEAD + 4]),
        "in 1 of 36 frames a joint lies more than 3 metres from the root, at most hand in frame 3 of take t01, 7.3",
    ),
    "a lost joint": (
        _at(0, "joints", 15, [*HIP, 0, 0, 0, *HIP + 0.3]),
        "head lies at exactly 0, 0, 0 in 1 of 36 frames, e.g. frame 3 of take t01",
    ),
    "a lost person": (_at(0, "joints", 0, [0.0] * 9), "hip lies at exactly 0, 0, 0 in 1 of 36 frames"),
    "one pose in all frames": (
        _each("joints", lambda _: [*HIP, *HEAD, *HEAD]),
        "100% of the frames repeat all joints of the frame before",
    ),
    "twice the rate": (
        lambda joints, _: joints.update(motion_capture(num_frames=24)[0]),
        "view 1 of take t00: joints.parquet has 24 frames of it, 2.00 times the 12 of its longest view",
    ),
    "translations in millimetres": (
        _each("translation", lambda t: [1000 * x for x in t]),
        "6 of 6 cameras lie less than 0.3 or more than 100 metres from the person, e.g. view 0 of take t00, 7.*metres",
    ),
    "half the resolution": (
        _all(_each("centre", lambda _: [15.5, 11.5]), _each("focal", lambda _: [30.0, 30.0])),
        r"the centre of 6 of 6 cameras is far .* view 0 of take t00, \[15.5, 11.5\] in 64x48 pixels",
    ),
    "a focal length in millimetres": (_each("focal", lambda _: [4.0, 4.0]), r"focal lengths \[4.0, 4.0\] and size"),
    "no rows": (lambda joints, _: [column.clear() for column in joints.values()], "joints.parquet.*it has no rows"),
    "a row without joints": (_at(0, "joints", 3, None), "column joints has 1 empty entries"),
    "joints as text": (_each("joints", str), "column joints is of type string; lists of numbers are needed"),
    "lists of other lists": (_each("joints", lambda j: [j, j]), "column joints is of type list<.*; lists of numbers"),
    "other names": (
        _each("take", lambda take: f"x/{take}"),
        "lacks joints or camera of 6 of the 6 views.* Its own are called e.g. view 0 of take t00",
    ),
    "camera to world": (
        _each("rotation", lambda r: np.reshape(r, (3, 3)).T.reshape(-1).tolist()),
        "only 0% of the time the cameras have the person's root in their pictures",
    ),
    "positions as translations": (_each("translation", lambda _: [5.0, -3.0, 1.0]), "only 0% of the time"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_with_the_reason(videos, tmp_path, capsys, name):
    spoil, reason = WRONG[name]
    joints, cameras = motion_capture()
    spoil(joints, cameras)
    source = give(tmp_path / "mocap", joints, cameras)
    assert prepare_folder(videos, tmp_path / "prepared", f"--truth={source}") == ExitCode.REFUSED
    told = " ".join(capsys.readouterr().err.split())

    assert re.search(reason, told), told
    assert str(source) in told
    assert not (tmp_path / "prepared" / "prepared.json").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"root": "hips"}, "its root hips is none of the joints hip, head, hand. Did you mean hip?"),
        ({"root": 0}, "its root 0 is none of the joints hip, head, hand."),
        ({"joint_names": "hip"}, "joint_names is to be a list of names, not 'hip'"),
        ({"joint_names": ["hip", "hip", "hand"]}, "joint names are to be different: hip, hip, hand"),
        ({"edges": [[0, 1], [1, 1.5]]}, "edge [1, 1.5] is to be a pair of joints' numbers, from 0 to 2"),
        ({"edges": [[0, 3]]}, "edge [0, 3] is to be"),
        ({"edges": [["hip", "head"]]}, "edge ['hip', 'head'] is to be"),
    ],
)
def test_a_wrong_skeleton_is_refused_with_the_reason(tmp_path, change, reason):
    path = tmp_path / truth.SKELETON
    right = json.loads(truth.skeleton_json(NAMES, [(0, 1), (0, 2)], "hip"))
    path.write_text(json.dumps(right | change))
    with pytest.raises(UserError, match=re.escape(reason)):
        truth.read_skeleton(path)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (pa.list_(pa.float64()), (-1,)),
        (pa.large_list(pa.float32()), (-1,)),
        (pa.list_(pa.float32(), 9), (-1,)),
        (pa.list_(pa.list_(pa.float64())), (-1, 3)),
        (pa.large_list(pa.list_(pa.float32(), 3)), (-1, 3)),
    ],
)
def test_lists_of_all_kinds_are_read(tmp_path, kind, shape):
    joints, cameras = motion_capture()
    source = give(tmp_path, joints, cameras)
    _, expected, _ = truth.read_tables(source)
    column = pa.array([np.reshape(row, shape).tolist() for row in joints["joints"]], kind)
    give(source, joints | {"joints": column}, cameras)
    _, found, _ = truth.read_tables(source)
    assert found.equals(expected)
    give(source, {name: pa.array(rows)[:0] for name, rows in joints.items()} | {"joints": column[:0]}, cameras)
    with pytest.raises(UserError, match="it has no rows"):
        truth.read_tables(source)


def test_facing_is_compared_with_left_and_right(videos, tmp_path, capsys):
    joints, cameras = motion_capture()
    left = np.array([-np.sin(0.5), np.cos(0.5), 2.0]) * 0.2  # of a person who faces 0.5 radians
    for frame in range(len(joints["frame"])):
        joints["joints"][frame] = [*HIP, *HIP + left * (1 + frame / 100), *HIP + left * [-1, -1, 1]]
    for names in ("pelvis", "LShoulder", "RShoulder"), ("pelvis", "hip_left", "hip_right"):
        for facing, code in ((0.5, 0), (0.9 - 2 * np.pi, 0), (0.5 + np.pi / 4, ExitCode.REFUSED), (0.5 + np.pi, 2)):
            joints["facing"] = [facing] * len(joints["frame"])
            source = give(tmp_path / "mocap", joints, cameras, names)
            assert prepare_folder(videos, tmp_path / "prepared", f"--truth={source}", "--dry_run") == code, facing
    assert "facing is 180 degrees (median over frames) from the way" in capsys.readouterr().err
    give(source, joints, cameras, ("pelvis", "right_hip", "left_hip"))  # facing is 180 degrees off, and so are these
    assert prepare_folder(videos, tmp_path / "prepared", f"--truth={source}", "--dry_run") == 0


def test_what_is_improbable_is_told(videos, tmp_path, capsys):
    joints, cameras = motion_capture()
    for frame in range(len(joints["frame"])):  # from the hip, which is the origin, and y up
        person = np.reshape(joints["joints"][frame], (3, 3)) - HIP
        joints["joints"][frame] = person[:, [0, 2, 1]].reshape(-1).tolist()
    cameras["centre"][3] = [15.5, 11.5]
    source = give(tmp_path / "mocap", joints, cameras)
    assert prepare_folder(videos, tmp_path / "prepared", f"--truth={source}", "--dry_run") == 0
    told = capsys.readouterr().out
    assert "bodies extend over 0.055 m along x, 0.7 along y, 0.4 along z (median over frames)" in told
    assert "the centre of 1 of 6 cameras is far from the picture's middle, e.g. of view 1 of take t01" in told


def test_a_truth_of_fewer_takes_is_refused_when_it_is_read(tmp_path):
    views = {"take": np.repeat(["t00", "t01"], 2), "num_frames": np.full(4, NUM_FRAMES)}
    _, joints, cameras = truth.read_tables(give(tmp_path, *motion_capture(2)))
    skeleton = (tmp_path / truth.SKELETON).read_bytes()
    for tables, file in (((joints[:NUM_FRAMES], cameras), truth.JOINTS), ((joints, cameras[:2]), truth.CAMERAS)):
        truth.write_tables(tmp_path, skeleton, *tables)
        with pytest.raises(UserError, match=f"{file} is not of this set: it lacks rows for 2 of its 4 views, e.g.*t01"):
            truth.Truth.open(tmp_path, views).in_camera(np.arange(4), np.zeros((4, 1), int))
    truth.write_tables(tmp_path, skeleton, joints, cameras)
    assert truth.Truth.open(tmp_path, views).in_camera(np.arange(4), np.zeros((4, 1), int)).shape == (4, 1, 3, 3)
    for file in (truth.CAMERAS, truth.JOINTS):
        (tmp_path / file).unlink()
        with pytest.raises(UserError, match=f"{file} is missing. Prepare the set again"):
            truth.Truth.open(tmp_path, views).in_camera(np.arange(4), np.zeros((4, 1), int))


def test_a_refused_truth_costs_no_decoding_again(videos, tmp_path, capsys):
    joints, cameras = motion_capture()
    _without(0, -1)(joints, cameras)
    source = give(tmp_path / "mocap", joints, cameras)
    assert prepare_folder(videos, tmp_path / "prepared", f"--truth={source}") == ExitCode.REFUSED
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").glob("*.array_record-*")}
    give(source, *motion_capture())
    assert shards and prepare_folder(videos, tmp_path / "prepared", f"--truth={source}") == 0
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    capsys.readouterr()


def test_a_bad_form_is_told_before_anything_is_decoded(videos, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(videos, raw)
    for name in (truth.SKELETON, truth.JOINTS, truth.CAMERAS):
        source = give(tmp_path / name, *motion_capture())
        (source / name).unlink()
        shutil.rmtree(raw / "truth", ignore_errors=True)
        shutil.copytree(source, raw / "truth")  # is found without --truth, and not passed over
        for option in ([f"--truth={source}"], ["--truth=nowhere"], []):
            for dry in ([], ["--dry_run"]):
                assert prepare_folder(raw, tmp_path / "prepared", *option, *dry) == ExitCode.REFUSED, option
                assert re.search(f"lacks .*{name}.*: put it there, .*--truth=none", capsys.readouterr().err)
    assert not list((tmp_path / "prepared").glob("*.array_record-*"))


def test_takes_in_quarantine_need_no_truth_and_lacking_ones_are_told_beforehand(videos, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(videos, raw)
    (raw / "t01_cam0.avi").write_bytes(b"damaged")
    joints, cameras = motion_capture()
    rows = [i for i, take in enumerate(joints["take"]) if take != "t01"]
    give(raw / "truth", {k: [v[i] for i in rows] for k, v in joints.items()}, cameras)
    assert prepare_folder(raw, tmp_path / "prepared", "--dry_run") == 0
    assert "lacks joints or camera of 2 of the 6 views, e.g. of view 0 of take t01" in capsys.readouterr().out
    assert prepare_folder(raw, tmp_path / "prepared", "--max_quarantined=2") == 0
    prepared = takes.open_prepared(tmp_path / "prepared")
    assert set(prepared.views["take"]) == {"t00", "t02"}
    last = prepared.truth.in_world(np.arange(4), np.full((4, 1), NUM_FRAMES - 1))[:, 0, 2, 0]
    np.testing.assert_allclose(last, HIP[0] + (NUM_FRAMES - 1) / 100, atol=1e-6)


def test_all_in_quarantine_leaves_a_set_without_truth(videos, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for view in (0, 1):
        (raw / f"t00_cam{view}.avi").write_bytes(b"damaged")
    give(raw / "truth", *motion_capture())
    assert prepare_folder(raw, tmp_path / "prepared") == ExitCode.PARTLY
    assert not (tmp_path / "prepared" / "truth").exists()


def test_the_truth_of_an_earlier_preparation_does_not_stay_unasked(videos, tmp_path, capsys):
    source = give(tmp_path / "mocap", *motion_capture())
    output = tmp_path / "prepared"
    assert prepare_folder(videos, output, f"--truth={source}") == 0
    before = files_of(output)
    assert prepare_folder(videos, output) == ExitCode.REFUSED
    assert "truth of an earlier preparation" in capsys.readouterr().err
    assert files_of(output) == before
    assert prepare_folder(videos, output, f"--truth={output / 'truth'}") == ExitCode.REFUSED
    assert "would be overwritten" in capsys.readouterr().err
    assert prepare_folder(videos, output, f"--truth={source}") == 0
    assert files_of(output) == before


# --- Joints that do not fit the pictures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Raw folder of eight takes."""
    raw = tmp_path_factory.mktemp("moving") / "raw"
    options = ["--takes=8", "--rooms=plain", "--actor_share=0.8", "--fps=10", "--resolution=40x40", "--workers=1"]
    assert synthesise([f"--output={raw}", *options]) == 0
    return raw


def changed_joints(table: pa.Table, change) -> pa.Table:
    joints = truth.column_of(table, "joints").reshape(len(table), -1, 3)  # (M, J, 3)
    return truth.joints_table(
        table["take"].to_pylist(), *(table[name].to_numpy() for name in ("frame", "facing")), change(table, joints)
    )


def of_the_next_take(table: pa.Table, joints: np.ndarray) -> np.ndarray:
    take = np.array(table["take"].to_pylist())
    names = np.unique(take)
    parts = {name: joints[take == name] for name in names}
    others = dict(zip(names, np.roll(names, -1), strict=True))
    return np.concatenate(
        [parts[others[name]][np.arange(len(parts[name])) % len(parts[others[name]])] for name in names]
    )


def swapped(table: pa.Table) -> pa.Table:
    view = {"C002": "C003", "C003": "C002"}
    names = pa.array([view.get(name, name) for name in table["view"].to_pylist()])
    return table.set_column(table.column_names.index("view"), "view", names)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (None, None, None),
        (truth.CAMERAS, swapped, "view C002: its moving pixels fit the camera of view C003"),
        (truth.JOINTS, lambda table: changed_joints(table, of_the_next_take), "joints of another take"),
    ],
    ids=["as they are", "cameras swapped", "joints of another take"],
)
def test_a_truth_that_fits_its_pictures_no_better_than_another_reading_is_told(
    moving, tmp_path, capsys, file, change, told
):
    shutil.copytree(moving, tmp_path / "raw")
    if file:
        path = tmp_path / "raw" / truth.FOLDER / file
        pq.write_table(change(pq.read_table(path)), path)
    options = [f"--input={tmp_path}/raw", f"--output={tmp_path}/prepared", "--short_side=32", "--workers=1"]
    assert prepare.main(["--dataset=synthetic", *options]) == 0
    said = capsys.readouterr().out
    assert told in said if told else "moving pixels" not in said
