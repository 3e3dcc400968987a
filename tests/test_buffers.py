"""The memory of batches is reused, shared between processes, and never changed while a batch is still referenced."""

import dataclasses
import gc
import multiprocessing
import os
import pickle
import signal
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from data import pipeline, samples
from data.store import buffers, descriptors, takes
from tests.test_pipeline import make_dataset

LARGE = (2**17,)

needs_sharing = pytest.mark.skipif(not buffers.SHAREABLE, reason="memory is shared on Linux alone")


def digests(batch) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(leaf)) for leaf in jax.tree.leaves(batch)]


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_the_last_view_is_gone():
    memory = buffers.Buffers()
    first = memory.empty(LARGE, np.int8)
    place, view = address(first), first.reshape(2, -1)[1, 5:].view(np.uint8)
    del first
    other = memory.empty(LARGE, np.int8)
    assert address(other) != place
    del view
    assert address(memory.empty(LARGE, np.float16)[: 2**16]) != place, "a buffer of another size is not reused"
    assert address(memory.empty((2**9, 2**8), bool)) == place
    assert address(memory.empty((3,), np.int32)) and memory.empty((0, 4), np.uint8).shape == (0, 4)


def test_arrays_are_aligned_to_64_bytes():
    assert address(buffers.Buffers().empty(LARGE, np.int8)) % 64 == 0


@needs_sharing
def test_an_array_crosses_processes_without_a_copy_and_comes_back():
    """Sender and receiver are one process here. The descriptor still goes through a socket."""
    memory, opener = buffers.Buffers(), buffers.Opener()
    sent = memory.empty((2, *LARGE), np.int8)
    sent[:] = 7
    shared = pickle.loads(pickle.dumps(memory.share({"clip": {"a": sent}, "label": np.arange(3)})))
    assert isinstance(shared["clip"]["a"], buffers.Address)
    received = opener(shared)
    np.testing.assert_array_equal(received["label"], np.arange(3))
    sent[0, 0] = 8  # the same bytes, though mapped twice
    assert received["clip"]["a"][0, 0] == 8 and received["clip"]["a"].shape == (2, *LARGE)
    with pytest.raises(ValueError, match="read-only"):
        received["clip"]["a"][0, 0] = 9
    place = address(sent)
    del sent
    assert address(memory.empty((2, *LARGE), np.int8)) != place, "the receiver still has it"
    del received
    assert address(memory.empty((2, *LARGE), np.int8)) == place


@needs_sharing
def test_arrays_of_other_memory_are_copied():
    memory, opener = buffers.Buffers(), buffers.Opener()
    whole = memory.empty((2, *LARGE), np.int32)
    whole[:] = np.arange(2 * LARGE[0]).reshape(2, -1)
    fresh = np.arange(LARGE[0], dtype=np.float32)
    wanted = {"part": whole[1].copy(), "same part": whole[1].copy(), "turned": whole.T.copy(), "fresh": fresh.copy()}
    batch = {"part": whole[1], "same part": whole[1], "turned": whole.T, "fresh": fresh}
    received = opener(memory.share(batch))
    whole[:], fresh[:] = 0, 0
    jax.tree.map(np.testing.assert_array_equal, received, wanted)


@needs_sharing
def test_a_process_that_is_gone_is_told_of():
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    gone = buffers.Address(process.pid, 0, "gone", LARGE, np.dtype(np.int8))
    with pytest.raises(buffers.Unreachable, match=f"memory of process {process.pid} cannot be opened"):
        buffers.Opener()({"video": gone})


@needs_sharing
def test_a_descriptor_is_read_only_and_goes_only_to_processes_of_the_run(monkeypatch):
    memory = buffers.Buffers()
    shared = memory.share({"video": memory.empty(LARGE, np.int8)})
    client, authkey = descriptors.connection.Client, multiprocessing.current_process().authkey
    with monkeypatch.context() as stranger, pytest.raises(buffers.Unreachable):
        stranger.setattr(
            descriptors.connection, "Client", lambda *args, authkey: client(*args, authkey=b"another run's")
        )
        buffers.Opener()(shared)
    with client(f"\0{shared['video'].listener}", "AF_UNIX", authkey=authkey) as owner:
        owner.send_bytes(b"0")
        descriptor = descriptors.reduction.recv_handle(owner)
    with pytest.raises(PermissionError):
        buffers.mmap.mmap(descriptor, 0)
    os.close(descriptor)


def mapped(process: int | str) -> set[str]:
    """The inodes of the buffers that a process has mapped."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:batch" in line}


@needs_sharing
@pytest.mark.parametrize("codec", ["jpeg", "dct"])
def test_no_batch_of_a_pass_is_copied(request, codec):
    """The buffers that the reading process has mapped are those that the main process has mapped."""
    dataset = make_dataset(request.getfixturevalue({"jpeg": "synthetic_set", "dct": "synthetic_set_dct"}[codec]))
    others, before = set(multiprocessing.active_children()), mapped("self")
    batches = pipeline.clip_batches(dataset.prepared, dataset.spec, np.arange(40), global_batch_size=8, num_workers=1)
    for _ in range(5):
        last = next(batches)
        (reader,) = set(multiprocessing.active_children()) - others
    assert max(leaf.nbytes for leaf in jax.tree.leaves(last)) >= buffers.MIN_BYTES
    assert mapped(reader.pid) and mapped(reader.pid) <= mapped("self") - before


@pytest.fixture
def dataset(synthetic_set_dct):
    return make_dataset(synthetic_set_dct)


@pytest.mark.parametrize(("codec", "num_workers"), [("jpeg", 0), ("jpeg", 1), ("dct", 0), ("dct", 2)])
def test_no_batch_changes_after_it_was_handed_out(request, codec, num_workers):
    """Of three batches one is kept, one is kept as JAX arrays that alias its memory, and one is dropped."""
    dataset = make_dataset(request.getfixturevalue({"jpeg": "synthetic_set", "dct": "synthetic_set_dct"}[codec]))
    stream = pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=16, num_workers=num_workers)
    kept = []
    for step in range(24):
        batch = next(stream)
        found = digests(batch)
        if step % 3 == 0:
            kept.append((found, batch))
        if step % 3 == 1:
            kept.append((found, jax.tree.map(jax.device_put, batch)))
        del batch
    for found, batch in kept:
        assert digests(batch) == found


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_that_are_dropped_cost_no_new_memory(dataset, num_workers):
    stream = pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=16, num_workers=num_workers)
    places = set()
    for _ in range(40):
        batch = next(stream)
        clip = batch["stored"]["video"]["coefficients"]
        assert clip.nbytes >= buffers.MIN_BYTES
        places.add(address(clip))
        del batch, clip
    assert len(places) <= 10


def test_a_sample_that_cannot_be_read_loses_no_memory(synthetic_set, monkeypatch):
    dataset, memory = make_dataset(synthetic_set), buffers.Buffers()
    drawn = [samples.draw_sample(dataset, element, np.random.default_rng(0)) for element in range(16)]
    first = {int(dataset.prepared.views["record"][row]) for row in drawn[-1]["video"].rows}
    read = takes.Prepared.read_frames

    def damaged(self, record, frames, window):
        if record in first:
            raise takes.DamagedRecord("damaged", record)
        return read(self, record, frames, window)

    monkeypatch.setattr(takes.Prepared, "read_frames", damaged)
    for _ in range(5):
        batch = samples.read_training_batch(dataset, drawn, memory.empty)
        assert (batch["damaged"] >= 0).any()
        del batch
    gc.collect()
    assert len(memory._buffers) == 1


@needs_sharing
def test_no_array_of_a_batch_lies_in_dev_shm_and_closing_ends_the_processes(dataset):
    """In a Docker container, /dev/shm has 64 MB. It keeps the arrays of killed processes."""
    others = set(multiprocessing.active_children())
    stream = pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=16, num_workers=2)
    kept = [next(stream) for _ in range(3)]
    readers = set(multiprocessing.active_children()) - others
    assert len(readers) == 2
    mapped = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in (os.getpid(), *(r.pid for r in readers)))
    assert "memfd:batch" in mapped
    assert "/dev/shm/psm" not in mapped, "Python's shared memory, which grain copies arrays to"
    found = [digests(batch) for batch in kept]
    stream.close()
    assert not readers & set(multiprocessing.active_children())
    assert [digests(batch) for batch in kept] == found


@pytest.mark.parametrize("moment", ["at work", "with a batch that was not opened yet"])
def test_a_killed_process_is_told_of(dataset, moment):
    others = set(multiprocessing.active_children())
    stream = pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=16, num_workers=1)
    next(stream)
    if moment == "at work":
        for _ in range(20):  # until all buffers of the reading process are open here
            next(stream)
    (reader,) = set(multiprocessing.active_children()) - others
    os.kill(reader.pid, signal.SIGKILL)
    with pytest.raises(OSError, match=r"reads the data was killed.*data.num_workers lower"):
        list(stream)


def test_what_a_reading_process_raises_reaches_the_caller(dataset):
    views = dict(dataset.prepared.views) | {"num_frames": dataset.prepared.views["num_frames"] + 10**6}
    lying, rows = dataclasses.replace(dataset.prepared, views=views), np.arange(8)
    with pytest.raises(ValueError, match=r"take S\d{3}P\d{3}R\d{3}A\d{3}, view C\d{3}"):
        next(pipeline.clip_batches(lying, dataset.spec, rows, global_batch_size=4, num_workers=1))
