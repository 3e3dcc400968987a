"""Names of files in folders and archives, and videos that are too short or show no motion."""

import csv
import json
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from console.command import ExitCode
from data import catalog
from data.prepare import __main__ as prepare
from data.prepare import boxes, preparation, preparation_report
from data.prepare.options import Options
from data.recordings import offsets, raw_video
from data.recordings.listing import list_videos
from data.store import digests, takes
from mv2mae_jax.features.sources import VideoSource
from tests import video_files
from tests.avi_file import empty_at_end
from tests.test_clocks import prepared, write_here
from tests.video_files import write_timed

PATTERN = "{take}_cam{view}"
NFC, NFD = "café", unicodedata.normalize("NFD", "café")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode(errors="surrogateescape"))
    return folder


def listed(folder: Path, pattern: str = PATTERN, name: str = "folder"):
    return list_videos(catalog.get(name, pattern=pattern if name == "folder" else None), folder)


def table(path: Path) -> dict[str, str]:
    with open(path, newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


HIDDEN = ("._a_cam1.mp4", ".AppleDouble/a_cam1.mp4", ".Trash-1000/files/b_cam1.mp4", "x/.hidden/.deep/c_cam1.avi")


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    shown = ("a_cam1.mp4", "a_cam2.mp4", "x/@eaDir/a_cam1.mp4")
    touch(tmp_path / "in", *shown, *HIDDEN)
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w") as file:
        for name in ("b_cam1.mp4", "__MACOSX/._b_cam1.mp4", ".AppleDouble/b_cam1.mp4"):
            file.writestr(name, name)
    shutil.copy(tmp_path / "in" / "z.zip", tmp_path / "in" / "._z.zip")
    touch(tmp_path / "in", ".broken.tar")
    for inputs in (tmp_path / "in", [tmp_path / "in", touch(tmp_path / ".more", "d_cam1.mp4")]):
        _, listing = listed(inputs, "{take}_cam{view}")
        names = {video.path.removeprefix("in/") for video in listing.videos} - {".more/d_cam1.mp4"}
        assert names == {"a_cam1.mp4", "a_cam2.mp4"}
        assert [path.removeprefix("in/") for path, _ in listing.unmatched] == [
            "x/@eaDir/a_cam1.mp4",
            "z.zip/b_cam1.mp4",
        ]
        assert listing.files.passed_over == {"hidden": 8} and not listing.files.unreadable
    source = VideoSource.find(str(tmp_path / "in"), spec=None, clips_per_video=1, short_side=32)
    assert set(source.paths) == set(shown)


@pytest.mark.parametrize("pattern", ["{take}_cam{view}.mp4", "{take}_cam{view}.MP4", PATTERN])
def test_endings_match_in_any_case(tmp_path, pattern):
    touch(tmp_path, "a_cam1.mp4", "a_cam2.MP4", "b_cam1.Mp4")
    _, listing = listed(tmp_path, pattern)
    assert [(v.take, v.view) for v in listing.videos] == [("a", "1"), ("a", "2"), ("b", "1")]


def test_both_spellings_of_a_name_are_one(tmp_path):
    touch(tmp_path, f"{NFC}/{NFD}_cam1.mp4", f"{NFD}/{NFC}_cam2.mp4", f"{NFD}/b_cam{NFC}.mp4")
    for pattern in ("{label}/{take}_cam{view}", unicodedata.normalize("NFD", "{label}/{take}_cam{view}")):
        names, listing = listed(tmp_path, pattern)
        assert names.class_names == (NFC,)
        found = [(video.take, video.view) for video in listing.videos]
        assert found == [(f"{NFC}/b", NFC), (f"{NFC}/{NFC}", "1"), (f"{NFC}/{NFC}", "2")]
        assert all((tmp_path / video.path).exists() for video in listing.videos)
    (tmp_path / "offsets.csv").write_text(f"take,view,seconds\n{NFD},1,2\n")
    assert offsets.read(tmp_path / "offsets.csv") == {(NFC, "1"): 2.0}
    (tmp_path / "boxes.csv").write_text(f"take,view,left,top,right,bottom\n{NFD},1,0,0,9,9\n")
    assert set(boxes.read_table(tmp_path / "boxes.csv")) == {(NFC, "1")}
    _, listing = listed(touch(tmp_path / "more", f"{NFC}_t1_cam1.mp4"), f"{NFD}_{{take}}_cam{{view}}")
    assert [video.take for video in listing.videos] == ["t1"]


def test_files_of_another_container_are_told(tmp_path):
    touch(tmp_path, "a_cam1.mp4", "a_cam2.flv", "b_cam1.mp4.part", "b_cam1.txt", "notes.flv")
    _, listing = listed(tmp_path)
    assert dict(listing.unmatched).keys() == {"a_cam2.flv", "b_cam1.mp4.part"}
    assert "view 2 of take a, but .flv is none of the endings that are read" in dict(listing.unmatched)["a_cam2.flv"]
    assert listing.files.passed_over == {".txt": 1, ".flv": 1}
    _, listing = listed(touch(tmp_path, "a_cam2.avi"), "{take}_cam{view}.mp4")
    assert "view 2 of take a, but the pattern asks for .mp4" in dict(listing.unmatched)["a_cam2.avi"]
    ntu = touch(tmp_path / "ntu", "S001C001P001R001A001_rgb.avi", "S001C002P001R001A001_rgb.m2ts", "other.flv")
    _, listing = listed(ntu, name="ntu60")
    assert [path for path, _ in listing.unmatched] == ["S001C002P001R001A001_rgb.m2ts"]
    _, listing = listed(touch(tmp_path / "classes", "walk/a_cam1.mp4", "run/b_cam1.wtv"), "{label}/{take}_cam{view}")
    assert [path for path, _ in listing.unmatched] == ["run/b_cam1.wtv"]


def test_a_name_that_is_not_utf8_is_set_aside_alone(tmp_path):
    touch(tmp_path, "a_cam1.mp4", "a_cam2.mp4", "caf\udce9_cam1.mp4", "k\udcfcche/b_cam1.mp4")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        for name in ("b_cam1.mp4", "café_cam1.mp4", "b_cam2.mp4"):
            file.writestr(name, name * 10)
    content = (tmp_path / "z.zip").read_bytes()
    (tmp_path / "z.zip").write_bytes(content.replace("é".encode(), b"\xe9\xe9"))
    _, listing = listed(tmp_path, "{take}_cam{view}")
    aside = {path: reason for path, _, reason in listing.files.unreadable}
    assert aside.keys() == {"caf\\xe9_cam1.mp4", "k\\xfcche/b_cam1.mp4", "z.zip"}
    assert all("not UTF-8" in reason for reason in aside.values())


def test_files_with_the_same_bytes_are_told(tmp_path):
    rng = np.random.default_rng(0)
    one, other = rng.bytes(200_000), rng.bytes(200_000)
    folder, archive = tmp_path / "in", tmp_path / "z.zip"
    folder.mkdir()
    for name, content in {"w1_camA": one, "w1_camB": one, "w1 (1)_camA": one, "w2_camA": b"x" * 9}.items():
        (folder / f"{name}.mp4").write_bytes(content)
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in {"w3_camA": other, "w3_camB": other, "w4_camA": b"z" * 9}.items():
            file.writestr(f"{name}.mp4", content)
    assert preparation_report.found_wrong(*listed([folder, archive])) == [
        "warning: 3 files with the size, the beginning and the end of another, used as views of their own: "
        "leave copies out",
        "  in/w1 (1)_camA.mp4 = in/w1_camA.mp4 = in/w1_camB.mp4",
        "  z.zip/w3_camA.mp4 = z.zip/w3_camB.mp4",
    ]
    (folder / "w1 (1)_camA.mp4").unlink()
    (folder / "w1_camB.mp4").write_bytes(one[:-1] + bytes([one[-1] ^ 1]))
    assert preparation_report.found_wrong(*listed(folder)) == []


def test_classes_are_named_and_those_that_are_nearly_the_same_are_told(tmp_path, capsys):
    for number, label in enumerate(("Walk", "walk ", "run", "sit down")):
        for view in (1, 2):
            frames = video_files.moving_square(4, 48, 64, seed=10 * number + view)
            video_files.write_video(tmp_path / "raw" / label / f"anna{number}_cam{view}.mp4", frames)
    (tmp_path / "raw" / "run").rename(tmp_path / "raw" / "Sit Down")
    pattern = "{label}/{subject}{take}_cam{view}"
    arguments = ["--dataset=folder", f"--input={tmp_path / 'raw'}", f"--pattern={pattern}", "--workers=1", "--dry_run"]
    assert prepare.main(arguments) == 0
    said = capsys.readouterr().out
    assert "\n  4 classes: Sit Down, Walk, sit down, walk \n" in said
    assert (
        "warning: class names that differ only in case or spaces are different ones: 'Sit Down', 'sit down'\n" in said
    )
    assert "warning: class names that differ only in case or spaces are different ones: 'Walk', 'walk '\n" in said
    assert "subject names" not in said
    shutil.rmtree(tmp_path / "raw" / "Walk")
    (tmp_path / "raw" / "Sit Down").rename(tmp_path / "raw" / "run")
    assert prepare.main(arguments) == 0
    said = capsys.readouterr().out
    assert "\n  3 classes: run, sit down, walk \n" in said and "warning" not in said


def test_short_and_still_takes_are_told(tmp_path, capsys):
    for take, num_frames in {"a": 12, "b": 1, "c": 7, "still": 12}.items():
        for view in (1, 2):
            frames = video_files.moving_square(num_frames, 48, 64, seed=view)
            frames[:] = frames[:1] if take == "still" else frames
            video_files.write_video(tmp_path / "raw" / f"{take}_cam{view}.mp4", frames)
    arguments = ["--dataset=folder", f"--input={tmp_path / 'raw'}", "--workers=1"]
    prepare.main([*arguments, f"--output={tmp_path / 'default'}"])
    said = capsys.readouterr().out
    assert "note:  1 take in which nothing moves:\n  still\n" in said
    reason = "too short: 1 frame, fewer than --min_frames=2"
    assert table(tmp_path / "default" / "quarantine.csv") == {f"b_cam{view}.mp4": reason for view in (1, 2)}
    assert json.loads((tmp_path / "default" / "prepared.json").read_text())["counts"]["static_takes"] == 1
    prepare.main([*arguments, f"--output={tmp_path / 'eight'}", "--min_frames=8"])
    assert set(takes.open_prepared(tmp_path / "eight").views["take"]) == {"a", "still"}
    assert len(table(tmp_path / "eight" / "quarantine.csv")) == 4
    prepare.main([*arguments, f"--output={tmp_path / 'one'}", "--min_frames=1"])
    assert set(takes.open_prepared(tmp_path / "one").views["take"]) == {"a", "b", "c", "still"}


def test_interlaced_and_hdr_views_are_told(tmp_path, capsys):
    marks = {"1": {}, "2": {"interlaced": True}, "3": {"transfer": 16}, "4": {"transfer": 18, "interlaced": True}}
    for view, mark in marks.items():
        frames = video_files.moving_square(12, 48, 64, seed=0)
        video_files.write_video(tmp_path / "raw" / f"a_cam{view}.mp4", frames, **mark)
    arguments = ["--dataset=folder", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--workers=1"]
    for _ in range(2):  # the second call decodes nothing
        assert prepare.main(arguments) == ExitCode.DONE
        said = capsys.readouterr().out
        assert "note:  HDR: 2 of 4 views. Stored without tone mapping" in said
        assert "note:  interlaced: 2 of 4 views. A frame shows two moments at once" in said


def test_a_camera_that_shows_nothing_is_told(tmp_path, capsys):
    for take in range(4):
        for view in ("a", "b", "c"):
            frames = video_files.moving_square(12, 48, 64, seed=take)
            if view == "b" and take != 2:  # the lens cap is on
                frames[:] = 0
            if view == "c" and take == 2:  # the stream is frozen
                frames[:] = frames[:1]
            video_files.write_video(tmp_path / "raw" / f"t{take}_cam{view}.mp4", frames)
    arguments = ["--dataset=folder", f"--input={tmp_path / 'raw'}", "--workers=1", f"--output={tmp_path / 'out'}"]
    assert prepare.main(arguments) == 0
    told = "note:  4 views in which nothing moves while others of the take move:\n"
    told += "  view b of 3 takes: t0, t1, t3\n  view c of 1 take: t2\n"
    said = capsys.readouterr().out
    assert told in said and "in which nothing moves:" not in said
    counts = json.loads((tmp_path / "out" / "prepared.json").read_text())["counts"]
    assert (counts["static_views"], counts["static_takes"]) == (4, 0)


def test_what_views_have_in_common_may_be_too_short(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_timed(raw / "t_cam1.mkv", list(range(30)))
    write_timed(raw / "t_cam2.mkv", list(range(24, 60)))
    _, _, aside = prepared(raw, "timestamps", min_frames=10)
    assert set(aside.values()) == {"too short: 6 frames in common with its take, fewer than --min_frames=10"}


# --- AVI files that end with entries without a picture


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
@pytest.mark.parametrize("sync", ["frames", "start"])
def test_a_camera_that_stops_early_holds_its_last_frame(tmp_path, codec, sync):
    raw = tmp_path / "raw"
    raw.mkdir()
    for view in "AB":
        frames = np.stack([video_files.timed_frame(number) for number in range(60)])
        video_files.write_video(raw / f"t_cam{view}.avi", frames, codec=codec)
    empty_at_end(raw / "t_camA.avi", 10)
    found, shown, aside = prepared(raw, sync)
    assert not aside and shown["B"] == list(range(60))
    assert shown["A"] == [*range(50), *[49] * 10] and found.views["gap_frames"].tolist() == [10, 0]


def test_a_camera_that_stops_much_earlier_is_told(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for view in "ABC":
        write_timed(raw / f"t_cam{view}.avi", list(range(60)), codec="mpeg4")
    empty_at_end(raw / "t_camA.avi", 25)
    _, shown, aside = prepared(raw, "start")
    assert shown.keys() == {"B", "C"} and aside["t_camA.avi"].startswith("gap of 0.83 s at 1.17 s, longer than")


def test_a_file_that_was_cut_is_truncated_still(tmp_path):
    path = write_timed(tmp_path / "a.avi", list(range(60)), codec="mpeg4")
    video_files.claim_in_avi(path, num_frames=80)  # its index has no more than 60
    with open(path, "rb") as file, pytest.raises(raw_video.BadVideo, match="truncated: 60 frames of the 80"):
        list(raw_video.frames(raw_video.open_source(file), 32))


def test_features_of_an_avi_file_repeat_frames_as_preparation_does(tmp_path, monkeypatch):
    write_timed(tmp_path / "a.avi", [*range(20), *range(25, 40)], codec="mpeg4")
    empty_at_end(tmp_path / "a.avi", 4)
    source = VideoSource(root=str(tmp_path), paths=("a.avi",), spec=None, clips_per_video=1, short_side=96)
    seen = []
    monkeypatch.setattr("data.clips.frame_indices", lambda length, *_: np.arange(length))
    monkeypatch.setattr("data.samples.crop_clip", lambda clip, *_: seen.append(clip))
    object.__setattr__(source, "spec", catalog)  # stands for a ClipSpec; only the attributes set below are read
    for name in ("num_frames", "frame_stride", "crop_size"):
        monkeypatch.setattr(catalog, name, 1, raising=False)
    _, (seconds, fps) = source._clips_or_reason(0)
    assert fps == 30
    np.testing.assert_allclose(seconds, np.arange(40) / 30, atol=1e-6)
    shown = [video_files.time_shown(frame) for frame in seen[0]]
    assert shown == [*range(20), *[19] * 5, *range(25, 36), *[35] * 4]


# --- sets of older versions


def without_columns(folder: Path, *columns: str) -> Path:
    manifest = pq.read_table(folder / takes.MANIFEST)
    pq.write_table(manifest.drop_columns(list(columns)), folder / takes.MANIFEST)
    (folder / digests.NAME).write_text(digests.table(folder))
    return folder


def test_a_set_without_the_newest_columns_opens_and_one_without_the_oldest_is_refused(tmp_path):
    raw = tmp_path / "raw"
    for view in (1, 2):
        video_files.write_video(raw / f"a_cam{view}.mp4", video_files.moving_square(12, 48, 64, seed=view))
    output = tmp_path / "out"
    preparation.prepare(catalog.get("folder"), raw, output, Options(), write_shards=write_here)
    whole = takes.open_prepared(output)
    pixels, split = whole.read(1, np.arange(12)), whole.splits("random").tolist()
    newest = ("source_fps", "offset_seconds", "gap_frames", "resampled", "video_tracks")
    assert set(whole.views) == {*takes.COLUMNS, *newest}
    opened = takes.open_prepared(without_columns(output, *newest))
    np.testing.assert_array_equal(opened.read(1, np.arange(12)), pixels)
    assert opened.splits("random").tolist() == split
    with pytest.raises(ValueError, match=r"older version of this program: .* lacks performance, listed_split\. Delete"):
        takes.open_prepared(without_columns(output, "listed_split", "performance"))
