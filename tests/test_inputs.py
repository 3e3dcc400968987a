"""The inputs of preparation: folders and archives, one or several, and the report on their files."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

from console.command import ExitCode
from data import catalog
from data.catalog import __main__ as catalog_command
from data.catalog.__main__ import compare
from data.prepare import __main__ as prepare
from data.recordings.listing import PreparationError, list_videos
from data.store import takes
from tests import video_files

NAMES = [f"S001C{camera:03}P{subject:03}R001A001" for subject in (1, 2) for camera in (1, 2)]


@pytest.fixture(scope="module")
def ntu(tmp_path_factory) -> Path:
    """A folder `ntu` with four videos, and `ntu.zip` with the same bytes."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, name in enumerate(NAMES):
        video_files.write_video(folder / "ntu" / f"{name}.mp4", video_files.moving_square(8, 36, 64, seed=seed))
    zipped(folder / "ntu.zip", {f"nturgb/{path.name}": path.read_bytes() for path in (folder / "ntu").iterdir()})
    return folder


def zipped(archive: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return archive


def run(output: Path, *inputs: Path, name: str = "ntu60") -> int:
    arguments = [f"--dataset={name}", f"--output={output}", "--workers=1", "--short_side=32"]
    return prepare.main([*arguments, *(f"--input={path}" for path in inputs)])


def shards_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.array_record-*")}


def test_an_archive_and_several_inputs_give_the_records_of_the_folder(ntu, tmp_path, capsys):
    assert run(tmp_path / "folder", ntu / "ntu") == 0
    assert run(tmp_path / "zip", ntu / "ntu.zip") == 0
    assert run(tmp_path / "both", ntu / "ntu", ntu / "ntu.zip") == 0
    assert shards_of(tmp_path / "zip") == shards_of(tmp_path / "folder") == shards_of(tmp_path / "both")
    assert "left out, with the same bytes as a file that is used: 4 files" in capsys.readouterr().out
    with open(tmp_path / "both" / "unmatched.csv", newline="") as file:
        left_out = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert left_out[f"ntu.zip/nturgb/{NAMES[0]}.mp4"] == f"the same bytes as ntu/{NAMES[0]}.mp4, which is used"
    halves = [tmp_path / "a" / "first", tmp_path / "b" / "second"]
    for half, subject in zip(halves, ("P001", "P002"), strict=True):
        half.mkdir(parents=True)
        for path in (ntu / "ntu").glob(f"*{subject}*"):
            (half / path.name).write_bytes(path.read_bytes())
    assert run(tmp_path / "halves", *halves) == 0
    assert shards_of(tmp_path / "halves") == shards_of(tmp_path / "folder")


def test_a_zip_beside_its_unpacked_folder_is_told_by_both_commands(ntu, tmp_path, capsys):
    assert run(tmp_path, ntu) == 0
    assert "4 files" in capsys.readouterr().out
    assert catalog_command.main(["ntu60", f"--input={ntu}", "--format=json"]) == ExitCode.PARTLY
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert comparison["videos"] == 4 and not comparison["unexpected"]
    pairs = [[f"ntu.zip/nturgb/{name}.mp4", f"ntu/{name}.mp4"] for name in NAMES]
    assert sorted(comparison["duplicates"]) == sorted(pairs)


def test_patterns_begin_below_each_input(ntu, tmp_path):
    names = catalog.get("folder", pattern="{take}C{view}P{subject}R001A001")
    (ntu.parent / "more").mkdir(exist_ok=True)
    for inputs in (ntu / "ntu", [ntu / "ntu", ntu.parent / "more"]):
        _, listing = list_videos(names, inputs)
        assert len(listing.videos) == 4 and {video.view for video in listing.videos} == {"001", "002"}
    inside = catalog.get("folder", pattern="nturgb/{take}C{view}P{subject}R001A001")
    _, listing = list_videos(inside, ntu / "ntu.zip")
    assert len(listing.videos) == 4 and listing.videos[0].path.startswith("ntu.zip/nturgb/S001")


def test_labels_may_be_another_input(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "A01N01-L_color.avi").write_bytes(b"x")
    label = {"A01N01-L.txt": b"\xef\xbb\xbf1,2,10\r\n"}  # with a byte order mark, as some editors write
    archive = zipped(tmp_path / "Label_v2.zip", label)
    _, listing = list_videos(catalog.get("pkummd"), [tmp_path / "videos", archive])
    assert [video.interval for video in listing.videos] == [(2, 10)] and not listing.refused


def test_what_is_no_input_is_refused_with_advice(ntu, tmp_path):
    (tmp_path / "labels.7z").write_bytes(b"x")
    (tmp_path / "take.mp4").write_bytes(b"x")
    for inputs, reason in {
        (tmp_path / "labels.7z",): "labels.7z is not a folder: unpack it",
        (tmp_path / "take.mp4",): r"take.mp4 is not a folder, and no archive \(.zip",
        (tmp_path / "nowhere",): "nowhere is not a folder",
        (ntu, ntu / "ntu"): "ntu is given twice, or lies in another --input",
        (ntu / "ntu", ntu / "ntu"): "ntu is given twice",
    }.items():
        with pytest.raises(PreparationError, match=reason):
            list_videos(catalog.get("ntu60"), list(inputs))


@pytest.mark.parametrize(
    "packed", ["Label_PKUMMD.7z", "label.rar", "label.tar.xz", "label.7z.001", "label.z01", "x.zip/label.zip"]
)
def test_packed_labels_are_named(packed, tmp_path):
    (tmp_path / "A01N01-L.avi").write_bytes(b"x")
    if packed.startswith("x.zip/"):
        zipped(tmp_path / "x.zip", {"label.zip": b"x"})
    else:
        (tmp_path / packed).write_bytes(b"x")
    with pytest.raises(PreparationError, match=f"{packed}' is an archive that is not read: unpack it"):
        list_videos(catalog.get("pkummd"), tmp_path)
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "A01N02-L.txt").write_text("1,2,3,1\n")
    (tmp_path / "A01N02-L.avi").write_bytes(b"x")
    _, listing = list_videos(catalog.get("pkummd"), tmp_path)
    ((path, take, reason),) = listing.refused
    assert (path, take) == ("A01N01-L.avi", "A01N01") and f"({packed} is not read: unpack it)" in reason


def test_everything_is_counted(tmp_path, capsys):
    """Each file and each row of labels is used, listed with its reason, or counted."""
    files = {
        "A01N01-L_color.avi": b"x",
        "A01N01_color.avi": b"x",
        "notes.txt": b"x",
        "depth/a.png": b"x",
        "LICENSE": b"",
    }
    rows = "1,2,10\n2,30,20,1\n3,5,5,1\n26,1,4,2\nnonsense\n4,1,9,2\n"
    files |= {"label/A01N01-L.txt": rows.encode(), "label/A02N01-L.txt": b"1,2,10,1\n", "b.png": b""}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    _, listing = list_videos(catalog.get("pkummd"), tmp_path)
    assert len(listing.videos) + len(listing.refused) == 6 and len(listing.refused) == 3 and len(listing.changed) == 2
    assert listing.files.passed_over == {".txt": 1, ".png": 2, "without ending": 1}
    assert [path for path, _ in listing.unmatched] == ["A01N01_color.avi", "A02N01-L.txt"]
    _, comparison = compare(catalog.get("pkummd"), tmp_path)
    assert comparison.labelled == 3 and len(comparison.labels_refused) == 3 and len(comparison.labels_changed) == 2
    assert catalog_command.main(["pkummd", f"--input={tmp_path}"]) == ExitCode.PARTLY
    said = capsys.readouterr().out
    assert "labelled actions in these videos: 3" in said and "labels that cannot be used: 3" in said
    assert "passed over, as neither videos nor labels: 4 files (2 .png, 1 .txt, 1 without ending)" in said
    assert "missing files: 1008\n  subject 1: 76 of 77\n  subject 2: 78 of 78\n" in said


def test_missing_files_are_summarised_by_setup_before_they_are_named(ntu, capsys):
    catalog_command.main(["ntu60", f"--input={ntu / 'ntu'}"])
    said = capsys.readouterr().out
    assert "missing files: 56876\n  setup 1: 2876 of 2880\n  setup 2: 3240 of 3240\n" in said
    assert said.index("setup 17: 2880 of 2880") < said.index("S001C003P001R001A001_rgb.avi")
    catalog_command.main(["ntu60", f"--input={ntu / 'ntu'}", "--format=json"])
    said = capsys.readouterr().out
    assert said.index('"setup 17": "2880 of 2880"') < said.index("S001C003P001R001A001_rgb.avi")


def test_cropped_rocog_zips_beside_uncropped_ones(tmp_path):
    stem = "Halt/S04b_10m_ground_label5_start775.mp4"
    zipped(tmp_path / "real_ground.zip", {f"ground/{stem}": b"cropped"})
    zipped(tmp_path / "real_uncropped.zip", {f"real/ground/{stem}": b"all of it"})
    _, listing = list_videos(catalog.get("rocog"), tmp_path)
    assert [video.path for video in listing.videos] == [f"real_ground.zip/ground/{stem}"]
    ((path, reason),) = listing.unmatched
    assert path == f"real_uncropped.zip/real/ground/{stem}" and "cropped real videos are there, too" in reason
    _, listing = list_videos(catalog.get("rocog"), tmp_path / "real_uncropped.zip")
    assert len(listing.videos) == 1


def test_a_prepared_set_counts_what_was_left(ntu, tmp_path):
    run(tmp_path, ntu)
    counts = json.loads((tmp_path / "prepared.json").read_text())["counts"]
    assert (counts["videos"], counts["duplicates"], counts["passed_over"]) == (4, 4, {})
    assert len(takes.open_prepared(tmp_path).views["take"]) == 4
