"""What keeps a hostile file from costing more than its share."""

import multiprocessing
import os
import tarfile
import time
import zipfile

import pytest

from data import archives, catalog, raw_video, workers
from data.listing import list_videos
from tests import video_files


@pytest.fixture
def video(tmp_path):
    return video_files.write_video(tmp_path / "a_cam1.avi", video_files.moving_square(6, 32, 48, seed=0))


def test_a_video_that_takes_too_long_is_refused(video, monkeypatch):
    clock = iter(range(0, 10_000, 1000))  # seconds of processor time: 1000 more at each look
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    with open(video, "rb") as file, pytest.raises(raw_video.BadVideo, match="frame 2 is not reached in 1800 s"):
        list(raw_video.read(file, 32)[1])


def _never_end(at_work):
    raw_video.MAX_CPU_SECONDS = 0.5 - workers._GRACE_CPU_SECONDS
    workers._start_worker(None, at_work)
    while True:  # as a decoder that never comes to the next frame
        pass


def test_a_decoder_that_never_ends_is_ended(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=_never_end, args=(tmp_path,))
    worker.start()
    worker.join(timeout=60)
    assert worker.exitcode == 1


def test_what_is_no_file_is_not_opened(video, tmp_path):
    os.mkfifo(tmp_path / "a_cam2.avi")  # reading it would wait for ever
    (tmp_path / "a_cam3.avi").symlink_to(tmp_path / "nowhere")
    _, listing = list_videos(catalog.get("folder"), tmp_path)
    assert [found.path for found in listing.videos] == ["a_cam1.avi"]


def test_playlists_open_no_other_file(video, tmp_path):
    """FFmpeg follows playlists to other files; a raw video must not."""
    target = video_files.write_video(tmp_path / "other.ts", video_files.moving_square(6, 32, 48, seed=0))
    for name, text in {
        "hls.avi": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
        "concat.avi": f"ffconcat version 1.0\nfile {target}\n",
    }.items():
        (tmp_path / name).write_text(text)
        with open(tmp_path / name, "rb") as file, pytest.raises(raw_video.BadVideo):
            list(raw_video.read(file, 32)[1])


def test_a_title_in_another_encoding_is_no_damage(tmp_path):
    """MP4 writes titles as UTF-8; a camera that wrote Latin-1 leaves bytes that are none."""
    frames = video_files.moving_square(6, 24, 32, seed=0)
    path = video_files.write_video(tmp_path / "a.mp4", frames, title="cafe_")
    content = path.read_bytes()
    assert content.count(b"cafe_") == 1
    path.write_bytes(content.replace(b"cafe_", b"caf\xe9_"))
    with open(path, "rb") as file:
        assert len(list(raw_video.read(file, 24)[1])) == 6


def test_files_in_archives_are_bounded(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.avi", bytes(10_000))
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 9_999)
    with (
        archives.Reader(tmp_path, ["a.zip/bomb.avi"]) as reader,
        pytest.raises(archives.BadArchive, match="larger than 9999 bytes, in an archive: unpack"),
    ):
        reader.open("a.zip/bomb.avi")


def test_tar_archives_are_bounded(tmp_path, monkeypatch):
    for name in ("a.avi", "b.avi"):
        (tmp_path / name).write_bytes(bytes(6_000))
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as file:
        for name in ("a.avi", "b.avi"):
            file.add(tmp_path / name, name)
    paths = ["a.tgz/a.avi", "a.tgz/b.avi"]
    with archives.Reader(tmp_path, paths) as reader:
        assert [len(reader.open(path).read()) for path in paths] == [6_000, 6_000]
    monkeypatch.setattr(archives, "MAX_TAR_BYTES_PER_SHARD", 11_999)
    with archives.Reader(tmp_path, paths) as reader, pytest.raises(OSError, match="unpack this"):
        reader.open(paths[0])
