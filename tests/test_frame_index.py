"""Single frames are read from the shards without the bytes between them."""

import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from data.prepare import shards
from data.store import frame_index, takes

SIZES = [1, 40, 65_000, 65_512, 65_513, 200_000, 7]  # around the 65,512 bytes of a block after its header


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """(path, frames of each of three records)."""
    path, rng = tmp_path_factory.mktemp("shard") / "shard", np.random.default_rng(0)
    records = [[rng.bytes(size) for size in rng.permutation(SIZES)] for _ in range(3)]
    writer = array_record_module.ArrayRecordWriter(str(path), shards.WRITER_OPTIONS)
    for frames in records:
        example = {"take": "a", "view": "b", "frames": frames}
        writer.write(shards.FEATURES.serialize_example(example))
    writer.close()
    return path, records


def test_every_frame_is_found(shard):
    path, records = shard
    index = frame_index.of_shard(path)
    frames = [frame for record in records for frame in record]
    assert index["num_bytes"].tolist() == [len(frame) for frame in frames]
    with open(path, "rb") as file:
        for entry, frame in zip(index, frames, strict=True):
            assert frame_index.read(file.fileno(), int(entry["start"]), len(frame)) == frame


def test_the_prepared_set_gives_what_tfds_reads(synthetic_set):
    source = tfds.builder_from_directory(synthetic_set).as_data_source("takes")
    (stored,) = pickle.loads(pickle.dumps(takes.open_prepared(synthetic_set).stored)).values()
    for record in range(len(source)):
        frames = source[record]["frames"]
        wanted = [len(frames) - 1, 0, 3]
        assert stored.read(record, wanted) == [frames[frame] for frame in wanted]


def test_only_the_bytes_of_the_wanted_frames_are_read(shard, tmp_path, monkeypatch):
    path, records = shard
    index = frame_index.of_shard(path)
    np.save(tmp_path / frame_index.NAME, index)
    os.symlink(path, tmp_path / "shard")
    stored = frame_index.Frames(tmp_path, [("shard", 3)], np.full(3, len(SIZES)))
    num_read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: num_read.append(len(found := pread(*args))) or found)
    assert stored.read(1, [2, 4]) == [records[1][2], records[1][4]]
    wanted = len(records[1][2]) + len(records[1][4])
    assert wanted <= sum(num_read) <= wanted + 5 * frame_index.BLOCK_HEADER


def test_any_damaged_frame_is_found(shard, tmp_path):
    path, records = shard
    index, content, rng = frame_index.of_shard(path), path.read_bytes(), np.random.default_rng(1)
    np.save(tmp_path / frame_index.NAME, index)
    for number, entry in enumerate(index):
        damaged = bytearray(content)
        inside = int(entry["start"]) + int(rng.integers(entry["num_bytes"]))
        blocks = inside // (frame_index.BLOCK - frame_index.BLOCK_HEADER) + 1
        damaged[inside + frame_index.BLOCK_HEADER * blocks] ^= 1 << rng.integers(8)
        (tmp_path / "shard").write_bytes(damaged)
        stored = frame_index.Frames(tmp_path, [("shard", 3)], np.full(3, len(SIZES)))
        record, frame = divmod(number, len(SIZES))
        with pytest.raises(frame_index.DamagedFrame, match=f"frame {frame} has changed"):
            stored.read(record, [frame])
        other = (frame + 1) % len(SIZES)
        assert stored.read(record, [other]) == [records[record][other]]
