"""Preparation writes the same bytes after any interruption, and sets bad videos aside with a reason."""

import collections
import csv
import fcntl
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from console.command import ExitCode
from data import catalog
from data.prepare import __main__ as prepare
from data.prepare import estimate, metadata, tables
from data.recordings import raw_video
from data.recordings.listing import PreparationError, list_videos
from data.store import frame_index, takes
from tests import video_files

ROOT = Path(__file__).parent.parent
PATTERN = "{take}_cam{view}"


def write_takes(folder: Path, num_takes: int, num_frames: int = 12) -> Path:
    """Two views per take, of three codecs and containers in turn."""
    kinds = [("libx264", "avi"), ("libx264", "mp4"), ("mjpeg", "mov")]
    for take in range(num_takes):
        for view in range(2):
            codec, extension = kinds[(take + view) % 3]
            frames = video_files.moving_square(num_frames, 48, 64, seed=10 * take + view)
            video_files.write_video(folder / f"t{take:02}_cam{view}.{extension}", frames, codec=codec)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def arguments(raw: Path, output: Path, *more: str) -> list[str]:
    workers = [] if any(option.startswith("--workers=") for option in more) else ["--workers=1"]
    return ["--dataset=folder", f"--input={raw}", f"--output={output}", "--short_side=32", *workers, *more]


def start(raw: Path, output: Path, *more: str, **options) -> subprocess.Popen:
    """Starts a preparation in a process of its own, as a user does."""
    command = [sys.executable, "-m", "data.prepare", *arguments(raw, output, *more)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_takes(tmp_path_factory.mktemp("raw"), num_takes=18)


@pytest.fixture(scope="module")
def uninterrupted(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared")
    assert prepare.main(arguments(raw, output)) == 0
    return output


def test_two_workers_write_the_same_bytes_as_one(raw, uninterrupted, tmp_path):
    assert prepare.main(arguments(raw, tmp_path, "--workers=2")) == 0
    assert files_of(tmp_path) == files_of(uninterrupted)
    assert not any("/." in name and name.endswith(".tmp") for name in files_of(tmp_path))


@pytest.mark.parametrize("num_finished", [0, 4])
def test_killed_and_started_again_it_writes_the_same_bytes(raw, uninterrupted, tmp_path, num_finished):
    process = start(raw, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("parts/*.json"))) >= num_finished and list(tmp_path.glob(".video.*.tmp")))
    workers = [pid for pid in children(process.pid) if "spawn_main" in command_of(pid)]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert workers
    wait_for(lambda: not any("spawn_main" in command_of(pid) for pid in workers))  # the workers end with their parent
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("parts/*.json")}
    assert num_finished <= len(finished) < 9
    assert not (tmp_path / "prepared.json").exists()
    with pytest.raises(ValueError, match=r"not finished: continue with `python -m data\.prepare"):
        takes.open_prepared(tmp_path)
    assert prepare.main(arguments(raw, tmp_path)) == 0
    assert files_of(tmp_path) == files_of(uninterrupted)
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())  # not done again


def test_ctrl_c_while_workers_start_is_told_in_one_line(raw, uninterrupted, tmp_path):
    """A terminal sends the signal to the workers, too."""
    process = start(
        raw,
        tmp_path,
        "--workers=2",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # the tests may ignore it
    )
    wait_for(lambda: [pid for pid in children(process.pid) if "spawn_main" in command_of(pid)])
    time.sleep(0.2)  # until they import
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == ExitCode.INTERRUPTED
    assert errors == "python -m data.prepare: interrupted. The same command continues from what is saved.\n"
    assert prepare.main(arguments(raw, tmp_path)) == 0
    assert files_of(tmp_path) == files_of(uninterrupted)


def test_a_killed_worker_is_told_with_the_video_it_read(tmp_path):
    raw_dir = write_takes(tmp_path / "raw", num_takes=2, num_frames=400)
    output = tmp_path / "prepared"
    process = start(raw_dir, output)
    at_work: list[Path] = []
    wait_for(lambda: at_work.extend(output.glob(".video.*.tmp")) or at_work)
    os.kill(int(at_work[0].name.split(".")[2]), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == ExitCode.REFUSED
    assert re.search(r"a worker process was killed.*t0\d_cam\d\.(avi|mp4|mov).*the same command continues", errors)
    assert prepare.main(arguments(raw_dir, output)) == 0


def test_a_full_disk_stops_it_and_it_goes_on_later(raw, uninterrupted, tmp_path):
    def limit_file_size():  # beyond this size the kernel refuses to write, as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = start(raw, tmp_path, preexec_fn=limit_file_size)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == ExitCode.REFUSED
    assert "cannot write to" in errors and "File too large" in errors and "the same command continues" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "prepared.json").exists()
    assert prepare.main(arguments(raw, tmp_path)) == 0
    assert files_of(tmp_path) == files_of(uninterrupted)


def test_only_the_shard_of_a_changed_video_is_made_again(raw, tmp_path):
    mine = tmp_path / "raw"
    mine.mkdir()
    for path in raw.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    broken = mine / "t03_cam1.mp4"
    assert broken.exists()
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    output = tmp_path / "prepared"
    assert prepare.main(arguments(mine, output)) == ExitCode.PARTLY
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.array_record-*")}
    assert "t03" not in takes.open_prepared(output).views["take"]
    broken.write_bytes(good)
    assert prepare.main(arguments(mine, output)) == 0
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.array_record-*")}
    assert sum(before[name] != after[name] for name in before) == 1
    assert "t03" in takes.open_prepared(output).views["take"]


# --- bad videos


@pytest.fixture(scope="module")
def with_bad_videos(tmp_path_factory):
    """(folder, expected reason by file): takes of three cameras, one or more of them bad."""
    folder, expected = tmp_path_factory.mktemp("bad"), {}
    frames = video_files.moving_square(24, 48, 64, seed=1)

    def add(take: str, reason: str, extension: str = "avi", codec: str = "libx264", damage=None, bad=frames, **options):
        for view in range(2):
            video_files.write_video(folder / f"{take}_cam{view}.avi", frames)
        path = video_files.write_video(folder / f"{take}_cam2.{extension}", bad, codec=codec, **options)
        if damage:
            damage(path)
        expected[path.name] = reason

    def cut(part: float):
        return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])

    def scramble(path: Path) -> None:
        data = bytearray(path.read_bytes())
        middle = data.index(b"movi") + len(data) // 4
        data[middle : middle + 400] = bytes(range(200)) * 2
        path.write_bytes(data)

    add("empty", "empty file", damage=lambda path: path.write_bytes(b""))
    add("text", "not a readable video", damage=lambda path: path.write_text("this is no video\n" * 100))
    add("sound", "no video in the file, or its index is lost", damage=video_files.write_sound)
    add("cut_avi", r"truncated: \d+ frames of the 24|frame \d+ is damaged", damage=cut(0.8), codec="mpeg4")
    add("cut_mp4", "its index is lost|not a readable video", "mp4", damage=cut(0.8))
    add("cut_mkv", r"truncated: ends after 0\.\d+ s of the 0\.80 s", "mkv", damage=cut(0.5))
    add("scrambled", r"frame \d+ is damaged|cannot be decoded after \d+ frames", damage=scramble)
    add("claims", "truncated: 24 frames of the 30", damage=lambda path: video_files.claim_in_avi(path, num_frames=30))
    add("endless", "claims 1000000000 frames", damage=lambda path: video_files.claim_in_avi(path, num_frames=10**9))
    gigapixel = {"damage": lambda path: video_files.claim_in_avi(path, size=(40_000, 30_000)), "codec": "ffv1"}
    add("gigapixel", "above the limit of 33177600 pixels", **gigapixel)
    add("longer", "60 frames, its siblings 0 24, 1 24: more than 20 apart", bad=np.tile(frames, (3, 1, 1, 1))[:60])
    for view, num_frames in enumerate((10, 50)):  # the two differ, and neither is known to be right
        name = f"torn_cam{view}.avi"
        video_files.write_video(folder / name, video_files.moving_square(num_frames, 48, 64, seed=view))
        expected[name] = f"{num_frames} frames, its siblings {1 - view} {60 - num_frames}"
    expected["alone_cam0.avi"] = "the only view of its take"
    video_files.write_video(folder / "alone_cam0.avi", frames)
    expected["widow_cam0.avi"], expected["widow_cam1.avi"] = "the only view of its take", "empty file"
    video_files.write_video(folder / "widow_cam0.avi", frames)
    (folder / "widow_cam1.avi").write_bytes(b"")
    (folder / "notes.avi").write_bytes(b"not of the pattern")
    return folder, expected


@pytest.fixture(scope="module")
def prepared_with_bad_videos(with_bad_videos, tmp_path_factory):
    folder, _ = with_bad_videos
    output = tmp_path_factory.mktemp("prepared_bad")
    code = prepare.main(arguments(folder, output))
    return output, code


def test_bad_videos_are_set_aside_with_their_reason(with_bad_videos, prepared_with_bad_videos):
    (folder, expected), (output, code) = with_bad_videos, prepared_with_bad_videos
    with open(output / "quarantine.csv", newline="") as file:
        aside = {row["path"]: row for row in csv.DictReader(file)}
    assert aside.keys() == expected.keys()
    for path, reason in expected.items():
        assert re.search(reason, aside[path]["reason"]), (path, aside[path]["reason"])
        assert aside[path]["take"] == path.partition("_cam")[0]
    assert code == ExitCode.PARTLY

    views = takes.open_prepared(output).views
    kept = {f"{take}_cam{view}" for take, view in zip(views["take"], views["view"], strict=True)}
    assert kept == {path.stem for path in folder.iterdir() if path.name not in expected and path.stem != "notes"}
    counts = json.loads((output / "prepared.json").read_text())["counts"]
    assert counts["videos_in"] == counts["videos"] + counts["quarantined"]
    assert (counts["quarantined"], counts["unmatched"]) == (len(expected), 1)


def test_a_file_of_the_same_size_with_other_pictures_is_prepared_anew(tmp_path, capsys):
    for take in range(3):
        for view in range(2):
            frames = video_files.moving_square(6, 48, 64, seed=2 * take + view)
            video_files.write_video(tmp_path / "raw" / f"t{take}_cam{view}.avi", frames, codec="rawvideo")
    output, replaced = tmp_path / "out", tmp_path / "raw" / "t1_cam1.avi"
    again = arguments(tmp_path / "raw", output)
    assert prepare.main(again) == 0
    before, size = files_of(output), replaced.stat().st_size
    for path in (tmp_path / "raw").iterdir():
        os.utime(path, (1, 1))  # as after a copy of the folder
    capsys.readouterr()
    assert prepare.main(again) == 0
    assert files_of(output) == before and "anew" not in capsys.readouterr().out
    video_files.write_video(replaced, video_files.moving_square(6, 48, 64, seed=40), codec="rawvideo")
    assert replaced.stat().st_size == size
    assert prepare.main(again) == 0
    assert "changed since they were prepared, so prepared anew: 1 file\n  t1_cam1.avi\n" in capsys.readouterr().out
    changed = {name for name, content in files_of(output).items() if before.get(name) != content}
    assert [name for name in changed if ".array_record-" in name] == ["folder-takes.array_record-00001-of-00003"]
    assert metadata.verify(output) == []
    assert prepare.main(arguments(tmp_path / "raw", tmp_path / "other")) == 0
    assert takes_of(output) == takes_of(tmp_path / "other")


def takes_of(output: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(output.glob("*.array_record-*"))]


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    """Spreadsheets execute cells that begin with such characters. Without its first `'`, a cell is the name again."""
    names = [
        "=1+1.mp4",
        "+cmd|' /C calc'!A0",
        "-2",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "'quoted",
        "a=1, b",
        'plain "x"',
        "",
        "é",
    ]
    metadata._write_table("table.csv", ("path", "reason"), [{"path": n, "reason": n} for n in names], tmp_path)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, row in zip(names, rows, strict=True):
        assert row["path"] == row["reason"] and not row["path"].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row["path"].removeprefix("'") == name
    assert len(rows) == len(names) and rows[7]["path"] == names[7], "other names stay as they are"
    tables.write(text := io.StringIO(), ("count", "none"), [{"count": -2, "none": None}])
    assert text.getvalue() == "count,none\n-2,\n"


def test_the_report_and_the_exit_code_follow_max_quarantined(with_bad_videos, prepared_with_bad_videos, capsys):
    (folder, expected), (output, _) = with_bad_videos, prepared_with_bad_videos
    assert prepare.main(arguments(folder, output, f"--max_quarantined={len(expected)}")) == 0
    report = capsys.readouterr().out
    assert f"aside: {len(expected)} videos, listed with reasons in {output / 'quarantine.csv'}" in report
    assert "'notes.avi' does not match the pattern" in report
    assert prepare.main(arguments(folder, output, f"--max_quarantined={len(expected) - 1}")) == ExitCode.PARTLY


def test_a_larger_tolerance_keeps_views_of_other_lengths(with_bad_videos, tmp_path):
    folder, _ = with_bad_videos
    few = tmp_path / "raw"
    few.mkdir()
    for path in folder.glob("longer_cam*"):
        (few / path.name).write_bytes(path.read_bytes())
    assert prepare.main(arguments(few, tmp_path / "prepared", "--max_length_difference=36")) == 0
    assert sorted(takes.open_prepared(tmp_path / "prepared").views["num_frames"]) == [24, 24, 24]  # the common time
    assert prepare.main(arguments(few, tmp_path / "by_number", "--sync=frames", "--max_length_difference=36")) == 0
    assert sorted(takes.open_prepared(tmp_path / "by_number").views["num_frames"]) == [24, 24, 60]


def test_a_video_that_changes_its_size_is_refused(tmp_path):
    small, large = (video_files.moving_square(8, height, 64, seed=0) for height in (48, 96))
    paths = [video_files.write_video(tmp_path / f"{i}.ts", f, container="mpegts") for i, f in enumerate((small, large))]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(path.read_bytes() for path in paths))
    with (
        open(both, "rb") as file,
        pytest.raises(raw_video.BadVideo, match=r"size changes from 64x48 to 64x96 at frame \d"),
    ):
        list(raw_video.frames(raw_video.open_source(file), 32))


# --- refusals


@pytest.mark.parametrize("other", [b"y", b"xy"])
def test_two_different_files_for_one_view_are_refused_by_name(other, tmp_path):
    for name, content in {"a_cam1.avi": b"x", "a_cam1.mp4": other, "a_cam2.avi": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PreparationError, match=r"a_cam1\.avi and a_cam1\.mp4.*, or tell them apart by --pattern"):
        list_videos(catalog.get("folder", pattern=PATTERN), tmp_path)
    for name, content in {"S001C001P001R001A001_rgb.avi": b"x", "s001c001p001r001a001.mp4": other}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PreparationError, match=r"S001C001.*s001c001p001r001a001\.mp4") as refused:
        list_videos(catalog.get("ntu60"), tmp_path)
    assert "--pattern" not in str(refused.value), "ntu60 takes no pattern"


def test_an_input_without_videos_tells_what_it_found(tmp_path):
    (tmp_path / "holiday.avi").write_bytes(b"x")
    with pytest.raises(PreparationError, match=r"no video of ntu60 .*'holiday\.avi' is not of the form"):
        list_videos(catalog.get("ntu60"), tmp_path)
    with pytest.raises(PreparationError, match="is not a folder"):
        list_videos(catalog.get("ntu60"), tmp_path / "nowhere")


def test_listing_follows_links_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "raw" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "a_cam1.avi").write_bytes(b"x")
    (tmp_path / "raw" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "sub" / "loop").symlink_to(tmp_path / "raw")
    _, listing = list_videos(catalog.get("folder", pattern="link/{take}_cam{view}"), tmp_path / "raw")
    assert [video.path for video in listing.videos] == ["link/a_cam1.avi"]
    assert not listing.unmatched


def test_other_settings_or_other_takes_in_the_same_output_are_refused(raw, uninterrupted, tmp_path, capsys):
    before = files_of(uninterrupted)
    assert prepare.main([*arguments(raw, uninterrupted), "--quality=80"]) == ExitCode.REFUSED
    assert "other settings: quality was 90, now 80" in capsys.readouterr().err
    assert prepare.main([*arguments(raw, uninterrupted), "--sync=start"]) == ExitCode.REFUSED
    assert re.search(r"clock \(--sync, --fps\) was .*'alike'.*, now .*'start'", capsys.readouterr().err)
    other = write_takes(tmp_path / "other", num_takes=1)
    assert prepare.main(arguments(other, uninterrupted)) == ExitCode.REFUSED
    assert "other takes: 0 are new, 17 gone (t01" in capsys.readouterr().err
    assert files_of(uninterrupted) == before


def test_a_second_preparation_of_the_same_output_is_refused(raw, uninterrupted, capsys):
    with open(uninterrupted / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prepare.main(arguments(raw, uninterrupted)) == ExitCode.REFUSED
    assert "another preparation is at work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--dataset=ntu6", "--input=a", "--output=b"], "Did you mean ntu60"),
        (["--dataset=ntu60", "--output=b"], "needs --input"),
        (["--dataset=ntu60", "--input=a", "--input=b", "--output=./b"], "--output is the folder of the videos"),
        (["--dataset=ntu60", "--input=a", "--output=b", "--quality=101"], "101 is not 1 to 100"),
        (["--dataset=ntu60", "--input=a", "--output=b", "--short_side=0"], "0 is not 1 or more"),
        (["--dataset=ntu60", "--input=a", "--output=b", "--pattern={take}{view}"], "--pattern is for folder"),
        (["--dataset=ntu60", "--input=a", "--output=b", "--num_classes=51"], "--num_classes is for pkummd"),
        (["--dataset=pkummd", "--input=a", "--output=b", "--num_classes=50"], "41 (those that occur in phase 2) or 51"),
        (["--dataset=folder", "--input=a", "--output=b", "--pattern={take}"], "lacks {view}"),
    ],
)
def test_wrong_arguments_end_with_code_2(wrong, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare.main(wrong)
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_dry_run_writes_nothing(raw, tmp_path, capsys):
    assert prepare.main([*arguments(raw, tmp_path / "out"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "36 videos of 18 takes" in said and "into 9 shards" in said and "18 takes with 2 views" in said
    assert not (tmp_path / "out").exists()


def test_size_and_time_are_told_beforehand(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    wanted = arguments(raw, tmp_path, "--quality=95")  # makes 0.30 MB, which is reported as 0.3
    assert prepare.main(wanted) == 0
    said = capsys.readouterr().out
    told = re.search(r"expected, from 5 files of 36: ([\d.]+) MB", said)
    assert said.index("expected") < said.index("out: ")
    assert "warning: only 0 MB are free" in said
    stored = sum(np.load(tmp_path / frame_index.NAME)["num_bytes"]) / 1e6
    assert float(told[1]) == pytest.approx(stored, abs=0.05)  # an estimate from a sample, reported to 0.1 MB
    assert prepare.main(wanted) == 0
    assert "expected" not in capsys.readouterr().out  # nothing is left to do


def test_the_expected_size_is_not_that_of_one_camera(tmp_path, monkeypatch):
    video = collections.namedtuple("video", "path megabytes")
    videos = [video(f"{take:02}_{camera}", camera) for take in range(64) for camera in (1, 2, 3)]  # 192: every 24th
    for each in videos:
        (tmp_path / each.path).touch()
    job = types.SimpleNamespace(videos=videos, num_bytes=[10**6] * len(videos), boxes_given={})
    settings = types.SimpleNamespace(short_side=32, encode=None, crop=None, frames_fps=None)

    def encode_file(of_file, *_):
        frame = range(of_file[0].megabytes * 10**6)  # of which only the length is asked
        return None, {each: types.SimpleNamespace(frames=[frame]) for each in of_file}

    monkeypatch.setattr(estimate.encoding, "encode_file", encode_file)
    (told,) = estimate.expected([job], settings, tmp_path, tmp_path, 1)
    size, low, high = map(float, re.search(r"([\d.]+) MB \(([\d.]+) to ([\d.]+) if all", told).groups())
    assert (low, high) == (192, 576) and 0.75 * 384 < size < 1.25 * 384


# --- what is written


def test_any_flipped_bit_is_found(uninterrupted, tmp_path):
    for name, content in files_of(uninterrupted).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert prepare.main(["--verify", f"--output={tmp_path}"]) == 0
    rng = np.random.default_rng(0)
    for name in [name for name in files_of(tmp_path) if name != ".lock"]:
        path = tmp_path / name
        content = path.read_bytes()
        for position in rng.integers(0, len(content), 3):
            flipped = bytearray(content)
            flipped[position] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            assert prepare.main(["--verify", f"--output={tmp_path}"]) == ExitCode.FAILED, (name, position)
        path.write_bytes(content)
    assert prepare.main(["--verify", f"--output={tmp_path}"]) == 0


def test_damage_in_a_shard_names_the_takes_and_is_repaired(raw, uninterrupted, tmp_path, capsys):
    for name, content in files_of(uninterrupted).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    prepared = takes.open_prepared(tmp_path)
    shard = next(tmp_path.glob("*-00002-of-*"))
    content = bytearray(shard.read_bytes())
    content[content.index(b"t05") - 1000] ^= 1  # a byte of the frames, which come before the names
    shard.write_bytes(content)
    assert prepare.main(["--verify", f"--output={tmp_path}"]) == ExitCode.FAILED
    assert f"{shard.name}: damaged; takes t05\n" in capsys.readouterr().out
    (record,) = np.flatnonzero((prepared.views["take"] == "t05") & (prepared.views["view"] == "0"))
    with pytest.raises(ValueError, match=r"take t05, view 0\) is damaged"):
        prepared.read(int(record), np.arange(prepared.views["num_frames"][record]))
    shard.unlink()
    assert prepare.main(arguments(raw, tmp_path)) == 0
    assert files_of(tmp_path) == files_of(uninterrupted)


@pytest.mark.parametrize("name", ["00002-of-00009.json", "00002-of-00009.frames.npy"])
def test_damaged_accounts_of_a_shard_are_not_trusted(raw, uninterrupted, tmp_path, name):
    for path, content in files_of(uninterrupted).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    part = tmp_path / "parts" / name
    content, rng = part.read_bytes(), np.random.default_rng(0)
    for _ in range(3):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        part.write_bytes(changed)
        assert prepare.main(arguments(raw, tmp_path)) == 0
        assert files_of(tmp_path) == files_of(uninterrupted)


def test_a_set_without_a_take_is_refused_in_words(tmp_path):
    for view in range(2):
        path = video_files.write_video(tmp_path / "raw" / f"a_cam{view}.avi", video_files.moving_square(4, 24, 32, 0))
        path.write_bytes(b"no video")
    assert prepare.main(arguments(tmp_path / "raw", tmp_path / "out")) == ExitCode.PARTLY
    with pytest.raises(
        ValueError, match=r"holds no takes: all videos were left out .*quarantine\.csv says why of each"
    ):
        takes.open_prepared(tmp_path / "out")


def test_tfds_reads_the_prepared_set(uninterrupted):
    source = tfds.builder_from_directory(uninterrupted).as_data_source("takes")
    prepared = takes.open_prepared(uninterrupted)
    assert len(source) == len(prepared.views["record"]) == 36
    for record in (0, 17, 35):
        example = source[record]
        assert example["take"].decode() == prepared.views["take"][record]
        assert example["view"].decode() == prepared.views["view"][record]
        assert len(example["frames"]) == prepared.views["num_frames"][record]


def test_sha256sum_agrees(uninterrupted):
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=uninterrupted, check=True)
