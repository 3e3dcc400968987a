"""Frames kept in memory give the same batches bit for bit, and each frame is decoded once."""

import itertools

import jax
import numpy as np
import pytest

from console.errors import UserError
from data import pipeline
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.store import codec, takes
from tests import tiny


@pytest.fixture(params=codec.NAMES)
def directory(request):
    return request.getfixturevalue({"jpeg": "synthetic_set", "dct": "synthetic_set_dct"}[request.param])


def pretraining(directory, cache: str, **data) -> Dataset:
    config = tiny.make_config()
    config.data.update(dict(dir=str(directory), cache=cache, holdout_fraction=0.25) | data)
    return Dataset.from_config(config)


def fine_tuning(directory, cache: str) -> LabelledDataset:
    return LabelledDataset.from_config(tiny.make_finetune_config(f"data.dir={directory}", f"data.cache={cache}"))


def training(dataset, num_workers=0):
    return pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=8, num_workers=num_workers)


def evaluation(dataset):
    return pipeline.eval_batches(dataset, seed=0, global_batch_size=8)


def labelled(dataset):
    return pipeline.labelled_batches(dataset, seed=0, start_step=0, global_batch_size=8)


def every_crop(dataset):
    return pipeline.clip_batches(dataset.prepared, dataset.spec, dataset.test, global_batch_size=8, crops_per_clip=3)


def assert_equal(dataset, other, read, count=6):
    """Compares batches of both data sets, twice: the second time `other` reads from memory."""
    for _ in range(2):
        pairs = list(itertools.islice(zip(read(dataset), read(other), strict=False), count))
        assert len(pairs) > 1
        for batch, kept in pairs:
            jax.tree.map(np.testing.assert_array_equal, batch, kept)


@pytest.mark.parametrize("crops", [{}, {"crop_scales": (0.8,), "repeats": 2}])  # 0.8 of 40 pixels are the crop's 32
@pytest.mark.parametrize("read", [training, evaluation])
def test_batches_for_pre_training_are_the_same(directory, crops, read):
    assert_equal(pretraining(directory, "off", **crops), pretraining(directory, "memory", **crops), read)


@pytest.mark.parametrize("read", [labelled, every_crop])
def test_batches_of_labelled_clips_are_the_same(directory, read):
    assert_equal(fine_tuning(directory, "off"), fine_tuning(directory, "memory"), read)


def test_reading_processes_share_what_is_kept(directory):
    kept = pretraining(directory, "memory", num_workers=2)
    pairs = zip(training(pretraining(directory, "off")), training(kept, num_workers=2), strict=False)
    for batch, by_workers in itertools.islice(pairs, 3):
        jax.tree.map(np.testing.assert_array_equal, batch, by_workers)
    cache = kept.prepared.pixels or kept.prepared.coefficients
    rooms = [cache.of(record) for record in kept.prepared.views["record"].tolist()]
    assert any(marks.any() for _, marks in rooms)  # the processes' frames are visible here


def test_what_has_been_read_is_not_read_again(directory, monkeypatch):
    dataset = pretraining(directory, "auto")
    first = list(itertools.islice(training(dataset), 3))

    def no_reading(self, record, frames):
        raise AssertionError(f"record {record} was read again")

    monkeypatch.setattr(takes.Prepared, "_read_stored", no_reading)
    record = int(dataset.train.rows[first[0]["take"][0], first[0]["view"][0, 0]])
    cache = dataset.prepared.pixels or dataset.prepared.coefficients
    _, marks = cache.of(record)
    frames = np.flatnonzero(marks)
    assert len(frames) >= dataset.spec.num_frames
    if dataset.prepared.codec == "dct":
        into = np.empty((len(frames), *dataset.prepared.coefficients_shape), np.int8)
        dataset.prepared.read_coefficients(record, frames, into)
    else:
        assert dataset.prepared.read(record, frames).any()
    with pytest.raises(AssertionError, match="read again"):
        dataset.prepared.read(record, np.flatnonzero(marks == 0)[:1])


def test_frames_that_do_not_exist_are_refused_as_without(synthetic_set):
    prepared = pretraining(synthetic_set, "memory").prepared
    for frames in ([-1], [10_000], []):
        with pytest.raises(ValueError, match="has frames 0 to"):
            prepared.read(0, np.array(frames, int))


def test_a_set_that_does_not_fit_is_not_kept_or_refused(synthetic_set):
    dataset = pretraining(synthetic_set, "auto", cache_gb=1e-6)
    assert dataset.prepared.pixels is None
    with pytest.raises(UserError, match=r"would keep 0\.\d+ GB.*data.cache_gb=1e-06.*Raise data.cache_gb"):
        pretraining(synthetic_set, "memory", cache_gb=1e-6)


def test_records_of_no_split_in_use_take_no_room(synthetic_set):
    prepared = takes.open_prepared(synthetic_set)
    size = int(prepared.views["num_frames"][3] * prepared.views["height"][3] * prepared.views["width"][3] * 3)
    kept = prepared.in_memory(np.array([3]), 1.0, required=True, also_pixels=False)
    assert kept.pixels.num_bytes == size + prepared.views["num_frames"][3]
    assert kept.pixels.of(2) is None
    np.testing.assert_array_equal(kept.read(3, np.array([2, 0, 2])), prepared.read(3, np.array([2, 0, 2])))
    np.testing.assert_array_equal(kept.read(2, np.array([1])), prepared.read(2, np.array([1])))
