"""Growing sets, and several sets used as one: only the order of the records differs from one preparation."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import finetune_base, pretrain_base
from data import catalog, pipeline
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.prepare import metadata, preparation, shards
from data.prepare.options import Options
from data.recordings.listing import PreparationError
from data.store import joined, takes
from data.synthetic import __main__ as synthetic
from tests import video_files

PATTERN = "{label}/{subject}_{take}_cam{view}"
FIRST = {"walk/anna_t1": 0, "run/bob_t2": 5, "walk/bob_t4": 3, "run/anna_t5": 21}
SECOND = {"jump/carl_t1": 7, "run/anna_t9": 11, "walk/carl_t2": 13, "walk/carl_t3": 15}


def write(folder: Path, named: dict[str, int], num_frames: int = 12) -> Path:
    for name, seed in named.items():
        for view in (1, 2):
            frames = video_files.moving_square(num_frames, 48, 64, seed=seed + view)
            video_files.write_video(folder / f"{name}_cam{view}.mp4", frames)
    return folder


def write_here(jobs, num_files, settings, input_dir, output_dir, num_workers):
    for job in jobs:
        shards.write(job, settings, input_dir, output_dir, starting=lambda path: None)


def run(inputs, output: Path, *, announce=print, write_shards=write_here, **options) -> dict:
    names = catalog.get("folder", pattern=options.pop("pattern", PATTERN))
    options = Options(**{"short_side": 32} | options)
    return preparation.prepare(names, inputs, output, options, announce=announce, write_shards=write_shards)


def shards_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.array_record-*")}


def contents(directory: Path) -> dict[tuple[str, str], tuple]:
    """Everything of each record except its place in the set, by take and view."""
    prepared = takes.open_prepared(directory)
    views, found = prepared.views, {}
    for record, key in enumerate(zip(views["take"].tolist(), views["view"].tolist(), strict=True)):
        frames = prepared.read(record, np.arange(views["num_frames"][record])).tobytes()
        label, subject = (int(views[name][record]) for name in ("label", "subject"))
        found[key] = (prepared.class_names[label], prepared.subject_names[subject], frames)
    return found


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write(folder / "first", FIRST)
    write(folder / "second", SECOND)
    return folder


@pytest.fixture(scope="module")
def grown(raw, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("grown") / "set"
    run(raw / "first", output, add=True)
    run(raw / "second", output, add=True)
    return output


def test_a_grown_set_holds_what_one_preparation_gives(raw, grown, tmp_path):
    run(raw / "first", tmp_path / "first")
    first = shards_of(tmp_path / "first")
    assert first.items() < shards_of(grown).items()  # old bytes are untouched
    run([raw / "first", raw / "second"], tmp_path / "whole")
    whole, both = takes.open_prepared(tmp_path / "whole"), takes.open_prepared(grown)
    assert both.class_names == whole.class_names == ("jump", "run", "walk")
    assert both.subject_names == whole.subject_names == ("anna", "bob", "carl")
    assert contents(grown) == contents(tmp_path / "whole")
    counts, expected = (json.loads((f / "prepared.json").read_text())["counts"] for f in (grown, tmp_path / "whole"))
    del counts["bytes"], expected["bytes"]  # a grown set has more shards
    assert counts == expected
    assert metadata.verify(grown) == []


def test_a_class_that_is_nearly_one_of_the_set_is_told(raw, grown, tmp_path):
    output = shutil.copytree(grown, tmp_path / "set")
    told = run(write(tmp_path / "raw", {"Walk/dora_t1": 30}), output, add=True)
    assert told["remarks"] == ["class names that differ only in case or spaces are different ones: 'Walk', 'walk'"]


def test_what_a_set_holds_is_not_made_again(raw, grown):
    before, told = shards_of(grown), []
    times = {path: path.stat().st_mtime_ns for path in grown.glob("*.array_record-*")}
    run(raw / "second", grown, add=True, announce=told.append)
    run([raw / "first", raw / "second"], grown, add=True, announce=told.append)
    assert "left out, as the set holds them: 4 takes" in told and not any("expected" in line for line in told)
    run(raw / "first", grown)  # the first command, given again
    assert shards_of(grown) == before and len(takes.open_prepared(grown).views["take"]) == 16
    assert {path: path.stat().st_mtime_ns for path in grown.glob("*.array_record-*")} == times


def test_an_interrupted_addition_leaves_the_set_as_it_was_and_goes_on(raw, tmp_path):
    output = tmp_path / "set"
    run(raw / "first", output)

    def interrupted(jobs, *arguments):
        write_here(jobs[:1], *arguments)
        raise KeyboardInterrupt

    before = contents(output)
    with pytest.raises(KeyboardInterrupt):
        run(raw / "second", output, add=True, write_shards=interrupted)
    assert contents(output) == before and metadata.verify(output) == []
    write(tmp_path / "third", {"walk/dora_t1": 30})
    with pytest.raises(PreparationError, match=r"interrupted while 4 takes .* give that command again first"):
        run(tmp_path / "third", output, add=True)
    made = {name: (output / name).stat().st_mtime_ns for name in shards_of(output)}
    run(raw / "second", output, add=True)
    assert made.items() <= {name: (output / name).stat().st_mtime_ns for name in shards_of(output)}.items()
    run(tmp_path / "third", output, add=True)
    assert len(contents(output)) == 18 and metadata.verify(output) == []


def test_what_does_not_fit_a_set_is_not_added(raw, grown, tmp_path):
    with pytest.raises(PreparationError, match="other settings: quality was 90, now 50"):
        run(write(tmp_path / "a", {"walk/dora_t1": 30}), grown, add=True, quality=50)
    with pytest.raises(PreparationError, match=r"other takes: 4 are new, 4 gone .*--add puts further takes into it"):
        run(raw / "second", grown)
    more = write(tmp_path / "b", {"walk/anna_t1": 0})
    (more / "walk" / "anna_t1_cam2.mp4").rename(more / "walk" / "anna_t1_cam3.mp4")
    write(tmp_path / "b", {"walk/dora_t1": 30})
    with pytest.raises(PreparationError, match="from take walk/anna/t1 without its view 3"):
        run(more, grown, add=True)
    alone = write(tmp_path / "camera_3", {"walk/anna_t1": 0})  # no other take beside it
    (alone / "walk" / "anna_t1_cam1.mp4").unlink()
    (alone / "walk" / "anna_t1_cam2.mp4").rename(alone / "walk" / "anna_t1_cam3.mp4")
    with pytest.raises(PreparationError, match="from take walk/anna/t1 without its view 3"):
        run(alone, grown, add=True)
    assert metadata.verify(grown) == []


def test_other_footage_under_the_names_of_takes_is_not_added(raw, grown, tmp_path):
    again = write(tmp_path / "again", FIRST | SECOND)
    shutil.copytree(raw / "second", again, dirs_exist_ok=True)  # the same bytes, changed at another time
    for path in again.rglob("*.mp4"):
        os.utime(path, (1, 1))
    write(again, {"walk/dora_t1": 30})
    write(again, {"walk/anna_t1": 50}, num_frames=14)
    reason = r"made 1 take of other files .*\(walk/anna/t1\), e\.g\. walk/anna_t1_cam1\.mp4 \(\d+ bytes, formerly \d+\)"
    for _ in range(2):
        with pytest.raises(PreparationError, match=reason):
            run(again, grown, add=True)
    assert metadata.verify(grown) == []
    for path in again.glob("walk/anna_t1*"):
        path.unlink()
    told = []
    run(again, shutil.copytree(grown, tmp_path / "set"), add=True, announce=told.append)
    assert "left out, as the set holds them: 7 takes" in told and len(contents(tmp_path / "set")) == 18


def test_a_view_that_was_repaired_since_is_not_left_out_silently(tmp_path):
    raw = write(tmp_path / "raw", {"walk/anna_t1": 0, "walk/anna_t2": 3})
    damaged = [raw / "walk" / name for name in ("anna_t1_cam1.mp4", "anna_t2_cam1.mp4")]
    whole = [path.read_bytes() for path in damaged]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:900])
    assert len(run(raw, tmp_path / "set")["quarantined"]) == 4  # the other view is the only one of its take
    write(raw, {"walk/dora_t1": 30})
    damaged[1].write_bytes(whole[1])
    reason = r"made 1 take of other files .*\(walk/anna/t2\), e\.g\. walk/anna_t2_cam1\.mp4 \(\d+ bytes, formerly 900\)"
    with pytest.raises(PreparationError, match=reason):
        run(raw, tmp_path / "set", add=True)
    damaged[1].unlink()
    assert run(raw, tmp_path / "set", add=True)["counts"]["takes"] == 1


@pytest.mark.parametrize("with_digest", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_a_set_of_another_version_is_refused(raw, tmp_path, with_digest, add):
    run(raw / "first", tmp_path / "set")
    path = next((tmp_path / "set" / "parts").glob("*.json"))
    account = json.loads(path.read_text())
    del account["static_views"], account["account_sha256"]
    if with_digest:
        account["account_sha256"] = hashlib.sha256(json.dumps(account, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(account))
    with pytest.raises(
        PreparationError, match=rf"{path} was written by another version .* or delete {tmp_path / 'set'}"
    ):
        run(raw / ("second" if add else "first"), tmp_path / "set", add=add)
    assert (tmp_path / "set" / "prepared.json").exists()


def test_joints_and_cameras_grow_along(tmp_path):
    raw, half = tmp_path / "raw", tmp_path / "half"
    assert synthetic.main([f"--output={raw}", "--takes=4", "--fps=10", "--resolution=48x48", "--progress=none"]) == 0
    names = catalog.get("synthetic")

    def prepare(inputs: Path, output: str, **options) -> None:
        options = Options(**{"short_side": 32, "truth_dir": raw / "truth"} | options)
        preparation.prepare(names, inputs, tmp_path / output, options, write_shards=write_here)

    prepare(raw, "whole")
    whole = takes.open_prepared(tmp_path / "whole")
    last = np.unique(whole.views["take"])[2:]
    half.mkdir()
    for path in list(raw.rglob("*")):
        if path.suffix in names.extensions and names.parse(path.name).take in last:
            path.rename(half / path.name)
    prepare(raw, "grown")
    for _ in range(2):
        prepare(half, "grown", add=True)
        of_killed = tmp_path / "grown" / "parts" / "takes_2-truth" / ".joints.parquet.host-1.tmp"
        of_killed.write_bytes(b"x")  # a second call finds what a killed one left
    prepare(half, "grown", add=True)
    assert not of_killed.exists()
    prepare(half, "second")
    prepare(raw, "first")
    assert metadata.verify(tmp_path / "grown") == []
    rows, frames = np.arange(12), np.tile(np.arange(3), (12, 1))
    for found in (takes.open_prepared(tmp_path / "grown"), joined.open_sets((tmp_path / "first", tmp_path / "second"))):
        order = [list(zip(p.views["take"], p.views["view"], strict=True)) for p in (found, whole)]
        assert order[0] == order[1]
        for seen in ("in_world", "in_camera", "in_actor", "in_pixels"):
            of_found, of_whole = (getattr(p.truth, seen)(rows, frames) for p in (found, whole))
            np.testing.assert_array_equal(of_found, of_whole)
    with pytest.raises(PreparationError, match="give --truth=DIR again"):
        prepare(half, "grown", add=True, truth_dir=None)


def test_a_class_counts_when_a_video_of_it_was_prepared(tmp_path):
    write(tmp_path / "raw", FIRST)
    write(tmp_path / "raw", {"climb/bob_t3": 9}, num_frames=1)
    told = run(tmp_path / "raw", tmp_path / "out")
    assert {entry["reason"] for entry in told["quarantined"]} == {"too short: 1 frame, fewer than --min_frames=2"}
    prepared = takes.open_prepared(tmp_path / "out")
    assert prepared.class_names == ("run", "walk") and set(prepared.views["label"].tolist()) == {0, 1}


# --- several sets as one


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, Path]:
    """Two sets of the same classes and different takes."""
    folder = tmp_path_factory.mktemp("two")
    write(folder / "a", FIRST)
    write(folder / "b", {"walk/anna_t11": 31, "run/carl_t12": 33, "walk/carl_t14": 35, "run/anna_t15": 37})
    for name in ("a", "b"):
        run(folder / name, folder / f"set_{name}")
    run([folder / "a", folder / "b"], folder / "whole")
    return folder / "set_a", folder / "set_b"


def make_config(base, directory, **data):
    config = base.get_config()
    config.model.tubelet_size = (2, 8, 8)
    small = dict(dir=directory, protocol="random", num_frames=4, frame_stride=2, crop_size=(32, 32), num_workers=0)
    config.data.update(small | data)
    return config


def batches(directory, steps: int = 2, **data) -> list[pipeline.Batch]:
    dataset = Dataset.from_config(make_config(pretrain_base, directory, **{"protocol": "all"} | data))
    stream = pipeline.train_batches(dataset, seed=1, start_step=2, global_batch_size=4)
    return [next(stream) for _ in range(steps)]


def assert_equal(one: list[pipeline.Batch], other: list[pipeline.Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_several_sets_are_one(two):
    both, whole = joined.open_sets(f"{two[0]},{two[1]}"), takes.open_prepared(two[0].parent / "whole")
    assert both.views["record"].tolist() == list(range(16)) and both.class_names == whole.class_names
    at = {(t, v): i for i, (t, v) in enumerate(zip(whole.views["take"], whole.views["view"], strict=True))}
    copy = pickle.loads(pickle.dumps(both))
    for record, key in enumerate(zip(both.views["take"], both.views["view"], strict=True)):
        frames = np.arange(both.views["num_frames"][record])
        np.testing.assert_array_equal(both.read(record, frames), whole.read(at[key], frames))
        np.testing.assert_array_equal(copy.read(record, frames), whole.read(at[key], frames))
        for column in ("label", "num_frames", "height", "checksum"):
            assert both.views[column][record] == whole.views[column][at[key]]
        assert both.subject_names[both.views["subject"][record]] == whole.subject_names[whole.views["subject"][at[key]]]
    assert both.place_of(9) == (str(two[1]), 1)


def test_of_several_sets_one_that_is_gone_is_not_waited_for_at_every_record(two, tmp_path, monkeypatch):
    there, gone = two[0], Path(shutil.copytree(two[1], tmp_path / "gone"))
    both, waits = joined.open_sets((there, gone)), []
    assert {
        name: len(both.views[name]) for name in ("take", "view", "num_frames")
    }  # read while the manifests are there
    gone.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(takes.time, "sleep", waits.append)
    for record in range(8):
        both.read(record, np.array([0]))
        with pytest.raises(takes.DamagedRecord, match="No such file"):
            both.read(8 + record % 8, np.array([0]))
    with pytest.raises(takes.DamagedRecord, match="No such file"):
        both.read(8, np.array([0]))
    assert [seconds for seconds in waits if seconds] == list(takes.RETRY_AFTER_SECONDS) * takes.MOST_WAITED_FOR


def test_of_several_sets_a_frame_beyond_the_end_is_told_by_its_set(two):
    both = joined.open_sets(f"{two[0]},{two[1]}")
    with pytest.raises(ValueError, match=r"record 1 of .*set_b \(take .*has frames 0 to 11"):
        both.read(9, np.array([12]))


@pytest.mark.parametrize("form", ["{},{}", "{}, {}", "('{}', '{}')", "['{}','{}']"])
def test_batches_of_several_sets_are_a_function_of_seed_and_step(two, form):
    named = form.format(*two)
    found = batches(named)
    dataset = Dataset.from_config(make_config(pretrain_base, named, protocol="all"))
    assert_equal(found[1:], [next(pipeline.train_batches(dataset, seed=1, start_step=3, global_batch_size=4))])
    assert {int(t) for batch in found for t in batch["take"]} <= set(range(8))


def test_one_directory_gives_the_same_batches_as_a_list_of_it(two):
    prepared = joined.open_sets(str(two[0]))
    assert prepared.directory == str(two[0]) and not prepared.parts
    assert_equal(batches(str(two[0])), batches(f"('{two[0]}',)"))


def test_sets_that_do_not_agree_are_refused(two, grown, raw, tmp_path):
    run(raw / "first", tmp_path / "dct", codec="dct")
    run(raw / "first", tmp_path / "again")
    for other, reason in {
        grown: "their classes differ, 1 only in .*set.*jump",
        two[0]: "names a set twice",
        tmp_path / "dct": "stored as jpeg and as dct",
        tmp_path / "again": "4 takes are in .*set_a and in .*again.*Leave one",
        tmp_path / "nowhere": "there is no such folder",
    }.items():
        with pytest.raises(ValueError, match=reason):
            Dataset.from_config(make_config(pretrain_base, f"{two[0]},{other}"))


# --- some of the classes


def labelled(directory, **data) -> LabelledDataset:
    return LabelledDataset.from_config(make_config(finetune_base, str(directory), **data))


@pytest.mark.parametrize("wanted", [("walk", "jump"), (2, 0), ("jump", 2), (" walk", "0")])
def test_some_classes_are_numbered_from_zero(grown, wanted):
    prepared = takes.open_prepared(grown)
    chosen = prepared.of_classes(wanted)
    assert chosen.class_names == ("jump", "walk")
    before = [prepared.class_names[label] for label in prepared.views["label"]]
    now = [chosen.class_names[label] if label >= 0 else "run" for label in chosen.views["label"]]
    assert before == now
    assert (chosen.split_of("all") == "train").tolist() == [name != "run" for name in before]
    dataset = Dataset.from_config(make_config(pretrain_base, str(grown), classes=wanted, protocol="all"))
    assert len(dataset.train.take_names) + len(dataset.held_out.take_names) == 5


def test_unknown_classes_are_refused_with_near_ones(grown, tmp_path):
    for wanted, reason in {
        ("wlak",): "no class 'wlak' .*it has 3, numbered from 0 to 2 .*Did you mean 'walk'",
        (3,): "no class 3 ",
        (-1,): "no class -1 ",
    }.items():
        with pytest.raises(ValueError, match=reason):
            takes.open_prepared(grown).of_classes(wanted)
    with pytest.raises(ValueError, match=r"all 8 views of .* are of one class, 'walk' .*needs two classes at least"):
        labelled(grown, classes=("walk",), protocol="random")
    write(tmp_path / "raw", {"2/anna_t1": 0, "10/anna_t1": 3})
    run(tmp_path / "raw", tmp_path / "out")
    numbered = takes.open_prepared(tmp_path / "out")
    assert numbered.class_names == ("10", "2") and numbered.of_classes(("2",)).class_names == ("2",)
