"""Reading a prepared set: only the wanted frames are decoded, upright and in the right colours."""

import concurrent.futures
import json
import pickle
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.prepare import __main__ as prepare
from data.store import codec, manifest, takes
from tests import video_files

SHORT_SIDE = 32
REAL = Path(__file__).parent.parent.parent / "shared" / "real_multiview"
# [ours] The mean error that JPEG of quality 90 with halved chroma may cause, on a scale of 255. On real pictures with
# much detail it causes up to 3.1, and a shift by one pixel more than 7.
JPEG_TOLERANCE = 4.0


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """One take of five cameras: plain, turned by 90 degrees, with wide pixels, in another codec, and of small size."""
    folder = tmp_path_factory.mktemp("raw")
    frames = video_files.moving_square(20, 60, 96, seed=3)
    video_files.write_video(folder / "a_cam1.avi", frames)
    video_files.rotate_by_metadata(video_files.write_video(folder / "a_cam2.mp4", frames))
    video_files.write_video(folder / "a_cam3.mp4", frames, pixel_aspect=Fraction(2, 1))
    video_files.write_video(folder / "a_cam4.webm", frames, codec="libvpx-vp9")
    video_files.write_video(folder / "a_cam5.avi", frames[:, :24, :36])
    return folder


@pytest.fixture(scope="module", params=codec.NAMES)
def prepared(raw, tmp_path_factory, request):
    output = tmp_path_factory.mktemp("prepared")
    arguments = ["--dataset=folder", f"--input={raw}", f"--output={output}", f"--short_side={SHORT_SIDE}"]
    assert prepare.main([*arguments, f"--codec={request.param}"]) == 0
    return takes.open_prepared(output)


def expected(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resized to (width, height) by area; uint8[T, h, w, 3]."""
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def test_frames_are_those_of_the_video_resized(raw, prepared):
    upright = expected(video_files.decode(raw / "a_cam1.avi"), (51, 32))  # 96 * 32 / 60 = 51.2
    sideways = expected(video_files.decode(raw / "a_cam2.mp4"), (51, 32))
    broad = expected(video_files.decode(raw / "a_cam3.mp4"), (102, 32))  # shown twice as broad
    other = expected(video_files.decode(raw / "a_cam4.webm"), (51, 32))
    small = video_files.decode(raw / "a_cam5.avi")
    clockwise = np.rot90(sideways, k=-1, axes=(1, 2))
    for record, wanted in enumerate((upright, clockwise, broad, other, small)):
        got = prepared.read(record, np.arange(20))
        assert got.shape == wanted.shape and got.dtype == np.uint8
        assert np.abs(got.astype(int) - wanted).mean() < JPEG_TOLERANCE
        assert (prepared.views["height"][record], prepared.views["width"][record]) == wanted.shape[1:3]


def test_colours_are_red_green_blue(prepared):
    square = prepared.read(0, np.array([0]))[0, 16, 4]  # inside the square, whose colour is (220, 30, 30)
    assert np.abs(square.astype(int) - (220, 30, 30)).max() < 25


def test_the_manifest_tells_what_the_videos_are(prepared):
    views = prepared.views
    assert views["take"].tolist() == ["a"] * 5
    assert views["view"].tolist() == ["1", "2", "3", "4", "5"]
    assert views["record"].tolist() == list(range(5))
    assert views["num_frames"].tolist() == [20] * 5
    assert views["fps"].tolist() == [30.0] * 5
    assert list(zip(views["height"], views["width"], strict=True)) == [
        (32, 51),
        (51, 32),
        (32, 102),
        (32, 51),
        (24, 36),
    ]
    for column in ("label", "subject", "setup", "camera", "performance"):
        assert views[column].tolist() == [-1] * 5


def test_any_order_and_repetition_of_frames(prepared):
    everything = prepared.read(0, np.arange(20))
    wanted = np.array([19, 3, 3, 0, 7, 19])
    np.testing.assert_array_equal(prepared.read(0, wanted), everything[wanted])
    assert len({frame.tobytes() for frame in everything}) == 20  # the square moves, so no two are the same


def test_only_the_wanted_frames_are_decoded(prepared, monkeypatch):
    decoded, module = [], codec.get(prepared.codec)
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda data: decoded.append(data) or decode(data))
    prepared.read(0, np.array([5, 2, 5, 5]))
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("record", "frames", "reason"),
    [
        (0, [20], r"take a, view 1\) has frames 0 to 19, not \[20\]"),
        (0, [-1], "has frames 0 to 19"),
        (0, [], "has frames 0 to 19"),
        (5, [0], "no record 5 in .*: there are 5"),
        (-1, [0], "no record -1"),
    ],
)
def test_what_is_not_there_is_refused(prepared, record, frames, reason):
    with pytest.raises(ValueError, match=reason):
        prepared.read(record, np.array(frames, dtype=int))


def test_copies_in_other_processes_and_threads_read_the_same(prepared):
    frames = np.array([1, 9])
    wanted = [prepared.read(record, frames) for record in range(5)]
    copy = pickle.loads(pickle.dumps(prepared))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda record: copy.read(record % 5, frames), range(40)))
    for index, clip in enumerate(got):
        np.testing.assert_array_equal(clip, wanted[index % 5])


@pytest.mark.parametrize("name", codec.NAMES)
def test_codec_is_close_and_refuses_damage(name):
    module = codec.get(name)
    frame = video_files.moving_square(1, 40, 56, seed=2)[0]
    data = module.encode(frame, 90)
    assert np.abs(module.decode(data).astype(int) - frame).mean() < JPEG_TOLERANCE
    assert len(module.encode(frame, 30)) < len(data)
    for damaged in (b"", b"not a picture"):
        with pytest.raises(ValueError, match=f"{len(damaged)} bytes are not"):
            module.decode(damaged)


def test_opening_tells_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder. Make it with `python -m data\.prepare .*--output="):
        takes.open_prepared(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a prepared data set"):
        takes.open_prepared(tmp_path)


def test_opening_finds_a_shard_that_has_lost_its_end(raw, tmp_path):
    assert prepare.main(["--dataset=folder", f"--input={raw}", f"--output={tmp_path}"]) == 0
    (shard,) = tmp_path.glob("*.array_record-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is missing or has lost its end"):
        takes.open_prepared(tmp_path)


def test_opening_refuses_the_format_of_another_version(raw, tmp_path):
    assert prepare.main(["--dataset=folder", f"--input={raw}", f"--output={tmp_path}"]) == 0
    told = json.loads((tmp_path / "prepared.json").read_text())
    (tmp_path / "prepared.json").write_text(json.dumps(told | {"format_version": told["format_version"] - 1}))
    with pytest.raises(ValueError, match="prepared by another version of this program"):
        takes.open_prepared(tmp_path)


def test_splits_follow_the_protocol_of_the_catalogue(tmp_path):
    frames = video_files.moving_square(3, 24, 32, seed=0)
    for camera in (1, 2, 3):
        for subject in (1, 3):  # NTU-60's performers 1 and 3 are for training and for testing
            name = f"S001C{camera:03}P{subject:03}R001A001_rgb.avi"
            video_files.write_video(tmp_path / "raw" / name, frames)
    output = tmp_path / "prepared"
    assert prepare.main(["--dataset=ntu60", f"--input={tmp_path / 'raw'}", f"--output={output}"]) == 0
    prepared = takes.open_prepared(output)
    assert (prepared.name, prepared.class_names[0], len(prepared.class_names)) == ("ntu60", "drink water", 60)
    subject, camera = prepared.views["subject"], prepared.views["camera"]
    np.testing.assert_array_equal(prepared.splits("xsub"), np.where(subject == 1, "train", "test"))
    np.testing.assert_array_equal(prepared.splits("xview"), np.where(camera == 1, "test", "train"))
    with pytest.raises(ValueError, match="ntu60 has no protocol 'xset'"):
        prepared.splits("xset")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real videos in {REAL}")
def test_real_phones_and_cameras(tmp_path):
    arguments = ["--dataset=folder", "--pattern={take}_cam{view}.mp4", f"--output={tmp_path}"]
    assert prepare.main([*arguments, f"--input={REAL / 'pose2sim_single'}"]) == 0
    prepared = takes.open_prepared(tmp_path)
    assert prepared.views["take"].tolist() == ["take_001"] * 4
    assert prepared.views["num_frames"].tolist() == [100] * 4
    assert prepared.views["fps"].tolist() == [60.0] * 4
    for record, view in enumerate(prepared.views["view"]):
        with av.open(str(REAL / "pose2sim_single" / f"take_001_cam{view}.mp4")) as container:
            frames = [next(container.decode(video=0)).to_ndarray(format="rgb24")]
        got = prepared.read(record, np.array([0, 50, 99]))
        assert got.shape[2] == 170 < got.shape[1]  # portrait
        wanted = expected(np.stack(frames), (got.shape[2], got.shape[1]))
        assert np.abs(got[:1].astype(int) - wanted).mean() < JPEG_TOLERANCE
    counts = json.loads((tmp_path / "prepared.json").read_text())["counts"]
    assert (counts["videos"], counts["quarantined"]) == (4, 0)


def test_columns_are_read_in_parts_and_again_in_another_process(tmp_path):
    columns = {
        "take": [f"S{i}" for i in range(70_000)],
        "view": ["", "Kamera süd", "C1"] * 23_333 + [""],
        "label": list(range(-1, 69_999)),
    }
    types = {"take": pa.string(), "view": pa.string(), "label": pa.int32()}
    table = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "manifest.parquet", row_group_size=30_000)
    views = manifest.columns_of(tmp_path / "manifest.parquet")
    assert list(views) == list(columns) and "fps" not in views
    for name, values in columns.items():
        assert views[name].tolist() == values
    sent = pickle.dumps(views)
    assert len(sent) < 1000 and pickle.loads(sent)["view"].tolist() == columns["view"]
    with pytest.raises(KeyError, match="fps"):
        views["fps"]
