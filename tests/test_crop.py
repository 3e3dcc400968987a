"""Preparation with boxes: frames show the box alone, and the cameras of the truth are adapted to it."""

import json
import types
from fractions import Fraction

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import crops
from data import catalog
from data.prepare import __main__ as prepare
from data.prepare import boxes, contact_sheet, encoding, metadata, shards
from data.prepare.boxes import Box
from data.recordings import raw_video
from data.store import takes
from data.synthetic.__main__ import main as synthesise
from tests import test_boxes, test_truth, video_files

SHORT_SIDE = 48
BOX_COLUMNS = list(boxes.MANIFEST_COLUMNS)


def textured(height=90, width=160, num_frames=6):
    """Smooth random colours that move, uint8[T, h, w, 3]."""
    coarse = np.random.default_rng(0).integers(0, 255, (height // 10, width // 10, 3)).astype(np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([np.roll(picture, 2 * t, axis=1) for t in range(num_frames)])


def cut(path, box, short_side=1000, interval=None):
    """What is stored of the box, b"x" for each picture, and the pictures."""
    video, pictures = catalog.Video(path=path.name, take="t", view="v", interval=interval), []

    def encode(picture):
        pictures.append(picture)
        return b"x"

    crop = boxes.make_crop("table.csv", None, None)
    settings = types.SimpleNamespace(short_side=short_side, encode=encode, crop=crop)
    with open(path, "rb") as file:
        _, encoded = encoding.encode_file([video], file, settings, {video: Box(*box)})
    stored = encoded[video]
    assert all(picture.shape == (stored.height, stored.width, 3) for picture in pictures)
    return stored, pictures


TURNS = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
TURNS += [(0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize(
    ("codec", "name", "turn"),
    [("libx264", "a.mp4", turn) for turn in TURNS] + [("ffv1", "a.mkv", TURNS[0]), ("mjpeg", "a.avi", TURNS[0])],
)
@pytest.mark.parametrize("box", [(20, 10, 60, 70), (21, 11, 60, 71)])
def test_a_box_is_the_part_of_the_upright_picture(tmp_path, codec, name, box, turn):
    path = video_files.write_video(tmp_path / name, textured(num_frames=3), codec=codec)
    if turn != TURNS[0]:
        video_files.rotate_by_metadata(path, turn)
    with open(path, "rb") as file:
        whole = np.stack(list(raw_video.frames(raw_video.open_source(file), 1000)))
    stored, pictures = cut(path, box)
    assert stored.raw_size == (whole.shape[2], whole.shape[1]) and (turn[0] == 0) == (whole.shape[2] == 90)
    left, top, right, bottom = box
    expected = whole[:, top:bottom, left:right].astype(int)
    assert np.shape(pictures) == expected.shape
    assert np.abs(pictures - expected).max() <= 1
    _, small = cut(path, box, 19)
    assert small[0].shape == (round(19 * (bottom - top) / (right - left)), 19, 3)
    reference = cv2.resize(expected[0].astype(np.uint8), small[0].shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small[0].astype(int) - reference).mean() < 8
    beside = cv2.resize(whole[0, top:bottom, left + 2 : right + 2], small[0].shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small[0].astype(int) - beside).mean() > 8


def test_pixels_that_are_not_square(tmp_path):
    path = video_files.write_video(tmp_path / "a.mp4", textured(), pixel_aspect=Fraction(3, 2))
    stored, pictures = cut(path, (30, 10, 90, 70))
    with open(path, "rb") as file:
        whole = next(raw_video.frames(raw_video.open_source(file), 1000))
    assert stored.raw_size == (240, 90) and whole.shape == (90, 240, 3)
    assert np.abs(pictures[0].astype(int) - whole[10:70, 30:90]).mean() < 3


def test_frames_outside_of_the_interval_are_not_cut(tmp_path):
    path = video_files.write_video(tmp_path / "a.mp4", textured())
    stored, pictures = cut(path, (20, 10, 60, 70), interval=(2, 4))
    assert stored.frames == [b"", b"", b"x", b"x", b"", b""] and len(pictures) == 2


def test_takes_of_one_file_have_boxes_of_their_own(tmp_path):
    frames = np.full((40, 90, 160, 3), 90, np.uint8)
    for t in range(20):
        frames[t, 20:60, 20 + t : 30 + t] = 230
        frames[20 + t, 20:60, 120 + t : 130 + t] = 230
    path = video_files.write_video(tmp_path / "a.mp4", frames)
    first, second, none = (
        catalog.Video(path="a.mp4", take=take, view="C", recording="a", interval=interval)
        for take, interval in (("1", (0, 20)), ("2", (21, 40)), ("3", (20, 21)))
    )
    crop = boxes.make_crop("motion", 0, 0)
    settings = types.SimpleNamespace(short_side=1000, encode=lambda frame: b"x", crop=crop)
    with open(path, "rb") as file:
        source, encoded = encoding.encode_file((first, second, none), file, settings, {})
    assert len(source.seconds) == 40
    assert encoded[first].box.right <= 60 and encoded[second].box.left >= 110
    assert [frame for frame in encoded[second].frames] == [b""] * 21 + [b"x"] * 19
    assert encoded[none] == "it has one frame, in which nothing can move: crop it by a table, or not at all"


# --- Whole preparations ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two takes of two views, in which a square moves."""
    raw = tmp_path_factory.mktemp("crop") / "raw"
    for index, name in enumerate(["t1_cam1", "t1_cam2", "t2_cam1", "t2_cam2"]):
        video_files.write_video(raw / f"{name}.mp4", video_files.moving_square(8, 72, 96, seed=9 * index))
    return raw


def run(raw, output, *more):
    arguments = ["--dataset=folder", f"--input={raw}", f"--output={output}", "--workers=1", *more]
    return prepare.main([*arguments, "--pattern={take}_cam{view}", f"--short_side={SHORT_SIDE}"])


def table(path, rows):
    path.write_text(test_boxes.HEADER + "".join(f"{row}\n" for row in rows))
    return f"--crop={path}"


ROWS = ["t1,1,10,10,80,70", "t1,2,20,5,70,65", "t2,1,0,0,96,72", "t2,2,31,17,92,59"]


def test_without_boxes_the_files_do_not_mention_any(folder, tmp_path):
    assert run(folder, tmp_path / "default") == 0 and run(folder, tmp_path / "full", "--crop=full") == 0
    files = test_truth.files_of(tmp_path / "default")
    assert files == test_truth.files_of(tmp_path / "full")
    assert "crop" not in json.loads(files["prepared.json"]) | json.loads(files["plan.json"])["settings"]
    assert not set(BOX_COLUMNS) & set(pq.read_schema(tmp_path / "full" / "manifest.parquet").names)


def test_boxes_of_a_table_are_stored_as_they_are(folder, tmp_path, capsys):
    crop = table(tmp_path / "boxes.csv", ROWS)
    assert run(folder, tmp_path / "out", crop, "--sheet") == 0
    assert "boxes: of 4 of 4 views" in capsys.readouterr().out
    prepared = takes.open_prepared(tmp_path / "out")
    stored = np.stack([prepared.views[name] for name in BOX_COLUMNS], axis=1).tolist()
    assert stored == [[*map(int, row.split(",")[2:]), 96, 72] for row in ROWS]
    for row, (left, top, right, bottom, *_) in enumerate(stored):
        with open(folder / f"{ROWS[row][:2]}_cam{ROWS[row][3]}.mp4", "rb") as file:
            whole = list(raw_video.frames(raw_video.open_source(file), 1000))
        scale = min(1, SHORT_SIDE / min(right - left, bottom - top))
        size = round((right - left) * scale), round((bottom - top) * scale)
        for shown, frame in zip(prepared.read(row, np.arange(8)), whole, strict=True):
            expected = cv2.resize(frame[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
            assert shown.shape == expected.shape
            assert np.abs(shown.astype(int) - expected).mean() < 4
    sheet = cv2.imread(str(tmp_path / "out" / contact_sheet.NAME))[..., ::-1]
    assert (sheet == contact_sheet.COLOUR).all(axis=2).sum() > 4 * 100  # four boxes are drawn
    assert metadata.verify(tmp_path / "out") == []
    before = test_truth.files_of(tmp_path / "out")
    assert run(folder, tmp_path / "out", crop, "--sheet") == 0
    assert test_truth.files_of(tmp_path / "out") == before
    table(tmp_path / "boxes.csv", [ROWS[0].replace("10", "11"), *ROWS[1:]])  # the change is noticed
    assert run(folder, tmp_path / "out", crop) == 0
    assert pq.read_table(tmp_path / "out" / "manifest.parquet")["crop_left"].to_pylist()[0] == 11
    assert run(folder, tmp_path / "out") == 2  # prepared with other settings
    assert "crop was {" in capsys.readouterr().err


def test_views_without_a_box_are_set_aside_with_the_reason(folder, tmp_path, capsys):
    crop = table(tmp_path / "boxes.csv", ["t1,1,10,10,80,70", "t1,2,10,10,180,70", "t2,1,10,10,80,70", "x,1,1,1,2,2"])
    assert run(folder, tmp_path / "out", crop, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "warning: 1 views have no box and go to the quarantine, e.g. view 2 of take t2" in out
    assert "are of no video here, e.g. view 1 of take x" in out
    assert run(folder, tmp_path / "out", crop) == 3
    reasons = (tmp_path / "out" / "quarantine.csv").read_text()
    assert "box (10, 10, 180, 70) (left, top, right, bottom) lies outside of the picture, which has 96x72" in reasons
    assert "there is no box of it in the table of --crop" in reasons
    twice = tmp_path / "twice.csv"
    twice.write_text("take,view,left,top,right,bottom,left\nt1,1,10,10,80,70,20\n")
    assert run(folder, tmp_path / "other", f"--crop={twice}") == 2
    assert "has the column left more than once" in capsys.readouterr().err
    crop = table(tmp_path / "others.csv", ["x,1,1,1,2,2"])
    assert run(folder, tmp_path / "other", crop) == 2
    assert "has no box of any of the 4 views, e.g. view 1 of take t1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop=skeletons"], "--crop=skeletons and --skeletons=DIR go together"),
        (["--skeletons=x"], "go together"),
        (["--crop=skeletons", "--skeletons=x"], "is for files named as NTU's are"),
        (["--crop_margin=0.2"], "need a --crop other than full"),
        (["--crop=motion", "--crop_margin=2"], "2 is not 0 to 1"),
        (["--crop=motion", "--crop_aspect=-1"], "-1 is not 0.1 to 10, or 0"),
    ],
)
def test_options_that_do_not_go_together(folder, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        run(folder, tmp_path / "out", *options)
    assert ended.value.code == 2 and message in capsys.readouterr().err


# --- Generated: where the person is, is known ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Raw videos of two takes, 128x128 pixels, with their joints."""
    folder = tmp_path_factory.mktemp("crop_generated")
    size = ["--takes=2", f"--seed={test_truth.SEED}", f"--resolution={test_truth.SIDE}x{test_truth.SIDE}"]
    assert synthesise([f"--output={folder}/raw", *size, "--workers=1"]) == 0
    return folder / "raw"


def prepared_from(raw, output, *more):
    arguments = ["--dataset=synthetic", f"--input={raw}", f"--output={output}", "--workers=1"]
    assert prepare.main([*arguments, f"--short_side={SHORT_SIDE}", *more]) == 0
    return takes.open_prepared(output)


def pixels_of(prepared):
    """The joints' pixels in the stored frames and in the raw videos, float[M, T, J, 2] each."""
    rows, frames = test_truth.rows_and_frames(prepared)
    stored = prepared.truth.in_pixels(rows, frames)
    left, top, right, bottom, *_ = (prepared.views[name] for name in BOX_COLUMNS)
    scale = np.stack([(right - left) / prepared.views["width"], (bottom - top) / prepared.views["height"]], axis=1)
    corner = np.stack([left, top], axis=1)
    return stored, (stored + 0.5) * scale[:, None, None] + corner[:, None, None] - 0.5


def test_motion_finds_the_person_and_the_joints_follow(generated, tmp_path):
    full = prepared_from(generated, tmp_path / "full")
    prepared = prepared_from(generated, tmp_path / "motion", "--crop=motion")
    stored, raw = pixels_of(prepared)
    rows, frames = test_truth.rows_and_frames(full)
    scale = test_truth.SIDE / SHORT_SIDE
    np.testing.assert_allclose(raw, (full.truth.in_pixels(rows, frames) + 0.5) * scale - 0.5, atol=1e-3)
    size = np.stack([prepared.views["width"], prepared.views["height"]], axis=1)[:, None, None]
    assert ((stored > -0.5) & (stored < size - 0.5)).all(axis=3).mean() > 0.95
    widths = prepared.views["crop_right"] - prepared.views["crop_left"]
    assert widths.mean() < 0.95 * test_truth.SIDE
    # The stored frames show the box of the raw videos.
    for row in rows:
        video = catalog.get("synthetic").format(_Video(prepared, row))
        with open(generated / video, "rb") as file:
            pictures = list(raw_video.frames(raw_video.open_source(file), 1000))
        shown = prepared.read(row, frames[row])
        left, top, right, bottom = (int(prepared.views[name][row]) for name in BOX_COLUMNS[:4])
        expected = [
            cv2.resize(pictures[frame][top:bottom, left:right], shown.shape[2:0:-1], interpolation=cv2.INTER_AREA)
            for frame in frames[row]
        ]
        assert np.abs(shown.astype(int) - expected).mean() < 6


class _Video:
    """The numbers in one row of a manifest, from which the catalogue formats the video's name."""

    def __init__(self, prepared, row):
        for name in ("setup", "camera", "subject", "performance", "label"):
            setattr(self, name, int(prepared.views[name][row]))


def test_skeleton_files_give_boxes_and_missing_ones_are_told(generated, tmp_path, capsys):
    full = prepared_from(generated, tmp_path / "full")
    rows, _ = test_truth.rows_and_frames(full)
    folder = tmp_path / "skeletons"
    (folder / "nturgb+d_skeletons").mkdir(parents=True)
    names = []
    for row in rows:
        frames = np.tile(np.arange(full.views["num_frames"][row]), (1, 1))
        points = full.truth.in_pixels(np.array([row]), frames)[0]  # (T, J, 2)
        points = (points + 0.5) / SHORT_SIDE * np.array(boxes.SKELETON_SIZE)
        video = catalog.get("synthetic").format(_Video(full, row))
        names.append(video.replace("_rgb.avi", ".skeleton"))
        text = test_boxes.skeleton([[("72057594037931101", frame.tolist())] for frame in points])
        (folder / "nturgb+d_skeletons" / names[-1]).write_text(text)
    how = ["--crop=skeletons", f"--skeletons={folder}"]
    prepared = prepared_from(generated, tmp_path / "joints", *how, "--crop_margin=0", "--crop_aspect=0")
    stored, _ = pixels_of(prepared)
    size = np.stack([prepared.views["width"], prepared.views["height"]], axis=1)[:, None, None]
    assert ((stored > -0.51) & (stored < size - 0.49)).all()  # the box holds all joints
    every = [np.tile(np.arange(length), (1, 1)) for length in prepared.views["num_frames"]]
    for row, frames in enumerate(every):  # and ends at the outermost joints
        points = prepared.truth.in_pixels(np.array([row]), frames)[0]
        assert points.min(axis=(0, 1)).max() < 1 and (size[row, 0, 0] - points.max(axis=(0, 1))).max() < 2
    capsys.readouterr()
    (folder / "nturgb+d_skeletons" / names[0]).unlink()
    (folder / "nturgb+d_skeletons" / names[4]).write_text("1\n0\n")
    arguments = ["--dataset=synthetic", f"--input={generated}", f"--output={tmp_path}/less", "--workers=1", *how]
    assert prepare.main([*arguments, "--sheet"]) == 3
    assert "warning: 1 views have no box and go to the quarantine" in capsys.readouterr().out
    reasons = (tmp_path / "less" / "quarantine.csv").read_text()
    assert f"{names[0]} cannot be read: No such file or directory" in reasons
    assert f"{names[4]} holds no body in the picture" in reasons
    assert prepare.main(arguments) == 3 and "expected" not in capsys.readouterr().out  # nothing is made again
    replaced = folder / "nturgb+d_skeletons" / names[-1]
    replaced.write_bytes(replaced.read_bytes().replace(b".5", b".4"))  # other places of joints, of the same length
    assert prepare.main(arguments) == 3
    assert f"changed since they were prepared, so prepared anew: 1 file\n  {replaced}\n" in capsys.readouterr().out


def test_the_accounts_of_a_preparation_hold_the_boxes(folder, tmp_path):
    table(tmp_path / "boxes.csv", ROWS)
    assert run(folder, tmp_path / "out", f"--crop={tmp_path}/boxes.csv", "--crop_margin=0.05") == 0
    told = json.loads((tmp_path / "out" / "prepared.json").read_bytes())
    assert told["crop"] == {"by": "table", "margin": 0.05, "aspect": None}
    part = next((tmp_path / "out" / shards.PARTS).glob("*.json"))
    assert set(BOX_COLUMNS) <= json.loads(part.read_bytes())["records"][0].keys()


def test_shares_of_joints_in_crops_are_told(synthetic_set, capsys):
    crops.main(["--prepared", str(synthetic_set)])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    shares = {name.strip(): float(share.strip().rstrip("%")) for name, share in lines[2:]}
    assert 60 < shares["left_ankle"] < shares["all joints, mean"] < shares["pelvis"] < 100
    prepared = takes.open_prepared(synthetic_set)
    hits = crops.inside(prepared, (1.0,), (40, 53))  # the whole picture, as the truth has it
    assert hits.mean() == 1


def test_the_sheet_shows_a_take_that_lasts_longer_than_its_file(folder, tmp_path):
    assert run(folder, tmp_path / "out", "--fps=90", "--sync=start", "--sheet") == 0  # three ticks for each frame
    assert (takes.open_prepared(tmp_path / "out").views["num_frames"] > 16).all()
    assert (cv2.imread(str(tmp_path / "out" / contact_sheet.NAME)) < 250).mean() > 0.5
