"""Labelled views: which rows are trained and tested on, and what the batches show of them."""

import itertools

import numpy as np
import pytest
from ml_collections import config_dict

from configs import pretrain_base
from data import pipeline
from data.labelled import LabelledDataset


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


def test_shapes_and_types(dataset):
    (batch,) = batches(dataset, 1)
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "video": ("uint8", (8, 4, 32, 32, 3)),
        "label": ("int32", (8,)),
        "row": ("int32", (8,)),
    }


def test_every_clip_and_crop_comes_once(dataset):
    found = list(
        pipeline.clip_batches(
            dataset.prepared, dataset.spec, dataset.test, global_batch_size=8, clips_per_view=2, crops_per_clip=3
        )
    )
    rows = np.concatenate([batch["row"][batch["valid"]] for batch in found])
    np.testing.assert_array_equal(rows, np.repeat(dataset.test, 6))
