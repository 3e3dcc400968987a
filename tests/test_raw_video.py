"""Limits on the time and memory that a hostile file may cost."""

import gzip
import multiprocessing
import os
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data import catalog
from data.prepare import workers
from data.recordings import archives, raw_video
from data.recordings.listing import list_videos
from tests import fuzz, video_files


@pytest.fixture
def video(tmp_path):
    return video_files.write_video(tmp_path / "a_cam1.avi", video_files.moving_square(6, 32, 48, seed=0))


def test_a_video_that_takes_too_long_is_refused(video, monkeypatch):
    clock = iter(range(0, 10_000, 1000))  # each call finds 1000 more seconds of processor time
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    with open(video, "rb") as file, pytest.raises(raw_video.BadVideo, match="frame 2 is not reached in 1800 s"):
        list(raw_video.frames(raw_video.open_source(file), 32))


def test_a_read_that_takes_too_long_ends(video, monkeypatch):
    """The limit holds while the container is opened, and between two frames."""
    long = video_files.write_video(
        video.with_name("long.mkv"), np.random.default_rng(0).integers(0, 256, (40, 120, 160, 3), np.uint8)
    )
    for limit in (-1, 1.5):
        clock = iter(np.arange(0, 1000, 0.1))
        monkeypatch.setattr(raw_video, "MAX_SECONDS", limit)
        monkeypatch.setattr(time, "monotonic", lambda clock=clock: next(clock))
        with open(long, "rb") as file, pytest.raises(raw_video.BadVideo, match=r"its end is not reached in .* s"):
            list(raw_video.frames(raw_video.open_source(file), 32))


def _never_end(at_work):
    raw_video.MAX_CPU_SECONDS = 0.5 - workers._GRACE_CPU_SECONDS
    workers._start_worker(None, at_work)
    while True:  # stands for a decoder that never reaches the next frame
        pass


def test_a_decoder_that_never_ends_is_ended(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=_never_end, args=(tmp_path,))
    worker.start()
    worker.join(timeout=300)
    assert worker.exitcode == 1


def _hang(at_work):
    raw_video.MAX_SECONDS = 0.5 - workers._GRACE_SECONDS
    workers._start_worker(multiprocessing.Value("q", 0), at_work)
    workers._starting("a.avi")
    time.sleep(600)  # stands for a read from a server that does not answer


def test_a_read_that_never_ends_is_ended(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=_hang, args=(tmp_path,))
    worker.start()
    worker.join(timeout=300)
    assert worker.exitcode == 1


def test_pipes_devices_and_broken_links_are_not_opened(video, tmp_path):
    os.mkfifo(tmp_path / "a_cam2.avi")  # reading it would wait for ever
    (tmp_path / "a_cam3.avi").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a_cam4.avi").symlink_to("/dev/zero")
    (tmp_path / "notes").symlink_to(tmp_path / "nowhere")  # no name of a video
    _, listing = list_videos(catalog.get("folder"), tmp_path)
    assert [found.path for found in listing.videos] == ["a_cam1.avi"]
    assert listing.files.unreadable == (
        ("a_cam2.avi", "a", "is a pipe, not a file"),
        ("a_cam3.avi", "a", "No such file or directory"),
        ("a_cam4.avi", "a", "is a device, not a file"),
    )
    # The reader refuses them, too, as they may appear after the listing.
    for name, reason in (("a_cam2.avi", "is a pipe"), ("a_cam4.avi", "is a device")):
        with archives.Reader(tmp_path, [name]) as reader, pytest.raises(archives.BadArchive, match=reason):
            reader.open(name)


def test_a_folder_that_cannot_be_listed_is_told(video, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":  # the tests may run as root, who may read every folder
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    _, listing = list_videos(catalog.get("folder"), tmp_path)
    assert listing.files.unreadable == (("closed/", "", "the folder cannot be listed: Permission denied"),)


def test_a_title_in_another_encoding_is_no_damage(tmp_path):
    """MP4 stores titles as UTF-8. A camera that writes Latin-1 leaves bytes that are no UTF-8."""
    frames = video_files.moving_square(6, 24, 32, seed=0)
    path = video_files.write_video(tmp_path / "a.mp4", frames, title="cafe_")
    content = path.read_bytes()
    assert content.count(b"cafe_") == 1
    path.write_bytes(content.replace(b"cafe_", b"caf\xe9_"))
    with open(path, "rb") as file:
        assert len(list(raw_video.frames(raw_video.open_source(file), 24))) == 6


METHODS = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED}


@pytest.mark.parametrize("method", METHODS)
def test_a_bomb_costs_no_memory_and_is_refused_above_the_limit(tmp_path, monkeypatch, method):
    monkeypatch.setattr(archives, "MAX_BYTES_IN_MEMORY", 2**20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", METHODS[method], compresslevel=9) as file:
        file.writestr("bomb.avi", bytes(2**26))
    with archives.Reader(tmp_path, ["a.zip/bomb.avi"]) as reader:
        tracemalloc.start()
        with reader.open("a.zip/bomb.avi") as bomb:
            assert bomb.seek(0, 2) == 2**26
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**25
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 2**26 - 1)
    with (
        archives.Reader(tmp_path, ["a.zip/bomb.avi"]) as reader,
        pytest.raises(archives.BadArchive, match="larger than 67108863 bytes, in an archive: unpack"),
    ):
        reader.open("a.zip/bomb.avi")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_cannot_be_bounded_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("a.avi", b"picture" * 1000)
    with (
        archives.Reader(tmp_path, ["a.zip/a.avi"]) as reader,
        pytest.raises(archives.BadArchive, match=r"unpack .*a.zip"),
    ):
        reader.open("a.zip/a.avi")


@pytest.mark.parametrize("method", METHODS)
def test_any_damage_in_a_zip_is_a_reason(tmp_path, method):
    """Any error of Python's readers and decoders becomes a BadArchive, also if the archive's directory is damaged."""
    rng, content = np.random.default_rng(0), np.random.default_rng(1).bytes(3000) + bytes(3000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", METHODS[method]) as file:
        file.writestr("a.avi", content)
    intact, refused = (tmp_path / "a.zip").read_bytes(), 0
    for _ in range(150):
        (tmp_path / "a.zip").write_bytes(fuzz.mutate(intact, rng))
        found = dict(archives.files(tmp_path))
        if isinstance(found.get("a.zip/a.avi"), int):
            with archives.Reader(tmp_path, list(found)) as reader:
                try:
                    assert reader.open("a.zip/a.avi").read() == content
                except archives.BadArchive:
                    refused += 1
        else:
            refused += 1
    assert refused > 75


def test_a_tar_archive_holds_no_name_of_gigabytes(tmp_path):
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 8 * 2**30
    with gzip.open(tmp_path / "a.tgz", "w") as file:
        file.write(entry.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    ((path, reason),) = archives.files(tmp_path)
    assert path == "a.tgz" and "it claims a name or attributes of 8589934592 bytes" in reason


def test_tar_archives_are_bounded(tmp_path, monkeypatch):
    for name in ("a.avi", "b.avi"):
        (tmp_path / name).write_bytes(bytes(6_000))
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as file:
        for name in ("a.avi", "b.avi"):
            file.add(tmp_path / name, name)
    paths = ["a.tgz/a.avi", "a.tgz/b.avi"]
    with archives.Reader(tmp_path, paths) as reader:
        assert [len(reader.open(path).read()) for path in paths] == [6_000, 6_000]
    monkeypatch.setattr(archives, "MAX_BYTES_IN_MEMORY", 6_000)
    with archives.Reader(tmp_path, paths) as reader:
        assert [len(reader.open(path).read()) for path in paths] == [6_000, 6_000]
    with archives.Reader(tmp_path, paths, max_member_bytes=5_999) as reader:
        for path in paths:
            with pytest.raises(archives.BadArchive, match="larger than 5999 bytes, in an archive: unpack"):
                reader.open(path)
    monkeypatch.setattr(archives, "MAX_TAR_BYTES_PER_SHARD", 11_999)
    with archives.Reader(tmp_path, paths) as reader:
        for path in paths:
            with pytest.raises(archives.BadArchive, match="unpack this"):
                reader.open(path)
