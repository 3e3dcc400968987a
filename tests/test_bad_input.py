"""One bad file, archive or name never ends a preparation: it is set aside with its reason, the others are prepared."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from console.command import ExitCode
from data import catalog
from data.catalog import __main__ as catalog_command
from data.prepare import __main__ as prepare
from data.prepare import preparation, shards, workers
from data.prepare.options import Options
from data.recordings import archives
from data.store import takes
from tests import video_files

ROOT = Path(__file__).parent.parent
FRAMES = video_files.moving_square(6, 24, 32, seed=0)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return video_files.write_video(tmp_path_factory.mktemp("video") / "a.avi", FRAMES).read_bytes()


def command(folder: Path, *more: str) -> list[str]:
    return ["--dataset=folder", f"--input={folder / 'raw'}", f"--output={folder / 'out'}", "--workers=1", *more]


def quarantine(folder: Path) -> dict[str, tuple[str, str]]:
    """path -> (take, reason)."""
    with open(folder / "out" / "quarantine.csv", newline="") as file:
        return {row["path"]: (row["take"], row["reason"]) for row in csv.DictReader(file)}


def takes_of(folder: Path) -> set[str]:
    return set(takes.open_prepared(folder / "out").views["take"])


def test_what_leads_ffmpeg_elsewhere_is_set_aside_at_once(video, tmp_path):
    """Descriptions of network sessions, playlists, pipes and devices, all under the names of videos."""
    raw = tmp_path / "raw"
    raw.mkdir()
    target = video_files.write_video(tmp_path / "elsewhere.ts", FRAMES)
    os.mkfifo(tmp_path / "pipe")
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50040 RTP/AVP 96\n"
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
    texts = {
        "session": session + "a=rtpmap:96 H264/90000\n",
        "list": f"ffconcat version 1.0\nfile {target}\n",
        "piped": f"ffconcat version 1.0\nfile {tmp_path / 'pipe'}\n",
        "hls": playlist.format(target),
        "net": playlist.format("http://127.0.0.1:9/a.ts"),
    }
    for take, text in texts.items():
        (raw / f"{take}_cam1.mp4").write_text(text)
    os.mkfifo(raw / "pipe_cam1.mp4")
    (raw / "device_cam1.mp4").symlink_to("/dev/zero")
    for take in [*texts, "pipe", "device", "good"]:
        (raw / f"{take}_cam2.avi").write_bytes(video)
    (raw / "good_cam1.avi").write_bytes(video)
    done = subprocess.run(
        [sys.executable, "-m", "data.prepare", *command(tmp_path)],
        cwd=ROOT,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.PARTLY, done.stderr
    aside = quarantine(tmp_path)
    for take in texts:
        assert aside[f"{take}_cam1.mp4"][0] == take and "not a readable video" in aside[f"{take}_cam1.mp4"][1]
    assert aside["pipe_cam1.mp4"] == ("pipe", "is a pipe, not a file")
    assert aside["device_cam1.mp4"] == ("device", "is a device, not a file")
    assert "cannot be read: 2 files\n  device_cam1.mp4: is a device" in done.stdout
    assert "and 2 files not to be read" in done.stdout
    assert takes_of(tmp_path) == {"good"}


def test_names_that_are_not_utf8_are_set_aside(video, tmp_path, capsys):
    raw = os.fsencode(tmp_path / "raw")
    os.makedirs(raw + b"/caf\xe9")
    names = [b"good_cam1.avi", b"good_cam2.avi", b"caf\xe9_cam1.avi", b"caf\xe9/a_cam1.avi", b"lis\xe9z-moi.txt"]
    for name in names:
        Path(os.fsdecode(raw + b"/" + name)).write_bytes(video)
    assert prepare.main(command(tmp_path)) == ExitCode.PARTLY
    reason = "its name is not UTF-8: rename it"
    assert quarantine(tmp_path) == {r"caf\xe9/a_cam1.avi": ("", reason), r"caf\xe9_cam1.avi": (r"caf\xe9", reason)}
    assert takes_of(tmp_path) == {"good"}
    assert catalog_command.main(["folder", f"--input={tmp_path / 'raw'}"]) == ExitCode.PARTLY
    assert r"caf\xe9_cam1.avi: its name is not UTF-8" in capsys.readouterr().out


def test_damaged_files_in_a_zip_are_set_aside(video, tmp_path):
    """One take per compression method, and one each with encryption and with an unknown method."""
    (tmp_path / "raw").mkdir()
    methods = {"stored": 0, "deflate": 8}
    path = tmp_path / "raw" / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, method in methods.items():
            for camera in (1, 2, 3):
                file.writestr(f"{name}_cam{camera}.avi", video, method)
        for name in ("secret", "unknown"):
            for camera in (1, 2, 3):
                file.writestr(f"{name}_cam{camera}.avi", video, 0)
    content = bytearray(path.read_bytes())
    for name in methods:
        at = content.index(f"{name}_cam2.avi".encode())
        content[at + 100 : at + 200] = bytes(100)
    for name, field, value in (("secret", 6, 1), ("unknown", 8, 97)):  # flags, method
        member = f"{name}_cam2.avi".encode()
        for header, start in ((content.index(member) - 30, 0), (content.rindex(member) - 46, 2)):
            content[header + start + field] = value
    path.write_bytes(content)
    assert prepare.main(command(tmp_path, "--pattern=a.zip/{take}_cam{view}")) == ExitCode.PARTLY
    aside = quarantine(tmp_path)
    every = [*methods, "secret", "unknown"]
    assert aside.keys() == {f"a.zip/{name}_cam2.avi" for name in every}
    assert all("cannot be read" in reason for _, reason in aside.values())
    assert takes_of(tmp_path) == set(every)


def test_truncated_archives_are_told_all_of_them(video, tmp_path, capsys):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("S001C001P001R001A001_rgb.avi", video)
        file.writestr("S001C002P001R001A001_rgb.avi", video)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "nturgbd_rgb_s001.zip").write_bytes(packed.getvalue())
    with tarfile.open(tmp_path / "raw" / "nturgbd_rgb_s018.tgz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("x"))
    truncated = [f"nturgbd_rgb_s{setup:03}.zip" for setup in range(2, 18)]
    for name in truncated:
        (tmp_path / "raw" / name).write_bytes(packed.getvalue()[:-30])
    cut = tmp_path / "raw" / "nturgbd_rgb_s018.tgz"
    cut.write_bytes(cut.read_bytes()[:-20])
    assert catalog_command.main(["ntu60", f"--input={tmp_path / 'raw'}"]) == ExitCode.PARTLY
    told = capsys.readouterr().out
    assert "found: 2 videos of 1 takes" in told and "files that cannot be read: 17" in told
    assert all(f"  {name}: the archive" in told for name in [*truncated, cut.name])
    catalog_command.main(["ntu60", f"--input={tmp_path / 'raw'}", "--format=json"])
    assert len(json.loads(capsys.readouterr().out)["comparison"]["unreadable"]) == 17
    wanted = [argument.replace("folder", "ntu60", 1) for argument in command(tmp_path)]
    assert prepare.main(wanted) == ExitCode.PARTLY
    aside = quarantine(tmp_path)
    assert aside.keys() == {*truncated, cut.name} and all("cannot be read" in reason for _, reason in aside.values())
    assert "17 files in quarantine" in capsys.readouterr().err
    assert prepare.main([*wanted, "--max_quarantined=17"]) == ExitCode.DONE
    assert takes_of(tmp_path) == {"S001P001R001A001"}


def test_a_member_of_a_tar_archive_that_is_too_large_is_refused_alone(video, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 2**20)
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "a.tgz", "w:gz") as file:
        for name, content in (("a_cam1", bytes(2**21)), ("a_cam2", video), ("b_cam1", video), ("b_cam2", video)):
            entry = tarfile.TarInfo(f"{name}.avi")
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    with archives.Reader(tmp_path / "raw", [f"a.tgz/a_cam{camera}.avi" for camera in (1, 2)]) as reader:
        with pytest.raises(archives.BadArchive, match=r"larger than 1048576 bytes, in an archive: unpack .*a\.tgz"):
            reader.open("a.tgz/a_cam1.avi")
        assert reader.open("a.tgz/a_cam2.avi").read() == video


def test_labels_that_cannot_be_read_are_told(video, tmp_path):
    raw = tmp_path / "raw"
    (raw / "label").mkdir(parents=True)
    for name in ("A01N01-L", "A01N01-M"):
        (raw / f"{name}.avi").write_bytes(video)
    (raw / "label" / "A01N01-L.txt").write_text("1,0,5,1\n")
    with zipfile.ZipFile(raw / "label_M.zip", "w") as file:
        file.writestr("label/A01N01-M.txt", "1,0,5,1\n")
    content = bytearray((raw / "label_M.zip").read_bytes())
    content[content.index(b"1,0,5")] ^= 1
    (raw / "label_M.zip").write_bytes(content)
    assert prepare.main([argument.replace("folder", "pkummd", 1) for argument in command(tmp_path)]) == ExitCode.PARTLY
    assert "Bad CRC-32" in quarantine(tmp_path)["label_M.zip/label/A01N01-M.txt"][1]
    assert takes.open_prepared(tmp_path / "out").views["view"].tolist() == ["L"]


@pytest.mark.parametrize("crop", ["full", "motion"])
def test_a_video_that_cannot_be_converted_to_rgb_is_set_aside(video, tmp_path, crop):
    """Its header names a colour space for which FFmpeg has no conversion."""
    for name in ("a_cam1", "a_cam2", "b_cam1", "b_cam2", "b_cam3"):
        video_files.write_video(tmp_path / "raw" / f"{name}.mp4", FRAMES, colour_space=8 * (name == "b_cam2"))
    assert prepare.main(command(tmp_path, f"--crop={crop}")) == ExitCode.PARTLY
    assert quarantine(tmp_path) == {
        "b_cam2.mp4": ("b", "its frames cannot be converted to RGB: Operation not supported")
    }
    assert takes_of(tmp_path) == {"a", "b"}


def test_a_video_that_is_still_being_copied_is_set_aside_and_read_by_the_next_call(video, tmp_path):
    (tmp_path / "raw").mkdir()
    for name in ("one_cam1.avi", "one_cam2.avi", "two_cam1.avi", "two_cam2.avi"):
        (tmp_path / "raw" / name).write_bytes(video)

    def prepare_while(copied: str) -> None:
        def starting(path: str) -> None:
            if path == copied:
                (tmp_path / "raw" / path).write_bytes(video)

        def write_shards(jobs, num_files, settings, input_dir, output_dir, num_workers):
            for job in jobs:
                shards.write(job, settings, input_dir, output_dir, starting)

        preparation.prepare(
            catalog.get("folder"), tmp_path / "raw", tmp_path / "out", Options(), write_shards=write_shards
        )

    prepare_while("one_cam2.avi")
    assert takes_of(tmp_path) == {"two"}
    assert "was written to while it was read" in quarantine(tmp_path)["one_cam2.avi"][1]
    prepare_while("")
    assert takes_of(tmp_path) == {"one", "two"} and not quarantine(tmp_path)


def test_a_video_that_crashes_its_decoder_is_tried_again_then_set_aside(tmp_path):
    """SIGSEGV stands for a fault of the decoder. SIGKILL, which means lack of memory, stops the preparation instead.

    tests/test_prepare.py checks SIGKILL.
    """
    for name in ("a_cam1", "a_cam2", "b_cam1", "b_cam2"):
        video_files.write_video(tmp_path / "raw" / f"{name}.avi", np.tile(FRAMES, (150, 1, 1, 1)))
    process = subprocess.Popen(
        [sys.executable, "-m", "data.prepare", *command(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    struck: set[Path] = set()
    while process.poll() is None and len(struck) < 2:
        for path in set((tmp_path / "out").glob(".video.*.tmp")) - struck:
            try:
                if path.read_text() == "a_cam2.avi":
                    struck.add(path)
                    os.kill(int(path.name.split(".")[2]), signal.SIGSEGV)
            except FileNotFoundError:
                pass
        time.sleep(0.002)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == ExitCode.PARTLY, errors
    assert len(struck) == 2
    assert quarantine(tmp_path) == {
        "a_cam1.avi": ("a", "the only view of its take (2 files found); a pair needs two"),
        "a_cam2.avi": ("a", "crashes the decoder (SIGSEGV), twice"),
    }
    assert takes_of(tmp_path) == {"b"}
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_worker_killed_while_it_counts_does_not_stop_the_preparation(tmp_path, monkeypatch):
    """Its lock stays taken. Here a thread takes it: the counter's lock is free for the thread that has it already."""
    runs = []

    def run(jobs, num_workers, num_started, *_):
        runs.append(num_started.get_lock().acquire(timeout=5))
        num_started.get_lock().release()
        taker = threading.Thread(target=num_started.get_lock().acquire)
        taker.start()
        taker.join()
        yield None
        if len(runs) == 1:
            raise BrokenProcessPool
        yield from jobs

    monkeypatch.setattr(workers, "_run", run)
    monkeypatch.setattr(workers, "_blame", lambda *_: True)
    jobs = [type("Job", (), {"sizes": {"a.mp4": 1}})()]
    thread = threading.Thread(target=workers.write_shards, args=(jobs, 1, None, tmp_path, tmp_path, 1), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive() and runs == [True, True]
