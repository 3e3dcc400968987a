"""Every data set of the paper in miniature, with its real file names and codecs: prepared, split, read in batches."""

import csv
import io
import itertools
import json
import pickle
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs import finetune_base, pretrain_base
from console.command import ExitCode
from data import catalog, pipeline
from data.catalog import __main__ as catalog_command
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.prepare import __main__ as prepare
from data.store import takes
from tests import video_files

H264, MPEG4 = "libx264", "mpeg4"
# Four videos that differ in colour.
FRAMES = [video_files.moving_square(12, 36, 64, seed=seed) for seed in range(4)]


def write(folder: Path, names: list[str], codec: str, frames: list[np.ndarray] = FRAMES) -> Path:
    for index, name in enumerate(names):
        video_files.write_video(folder / name, frames[index % len(frames)], codec=codec)
    return folder


def run(name: str, folder: Path, output: Path, *more: str) -> int:
    arguments = [f"--dataset={name}", f"--input={folder}", f"--output={output}", "--short_side=32", "--workers=1"]
    return prepare.main([*arguments, *more])


def batch_of(output: Path, protocol: str, num_source_views: int) -> pipeline.Batch:
    config = pretrain_base.get_config()
    config.model.tubelet_size = (2, 8, 8)
    config.data.update(
        dict(dir=str(output), protocol=protocol, num_source_views=num_source_views, holdout_fraction=0.0)
        | dict(num_frames=4, frame_stride=2, crop_size=(32, 32), num_workers=0)
    )
    dataset = Dataset.from_config(config)
    return next(pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=2))


def quarantine_of(output: Path) -> dict[str, str]:
    with open(output / "quarantine.csv", newline="") as file:
        return {row["take"]: row["reason"] for row in csv.DictReader(file)}


def ntu_names(subjects: tuple[int, ...], setups=("S001",), cameras=(1, 2, 3), actions=(1,)) -> list[str]:
    every = itertools.product(setups, cameras, subjects, actions)
    return [f"nturgb+d_rgb/{s}C{c:03}P{p:03}R001A{a:03}_rgb.avi" for s, c, p, a in every]


MINIATURES = {
    # name: (raw files, codec, protocol -> videos for (training, testing), views of a sample)
    "ntu60": (ntu_names((1, 3), actions=(1, 2)), H264, {"xsub": (6, 6), "xview": (8, 4)}, 2),
    "ntu120": (
        ntu_names((8, 41), ("S018",), actions=(61,)) + ntu_names((46, 8), ("S019",), actions=(62,)),
        H264,
        {"xsub": (9, 3), "xset": (6, 6)},  # performer 41 alone is for testing
        2,
    ),
    "etri": (
        # one take with all eight cameras, one with a single stand (A49), one of a test person with four cameras (A10)
        [f"P001-P010/P001/A001_P001_G001_C{c:03}.mp4" for c in range(1, 9)]
        + [f"P051-P060/P052/A049_P052_G002_C{c:03}.mp4" for c in (5, 6)]
        + [f"P001-P010/P003/A010_P003_G001_C{c:03}.mp4" for c in (1, 2, 3, 4)],
        H264,
        {"xsub": (10, 4), "elderly": (8, 4), "adults": (2, 0), "adults_to_elderly": (2, 4)},
        2,
    ),
    "nucla": (
        [
            f"multiview_action_videos/a{a:02}/v{v:02}_s{s:02}_e03.avi"
            for a in (1, 12)
            for v in (1, 2, 3)
            for s in (1, 10)
        ],
        MPEG4,
        {"xview": (8, 4), "xview_132": (8, 4), "xview_231": (8, 4), "xsub": (6, 6)},
        1,
    ),
    "rocog": (
        [
            "real/ground/Halt/S04b_10m_ground_label5_start775.mp4",
            "real/ground/MoveInReverse/S05_10m_ground_3_label7_start3589.mp4",
            "real/ground/Advance/S05_10m_ground_3_label1_start100.mp4",
            "real/air/Rally/S00_30m_hover_label3_start3962.mp4",
            "real/air/Rally/S10_15m_hover_label3_start6561.mp4",
            "syn/air/Halt/Scene37_360_Halt_26_8_2022_4_58_18.mp4",
            "syn/air/Advance/Scene15_637_S01_Advance_R02_01_23_8_2022_10_34_9.mp4",
        ],
        H264,
        {"ground": (2, 1), "air": (1, 1), "synthetic": (1, 1), "synthetic_to_air": (1, 1)},
        1,
    ),
}
ROCOG_LISTS = {
    "syn_air_train.txt": "syn/air/Halt/Scene37_360_Halt_26_8_2022_4_58_18.mp4 4\n",
    "syn_air_val.txt": "syn/air/Advance/Scene15_637_S01_Advance_R02_01_23_8_2022_10_34_9.mp4 0\n",
}


@pytest.fixture(scope="module", params=MINIATURES)
def miniature(request, tmp_path_factory):
    name = request.param
    paths, codec, splits, num_views = MINIATURES[name]
    folder, output = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    write(folder, paths, codec)
    if name == "rocog":
        (folder / "annotations").mkdir()
        for list_name, text in ROCOG_LISTS.items():
            (folder / "annotations" / list_name).write_text(text)
    assert run(name, folder, output) == 0
    return name, folder, output, splits, num_views


def test_splits_are_the_official_ones(miniature):
    name, folder, output, splits, _ = miniature
    prepared = takes.open_prepared(output)
    assert prepared.class_names == catalog.get(name).class_names
    assert prepared.not_synchronised == catalog.get(name).not_synchronised
    assert len(prepared.views["take"]) == sum(path.suffix in (".avi", ".mp4") for path in folder.rglob("*"))
    for protocol, (train, test) in splits.items():
        found = Counter(prepared.splits(protocol).tolist())
        assert (found["train"], found["test"]) == (train, test), protocol


def test_a_batch_holds_what_the_files_show(miniature):
    name, folder, output, splits, num_views = miniature
    prepared = takes.open_prepared(output)
    protocol = next(iter(splits))
    batch = batch_of(output, protocol, num_source_views=num_views - 1)
    assert batch["video"].shape == (2, num_views, 4, 32, 32, 3)
    train_labels = set(prepared.views["label"][prepared.splits(protocol) == "train"].tolist())
    assert set(batch["label"].tolist()) <= train_labels
    # The first record is compared with its file, which PyAV decodes here.
    take, view = prepared.views["take"][0], prepared.views["view"][0]
    names = catalog.get(name)
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in names.extensions]
    (path,) = [path for path in paths if (names.parse(path).take, names.parse(path).view) == (take, view)]
    raw = video_files.decode(folder / path)
    read = prepared.read(0, np.arange(len(raw)))
    np.testing.assert_allclose(read.mean(axis=(1, 2)), raw.mean(axis=(1, 2)), atol=3)  # colours of every frame


@pytest.mark.parametrize("name", ["folder", "etri", "nucla", "ntu60"])
def test_a_folder_without_videos_is_no_copy(tmp_path, name):
    assert catalog_command.main([name, f"--input={tmp_path}"]) == ExitCode.PARTLY


def test_a_copy_is_compared_with_the_catalogue(miniature, capsys):
    name, folder, _, splits, _ = miniature
    code = catalog_command.main([name, f"--input={folder}", "--format=json"])
    said = json.loads(capsys.readouterr().out)
    found = {
        (row["protocol"], row["split"]): row["found"]
        for row in said["counts"]
        if row["camera"] == row["class"] == "" and row["found"] != 0
    }
    for protocol, counts in splits.items():
        for split, videos in zip(("train", "test"), counts, strict=True):
            assert found.get((protocol, split), 0) == videos
    complete = {"ntu60": 56_880, "ntu120": 114_480}
    if name in complete:
        assert code == ExitCode.PARTLY
        assert len(said["comparison"]["missing"]) == complete[name] - said["comparison"]["videos"]
    else:
        assert code == 0 and said["comparison"]["missing"] == []


def test_ntu60_and_one_shot_are_protocols_of_a_prepared_ntu120(tmp_path):
    """The set is prepared once. The protocol decides on the classes, and so on the size of the head."""
    old = ntu_names((8, 1), ("S001",), actions=(1, 2, 7)) + ntu_names((12,), ("S002",), actions=(2,))
    new = ntu_names((8, 41), ("S018",), actions=(61, 62))
    assert run("ntu120", write(tmp_path / "raw", old + new, H264), tmp_path / "prepared") == 0

    def opened(protocol: str) -> LabelledDataset:
        config = finetune_base.get_config()
        config.model.tubelet_size = (2, 8, 8)
        config.data.update(dict(dir=str(tmp_path / "prepared"), protocol=protocol, num_frames=4, crop_size=(32, 32)))
        return LabelledDataset.from_config(config)

    def labels(dataset: LabelledDataset, rows: np.ndarray) -> Counter:
        found = dataset.prepared.views["label"][rows].tolist()
        return Counter(dataset.class_names[label] for label in found if label >= 0)

    of_ntu60 = opened("ntu60_xsub")
    assert of_ntu60.num_classes == 60 and of_ntu60.class_names == catalog.get("ntu60").class_names
    assert labels(of_ntu60, of_ntu60.train) == {"drink water": 6, "eat meal/snack": 6, "throw": 6}
    assert labels(of_ntu60, of_ntu60.test) == {"eat meal/snack": 3}  # performer 12
    by_view, the_same = opened("ntu60_xview"), opened("xview")
    for one, other in zip((by_view.train, by_view.test), (the_same.train, the_same.test), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (len(by_view.train), len(by_view.test), by_view.num_classes) == (14, 7, 60)

    shot = opened("one_shot")
    assert shot.num_classes == 20 and shot.class_names[10] == "put on headphone"  # A61, the eleventh
    known = ["drink water", "throw", "put on headphone"]
    assert labels(shot, shot.train) == dict.fromkeys(known, 1)
    assert labels(shot, shot.test) == dict.fromkeys(known, 5)
    again = pickle.loads(pickle.dumps(shot.prepared))
    np.testing.assert_array_equal(again.views["label"], shot.prepared.views["label"])
    np.testing.assert_array_equal(again.splits("xsub"), takes.open_prepared(tmp_path / "prepared").splits("xsub"))
    assert opened("xsub").num_classes == 120

    batch = batch_of(tmp_path / "prepared", "one_shot_auxiliary", num_source_views=1)
    assert set(batch["label"].tolist()) <= {0, 50}  # A2 and A62 among the 100 other classes
    with pytest.raises(ValueError, match=r"leaves nothing of .* to test on"):
        opened("one_shot_auxiliary")


# --- PKU-MMD: untrimmed videos


LABELS = {  # label,start,end,confidence; the videos have 40 frames
    "A01N01-L": "13,2,10,2\n51,20,40,1\n",
    "A01N01-M": "13,3,11,2\n51,20,41,1\n",  # ends after the video
    "A01N01-R": "13,2,10,2\n26,11,15,1\n",  # a class that is not in phase 2
    "A02N02-L": "1,0,8,2\n",
    "A02N02-M": "1,0,8,2\n",
}


@pytest.fixture(scope="module")
def pkummd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pkummd")
    long = [video_files.moving_square(40, 36, 64, seed=seed) for seed in range(6)]
    write(folder, [f"RGB_VIDEO/{name}.avi" for name in (*LABELS, "A02N02-R")], H264, long)
    for where, texts in (("label", LABELS), ("skeleton", dict.fromkeys(LABELS, "0.1 0.2 0.3\n"))):
        (folder / where).mkdir()
        for name, text in texts.items():
            (folder / where / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def pkummd_prepared(pkummd, tmp_path_factory):
    output = tmp_path_factory.mktemp("pkummd_prepared")
    assert run("pkummd", pkummd, output) == ExitCode.PARTLY
    return output


def test_pkummd_becomes_one_record_per_label(pkummd_prepared):
    prepared = takes.open_prepared(pkummd_prepared)
    views = prepared.views
    records = dict(zip(zip(views["take"], views["view"], strict=True), views["num_frames"], strict=True))
    assert records == {
        ("A01N01/001-13", "L"): 8,
        ("A01N01/001-13", "M"): 8,
        ("A01N01/001-13", "R"): 8,
        ("A01N01/002-51", "L"): 20,
        ("A02N02/001-01", "L"): 8,
        ("A02N02/001-01", "M"): 8,
    }
    assert [prepared.class_names[label] for label in views["label"][:4]] == ["hand waving"] * 3 + ["writing"]
    assert len(prepared.class_names) == 41
    assert "label file of its own" in prepared.not_synchronised
    quarantine = quarantine_of(pkummd_prepared)
    assert quarantine.keys() == {"A01N01/002-51", "A01N01/002", "A02N02"}
    assert quarantine["A01N01/002-51"] == "the labelled interval [20, 41) ends after the 40 frames of the file"
    assert "class 26 is not among the 41" in quarantine["A01N01/002"]
    assert "no label file label/A02N02-R.txt" in quarantine["A02N02"]
    # Subjects 1 and 2 train and test; L tests across views.
    assert prepared.splits("xsub").tolist() == ["train"] * 4 + ["test"] * 2
    assert prepared.splits("xview").tolist() == ["test", "train", "train", "test", "test", "train"]
    assert batch_of(pkummd_prepared, "xsub", num_source_views=0)["video"].shape == (2, 1, 4, 32, 32, 3)


def test_pkummd_is_cut_at_the_labelled_frames(pkummd, pkummd_prepared, tmp_path):
    prepared = takes.open_prepared(pkummd_prepared)
    assert run("folder", pkummd, tmp_path, "--pattern=RGB_VIDEO/{take}-{view}.avi") == 0  # uncut
    whole = takes.open_prepared(tmp_path)
    for record, (start, end) in {0: (2, 10), 1: (3, 11), 3: (20, 40)}.items():
        view = prepared.views["view"][record]
        (same,) = np.flatnonzero((whole.views["take"] == "A01N01") & (whole.views["view"] == view))
        cut = prepared.read(record, np.arange(end - start))
        np.testing.assert_array_equal(cut, whole.read(int(same), np.arange(start, end)))


def test_pkummd_keeps_all_classes_on_demand(pkummd, tmp_path):
    run("pkummd", pkummd, tmp_path, "--num_classes=51")
    prepared = takes.open_prepared(tmp_path)
    assert len(prepared.class_names) == 51
    labels = dict(zip(prepared.views["take"], prepared.views["label"], strict=True))
    assert labels["A01N01/002-26"] == 25 and prepared.class_names[25] == "punching/slapping other person"
    assert run("pkummd", pkummd, tmp_path, "--num_classes=41") == ExitCode.REFUSED  # other classes, same folder


# --- archives


def zipped(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


def tarred(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, ".")
    return archive


def shards_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.array_record-*")}


@pytest.mark.parametrize(
    ("name", "archive"), [("ntu60", "nturgbd_rgb_s001.zip"), ("nucla", "multiview_action_videos.tgz")]
)
def test_archives_give_the_same_records_as_folders(name, archive, tmp_path):
    paths, codec, _, _ = MINIATURES[name]
    folder = write(tmp_path / "raw", paths, codec)
    pack = zipped if archive.endswith(".zip") else tarred
    pack(folder, tmp_path / "packed" / archive)
    assert run(name, folder, tmp_path / "from_folder") == 0
    assert run(name, tmp_path / "packed", tmp_path / "from_archive") == 0
    assert shards_of(tmp_path / "from_archive") == shards_of(tmp_path / "from_folder")
    assert sorted(path.name for path in (tmp_path / "packed").rglob("*")) == [archive]  # nothing unpacked


def test_labels_are_read_from_archives(pkummd, pkummd_prepared, tmp_path):
    zipped(pkummd / "RGB_VIDEO", tmp_path / "packed" / "RGB.zip")
    zipped(pkummd / "label", tmp_path / "packed" / "Label_v2.zip")
    run("pkummd", tmp_path / "packed", tmp_path / "from_archive")
    assert shards_of(tmp_path / "from_archive") == shards_of(pkummd_prepared)


def test_hostile_archives_write_nothing_and_are_told(tmp_path, capsys):
    raw = write(tmp_path / "raw", ntu_names((1,)), H264)
    archive = zipped(raw, tmp_path / "in" / "a.zip")
    good = (raw / ntu_names((1,))[0]).read_bytes()
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../S001C001P002R001A001_rgb.avi", good)
        file.writestr("S001C002P002R001A001_rgb.avi", b"\x00" * 5_000_000, zipfile.ZIP_DEFLATED)  # 5 kB packed
        file.writestr("S001C003P002R001A001_rgb.avi", good)
    content = bytearray(archive.read_bytes())
    at = content.rindex(good[:64])
    content[at + len(good) // 2] ^= 255  # the last member no longer agrees with its checksum
    archive.write_bytes(content)
    before = {path for path in tmp_path.rglob("*")}
    assert run("ntu60", tmp_path / "in", tmp_path / "out") == ExitCode.PARTLY
    assert "leads out of its archive" in capsys.readouterr().out
    with open(tmp_path / "out" / "quarantine.csv", newline="") as file:
        reasons = {row["path"].partition("/")[2]: row["reason"] for row in csv.DictReader(file)}
    assert "not a readable video" in reasons["S001C002P002R001A001_rgb.avi"]
    assert "Bad CRC-32" in reasons["S001C003P002R001A001_rgb.avi"]
    outside = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)}
    assert outside == before
    assert len(takes.open_prepared(tmp_path / "out").views["take"]) == 3


def test_a_damaged_archive_stops_with_its_name(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(b"PK\x03\x04 no archive")
    assert run("ntu60", tmp_path / "in", tmp_path / "out") == ExitCode.REFUSED
    assert "a.zip cannot be read" in capsys.readouterr().err
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("x"), io.BytesIO())
    (tmp_path / "in" / "a.zip").unlink()
    (tmp_path / "in" / "b.tgz").write_bytes(buffer.getvalue()[:-20])
    assert run("ntu60", tmp_path / "in", tmp_path / "out") == ExitCode.REFUSED
    assert "b.tgz cannot be read" in capsys.readouterr().err


# --- comparison of a copy


def test_missing_unexpected_and_incomplete_are_named(tmp_path, capsys):
    for name in (*ntu_names((1,))[:2], *ntu_names((2,)), "S001C009P001R001A001_rgb.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert catalog_command.main(["ntu60", f"--input={tmp_path}"]) == ExitCode.PARTLY
    said = capsys.readouterr().out
    assert "found: 5 videos of 2 takes" in said
    assert "complete takes: 1" in said
    assert "S001P001R001A001: lacks C003" in said
    assert f"missing files: {56_880 - 5}" in said
    assert "cameras are 1 to 3, not 9" in said


def test_the_counts_as_a_table_for_scripts(capsys):
    assert catalog_command.main(["ntu120", "--protocol=xset", "--format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    by_class = [int(row["expected"]) for row in rows if row["class"] and row["split"] == "train"]
    assert len(by_class) == 120 and sum(by_class) == 54_720
    (total,) = [row for row in rows if row["split"] == "test" and not row["class"] and not row["camera"]]
    assert (total["protocol"], total["expected"], total["found"]) == ("xset", "59760", "")
    assert catalog_command.main(["ntu60", "--protocol=xset"]) == ExitCode.REFUSED
    assert "ntu60 has no protocol 'xset'" in capsys.readouterr().err
