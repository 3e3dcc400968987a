"""The input pipeline: a batch is a pure function of (seed, step), and its pixels are those of the videos."""

import dataclasses
import hashlib
import itertools
import multiprocessing
import pathlib
import re
import signal
import time

import grain
import numpy as np
import pytest

from configs import pretrain_base
from console import progress
from data import clips, pipeline, samples
from data.dataset import Dataset, hold_out
from data.store import takes
from tests.test_motion import direct as direct_motion_energy

# grain 0.2.18: MapDataset.range(54).seed(0).shuffle()
PINNED_ORDER = [21, 37, 31, 14, 9, 46, 28, 6]


def make_dataset(directory, **data) -> Dataset:
    config = pretrain_base.get_config()
    config.model.tubelet_size = (2, 8, 8)
    config.data.update(
        dict(dir=str(directory), num_frames=4, crop_size=(32, 32), holdout_fraction=0.25, num_workers=0) | data
    )
    return Dataset.from_config(config)


@pytest.fixture(scope="module")
def dataset(synthetic_set):
    return make_dataset(synthetic_set)


def batches(dataset, count=3, **options):
    options = dict(seed=0, start_step=0, global_batch_size=8) | options
    return list(itertools.islice(pipeline.train_batches(dataset, **options), count))


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_shapes_and_types(dataset):
    (batch,) = batches(dataset, 1)
    found = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert found == {
        "video": ("uint8", (8, 2, 4, 32, 32, 3)),
        "motion": ("float32", (8, 2, 32)),
        "take": ("int32", (8,)),
        "view": ("int32", (8, 2)),
        "label": ("int32", (8,)),
        "damaged": ("int32", (8,)),
    }


def test_workers_change_nothing(dataset):
    for alone, by_workers in zip(batches(dataset), batches(dataset, num_workers=2), strict=True):
        assert_equal(alone, by_workers)


def test_ctrl_c_never_reaches_the_reading_processes(dataset, monkeypatch):
    """One that is still importing would end, and this process would wait for it for ever."""
    as_in_a_run = multiprocessing.context._default_context.get_context  # other tests fork processes that have imported
    monkeypatch.setattr(multiprocessing, "get_context", as_in_a_run)
    stream = pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=4, num_workers=2)
    next(stream)
    readers = [child for child in multiprocessing.active_children() if child.name.startswith("grain")]
    status = [pathlib.Path(f"/proc/{reader.pid}/status").read_text() for reader in readers]
    blocked = [int(re.search(r"SigBlk:\s*(\w+)", text)[1], 16) for text in status]
    assert len(readers) == 2 and all(mask >> signal.SIGINT - 1 & 1 for mask in blocked)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "this process still obeys it"
    stream.close()


def test_two_processes_read_the_halves_of_one_batch(dataset):
    whole = batches(dataset)
    halves = [batches(dataset, process_index=i, process_count=2) for i in range(2)]
    for step, batch in enumerate(whole):
        joined = {key: np.concatenate([half[step][key] for half in halves]) for key in batch}
        assert_equal(batch, joined)


def test_a_later_start_continues_the_same_stream(dataset):
    from_the_start = batches(dataset, 12)  # beyond an epoch
    assert len(dataset.train.elements) < 12 * 8
    assert_equal(from_the_start[11], batches(dataset, 1, start_step=11)[0])
    assert_equal(from_the_start[3], batches(dataset, 1, start_step=3)[0])


def test_the_order_is_pinned(dataset):
    """If an upgrade or a refactoring changed this, the data of resumed runs would change silently."""
    order = grain.MapDataset.range(54).seed(0).shuffle()
    assert [order[i] for i in range(8)] == PINNED_ORDER
    assert len(dataset.train.elements) == 54
    (batch,) = batches(dataset, 1)
    expected = dataset.train.elements[PINNED_ORDER]
    np.testing.assert_array_equal(np.stack([batch["take"], batch["view"][:, 0]], axis=1), expected)


def test_an_epoch_visits_every_element_once_and_the_next_in_another_order(dataset):
    size = 6
    steps = len(dataset.train.elements) // size
    seen = [
        [(t, v) for batch in epoch for t, v in zip(batch["take"], batch["view"][:, 0], strict=True)]
        for epoch in np.array_split(batches(dataset, 2 * steps, global_batch_size=size), 2)
    ]
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(map(tuple, dataset.train.elements))
    assert seen[0] != seen[1]


def test_another_seed_gives_another_stream(dataset):
    first, second = batches(dataset, 1)[0], batches(dataset, 1, seed=1)[0]
    assert not np.array_equal(first["take"], second["take"])


def test_views_are_different_views_of_one_take(dataset):
    for batch in batches(dataset):
        assert (batch["view"][:, 0] != batch["view"][:, 1]).all()
        rows = dataset.train.rows[batch["take"][:, None], batch["view"]]
        assert (dataset.prepared.views["take"][rows] == dataset.train.take_names[batch["take"]][:, None]).all()
        np.testing.assert_array_equal(dataset.prepared.views["label"][rows[:, 0]], batch["label"])


def test_source_views_vary(dataset):
    pairs = {tuple(view) for batch in batches(dataset, 10) for view in batch["view"]}
    assert pairs == set(itertools.permutations(range(3), 2))


def test_video_is_the_resized_crop_of_the_stored_frames(synthetic_set):
    """At full scale and stored size, a sample must equal frames read directly, at one start for all views."""
    dataset = make_dataset(synthetic_set, crop_size=(40, 48), crop_scales=(1.0,), same_crop_in_views=True)
    (batch,) = batches(dataset, 1)
    for video, take, views in zip(batch["video"], batch["take"], batch["view"], strict=True):
        rows = dataset.train.rows[take, views]
        length = dataset.prepared.views["num_frames"][rows].min()
        stored = [dataset.prepared.read(int(row), np.arange(length)) for row in rows]
        width = stored[0].shape[2]
        matches = [
            (start, left)
            for start in range(length - 12)
            for left in range(width - 48 + 1)
            if all(
                np.array_equal(clip, frames[start : start + 13 : 4, :, left : left + 48])
                for clip, frames in zip(video, stored, strict=True)
            )
        ]
        assert len(matches) >= 1


@pytest.mark.parametrize("codec", ["jpeg", "dct"])
def test_decoding_no_more_than_the_crops_changes_no_pixel(request, codec):
    """Frames have 40x53 pixels, crops 26 or more. With repeats, the decoded window holds all crops."""
    directory = request.getfixturevalue({"jpeg": "synthetic_set", "dct": "synthetic_set_dct"}[codec])
    dataset = make_dataset(directory, repeats=2, same_crop_in_views=False)
    prepared, spec = dataset.prepared, dataset.spec
    for seed in range(5):
        views = samples.draw_sample(dataset, seed, np.random.default_rng(seed))["video"]
        indices = samples._frame_indices(prepared, spec, views)
        for v, (row, boxes) in enumerate(zip(views.rows, samples._boxes(prepared, spec, views), strict=True)):
            whole = prepared.read(int(row), indices)
            window = top, left, height, width = clips.enclosing_box(boxes)
            found = list(prepared.read_frames(int(row), indices, window))
            np.testing.assert_array_equal(found, whole[:, top : top + height, left : left + width])
            if codec == "jpeg":
                batch = samples.read_clips(prepared, spec, [views])
                for crop, clip in zip(views.crops, batch[:, v], strict=True):
                    np.testing.assert_array_equal(clip, samples.crop_clip(whole, crop[v], spec.crop_size))


def test_motion_energies_are_those_of_the_video_the_model_sees(dataset):
    (batch,) = batches(dataset, 1)
    for video, motion in zip(batch["video"][:, 1], batch["motion"][:, 1], strict=True):
        np.testing.assert_allclose(motion, direct_motion_energy(video, (2, 8, 8)), rtol=1e-5)


def test_the_config_of_an_older_run_still_opens_its_data(synthetic_set, dataset):
    config = pretrain_base.get_config()
    config.data.dir = str(synthetic_set)
    with config.unlocked():
        del config.data.motion_on
    assert Dataset.from_config(config).spec.motion_on == dataset.spec.motion_on


def test_repeats_are_crops_of_one_clip(synthetic_set):
    dataset = make_dataset(synthetic_set, repeats=4)
    (batch,) = batches(dataset, 1)
    groups = batch["take"].reshape(2, 4), batch["view"].reshape(2, 4, 2)
    assert all((group == group[:, :1]).all() for group in groups)
    videos = batch["video"].reshape(2, 4, -1)
    assert not any(np.array_equal(videos[0, 0], videos[0, i]) for i in range(1, 4))
    assert dataset.samples_per_epoch == 4 * len(dataset.train.elements)


@pytest.mark.parametrize("same", [True, False])
def test_crop_boxes_are_shared_by_the_views_or_not(synthetic_set, same):
    dataset = make_dataset(synthetic_set, same_crop_in_views=same)
    drawn = [samples.draw_sample(dataset, i, np.random.default_rng(i))["video"].crops for i in range(10)]
    assert all((first == second) == same for ((first, second),) in drawn)


def test_waiting_for_data_is_told_and_told_again_after_twice_the_time(dataset, monkeypatch, capsys):
    read = samples.read_training_batch

    def late(*arguments, **options):
        time.sleep(1.0)
        return read(*arguments, **options)

    monkeypatch.setattr(samples, "read_training_batch", late)
    monkeypatch.setattr(progress, "SECONDS_OF_PATIENCE", 0.2)
    next(pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=4))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and all("s for a batch of data. The file system may be slow" in line for line in lines)


def test_a_failing_read_in_an_evaluation_names_the_take(dataset, monkeypatch):
    """An evaluation without some samples would not be comparable. For training see test_damaged_data.py."""
    monkeypatch.setattr(takes, "RETRY_AFTER_SECONDS", ())
    views = dict(dataset.prepared.views) | {"num_frames": dataset.prepared.views["num_frames"] + 10**6}
    lying = dataclasses.replace(dataset, prepared=dataclasses.replace(dataset.prepared, views=views))
    with pytest.raises(Exception, match=r"take S\d{3}P\d{3}R\d{3}A\d{3}, view C\d{3}"):
        list(pipeline.eval_batches(lying, seed=0, global_batch_size=4))


def test_an_uneven_cut_is_refused(dataset):
    with pytest.raises(ValueError, match="not divisible by 3 process"):
        batches(dataset, 1, process_count=3)
    with pytest.raises(ValueError, match="not divisible by 3 process"):
        pipeline.eval_batches(dataset, seed=0, global_batch_size=8, process_count=3)


def test_held_out_takes_are_whole_fixed_and_disjoint(dataset):
    views = dataset.prepared.views
    kept, held_out = hold_out(dataset.prepared, np.ones(len(views["take"]), bool), 0.25)
    names = {split: set(views["take"][rows]) for split, rows in (("kept", kept), ("held out", held_out))}
    assert len(names["held out"]) == 6 and len(names["kept"]) == 18 and not names["kept"] & names["held out"]
    ranked = sorted(set(views["take"]), key=lambda name: hashlib.sha256(name.encode()).digest())
    assert names["held out"] == set(ranked[:6])
    assert set(dataset.train.take_names) == names["kept"] and set(dataset.held_out.take_names) == names["held out"]
    few, _ = hold_out(dataset.prepared, kept, 0.0)
    np.testing.assert_array_equal(few, kept)
    with pytest.raises(ValueError, match=r"holdout_fraction = 0.99 leaves no take of 24 to train on: lower it"):
        hold_out(dataset.prepared, np.ones(len(views["take"]), bool), 0.99)


def test_evaluation_sees_every_held_out_element_once(dataset):
    seen = []
    for batch in pipeline.eval_batches(dataset, seed=0, global_batch_size=4):
        valid = batch["valid"]
        seen += list(zip(batch["take"][valid].tolist(), batch["view"][valid, 0].tolist(), strict=True))
    assert sorted(seen) == sorted(map(tuple, dataset.held_out.elements.tolist()))


def evaluated_takes(dataset, max_takes, **options) -> list[str]:
    """The names of the takes, in the order of evaluation."""
    found = pipeline.eval_batches(dataset, seed=0, global_batch_size=4, max_takes=max_takes, **options)
    takes = np.concatenate([batch["take"][batch["valid"]] for batch in found])
    return dataset.held_out.take_names[takes].tolist()


def test_an_evaluation_of_some_takes_draws_them(synthetic_set):
    """Sorted by name, the first takes all come from the first rooms and do not represent the set."""
    dataset = make_dataset(synthetic_set, holdout_fraction=0.9)
    everything, some = evaluated_takes(dataset, None), evaluated_takes(dataset, 5)
    names = list(dict.fromkeys(everything))
    assert len(names) == 22 and names != sorted(names)
    assert list(dict.fromkeys(some)) == names[:5] and set(some) != set(sorted(names)[:5])
    assert some == [name for name in everything if name in names[:5]], "all target views of each"
    assert evaluated_takes(dataset, 5, clips_per_element=2)[: len(some)] == some
    assert evaluated_takes(dataset, 22) == evaluated_takes(dataset, 1000) == everything


def test_evaluation_is_the_same_every_time_and_for_every_number_of_processes(dataset):
    options = dict(seed=0, global_batch_size=4)
    whole = list(pipeline.eval_batches(dataset, **options))
    halves = [list(pipeline.eval_batches(dataset, process_index=i, process_count=2, **options)) for i in range(2)]
    for step, batch in enumerate(whole):
        assert_equal(batch, {key: np.concatenate([half[step][key] for half in halves]) for key in batch})


def test_stand_in_takes_share_the_room_and_differ_in_subject_or_action(synthetic_set):
    dataset = make_dataset(synthetic_set, holdout_fraction=0.9)
    takes, views = dataset.held_out, dataset.prepared.views
    others = samples.other_takes(views, takes)
    subject, action = others["other_subject"], others["other_action"]
    facts = {key: views[key][takes.rows.max(axis=1)] for key in ("setup", "subject", "label", "performance")}
    assert any(len(found) for found in subject.values()) and any(len(f) for f in action.values())
    for take in range(len(takes.take_names)):
        for other in subject[take]:
            assert facts["setup"][other] == facts["setup"][take]
            assert facts["subject"][other] != facts["subject"][take]
        for other in action[take]:
            assert facts["setup"][other] == facts["setup"][take] and other != take
            assert facts["subject"][other] == facts["subject"][take]
            assert facts["label"][other] != facts["label"][take]
        for found in (subject[take], action[take]):
            alike = facts["performance"][found] == facts["performance"][take]
            assert alike.all() or not alike.any(), "takes that face the same camera are preferred"


@pytest.mark.parametrize("unlabelled", ["all", "some"])
def test_takes_without_labels_have_no_other_action(synthetic_set, unlabelled):
    """Takes without a label get no partner and are no partner, because an unknown action may equal any other."""
    dataset = make_dataset(synthetic_set, holdout_fraction=0.9)
    views, takes = dict(dataset.prepared.views), dataset.held_out
    unknown = np.ones(len(takes.take_names), bool) if unlabelled == "all" else np.arange(len(takes.take_names)) % 2 == 0
    label = views["label"].copy()
    label[takes.rows[unknown]] = -1
    others = samples.other_takes(views | {"label": label}, takes)
    for take, found in others["other_action"].items():
        assert not len(found) if unknown[take] else not unknown[found].any()
    assert (unlabelled == "some") == any(len(found) for found in others["other_action"].values())


def test_protocols_choose_the_training_views(synthetic_set):
    by_view = make_dataset(synthetic_set, protocol="xview")
    assert set(by_view.train.view_names) == {"C002", "C003"}  # camera 1 is for testing
    by_subject = make_dataset(synthetic_set, protocol="xsub")
    rows = by_subject.train.rows[by_subject.train.rows >= 0]
    assert set(by_subject.prepared.views["subject"][rows] % 2) == {1}
    with pytest.raises(ValueError, match=r"xsub"):
        make_dataset(synthetic_set, protocol="xsubject")


def test_spec_counts_tokens():
    spec = clips.ClipSpec(num_frames=16, frame_stride=4, crop_size=(128, 96), tubelet_size=(2, 16, 16))
    assert spec.num_tokens == 8 * 8 * 6


def test_a_single_clip_is_that_of_the_batches(synthetic_set):
    prepared = takes.open_prepared(synthetic_set)
    spec = clips.ClipSpec(num_frames=4, frame_stride=2, crop_size=(32, 24), tubelet_size=(2, 8, 8))
    batch = next(pipeline.clip_batches(prepared, spec, np.array([5]), global_batch_size=1))
    options = {"num_frames": 4, "frame_stride": 2, "crop_size": (32, 24)}
    for source in (prepared, synthetic_set, str(synthetic_set)):
        np.testing.assert_array_equal(pipeline.read_clip(source, 5, **options), batch["video"][0])
    for wrong, said in (
        ({"record": 72}, "there are 72"),
        ({"record": -1}, "no record -1"),
        ({"position": 1}, "position=1"),
    ):
        with pytest.raises(ValueError, match=said):
            pipeline.read_clip(prepared, **({"record": 0} | options | wrong))
