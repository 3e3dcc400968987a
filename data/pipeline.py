"""The input pipeline: a prepared data set -> batches. Only this module decides order and random generators.

A training batch is a pure function of (seed, step): the pipeline starts at any step without the state of a saved
iterator. Every random draw depends on the global element index, before the stream is split by process. Therefore a run
continues exactly, with any number of workers, hosts or devices.
"""

import functools
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from console import progress, workers
from console.errors import UnusableFile, UserError
from data import clips, samples
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.store import buffers, takes

Batch = dict[str, np.ndarray | dict[str, np.ndarray]]

GRACE_SECONDS = 10  # [ours] how long a reading process continues after SIGTERM or SIGHUP
_LATE = (
    "a batch of data. The file system may be slow or not answer, or a reading process (data.num_workers) may hang. It "
    "comes as soon as they go on."
)


def train_batches(dataset: Dataset, *, seed: int, start_step: int, **stream: Any) -> Iterator[Batch]:
    """Endless training batches from `start_step` on: this process's rows of each global batch.

    One epoch is one pass over the (take, target view) elements in a fresh order; the source views are drawn.

    Args:
      seed: decides order, source views, start frames and crops.
      start_step: the step whose batch comes first.
      global_batch_size: samples per step over all processes; divisible by process_count * repeats.
      process_index, process_count: which of how many shares of each batch; 0 and 1 by default.
      num_workers: processes that read and decode; 0, the default, decodes in threads of this process.

    Yields:
      `video` uint8[B, V, T, H, W, 3], view 0 the target; `motion` float32[B, V, N], grey levels; `take` int32[B];
      `view` int32[B, V]; `label` int32[B], -1 where unknown; `damaged` int32[B], the record that could not be read and
      was replaced by another sample, else -1. If frames are stored as coefficients, a batch holds `stored` in place of
      `video` and `motion`: for each name of a clip, the record from which mv2mae_jax/models/stored_frames.py makes it
      (see `samples.read_batch`). The same applies to all clips below.
    """
    elements = _shuffled(len(dataset.train.elements), seed).random_map(functools.partial(samples.draw_sample, dataset))
    make_batch = functools.partial(samples.read_training_batch, dataset)
    return _stream(elements, make_batch, start_step=start_step, repeats=dataset.spec.repeats, **stream)


def labelled_batches(dataset: LabelledDataset, *, seed: int, start_step: int, **stream: Any) -> Iterator[Batch]:
    """Endless batches of labelled views from `start_step` on; further arguments as in `train_batches`.

    One epoch is one pass over the training rows in a fresh order; start frames, crops and augmentations are drawn.

    Yields:
      `video` uint8[B, T, H, W, 3]; `label` int32[B]; `row` int32[B], of the manifest; `damaged` as in `train_batches`.
    """
    elements = _shuffled(len(dataset.train), seed).random_map(functools.partial(samples.read_labelled_sample, dataset))
    return _stream(elements, _join_repeats, start_step=start_step, repeats=dataset.spec.repeats, **stream)


def _shuffled(num_elements: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(num_elements).seed(seed).shuffle().repeat()


def eval_batches(
    dataset: Dataset,
    *,
    seed: int,
    global_batch_size: int,
    max_takes: int | None = None,
    clips_per_element: int = 1,
    **stream: Any,
) -> Iterator[Batch]:
    """One pass over the held-out takes (the training takes if none is held out), with the same clips every time.

    Every element comes `clips_per_element` times with different start frames; crops are central. If there are more
    takes than `max_takes`, that many are drawn at random, the same ones every time. `stream` is as in `train_batches`.

    Besides the keys of `train_batches`, a batch holds sources from other takes, seen by the same camera as the source:
      `other_subject` and `other_action` uint8[B, S, T, H, W, 3]: another subject in the same room, and the same subject
      in the same room doing something else;
      `has_other_subject`, `has_other_action` bool[B]: whether the set holds such a take (otherwise the take's own
      sources are passed);
      `valid` bool[B]: False for rows that only fill up the last batch.
    """
    take_views = dataset.held_out or dataset.train
    elements = np.random.default_rng(seed).permutation(take_views.elements)
    if max_takes is not None:
        # Taken from a permutation: the first names in sorted order would all be of the first rooms or subjects.
        _, first = np.unique(elements[:, 0], return_index=True)
        elements = elements[np.isin(elements[:, 0], elements[np.sort(first)[:max_takes], 0])]
    elements = np.tile(elements, (clips_per_element, 1))
    others = samples.other_takes(dataset.prepared.views, take_views)
    draw = functools.partial(samples.draw_eval_sample, dataset, take_views, elements, others)
    num_batches = -(-len(elements) // global_batch_size)
    padded = grain.MapDataset.range(num_batches * global_batch_size).seed(seed).random_map(draw)
    make_batch = functools.partial(samples.read_batch, dataset)
    return Pass(_stream(padded, make_batch, global_batch_size=global_batch_size, **stream), num_batches)


def read_clip(
    prepared: takes.Prepared | str | os.PathLike,
    record: int,
    *,
    num_frames: int,
    frame_stride: int,
    crop_size: tuple[int, int],
    position: float = 0.5,
) -> np.ndarray:
    """One clip of one view of a prepared set, as an encoder takes it, with the largest central crop.

    Args:
      prepared: an opened set, or its folder.
      record: the row of the manifest, from 0.
      num_frames: frames of the clip, T.
      frame_stride: distance of neighbouring frames, in stored frames; smaller in a view that is too short for it.
      crop_size: (H, W) in pixels.
      position: where the clip starts, from 0 (the first possible frame) up to but excluding 1; 0.5 is the middle.

    Returns:
      uint8[T, H, W, 3], RGB.

    Raises:
      ValueError: no prepared set, no such record, one that is damaged, or a size or position out of its range.
    """
    prepared = prepared if isinstance(prepared, takes.Prepared) else takes.open_prepared(prepared)
    count = len(prepared.views["num_frames"])
    if not 0 <= record < count:
        raise UserError(f"no record {record} in {prepared.directory}: there are {count}")
    if min(num_frames, frame_stride, *crop_size) < 1 or not 0 <= position < 1:
        raise UserError(
            f"num_frames={num_frames}, frame_stride={frame_stride} and crop_size={crop_size} must be at least 1, and "
            f"position={position} in [0, 1)."
        )
    length = int(prepared.views["num_frames"][record])
    frames = prepared.read(record, clips.frame_indices(length, num_frames, frame_stride, position))
    return samples.crop_clip(frames, clips.CropDraw(), tuple(crop_size))


def clip_batches(
    prepared: takes.Prepared,
    spec: clips.ClipSpec,
    rows: np.ndarray,
    *,
    global_batch_size: int,
    clips_per_view: int = 1,
    crops_per_clip: int = 1,
    **stream: Any,
) -> Iterator[Batch]:
    """One pass over `rows` without augmentation: every clip of every view in every crop, the same each time.

    The samples of a view follow one another, and so do the crops of each of its clips.

    Args:
      spec: `num_frames`, `frame_stride` and `crop_size` are used.
      rows: int[...], manifest rows, in the order wanted.
      global_batch_size: samples per batch over all processes; divisible by process_count.
      clips_per_view: temporal clips, evenly from the first to the last possible start; 1 is the middle.
      crops_per_clip: 1 is the centre; 3 are the start, the middle and the end of the longer side.
      **stream: `process_index`, `process_count` and `num_workers` as in `train_batches`.

    Yields:
      `video` uint8[B, T, H, W, 3]; `label` int32[B], -1 where unknown; `row` int32[B]; `valid` bool[B], False for
      samples that only fill the last batch.

    Raises:
      ValueError: an uneven share, no clips, or another number of crops than 1 or 3.
    """
    positions, crops = clips.spread_positions(clips_per_view), clips.spread_crops(crops_per_clip)
    make_batch = functools.partial(samples.read_plain_batch, prepared, spec, np.asarray(rows), positions, crops)
    num_samples = len(rows) * len(positions) * len(crops)
    num_batches = -(-num_samples // global_batch_size)
    numbers = grain.MapDataset.range(num_batches * global_batch_size)
    return Pass(_stream(numbers, make_batch, global_batch_size=global_batch_size, **stream), num_batches)


class Pass(Iterator[Batch]):
    """The batches of one pass over the samples. `operator.length_hint` says how many batches are left."""

    def __init__(self, batches: Iterable[Batch], num_batches: int):
        self._batches, self._left = iter(batches), num_batches

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._left -= 1
        return batch

    def __length_hint__(self) -> int:
        return self._left


def _stream(
    elements: grain.MapDataset,
    make_batch: Callable[..., Batch],
    *,
    global_batch_size: int,
    repeats: int = 1,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Batches that `make_batch` makes from this process's elements. Each element becomes `repeats` samples."""
    if global_batch_size % (process_count * repeats):
        raise UserError(
            f"global_batch_size = {global_batch_size} is not divisible by {process_count} process(es)"
            + (f" * data.repeats = {repeats}." if repeats > 1 else ".")
        )
    per_step, memory = global_batch_size // repeats, buffers.Buffers()
    rows = per_step // process_count
    own = _ProcessRows(elements, start_step, per_step, process_index * rows, rows)
    batches = own.batch(rows, batch_fn=functools.partial(make_batch, empty=memory.empty))
    return _read(_prefetch(batches, memory, num_workers), starts_processes=num_workers > 0)


def _read(stream: grain.IterDataset, starts_processes: bool) -> Iterator[Batch]:
    """Yields the batches of a stream. The reading processes end when this generator is closed or collected.

    If a batch does not come for a minute, a line says so. Raises OSError if a reading process was killed.
    """
    batches = iter(stream)
    try:
        yield from progress.patient(_started(batches) if starts_processes else batches, _LATE)
    except (RuntimeError, OSError) as error:
        if not isinstance(error, buffers.Unreachable) and "terminated unexpectedly" not in str(error):  # of grain
            raise
        raise UnusableFile(
            f"A process that reads the data was killed, or its memory cannot be reached on this system ({error}). If "
            "the memory was full, set data.num_workers lower; 0 reads in threads. The same command continues from the "
            "last checkpoint."
        ) from error
    finally:
        batches.close()


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches. The first is read in a thread that blocks Ctrl-C, as do the processes that grain starts there.

    Otherwise Ctrl-C would end a process that is still importing, and this one would wait forever to hand over the data
    set by a pipe that nobody reads any more. The main thread only waits, so it still obeys Ctrl-C.
    """
    found = queue.SimpleQueue()

    def read_first() -> None:
        with workers.without_ctrl_c():
            try:
                found.put(next(batches, None))
            except BaseException as error:
                found.put(error)

    threading.Thread(target=read_first, daemon=True).start()
    first = found.get()
    if isinstance(first, BaseException):
        raise first
    if first is not None:
        yield first
        yield from batches


def _prefetch(batches: grain.MapDataset, memory: buffers.Buffers, num_workers: int) -> grain.IterDataset:
    if num_workers == 0:
        return batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if not flags.FLAGS.is_parsed():  # grain's worker processes read absl's flags, which we do not use
        flags.FLAGS.mark_as_parsed()
    # In each process one batch is being read, one is ready and one is queued. More would take too much memory: a batch
    # may have gigabytes, and there may be many processes.
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).map(memory.share)
    if buffers.SHAREABLE:  # large arrays are passed by address and small ones are pickled, so grain need not copy any
        options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        stream = grain.experimental.WithOptionsIterDataset(stream, options)
    stream = stream.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=1), worker_init_fn=_start_worker
    )
    return stream.map(buffers.Opener())


def _start_worker(index: int, count: int) -> None:
    """Prepares a reading process. If the run is told to stop, it still reads the last batches; if killed, it ends."""
    del index, count
    workers.end_with_parent()
    for number in (signal.SIGTERM, signal.SIGHUP):  # closing a terminal sends SIGHUP to all processes in it
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: signal.alarm(GRACE_SECONDS))  # the alarm ends the process


class _ProcessRows(grain.MapDataset):
    """One process's contiguous rows of the global batches, from a given step on."""

    def __init__(self, parent: grain.MapDataset, start_step: int, per_step: int, first_row: int, rows: int):
        super().__init__(parent)
        self._start_step, self._per_step, self._first_row, self._rows = start_step, per_step, first_row, rows

    def __len__(self) -> int:
        return (len(self._parent) // self._per_step - self._start_step) * self._rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, self._rows)
        return self._parent[(self._start_step + step) * self._per_step + self._first_row + row]


def _join_repeats(elements: Sequence[Batch], empty: samples.Empty = np.empty) -> Batch:
    """Elements of (repeats, ...) -> (elements * repeats, ...): crops of the same clip are neighbours."""
    batch = {}
    for key, first in elements[0].items():
        parts = [element[key] for element in elements]
        into = empty((len(parts) * len(first), *first.shape[1:]), first.dtype)
        batch[key] = np.concatenate(parts, out=into)
    return batch
