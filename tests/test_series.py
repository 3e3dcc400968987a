"""Folders of numbered images are read as videos: NUCLA's frame release, frames of NTU, and a user's own."""

import io
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from console.command import ExitCode
from data import catalog
from data.catalog import __main__ as catalog_command
from data.prepare import __main__ as prepare
from data.recordings import raw_video, series
from data.recordings.listing import list_videos
from data.store import takes
from tests.video_files import corners_shown, time_shown, timed_frame


def images(folder: Path, numbers, name: str = "{:04}.jpg", also: str = "") -> Path:
    """Writes images that show their numbers. With `also`, writes grey images of these names beside them."""
    folder.mkdir(parents=True)
    for number in numbers:
        cv2.imwrite(str(folder / name.format(number)), timed_frame(number)[..., ::-1])
        if also:
            cv2.imwrite(str(folder / also.format(number)), np.full((96, 128), number, np.uint8))
    return folder


def run(dataset: str, folder: Path, output: Path, *more: str) -> int:
    arguments = [f"--dataset={dataset}", f"--input={folder}", f"--output={output}", "--workers=1", "--short_side=96"]
    return prepare.main([*arguments, *more])


def shown(output: Path) -> dict[tuple[str, str], list[int]]:
    prepared = takes.open_prepared(output)
    keys = zip(prepared.views["take"].tolist(), prepared.views["view"].tolist(), strict=True)
    return {
        key: [time_shown(frame) for frame in prepared.read(i, np.arange(prepared.views["num_frames"][i]))]
        for i, key in enumerate(keys)
    }


@pytest.fixture(scope="module")
def nucla(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nucla")
    for view in (1, 3):
        at = folder / "multiview_action" / f"view_{view}" / "a08_s10_e02"
        images(at, range(7, 7 + 9 * view), "frame_{}_tc_551_rgb.jpg", "frame_{}_tc_551_depth.png")
        (at / "fileList.txt").write_text("x")
    return folder


def packed(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in folder.rglob("*"):
                file.write(path, path.relative_to(folder).as_posix())
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder / "multiview_action", "multiview_action")
    return archive


@pytest.mark.parametrize("form", ["folder", "x.zip", "multiview_action.tgz"])
def test_the_frame_release_of_nucla(nucla, tmp_path, form, capsys):
    folder = nucla if form == "folder" else packed(nucla, tmp_path / "in" / form)
    assert run("nucla", folder, tmp_path / "out", "--frames_fps=15", "--sheet") == 0
    take = "a08_s10_e02"
    assert shown(tmp_path / "out") == {(take, "v01"): [*range(7, 16)], (take, "v03"): [*range(7, 34)]}
    views = takes.open_prepared(tmp_path / "out").views
    assert views["fps"].tolist() == [15.0, 15.0] and views["label"].tolist() == [6, 6]
    assert (tmp_path / "out" / "contact_sheet.png").exists()
    assert "36 .png, 2 .txt" in capsys.readouterr().out
    assert catalog_command.main(["nucla", f"--input={folder}"]) == ExitCode.DONE
    assert "found: 2 videos of 1 takes" in capsys.readouterr().out


def test_a_rate_is_asked_for(nucla):
    with pytest.raises(ValueError, match=r"frame_\*_tc_\*_rgb\.jpg' would be view v01 .* --frames_fps=RATE does"):
        list_videos(catalog.get("nucla"), nucla)


def test_ntu_frames_and_own_ones_go_through_clocks_and_patterns(tmp_path):
    for camera in (1, 2):
        images(tmp_path / "ntu" / f"S001C{camera:03}P001R001A001_rgb", range(1, 13))
    assert run("ntu60", tmp_path / "ntu", tmp_path / "out", "--frames_fps=30") == 0
    assert set(map(tuple, shown(tmp_path / "out").values())) == {tuple(range(1, 13))}
    for view, numbers in {"left": range(20), "right": [*range(10), *range(13, 20)]}.items():
        images(tmp_path / "own" / "walk" / view, numbers, "img_{}.png")
    assert run("folder", tmp_path / "own", tmp_path / "two", "--frames_fps=30", "--pattern={take}/{view}") == 0
    assert shown(tmp_path / "two")["walk", "right"] == [*range(10), 9, 9, 9, *range(13, 20)]
    assert takes.open_prepared(tmp_path / "two").views["gap_frames"].tolist() == [0, 3]
    assert run("folder", tmp_path / "own", tmp_path / "two", "--frames_fps=25", "--pattern={take}/{view}") == 2


def test_what_is_no_series_is_set_aside_with_its_reason(tmp_path):
    good = {f"{number}.jpg": cv2.imencode(".jpg", timed_frame(number))[1].tobytes() for number in range(0, 40, 2)}
    assert len(series.as_video("a/*.jpg", good, 30).getvalue()) > sum(map(len, good.values()))
    for reason, change in {
        "no whole JPEG": {"4.jpg": good["4.jpg"][:-9]},
        "0.jpg is not a readable image": {"0.jpg": b"x"},
        "4.jpg is empty": {"4.jpg": b""},
        "two of its images have the same number": {"04.jpg": good["4.jpg"]},
        "missing, more than the part 0.25: after 38 comes 90": {"90.jpg": good["4.jpg"]},
        "above the limit of 18000": {"90000.jpg": good["4.jpg"]},
    }.items():
        with pytest.raises(ValueError, match=reason):
            series.as_video("a/*.jpg", good | change, 30)
    for view, name in (("1", "{:03}.jpg"), ("2", "a{:03}.jpg")):
        images(tmp_path / "in" / "t" / view, range(8), name, also="b{:03}.png" if view == "2" else "")
    _, listing = list_videos(catalog.get("folder", pattern="{take}/{view}"), tmp_path / "in", 30.0)
    assert [video.path for video in listing.videos] == ["t/1/*.jpg"]
    assert [reason for _, reason in listing.unmatched] == [
        "'t/2' holds several series of images, a*.jpg, b*.png: keep one of them"
    ]


def test_cameras_whose_numbers_begin_apart_are_not_aligned_by_guess(tmp_path, capsys):
    """As for videos: --sync says whether the numbers are of one clock."""
    images(tmp_path / "in" / "t" / "a", range(1, 25))
    images(tmp_path / "in" / "t" / "b", range(11, 35))
    how = ["--frames_fps=30", "--pattern={take}/{view}"]
    assert run("folder", tmp_path / "in", tmp_path / "guess", *how) == ExitCode.PARTLY
    assert "stamped 0.033 s, its siblings' b 0.367 s: either they began at these times" in capsys.readouterr().out
    assert run("folder", tmp_path / "in", tmp_path / "none", *how, "--dry_run") == 0
    assert "1 of 1 takes do not begin at one time" in capsys.readouterr().out
    assert run("folder", tmp_path / "in", tmp_path / "start", *how, "--sync=start") == 0
    assert shown(tmp_path / "start") == {("t", "a"): [*range(1, 25)], ("t", "b"): [*range(11, 35)]}
    assert run("folder", tmp_path / "in", tmp_path / "numbers", *how, "--sync=timestamps") == 0
    assert shown(tmp_path / "numbers") == {("t", view): [*range(11, 25)] for view in "ab"}


def test_cameras_numbered_in_different_steps_have_no_common_rate(tmp_path, capsys):
    images(tmp_path / "in" / "t" / "a", range(0, 24))
    images(tmp_path / "in" / "t" / "b", range(0, 24, 2))
    for view in "ab":
        images(tmp_path / "in" / "both" / view, range(4, 60, 2))
    how = ["--frames_fps=30", "--pattern={take}/{view}"]
    for sync in ([], ["--sync=start"], ["--sync=timestamps"]):
        assert run("folder", tmp_path / "in", tmp_path / f"out{len(sync)}{sync}", *how, *sync) == ExitCode.PARTLY
        assert "t/b/*.jpg: its images are numbered in steps of 2, its siblings' a 1: if" in capsys.readouterr().out
    assert set(shown(tmp_path / "out0[]")) == {("both", "a"), ("both", "b")}
    by_number = ["--sync=frames", "--max_length_difference=12"]
    assert run("folder", tmp_path / "in", tmp_path / "frames", *how, *by_number) == 0


def with_orientation(number: int, orientation: int) -> bytes:
    """A JPEG file of a frame whose EXIF data say how it is to be turned, as cameras write it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(timed_frame(number)).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


# By EXIF: 1 as it is, 2 mirrored across, 3 upside down, 6 to be turned to the right, 8 to the left.
@pytest.mark.parametrize(
    ("orientation", "corners"), [(1, "RGBW"), (2, "GRWB"), (3, "WBGR"), (5, "RBGW"), (6, "BRWG"), (8, "GWRB")]
)
def test_images_are_turned_as_their_exif_data_say(orientation, corners):
    file = series.as_video("a/*.jpg", {f"{i}.jpg": with_orientation(i, orientation) for i in range(4)}, 30)
    frames = list(raw_video.frames(raw_video.open_source(file), 96))
    assert [corners_shown(frame) for frame in frames] == [corners] * 4


def test_a_series_that_is_turned_on_the_way_is_refused():
    images = {f"{i}.jpg": with_orientation(i, 1 if i < 3 else 6) for i in range(6)}
    with pytest.raises(raw_video.BadVideo, match=r"turned by 0 degrees, and by -90 from frame 3 on"):
        list(raw_video.frames(raw_video.open_source(series.as_video("a/*.jpg", images, 30)), 96))
