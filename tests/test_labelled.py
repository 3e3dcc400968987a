"""Labelled views: the rows for training and for testing, and the content of the batches."""

import dataclasses
import hashlib
import itertools
import pathlib

import numpy as np
import pytest
from ml_collections import config_dict

from configs import pretrain_base
from console.errors import UserError
from data import augment, pipeline
from data.dataset import Dataset
from data.labelled import LabelledDataset, choose_labels, split_rows
from data.store import takes
from mv2mae_jax.runs import run_record
from tests import tiny

NUM_TRAIN = 27
PINNED_ORDER = [21, 2, 13, 14, 9, 7, 25, 6]  # grain 0.2.18: MapDataset.range(27).seed(0).shuffle()
ALL_ON = augment.Augmentation(randaugment_num_ops=4, random_erasing=0.25, flip=0.5)


def make_dataset(directory, *, eval=(), augment=(), **data) -> LabelledDataset:
    config = pretrain_base.get_config()
    config.unlock()
    config.model.tubelet_size = (2, 8, 8)
    config.data = config_dict.ConfigDict(
        dict(
            dir=str(directory),
            protocol="xsub",
            holdout_fraction=0.25,
            num_frames=4,
            frame_stride=4,
            crop_size=(32, 32),
            crop_scales=(1.0, 0.875, 0.75, 0.66),
            repeats=1,
            num_workers=0,
            labels_per_class=None,
            label_seed=0,
            train_views=(),
        )
        | data
    )
    config.augment = config_dict.ConfigDict(dict(augment))
    config.eval = config_dict.ConfigDict(dict(clips_per_view=2, crops_per_clip=3) | dict(eval))
    return LabelledDataset.from_config(config)


@pytest.fixture(scope="module")
def dataset(synthetic_set):
    return make_dataset(synthetic_set)


def batches(dataset, count=3, **options):
    options = dict(seed=0, start_step=0, global_batch_size=8) | options
    return list(itertools.islice(pipeline.labelled_batches(dataset, **options), count))


def clips_of(dataset, rows, **options):
    options = dict(global_batch_size=8, clips_per_view=2, crops_per_clip=3) | options
    return list(pipeline.clip_batches(dataset.prepared, dataset.spec, rows, **options))


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_shapes_and_types(dataset):
    (batch,) = batches(dataset, 1)
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "video": ("uint8", (8, 4, 32, 32, 3)),
        "label": ("int32", (8,)),
        "row": ("int32", (8,)),
        "damaged": ("int32", (8,)),
    }


def test_an_epoch_visits_every_training_row_once(dataset):
    count = len(dataset.train)
    epochs = np.concatenate([batch["row"] for batch in batches(dataset, 2, global_batch_size=count)]).reshape(2, count)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), dataset.train)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_the_order_is_pinned(dataset):
    """If an upgrade or a refactoring changed this, the data of resumed runs would change silently."""
    assert len(dataset.train) == NUM_TRAIN
    (batch,) = batches(dataset, 1)
    np.testing.assert_array_equal(batch["row"], dataset.train[PINNED_ORDER])


def test_a_later_start_continues_the_same_stream(dataset):
    augmented = dataclasses.replace(dataset, augmentation=ALL_ON)
    from_the_start = batches(augmented, 8)  # beyond an epoch
    assert NUM_TRAIN < 8 * 8
    assert_equal(from_the_start[7], batches(augmented, 1, start_step=7)[0])
    assert not np.array_equal(from_the_start[7]["video"], batches(augmented, 1, start_step=7, seed=1)[0]["video"])


def test_workers_change_nothing(dataset):
    augmented = dataclasses.replace(dataset, augmentation=ALL_ON)
    for alone, by_workers in zip(batches(augmented, 2), batches(augmented, 2, num_workers=2), strict=True):
        assert_equal(alone, by_workers)
    alone, by_workers = (clips_of(dataset, dataset.test[:5], num_workers=n) for n in (0, 1))
    for first, second in zip(alone, by_workers, strict=True):
        assert_equal(first, second)


def test_processes_read_shares_of_one_batch(dataset):
    shares = [batches(dataset, process_index=i, process_count=4) for i in range(4)]
    for step, batch in enumerate(batches(dataset)):
        assert_equal(batch, {key: np.concatenate([share[step][key] for share in shares]) for key in batch})
    shares = [clips_of(dataset, dataset.test, process_index=i, process_count=4) for i in range(4)]
    for step, batch in enumerate(clips_of(dataset, dataset.test)):
        assert_equal(batch, {key: np.concatenate([share[step][key] for share in shares]) for key in batch})


def test_uneven_shares_are_refused(synthetic_set, dataset):
    with pytest.raises(ValueError, match=r"not divisible by 2 process\(es\) \* data.repeats = 3"):
        batches(make_dataset(synthetic_set, repeats=3), 1, process_count=2)
    with pytest.raises(ValueError, match="global_batch_size = 8 is not divisible by 3 process"):
        clips_of(dataset, dataset.test, process_count=3)


def test_labels_are_those_of_the_rows(dataset):
    for batch in [*batches(dataset), *clips_of(dataset, dataset.test)]:
        np.testing.assert_array_equal(batch["label"], dataset.prepared.views["label"][batch["row"]])


def test_training_clips_show_their_row(synthetic_set):
    """At full scale and stored size, a clip must equal frames read directly."""
    dataset = make_dataset(synthetic_set, crop_size=(40, 48), crop_scales=(1.0,))
    (batch,) = batches(dataset, 1)
    for video, row in zip(batch["video"], batch["row"], strict=True):
        stored = dataset.prepared.read(int(row), np.arange(dataset.prepared.views["num_frames"][row]))
        candidates = [
            stored[start : start + 13 : 4, :, left : left + 48]
            for start in range(len(stored) - 12)
            for left in range(stored.shape[2] - 48 + 1)
        ]
        assert any(np.array_equal(video, candidate) for candidate in candidates)


def test_repeats_are_crops_of_one_clip(synthetic_set):
    dataset = make_dataset(synthetic_set, repeats=4)
    (batch,) = batches(dataset, 1)
    rows = batch["row"].reshape(2, 4)
    assert (rows == rows[:, :1]).all() and rows[0, 0] != rows[1, 0]
    crops = batch["video"].reshape(2, 4, -1)
    assert not any(np.array_equal(crops[0, 0], crops[0, i]) for i in range(1, 4))
    assert dataset.samples_per_epoch == 4 * len(dataset.train)


def test_augmentation_reaches_the_training_clips(dataset):
    (plain,) = batches(dataset, 1)
    mirrored, erased, recoloured = (
        batches(dataclasses.replace(dataset, augmentation=augment.Augmentation(**setting)), 1)[0]["video"]
        for setting in ({"flip": 1.0}, {"random_erasing": 1.0}, {"randaugment_num_ops": 20})
    )
    np.testing.assert_array_equal(mirrored, plain["video"][..., ::-1, :])
    changed = (erased != plain["video"]).any(axis=(1, -1))  # (B, H, W)
    assert (changed.mean(axis=(1, 2)) > 0.01).all() and (changed.mean(axis=(1, 2)) < 0.35).all()
    assert all((a != b).any() for a, b in zip(recoloured, plain["video"], strict=True))


@pytest.mark.parametrize("batch_size", [4, 7, 100])
def test_every_clip_and_crop_comes_once(synthetic_set, batch_size):
    """This holds for every batch size, also if two batches share the crops of a clip."""
    dataset = make_dataset(synthetic_set, crop_size=(40, 40))
    rows = dataset.test[[3, 0, 5]]  # the batches keep this order
    found = list(
        pipeline.clip_batches(
            dataset.prepared, dataset.spec, rows, global_batch_size=batch_size, clips_per_view=2, crops_per_clip=3
        )
    )
    assert all(len(batch["video"]) == batch_size for batch in found)
    joined = {key: np.concatenate([batch[key] for batch in found]) for key in found[0]}
    np.testing.assert_array_equal(joined["valid"], np.arange(len(joined["valid"])) < 18)
    np.testing.assert_array_equal(joined["row"][:18], np.repeat(rows, 6))
    expected = []
    for row in rows:
        length = dataset.prepared.views["num_frames"][row]
        stored = dataset.prepared.read(int(row), np.arange(length))
        for start in (0, length - 13):  # four frames at stride 4 span 13
            for left in (0, (stored.shape[2] - 40) / 2, stored.shape[2] - 40):
                expected.append(stored[start : start + 13 : 4, :, round(left) : round(left) + 40])
    np.testing.assert_array_equal(joined["video"][:18], np.stack(expected))


def test_rows_to_feature_need_no_labels(dataset):
    views = dict(dataset.prepared.views) | {"label": np.full(len(dataset.prepared.views["label"]), -1)}
    prepared = dataclasses.replace(dataset.prepared, views=views)
    (batch,) = pipeline.clip_batches(prepared, dataset.spec, np.arange(4), global_batch_size=4)
    assert batch["label"].tolist() == [-1] * 4 and batch["valid"].all()


def test_splits_are_those_of_the_protocol(dataset):
    views = dataset.prepared.views
    train, held_out, test = dataset.train, dataset.held_out, dataset.test
    assert (views["subject"][np.concatenate([train, held_out])] % 2 == 1).all()
    assert (views["subject"][test] % 2 == 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out, test])), np.arange(len(views["take"])))
    assert len(held_out) and not set(views["take"][train]) & set(views["take"][held_out])
    assert all((np.diff(rows) > 0).all() for rows in (train, held_out, test))
    assert dataset.num_classes == len(dataset.class_names) == 16


def test_held_out_takes_are_those_of_pre_training(synthetic_set, dataset):
    config = pretrain_base.get_config()
    config.data.update(dict(dir=str(synthetic_set), protocol="xsub", holdout_fraction=0.25))
    held_out = Dataset.from_config(config).held_out
    assert set(held_out.take_names) == set(dataset.prepared.views["take"][dataset.held_out])


@pytest.mark.parametrize(("protocol", "fraction"), [("all", 0.0), ("all", 0.5), ("xsub", 0.0), ("xview", 0.25)])
def test_views_to_test_on_that_a_run_has_trained_on_are_told(
    synthetic_set, dataset, monkeypatch, capsys, protocol, fraction
):
    """Here of a test on other people; a run on another set cannot tell."""
    views, record = dataset.prepared.views, {"manifest_sha256": dataset.prepared.content_digest()}
    trained = config_dict.create(data={"protocol": protocol, "holdout_fraction": fraction, "frame_stride": 4})
    monkeypatch.setattr(run_record, "read_record", lambda path, step: (step, record, trained))
    monkeypatch.delattr(takes, "open_prepared")  # the set is open
    run_record.compare_data("runs/a", 3, dataset)
    names = np.unique(views["take"]).tolist() if protocol == "all" else []
    if protocol == "xview":
        names = np.unique(views["take"][views["view"] != "C001"]).tolist()
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    kept = set(ranked[round(fraction * len(ranked)) :])
    seen = [views["take"][row] in kept and (protocol == "all" or views["view"][row] != "C001") for row in dataset.test]
    warning = f"warning: {sum(seen)} of {len(seen)} views to test on are among those that runs/a has trained on (its "
    assert capsys.readouterr().out.startswith(warning) == any(seen) == (protocol != "xsub")
    record["manifest_sha256"] = "another"
    run_record.compare_data("runs/a", 3, dataset)
    assert capsys.readouterr().out == ""


def test_a_run_that_began_with_one_that_has_seen_the_test_is_told(dataset, monkeypatch, tmp_path, capsys):
    """Runs that began with each other, as when a folder was used again, end the search."""
    runs = {"tuned": ("xsub", "first"), "first": ("all", "tuned")}
    for name in runs:
        (tmp_path / name / "checkpoints").mkdir(parents=True)

    def read(path, step):
        protocol, origin = runs[pathlib.Path(path).name]
        data = {"protocol": protocol, "frame_stride": 4}
        config = config_dict.create(data=data, init_from=str(tmp_path / origin), init_from_step=None)
        return 3, {"manifest_sha256": dataset.prepared.content_digest()}, config

    monkeypatch.setattr(run_record, "read_record", read)
    run_record.compare_data(str(tmp_path / "tuned"), 3, dataset)
    said, count = capsys.readouterr().out, len(dataset.test)
    assert said.count("warning: ") == 1
    assert f"{count} of {count} views to test on are among those that {tmp_path / 'first'} has trained on" in said


def test_people_in_both_splits_of_random_takes_are_told(synthetic_set, capsys):
    for protocol, said in (("random", True), ("xsub", False), ("xview", False)):
        config = tiny.make_finetune_config(f"data.dir={synthetic_set}", f"data.protocol={protocol}")
        dataset = LabelledDataset.from_config(config)
        subject = dataset.prepared.views["subject"]
        both = set(subject[dataset.train].tolist()) & set(subject[dataset.test].tolist())
        told = f"{len(both)} people are in both splits. data.protocol='xsub' tests other people."
        assert (told in capsys.readouterr().out) == said == (protocol != "xview" and bool(both))


@pytest.mark.parametrize(
    ("stride", "rates", "said"),
    [
        (4, (30.0, 30.0), ""),
        (3, (25.0, 30.0), ""),
        (4, None, ""),
        (2, (30.0, 30.0), "runs/a was trained on a frame every 0.067 s. Here data.frame_stride=4 of 30 frames per "),
        (8, (25.0, 30.0), "every 0.32 s. Here data.frame_stride=4 of 30 frames per second takes "),
    ],
)
def test_frames_at_other_distances_in_time_than_the_runs_are_told(dataset, monkeypatch, capsys, stride, rates, said):
    assert dataset.prepared.frame_rates() == (30.0, 30.0)
    trained = config_dict.create(data={"frame_stride": stride})
    monkeypatch.setattr(run_record, "read_record", lambda path, step: (step, {"frame_rates": rates}, trained))
    run_record.compare_data("runs/a", 3, dataset)
    found = capsys.readouterr().out
    assert said in found and bool(found) == bool(said)


def test_training_views_may_be_chosen(synthetic_set, dataset):
    two = make_dataset(synthetic_set, train_views=("C002", "C003"))
    views = dataset.prepared.views
    for chosen, everything in ((two.train, dataset.train), (two.held_out, dataset.held_out)):
        np.testing.assert_array_equal(chosen, everything[views["view"][everything] != "C001"])
    np.testing.assert_array_equal(two.test, dataset.test)
    with pytest.raises(ValueError, match=r"data.train_views names C001, but the views .* are C002, C003"):
        make_dataset(synthetic_set, protocol="xview", train_views=("C001", "C002"))


def few(views, k, seed=0, rows=None):
    rows = np.arange(len(views["take"])) if rows is None else rows
    return choose_labels(views, rows, k, seed=seed, class_names=("walk", "run"))


@pytest.fixture
def manifest():
    """Two classes of 6 and 4 takes, two views each."""
    take = np.repeat([f"take{i}" for i in range(10)], 2)
    return {"take": take, "view": np.tile(["1", "2"], 10), "label": np.repeat([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], 2)}


def test_few_labels_are_whole_takes_of_each_class(manifest):
    for k in (1, 2, 3, 4):
        chosen = few(manifest, k)
        takes, counts = np.unique(manifest["take"][chosen], return_counts=True)
        assert (counts == 2).all(), "a labelled take is labelled in all its views"
        labels = manifest["label"][chosen][::2]
        assert len(takes) == 2 * k and labels.tolist() == [0] * k + [1] * k


def test_few_labels_are_nested(manifest):
    chosen = [set(few(manifest, k).tolist()) for k in (1, 2, 3, 4)]
    assert all(less < more for less, more in itertools.pairwise(chosen))


def test_few_labels_do_not_depend_on_the_order_of_the_manifest(manifest):
    order = np.random.default_rng(0).permutation(20)
    shuffled = {key: column[order] for key, column in manifest.items()}
    assert set(manifest["take"][few(manifest, 2)]) == set(shuffled["take"][few(shuffled, 2)])


def test_the_label_seed_makes_another_choice(manifest):
    chosen = {tuple(few(manifest, 2, seed=seed)) for seed in range(10)}
    assert len(chosen) > 5


def test_few_labels_reach_the_training_set_alone(synthetic_set, dataset):
    one = make_dataset(synthetic_set, labels_per_class=1)
    views = dataset.prepared.views
    assert set(one.train) <= set(dataset.train)
    labels = sorted(views["label"][row] for row in one.train)
    assert labels == sorted(3 * np.unique(views["label"][dataset.train]).tolist())  # one take, three views
    np.testing.assert_array_equal(one.test, dataset.test)
    np.testing.assert_array_equal(one.held_out, dataset.held_out)


def test_more_labels_than_there_are_are_refused(manifest):
    with pytest.raises(ValueError, match=r"labels_per_class=5, but class 'run' has only 4 take"):
        few(manifest, 5)
    unlabelled = manifest | {"label": np.where(np.arange(len(manifest["label"])) < 3, -1, manifest["label"])}
    with pytest.raises(ValueError, match=f"3 of {len(manifest['label'])} views have no label"):
        few(unlabelled, 1)


def relabelled(dataset, label):
    return dataclasses.replace(dataset.prepared, views=dict(dataset.prepared.views) | {"label": label})


def test_rows_without_a_label_are_left_out(dataset):
    label = dataset.prepared.views["label"].copy()
    unknown = np.array([dataset.train[0], dataset.test[0]])
    label[unknown] = -1
    train, held_out, test = split_rows(relabelled(dataset, label), "xsub", 0.25)
    np.testing.assert_array_equal(train, dataset.train[1:])
    np.testing.assert_array_equal(held_out, dataset.held_out)
    np.testing.assert_array_equal(test, dataset.test[1:])


def test_a_set_without_labels_is_refused(dataset):
    label = dataset.prepared.views["label"]
    with pytest.raises(ValueError, match=r"has no labels: none of the .* views in the train split"):
        split_rows(relabelled(dataset, np.full_like(label, -1)), "xsub", 0.0)
    unlabelled = split_rows(relabelled(dataset, np.full_like(label, -1)), "xsub", 0.0, needs_labels=False)
    for rows, all_rows in zip(unlabelled, split_rows(dataset.prepared, "xsub", 0.0), strict=True):
        np.testing.assert_array_equal(rows, all_rows)
    test_unknown = np.where(np.isin(np.arange(len(label)), dataset.test), -1, label)
    with pytest.raises(ValueError, match=r"has no labels: none of the .* views in the test split"):
        split_rows(relabelled(dataset, test_unknown), "xsub", 0.0)


@pytest.mark.parametrize("split", ["test", "held_out"])
def test_classes_that_are_tested_without_an_example_are_told(synthetic_set, dataset, monkeypatch, capsys, split):
    """And so is a test of one class, which tells nothing. Only of the split that is measured."""
    label, tested = dataset.prepared.views["label"].copy(), getattr(dataset, split)
    label[tested] = 15
    label[dataset.train[label[dataset.train] == 15]] = 14
    one = relabelled(dataset, label)
    monkeypatch.setattr("data.labelled.takes.open_prepared", lambda directory: one)
    options = (f"data.dir={synthetic_set}", "data.holdout_fraction=0.25", f"eval.split={split}")
    LabelledDataset.from_config(tiny.make_finetune_config(*options))
    said = " ".join(capsys.readouterr()).replace("\n", " ")
    count = f"{len(tested)} of {len(tested)} views to test on are of 1 class(es) without a view to train on"
    assert count in said and f"are of class '{one.class_names[15]}'" in said


def test_classes_that_no_view_has_are_named_as_the_cause(synthetic_set, dataset):
    label = dataset.prepared.views["label"]
    few_classes = dataclasses.replace(relabelled(dataset, np.full_like(label, -1)), some_classes=(0,))
    with pytest.raises(ValueError, match=r"data\.classes leaves no view in the train split of 'xsub': name others"):
        split_rows(few_classes, "xsub", 0.0)


@pytest.mark.parametrize("num_names", [1, 16])
def test_fine_tuning_on_one_class_is_refused(synthetic_set, dataset, monkeypatch, num_names):
    one = relabelled(dataset, np.zeros_like(dataset.prepared.views["label"]))
    one = dataclasses.replace(one, class_names=one.class_names[:num_names])
    monkeypatch.setattr("data.labelled.takes.open_prepared", lambda directory: one)
    config = tiny.make_finetune_config(f"data.dir={synthetic_set}")
    with pytest.raises(UserError, match=f"all [0-9]+ views .* of one class, '{one.class_names[0]}' .{num_names} in"):
        LabelledDataset.from_config(config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"protocol": "all"}, "data.protocol='all' leaves nothing .* to test on.*random, xsub, xsub_xview, xview"),
        ({"protocol": "xset"}, "synthetic has no protocol 'xset'; it has random, xsub, xsub_xview, xview"),
        ({"holdout_fraction": 1.0}, "leaves no take of 12 to train on"),
        ({"labels_per_class": 100}, "labels_per_class=100, but class '.*' has only [0-9]+ take"),
        ({"augment": {"flip": 0.5}}, "mirror image changes the class of 6 of the 16 .*'wave with the left hand'"),
        ({"augment": {"flip": 1.5}}, "must lie between 0 and 1"),
        ({"eval": {"crops_per_clip": 2}}, "crops_per_clip=2"),
        ({"eval": {"clips_per_view": 0}}, "clips_per_view=0"),
    ],
)
def test_impossible_settings_are_refused(synthetic_set, setting, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(synthetic_set, **setting)
